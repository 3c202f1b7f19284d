"""Bootstrap over patients: how much a result owes to which patients were judged.

References:
    Efron and Tibshirani 1993, "An introduction to the bootstrap", doi:10.1201/9780429246593, chapter 13.
"""

from collections.abc import Callable, Sequence

import numpy as np

from .roc import draw_counts

# (ratings with the signal (..., cases), without (..., other cases)) -> (...)
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


def paired_bootstrap(
    statistic: Statistic, present: np.ndarray, absent: np.ndarray, *, resamples: int, seed: int
) -> np.ndarray:
    """A statistic in bootstrap resamples of the patients, the same resamples for all methods.

    Patients with and without the signal are resampled apart, so that their numbers stay. Each method's statistic is
    averaged over its training runs within a resample. Because the methods share the resamples, the difference of two
    rows is the paired bootstrap of their difference. What varies is the patients: the spread between training runs is
    not in it.

    Args:
        statistic: of the ratings of both kinds, such as `auc`.
        present: (methods, runs, patients), one case a patient.
        absent: (methods, runs, other patients).
        resamples: how many.
        seed: of the resampling.

    Returns:
        (methods, resamples).

    Raises:
        ValueError: as the statistic, or for ratings of another number of dimensions.
    """
    present, absent = np.asarray(present), np.asarray(absent)
    if present.ndim != 3 or absent.ndim != 3:
        raise ValueError(f"Ratings must be (methods, runs, patients), got {present.shape} and {absent.shape}.")
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        drawn = [kind[..., rng.integers(kind.shape[-1], size=kind.shape[-1])] for kind in (present, absent)]
        values.append(statistic(*drawn).mean(axis=1))
    return np.stack(values, axis=1)


def draw_patients(patients: Sequence[str], present: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """How often each case comes in bootstrap resamples of the patients; all cases of a patient come together.

    Patients with the signal alone, without it alone, and with cases of both kinds are resampled apart, so that no
    resample lacks a kind. For `resampled_auc`.

    Args:
        patients: of each case.
        present: (cases,) bool, the truth.
        resamples: how many.
        seed: of the resampling.

    Returns:
        (resamples, cases) counts.

    Raises:
        ValueError: for a truth that is not bool or not of these cases, or without cases of both kinds.
    """
    present = np.asarray(present)
    if present.dtype != bool or present.shape != (len(patients),):
        raise ValueError(f"`present` must be bool of {len(patients)} cases, got {present.dtype} {present.shape}.")
    if present.all() or not present.any():
        raise ValueError("Cases with and without the signal are needed.")
    _, of_case = np.unique(np.asarray(patients), return_inverse=True)
    has = np.array([(present[of_case == k].any(), (~present[of_case == k]).any()) for k in range(of_case.max() + 1)])
    rng = np.random.default_rng(seed)
    counts = np.empty((resamples, len(has)), dtype=np.int64)
    for kind in np.unique(has, axis=0):
        members = np.flatnonzero((has == kind).all(axis=1))
        counts[:, members] = draw_counts(len(members), resamples, rng)
    return counts[:, of_case]


def percentile_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of bootstrap values (resamples,).

    Not exact in small samples, and of no width where every resample agrees: an AUC of 1 has the interval (1, 1).
    """
    low, high = np.quantile(values, [(1.0 - level) / 2, (1.0 + level) / 2])
    return float(low), float(high)
