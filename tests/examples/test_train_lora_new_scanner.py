"""LoRA for a new scanner: nothing changes at first, the base never, a fresh process loads it, and it gains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from diffusers_ct import CTDiffusionPipeline, CTVolume, UNet3DCTModel
from diffusers_ct.data import PatchDataset, load_paired_ct, prepare_paired_ct
from diffusers_ct.models import lora_targets
from diffusers_ct.schedulers import make_noise_scheduler
from diffusers_ct.training import ResidualDiffusionObjective, TrainingConfig, train

pytest.importorskip("peft")
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
WEIGHTS = "pytorch_lora_weights.safetensors"
PATCH = (2, 32, 32)


def prepare(folder: Path, **change) -> Path:
    settings = {"phantoms": 8, "dose_fractions": (0.25,), "shape": (3, 48, 48), "spacing_mm": (4.0, 8.0, 8.0),
                "validation_fraction": 0.2, "test_fraction": 0.3}  # fmt: skip
    prepare_paired_ct(folder, **{**settings, **change})
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A small model of one scanner."""
    folder = tmp_path_factory.mktemp("base")
    rows = load_paired_ct(prepare(folder / "data"), "train")
    torch.manual_seed(0)
    unet = UNet3DCTModel(
        block_out_channels=(16, 16), layers_per_block=1, downsample_strides=(1, 2, 2), conv_mode="2.5d"
    )
    scheduler = make_noise_scheduler()
    config = TrainingConfig(str(folder / "run"), max_train_steps=150, train_batch_size=4, lr_warmup_steps=5, ema_decay=0.9,
                            learning_rate=3e-3)  # fmt: skip
    train(
        config,
        model=unet,
        make_objective=lambda prepared: ResidualDiffusionObjective(prepared, scheduler, terminal_fraction=0.7),
        dataset=PatchDataset(rows, PATCH, 256, seed=0),
        save_pretrained=lambda averaged: CTDiffusionPipeline(
            averaged, DDIMScheduler.from_config(scheduler.config)
        ).save_pretrained(folder / "pipeline"),
    )
    return folder / "pipeline"


@pytest.fixture(scope="module")
def new_scanner(tmp_path_factory) -> Path:
    """Other voxels, an eighth of the dose: more noise, of another texture."""
    return prepare(
        tmp_path_factory.mktemp("new") / "data", dose_fractions=(0.03,), spacing_mm=(2.0, 5.0, 5.0), shape=(3, 64, 64)
    )


@pytest.fixture(scope="module")
def adapted(base, new_scanner, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("adapted")
    command = [
        sys.executable, "examples/train_lora_new_scanner.py", "--model", base, "--dataset", new_scanner, "--output_dir", out,
        "--training_data", "new phantoms", "--training_data_licence", "Apache-2.0", "--rank", 4, "--max_train_steps", 100,
        "--train_batch_size", 4, "--lr_warmup_steps", 5, "--ema_decay", 0.9, "--learning_rate", 1e-2,
        "--terminal_fraction", 0.7, "--patch_size", *PATCH,
    ]  # fmt: skip
    result = subprocess.run([str(c) for c in command], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "base: rmse_body_hu" in result.stdout and "adapted: rmse_body_hu" in result.stdout
    return out


def scan() -> CTVolume:
    hu = np.random.default_rng(0).normal(40.0, 25.0, (3, 32, 32)).astype(np.float32)
    return CTVolume.from_array(hu, (2.0, 5.0, 5.0))


def restored(pipe: CTDiffusionPipeline) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(scan(), generator=generator, output_type="np", ignore_contract=["noise_level_hu"]).volumes


def test_a_new_adapter_changes_nothing_and_is_small(base):
    from peft import LoraConfig

    pipe = CTDiffusionPipeline.from_pretrained(base)
    before, weights = restored(pipe), sum(p.numel() for p in pipe.unet.parameters())
    pipe.unet.requires_grad_(False)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=lora_targets(pipe.unet, 2)))
    assert np.array_equal(restored(pipe), before)
    trained = [name for name, p in pipe.unet.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert sum(p.numel() for p in pipe.unet.parameters() if p.requires_grad) < 0.35 * weights


def test_the_adapter_of_a_standard_model_has_some_hundred_kilobytes():
    from peft import LoraConfig

    unet = UNet3DCTModel(block_out_channels=(48, 96, 144), conv_mode="2.5d")
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=4, target_modules=lora_targets(unet, 4)))
    size = sum(4 * p.numel() for p in unet.parameters() if p.requires_grad)
    assert 100_000 < size < 900_000
    with pytest.raises(ValueError, match="`rank` must be positive"):
        lora_targets(UNet3DCTModel(block_out_channels=(8, 8), downsample_strides=(1, 2, 2)), 500)


def test_training_leaves_the_base_weights_untouched(base, adapted):
    checkpoint = next((adapted).glob("checkpoint-*/model.safetensors"))
    trained = load_file(checkpoint)
    weights = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    assert any("lora_B" in name and value.any() for name, value in trained.items())
    for name, value in weights.items():
        stem, kind = name.rsplit(".", 1)
        key = name if name in trained else f"{stem}.base_layer.{kind}"
        assert torch.equal(trained[key], value), name
    saved = load_file(adapted / "adapter" / WEIGHTS)
    assert saved and all("lora_" in name for name in saved)


def test_the_adapter_loads_and_merges_in_a_fresh_process(base, adapted, tmp_path):
    merged = restored(CTDiffusionPipeline.from_pretrained(adapted / "pipeline"))
    pipe = CTDiffusionPipeline.from_pretrained(base)
    plain = restored(pipe)
    code = f"""
import numpy as np, torch
from diffusers_ct import CTDiffusionPipeline
from tests.examples.test_train_lora_new_scanner import restored
pipe = CTDiffusionPipeline.from_pretrained({str(base)!r})
pipe.unet.load_lora_adapter({str(adapted / "adapter")!r}, prefix=None, weight_name={WEIGHTS!r})
loaded = restored(pipe)
pipe.unet.fuse_lora()
pipe.unet.unload_lora()
np.savez({str(tmp_path / "out.npz")!r}, loaded=loaded, merged=restored(pipe))
assert not any("lora" in name for name, _ in pipe.unet.named_parameters())
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    with np.load(tmp_path / "out.npz") as out:
        assert np.abs(out["loaded"] - plain).max() > 1.0
        np.testing.assert_allclose(out["loaded"], merged, atol=0.01)
        np.testing.assert_allclose(out["merged"], merged, atol=0.01)


def test_it_gains_on_held_out_patients_of_the_new_scanner(base, adapted):
    facts = json.loads((adapted / "gain.json").read_text())
    assert facts["test_scans"] >= 2 and facts["adapter_bytes"] < 100_000
    assert facts["adapted"]["gain_db"] > facts["base"]["gain_db"] + 1.0, facts
    contract = CTDiffusionPipeline.from_pretrained(adapted / "pipeline").contract
    assert contract.training_data == "new phantoms"
    assert contract.slice_spacing_mm == pytest.approx((1.8, 2.2))


def test_wrong_models_are_refused_in_one_line(base, new_scanner, tmp_path):
    command = [
        sys.executable, "examples/train_lora_new_scanner.py", "--model", base, "--dataset", new_scanner, "--output_dir",
        tmp_path, "--training_data", "x", "--training_data_licence", "y", "--rank", 99, "--patch_size", *PATCH,
    ]  # fmt: skip
    result = subprocess.run([str(c) for c in command], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 2 and "--rank must be positive" in result.stderr
    assert "Traceback" not in result.stderr
