"""Slices are matched by position, gaps are never bridged, and what does not fit is named with its reason."""

import shutil

import numpy as np
import pydicom
import pytest

from diffusers_ct.data.dicom_trees import read_headers
from diffusers_ct.data.slice_matching import find_pairs, find_runs, read_run

SHORT = range(0, 12, 2)  # positions in mm


def pairs_of(root):
    slices, problems = read_headers(root)
    pairs, unmatched = find_pairs(slices)
    return pairs, problems + unmatched


def test_gaps_cut_a_series_into_runs_and_lone_slices(tmp_path, write_series):
    places = [0, 2, 4, 10, 40, 90]
    for dose in ("full", "low"):
        write_series(tmp_path / dose, places)
    pairs, problems = pairs_of(tmp_path)
    assert not problems
    assert [[h.position_mm[2] for h in pair.full] for pair in pairs] == [[0, 2, 4], [10], [40], [90]]
    assert [pair.label.partition(" (")[2] for pair in pairs[:2]] == [
        "3 slices from 0000.IMA)",
        "1 slice from 0003.IMA)",
    ]


def test_slices_in_shuffled_files_are_ordered_by_position(tmp_path, write_series):
    write_series(tmp_path / "full", [6, 0, 4, 2])
    write_series(tmp_path / "low", [2, 6, 0, 4], seed=3)
    (pair,), _ = pairs_of(tmp_path)
    low = read_run(pair.low)
    assert [h.position_mm[2] for h in pair.low] == [0, 2, 4, 6]
    assert low.spacing_mm == (2.0, 0.8, 0.8)
    assert np.allclose(low.affine_lps @ [0, 0, 3, 1], [-12, -10, 6, 1])
    for image, header in zip(low.hu, pair.low):
        assert np.array_equal(image, pydicom.dcmread(header.path).pixel_array - 1024.0)


def test_missing_partner_is_reported_and_the_rest_is_kept(tmp_path, write_series):
    write_series(tmp_path / "full", SHORT)
    missing = write_series(tmp_path / "low", SHORT)[3]
    missing.unlink()
    pairs, (problem,) = pairs_of(tmp_path)
    assert sum(len(pair.full) for pair in pairs) == len(SHORT) - 1
    assert "1 full-dose slice has no partner" in str(problem) and "0003.IMA" in str(problem)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kernel": "D45f"}, "kernel (B30f against D45f)"),
        ({"matrix": (16, 16)}, "matrix"),
        ({"thickness_mm": 3.0}, "slice thickness"),
    ],
)
def test_differing_images_are_no_pair(tmp_path, write_series, change, words):
    write_series(tmp_path / "full", SHORT)
    write_series(tmp_path / "low", SHORT, **change)
    pairs, problems = pairs_of(tmp_path)
    assert not pairs and any(words in str(problem) for problem in problems)


def test_a_lone_dose_and_an_unnamed_dose_are_reported(tmp_path, write_series):
    write_series(tmp_path / "A" / "full", SHORT, patient="A")
    write_series(tmp_path / "B" / "series1", SHORT, patient="B")
    pairs, problems = pairs_of(tmp_path)
    assert not pairs
    assert any("no low-dose partner" in str(problem) for problem in problems)
    assert any("whose dose no name tells" in str(problem) for problem in problems)


def test_two_slices_at_one_place_and_tilt_are_refused(tmp_path, write_series):
    paths = write_series(tmp_path / "a" / "full", SHORT, patient="A")
    shutil.copy(paths[0], paths[0].with_name("copy.IMA"))
    write_series(tmp_path / "a" / "low", SHORT, patient="A")
    for dose in ("full", "low"):
        write_series(tmp_path / "b" / dose, SHORT, patient="B", tilt_mm=0.5)
    pairs, problems = pairs_of(tmp_path)
    assert not pairs
    assert any("two slices at one position" in str(problem) for problem in problems)
    assert any("gantry tilt of 14.0 degrees" in str(problem) for problem in problems)


def test_other_series_of_one_patient_stay_apart(tmp_path, write_series):
    write_series(tmp_path / "one", SHORT)
    write_series(tmp_path / "two", SHORT)
    slices, _ = read_headers(tmp_path)
    runs, problems = find_runs(slices)
    assert [len(run) for run in runs] == [6, 6] and not problems


@pytest.mark.real_data
def test_real_pairs_are_found_with_their_patients(real_data):
    pairs, problems = pairs_of(real_data / "pairs")
    assert not problems
    found = sorted((p.full[0].patient, p.full[0].kernel, len(p.full)) for p in pairs)
    assert found == [("L096", "D45f", 1)] * 6 + [("L143", "B30f", 1)] * 4 + [("L143", "D45f", 1)] * 4 + [
        ("L506", "B30f", 1)
    ]
