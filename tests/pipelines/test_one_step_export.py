"""The exported graph is the pipeline's one step: through `torch.export` and ONNX, for any size, without this package."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from diffusers_ct import (
    CheckpointContract,
    ConditionEncoder,
    CTAdaptiveDDIMScheduler,
    CTDiffusionPipeline,
    CTVolume,
    ScanConditions,
    export_one_step,
)
from diffusers_ct.pipelines import ContractError
from diffusers_ct.pipelines.one_step_export import FORMATS, one_step_inputs
from diffusers_ct.schedulers import make_noise_scheduler
from tests.pipelines.test_pipeline_ct_diffusion import pipeline, scan, seeded, tiny_unet

SHAPES = [(3, 30, 26), (1, 40, 40), (7, 64, 33), (2, 8, 8)]


def needs(suffix: str) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")


def run_graph(path, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    if path.suffix == ".pt2":
        with torch.no_grad():
            return torch.export.load(path).module()(**inputs).numpy()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["restored_hu"], {name: value.numpy() for name, value in inputs.items()})[0]


def restored(path, pipe: CTDiffusionPipeline, low: CTVolume) -> np.ndarray:
    depth, height, width = low.shape
    return run_graph(path, one_step_inputs(pipe, low, generator=seeded()))[0, 0, :depth, :height, :width]


def expected(pipe: CTDiffusionPipeline, low: CTVolume) -> np.ndarray:
    return pipe(low, generator=seeded(), output_type="np").volumes


@pytest.fixture(scope="module")
def plain():
    contract = CheckpointContract("phantoms", "Apache-2.0", noise_level_hu=(10.0, 60.0))
    return pipeline(tiny_unet(), contract=contract)


@pytest.fixture(scope="module", params=FORMATS)
def exported(request, plain, tmp_path_factory):
    needs(request.param)
    return export_one_step(plain, tmp_path_factory.mktemp("graph") / f"model{request.param}")


def test_the_graph_is_the_pipeline_at_any_size(plain, exported):
    for shape in SHAPES:
        low = scan(shape)
        low.hu[0, 0, 0] = 9000.0  # metal beyond every window
        hu = expected(plain, low)
        assert np.abs(hu - low.hu).max() > 2.0
        np.testing.assert_allclose(restored(exported, plain, low), hu, atol=0.01)


def test_every_input_has_its_effect(plain, exported):
    inputs = one_step_inputs(plain, scan(), generator=seeded())
    base = run_graph(exported, inputs)
    for name, value in inputs.items():
        change = np.abs(run_graph(exported, {**inputs, name: value * 1.3}) - base).max()
        # the network is not shown pure noise: one step is the same for every seed
        assert change == 0.0 if name == "start_noise" else change > 1e-3, name


def test_contract_and_notice_travel_with_the_graph(exported):
    if exported.suffix == ".pt2":
        extra = {"contract.json": "", "notice.json": ""}
        torch.export.load(exported, extra_files=extra)
        contract, notice = json.loads(json.loads(extra["contract.json"])), json.loads(extra["notice.json"])
    else:
        import onnx

        facts = {entry.key: entry.value for entry in onnx.load(exported).metadata_props}
        contract, notice = json.loads(facts["contract"]), facts["notice"]
    assert CheckpointContract.from_dict(contract).noise_level_hu == (10.0, 60.0)
    assert "not a medical device" in notice


def test_onnx_runs_without_torch_and_this_package(plain, tmp_path):
    needs(".onnx")
    path, low = export_one_step(plain, tmp_path / "model.onnx", shape=(3, 32, 28)), scan()
    np.savez(
        tmp_path / "in.npz", **{name: v.numpy() for name, v in one_step_inputs(plain, low, generator=seeded()).items()}
    )
    code = f"""
import sys, numpy as np, onnxruntime
session = onnxruntime.InferenceSession({str(path)!r}, providers=["CPUExecutionProvider"])
np.save({str(tmp_path / "out.npy")!r}, session.run(None, dict(np.load({str(tmp_path / "in.npz")!r})))[0])
assert not {{"torch", "diffusers", "diffusers_ct"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy")[0, 0, :, :30, :26], expected(plain, low), atol=0.01)


@pytest.fixture(scope="module")
def conditional():
    torch.manual_seed(0)
    encoder = ConditionEncoder(
        ("body_part", "slice_thickness_mm"), body_parts=("CHEST", "ABDOMEN"), token_dim=6, pooled_dim=4
    )
    unet = tiny_unet(
        pooled_dim=7,
        transformer_depth=(0, 1),
        attention_levels=(1,),
        attention_head_dim=8,
        cross_attention_dim=6,
        window_depth=2,
    )
    with torch.no_grad():
        for parameter in [*encoder.parameters(), *unet.parameters()]:
            if not parameter.any():
                nn.init.normal_(parameter, std=0.2)
    pipe = CTDiffusionPipeline(
        unet, DDIMScheduler.from_config(make_noise_scheduler().config), condition_encoder=encoder
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("suffix", FORMATS)
def test_attention_and_conditions_are_exported_for_one_shape(conditional, tmp_path, suffix):
    needs(suffix)
    shape = (3, 32, 24)
    path = export_one_step(conditional, tmp_path / f"model{suffix}", shape=shape)
    found = []
    for part in ("CHEST", "ABDOMEN", None):
        conditions = ScanConditions(body_part=part, slice_thickness_mm=2.0)
        low = CTVolume.from_array(scan(shape).hu, (2.0, 0.8, 0.8), conditions)
        found.append(restored(path, conditional, low))
        np.testing.assert_allclose(found[-1], expected(conditional, low), atol=0.01)
    assert np.abs(found[0] - found[1]).max() > 0.1 and np.abs(found[0] - found[2]).max() > 0.1


def test_what_cannot_be_exported_is_refused(plain, conditional, tmp_path):
    with pytest.raises(ValueError, match=r"must end in one of \.onnx, \.pt2"):
        export_one_step(plain, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"multiples of \(1, 4, 4\)"):
        export_one_step(plain, tmp_path / "model.pt2", shape=(3, 30, 26))
    with pytest.raises(ValueError, match="attention is exported for one `shape`"):
        export_one_step(conditional, tmp_path / "model.pt2")
    with pytest.raises(ValueError, match=r"float32 \(`pipe"):
        export_one_step(pipeline(tiny_unet().to(torch.bfloat16)), tmp_path / "model.pt2")
    adaptive = pipeline(tiny_unet(), CTAdaptiveDDIMScheduler)
    with pytest.raises(ValueError, match=r"pipe\.scheduler = DDIMScheduler"):
        export_one_step(adaptive, tmp_path / "model.pt2")
    images = CTDiffusionPipeline(tiny_unet(in_channels=8), plain.scheduler, image_conditions="pet")
    with pytest.raises(ValueError, match="takes the images pet is not exported"):
        export_one_step(images, tmp_path / "model.pt2")
    synthesis = CTDiffusionPipeline(tiny_unet(in_channels=1, pooled_dim=0), plain.scheduler, target="image")
    with pytest.raises(ValueError, match="only one-step restoration"):
        export_one_step(synthesis, tmp_path / "model.pt2")
    quiet = CTVolume.from_array(scan().hu / 50.0, (2.0, 0.8, 0.8))
    with pytest.raises(ContractError, match="noise_level_hu"):
        one_step_inputs(plain, quiet)
