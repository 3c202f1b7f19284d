"""`diffusers-ct inspect` of NIfTI and MetaImage files, alone, in folders and beside DICOM."""

import json

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from diffusers_ct import CTVolume, read_volume, write_volume
from diffusers_ct.cli import build_app
from diffusers_ct.io import CTReadError
from tests.io.synthetic import hu_of, write_series


def run(*arguments):
    return CliRunner().invoke(build_app(), ["inspect", *map(str, arguments)], env={"COLUMNS": "200", "TERM": "dumb"})


def write(path, hu=None):
    return write_volume(CTVolume.from_array(hu_of((5, 32, 24)) if hu is None else hu, (2.5, 0.7, 0.7)), path)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.mha", "A.NII.GZ"])
def test_a_file_is_described(tmp_path, name):
    path = write(tmp_path / name)
    result = run(path)
    assert result.exit_code == 0, result.output
    for text in ("MetaImage" if name.endswith("mha") else "NIfTI", "32x24", "2.5 0.7 0.7", "axial", "float32", "yes",
                 "-1000 to 299 HU", str(path)):  # fmt: skip
        assert text in result.output, text
    found = json.loads(run(path, "--json").output)
    (volume,) = found["volumes"]
    assert found["stacks"] == [] and found["pixels_checked"]
    assert (volume["shape"], volume["spacing_mm"], volume["hu_range"]) == ([5, 32, 24], [2.5, 0.7, 0.7], [-1000, 299])
    assert (volume["usable"], volume["reason"]) == ("yes", "")


def test_a_header_beside_its_voxels_is_described(tmp_path):
    hu_of((5, 32, 24)).astype("<i2").tofile(tmp_path / "v.raw")
    (tmp_path / "v.mhd").write_text(
        "ObjectType = Image\nNDims = 3\nDimSize = 24 32 5\nElementSpacing = 0.7 0.8 2\nElementType = MET_SHORT\n"
        "TransformMatrix = 1 0 0 0 0 -1 0 1 0\nElementDataFile = v.raw\n"
    )
    (volume,) = json.loads(run(tmp_path / "v.mhd", "--json").output)["volumes"]
    assert (volume["shape"], volume["spacing_mm"]) == ([5, 32, 24], [2.0, 0.8, 0.7])
    assert (volume["data_type"], volume["orientation"]) == ("int16", "coronal")


def refused(folder):
    """Files that `read_volume` does not take."""
    nib.save(nib.Nifti1Image(np.arange(64, dtype=np.uint8).reshape(4, 4, 4), np.eye(4)), folder / "labels.nii.gz")
    whole = write(folder / "whole.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "whole.nii.gz").unlink()
    (folder / "junk.mha").write_bytes(b"junk")
    (folder / "empty.nii").write_bytes(b"")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.eye(4)), folder / "film.nii")
    return ["labels.nii.gz", "cut.nii.gz", "junk.mha", "empty.nii", "film.nii"]


def test_what_is_refused_is_what_read_volume_refuses(tmp_path):
    for name in refused(tmp_path):
        result = run(tmp_path / name)
        with pytest.raises(CTReadError) as error:
            read_volume(tmp_path / name)
        assert result.exit_code == 1 and "archive" not in result.output
        reason = str(error.value).removeprefix(f"{tmp_path / name}: ").partition("If they are")[0]
        assert reason in result.output
    assert "pass --assume-hu" in run(tmp_path / "labels.nii.gz").output


def test_a_folder_lists_them_beside_the_series(tmp_path):
    write_series(tmp_path / "series", hu_of(), series_uid="1.2.3")
    write(tmp_path / "deep" / "a.nii.gz")
    write(tmp_path / "b.mha")
    result = run(tmp_path)
    assert result.exit_code == 0, result.output
    for text in ("--series-uid 1.2.3", "2: b.mha", "3: deep/a.nii.gz", "--pixels decodes", "--patient-from-name"):
        assert text in result.output, text
    assert "archive" not in result.output and "HU" not in result.output.partition("Headers only")[0]
    refused(tmp_path)
    for options in ((), ("--pixels",)):
        result = run(tmp_path, *options, "--json")
        assert result.exit_code == 1
        volumes = json.loads(result.output)["volumes"]
        # only voxels show where cut.nii.gz ends
        assert sum(v["usable"] == "yes" for v in volumes) == (2 if options else 3)
        assert "no" in {v["usable"] for v in volumes if v["path"].endswith("labels.nii.gz")}


def test_a_folder_of_files_alone_and_one_of_nothing(tmp_path):
    write(tmp_path / "a" / "a.nii.gz")
    (tmp_path / "b").mkdir()
    assert run(tmp_path / "a").exit_code == 0
    assert isinstance(run(tmp_path / "b").exception, CTReadError)


@pytest.mark.real_data
def test_real_files(real_data):
    result = run(real_data / "volumes", "--pixels", "--json")
    found = {v["path"].rsplit("/", 1)[1]: v for v in json.loads(result.output)["volumes"]}
    assert result.exit_code == 1
    assert {name: v["usable"] for name, v in found.items()} == {
        "3DCT_lung_baseline_small.mha": "yes", "CT_pitch.nii.gz": "no", "ts_example_ct.nii.gz": "yes",
        "ts_example_ct_sm.nii.gz": "yes",
    }  # fmt: skip
    assert found["ts_example_ct_sm.nii.gz"]["spacing_mm"] == [3.0, 3.0, 3.0]
