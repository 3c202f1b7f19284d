"""The column `prepare` of `inspect` says what `prepare` does: both are run on the same folders."""

import json
import shutil

import pydicom
import pytest
from typer.testing import CliRunner

from diffusers_ct.cli import build_app
from diffusers_ct.data.scans import find_scans
from tests.io.synthetic import hu_of, write_multiframe, write_series


def inspected(folder, *options):
    result = CliRunner().invoke(build_app(), ["inspect", str(folder), "--json", *options])
    found = json.loads(result.output)
    return [
        (entry["usable"], entry["prepare"], entry["prepare_reason"]) for entry in found["stacks"] + found["volumes"]
    ]


def prepared(folder):
    """Depths of the scans that `prepare --normal-dose` reads."""
    try:
        scans, _ = find_scans(folder, "(.*)")
    except ValueError:
        return []
    depths = []
    for scan in scans:
        try:
            depths.append(scan.read().shape[0])
        except ValueError:
            continue
    return sorted(depths)


def z(*places):
    return [(0, 0, place) for place in places]


CASES = {  # positions, tags -> usable, prepare, depths
    "even": (z(0, 2, 4, 6), {}, "yes", "yes", [4]),
    "a slice is missing": (z(0, 2, 4, 8, 10), {}, "no", "parts", [2, 3]),
    "uneven": (z(0, 2, 4, 7, 10, 13), {}, "resample", "parts", None),
    "far apart": (z(0, 10, 20, 30), {}, "yes", "parts", [1, 1, 1, 1]),
    "tilted": ([(0, k * 1.0, k * 2.0) for k in range(4)], {}, "resample", "no", []),
    "no thickness": (z(0, 2, 4, 6), {"SliceThickness": None}, "yes", "no", []),
    "two thicknesses": (z(0, 2, 4, 6), {"SliceThickness": ["3", "3", "2", "2"]}, "yes", "parts", [2, 2]),
    "another modality": (z(0, 2, 4, 6), {"Modality": "MR"}, "no", "no", []),
    "a map": (z(0, 2, 4, 6), {"ImageType": ["DERIVED", "SECONDARY", "PERFUSION"]}, "no", "no", []),
}


@pytest.mark.parametrize("case", CASES)
def test_the_column_agrees_with_the_command(tmp_path, case):
    positions, tags, usable, prepare, depths = CASES[case]
    write_series(tmp_path / "scan", hu_of((len(positions), 32, 24)), positions=positions, **tags)
    ((said, preview, reason),) = inspected(tmp_path)
    made = prepared(tmp_path)
    assert (said, preview) == (usable, prepare), reason
    assert (reason == "") == (prepare == "yes")
    if depths is not None:
        assert made == depths
    assert {"yes": len(made) == 1, "parts": len(made) > 1 or sum(made) < len(positions), "no": made == []}[preview]
    if preview == "parts" and len(made) > 1:
        assert f"{len(made)} scans of" in reason


def test_copies_and_multiframe_objects(tmp_path):
    paths = write_series(tmp_path / "a", hu_of())
    shutil.copy(paths[0], tmp_path / "a" / "copy.dcm")
    ((usable, preview, _),) = inspected(tmp_path / "a")
    assert usable == "yes" and preview == ("yes" if prepared(tmp_path / "a") == [4] else "no")
    write_multiframe(tmp_path / "b" / "e.dcm", {"A": hu_of((4, 16, 16))})
    ((usable, preview, reason),) = inspected(tmp_path / "b")
    assert (usable, preview) == ("yes", "no") and "multi-frame" in reason and prepared(tmp_path / "b") == []


def test_damage_within_a_slice_shows_with_pixels_alone(tmp_path):
    paths = write_series(tmp_path, hu_of((5, 32, 24)), positions=z(0, 2, 4, 8, 10), shuffle=False)
    header = pydicom.dcmread(paths[4])
    header.PixelData = header.PixelData[:-40]
    header.save_as(paths[4])
    ((_, preview, reason),) = inspected(tmp_path, "--pixels")
    assert preview == "parts" and reason.startswith("3 of 5 slices") and prepared(tmp_path) == [3]


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["series", "singles", "volumes"])
def test_real_folders(real_data, name):
    result = CliRunner().invoke(build_app(), ["inspect", str(real_data / name), "--json", "--pixels"])
    found = json.loads(result.output)
    usable = [entry for entry in found["stacks"] + found["volumes"] if entry["prepare"] == "yes"]
    depths = sorted(entry["slices"] if "slices" in entry else entry["shape"][0] for entry in usable)
    assert depths == prepared(real_data / name)
