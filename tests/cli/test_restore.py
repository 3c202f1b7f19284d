"""`diffusers-ct restore` as a user runs it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from diffusers import DDIMScheduler

from diffusers_ct import CheckpointContract, CTDiffusionPipeline, UNet3DCTModel, read_volume
from diffusers_ct.schedulers import make_noise_scheduler
from tests.io.synthetic import hu_of, write_series


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    unet = UNet3DCTModel(
        block_out_channels=(8, 16), layers_per_block=1, downsample_strides=(1, 2, 2), refine_channels=4,
        conv_mode="2.5d", norm_num_groups=4,
    )  # fmt: skip
    torch.nn.init.normal_(unet.refine_out.weight, std=0.2)
    contract = CheckpointContract("tests", "Apache-2.0", slice_spacing_mm=(0.5, 5.5), kernels=("B30f", "D", "Br38f\\3"))
    folder = tmp_path_factory.mktemp("model")
    scheduler = DDIMScheduler.from_config(make_noise_scheduler().config)
    CTDiffusionPipeline(unet, scheduler, contract.to_dict()).save_pretrained(folder)
    return folder


def restore(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from diffusers_ct.cli import main; main()", "restore", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250)


def test_a_series_comes_back_as_a_derived_series_with_its_uncertainty(tmp_path, model):
    write_series(tmp_path / "in", hu_of())
    done = restore(
        tmp_path / "in", tmp_path / "out", "--model", model, "--steps", 2, "--samples", 2, "--seed", 3,
        "--uncertainty", tmp_path / "sd",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    low, restored, spread = (read_volume(tmp_path / name) for name in ("in", "out", "sd"))
    np.testing.assert_allclose(restored.affine_lps, low.affine_lps, atol=1e-6)
    assert 0.5 < np.abs(restored.hu - low.hu).mean() < 500 and spread.hu.min() >= 0 and spread.hu.max() > 1
    header = pydicom.dcmread(next((tmp_path / "out").iterdir()))
    for part in ("num_inference_steps=2", "num_samples=2", "seed=3", "sha256:"):
        assert part in header.DerivationDescription
    again = restore(tmp_path / "in", tmp_path / "out", "--model", model)
    assert again.returncode == 2 and "not overwritten" in again.stderr and "Traceback" not in again.stderr


def test_fast_says_what_it_set_and_stays_near(tmp_path, model):
    write_series(tmp_path / "in", hu_of())
    plain = restore(tmp_path / "in", tmp_path / "plain.nii.gz", "--model", model)
    fast = restore(tmp_path / "in", tmp_path / "fast.nii.gz", "--model", model, "--fast")
    assert plain.returncode == fast.returncode == 0, fast.stderr
    assert "fast: network on" in fast.stderr and "fast:" not in plain.stderr
    low, a, b = (read_volume(tmp_path / name).hu for name in ("in", "plain.nii.gz", "fast.nii.gz"))
    assert np.sqrt(np.mean((a - b) ** 2)) < 0.1 * np.sqrt(np.mean((a - low) ** 2))


def test_mistakes_end_in_one_sentence(tmp_path, model):
    write_series(tmp_path / "in", hu_of(), ConvolutionKernel="BONE")
    refused = restore(tmp_path / "in", tmp_path / "out", "--model", model)
    assert refused.returncode == 2 and "kernels is 'BONE'" in refused.stderr and "--ignore-contract" in refused.stderr
    assert not (tmp_path / "out").exists() and "Traceback" not in refused.stderr
    forced = restore(tmp_path / "in", tmp_path / "out.nii.gz", "--model", model, "--ignore-contract", "kernels")
    assert forced.returncode == 0 and (tmp_path / "out.nii.gz").is_file()
    single = restore(tmp_path / "in", tmp_path / "out.dcm", "--model", tmp_path / "no_model")
    assert single.returncode == 2 and "name a folder" in single.stderr  # before anything else is looked at
    missing = restore(tmp_path / "nowhere", tmp_path / "o", "--model", model)
    assert missing.returncode == 2 and "nowhere" in missing.stderr and "Traceback" not in missing.stderr


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "slices"), [("chest_lidc0314_philips", 16), ("abdomen_siemens_jpeg2000", 20)])
def test_real_series_open_in_simpleitk_with_identical_geometry(real_data, tmp_path, model, name, slices):
    source = real_data / "series" / name
    done = restore(source, tmp_path / "out", "--model", model)
    assert done.returncode == 0, done.stderr

    def series(folder) -> sitk.Image:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        return reader.Execute()

    before, after = series(source), series(tmp_path / "out")
    assert after.GetSize() == before.GetSize() == (512, 512, slices)
    for method in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(after, method)(), getattr(before, method)(), atol=1e-4)
    low, restored = (sitk.GetArrayFromImage(image).astype(float) for image in (before, after))
    assert 0.1 < np.abs(restored - low).mean() < 300
