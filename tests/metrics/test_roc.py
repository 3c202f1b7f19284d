"""AUC and sensitivity against counts by hand and Gaussian closed forms."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from diffusers_ct.metrics.roc import (
    Interval,
    auc,
    auc_interval,
    difference_of_intervals,
    resampled_auc,
    sensitivity_at_specificity,
)


def test_auc_counts_pairs_with_ties_as_half():
    assert auc(np.array([0.35, 0.8]), np.array([0.1, 0.4])) == 0.75
    rng = np.random.default_rng(0)
    present, absent = rng.integers(0, 5, (3, 2, 12)), rng.integers(0, 5, (3, 2, 28))
    x, y = present[..., None], absent[..., None, :]
    np.testing.assert_allclose(auc(present, absent), ((x > y) + 0.5 * (x == y)).mean(axis=(-1, -2)), rtol=1e-12)


def test_auc_of_gaussians_is_the_closed_form():
    rng = np.random.default_rng(1)
    present, absent = rng.standard_normal(40_000) + 1.3, rng.standard_normal(60_000)
    assert auc(present, absent) == pytest.approx(norm.cdf(1.3 / np.sqrt(2.0)), abs=0.004)
    assert auc(np.exp(present), np.exp(absent)) == auc(present, absent)
    assert auc(present, absent) == pytest.approx(1.0 - auc(-present, -absent))


def test_sensitivity_by_hand():
    absent, present = np.arange(1.0, 11.0), np.array([8.5, 9.0, 9.5, 11.0])
    # the threshold is the 9th of the ten absent, 9.0: the present that ties with it is not called
    assert sensitivity_at_specificity(present, absent, 0.9) == 0.5
    assert sensitivity_at_specificity(present, absent, 0.85) == 0.5  # of ten, nine are the fewest
    assert sensitivity_at_specificity(present, absent, 0.8) == 1.0
    assert sensitivity_at_specificity(present, absent, 1.0) == 0.25
    assert sensitivity_at_specificity(np.array([54.5]), np.arange(100.0), 0.55) == 1.0  # 55 of them, not 56


def test_sensitivity_of_gaussians_is_the_closed_form():
    rng = np.random.default_rng(2)
    present, absent = rng.standard_normal(40_000) + 1.3, rng.standard_normal(60_000)
    for specificity in (0.5, 0.9, 0.99):
        expected = norm.cdf(1.3 - norm.ppf(specificity))
        assert sensitivity_at_specificity(present, absent, specificity) == pytest.approx(expected, abs=0.01)


def test_a_resample_is_the_auc_of_the_cases_drawn_ties_and_all():
    rng = np.random.default_rng(3)
    present, absent = rng.integers(0, 6, 15) + 1, rng.integers(0, 6, 20)
    counts = rng.integers(0, 3, (50, 15)), rng.integers(0, 3, (50, 20))
    expected = [auc(np.repeat(present, p), np.repeat(absent, a)) for p, a in zip(*counts)]
    np.testing.assert_allclose(resampled_auc(present, absent, *counts), expected, rtol=1e-12)
    # an observer of its own in each resample
    own = rng.integers(0, 6, (50, 15))
    expected = [auc(np.repeat(o, p), np.repeat(absent, a)) for o, p, a in zip(own, *counts)]
    np.testing.assert_allclose(resampled_auc(own, absent, *counts), expected, rtol=1e-12)


def test_two_intervals_make_that_of_the_difference():
    def wilson(events: int, trials: int) -> Interval:
        found = binomtest(events, trials).proportion_ci(0.95, method="wilson")
        return Interval(events / trials, found.low, found.high)

    # Newcombe 1998, table II, method 10, the first two examples
    for one, other, low, high in (((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090)):
        found = difference_of_intervals(wilson(*one), wilson(*other))
        assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)
        back = difference_of_intervals(wilson(*other), wilson(*one))
        assert (back.low, back.high) == pytest.approx((-high, -low), abs=6e-5)


def test_what_cannot_be_judged_is_refused():
    scores = np.arange(4.0)
    for present, absent, message in (
        (scores, scores[:0], "`absent` must be finite ratings"),
        (np.array([0.0, np.nan]), scores, "`present` must be finite ratings"),
        (scores[None], np.zeros((2, 4)), "last axis only"),
    ):
        with pytest.raises(ValueError, match=message):
            auc(present, absent)
    with pytest.raises(ValueError, match="specificity"):
        sensitivity_at_specificity(scores, scores, 90.0)
    with pytest.raises(ValueError, match="one reader"):
        auc_interval(scores[None], scores[None], method="newcombe")
