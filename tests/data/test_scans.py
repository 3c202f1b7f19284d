"""NIfTI and MetaImage trees: whose a file is says the user's rule, and values that are no HU are refused."""

import json

import nibabel as nib
import numpy as np
import pytest

from diffusers_ct.data import load_paired_ct, prepare_paired_ct, volume_view
from diffusers_ct.data.manifest import read_manifest
from diffusers_ct.data.scans import FileScan, find_scans
from diffusers_ct.io import GeometryError, NotCTError, read_volume, write_volume
from diffusers_ct.volume import CTVolume

RULE = r"(valid_\d+)_"
SOURCE = {
    "dose_fractions": (0.25,),
    "salt": "s",
    "validation_fraction": 0.2,
    "test_fraction": 0.2,
    "i0": 5e5,
    "kernel": "soft",
}


def scan_hu(seed, depth=3):
    rng = np.random.default_rng(seed)
    hu = rng.normal(-995.0, 8.0, (depth, 24, 24))
    hu[:, 4:20, 4:20] = 40.0 + seed + rng.normal(0, 10, (depth, 16, 16))
    return np.rint(hu).astype(np.float32)


def write(path, seed, hu=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = CTVolume.from_array(scan_hu(seed) if hu is None else hu, (3.0, 0.8, 0.8))
    return write_volume(volume, path)


@pytest.fixture
def tree(tmp_path):
    """The layout of CT-RATE: two scans of one patient, each in two reconstructions; and one patient as .mha."""
    root = tmp_path / "in"
    for patient in (1, 2, 3):
        for study in "ab":
            for number in (1, 2):
                name = f"valid_{patient}_{study}_{number}.nii.gz"
                write(root / f"valid_{patient}" / f"valid_{patient}_{study}" / name, 10 * patient + number)
    write(root / "valid_4" / "valid_4_a_1.mha", 40)
    return root


def test_files_become_rows_with_their_values_and_patients_stay_together(tree, tmp_path):
    report = prepare_paired_ct(tmp_path / "out", normal_dose=str(tree), patient_from_name=RULE, **SOURCE)
    assert report.written == 13 and not report.problems
    entries = read_manifest(tmp_path / "out")
    assert len({entry.patient_key for entry in entries}) == 4  # and `read_manifest` refuses one in two splits
    fulls = set()
    for rows in load_paired_ct(tmp_path / "out").values():
        fulls |= {volume_view(rows, index, "full").tobytes() for index in range(len(rows))}
        assert set(rows["target"]) == {"normal_dose"}
        assert np.allclose(rows["spacing_mm"], (3.0, 0.8, 0.8))
    wanted = {read_volume(path).hu.astype(np.int16).tobytes() for path in tree.rglob("valid*.*") if path.is_file()}
    assert fulls == wanted
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert b"valid_" not in path.read_bytes() + path.name.encode(), path


def test_without_a_rule_files_are_refused_with_advice(tree, tmp_path, write_series):
    with pytest.raises(ValueError, match=r"13 NIfTI or MetaImage files. Give `patient_from_name`"):
        prepare_paired_ct(tmp_path / "out", normal_dose=str(tree), **SOURCE)
    assert not (tmp_path / "out").exists()
    for rule, words in (
        ("(", "no regular expression"),
        ("valid", "exactly one group"),
        ("(a)(b)", "exactly one group"),
    ):
        with pytest.raises(ValueError, match=words):
            prepare_paired_ct(tmp_path / "out", normal_dose=str(tree), patient_from_name=rule, **SOURCE)
    with pytest.raises(ValueError, match="for NIfTI and MetaImage files under `normal_dose`"):
        prepare_paired_ct(tmp_path / "out", pairs=str(tree), patient_from_name=RULE, dose_fractions=(0.25,), salt="s")
    write_series(tree / "dicom", [0, 2, 4])
    scans, (problem,) = find_scans(tree, None)
    assert len(scans) == 1 and "13 NIfTI or MetaImage files beside" in str(problem)
    scans, problems = find_scans(tree, RULE)
    assert len(scans) == 14 and not problems


def test_files_that_do_not_fit_the_rule_or_are_no_volume_are_reported(tree, tmp_path):
    write(tree / "stray.nii.gz", 7)
    (tree / "valid_9_a_1.nii.gz").write_bytes(b"nothing")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 3), np.float32), np.eye(4)), tree / "valid_8_a_1.nii.gz")
    scans, problems = find_scans(tree, RULE)
    assert len(scans) == 13
    assert sorted(problem.kind for problem in problems) == ["no_patient", "unusable_header", "unusable_header"]
    assert any("three axes, this has the size (4, 4, 4, 3)" in str(problem) for problem in problems)


def test_stored_values_are_not_taken_for_hu(tmp_path):
    """CT-RATE's first release: values before RescaleSlope and RescaleIntercept, padded far below."""
    stored = scan_hu(1) + 1024.0
    stored[:, :2] = -8192.0  # so the smallest value looks like air
    path = tmp_path / "valid_1_a_1.nii.gz"
    nib.save(nib.Nifti1Image(stored.transpose(2, 1, 0), np.diag([-0.8, -0.8, 3.0, 1.0])), path)
    (scan,), _ = find_scans(tmp_path, RULE)
    with pytest.raises(NotCTError, match="RescaleSlope"):
        scan.read()
    nib.save(nib.Nifti1Image(scan_hu(1).transpose(2, 1, 0), np.diag([-0.8, -0.8, 3.0, 1.0])), path)
    assert np.array_equal(scan.read().hu, scan_hu(1))


def test_values_without_air_are_hu_when_the_user_says_so(tmp_path):
    path = tmp_path / "valid_1_a_1.nii.gz"
    organ = np.rint(np.random.default_rng(0).normal(40.0, 10.0, (3, 24, 24))).astype(np.float32)
    nib.save(nib.Nifti1Image(organ.transpose(2, 1, 0), np.diag([-0.8, -0.8, 3.0, 1.0])), path)
    (refused,), _ = find_scans(tmp_path, RULE)
    with pytest.raises(NotCTError, match="assume_hu"):
        refused.read()
    (taken,), _ = find_scans(tmp_path, RULE, assume_hu=True)
    assert np.array_equal(taken.read().hu, organ) and taken.identity == refused.identity


def test_slices_that_are_not_axial_are_refused(tmp_path):
    affine = np.array([[0.8, 0, 0, 0], [0, 0, 3.0, 0], [0, 0.8, 0, 0], [0, 0, 0, 1]])
    path = tmp_path / "valid_1_a.nii.gz"
    nib.save(nib.Nifti1Image(scan_hu(1).transpose(2, 1, 0), affine), path)
    with pytest.raises(GeometryError, match="not axial"):
        FileScan(path, "x", "p", None, (3, 24, 24)).read()


def test_a_name_tells_low_dose_and_a_scan_that_cannot_be_read_is_left_out(tree, tmp_path):
    damaged = next(tree.rglob("valid_1_a_1.nii.gz"))
    damaged.write_bytes(damaged.read_bytes()[:600])
    report = prepare_paired_ct(tmp_path / "out", normal_dose=str(tree), patient_from_name=RULE, **SOURCE)
    assert report.written == 12 and len(report.problems) == 1
    (line,) = map(json.loads, (tmp_path / "out" / "left_out.jsonl").read_text().splitlines())
    assert line["kind"] in ("DamagedFileError", "unusable_header")
    write(tree / "low_dose" / "valid_5_a_1.nii.gz", 5)
    with pytest.raises(ValueError, match="name says low dose"):
        prepare_paired_ct(tmp_path / "two", normal_dose=str(tree), patient_from_name=RULE, **SOURCE)
