"""`diffusers-ct inspect`: what it shows, what it keeps to itself, and its status."""

import json

import pytest
from typer.testing import CliRunner

from diffusers_ct.cli import build_app
from diffusers_ct.io import read_volume
from tests.io.synthetic import SECRETS, hu_of, write_multiframe, write_series


def run(*arguments):
    return CliRunner().invoke(build_app(), ["inspect", *map(str, arguments)], env={"COLUMNS": "200", "TERM": "dumb"})


def test_table_json_and_status_0(tmp_path):
    write_series(tmp_path, hu_of(), series_uid="1.2.3", description=f"thin {SECRETS['PatientName']}")
    result = run(tmp_path)
    assert result.exit_code == 0, result.output
    for text in (
        "32x24",
        "2.5 0.7 0.6",
        "axial",
        "B30f",
        "120",
        "150",
        "Explicit LE",
        "--series-uid 1.2.3",
    ):
        assert text in result.output, text
    assert "slices overlap: SliceThickness (0018,0050) is 3 mm, the positions are 2.5 mm apart" in result.output
    found = json.loads(run(tmp_path, "--json", "--pixels").output)
    (stack,) = found["stacks"]
    assert (stack["slices"], stack["matrix"], stack["spacing_mm"], stack["usable"]) == (
        4,
        [32, 24],
        [2.5, 0.7, 0.6],
        "yes",
    )
    assert found["pixels_checked"] and found["problems"] == []


def test_what_is_refused_ends_in_status_1_with_the_reason(tmp_path):
    write_series(tmp_path / "good", hu_of(), series_uid="1.2.3")
    write_series(tmp_path / "missing", hu_of(), positions=[(0, 0, z) for z in (0, 2, 4, 8)])
    write_series(tmp_path / "uneven", hu_of(), positions=[(0, 0, z) for z in (0, 2, 5, 7)])
    write_series(tmp_path / "other", hu_of(), Modality="MR")
    write_multiframe(tmp_path / "multi" / "e.dcm", {"A": hu_of((4, 16, 16)), "B": hu_of((3, 16, 16))})
    result = run(tmp_path)
    assert result.exit_code == 1
    for text in ("1 of 5 slices missing", "resample: uneven slice spacing", "'MR', not CT", "StackID B", "--stack 2"):
        assert text in result.output, text
    stacks = json.loads(run(tmp_path, "--json").output)["stacks"]
    usable = sorted((s["slices"], s["usable"]) for s in stacks)
    assert usable == [(3, "yes"), (4, "no"), (4, "no"), (4, "resample"), (4, "yes"), (4, "yes")]
    assert read_volume(tmp_path, series_uid="1.2.3").shape == (4, 32, 24)


def test_damage_shows(tmp_path):
    paths = write_series(tmp_path, hu_of())
    paths[0].write_bytes(paths[0].read_bytes()[:300])
    result = run(tmp_path)
    assert (
        result.exit_code == 1
        and f"damaged: {paths[0].name}: the header of a CT image is cut off" in result.output
        and "not usable" in result.output
    )


def test_nothing_there_is_a_users_mistake(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    result = run(tmp_path)
    assert result.exit_code != 0 and "no DICOM image among 1 file." in str(result.exception)


@pytest.mark.parametrize("option", [(), ("--json",)])
def test_no_identity_comes_out(tmp_path, option):
    description = " ".join(SECRETS[name] for name in ("PatientName", "PatientID", "AccessionNumber", "StudyDate"))
    write_series(tmp_path / "a", hu_of(), description=description, ConvolutionKernel=SECRETS["PatientID"])
    write_series(tmp_path / "b", hu_of(), RescaleSlope=None)
    write_multiframe(tmp_path / "c" / "e.dcm", {"A": hu_of((4, 16, 16))})
    output = run(tmp_path, *option).output
    for secret in SECRETS.values():
        assert secret not in output
        assert all(len(word) < 4 or word not in output for word in secret.split("^"))


def test_paths_are_shown_and_the_help_says_so(tmp_path):
    (tmp_path / "Mueller").mkdir()
    paths = write_series(tmp_path / "Mueller", hu_of())
    paths[0].write_bytes(paths[0].read_bytes()[:300])
    for option in ((), ("--json",)):
        assert f"Mueller/{paths[0].name}" in run(tmp_path, *option).output
    told = " ".join(run("--help").output.split())
    assert "Paths are shown as they are, in --json too" in told and "named after a patient" in told


def test_what_lies_beside_the_series_is_told_once(tmp_path):
    for uid in ("1.2.3", "1.2.4", "1.2.5"):
        write_series(tmp_path / uid, hu_of(), series_uid=uid)
    (tmp_path / "a.zip").write_bytes(b"PK")
    result = run(tmp_path)
    assert result.output.count("1 archive beside the images left out") == 1
    found = json.loads(run(tmp_path, "--json").output)
    assert found["notes"] == ["1 archive beside the images left out"] and len(found["stacks"]) == 3
    assert not [note for stack in found["stacks"] for note in stack["notes"] if "archive" in note]


def test_a_series_without_a_uid_is_named_so_and_can_be_chosen(tmp_path):
    write_series(tmp_path / "a", hu_of(), series_uid="1.2.3")
    write_series(tmp_path / "b", hu_of((3, 32, 24)), SeriesInstanceUID="")
    assert ": a series without a SeriesInstanceUID; --series-uid '' chooses it\n" in run(tmp_path).output
    assert read_volume(tmp_path, series_uid="").shape == (3, 32, 24)


def test_dose_tags_that_cannot_be_right_are_noted(tmp_path):
    shared = {"StudyInstanceUID": "1.2", "FrameOfReferenceUID": "1.9"}
    write_series(tmp_path / "full", hu_of(), KVP=None, **shared)
    write_series(tmp_path / "quarter", hu_of(seed=1), SpacingBetweenSlices="5", ExposureInuAs="9000", **shared)
    output = run(tmp_path).output
    for text in ("KVP (0018,0060) is empty", "has the same 150 mAs", "SpacingBetweenSlices (0018,0088) is 5 mm",
                 "ExposureInuAs (0018,1153) 9 mAs"):  # fmt: skip
        assert text in output, text
