"""`diffusers-ct restore`: real series in, DERIVED series of the same geometry out; mistakes in one line."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler
from typer.testing import CliRunner

import diffusers_ct.cli as cli
from diffusers_ct import CheckpointContract, CTDiffusionPipeline, CTVolume, UNet3DCTModel, read_volume, write_volume
from diffusers_ct.pipelines import RestorationStream
from diffusers_ct.schedulers import make_noise_scheduler
from diffusers_ct.volume import ScanSlices


def save_checkpoint(folder: Path, *, head_std: float, contract: CheckpointContract | None = None) -> Path:
    torch.manual_seed(0)
    unet = UNet3DCTModel(
        block_out_channels=(8, 16), layers_per_block=1, conv_mode="2.5d", patch_size=(1, 4, 4), refine_channels=0,
        downsample_strides=(1, 2, 2), norm_num_groups=4,
    )  # fmt: skip
    torch.nn.init.normal_(unet.head.weight, std=head_std)
    scheduler = DDIMScheduler.from_config(make_noise_scheduler().config)
    CTDiffusionPipeline(unet, scheduler, contract and contract.to_dict()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"), head_std=0.1)


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    hu = np.random.default_rng(0).normal(40.0, 25.0, (3, 40, 36)).astype(np.float32)
    hu[:, :8] = -1000.0  # air, by which the reader knows Hounsfield units
    return Path(write_volume(CTVolume.from_array(hu, (2.0, 0.8, 0.8)), tmp_path_factory.mktemp("scan") / "low.mha"))


def restore(*arguments: object):
    return CliRunner().invoke(cli.build_app(), ["restore", *map(str, arguments)])


def sitk_series(folder: Path) -> sitk.Image:
    return sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["chest_lidc0314_philips", "abdomen_siemens_jpeg2000"])
def test_real_series_become_derived_series_of_the_same_geometry(real_data, checkpoint, tmp_path, name):
    source, out = real_data / "series" / name, tmp_path / "restored"
    result = restore(source, out, "--model", checkpoint)
    assert result.exit_code == 0, result.output
    before, after = sitk_series(source), sitk_series(out)
    assert before.GetSize() == after.GetSize()
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(after, get)(), getattr(before, get)(), atol=1e-4)
    files = sorted(out.glob("*.dcm"))
    assert len(files) == after.GetSize()[2]
    header = pydicom.dcmread(files[0], stop_before_pixels=True)
    assert header.ImageType[0] == "DERIVED" and "sha256:" in header.DerivationDescription
    assert header.SeriesInstanceUID not in {
        pydicom.dcmread(f, stop_before_pixels=True).SeriesInstanceUID for f in source.iterdir() if f.is_file()
    }
    change = read_volume(out).hu - read_volume(source).hu
    assert 0.1 < change.std() < 50.0


def test_the_seed_repeats_and_uncertainty_is_written(scan, checkpoint, tmp_path):
    flags = ["--model", checkpoint, "--steps", 2, "--samples", 2, "--seed", 3]
    one = restore(scan, tmp_path / "a.mha", *flags, "--uncertainty", tmp_path / "sd.mha")
    assert one.exit_code == 0, one.output
    restore(scan, tmp_path / "b.mha", *flags)
    a, b, sd = (sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"{n}.mha"))) for n in ("a", "b", "sd"))
    assert np.array_equal(a, b) and sd.min() >= 0 and sd.mean() > 1.0


def test_steps_beyond_one_are_those_of_unipc(scan, checkpoint, tmp_path):
    result = restore(scan, tmp_path / "a.mha", "--model", checkpoint, "--steps", 3, "--seed", 3)
    assert result.exit_code == 0, result.output
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.mha")))
    pipe = CTDiffusionPipeline.from_pretrained(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    found = {}
    for sampler in (DDIMScheduler, UniPCMultistepScheduler):
        pipe.scheduler = sampler.from_config(pipe.scheduler.config)
        stream = RestorationStream(pipe, ScanSlices.of(read_volume(scan)), num_inference_steps=3, seed=3)
        found[sampler] = np.concatenate([slab.hu for slab in stream])
    np.testing.assert_allclose(written, found[UniPCMultistepScheduler], atol=0.51)
    assert np.abs(written - found[DDIMScheduler]).max() > 2.0


def test_uncertainty_beyond_327_hu_still_fits_into_dicom(scan, tmp_path):
    wild = save_checkpoint(tmp_path / "wild", head_std=60.0)
    result = restore(
        scan, tmp_path / "out.mha", "--model", wild, "--steps", 4, "--samples", 2, "--uncertainty", tmp_path / "sd"
    )
    assert result.exit_code == 0, result.output
    slices = [pydicom.dcmread(f) for f in sorted((tmp_path / "sd").glob("*.dcm"))]
    assert max(float(d.RescaleSlope) * d.pixel_array.max() for d in slices) > 328.0


@pytest.mark.parametrize(
    ("model", "flags", "words"),
    [
        ("absent/model", [], "No pipeline could be loaded from absent/model"),
        ("a/b/c/d", [], "No pipeline could be loaded from a/b/c/d"),
        (None, ["--uncertainty", "sd.mha"], "--samples 2 or more"),
        (None, ["--steps", 4, "--samples", 2, "--uncertainty", "OUT"], "another path than OUT"),
        (None, ["--deidentify", "some"], "--deidentify must be one of"),
        (None, ["--ignore-contract", "spacing"], "it can name"),
    ],
)
def test_mistakes_are_one_message_and_leave_nothing(monkeypatch, capsys, scan, tmp_path, model, flags, words):
    promised = CheckpointContract("x", "y", pixel_spacing_mm=(0.5, 1.0))
    known = save_checkpoint(tmp_path / "model", head_std=0.1, contract=promised)
    out = tmp_path / "out.mha"
    flags = [str(out) if flag == "OUT" else str(flag) for flag in flags]
    arguments = ["diffusers-ct", "restore", str(scan), str(out), "--model", str(model or known), *flags]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and words in message and "Traceback" not in message
    assert not out.exists()


def test_a_scan_outside_the_contract_is_refused_until_named(monkeypatch, capsys, scan, tmp_path):
    narrow = CheckpointContract("x", "y", pixel_spacing_mm=(0.3, 0.5))
    model = save_checkpoint(tmp_path / "model", head_std=0.1, contract=narrow)
    arguments = ["diffusers-ct", "restore", str(scan), str(tmp_path / "out.mha"), "--model", str(model)]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit):
        cli.main()
    assert "pixel_spacing_mm is 0.8, accepted is 0.3 to 0.5" in capsys.readouterr().err
    assert restore(*arguments[2:], "--ignore-contract", "pixel_spacing_mm").exit_code == 0
