"""Intervals and tests against enumeration, SciPy, printed tables and the level that they promise."""

import itertools

import numpy as np
import pytest
from scipy import stats

from diffusers_ct.evaluation.paired_statistics import (
    hodges_lehmann,
    holm,
    mean_interval,
    paired_difference,
    sign_flip_p,
)


def test_a_shift_is_found_and_its_interval_is_that_of_the_tables():
    # Hollander, Wolfe and Chicken, example 3.1 (Hamilton depression scale, 9 patients): estimate -0.46,
    # interval of 96.1 % (-0.786, -0.010)
    before = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    after = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    result = hodges_lehmann(np.subtract(after, before), level=0.95)
    assert result.estimate == pytest.approx(-0.46, abs=0.001)
    assert (result.low, result.high) == pytest.approx((-0.786, -0.010), abs=0.001)


@pytest.mark.parametrize("n", [6, 9, 12, 25])
def test_the_interval_ends_where_wilcoxons_test_rejects(n):
    d = np.random.default_rng(n).normal(0.3, 1.0, n)
    interval = hodges_lehmann(d, level=0.95)
    for end, inwards in ((interval.low, 1e-9), (interval.high, -1e-9)):
        p_inside = stats.wilcoxon(d - end - inwards, method="exact").pvalue
        p_outside = stats.wilcoxon(d - end + inwards, method="exact").pvalue
        assert p_outside <= 0.05 < p_inside


def test_five_patients_have_no_interval_of_95_percent_and_six_have():
    assert hodges_lehmann(np.arange(5.0)).low == -np.inf
    six = hodges_lehmann(np.arange(6.0))
    assert (six.low, six.high) == (0.0, 5.0)  # 2/64 lie outside


def test_beyond_fifty_patients_the_limit_law_takes_over_without_a_step():
    d = np.random.default_rng(0).normal(0.0, 1.0, 51)
    a, b = hodges_lehmann(d), hodges_lehmann(d[:50])
    assert a.high - a.low == pytest.approx(b.high - b.low, rel=0.15)


def test_the_interval_covers_what_it_promises():
    rng = np.random.default_rng(1)
    covered = sum(2.0 in hodges_lehmann(rng.normal(2.0, 1.0, 10), level=0.9) for _ in range(2000))
    # P(T <= 10) = 0.0420 on each side for n = 10
    assert stats.binomtest(covered, 2000, 1 - 2 * 0.0420).pvalue > 1e-3


def test_sign_flips_are_all_counted():
    d = np.array([0.3, -0.1, 0.7, 0.4])
    flips = [abs(np.dot(signs, d)) for signs in itertools.product((1, -1), repeat=4)]
    assert sign_flip_p(d) == np.mean(np.array(flips) >= abs(d.sum()) - 1e-12)
    assert sign_flip_p(np.full(6, 0.2)) == 2 / 64
    assert sign_flip_p(np.zeros(3)) == 1.0
    independent = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(d) == pytest.approx(independent.pvalue)
    with pytest.raises(ValueError, match="1 to 20"):
        sign_flip_p(np.zeros(21))


def test_holm_adjusts_as_in_the_paper():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_test_depends_on_the_number_of_patients():
    rng = np.random.default_rng(2)
    few, many = rng.normal(1, 1, 12), rng.normal(1, 1, 13)
    assert paired_difference(few, np.zeros(12)).test == "sign-flip, exact"
    result = paired_difference(many, np.zeros(13))
    assert (result.test, result.patients) == ("Wilcoxon", 13)
    assert result.p == pytest.approx(stats.wilcoxon(many).pvalue)
    assert paired_difference(np.zeros(13), np.zeros(13)).p == 1.0


@pytest.mark.parametrize(
    ("a", "b", "says"), [([1.0], [1.0, 2.0], "shapes"), ([], [], "shapes"), ([np.inf], [1.0], "not finite")]
)
def test_what_cannot_be_compared_is_refused(a, b, says):
    with pytest.raises(ValueError, match=says):
        paired_difference(a, b)


def test_the_interval_of_a_mean_is_students_and_covers_what_it_says():
    values = np.random.default_rng(3).normal(5.0, 2.0, 7)
    interval = mean_interval(values)
    independent = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (interval.estimate, interval.low, interval.high) == pytest.approx((values.mean(), *independent))
    draws = np.random.default_rng(4).normal(0.0, 1.0, (3000, 3))
    covered = sum(0.0 in mean_interval(row) for row in draws)
    assert stats.binomtest(covered, 3000, 0.95).pvalue > 1e-3
    assert mean_interval([1.0]).high == np.inf
    with pytest.raises(ValueError, match="finite"):
        mean_interval([np.nan])
