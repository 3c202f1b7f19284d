"""Exact intervals by their definition, with tails counted by hand."""

from math import comb

import pytest
from scipy import stats

from diffusers_ct.metrics.rates import binomial_rate


def test_half_of_the_error_lies_in_each_tail():
    assert (binomial_rate(0, 20).low, binomial_rate(0, 20).high) == pytest.approx((0.0, 1.0 - 0.025 ** (1 / 20)))
    assert (binomial_rate(20, 20).low, binomial_rate(20, 20).high) == pytest.approx((0.025 ** (1 / 20), 1.0))

    def at_least(k: int, n: int, p: float) -> float:
        return sum(comb(n, i) * p**i * (1.0 - p) ** (n - i) for i in range(k, n + 1))

    for events, trials, level in ((3, 17, 0.95), (7, 30, 0.95), (40, 48, 0.9)):
        rate = binomial_rate(events, trials, level=level)
        assert rate.estimate == events / trials
        assert at_least(events, trials, rate.low) == pytest.approx((1.0 - level) / 2)
        assert 1.0 - at_least(events + 1, trials, rate.high) == pytest.approx((1.0 - level) / 2)


def test_the_interval_covers_with_its_level_at_least():
    rates = [binomial_rate(k, 30) for k in range(31)]
    coverage = sum(stats.binom.pmf(k, 30, 0.1) for k, rate in enumerate(rates) if rate.low <= 0.1 <= rate.high)
    assert 0.95 <= coverage < 1.0


def test_what_is_no_rate_is_refused():
    for events, trials, level in ((3, 2, 0.95), (-1, 2, 0.95), (0, 0, 0.95), (1, 2, 95.0)):
        with pytest.raises(ValueError, match="no rate"):
            binomial_rate(events, trials, level=level)
