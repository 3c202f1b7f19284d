"""`diffusers-ct synthesize` as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from diffusers import DDIMScheduler

from diffusers_ct import CheckpointContract, ConditionEncoder, CTDiffusionPipeline, UNet3DCTModel, read_volume
from diffusers_ct.image_conditions import image_channels
from diffusers_ct.schedulers import make_noise_scheduler

SHAPE, SPACING = (4, 16, 24), (6.0, 3.0, 3.0)


def network(in_channels: int, pooled_dim: int) -> UNet3DCTModel:
    torch.manual_seed(0)
    unet = UNet3DCTModel(
        in_channels=in_channels, block_out_channels=(8, 16), layers_per_block=1, downsample_strides=(1, 2, 2),
        refine_channels=4, conv_mode="2.5d", norm_num_groups=4, pooled_dim=pooled_dim,
    )  # fmt: skip
    torch.nn.init.normal_(unet.refine_out.weight, std=0.2)
    return unet


def save(folder: Path, **changes) -> Path:
    contract = CheckpointContract.from_scans(
        [SPACING], [], [], [], training_data="tests", training_data_licence="Apache-2.0", package_version="0",
        target="image", volume_shape=SHAPE,
    )  # fmt: skip
    encoder = ConditionEncoder(
        ("body_part", "contrast_phase", "findings", "manufacturer"), body_parts=("ABDOMEN", "THORAX"),
        contrast_phases=("none", "portal"), findings=("cyst", "solid_nodule"), manufacturers=("A" * 400,),
        token_dim=8, pooled_dim=8,
    )  # fmt: skip
    contract = {**contract.to_dict(), **changes}
    CTDiffusionPipeline(
        network(1 + image_channels(("context",)), 8), DDIMScheduler.from_config(make_noise_scheduler().config), contract,
        condition_encoder=encoder, target="image", image_conditions="context",
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("synthesis") / "made_of_phantoms")


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "from diffusers_ct.cli import main; main()", "synthesize", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


def call(*arguments: object) -> None:
    """The same in this process; errors come out as they are."""
    from typer.testing import CliRunner

    from diffusers_ct.cli import build_app

    result = CliRunner().invoke(build_app(), ["synthesize", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def facts_of(path: Path) -> dict:
    return json.loads(nib.load(path).header.extensions[0].get_content())


def test_a_dicom_series_is_marked_and_can_be_made_again(tmp_path, model):
    asked = (
        "--model",
        model,
        "--body-part",
        "thorax",
        "--finding",
        "solid_nodule",
        "--no-finding",
        "cyst",
        "--steps",
        2,
    )
    done = run(tmp_path / "new" / "made", *asked, "--seed", 5, "--guidance", 3)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"synthetic: {tmp_path / 'new' / 'made'}"
    made = read_volume(tmp_path / "new" / "made")
    assert made.shape == SHAPE and made.spacing_mm == pytest.approx(SPACING)
    header = pydicom.dcmread(next((tmp_path / "new" / "made").iterdir()))
    assert header.SyntheticData == "YES" and header.PatientID == "SYNTHETIC-5"
    text = header.DerivationDescription
    start = text.index("conditions=") + len("conditions=")
    assert json.JSONDecoder().raw_decode(text[start:])[0] == {
        "body_part": "THORAX", "findings": ["solid_nodule"], "findings_absent": ["cyst"],
    }  # fmt: skip
    for part in ("model_id=made_of_phantoms;", "model_revision=sha256:", '"guidance_scale": 3.0', "seed=5;"):
        assert part in text
    assert str(tmp_path) not in text
    # seed and conditions out of the file make the same volume in another format
    call(tmp_path / "again.mha", *asked, "--seed", 5, "--guidance", 3)
    again = read_volume(tmp_path / "again.mha")
    np.testing.assert_allclose(again.hu, made.hu, atol=0.51)
    image = sitk.ReadImage(str(tmp_path / "again.mha"))
    assert image.GetMetaData("DiffusersCT_synthetic") == "True" and image.GetMetaData("DiffusersCT_seed") == "5"
    assert json.loads(image.GetMetaData("DiffusersCT_guidance")) == {"classifier_scale": 0.0, "guidance_scale": 3.0}


def test_several_volumes_longer_than_the_slab_each_with_a_seed_of_its_own(tmp_path, model):
    asked = ["--model", model, "--body-part", "ABDOMEN", "--finding", "cyst", "--slices", 7, "--steps", 2]
    asked += ["--spacing", 6, 3, 3, "--guide", "findings=2", "--guide", "body_part=1.5"]
    call(tmp_path / "a.b.nii.gz", *asked, "--count", 2, "--seed", 8)
    paths = [tmp_path / "a.b-000.nii.gz", tmp_path / "a.b-001.nii.gz"]
    assert sorted(tmp_path.iterdir()) == paths
    first, second = (read_volume(path, assume_hu=True) for path in paths)
    assert first.shape == second.shape == (7, *SHAPE[1:]) and first.spacing_mm == pytest.approx(SPACING)
    assert np.abs(first.hu - second.hu).mean() > 1.0
    facts = facts_of(paths[1])
    assert facts["seed"] == 9 and facts["synthetic"] is True and facts["num_inference_steps"] == 2
    assert json.loads(facts["guidance"])["guidance_scale"] == {"findings": 2.0, "body_part": 1.5}
    # the second of two is the only one of its seed
    call(tmp_path / "c.nii.gz", *asked, "--seed", 9)
    np.testing.assert_allclose(read_volume(tmp_path / "c.nii.gz", assume_hu=True).hu, second.hu, atol=1e-2)


def test_conditions_and_guidance_change_the_volume(tmp_path, model):
    def made(name, *arguments):
        call(tmp_path / name, "--model", model, "--steps", 2, *arguments)
        return read_volume(tmp_path / name, assume_hu=True).hu

    thorax = made("a.nii", "--body-part", "THORAX", "--guidance", 1)
    assert np.abs(made("b.nii", "--body-part", "ABDOMEN", "--guidance", 1) - thorax).max() > 0.1
    plain = made("e.nii")  # nothing asked for, and so nothing to guide by
    assert json.loads(facts_of(tmp_path / "e.nii")["guidance"])["guidance_scale"] == 1.0
    assert np.abs(plain - thorax).max() > 0.1
    assert np.abs(made("c.nii", "--body-part", "THORAX", "--guidance", 4) - thorax).max() > 0.1
    assert np.abs(made("d.nii", "--body-part", "THORAX", "--guidance", 1, "--seed", 1) - thorax).mean() > 1.0


def test_a_mistake_ends_in_one_line_and_status_2(tmp_path, model):
    done = run(tmp_path / "out", "--model", model, "--finding", "solid_nodul")
    assert done.returncode == 2 and done.stdout == "" and not list(tmp_path.iterdir())
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert lines[0].index("'solid_nodule'") < lines[0].index("'cyst'")  # nearest first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--contrast-phase", "arterial"], "'arterial' is not known"),
        (["--age", "50"], "not trained with `age_years`"),
        (["--text", "a nodule"], "not trained with `text`"),
        (["--finding", "cyst", "--no-finding", "cyst"], "stands in both"),
        (["--guide", "findings"], "takes NAME=SCALE"),
        (["--guide", "finding=2", "--finding", "cyst"], "findings"),
        (["--spacing", "1", "1", "1"], "lies outside what the checkpoint was trained on"),
        (["--classifier-guidance", "1"], "classifier"),
        (["--manufacturer", "A" * 400, "--finding", "x" * 20], "is not known"),
    ],
)
def test_what_cannot_be_made_is_refused_before_sampling(tmp_path, model, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        call(tmp_path / "out", "--model", model, "--steps", 100000, *arguments)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_existing_output_other_checkpoints_and_bare_ones_are_refused(tmp_path, model):
    (tmp_path / "made-001").mkdir()
    with pytest.raises(FileExistsError, match="not overwritten"):
        call(tmp_path / "made", "--model", tmp_path / "no_model", "--count", 2)  # before the model is looked for
    with pytest.raises(ValueError, match="No pipeline could be loaded"):
        call(tmp_path / "out", "--model", tmp_path / "no_model")
    restoration = tmp_path / "restoration"
    scheduler = DDIMScheduler.from_config(make_noise_scheduler().config)
    CTDiffusionPipeline(network(6, 3), scheduler).save_pretrained(restoration)
    with pytest.raises(ValueError, match="not a synthesis checkpoint: use `diffusers-ct restore`"):
        call(tmp_path / "out", "--model", restoration)
    with pytest.raises(ValueError, match="no `volume_shape`"):
        call(tmp_path / "out", "--model", save(tmp_path / "shapeless", volume_shape=None))
    unspaced = save(tmp_path / "unspaced", slice_spacing_mm=None)
    with pytest.raises(ValueError, match="--spacing Z Y X"):
        call(tmp_path / "out", "--model", unspaced)
    long = ("--manufacturer", "A" * 400, "--body-part", "THORAX")
    call(tmp_path / "fits.nii", "--model", unspaced, "--spacing", 6, 3, 3, "--steps", 2, *long)
    assert facts_of(tmp_path / "fits.nii")["model_id"] == "unspaced"
    assert not (tmp_path / "out").exists()


def test_a_derivation_that_does_not_fit_is_refused_before_sampling(tmp_path, model):
    folder = save(tmp_path / ("m" * 200))
    longer = tmp_path / ("n" * 250)
    folder.rename(longer)
    guides = [part for name in ("body_part", "manufacturer") for part in ("--guide", f"{name}=2.{'1' * 15}")]
    asked = ("--manufacturer", "A" * 400, "--body-part", "THORAX", *["--finding", "cyst", "--finding", "solid_nodule"])
    with pytest.raises(ValueError, match="shorten"):
        call(tmp_path / "out", "--model", longer, "--steps", 100000, *asked, *guides)
    assert not (tmp_path / "out").exists()


def test_help_needs_no_torch():
    script = (
        "import sys, time; start = time.perf_counter()\n"
        "from diffusers_ct.cli import build_app\n"
        "try: build_app()(['synthesize', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules, 'a heavy import'\n"
        "print(f'CPU {time.process_time():.3f}')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for flag in ("--finding", "--guide", "--slices", "--classifier-guid"):
        assert flag in done.stdout
    assert float(done.stdout.rsplit("CPU ", 1)[1]) < 1.0
