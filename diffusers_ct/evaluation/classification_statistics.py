"""What a yes-or-no classifier's scores are worth, and how sure that is: AUC, sensitivity, intervals."""

from collections.abc import Callable

import numpy as np
from scipy.stats import binomtest, rankdata

# (scores (..., cases), positive bool (cases,)) -> (...)
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


def auc(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: the probability that a positive case scores above a negative one, ties counting half.

    Args:
        scores: (..., cases), in any unit that rises with the finding.
        positive: (cases,) bool, the truth.

    Returns:
        (...) in [0, 1].

    Raises:
        ValueError: for shapes that do not fit, scores that are NaN, or a set without positives or without negatives.

    References:
        Mann and Whitney 1947, doi:10.1214/aoms/1177730491; Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747.
    """
    scores, positive = _checked(scores, positive)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    rank_sum = rankdata(scores, axis=-1)[..., positive].sum(axis=-1)
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def sensitivity_at_specificity(scores: np.ndarray, positive: np.ndarray, specificity: float) -> np.ndarray:
    """Share of the positives above the lowest threshold that leaves at least `specificity` of the negatives below it.

    A case is called positive if its score is strictly above the threshold, which is a score of one of the negatives:
    ties are never called, and no line is drawn between the points of the ROC curve. The threshold is that of these
    same cases, so a threshold fixed beforehand does a little worse in new ones.

    Args:
        scores: (..., cases).
        positive: (cases,) bool, the truth.
        specificity: asked for, in (0, 1].

    Returns:
        (...) in [0, 1].

    Raises:
        ValueError: as `auc`, and for a specificity out of its range.
    """
    if not 0.0 < specificity <= 1.0:
        raise ValueError(f"`specificity` must be in (0, 1], got {specificity}.")
    scores, positive = _checked(scores, positive)
    negatives = np.sort(scores[..., ~positive], axis=-1)
    # 1e-9: 0.55 * 100 is 55.000000000000007 in floating point, which must not ask for a 56th negative
    kept = int(np.ceil(specificity * negatives.shape[-1] - 1e-9))
    return (scores[..., positive] > negatives[..., kept - 1 : kept]).mean(axis=-1)


def paired_bootstrap(
    statistic: Statistic, scores: np.ndarray, positive: np.ndarray, *, resamples: int, seed: int
) -> np.ndarray:
    """A statistic in bootstrap resamples of the patients, the same resamples for all methods.

    Positives and negatives are resampled apart, so that their numbers stay. Each method's statistic is averaged over
    its training runs within a resample. Because the methods share the resamples, the difference of two rows is the
    paired bootstrap of their difference. What varies is the patients: the spread between training runs is not in it.

    Args:
        statistic: of scores (..., cases) and the truth.
        scores: (methods, runs, patients), one case a patient.
        positive: (patients,) bool, the truth.
        resamples: how many.
        seed: of the resampling.

    Returns:
        (methods, resamples).

    Raises:
        ValueError: as `auc`, or for scores of another number of dimensions.

    References:
        Efron and Tibshirani 1993, "An introduction to the bootstrap", doi:10.1201/9780429246593, chapter 13.
    """
    scores, positive = _checked(scores, positive)
    if scores.ndim != 3:
        raise ValueError(f"`scores` must be (methods, runs, patients), got the shape {scores.shape}.")
    rng = np.random.default_rng(seed)
    groups = np.flatnonzero(positive), np.flatnonzero(~positive)
    truth = np.repeat([True, False], [len(group) for group in groups])
    values = []
    for _ in range(resamples):
        drawn = np.concatenate([rng.choice(group, len(group)) for group in groups])
        values.append(statistic(scores[..., drawn], truth).mean(axis=1))
    return np.stack(values, axis=1)


def percentile_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of bootstrap values (resamples,).

    Not exact in small samples, and of no width where every resample agrees: an AUC of 1 has the interval (1, 1).
    """
    low, high = np.quantile(values, [(1.0 - level) / 2, (1.0 + level) / 2])
    return float(low), float(high)


def exact_binomial_interval(hits: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion that covers it with at least `level`, whatever it is.

    References:
        Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404.
    """
    interval = binomtest(hits, trials).proportion_ci(level, method="exact")
    return float(interval.low), float(interval.high)


def _checked(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, positive = np.asarray(scores), np.asarray(positive)
    if positive.dtype != bool or positive.ndim != 1 or scores.shape[-1:] != positive.shape:
        raise ValueError(
            f"`positive` must be bool (cases,) for `scores` (..., cases), got {positive.dtype} {positive.shape} for "
            f"{scores.shape}."
        )
    if positive.all() or not positive.any():
        raise ValueError("Both positive and negative cases are needed.")
    if np.isnan(scores).any():
        raise ValueError("`scores` holds NaN: leave out what was not judged.")
    return scores, positive
