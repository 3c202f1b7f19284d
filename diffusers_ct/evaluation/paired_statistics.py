"""Paired statistics by patient: is one method better than another on the same patients, by how much, how surely.

The patient is the unit: slices and scans of one patient are averaged before they come here.

References:
    Hodges and Lehmann 1963, Ann. Math. Stat. 34(2) 598 (shift as the median of Walsh averages).
    Hollander, Wolfe and Chicken 2014, Nonparametric Statistical Methods, section 3.3 (its interval, eq. 3.22).
    Wilcoxon 1945, Biometrics Bull. 1(6) 80. Fisher 1935, The Design of Experiments, section 21 (sign flips).
    Holm 1979, Scand. J. Stat. 6(2) 65. Student 1908, Biometrika 6(1) 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ..metrics import Interval

# Up to here all 2^n sign flips are tried; beyond, Wilcoxon's test has a fine enough distribution.
LARGEST_EXACT = 12


@dataclass(frozen=True)
class PairedDifference:
    """A difference between two methods over the same patients.

    Attributes:
        difference: Hodges-Lehmann estimate with its interval.
        p: two-sided, against no difference.
        test: that gave p: "sign-flip, exact" or "Wilcoxon".
        patients: how many there were.
    """

    difference: Interval
    p: float
    test: str
    patients: int


def paired_difference(
    values: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray, *, level: float = 0.95
) -> PairedDifference:
    """Compares two methods by their values for each patient.

    Not exact about: the interval and both tests take the differences as symmetric about their middle.

    Args:
        values, others: (patients,), in the same order of patients.
        level: of the interval. Too few patients for it (fewer than 6 for 95 %) have an interval without ends.

    Raises:
        ValueError: for shapes that do not fit, no patient, values that are not finite, or a level outside (0, 1).
    """
    a, b = np.asarray(values, np.float64), np.asarray(others, np.float64)
    if a.ndim != 1 or a.shape != b.shape or not a.size:
        raise ValueError(f"Give one value a patient and method, got shapes {a.shape} and {b.shape}.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("Some values are not finite: a method that equals the reference has no PSNR to compare.")
    differences = a - b
    exact = len(differences) <= LARGEST_EXACT
    p = sign_flip_p(differences) if exact else _wilcoxon_p(differences)
    test = "sign-flip, exact" if exact else "Wilcoxon"
    return PairedDifference(hodges_lehmann(differences, level=level), p, test, len(differences))


def hodges_lehmann(differences: np.ndarray, *, level: float = 0.95) -> Interval:
    """The median of all means of two differences, with the interval that Wilcoxon's signed ranks give.

    Args:
        differences: (patients,).
        level: at least this much is covered, exactly for up to 50 patients, by the normal limit beyond.

    Raises:
        ValueError: for a level outside (0, 1).
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"`level` must be in (0, 1), got {level}.")
    d = np.asarray(differences, np.float64)
    n = len(d)
    first, second = np.triu_indices(n)
    walsh = np.sort((d[first] + d[second]) / 2)
    k = _largest_tail_count(n, (1 - level) / 2)
    ends = (-np.inf, np.inf) if k == 0 else (float(walsh[k - 1]), float(walsh[len(walsh) - k]))
    return Interval(float(np.median(walsh)), *ends)


def _largest_tail_count(n: int, tail: float) -> int:
    """The largest k with P(signed-rank sum <= k - 1) <= tail; 0 if there is none."""
    if n > 50:
        mean, deviation = n * (n + 1) / 4, np.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        return max(0, int(np.floor(mean + stats.norm.ppf(tail) * deviation)))
    ways = np.zeros(n * (n + 1) // 2 + 1)
    ways[0] = 1.0
    for rank in range(1, n + 1):  # each rank is in the sum or not
        ways[rank:] = ways[rank:] + ways[:-rank]
    return int(np.searchsorted(np.cumsum(ways) / 2.0**n, tail, side="right"))


def sign_flip_p(differences: np.ndarray) -> float:
    """Two-sided p of the mean difference among all 2^n choices of its signs.

    Args:
        differences: (patients,), at most 20 of them.

    Raises:
        ValueError: for none or for more than 20.
    """
    d = np.asarray(differences, np.float64)
    if not 1 <= len(d) <= 20:
        raise ValueError(f"All sign flips of {len(d)} differences are not tried: give 1 to 20.")
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums + value, sums - value])
    # flips that differ from the observed by rounding alone count as equal to it
    return float(np.mean(np.abs(sums) >= np.abs(d.sum()) * (1 - 1e-12) - 1e-300))


def _wilcoxon_p(differences: np.ndarray) -> float:
    return 1.0 if not np.any(differences) else float(stats.wilcoxon(differences).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for their number: rejecting those below a level errs anywhere with at most that chance."""
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * float(p[index])))
        adjusted[index] = largest
    return [float(value) for value in adjusted]


def mean_interval(values: Sequence[float] | np.ndarray, *, level: float = 0.95) -> Interval:
    """Mean over patients with Student's interval.

    Not exact about: values that are not normal. A bootstrap of patients is no better at the numbers that a test set has:
    of 8 normal values its percentiles cover 88 % where 95 % is asked for.

    Args:
        values: (patients,); of one, nothing can be said and the interval has no ends.
        level: of the interval.

    Raises:
        ValueError: if there is no value, one is not finite, or the level is outside (0, 1).
    """
    v = np.asarray(values, np.float64)
    if v.ndim != 1 or not v.size or not np.isfinite(v).all():
        raise ValueError("Give one finite value a patient.")
    if not 0.0 < level < 1.0:
        raise ValueError(f"`level` must be in (0, 1), got {level}.")
    mean = float(v.mean())
    if len(v) == 1:
        return Interval(mean, -np.inf, np.inf)
    half = float(stats.t.ppf(0.5 + level / 2, len(v) - 1) * v.std(ddof=1) / np.sqrt(len(v)))
    return Interval(mean, mean - half, mean + half)
