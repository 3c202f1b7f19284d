"""Conditions survive JSON, contradictions are refused, and what a model does not know is named with what it knows."""

import json
import math

import pytest
import torch

from diffusers_ct.conditions import (
    CONDITION_NAMES,
    ConditionError,
    ConditionVocabulary,
    ScanConditions,
    collate_conditions,
    nearest_first,
)

FULL = ScanConditions(
    body_part="CHEST", age_years=61.0, sex="F", dose_fraction=0.25, kvp=120.0, tube_current_mas=80.0, kernel="Br38f\\3",
    manufacturer="ACME", slice_thickness_mm=2.0, contrast_agent=True, contrast_phase="portal", findings=("nodule",),
    findings_absent=("cyst", "stone"), text="Solid nodule of Alonso Quixote.",
)  # fmt: skip
VOCABULARY = ConditionVocabulary(
    ("age_years", "body_part", "sex", "dose_fraction", "kernel", "contrast_agent", "findings", "spacing_mm", "text"),
    body_part=("ABDOMEN", "CHEST", "HEAD"),
    kernel=("B30f", "B45f", "Br38f\\3", "D45f", "STANDARD"),
    findings=("cyst", "nodule", "stone"),
)


def without(c: ScanConditions, *names: str) -> ScanConditions:
    unknown = {name: () if name.startswith("findings") else None for name in names}
    return ScanConditions(**{**c.to_dict(), **unknown})


KNOWN = without(FULL, "kvp", "tube_current_mas", "manufacturer", "slice_thickness_mm", "contrast_phase")


@pytest.mark.parametrize("conditions", [FULL, ScanConditions()])
def test_json_round_trip_is_equal(conditions):
    again = ScanConditions(**json.loads(json.dumps(conditions.to_dict())))
    assert again == conditions and hash(again) == hash(conditions)


def test_rows_written_before_the_later_fields_are_read():
    old = {
        "age_years": 90.0, "body_part": "CHEST", "contrast_agent": False, "dose_fraction": 0.25, "kernel": "B30f",
        "kvp": 120.0, "manufacturer": None, "sex": "O", "slice_thickness_mm": 1.0, "tube_current_mas": 0.0,
    }  # fmt: skip
    read = ScanConditions(**json.loads(json.dumps(old)))
    assert read.kernel == "B30f" and read.tube_current_mas == 0.0
    assert (read.contrast_phase, read.findings, read.findings_absent, read.text) == (None, (), (), None)


def test_the_text_is_not_shown():
    assert "Quixote" not in repr(FULL) and "nodule" in repr(FULL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dose_fraction": 0.0}, "dose_fraction"), ({"dose_fraction": 1.1}, "dose_fraction"), ({"sex": "X"}, "sex"),
        ({"kvp": -1.0}, "kvp"), ({"age_years": math.nan}, "age_years"), ({"tube_current_mas": math.inf}, "tube_current"),
        ({"contrast_phase": "Portal"}, "lower-case"), ({"contrast_phase": ""}, "lower-case"), ({"text": " "}, "blank"),
        ({"findings": ("a", "a")}, "twice"), ({"findings": ("",)}, "must hold names"), ({"findings": (3,)}, "must hold"),
        ({"findings": ("a", "b"), "findings_absent": ("b",)}, "'b' stands in both"),
        ({"contrast_phase": "none", "contrast_agent": True}, "contradicts"),
        ({"contrast_phase": "arterial", "contrast_agent": False}, "contradicts"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ScanConditions(**change)


def test_a_bare_string_is_no_list_of_findings():
    with pytest.raises(TypeError, match=r"write \('nodule',\)"):
        ScanConditions(findings="nodule")


@pytest.mark.parametrize(("phase", "agent"), [("none", False), ("none", None), ("arterial", True), (None, False)])
def test_what_agrees_is_accepted(phase, agent):
    assert ScanConditions(contrast_phase=phase, contrast_agent=agent).contrast_phase == phase


def test_collation_is_its_definition():
    fields, left_out = collate_conditions(
        [KNOWN, ScanConditions()], VOCABULARY, spacing_mm=[(2.0, 0.7, 0.8), (1.0, 0.5, 0.5)]
    )
    assert left_out == [] and set(fields) == set(VOCABULARY.names) - {"text"}
    for name, value in {"body_part": 1, "sex": 1, "kernel": 2, "contrast_agent": 1}.items():
        assert fields[name].dtype == torch.int64 and fields[name].tolist() == [value, -1], name
    for name, value in {"age_years": 61.0, "dose_fraction": 0.25}.items():
        assert fields[name].dtype == torch.float32 and fields[name][0].item() == value and fields[name][1].isnan(), name
    assert fields["findings"].dtype == torch.float32 and fields["findings"][0].tolist() == [0.0, 1.0, 0.0]
    assert fields["findings"][1].isnan().all()
    torch.testing.assert_close(fields["spacing_mm"], torch.tensor([[2.0, 0.7, 0.8], [1.0, 0.5, 0.5]]))
    assert collate_conditions([ScanConditions(contrast_agent=False)], VOCABULARY)[0]["contrast_agent"].tolist() == [0]
    assert collate_conditions([KNOWN], VOCABULARY)[0]["spacing_mm"].isnan().all()
    assert collate_conditions([ScanConditions(age_years=0.0)], VOCABULARY)[0]["age_years"].tolist() == [0.0]


@pytest.mark.parametrize(
    ("conditions", "parts"),
    [
        (ScanConditions(kernel="b45F"), ["`kernel` 'b45F'", "knows 'B45f', 'D45f', ", "set `kernel` to None", "another"]),
        (ScanConditions(findings=("nodul",)), ["`findings` 'nodul'", "knows 'nodule', 'cyst', 'stone'", "leave it out"]),
        (ScanConditions(findings_absent=("ston",)), ["`findings_absent` 'ston'", "knows 'stone', 'cyst', 'nodule'"]),
        (ScanConditions(kvp=120.0), ["not trained with `kvp` (it is 120.0)", "Set `kvp` to None", "another|trained with"]),
        (ScanConditions(contrast_phase="portal"), ["`contrast_phase`", "knows contrast_agent, "]),
    ],
)  # fmt: skip
def test_what_the_model_does_not_know_is_refused_with_the_nearest_first(conditions, parts):
    with pytest.raises(ConditionError) as caught:
        collate_conditions([KNOWN, conditions], VOCABULARY)
    for part in parts:
        assert any(p in str(caught.value) for p in part.split("|")), (part, str(caught.value))
    assert isinstance(caught.value, ValueError)


def test_every_known_value_is_listed():
    with pytest.raises(ConditionError) as caught:
        collate_conditions([ScanConditions(body_part="KNEE")], VOCABULARY)
    assert all(repr(part) in str(caught.value) for part in VOCABULARY.body_part)


def test_a_text_is_refused_without_showing_it():
    vocabulary = ConditionVocabulary(("sex",))
    with pytest.raises(ConditionError, match="`text`") as caught:
        collate_conditions([ScanConditions(text="Quixote")], vocabulary)
    assert "Quixote" not in str(caught.value)
    assert "Quixote" not in collate_conditions([ScanConditions(text="Quixote")], vocabulary, strict=False)[1][0]


def test_what_a_header_says_beyond_the_model_is_left_out_and_reported_once():
    stranger = ScanConditions(kernel="FC17", kvp=135.0, sex="M", findings=("nodule", "mass"))
    fields, left_out = collate_conditions([stranger, stranger, KNOWN], VOCABULARY, strict=False)
    assert fields["kernel"].tolist() == [-1, -1, 2] and fields["sex"].tolist() == [0, 0, 1]
    torch.testing.assert_close(fields["findings"][0], torch.tensor([math.nan, 1.0, math.nan]), equal_nan=True)
    assert len(left_out) == 3
    for text in ("`kvp`", "'FC17'", "'mass'"):
        assert sum(text in sentence and sentence.endswith("It was left out.") for sentence in left_out) == 1


def test_a_quantity_of_zero_is_no_positive_quantity():
    vocabulary = ConditionVocabulary(("tube_current_mas",))
    with pytest.raises(ConditionError, match="`tube_current_mas` is 0"):
        collate_conditions([ScanConditions(tube_current_mas=0.0)], vocabulary)
    fields, left_out = collate_conditions([ScanConditions(tube_current_mas=0.0)], vocabulary, strict=False)
    assert fields["tube_current_mas"].isnan().all() and "is 0" in left_out[0]


def test_wrong_batches_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        collate_conditions([], VOCABULARY)
    for spacing in ([(1.0, 1.0, 1.0)] * 2, [(1.0, 1.0)], [(1.0, 0.0, 1.0)]):
        with pytest.raises(ValueError, match="`spacing_mm` must be 1 x"):
            collate_conditions([KNOWN], VOCABULARY, spacing_mm=spacing)


def test_vocabulary_of_a_training_set_is_sorted_and_knows_no_finding_that_no_scan_has():
    scans = [KNOWN, ScanConditions(body_part="ABDOMEN", kernel="B30f", findings=("mass", "cyst"))]
    names = ("findings", "kernel", "age_years", "spacing_mm", "text")
    vocabulary = ConditionVocabulary.from_scans(iter(scans), names)
    assert vocabulary == ConditionVocabulary(names, kernel=("B30f", "Br38f\\3"), findings=("cyst", "mass", "nodule"))
    with pytest.raises(ValueError, match="None of the 2 scans says anything of `manufacturer`, `kvp`"):
        ConditionVocabulary.from_scans(scans, ("sex", "manufacturer", "kvp"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ("kernal",)}, "'kernal' is no condition: choose of kernel, "),
        ({"names": ("sex", "sex")}, "twice"),
        ({"names": ("kernel",)}, "lists no value"),
        ({"names": ("kernel",), "kernel": ("a", "a")}, "twice"),
    ],
)
def test_vocabularies_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConditionVocabulary(**arguments)


def test_vocabulary_survives_the_encoders_config():
    config = json.loads(json.dumps(VOCABULARY.to_config()))
    assert ConditionVocabulary.from_config({**config, "token_dim": 64}) == VOCABULARY


def test_nearest_first_is_a_reordering_that_ignores_case():
    known = ("LUNG", "STANDARD", "Bone", "BONEPLUS")
    assert nearest_first("bone", known) == ["Bone", "BONEPLUS", "LUNG", "STANDARD"]
    assert nearest_first("zzz", known) == list(known) and nearest_first("x", ()) == []
    assert nearest_first("findngs", CONDITION_NAMES)[0] == "findings"
