"""Requests and the row of figures that judges them, counted by hand."""

import numpy as np
import pytest

from diffusers_ct import CTVolume, ScanConditions
from diffusers_ct.data.volumes import REGIONS
from diffusers_ct.evaluation import Judgement, draw_requests, judge_row, rows_to_markdown
from diffusers_ct.physics import BLOOD_HU, CONTRAST_PHASES, LESION_KINDS_OF_REGION
from diffusers_ct.physics.phantom_anatomy import Patient


def test_requests_are_balanced():
    findings = ("cyst", *LESION_KINDS_OF_REGION["thorax"])
    asked = draw_requests(600, 0, findings)
    pairs = [(c.body_part, c.contrast_phase) for c in asked]
    assert {pairs.count(pair) for pair in set(pairs)} == {100} and len(set(pairs)) == 6
    for region in REGIONS:
        possible = LESION_KINDS_OF_REGION[region]
        mine = [c for c in asked if c.body_part == region.upper()]
        for kind in findings:
            share = np.mean([kind in c.findings for c in mine])
            assert share == (pytest.approx(0.4, abs=0.13) if kind in possible else 0.0)
    assert all(set(c.findings) | set(c.findings_absent) == set(findings) for c in asked)
    assert draw_requests(600, 0, findings) == asked and draw_requests(600, 1, findings) != asked


class Judge:
    def __init__(self, judgement: Judgement) -> None:
        self.judgement = judgement

    def judge(self, volumes) -> Judgement:
        return self.judgement


def test_a_row_is_what_is_counted_and_a_volume_without_a_body_is_no_error():
    air = CTVolume.from_array(np.full((2, 32, 32), -1000.0, dtype=np.float32), (6.0, 6.0, 6.0))
    body = air.hu.copy()
    body[:, 2:30, 2:30] = BLOOD_HU["portal"] + 15.0
    volumes = [air, CTVolume.from_array(body, (6.0, 6.0, 6.0))]
    kind = LESION_KINDS_OF_REGION["thorax"][0]
    (other,) = [k for k in LESION_KINDS_OF_REGION["abdomen"] if k not in LESION_KINDS_OF_REGION["thorax"]][:1]
    asked = [ScanConditions(body_part="THORAX", contrast_phase="portal", findings_absent=(kind, other))] * 2
    judge = Judge(Judgement(["THORAX", "ABDOMEN"], np.array([[0.1, 0.9], [0.9, 0.9]])))
    row = judge_row("made", judge, volumes, asked, (kind, other))
    assert row["aorta_hu portal"] == pytest.approx(BLOOD_HU["portal"] + 15.0, abs=0.01)
    assert row["aorta_error_hu portal"] == pytest.approx(15.0, abs=0.01)
    assert row["aorta_missing portal"] == 1 and row["aorta_missing none"] == 0 and np.isnan(row["aorta_hu none"])
    assert row["body_part"] == 0.5
    assert row["body_part_95"] == pytest.approx([0.0126, 0.9874], abs=1e-4)  # Clopper-Pearson of 1 in 2
    assert row["possible_findings"] == 0.5  # what a thorax cannot have does not count
    assert row[f"{other} absent"] == 0.0
    table = rows_to_markdown([row], (kind, other))
    assert "50.0 (1.3-98.7)" in table and "| nan / 50 | nan / 0 |" in table
    nothing = judge_row("none", judge, volumes, [ScanConditions(body_part="THORAX")] * 2, (kind, other))
    assert np.isnan(nothing["possible_findings"]) and nothing["possible_findings_95"] == [0.0, 1.0]
    rows_to_markdown([nothing], (kind, other))


def test_nominal_blood_is_the_middle_of_what_phantoms_have():
    assert tuple(BLOOD_HU) == CONTRAST_PHASES
    for phase, nominal in BLOOD_HU.items():
        drawn = [Patient.draw(np.random.default_rng(seed), "thorax", phase).hu["blood"] for seed in range(60)]
        assert np.mean(drawn) == pytest.approx(nominal, rel=0.04)
        assert 0.9 * nominal <= min(drawn) and max(drawn) <= 1.1 * nominal
