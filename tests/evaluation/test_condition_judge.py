"""The judge of synthesised volumes: agreement counted by hand, and a judge that learns shapes it is shown."""

import numpy as np
import pytest
import torch

from diffusers_ct import CTVolume, ScanConditions
from diffusers_ct.evaluation import ConditionJudge, Judgement, agreement, finding_targets, train_judge

PARTS, FINDINGS = ("ABDOMEN", "THORAX"), ("ball", "ring")


def shapes(count: int, seed: int, *, balls_known: bool = True) -> list[tuple[np.ndarray, ScanConditions]]:
    """Thorax is dark, abdomen grey; a ball (60 HU) or not, anywhere; rings never, and unknown of half of the volumes."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*map(np.arange, (3, 16, 16)), indexing="ij")
    volumes = []
    for number in range(count):
        thorax, ball = number % 2 == 0, number // 2 % 2 == 0
        hu = np.full(z.shape, -150.0 if thorax else 0.0) + rng.normal(0.0, 5.0, z.shape)
        if ball:
            middle = rng.integers([1, 4, 4], [2, 12, 12])
            away = (z - middle[0]) ** 2 + (y - middle[1]) ** 2 + (x - middle[2]) ** 2
            hu[away <= 6] += 250.0
        names = (("ball",), ()) if ball else ((), ("ball",))
        present, absent = names if balls_known else ((), ())
        absent = (*absent, "ring") if number % 4 > 1 else absent
        conditions = ScanConditions(
            body_part="THORAX" if thorax else "ABDOMEN", findings=present, findings_absent=absent
        )
        volumes.append((hu.astype(np.float32), conditions))
    return volumes


def test_targets_are_present_absent_unknown():
    scans = [ScanConditions(findings=("b",), findings_absent=("a",)), ScanConditions(findings=("other",))]
    np.testing.assert_array_equal(finding_targets(scans, ("a", "b")), [[0.0, 1.0], [np.nan, np.nan]])
    assert finding_targets(scans, ("a", "b")).dtype == np.float32


def test_agreement_counts_each_thing_asked_for():
    asked = [
        ScanConditions(body_part="THORAX", findings=("a",), findings_absent=("b",)),
        ScanConditions(body_part="THORAX", findings=("a",)),
        ScanConditions(body_part="ABDOMEN", findings_absent=("a", "b")),
        ScanConditions(findings_absent=("b",)),  # any body part will do
    ]
    seen = Judgement(
        ["THORAX", "ABDOMEN", "ABDOMEN", "THORAX"], np.array([[0.9, 0.1], [0.2, 0.9], [0.6, 0.7], [0.1, 0.3]])
    )
    found = agreement(seen, asked, ("a", "b", "c"))
    assert found["body_part"] == pytest.approx(2 / 3)
    assert found["a present"] == 1 / 2 and found["a absent"] == 0.0
    assert np.isnan(found["b present"]) and found["b absent"] == pytest.approx(2 / 3)
    assert np.isnan(found["c present"]) and np.isnan(found["c absent"])
    assert found["findings"] == pytest.approx((1 / 2 + 0.0 + 2 / 3) / 3)
    nothing = agreement(Judgement(["THORAX"], np.zeros((1, 1))), [ScanConditions()], ("a",))
    assert all(np.isnan(value) for value in nothing.values())


def test_it_learns_what_it_is_shown_and_leaves_the_global_seed_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    judge = train_judge(shapes(48, 0), body_parts=PARTS, findings=FINDINGS, epochs=14, seed=0, batch_size=8)
    assert torch.equal(torch.rand(3), expected)
    held_out = shapes(24, 1)
    truth = [c for _, c in held_out]
    found = agreement(judge.judge([hu for hu, _ in held_out], batch_size=7), truth, FINDINGS)
    assert found["body_part"] == 1.0 and found["ball present"] >= 0.9 and found["ball absent"] >= 0.9
    assert found["ring absent"] == 1.0
    volumes = [CTVolume.from_array(hu, (1.0, 1.0, 1.0)) for hu, _ in held_out]
    again = judge.judge(volumes)
    np.testing.assert_allclose(
        again.findings, judge.judge([hu for hu, _ in held_out], batch_size=3).findings, atol=1e-5
    )


def test_unknown_findings_do_not_train():
    volumes = shapes(16, 0, balls_known=False)
    judge = train_judge(volumes, body_parts=PARTS, findings=("ball",), epochs=1, seed=3, batch_size=8)
    torch.manual_seed(3)
    untouched = ConditionJudge(PARTS, ("ball",)).finding_head
    # only the weight decay of AdamW may have moved it
    ratio = (judge.finding_head.weight / untouched.weight).flatten()
    assert ratio.isfinite().all() and (ratio - ratio[0]).abs().max() < 1e-5 and 0.99 < ratio[0] <= 1.0
    assert all(p.isfinite().all() for p in judge.parameters())


def test_a_batch_of_unknown_findings_among_others_does_no_harm():
    known, unknown = shapes(8, 0), shapes(8, 1, balls_known=False)
    judge = train_judge(known + unknown, body_parts=PARTS, findings=("ball",), epochs=2, seed=0, batch_size=2)
    assert all(p.isfinite().all() for p in judge.parameters())


def test_the_same_seed_is_the_same_judge_and_strange_body_parts_are_refused():
    volumes = shapes(8, 0)
    a, b = (train_judge(volumes, body_parts=PARTS, findings=FINDINGS, epochs=1, seed=4) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    with pytest.raises(ValueError, match="volumes are of None"):
        train_judge([(volumes[0][0], ScanConditions())], body_parts=PARTS, findings=FINDINGS, epochs=1, seed=0)
