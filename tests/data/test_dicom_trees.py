"""Layouts are recognised; whose slices they are and at which dose is told by names and headers."""

import numpy as np
import pydicom
import pytest

from diffusers_ct.data.dicom_trees import read_headers
from diffusers_ct.data.slice_matching import find_pairs

SHORT = range(0, 12, 2)  # positions in mm


def pairs_of(root):
    slices, problems = read_headers(root)
    pairs, unmatched = find_pairs(slices)
    return pairs, problems + unmatched


def test_mayo_layout_pairs_each_kernel_and_thickness_by_itself(tmp_path, write_series):
    for case in ("L067", "L096"):
        for dose, seed in (("full", 1), ("quarter", 2)):
            common = {"patient": "Anonymous", "seed": seed, "name": f"{case}_{dose}"}
            write_series(tmp_path / case / f"{dose}_1mm", range(8), thickness_mm=1.0, **common)
            write_series(tmp_path / case / f"{dose}_3mm_sharp_sorted", SHORT, thickness_mm=3.0, kernel="D45f", **common)
    pairs, problems = pairs_of(tmp_path)
    assert not problems
    assert sorted((p.full[0].patient, p.full[0].kernel, len(p.full)) for p in pairs) == [
        ("L067", "B30f", 8), ("L067", "D45f", 6), ("L096", "B30f", 8), ("L096", "D45f", 6)]  # fmt: skip
    for pair in pairs:
        assert {h.dose for h in pair.full} == {"full"} and {h.dose for h in pair.low} == {"low"}
        assert [h.position_mm for h in pair.full] == [h.position_mm for h in pair.low]


def test_mayo_file_names_tell_the_dose_in_one_folder(tmp_path, write_series):
    write_series(tmp_path, SHORT, patient="", file_name="L506_FD_1_1.CT.0002.{:04d}.IMA")
    write_series(tmp_path, SHORT, patient="", file_name="L506_QD_1_1.CT.0004.{:04d}.IMA", seed=1)
    pairs, problems = pairs_of(tmp_path)
    assert not problems and len(pairs) == 1
    assert pairs[0].full[0].patient == "L506" and pairs[0].low[0].path.name.startswith("L506_QD")


def test_tcia_layout_leaves_projections_aside(tmp_path, write_series):
    study = tmp_path / "LDCT-and-Projection-data" / "C002" / "12-23-2021-NA-NA-62464"
    for series, seed in (("1.000000-Full Dose Images-71581", 1), ("1.000000-Low Dose Images-62182", 2)):
        write_series(study / series, SHORT, patient="C002", file_name="1-{:03d}.dcm", seed=seed)
    for series in ("1.000000-Full dose projections-24362", "1.000000-Low dose projections-39882"):
        write_series(study / series, SHORT, patient="C002", file_name="1-{:03d}.dcm")
    pairs, problems = pairs_of(tmp_path)
    assert not problems and len(pairs) == 1 and len(pairs[0].full) == len(SHORT)
    assert "Low Dose Images" in str(pairs[0].low[0].path)


@pytest.mark.parametrize("low", ["low", "quarter", "low_dose"])
def test_plain_pair_of_folders(tmp_path, write_series, low):
    write_series(tmp_path / "full", SHORT)
    write_series(tmp_path / low, SHORT)
    pairs, problems = pairs_of(tmp_path)
    assert not problems and [len(pair.full) for pair in pairs] == [len(SHORT)]


def test_no_slices_or_no_folder(tmp_path):
    with pytest.raises(ValueError, match="No CT slices"):
        read_headers(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        read_headers(tmp_path / "absent")
    (tmp_path / "bad.dcm").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"bad.dcm: is not a DICOM file"):
        read_headers(tmp_path)


def test_a_multi_frame_object_is_named_with_the_way_out(tmp_path, write_series):
    paths = write_series(tmp_path, SHORT)
    ds = pydicom.dcmread(paths[2])
    ds.NumberOfFrames = 2
    ds.save_as(paths[2])
    slices, (problem,) = read_headers(tmp_path)
    assert len(slices) == len(SHORT) - 1
    assert "0002.IMA" in str(problem) and "write it as NIfTI" in str(problem) and problem.kind == "unusable_header"


def test_headers_of_one_series_share_what_they_have_in_common(tmp_path, write_series):
    write_series(tmp_path / "a", SHORT)
    slices, _ = read_headers(tmp_path)
    for name in ("folder", "series", "orientation", "pixel_spacing_mm"):
        assert len({id(getattr(header, name)) for header in slices}) == 1
    assert slices[0].path == tmp_path / "a" / "0000.IMA"
    assert slices[3].along_normal_mm == pytest.approx(
        np.dot(slices[3].position_mm, np.cross(slices[3].orientation[:3], slices[3].orientation[3:]))
    )


def test_patients_without_identity_are_told_apart_by_their_outer_folder(tmp_path, write_series):
    for patient in ("first", "second"):
        for study in ("a", "b"):
            write_series(tmp_path / patient / study / "full", SHORT, patient="Anonymized", name="")
    write_series(tmp_path / "third" / "full", SHORT, patient="ANON123", name="")
    slices, _ = read_headers(tmp_path)
    assert {header.patient for header in slices} == {"folder first", "folder second", "ANON123"}


def test_links_are_followed_but_not_in_circles(tmp_path, write_series):
    write_series(tmp_path / "disk" / "full", SHORT)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "A").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "again").symlink_to(tmp_path / "disk")
    slices, _ = read_headers(tmp_path / "in")
    assert len(slices) == len(SHORT)
