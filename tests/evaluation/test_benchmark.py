"""The table: ceilings that the algebra gives, baselines that denoise, a report that needs no network."""

import json
import re

import numpy as np
import pytest
from datasets import Dataset
from scipy import ndimage

from diffusers_ct import CTVolume
from diffusers_ct.evaluation import (
    BASELINES,
    BenchmarkResult,
    Case,
    ceiling_gain_db,
    perfect_gain_db,
    run_benchmark,
    spread_over_doses,
    tune,
    write_report,
)
from diffusers_ct.evaluation.benchmark_result import CEILING, LOW_DOSE, PERFECT
from diffusers_ct.evaluation.figures import noise_curves, overview, to_png, training_curves


def truth(size: int = 64) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    image = np.full((size, size), -1000.0)
    image[np.hypot(y - size / 2, x - size / 2) < size * 0.42] = 40.0
    image[np.hypot(y - size * 0.4, x - size * 0.6) < size * 0.1] = 120.0
    return np.stack([image, image])


def case(dose: float = 0.25, seed: int = 0, patient: str = "p", target: str = "same_scan", size: int = 64) -> Case:
    """ND = x + n, LD = x + n + m with var m = var n (1/f - 1), inside and outside alike."""
    rng = np.random.default_rng(seed)
    clean = truth(size)
    full = clean + rng.normal(0, 10, clean.shape)
    low = full + rng.normal(0, 10 * np.sqrt(1 / dose - 1), clean.shape)
    reference = clean if target == "noise_free" else full
    volume = CTVolume.from_array(low, (1.0, 1.0, 1.0))
    return Case(f"s{seed}", patient, volume, reference.astype(np.float32), dose, target)


@pytest.mark.parametrize("dose", [0.25, 0.1])
def test_ceilings_are_what_the_best_estimates_reach(dose):
    cases = [case(dose, seed=s, patient=f"p{s}", size=128) for s in range(3)]
    clean = truth(128)
    result = run_benchmark(
        cases,
        {"oracle": lambda c: clean + dose * (c.low_hu - clean), "clean": lambda c: clean},
    )
    rows = {row["method"]: row for row in result.rows}
    assert rows["oracle"]["gain_body_db"] == pytest.approx(ceiling_gain_db(dose), abs=0.1)
    assert rows["clean"]["gain_body_db"] == pytest.approx(perfect_gain_db(dose), abs=0.1)
    assert rows["oracle"]["ceiling_share"] == pytest.approx(1.0, abs=0.02)
    assert rows[CEILING]["gain_body_db"] == pytest.approx(10 * np.log10(1 / dose))
    assert rows[PERFECT]["gain_body_db"] == pytest.approx(10 * np.log10(1 / dose - 1))
    assert rows[LOW_DOSE]["gain_body_db"] == 0.0


def test_a_noise_free_reference_has_no_ceiling():
    result = run_benchmark([case(target="noise_free")], {})
    assert [row["method"] for row in result.rows] == [LOW_DOSE]
    assert result.rows[0]["ceiling_share"] is None


def test_patients_count_once_and_doses_stand_apart():
    cases = [case(seed=0, patient="a"), case(seed=1, patient="a"), case(seed=2, patient="b"), case(0.1, 3, "a")]
    offsets = {"s0": 1.0, "s1": 3.0, "s2": 10.0, "s3": 0.0}
    result = run_benchmark(cases, {"shift": lambda c: c.full_hu + offsets[c.name]})
    row = next(r for r in result.table("dose 25 %") if r["method"] == "shift")
    assert row["bias_body_hu"] == pytest.approx((2.0 + 10.0) / 2, abs=1e-4)
    assert (row["n_patients"], row["n_scans"], row["n_slices"]) == (2, 3, 6)
    assert result.groups == ["dose 25 %", "dose 10 %"]
    assert result.beats("shift", "dose 10 %", "rmse_body_hu")
    with pytest.raises(ValueError, match="rows of the table already"):
        run_benchmark(cases, {LOW_DOSE: lambda c: c.low_hu})


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda b: b.name)
def test_every_baseline_denoises_and_is_tuned_to_its_best(baseline):
    training, held_out = case(seed=0, target="noise_free"), case(seed=1, target="noise_free")
    # away from edges, where a Gaussian has nothing to win
    flat = (ndimage.maximum_filter(truth(), (1, 9, 9)) == ndimage.minimum_filter(truth(), (1, 9, 9))) & (truth() > -500)
    mask = truth() > -500
    strength = tune(baseline, [(training.low_hu, training.full_hu, mask)])

    def error(c: Case, s: float, where: np.ndarray = mask) -> float:
        return float(np.sqrt(np.square(baseline(c.low_hu, s) - c.full_hu)[where].mean()))

    assert strength == min(baseline.strengths, key=lambda s: error(training, s))
    # where edges are as strong as here, the best Gaussian is next to none
    least = 0.99 if baseline.name == "Gaussian" else 0.9
    assert error(held_out, strength, flat) < least * np.square(held_out.low_hu - held_out.full_hu)[flat].mean() ** 0.5
    assert abs((baseline(held_out.low_hu, strength) - held_out.full_hu)[1, 24:40, 24:30].mean()) < 5


def test_strengths_carry_over_to_other_noise_levels():
    noisy = case(seed=3).low_hu
    for baseline in BASELINES[1:4]:
        strength = baseline.strengths[2]
        scaled = baseline(noisy * 2, strength)
        np.testing.assert_allclose(scaled / 2, baseline(noisy, strength), atol=12, rtol=0.2)


def test_result_survives_json_and_renders(tmp_path):
    result = run_benchmark([case()], {"same": lambda c: c.low_hu}, facts={"split": "test"})
    again = BenchmarkResult.load(result.save(tmp_path / "b.json"))
    assert again == result
    assert json.loads((tmp_path / "b.json").read_text())["facts"]["split"] == "test"
    markdown = result.to_markdown()
    assert "| same |" in markdown and "| ceiling |" in markdown and "6.02" in markdown


def test_report_is_one_file_with_everything_and_no_network(tmp_path):
    c = case()
    result = run_benchmark([c], {"<better> & more": lambda c: c.full_hu + 1}, facts={"split": "test"})
    figure = overview(
        c.low_hu[0],
        c.full_hu[0],
        c.full_hu[0],
        np.abs(c.low_hu[0]),
        low_title="low",
        full_title="full",
        difference=True,
    )
    curves = training_curves([{"step": 1, "train/loss": 1.0}, {"step": 2, "train/loss": 0.5, "val/rmse_body_hu": 9.0}])
    noise = noise_curves({"low": c.low_hu - c.full_hu}, 1.0)
    pictures = [(name, "caption", to_png(f)) for name, f in (("a", figure), ("b", curves), ("c", noise))]
    html = write_report(tmp_path / "r.html", result, title="T", summary=["S & co"], pictures=pictures).read_text()
    assert html.count("data:image/png;base64,iVBOR") == 3
    assert "&lt;better&gt; &amp; more" in html and "S &amp; co" in html and "not a medical device" in html
    assert not re.search(r"(src|href)=.?https?:", html) and "<script" not in html
    assert "width=device-width" in html


def test_noise_curve_integrates_to_the_variance():
    error = np.random.default_rng(0).normal(0, 7, (20, 64, 64))
    axes = noise_curves({"white": error}, 0.8).axes[0]
    level = np.median(axes.lines[0].get_ydata())
    assert level == pytest.approx(49 * 0.8**2, rel=0.05)  # white noise: variance times the pixel's area


def test_no_training_pair_is_refused():
    with pytest.raises(ValueError, match="no training pair"):
        tune(BASELINES[0], [])


def test_rows_to_tune_on_are_spread_over_every_dose():
    rows = Dataset.from_dict({"dose_fraction": [0.25, 0.1] * 5, "row": list(range(10))})
    assert spread_over_doses(rows, 3)["row"] == [0, 1, 4, 5, 8, 9]
    assert spread_over_doses(rows, 99)["row"] == list(range(10))
