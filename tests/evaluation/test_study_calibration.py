"""The calibration study on samplers whose posterior is known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from diffusers_ct.evaluation.studies import SampledCase, calibration_study
from diffusers_ct.metrics import expected_gap_db

SHAPE = (2, 64, 64)
SD_HU = 9.0


def sampled(
    rng: np.random.Generator,
    *,
    samples: int,
    spread: float = 1.0,
    offset_hu: float = 0.0,
    patient: str = "a",
    one_step: bool = True,
    method: str = "sampler",
) -> SampledCase:
    """Truth and samples drawn from N(mean, SD^2), the samples `spread` times as wide; outside the region they are junk."""
    mean = rng.normal(40.0, 30.0, SHAPE)
    truth = mean + rng.normal(0.0, SD_HU, SHAPE)
    drawn = mean + offset_hu + spread * rng.normal(0.0, SD_HU, (samples, *SHAPE))
    region = np.zeros(SHAPE, bool)
    region[:, 8:56, 8:56] = True
    drawn[:, ~region] = 5000.0
    return SampledCase("dose 25 %", method, patient, drawn, truth, region, mean if one_step else None)


def study(cases):
    return calibration_study(cases, seed=0)


@pytest.mark.parametrize(("samples", "intervals"), [(8, "gaussian"), (39, "order")])
def test_an_exact_sampler_is_calibrated_however_few_its_samples(samples, intervals):
    rng = np.random.default_rng(samples)
    (row,) = study(sampled(rng, samples=samples, patient=str(k)) for k in range(3))
    voxels = 3 * 2 * 48**2
    assert row["nominal"] == [0.5, 0.9, 0.95] and row["intervals"] == intervals and row["n_patients"] == 3
    for nominal, coverage in zip(row["nominal"], row["coverage"]):
        assert coverage == pytest.approx(nominal, abs=4 * np.sqrt(nominal * (1 - nominal) / voxels))
    assert row["gap_db"] == pytest.approx(expected_gap_db(samples), abs=0.1)
    assert row["gap_expected_db"] == pytest.approx(10 * np.log10(2 / (1 + 1 / samples)))
    # The estimate is the posterior's mean, which the mean of N misses by its variance over N.
    assert row["mean_of_samples_minus_one_step_db"] == pytest.approx(-10 * np.log10(1 + 1 / samples), abs=0.03)
    assert row["spread_skill"] == pytest.approx(1.0, abs=0.02)
    # The fair score of a normal forecast of the right mean and width is SD / sqrt(pi) on average.
    assert row["crps_hu"] == pytest.approx(SD_HU / np.sqrt(np.pi), rel=0.03)
    ranks = np.array(row["rank_histogram"])
    assert ranks.shape == (samples + 1,) and ranks.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(ranks, 1 / (samples + 1), atol=5 * np.sqrt(1 / (samples + 1) / voxels))


def test_the_gap_tends_to_3_01_db():
    (row,) = study([sampled(np.random.default_rng(1), samples=120)])
    assert row["gap_db"] == pytest.approx(3.01, abs=0.12) and row["gap_samples"] == 120


def test_too_sure_and_biased_samplers_are_found():
    rng = np.random.default_rng(2)
    narrow, biased = study(
        [
            sampled(rng, samples=8, spread=0.4, method="narrow"),
            sampled(rng, samples=8, offset_hu=9.0, method="biased", one_step=False),
        ]
    )
    assert narrow["coverage"][1] < 0.65 and narrow["spread_skill"] < 0.5 and narrow["gap_db"] < 0.8
    assert narrow["rank_histogram"][0] > 0.2 and narrow["rank_histogram"][-1] > 0.2
    assert biased["rank_histogram"][0] > 3 * biased["rank_histogram"][-1]
    assert biased["mean_of_samples_minus_one_step_db"] is None and narrow["mean_of_samples_minus_one_step_db"] < 0.0


def test_patients_weigh_alike():
    rng = np.random.default_rng(3)
    exact = sampled(rng, samples=8, patient="a")
    narrow = sampled(rng, samples=8, spread=0.2, patient="b")
    alone = [study([case])[0]["coverage"][1] for case in (exact, narrow)]
    (row,) = study([exact, exact, exact, narrow])
    assert row["coverage"][1] == pytest.approx(np.mean(alone)) and row["n_patients"] == 2


def ends_of(row):
    return [
        row["coverage_low"],
        row["coverage_high"],
        *(row[f"{k}_{e}_db"] for k in ("gap", "loss") for e in ("low", "high")),
    ]


def test_intervals_are_students_over_the_patients_means():
    rng = np.random.default_rng(5)
    cases = [sampled(rng, samples=8, spread=s, patient=p) for s, p in ((1.0, "a"), (0.8, "b"), (0.6, "c"), (0.6, "c"))]
    (row,) = study(cases)
    # Each patient alone, of which the mean of two scans is one value.
    alone = [study([c for c in cases if c.patient_key == p])[0] for p in "abc"]
    assert all(end is None for one in alone for end in ends_of(one))
    for key, low, high in (
        ("gap_db", row["gap_low_db"], row["gap_high_db"]),
        ("mean_of_samples_minus_one_step_db", row["loss_low_db"], row["loss_high_db"]),
    ):
        expected = ttest_1samp([one[key] for one in alone], 0.0).confidence_interval(0.95)
        assert (low, high) == pytest.approx((expected.low, expected.high)) and low < row[key] < high
    for k in range(3):
        expected = ttest_1samp([one["coverage"][k] for one in alone], 0.0).confidence_interval(0.95)
        assert row["coverage_low"][k] == pytest.approx(max(expected.low, 0.0))
        assert row["coverage_high"][k] == pytest.approx(min(expected.high, 1.0))
    without = study(sampled(rng, samples=8, one_step=False, patient=p) for p in "ab")[0]
    assert without["loss_low_db"] is None and without["loss_high_db"] is None and without["gap_low_db"] is not None


def test_a_noisy_reference_is_right_for_who_draws_such_and_shows_others_as_too_narrow():
    rng, noise_hu = np.random.default_rng(6), 12.0
    exact = sampled(rng, samples=8)
    # What a sampler of full-dose images draws: a noise of its own in every sample, another in the reference.
    noisy_hu = exact.reference_hu + noise_hu * rng.standard_normal(SHAPE)
    drawn_hu = exact.samples_hu + noise_hu * rng.standard_normal(exact.samples_hu.shape)
    learnt, other = study(
        [
            replace(exact, method="full-dose images", samples_hu=drawn_hu, reference_hu=noisy_hu),
            replace(exact, method="truths", reference_hu=noisy_hu),
        ]
    )
    assert learnt["coverage"][1] == pytest.approx(0.9, abs=0.02) and other["coverage"][1] < 0.8


def test_bad_input_is_refused():
    rng = np.random.default_rng(4)
    with pytest.raises(ValueError, match="no case"):
        study([])
    with pytest.raises(ValueError, match="as many"):
        study([sampled(rng, samples=4), sampled(rng, samples=5)])
    good = sampled(rng, samples=2)
    with pytest.raises(ValueError, match="must agree"):
        SampledCase("g", "m", "p", good.samples_hu[:, :1], good.reference_hu, good.region, None)
    with pytest.raises(ValueError, match="bool mask"):
        SampledCase("g", "m", "p", good.samples_hu, good.reference_hu, np.zeros(SHAPE, bool), None)
