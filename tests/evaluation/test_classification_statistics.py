"""Statistics of classifiers against counts by hand, Gaussian closed forms and the variance of DeLong."""

from math import comb

import numpy as np
import pytest
from scipy.stats import norm

from diffusers_ct.evaluation.classification_statistics import (
    auc,
    exact_binomial_interval,
    paired_bootstrap,
    percentile_interval,
    sensitivity_at_specificity,
)


def cases(rng, n_positive: int, n_negative: int, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two unit Gaussians, shuffled, and the truth."""
    positive = rng.permutation(np.repeat([True, False], [n_positive, n_negative]))
    return rng.standard_normal(len(positive)) + distance * positive, positive


def delong_variance(scores: np.ndarray, positive: np.ndarray) -> float:
    """Variance of the AUC from its placement values: DeLong et al. 1988, doi:10.2307/2531595, eq. 4 to 6."""
    x, y = scores[positive][:, None], scores[~positive][None]
    wins = (x > y) + 0.5 * (x == y)
    return wins.mean(axis=1).var(ddof=1) / x.size + wins.mean(axis=0).var(ddof=1) / y.size


def test_auc_counts_pairs_with_ties_as_half():
    assert auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])) == 0.75
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 5, (3, 2, 40)), rng.random(40) < 0.3
    x, y = scores[..., positive, None], scores[..., None, ~positive]
    np.testing.assert_allclose(auc(scores, positive), ((x > y) + 0.5 * (x == y)).mean(axis=(-1, -2)), rtol=1e-12)


def test_auc_of_gaussians_is_the_closed_form():
    scores, positive = cases(np.random.default_rng(1), 40_000, 60_000, 1.3)
    assert auc(scores, positive) == pytest.approx(norm.cdf(1.3 / np.sqrt(2.0)), abs=0.004)
    assert auc(np.exp(scores), positive) == auc(scores, positive) == pytest.approx(1.0 - auc(-scores, positive))


def test_sensitivity_by_hand():
    scores = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 8.5, 9.0, 9.5, 11.0])
    positive = np.arange(14) >= 10
    # the threshold is the 9th of the ten negatives, 9.0: the positive that ties with it is not called
    assert sensitivity_at_specificity(scores, positive, 0.9) == 0.5
    assert sensitivity_at_specificity(scores, positive, 0.85) == 0.5  # of ten negatives, nine are the fewest
    assert sensitivity_at_specificity(scores, positive, 0.8) == 1.0
    assert sensitivity_at_specificity(scores, positive, 1.0) == 0.25
    hundred = np.concatenate([np.arange(100.0), [54.5]])
    assert sensitivity_at_specificity(hundred, np.arange(101) == 100, 0.55) == 1.0  # 55 of them, not 56


def test_sensitivity_of_gaussians_is_the_closed_form():
    scores, positive = cases(np.random.default_rng(2), 40_000, 60_000, 1.3)
    for specificity in (0.5, 0.9, 0.99):
        expected = norm.cdf(1.3 - norm.ppf(specificity))
        assert sensitivity_at_specificity(scores, positive, specificity) == pytest.approx(expected, abs=0.01)


def test_bootstrap_has_the_spread_of_delong():
    rng = np.random.default_rng(3)
    scores, positive = cases(rng, 60, 90, 1.0)
    values = paired_bootstrap(auc, scores[None, None], positive, resamples=1000, seed=0)
    assert values.shape == (1, 1000)
    assert values.std() == pytest.approx(np.sqrt(delong_variance(scores, positive)), rel=0.06)
    assert values.mean() == pytest.approx(auc(scores, positive), abs=0.005)
    again = paired_bootstrap(auc, scores[None, None], positive, resamples=1000, seed=0)
    np.testing.assert_array_equal(values, again)


def test_the_interval_leaves_as_much_below_as_above():
    assert percentile_interval(np.arange(101.0)) == pytest.approx((2.5, 97.5))
    assert percentile_interval(np.arange(101.0), 0.8) == pytest.approx((10.0, 90.0))


def test_bootstrap_interval_covers_the_truth():
    def distance(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
        return scores[..., positive].mean(axis=-1) - scores[..., ~positive].mean(axis=-1)

    rng = np.random.default_rng(4)
    covered = 0
    for seed in range(150):
        scores, positive = cases(rng, 50, 50, 1.0)
        values = paired_bootstrap(distance, scores[None, None], positive, resamples=100, seed=seed)
        low, high = percentile_interval(values[0])
        covered += low <= 1.0 <= high
    assert 132 <= covered <= 149  # 95 % of 150, within what chance, a small sample and few resamples allow


def test_bootstrap_is_paired_and_averages_runs():
    rng = np.random.default_rng(5)
    scores, positive = cases(rng, 50, 50, 1.0)
    runs = np.stack([scores, scores + 0.3 * rng.standard_normal(100)])
    unrelated, _ = cases(rng, 50, 50, 0.0)
    other = np.stack([unrelated + positive, unrelated + positive])
    values = paired_bootstrap(
        auc, np.stack([runs, 2.0 * runs + 1.0, runs[::-1], other]), positive, resamples=400, seed=0
    )
    np.testing.assert_array_equal(values[0], values[1])  # AUC does not see a change of scale: no difference at all
    np.testing.assert_allclose(values[0], values[2], rtol=1e-12)  # nor the order of the runs
    single = paired_bootstrap(auc, runs[:, None], positive, resamples=400, seed=0)
    np.testing.assert_allclose(values[0], single.mean(axis=0), rtol=1e-12)
    # two runs on the same patients differ less than two unrelated readers do
    assert (single[0] - single[1]).std() < 0.5 * (values[0] - values[3]).std()


def test_exact_interval_leaves_half_of_the_error_in_each_tail():
    assert exact_binomial_interval(0, 20) == pytest.approx((0.0, 1.0 - 0.025 ** (1 / 20)))
    assert exact_binomial_interval(20, 20) == pytest.approx((0.025 ** (1 / 20), 1.0))

    def at_least(k: int, n: int, p: float) -> float:
        return sum(comb(n, i) * p**i * (1.0 - p) ** (n - i) for i in range(k, n + 1))

    for hits, trials, level in ((3, 17, 0.95), (40, 48, 0.9)):
        low, high = exact_binomial_interval(hits, trials, level)
        assert at_least(hits, trials, low) == pytest.approx((1.0 - level) / 2)
        assert 1.0 - at_least(hits + 1, trials, high) == pytest.approx((1.0 - level) / 2)


def test_what_cannot_be_judged_is_refused():
    scores, positive = np.arange(4.0), np.array([True, False, True, False])
    for bad_scores, bad_positive, message in (
        (scores, positive[:3], "cases"),
        (scores, positive.astype(int), "bool"),
        (scores, np.ones(4, dtype=bool), "Both positive and negative"),
        (np.array([0.0, np.nan, 1.0, 2.0]), positive, "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            auc(bad_scores, bad_positive)
    with pytest.raises(ValueError, match="specificity"):
        sensitivity_at_specificity(scores, positive, 90.0)
    with pytest.raises(ValueError, match="methods, runs, patients"):
        paired_bootstrap(auc, scores, positive, resamples=10, seed=0)
