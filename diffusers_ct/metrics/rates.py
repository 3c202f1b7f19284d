"""A share of events with its exact interval."""

from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Rate:
    """Events among trials with their exact interval, for independent trials."""

    events: int
    trials: int
    low: float
    high: float

    @property
    def estimate(self) -> float:
        return self.events / self.trials


def binomial_rate(events: int, trials: int, *, level: float = 0.95) -> Rate:
    """A rate with the interval of Clopper and Pearson, which covers it with `level` at least, whatever it is.

    Raises:
        ValueError: for no trial, more events than trials, or a level outside (0, 1).

    References:
        Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404.
    """
    if trials < 1 or not 0 <= events <= trials or not 0.0 < level < 1.0:
        raise ValueError(f"{events} events in {trials} trials at a level of {level} make no rate.")
    interval = stats.binomtest(events, trials).proportion_ci(level, method="exact")
    return Rate(events, trials, float(interval.low), float(interval.high))
