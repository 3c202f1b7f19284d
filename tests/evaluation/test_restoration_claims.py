"""Claims by hand-made figures on either side of each limit."""

import pytest

from diffusers_ct.evaluation.benchmark_result import BenchmarkResult
from diffusers_ct.evaluation.restoration_claims import claims_to_markdown, restoration_claims

NAMES = {"model": "m", "twin": "t", "reference": "red-cnn", "sampler": "s", "sampler_twin": "st"}


def comparison(against: str, difference: float, low: float | None, high: float | None) -> dict:
    return {
        "group": "dose 25 %", "method": "m", "against": against, "column": "psnr_full", "difference": difference,
        "low": low, "high": high, "n_patients": 12,
    }  # fmt: skip


def of(**parts: list[dict]) -> list:
    comparisons = parts.pop("comparisons", [])
    result = BenchmarkResult([{"group": "dose 25 %"}], comparisons=comparisons, studies=parts)
    return restoration_claims(result, **NAMES)


@pytest.mark.parametrize(
    ("low", "high", "reached"),
    [(-0.04, 0.1, True), (-0.06, 0.1, None), (-3.0, 3.0, None), (-0.2, -0.06, False), (None, None, None)],
)
def test_the_twin_may_be_ahead_by_its_margin_and_the_interval_must_say_so(low, high, reached):
    (claim,) = of(comparisons=[comparison("t", -0.04, low, high)])
    assert claim.reached is reached and "-0.04 dB" in claim.figure


@pytest.mark.parametrize(
    ("low", "high", "reached"), [(0.01, 0.9, True), (-0.01, 0.9, None), (-0.9, -0.1, False), (None, None, None)]
)
def test_the_reference_is_beaten_only_with_an_interval(low, high, reached):
    (claim,) = of(comparisons=[comparison("red-cnn", 0.5, low, high)])
    assert claim.reached is reached


def calibration(half: float | None, **values: float | None) -> dict:
    row = {"coverage": 0.9, "gap": 2.5, "loss": -0.51} | values

    def ends(value: float | None) -> tuple[float | None, float | None]:
        return (None, None) if half is None or value is None else (value - half, value + half)

    (c_low, c_high), (g_low, g_high), (l_low, l_high) = (ends(row[name]) for name in ("coverage", "gap", "loss"))
    return {
        "group": "g", "nominal": [0.5, 0.9], "coverage": [0.5, row["coverage"]], "coverage_low": [0.4, c_low],
        "coverage_high": [0.6, c_high], "gap_db": row["gap"], "gap_low_db": g_low, "gap_high_db": g_high,
        "gap_samples": 8, "gap_expected_db": 2.5, "mean_of_samples_minus_one_step_db": row["loss"],
        "loss_low_db": l_low, "loss_high_db": l_high, "n_patients": 6,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("row", "reached"),
    [
        (calibration(0.01), [True, True, True]),
        (calibration(0.01, coverage=0.83, gap=1.9, loss=-0.7), [False, False, False]),
        (calibration(0.06), [None, True, True]),
        (calibration(0.2), [None, True, None]),
        (calibration(None), [None, None, None]),
        (calibration(0.01, loss=None), [True, True]),
    ],
)
def test_calibration(row, reached):
    assert [claim.reached for claim in of(calibration=[row])] == reached


@pytest.mark.parametrize(
    ("sample", "sd", "twin", "reached"),
    [
        (0.29, 10.0, 0.1, True), (0.26, 10.0, 0.1, False), (0.3, 10.0, 0.29, False),
        (0.3, 20.0, 0.1, False),  # the low dose itself has the frequency of the full dose
        (0.3, 2.0, 0.1, False),
    ],
)  # fmt: skip
def test_texture(sample, sd, twin, reached):
    values = {"full dose": (0.3, 10.0), "low dose": (0.3, 20.0), "s": (sample, sd), "st": (twin, 3.0)}
    rows = [{"group": "g", "method": m, "mean_frequency_per_mm": f, "sd_hu": level} for m, (f, level) in values.items()]
    (claim,) = of(noise=rows)
    assert claim.reached is reached
    assert not of(noise=rows[:2])


@pytest.mark.parametrize(
    ("half", "bone", "reached"), [(0.05, -0.3, True), (0.3, -0.3, None), (0.05, -0.6, False), (None, -0.3, None)]
)
def test_bias_is_judged_by_its_worst_material(half, bone, reached):
    materials = [
        {
            "group": "g", "method": "m", "material": name, "bias_hu": b,
            "bias_low_hu": None if half is None else b - half, "bias_high_hu": None if half is None else b + half,
        }
        for name, b in {"fat": 0.1, "bone": bone}.items()
    ]  # fmt: skip
    (claim,) = of(materials=materials)
    assert claim.reached is reached and f"bone {bone:+.2f}" in claim.figure


@pytest.mark.parametrize(("half", "reached"), [(0.005, False), (0.015, None), (0.5, None)])
def test_detectability_is_judged_by_its_worst_insert(half, reached):
    rows = [
        {"method": "m", "insert": insert, "dose_fraction": 0.25, "auc": 0.7, "minus_low_dose": d, "minus_low": d - half,
         "minus_high": d + half}
        for insert, d in (("a", 0.01), ("b", -0.02))
    ]  # fmt: skip
    (claim,) = of(detectability=rows)
    assert claim.reached is reached and claim.figure.startswith("worst: b -0.020")
    table = claims_to_markdown([claim])
    assert ("**no**" in table) is (reached is False) and table.count("\n") == 3
    (sure,) = of(detectability=[row | {"minus_low_dose": 0.0, "minus_low": -0.009, "minus_high": 0.1} for row in rows])
    assert sure.reached is True
