"""Posterior calibration against what is known exactly of Gaussians, and of any posterior."""

import numpy as np
import pytest
from scipy import stats

from diffusers_ct.metrics.calibration import (
    central_interval,
    coverage,
    crps,
    expected_gap_db,
    median_interval,
    rank_histogram,
    sample_to_mean_gap_db,
    spread_skill_ratio,
)


def posterior(n_samples, n, *, spread=1.0, shift=0.0, seed=0):
    """Gaussian prior N(0, 30^2) seen through noise of 20 HU: the posterior of each voxel is known exactly."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 30, n)
    seen = truth + rng.normal(0, 20, n)
    gain = 30**2 / (30**2 + 20**2)
    sd = 20 * np.sqrt(gain)
    samples = gain * seen + shift + spread * sd * rng.normal(size=(n_samples, n))
    return samples, truth, gain * seen, sd


@pytest.mark.parametrize(("n_samples", "level"), [(3, 0.5), (19, 0.5), (19, 0.9), (39, 0.95)])
def test_order_intervals_hold_the_truth_as_often_as_they_say(n_samples, level):
    samples, truth, *_ = posterior(n_samples, 40_000)
    lower, upper = central_interval(samples, level=level, intervals="order")
    share = np.mean((lower <= truth) & (truth <= upper))
    assert share == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / truth.size))


@pytest.mark.parametrize("n_samples", [2, 8])
def test_gaussian_intervals_are_exact_with_few_samples(n_samples):
    samples, truth, *_ = posterior(n_samples, 40_000)
    for level in (0.5, 0.9, 0.95):
        lower, upper = central_interval(samples, level=level, intervals="gaussian")
        share = np.mean((lower <= truth) & (truth <= upper))
        assert share == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / truth.size))


def test_order_intervals_are_exact_for_a_skewed_posterior_where_gaussian_ones_are_not():
    rng = np.random.default_rng(0)
    draws = rng.exponential(10, (20, 40_000)) ** 2
    samples, truth = draws[:-1], draws[-1]
    shares = {}
    for intervals in ("order", "gaussian"):
        lower, upper = central_interval(samples, level=0.5, intervals=intervals)
        shares[intervals] = np.mean((lower <= truth) & (truth <= upper))
    assert shares["order"] == pytest.approx(0.5, abs=0.01)
    assert shares["gaussian"] > 0.65


def test_coverage_of_samples_that_are_too_sure_is_the_closed_form():
    """Half the spread: with many samples the 90 % interval is m +- 1.645 sd/2, and holds 2 Phi(0.822) - 1."""
    samples, truth, *_ = posterior(399, 20_000, spread=0.5)
    found = coverage([samples], [truth], level=0.9, intervals="order", confidence=0.95).coverage
    assert found == pytest.approx(2 * stats.norm.cdf(stats.norm.ppf(0.95) / 2) - 1, abs=0.012)


def test_confidence_intervals_count_patients():
    patients = [posterior(19, 500, seed=k)[:2] for k in range(12)]
    samples, truth = zip(*patients)
    found = coverage(samples, truth, level=0.9, intervals="order", confidence=0.95)
    assert found.interval_of == "median patient"
    assert found.coverage == pytest.approx(np.mean(found.by_patient)) == pytest.approx(0.9, abs=0.02)
    # n = 12: P(Binomial(12, 1/2) < 3) = 79/4096, so the 3rd smallest and 3rd largest give 96.1 %
    assert found.interval == (np.sort(found.by_patient)[2], np.sort(found.by_patient)[9])
    few = coverage(samples[:5], truth[:5], level=0.9, intervals="order", confidence=0.95)
    assert few.interval is None
    k = 5  # a voxel that 11 of the 12 intervals hold
    lesions = coverage(
        [s[:, k : k + 1] for s in samples], [t[k : k + 1] for t in truth], level=0.9, intervals="order", confidence=0.95
    )
    assert lesions.interval_of == "share of patients"
    # 11 of 12: the bounds solve P(X >= 11) = 0.025 and P(X <= 11) = 1 - u^12 = 0.025
    assert lesions.by_patient.sum() == 11
    assert stats.binom.sf(10, 12, lesions.interval[0]) == pytest.approx(0.025)
    assert lesions.interval[1] == pytest.approx(0.975 ** (1 / 12))


def test_median_interval_holds_the_median_as_often_as_it_says():
    values = np.random.default_rng(0).exponential(1.0, (1500, 12))
    inside = [low <= np.log(2) <= high for low, high in (median_interval(v, confidence=0.95) for v in values)]
    assert np.mean(inside) == pytest.approx(1 - 2 * 79 / 4096, abs=0.015)


@pytest.mark.parametrize("n_samples", [2, 5, 20])
def test_crps_has_the_gaussian_expectation_with_any_number_of_samples(n_samples):
    """Gneiting and Raftery 2007, section 4.2: sigma (z (2 Phi(z) - 1) + 2 phi(z) - 1/sqrt(pi))."""
    samples, truth, mean, sd = posterior(n_samples, 60_000)
    z = (truth - mean) / sd
    exact = sd * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))
    found = crps(samples, truth)
    assert found.mean() == pytest.approx(exact.mean(), abs=4 * (found - exact).std() / np.sqrt(truth.size))


def test_crps_is_the_double_sum():
    rng = np.random.default_rng(0)
    samples, truth = rng.normal(size=(6, 4, 5)), rng.normal(size=(4, 5))
    pairs = sum(np.abs(a - b) for a in samples for b in samples) / (2 * 6 * 5)
    np.testing.assert_allclose(crps(samples, truth), np.abs(samples - truth).mean(axis=0) - pairs, atol=1e-12)


def test_spread_skill_is_one_if_calibrated():
    assert spread_skill_ratio(*posterior(4, 60_000)[:2]) == pytest.approx(1.0, abs=0.01)
    # spread 1/2 of s = sd: sqrt((1 + 1/4) (1/4) / (1 + 1/16))
    expected = np.sqrt(1.25 * 0.25 / (1 + 0.25 / 4))
    assert spread_skill_ratio(*posterior(4, 60_000, spread=0.5)[:2]) == pytest.approx(expected, abs=0.01)


def test_rank_histogram_is_flat_only_if_calibrated():
    p_values = [rank_histogram(*posterior(7, 800, seed=s)[:2], seed=0).p_value for s in range(200)]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    narrow = rank_histogram(*posterior(7, 800, spread=0.5)[:2], seed=0)
    assert narrow.p_value < 1e-6 and narrow.counts[[0, -1]].min() > 2 * narrow.counts[3:5].max()
    shifted = rank_histogram(*posterior(7, 800, shift=10.0)[:2], seed=0)
    assert shifted.p_value < 1e-6 and shifted.counts[0] > 2 * shifted.counts[-1]


def test_ties_get_a_random_rank():
    found = rank_histogram(np.zeros((4, 5000)), np.zeros(5000), seed=0)
    assert found.counts.sum() == 5000 and found.p_value > 1e-3


def test_the_three_decibel_law():
    assert [round(expected_gap_db(s), 2) for s in (1, 2, 4, 8)] == [0.0, 1.25, 2.04, 2.5]
    assert expected_gap_db(10**9) == pytest.approx(3.0103, abs=1e-4)
    for n_samples in (2, 4, 8):
        gap = sample_to_mean_gap_db(*posterior(n_samples, 100_000)[:2])
        assert gap == pytest.approx(expected_gap_db(n_samples), abs=0.03)
    # against the posterior mean itself, which is known here
    samples, truth, mean, _ = posterior(1, 200_000)
    gap = 10 * np.log10(np.mean((samples - truth) ** 2) / np.mean((mean - truth) ** 2))
    assert gap == pytest.approx(3.01, abs=0.04)


def test_the_law_holds_for_a_posterior_that_is_not_gaussian_and_fails_for_copies():
    rng = np.random.default_rng(0)
    draws = np.where(rng.random((9, 100_000)) < 0.2, 100.0, 0.0)  # a lesion is there or not
    assert sample_to_mean_gap_db(draws[1:], draws[0]) == pytest.approx(expected_gap_db(8), abs=0.03)
    mean = posterior(2, 10_000)[2]
    truth = posterior(2, 10_000)[1]
    assert sample_to_mean_gap_db(np.stack([mean, mean]), truth) == pytest.approx(0.0, abs=1e-9)


def test_refusals():
    samples, truth = np.random.default_rng(0).normal(size=(8, 100)), np.zeros(100)
    with pytest.raises(ValueError, match=r"0\.3333, 0\.5556, 0\.7778"):
        central_interval(samples, level=0.9, intervals="order")
    with pytest.raises(ValueError, match="intervals"):
        central_interval(samples, level=0.9, intervals="quantile")
    with pytest.raises(TypeError):
        central_interval(samples, level=0.9)
    with pytest.raises(ValueError, match="2 samples"):
        crps(samples[:1], truth)
    with pytest.raises(ValueError, match="needed for this truth"):
        crps(samples, truth[:50])
    with pytest.raises(ValueError, match="not finite"):
        crps(samples, np.full(100, np.nan))
    with pytest.raises(ValueError, match="at least for a chi-square"):
        rank_histogram(samples[:, :30], truth[:30], seed=0)
    with pytest.raises(ValueError, match="no error"):
        spread_skill_ratio(np.zeros((2, 5)), np.zeros(5))
    with pytest.raises(ValueError, match="each patient"):
        coverage([], [], level=0.5, intervals="order", confidence=0.95)
    with pytest.raises(ValueError, match="confidence"):
        coverage([samples], [truth], level=7 / 9, intervals="order", confidence=95)
