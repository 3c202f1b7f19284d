"""Scans without a partner: as they are, told apart by their dose, each patient in one split."""

import json

import numpy as np
import pydicom
import pytest

from diffusers_ct.conditions import ScanConditions
from diffusers_ct.data import (
    UnpairedCTConfig,
    load_paired_ct,
    load_unpaired_ct,
    prepare_paired_ct,
    prepare_unpaired_ct,
    verify_checksum,
    volume_view,
)
from diffusers_ct.data.manifest import read_manifest
from diffusers_ct.hub import check_nothing_identifying, render_dataset_card

EVERYONE = {"validation_fraction": 0.0, "test_fraction": 0.0}


@pytest.fixture
def folders(tmp_path, write_series):
    for number in range(4):
        for dose, noise in (("normal", 10.0), ("low", 30.0)):
            if number < 3 or dose == "low":
                place = tmp_path / dose / f"Meier{number}"
                write_series(place, [0, 2, 4], patient=f"PAT-{number}", noise_hu=noise, seed=number, matrix=(64, 64))
    return {"normal_dose": str(tmp_path / "normal"), "low_dose": str(tmp_path / "low")}


@pytest.fixture
def out(folders, tmp_path):
    report = prepare_unpaired_ct(tmp_path / "out", **folders, low_dose_fraction=0.2, **EVERYONE)
    assert report.rows == {"train": 7, "validation": 0, "test": 0} and not report.problems
    return tmp_path / "out"


def test_rows_are_the_files_and_know_their_dose(out, folders, tmp_path):
    for dose, count, fraction in (("normal", 3, None), ("low", 4, 0.2)):
        rows = load_unpaired_ct(out, "train", dose=dose)
        assert len(rows) == count and set(rows["dose"]) == {dose}
        stored = set()
        for series in sorted((tmp_path / dose).iterdir()):
            images = [pydicom.dcmread(path).pixel_array.astype(np.int16) - 1024 for path in sorted(series.iterdir())]
            stored.add(np.stack(images).tobytes())
        assert {volume_view(rows, index, "volume").tobytes() for index in range(count)} == stored
        for row in rows:
            verify_checksum(row)
            assert row["dose_fraction"] == (None if fraction is None else pytest.approx(fraction))
            conditions = ScanConditions(**json.loads(row["conditions"]))
            assert conditions.dose_fraction == fraction and conditions.kernel == "B30f"
            assert row["spacing_mm"] == pytest.approx([2.0, 0.8, 0.8]) and len(row["noise_hu"]) == 3
    levels = {dose: np.mean(load_unpaired_ct(out, "train", dose=dose)["noise_hu"]) for dose in ("normal", "low")}
    assert levels["low"] / levels["normal"] == pytest.approx(3.0, rel=0.1)
    both = load_unpaired_ct(out)["train"]
    assert len(both) == 7 and len(set(both["patient_key"])) == 4
    for path in out.rglob("*"):
        if path.is_file():
            assert not [w for w in (b"PAT-", b"Meier", b"Klinikum") if w in path.read_bytes() + path.name.encode()], (
                path
            )


def test_a_patient_at_both_doses_has_one_split(folders):
    for salt in "abcdef":
        tasks, _ = UnpairedCTConfig(**folders, salt=salt, validation_fraction=0.3, test_fraction=0.3).plan()
        splits: dict[str, set[str]] = {}
        for task in tasks:
            splits.setdefault(task.patient_key, set()).add(task.split)
        assert len(splits) == 4 and all(len(found) == 1 for found in splits.values())


def test_streaming_and_going_on(out, folders):
    stream = load_unpaired_ct(out, "train", streaming=True)
    assert sorted(row["scan_key"] for row in stream) == sorted(entry.scan_key for entry in read_manifest(out))
    again = prepare_unpaired_ct(out, **folders, low_dose_fraction=0.2, **EVERYONE)
    assert (again.written, again.reused) == (0, 7)
    with pytest.raises(ValueError, match=r"other settings \(`low_dose_fraction`\)"):
        prepare_unpaired_ct(out, **folders, low_dose_fraction=0.1, **EVERYONE)
    with pytest.raises(ValueError, match=r"other settings \(pairs against single scans\)"):
        prepare_paired_ct(out, normal_dose=folders["normal_dose"], dose_fractions=(0.25,))


def test_each_loader_names_the_other(out, tmp_path):
    with pytest.raises(ValueError, match="holds unpaired scans: open it with `load_unpaired_ct`"):
        load_paired_ct(out)
    prepare_paired_ct(tmp_path / "pairs", phantoms=1, dose_fractions=(0.25,), shape=(2, 24, 24))
    with pytest.raises(ValueError, match="holds paired scans: open it with `load_paired_ct`"):
        load_unpaired_ct(tmp_path / "pairs")


def test_mistakes_are_refused(out, folders, tmp_path):
    with pytest.raises(ValueError, match="Unknown dose 'quarter'"):
        load_unpaired_ct(out, dose="quarter")
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        load_unpaired_ct(tmp_path / "absent")
    with pytest.raises(ValueError, match="`normal_dose`, `low_dose` or both"):
        prepare_unpaired_ct(tmp_path / "new")
    with pytest.raises(ValueError, match="`low_dose`, which is not given"):
        prepare_unpaired_ct(tmp_path / "new", normal_dose=folders["normal_dose"], low_dose_fraction=0.5)
    with pytest.raises(ValueError, match="to hold scans at normal dose, and a name says low dose"):
        prepare_unpaired_ct(tmp_path / "new", normal_dose=folders["low_dose"])
    only = prepare_unpaired_ct(tmp_path / "normal_only", normal_dose=folders["normal_dose"], **EVERYONE)
    assert only.written == 3
    with pytest.raises(ValueError, match="no scan at low dose"):
        load_unpaired_ct(tmp_path / "normal_only", dose="low")


def test_single_scans_may_be_published_and_their_card_says_what_they_are(out):
    rows = load_unpaired_ct(out)
    for split in rows.values():
        check_nothing_identifying(split)
    card = render_dataset_card(rows, repo_id="user/ds", licence="cc-by-4.0", description="Scans.")
    assert "low, normal dose" in card and "| train | 7 | 4 |" in card and "20 %" in card and "PAT-" not in card
    train = rows["train"]
    with pytest.raises(ValueError, match="`dose`"):
        check_nothing_identifying(train.map(lambda row: {"dose": "Meier"}))
    with pytest.raises(ValueError, match="de-identified by this package"):
        check_nothing_identifying(train.map(lambda row: {"provenance": json.dumps({"source": "unpaired"})}))
    with pytest.raises(ValueError, match="unpaired-CT schema"):
        check_nothing_identifying(train.add_column("PatientName", ["x"] * 7))
