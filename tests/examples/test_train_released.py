"""The released model's training in small: what it leaves is in half precision and promises what it was trained on."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffusers_ct import CTDiffusionPipeline, load_paired_ct

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_released.py"
SMALL = [
    "--phantoms",
    "1",
    "--judged_phantoms",
    "12",
    "--shape",
    "2",
    "192",
    "192",
    "--block_out_channels",
    "8",
    "8",
    "8",
]


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    spec = importlib.util.spec_from_file_location("train_released", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train_released", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SPACINGS_MM", ((2.0, 2.0, 2.0), (4.0, 2.5, 2.5)))
    monkeypatch.setattr(module, "JUDGED_SPACING_MM", (2.0, 2.0, 2.0))
    monkeypatch.setattr(module, "KERNELS", ("soft",))
    return module


def test_it_leaves_a_pipeline_in_half_precision_with_its_promises(example, tmp_path):
    steps = ["--max_train_steps", "2", "--lr_warmup_steps", "1", "--train_batch_size", "1"]
    run = ["--output_dir", str(tmp_path), *SMALL, "--patch", "32", *steps]
    example.main(run)
    stored = load_file(tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16}
    pipe = CTDiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    assert pipe.unet.dtype == torch.float32  # half precision is how it is stored, not how it computes
    contract = pipe.contract
    assert contract.kernels == () and contract.training_data_licence == "Apache-2.0"
    assert contract.pixel_spacing_mm == pytest.approx((2.0 * 0.9, 2.5 * 1.1))
    assert contract.dose_fraction == pytest.approx((0.05 * 0.9, 0.25 * 1.1))

    parts = [set(load_paired_ct(tmp_path / "train" / f"{z}mm-soft", split="train")["patient_key"]) for z in (2, 4)]
    judged = load_paired_ct(tmp_path / "judged")
    test, tuning = set(judged["test"]["patient_key"]), set(judged["train"]["patient_key"])
    assert test and tuning and not test & tuning
    assert not parts[0] & parts[1] and not (parts[0] | parts[1]) & (test | tuning)
    assert set(np.round(judged["test"]["dose_fraction"], 3)) == {0.1, 0.25}

    before = {name: tensor.clone() for name, tensor in stored.items()}
    example.main(run)  # goes on where nothing is left to do
    again = load_file(tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(before[name], again[name]) for name in before)


def test_it_pushes_nothing_unjudged(example, tmp_path, capsys):
    with pytest.raises(SystemExit):
        example.main(["--output_dir", str(tmp_path / "new"), "--push_to_hub", "--hub_model_id", "a/b"])
    assert "judge the model first" in capsys.readouterr().err and not (tmp_path / "new").exists()
