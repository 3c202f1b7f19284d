"""Is the spread of posterior samples the real uncertainty? Coverage, ranks, CRPS, spread and the 3.01 dB law.

All take `samples_hu` (samples, ...) drawn by the method for one input and `truth_hu` (...) of the same voxels, in HU.
If truth and samples come from one posterior, the truth is exchangeable with the samples: everything here follows.
The truth must be noise-free: against a noisy reference, a perfect posterior looks too narrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from .rates import binomial_rate

Intervals = Literal["order", "gaussian"]


@dataclass(frozen=True, eq=False)
class Coverage:
    """How often central intervals hold the truth.

    Attributes:
        level: nominal coverage of the intervals.
        coverage: mean over patients.
        by_patient: (patients,) share of each patient's voxels that its intervals hold.
        interval: exact confidence interval of `interval_of`; None where no interval of this confidence exists.
        interval_of: "median patient", or "share of patients" where each patient has one value.
        confidence: of `interval`, at least.
    """

    level: float
    coverage: float
    by_patient: np.ndarray
    interval: tuple[float, float] | None
    interval_of: str
    confidence: float


@dataclass(frozen=True, eq=False)
class RankHistogram:
    """Ranks of the truth among the samples: flat if calibrated, U-shaped if the samples are too narrow.

    Attributes:
        counts: (samples + 1,) how often the truth had each rank.
        chi_square: of the counts against equal ones, with `samples` degrees of freedom.
        p_value: of `chi_square`, valid for independent values alone.
    """

    counts: np.ndarray
    chi_square: float
    p_value: float


def central_interval(samples_hu: np.ndarray, *, level: float, intervals: Intervals) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound, each (...), that hold a further draw of the same distribution with probability `level`.

    "order": between the k-th smallest and the k-th largest of S samples, exact for every continuous distribution; there
    are such intervals for levels 1 - 2k / (S + 1) alone (50, 90 and 95 % need 3, 19 and 39 samples). Values that tie,
    such as whole HU, make it wider than it says. "gaussian": mean +- t_(S-1) sd sqrt(1 + 1/S), the prediction interval,
    exact for Gaussian posteriors and any S from 2.

    Raises:
        ValueError: for a level that these samples have no exact interval for, naming those that they have.

    References:
        David and Nagaraja 2003, Order Statistics, section 7.3; Hahn and Meeker 1991, Statistical Intervals, section 4.7.
    """
    samples = _samples(samples_hu)
    if not 0.0 < level < 1.0:
        raise ValueError(f"`level` must be in (0, 1), got {level}.")
    n = len(samples)
    if intervals == "gaussian":
        half = stats.t.ppf(0.5 + level / 2, n - 1) * samples.std(axis=0, ddof=1) * np.sqrt(1 + 1 / n)
        mean = samples.mean(axis=0)
        return mean - half, mean + half
    if intervals != "order":
        raise ValueError(f'`intervals` must be "order" or "gaussian", got {intervals!r}.')
    k = (1 - level) * (n + 1) / 2
    if k < 1 - 1e-9 or abs(k - round(k)) > 1e-6:
        exact = [1 - 2 * i / (n + 1) for i in range((n + 1) // 2, 0, -1) if 2 * i < n + 1]
        raise ValueError(
            f"{n} samples have no exact central interval of level {level:g}: they have {', '.join(f'{e:.4g}' for e in exact)}."
            ' Draw more samples, or take `intervals="gaussian"`, which is exact for Gaussian posteriors.'
        )
    ordered = np.sort(samples, axis=0)
    return ordered[round(k) - 1], ordered[n - round(k)]


def coverage(
    samples_hu: Sequence[np.ndarray],
    truth_hu: Sequence[np.ndarray],
    *,
    level: float,
    intervals: Intervals,
    confidence: float,
) -> Coverage:
    """Share of the truth inside central intervals of the samples, by patient.

    Voxels of one patient are not independent, so the confidence interval counts patients. With many values a patient it
    is that of the median patient's coverage, between order statistics: exact whatever the distribution, from 6 patients
    at 95 %. With one value a patient (the mean of a lesion, say) it is Clopper and Pearson's of the share of patients.

    Args:
        samples_hu: one array (samples, ...) for each patient.
        truth_hu: one array (...) for each patient.
        level: of the intervals, see `central_interval`.
        intervals: how they are made.
        confidence: of the interval around the result.

    Raises:
        ValueError: for shapes that do not fit, no patient, or a level without an exact interval.

    References:
        Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404.
    """
    if len(samples_hu) != len(truth_hu) or not len(truth_hu):
        raise ValueError("One array of samples and one of truth are needed for each patient, one patient at least.")
    _check_confidence(confidence)
    shares = []
    for samples, truth in zip(samples_hu, truth_hu):
        x, y = _pair(samples, truth)
        lower, upper = central_interval(x, level=level, intervals=intervals)
        shares.append(float(np.mean((lower <= y) & (y <= upper))))
    by_patient = np.array(shares)
    single = all(np.size(t) == 1 for t in truth_hu)
    if single:
        rate = binomial_rate(round(by_patient.sum()), len(by_patient), level=confidence)
        interval: tuple[float, float] | None = (rate.low, rate.high)
    else:
        interval = median_interval(by_patient, confidence=confidence)
    what = "share of patients" if single else "median patient"
    return Coverage(level, float(by_patient.mean()), by_patient, interval, what, confidence)


def median_interval(values: np.ndarray, *, confidence: float) -> tuple[float, float] | None:
    """Confidence interval of the median of a population from independent values, exact whatever its distribution.

    The narrowest pair of order statistics (k-th smallest, k-th largest) whose coverage 1 - 2 P(Binomial(n, 1/2) < k)
    is at least `confidence`; None if even smallest and largest do not reach it.
    """
    _check_confidence(confidence)
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    fitting = [k for k in range(1, n // 2 + 1) if 1 - 2 * stats.binom.cdf(k - 1, n, 0.5) >= confidence]
    if not fitting:
        return None
    return float(ordered[fitting[-1] - 1]), float(ordered[n - fitting[-1]])


def crps(samples_hu: np.ndarray, truth_hu: np.ndarray) -> np.ndarray:
    """Fair continuous ranked probability score, (...), in HU: smaller is better, 0 only for certainty that is right.

    mean_i |x_i - y| - sum_(i,j) |x_i - x_j| / (2 S (S - 1)): the energy form with the factor that makes its expectation
    that of infinitely many samples, so that methods with different numbers of samples compare. One value may be negative.

    References:
        Gneiting and Raftery 2007, doi:10.1198/016214506000001437, eq. 21; Ferro 2014, doi:10.1002/qj.2270.
    """
    samples, truth = _pair(samples_hu, truth_hu)
    n = len(samples)
    error = np.abs(samples - truth).mean(axis=0)
    # sum over pairs i < j of x_(j) - x_(i) counts the i-th smallest (2 i - n - 1) times
    weights = 2.0 * np.arange(1, n + 1) - n - 1
    pairs = np.tensordot(weights, np.sort(samples, axis=0), axes=1)
    return error - pairs / (n * (n - 1))


def spread_skill_ratio(samples_hu: np.ndarray, truth_hu: np.ndarray) -> float:
    """sqrt((1 + 1/S) mean variance / mean squared error of the samples' mean): 1 if calibrated, below 1 if too sure.

    References:
        Fortin et al. 2014, doi:10.1175/JHM-D-14-0008.1.
    """
    samples, truth = _pair(samples_hu, truth_hu)
    error = float(np.mean((samples.mean(axis=0) - truth) ** 2))
    if error == 0.0:
        raise ValueError("The samples' mean equals the truth in every voxel: there is no error to compare with.")
    return float(np.sqrt((1 + 1 / len(samples)) * samples.var(axis=0, ddof=1).mean() / error))


def rank_histogram(samples_hu: np.ndarray, truth_hu: np.ndarray, *, seed: int) -> RankHistogram:
    """Histogram of the truth's rank among its samples (the discrete PIT) and its chi-square test against flatness.

    The p-value holds for independent values alone. Neighbouring voxels of an image are not: pass one value a patient,
    or voxels farther apart than noise and error correlate; with dense voxels look at the shape and ignore the p-value.

    Args:
        samples_hu: (samples, ...).
        truth_hu: (...).
        seed: of the random rank among equal values.

    Raises:
        ValueError: for fewer than 5 values expected in each rank, where the chi-square distribution does not hold.

    References:
        Hamill 2001, doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2; Gneiting et al. 2007,
        doi:10.1111/j.1467-9868.2007.00587.x (PIT).
    """
    samples, truth = _pair(samples_hu, truth_hu)
    n = len(samples)
    if truth.size < 5 * (n + 1):
        raise ValueError(f"{n + 1} ranks need {5 * (n + 1)} values at least for a chi-square test, got {truth.size}.")
    below, equal = (samples < truth).sum(axis=0), (samples == truth).sum(axis=0)
    ranks = below + np.random.default_rng(seed).integers(0, equal + 1)
    counts = np.bincount(ranks.ravel(), minlength=n + 1)
    test = stats.chisquare(counts)
    return RankHistogram(counts, float(test.statistic), float(test.pvalue))


def sample_to_mean_gap_db(samples_hu: np.ndarray, truth_hu: np.ndarray) -> float:
    """By how many dB the PSNR of the samples' mean exceeds that of one sample; see `expected_gap_db`.

    The data range cancels. The error of one sample is the mean over all samples of their squared errors.
    """
    samples, truth = _pair(samples_hu, truth_hu)
    one = float(np.mean((samples - truth) ** 2))
    mean = float(np.mean((samples.mean(axis=0) - truth) ** 2))
    if mean == 0.0:
        raise ValueError("The samples' mean equals the truth in every voxel: the gap is not finite.")
    return 10.0 * float(np.log10(one / mean))


def expected_gap_db(samples: int) -> float:
    """The gap of a perfect posterior sampler: 1.25, 2.04, 2.50 dB for 2, 4, 8 samples, 3.01 dB for infinitely many.

    Let the truth y and samples x_1 ... x_S be independent draws of one posterior p(. | input) with mean m and variance
    v at each voxel. Then y - m and x_i - m are independent with variance v, so

        E (x_i - y)^2 = E (x_i - m)^2 + E (y - m)^2 = 2 v,
        E (mean of x - y)^2 = v / S + v = (1 + 1/S) v,

    whatever the shape of the posterior, and after averaging v over voxels and inputs the ratio stays. In dB the gap is
    10 log10(2 / (1 + 1/S)), at infinite S 10 log10 2 = 3.01: a perfect sample has twice the squared error of the
    posterior mean, which is the minimum. A PSNR that ranks methods therefore punishes perfect realism by 3.01 dB. A
    smaller gap means samples too alike (no spread: 0 dB); a larger one means samples with more noise than the posterior.
    The gap alone proves nothing about the mean: look at coverage too.

    References:
        Blau and Michaeli 2018, arXiv:1711.06077, section 4 (the factor 2); Ohayon et al. 2021, arXiv:2103.04192.
    """
    if samples < 1:
        raise ValueError(f"`samples` must be 1 at least, got {samples}.")
    return 10.0 * float(np.log10(2.0 / (1.0 + 1.0 / samples)))


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"`confidence` must be in (0, 1), got {confidence}.")


def _samples(samples_hu: np.ndarray) -> np.ndarray:
    samples = np.asarray(samples_hu, dtype=np.float64)
    if samples.ndim < 1 or len(samples) < 2 or not samples.size:
        raise ValueError(f"`samples_hu` must be (samples, ...) with 2 samples at least, got shape {samples.shape}.")
    if not np.isfinite(samples).all():
        raise ValueError("`samples_hu` holds values that are not finite.")
    return samples


def _pair(samples_hu: np.ndarray, truth_hu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    samples, truth = _samples(samples_hu), np.asarray(truth_hu, dtype=np.float64)
    if samples.shape[1:] != truth.shape:
        raise ValueError(f"Samples of shape (samples, *{truth.shape}) are needed for this truth, got {samples.shape}.")
    if not np.isfinite(truth).all():
        raise ValueError("`truth_hu` holds values that are not finite.")
    return samples, truth
