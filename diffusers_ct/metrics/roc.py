"""Area under the ROC curve (AUC) of ratings, with intervals that stay honest near 1.

The sampling unit is the case: ratings of two regions of one image, or of one patient, are not two independent cases.

References:
    DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44(3) 837, doi:10.2307/2531595 (variance, paired difference).
    Mann and Whitney 1947, doi:10.1214/aoms/1177730491 (AUC as a share of pairs).
    Hanley and McNeil 1982, Radiology 143(1) 29; Newcombe 2006, Stat. Med. 25(4) 559, method 5 (score interval).
    Newcombe 1998, Stat. Med. 17(8) 873, method 10; Zou and Donner 2008, Stat. Med. 27(10) 1693 (interval of a difference).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, stats
from scipy.stats import rankdata


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided interval."""

    estimate: float
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def auc(present: np.ndarray, absent: np.ndarray) -> np.ndarray:
    """Chance that a rating with the signal is above one without it, ties counting half (Mann and Whitney).

    Args:
        present: (..., cases) ratings, in any unit that rises with the signal.
        absent: (..., other cases) ratings, of the same readers.

    Returns:
        (...) in [0, 1]; a number for flat ratings.

    Raises:
        ValueError: for no case of a kind, ratings that are not finite, or shapes that differ but for the cases.
    """
    present, absent = _checked(present, absent)
    return _share_below(present, absent).mean(axis=-1)


def sensitivity_at_specificity(present: np.ndarray, absent: np.ndarray, specificity: float) -> np.ndarray:
    """Share of the cases with the signal above the lowest threshold that leaves `specificity` of those without below it.

    A case is called positive if its rating is strictly above the threshold, which is a rating of one of the absent: ties
    are never called, and no line is drawn between the points of the ROC curve. The threshold is that of these same
    cases, so a threshold fixed beforehand does a little worse in new ones.

    Args:
        present: (..., cases).
        absent: (..., other cases).
        specificity: asked for at least, in (0, 1].

    Returns:
        (...) in [0, 1].

    Raises:
        ValueError: as `auc`, and for a specificity out of its range.
    """
    if not 0.0 < specificity <= 1.0:
        raise ValueError(f"`specificity` must be in (0, 1], got {specificity}.")
    present, absent = _checked(present, absent)
    ordered = np.sort(absent, axis=-1)
    # 1e-9: 0.55 * 100 is 55.000000000000007 in floating point, which must not ask for a 56th case
    kept = int(np.ceil(specificity * ordered.shape[-1] - 1e-9))
    return (present > ordered[..., kept - 1 : kept]).mean(axis=-1)


def auc_interval(
    present: np.ndarray, absent: np.ndarray, *, method: Literal["delong", "newcombe"], level: float = 0.95
) -> Interval:
    """AUC with an interval over cases, for an observer that was fixed before these cases were seen.

    Args:
        present, absent: (cases,) ratings, independent of each other.
        method: "newcombe" is a score interval on the variance of Hanley and McNeil: it works at an AUC of 0 and 1 and for
            few cases. "delong" is distribution-free, on the logit scale, and refuses an AUC of exactly 0 or 1, whose
            variance it would call 0.
        level: of the interval.

    Raises:
        ValueError: as `auc`; fewer than 2 cases of a kind; a level outside (0, 1).
    """
    in_absent, in_present = _placements(present, absent)
    theta = float(in_absent.mean())
    if method == "newcombe":
        return newcombe_interval(theta, len(in_absent), len(in_present), level=level)
    if method != "delong":
        raise ValueError(f"`method` must be 'delong' or 'newcombe', got {method!r}.")
    _enough(in_absent, in_present)
    if theta in (0.0, 1.0):
        raise ValueError(f"The AUC is exactly {theta:.0f}: DeLong's variance is 0 there. Use method='newcombe'.")
    half = _quantile(level) * np.sqrt(_variance(in_absent, in_present)) / (theta * (1 - theta))
    logit = np.log(theta / (1 - theta))
    return Interval(theta, *(float(1 / (1 + np.exp(-(logit + side * half)))) for side in (-1, 1)))


def newcombe_interval(estimate: float, present_cases: int, absent_cases: int, *, level: float) -> Interval:
    """All AUCs that lie no more than z of their own standard errors from the estimate.

    Raises:
        ValueError: for an estimate outside [0, 1], no case of a kind, or a level outside (0, 1).
    """
    z = _quantile(level)
    if not 0.0 <= estimate <= 1.0 or min(present_cases, absent_cases) < 1:
        raise ValueError(f"An AUC of {estimate} from {present_cases} and {absent_cases} cases cannot be.")
    mean = max(0.5 * (present_cases + absent_cases) - 1, 0.0)

    def excess(t: float, side: int) -> float:
        spread = t * (1 - t) * (1 + mean * (1 - t) / (2 - t) + mean * t / (1 + t)) / (present_cases * absent_cases)
        return side * (t - estimate) - z * np.sqrt(spread)

    # At an estimate of exactly 0 or 1 `excess` is 0 too, which is not the root that is sought: step inside.
    inner = min(max(estimate, 1e-9), 1 - 1e-9)
    low = 0.0 if estimate == 0 else float(optimize.brentq(excess, 0.0, inner, args=(-1,)))
    high = 1.0 if estimate == 1 else float(optimize.brentq(excess, inner, 1.0, args=(1,)))
    return Interval(float(estimate), low, high)


def auc_difference(
    present: np.ndarray,
    absent: np.ndarray,
    other_present: np.ndarray,
    other_absent: np.ndarray,
    *,
    level: float = 0.95,
) -> Interval:
    """AUC minus the other's AUC on the same cases (two methods, one set of realisations), by DeLong's covariance.

    Args:
        present, absent: (cases,) ratings of one method's images.
        other_present, other_absent: of the other's, in the same order of cases.

    Raises:
        ValueError: as `auc`; for other numbers of cases, or fewer than 2 of a kind.
    """
    z = _quantile(level)
    if len(present) != len(other_present) or len(absent) != len(other_absent):
        raise ValueError("A paired difference needs the same cases of both methods, in the same order.")
    one, other = _placements(present, absent), _placements(other_present, other_absent)
    _enough(*one)
    difference = float(one[0].mean() - other[0].mean())
    sd = np.sqrt(_variance(one[0] - other[0], one[1] - other[1]))
    return Interval(difference, difference - z * sd, difference + z * sd)


def difference_of_intervals(one: Interval, other: Interval) -> Interval:
    """One estimate minus the other, with the interval that their own intervals give (square and add).

    It keeps a width at an AUC of 0 or 1, where DeLong's variance and every bootstrap have none.

    Not exact about: estimates of the same cases, for which it is too wide: it takes them as independent.
    """
    difference = one.estimate - other.estimate
    below = np.hypot(one.estimate - one.low, other.high - other.estimate)
    above = np.hypot(one.high - one.estimate, other.estimate - other.low)
    return Interval(difference, float(difference - below), float(difference + above))


def draw_counts(cases: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(resamples, cases): how often each case comes in a draw of as many with replacement."""
    drawn = rng.integers(cases, size=(resamples, cases)) + cases * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * cases).reshape(resamples, cases)


def resampled_auc(
    present: np.ndarray, absent: np.ndarray, present_counts: np.ndarray, absent_counts: np.ndarray
) -> np.ndarray:
    """(resamples,) AUCs of cases that count several times or not at all, ties counting half.

    Args:
        present, absent: (cases,), or (resamples, cases) where each resample has an observer of its own.
        present_counts, absent_counts: (resamples, cases), such as from `draw_counts`.
    """
    pairs = present_counts.sum(axis=1) * absent_counts.sum(axis=1)
    wins = _wins(present, absent, present_counts, absent_counts)
    losses = _wins(absent, present, absent_counts, present_counts)
    return 0.5 * (1.0 + (wins - losses) / pairs)


def _wins(above: np.ndarray, below: np.ndarray, above_counts: np.ndarray, below_counts: np.ndarray) -> np.ndarray:
    """(resamples,) pairs in which a rating of the first kind is strictly above one of the second."""
    # The first kind stands first among equals, so that what it ties with comes after it.
    ratings = np.concatenate(
        [np.broadcast_to(above, above_counts.shape), np.broadcast_to(below, below_counts.shape)], axis=1
    )
    order = np.argsort(ratings, axis=1, kind="stable")
    as_above = np.take_along_axis(np.pad(above_counts, ((0, 0), (0, below_counts.shape[1]))), order, axis=1)
    as_below = np.take_along_axis(np.pad(below_counts, ((0, 0), (above_counts.shape[1], 0))), order, axis=1)
    return np.sum(as_above * as_below.cumsum(axis=1), axis=1)


def d_prime_of_auc(value: float | np.ndarray) -> np.ndarray:
    """Detectability d'_A = sqrt(2) Phi^-1(AUC); infinite at 1."""
    return np.sqrt(2) * stats.norm.ppf(value)


def auc_of_d_prime(value: float | np.ndarray) -> np.ndarray:
    """AUC = Phi(d' / sqrt(2)), of normal ratings of equal variance."""
    return stats.norm.cdf(np.asarray(value) / np.sqrt(2))


def _checked(present: np.ndarray, absent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    present, absent = np.asarray(present, np.float64), np.asarray(absent, np.float64)
    for name, ratings in (("present", present), ("absent", absent)):
        if not ratings.ndim or not ratings.shape[-1] or not np.isfinite(ratings).all():
            raise ValueError(f"`{name}` must be finite ratings (..., cases), one at least, got {ratings.shape}.")
    if present.shape[:-1] != absent.shape[:-1]:
        raise ValueError(f"`present` {present.shape} and `absent` {absent.shape} may differ in the last axis only.")
    return present, absent


def _share_below(ratings: np.ndarray, among: np.ndarray) -> np.ndarray:
    """(..., cases) share of `among` (..., other cases) below each rating, ties counting half.

    A rating's rank among both kinds, less its rank among its own, is the number of the others below it.
    """
    ranks = rankdata(np.concatenate([ratings, among], axis=-1), axis=-1)[..., : ratings.shape[-1]]
    return (ranks - rankdata(ratings, axis=-1)) / among.shape[-1]


def _placements(present: np.ndarray, absent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of absent ratings below each present one, and share of present ratings above each absent one."""
    present, absent = _checked(present, absent)
    if present.ndim != 1:
        raise ValueError(f"An interval is of ratings of one reader, (cases,), got {present.shape}.")
    return _share_below(present, absent), 1.0 - _share_below(absent, present)


def _variance(in_absent: np.ndarray, in_present: np.ndarray) -> float:
    return float(in_absent.var(ddof=1) / len(in_absent) + in_present.var(ddof=1) / len(in_present))


def _enough(in_absent: np.ndarray, in_present: np.ndarray) -> None:
    if min(len(in_absent), len(in_present)) < 2:
        raise ValueError("A variance needs 2 cases with the signal and 2 without, at least.")


def _quantile(level: float) -> float:
    if not 0.0 < level < 1.0:
        raise ValueError(f"`level` must be in (0, 1), got {level}.")
    return float(stats.norm.ppf(0.5 + level / 2))
