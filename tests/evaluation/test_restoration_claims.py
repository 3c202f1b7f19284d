"""Claims by hand-made figures on either side of each limit."""

import pytest

from diffusers_ct.evaluation.benchmark_result import BenchmarkResult
from diffusers_ct.evaluation.restoration_claims import claims_to_markdown, restoration_claims

NAMES = {"model": "m", "twin": "t", "reference": "red-cnn", "sampler": "s", "sampler_twin": "st"}


def comparison(against: str, difference: float, low: float | None) -> dict:
    return {
        "group": "dose 25 %", "method": "m", "against": against, "column": "psnr_full", "difference": difference,
        "low": low, "high": None if low is None else 9.0, "n_patients": 12,
    }  # fmt: skip


def of(**parts: list[dict]) -> list:
    comparisons = parts.pop("comparisons", [])
    result = BenchmarkResult([{"group": "dose 25 %"}], comparisons=comparisons, studies=parts)
    return restoration_claims(result, **NAMES)


@pytest.mark.parametrize(("difference", "reached"), [(-0.04, True), (-0.06, False), (0.5, True)])
def test_the_twin_may_be_ahead_by_its_margin(difference, reached):
    (claim,) = of(comparisons=[comparison("t", difference, -1.0)])
    assert claim.reached is reached and f"{difference:+.2f} dB" in claim.figure


@pytest.mark.parametrize(("low", "reached"), [(0.01, True), (-0.01, False), (None, None)])
def test_the_reference_is_beaten_only_with_an_interval(low, reached):
    (claim,) = of(comparisons=[comparison("red-cnn", 0.5, low)])
    assert claim.reached is reached


@pytest.mark.parametrize(
    ("coverage", "gap", "loss", "reached"),
    [(0.9, 2.5, -0.51, [True, True, True]), (0.84, 2.5, -0.61, [False, True, False]), (0.96, 1.9, 0.7, [False] * 3)],
)
def test_calibration(coverage, gap, loss, reached):
    row = {
        "group": "g", "nominal": [0.5, 0.9], "coverage": [0.5, coverage], "gap_db": gap, "gap_samples": 8,
        "gap_expected_db": 2.5, "mean_of_samples_minus_one_step_db": loss,
    }  # fmt: skip
    assert [claim.reached for claim in of(calibration=[row])] == reached
    assert len(of(calibration=[row | {"mean_of_samples_minus_one_step_db": None}])) == 2


@pytest.mark.parametrize(("sample", "twin", "reached"), [(0.29, 0.1, True), (0.26, 0.1, False), (0.3, 0.29, False)])
def test_texture(sample, twin, reached):
    values = {"full dose": 0.3, "low dose": 0.3, "s": sample, "st": twin}
    rows = [{"group": "g", "method": m, "mean_frequency_per_mm": f} for m, f in values.items()]
    (claim,) = of(noise=rows)
    assert claim.reached is reached
    assert not of(noise=rows[:2])


def test_bias_and_detectability_are_judged_by_their_worst():
    materials = [
        {"group": "g", "method": "m", "material": k, "bias_hu": b} for k, b in {"fat": 0.4, "bone": -0.6}.items()
    ]
    (claim,) = of(materials=materials)
    assert claim.reached is False and "bone -0.60" in claim.figure
    rows = [
        {"method": method, "insert": insert, "dose_fraction": 0.25, "auc": auc}
        for method, insert, auc in (("low dose", "a", 0.8), ("low dose", "b", 0.7), ("m", "a", 0.795), ("m", "b", 0.68))
    ]
    (claim,) = of(detectability=rows)
    assert claim.reached is False and claim.figure.startswith("worst: b -0.020")
    table = claims_to_markdown([claim])
    assert "**no**" in table and table.count("\n") == 3
