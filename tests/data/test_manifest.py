"""Keys cannot be traced without the salt, patients stand in one split, damage is noticed."""

import dataclasses
import json

import numpy as np
import pytest

from diffusers_ct.conditions import ScanConditions
from diffusers_ct.data.manifest import (
    SPLITS,
    ManifestEntry,
    SplitRule,
    check_patients_apart,
    hashed_key,
    make_row,
    read_manifest,
    to_int16_hu,
    verify_checksum,
    write_manifest,
)


def entry(key: str, patient: str, split: str) -> ManifestEntry:
    return ManifestEntry(key, patient, split, f"shards/{key}.arrow", 1, 8, 8, 0.25, "same_scan", "0")


def row(**change):
    rng = np.random.default_rng(0)
    facts = {
        "scan_key": "k", "patient_key": "p", "split": "train", "dose_fraction": 0.25, "spacing_mm": (2, 1, 1),
        "affine_lps": np.eye(4), "target": "same_scan", "conditions": ScanConditions(), "provenance": {},
    }  # fmt: skip
    low, full = rng.normal(0, 50, (2, 2, 16, 16))
    return make_row(low, full, **{**facts, **change})


def test_keys_depend_on_the_salt_and_hide_the_patient():
    assert hashed_key("a", "L096") == hashed_key("a", "L096") != hashed_key("b", "L096")
    assert hashed_key("a", "x", "yz") != hashed_key("a", "xy", "z")
    assert "L096" not in hashed_key("a", "L096")


def test_every_patient_has_one_split_in_about_the_wanted_fractions():
    rule = SplitRule(validation=0.2, test=0.1)
    patients = [f"P{n}" for n in range(2000)]
    splits = [rule.of_patient(p, hashed_key("salt", p)) for p in patients]
    assert splits == [rule.of_patient(p, hashed_key("salt", p)) for p in reversed(patients)][::-1]
    assert abs(splits.count("test") / 2000 - 0.1) < 0.03 and abs(splits.count("validation") / 2000 - 0.2) < 0.03


def test_overrides_come_first_and_are_checked():
    rule = SplitRule(overrides={"L506": "test", "phantom-1": "train"})
    assert all(rule.of_patient("L506", hashed_key(str(salt), "L506")) == "test" for salt in range(20))
    with pytest.raises(ValueError, match="choose one of train, validation, test"):
        SplitRule(overrides={"L506": "dev"})
    with pytest.raises(ValueError, match="sum to at most 1"):
        SplitRule(validation=0.7, test=0.7)


@pytest.mark.parametrize("count", [10, 20, 50])
def test_phantoms_meet_the_fractions_at_every_count(count):
    splits = [SplitRule().of_phantom(seed) for seed in range(count)]
    for split, fraction in zip(SPLITS, (0.8, 0.1, 0.1)):
        assert abs(splits.count(split) - fraction * count) <= 1


def test_a_patient_in_two_splits_or_a_row_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="tested on a patient it was trained on"):
        write_manifest(tmp_path, [entry("a", "p", "train"), entry("b", "p", "test")])
    with pytest.raises(ValueError, match="twice"):
        check_patients_apart([entry("a", "p", "train"), entry("a", "p", "train")])
    with pytest.raises(FileNotFoundError, match="not a prepared dataset"):
        read_manifest(tmp_path)
    write_manifest(tmp_path, [entry("b", "q", "test"), entry("a", "p", "train")])
    assert [e.scan_key for e in read_manifest(tmp_path)] == ["a", "b"]


def test_rounding_clips_to_twelve_bit():
    hu = np.array([[[-3024.0, -0.6, 0.4, 9000.0]]])
    assert to_int16_hu(hu).tolist() == [[[-1024, -1, 0, 3071]]] and to_int16_hu(hu).dtype == np.int16
    with pytest.raises(ValueError, match="not finite"):
        to_int16_hu(hu * np.nan)


def test_damage_is_noticed():
    good = row()
    verify_checksum(good)
    verify_checksum({**good, "low": good["low"].tolist(), "full": good["full"].tolist()})
    good["low"][0, 0, 0] += 1
    with pytest.raises(ValueError, match="damaged"):
        verify_checksum(good)


@pytest.mark.parametrize("change", [{"dose_fraction": 1.0}, {"dose_fraction": 0}, {"split": "dev"}, {"target": "x"}])
def test_rows_that_mean_nothing_are_refused(change):
    with pytest.raises(ValueError):
        row(**change)


def test_a_row_holds_the_conditions_but_never_the_text():
    conditions = ScanConditions(kernel="B30f", findings=("nodule",), findings_absent=("cyst",), text="Alonso Quixote")
    made = row(conditions=conditions)
    assert "Quixote" not in repr(made)
    assert ScanConditions(**json.loads(made["conditions"])) == dataclasses.replace(conditions, text=None)


def test_the_manifest_names_nothing_but_keys():
    names = {field.name for field in dataclasses.fields(ManifestEntry)}
    assert not names & {"path", "patient", "patient_id", "patient_name"}
