"""Detectability of a known signal in a known background by a channelised Hotelling observer, and dose equivalence.

Less noise is not more detectability: for a known signal the ideal observer of the input bounds that of every
denoiser's output. Tune tasks so that the observer's AUC on the input is 0.65 to 0.90.

An observer that is rated on the images that trained it finds signals in nothing: with as many channels as images its
AUC is 1. Here it is either rated on other realisations (`channelised_hotelling`), or that optimism is taken off in
closed form (`exact_d_prime`).

References:
    Barrett and Myers 2004, Foundations of Image Science, chapters 13 and 14.
    Wunderlich, Noo, Gallas and Heilbrun 2015, "Exact confidence intervals for channelized Hotelling observer
    performance in image quality studies", IEEE Trans. Med. Imaging 34(2) 453, doi:10.1109/TMI.2014.2360496.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from .channels import channel_outputs
from .roc import Interval, auc, auc_difference, d_prime_of_auc, draw_counts, newcombe_interval, resampled_auc

# One array with the signal, one without.
Pair = tuple[np.ndarray, ...]


@dataclass(frozen=True, eq=False)
class Detectability:
    """Ratings of an observer on realisations that it was not trained on.

    Attributes:
        folds: one (present, absent) pair of rating arrays for each of the two halves, rated by the template of the
            other half.
        outputs: the halves' channel outputs, pairs of (realisations, channels).
        internal: what was added to the ratings, in standard deviations of the rating, pairs as in `folds`.
    """

    folds: tuple[Pair, ...]
    outputs: tuple[Pair, ...]
    internal: tuple[Pair, ...]

    @property
    def channels(self) -> int:
        return self.outputs[0][0].shape[1]

    @property
    def auc(self) -> float:
        """Mean over the halves. Finite training lowers it; compare with observers trained on as many images."""
        return float(np.mean([auc(*fold) for fold in self.folds]))

    @property
    def d_prime(self) -> float:
        """sqrt(2) Phi^-1(AUC); infinite for an AUC of 1."""
        return float(d_prime_of_auc(self.auc))

    def auc_interval(self, level: float = 0.95) -> Interval:
        """AUC of these two trained observers, with Newcombe's score interval over the rated realisations.

        What another training set would change is not in it: that is in `exact_d_prime` and in `bootstrap`.
        """
        present, absent = (sum(len(fold[k]) for fold in self.folds) for k in (0, 1))
        return newcombe_interval(self.auc, present, absent, level=level)

    def auc_difference(self, other: "Detectability", level: float = 0.95) -> Interval:
        """This AUC minus the other's, paired: both rate the same realisations (two methods, one `seed`).

        Raises:
            ValueError: for other numbers of realisations.
        """
        pairs = [auc_difference(*a, *b, level=level) for a, b in zip(self.folds, other.folds, strict=True)]
        middle = float(np.mean([pair.estimate for pair in pairs]))
        half = float(np.sqrt(np.sum([(pair.high - pair.estimate) ** 2 for pair in pairs]))) / len(pairs)
        return Interval(middle, middle - half, middle + half)

    def bootstrap(self, resamples: int, rng: np.random.Generator) -> np.ndarray:
        """(resamples,) AUCs of realisations drawn again within each half, the observers trained anew on them.

        Raises:
            ValueError: where a draw could not train an observer: for fewer realisations in a half than twice those that
                the observer needs.
        """
        if min(len(present) + len(absent) for present, absent in self.outputs) < 2 * (self.channels + 4):
            raise ValueError(
                f"Too few realisations to draw them again: a half needs {2 * (self.channels + 4)} altogether."
            )
        counts = [tuple(draw_counts(len(outputs), resamples, rng) for outputs in half) for half in self.outputs]
        aucs = []
        for train in (0, 1):
            templates, sds = _templates(self.outputs[train], counts[train])
            present, absent = (
                templates @ outputs.T + sds[:, None] * noise
                for outputs, noise in zip(self.outputs[1 - train], self.internal[1 - train])
            )
            aucs.append(resampled_auc(present, absent, *counts[1 - train]))
        return np.mean(aucs, axis=0)


def channelised_hotelling(
    present_hu: np.ndarray,
    absent_hu: np.ndarray,
    *,
    channels: np.ndarray,
    seed: int,
    internal_noise: float = 0.0,
    groups: Pair | None = None,
) -> Detectability:
    """Trains on a random half of the realisations, rates the other, and the other way round.

    v = U^T g, w = S^-1 (mean v present - mean v absent), S the mean of both covariances, rating w.v.

    Args:
        present_hu, absent_hu: (realisations, side, side) around the known place with and without the signal. All noise
            must be independent: an absent region with the signal added to it is no second realisation.
        channels: (channels, side, side), such as from `laguerre_gauss_channels`.
        seed: of the split (and of the internal noise). One seed for all methods keeps their comparison paired.
        internal_noise: standard deviation of the noise added to each rating, in standard deviations of the rating: it
            divides d' by sqrt(1 + internal_noise^2).
        groups: (realisations,) integers of either kind: those of one group go to one half together, such as the slices
            that a method restored as one slab and gave common noise. None where all are independent.

    Raises:
        ValueError: for shapes that do not fit, values that are not finite, or too few realisations: a half needs 2 of
            either kind and 3 more than channels altogether.
    """
    present, absent = channel_outputs(present_hu, channels), channel_outputs(absent_hu, channels)
    if not internal_noise >= 0:
        raise ValueError(f"`internal_noise` must be 0 or more, got {internal_noise}.")
    rng = np.random.default_rng(seed)
    groups = groups or (np.arange(len(present)), np.arange(len(absent)))
    if any(np.shape(of) != (len(outputs),) for of, outputs in zip(groups, (present, absent))):
        raise ValueError("`groups` must hold one integer for each realisation with the signal, and for each without.")
    split = [_split(outputs, of, rng) for outputs, of in zip((present, absent), groups)]
    halves, folds, internal = list(zip(*split)), [], []
    for train in (0, 1):
        template, sd = _template(*halves[train])
        noise = tuple(internal_noise * rng.normal(size=len(outputs)) for outputs in halves[1 - train])
        folds.append(tuple(outputs @ template + sd * n for outputs, n in zip(halves[1 - train], noise)))
        internal.append(noise)
    # The first half is rated by the observer that the second trained.
    return Detectability(tuple(folds[::-1]), tuple(halves), tuple(internal[::-1]))


def exact_d_prime(
    present_hu: np.ndarray,
    absent_hu: np.ndarray,
    *,
    channels: np.ndarray,
    internal_noise: float = 0.0,
    level: float = 0.95,
) -> Interval:
    """d' of the observer that was trained on endless realisations, from all of these, with its exact interval.

    Hotelling's T^2 of the channel outputs follows a noncentral F law whose noncentrality is d'^2 n1 n0 / (n1 + n0); the
    interval inverts it, the estimate is the root of the unbiased estimate of d'^2 (0 where that is negative). Its AUC is
    `auc_of_d_prime`. Exact for normal channel outputs with one covariance, which sums over noise of CT nearly are;
    methods that are not linear can break it: see that it agrees with `channelised_hotelling`.

    Args: as in `channelised_hotelling`.

    Raises:
        ValueError: as `channelised_hotelling`, of all realisations together; for a level outside (0, 1).
    """
    present, absent = channel_outputs(present_hu, channels), channel_outputs(absent_hu, channels)
    if not internal_noise >= 0 or not 0.0 < level < 1.0:
        raise ValueError(f"`internal_noise` must be 0 or more and `level` in (0, 1), got {internal_noise} and {level}.")
    difference, covariance = _moments(present, absent)
    n1, n0, p = len(present), len(absent), len(channels)
    freedom = n1 + n0 - p - 1
    scale = n1 * n0 / (n1 + n0)
    squared = float(difference @ np.linalg.solve(covariance, difference))
    if squared > 1e6:
        raise ValueError(f"d' is about {np.sqrt(squared):.3g}: no task of detection. Choose a fainter signal.")
    statistic = scale * squared * freedom / (p * (n1 + n0 - 2))
    unbiased = squared * (freedom - 2) / (n1 + n0 - 2) - p / scale

    def noncentrality(probability: float) -> float:
        """Where the statistic is that quantile of its law; 0 where it is below the quantile even without a signal."""

        def excess(lam: float) -> float:
            return float(stats.ncf.cdf(statistic, p, freedom, lam)) - probability

        if float(stats.f.cdf(statistic, p, freedom)) <= probability:
            return 0.0
        top = max(p * statistic, 1.0)
        while excess(top) > 0:
            top *= 2.0
        return float(optimize.brentq(excess, 0.0, top, xtol=1e-9))

    noise = np.sqrt(1 + internal_noise**2)
    values = max(unbiased, 0.0), *(noncentrality(0.5 + side * level / 2) / scale for side in (1, -1))
    return Interval(*(float(np.sqrt(value) / noise) for value in values))


def dose_at(d_prime: float, *, doses: np.ndarray, d_primes: np.ndarray) -> float:
    """Lowest dose at which d' reaches a value; infinite if the highest dose does not.

    Between the doses d'^2 is taken as a straight line, from the origin, which is exact for quantum noise (variance
    inversely proportional to dose). Values that fall with dose are averaged first (isotonic regression).

    Args:
        d_prime: that is sought, 0 or more.
        doses: (doses,) increasing and positive, as fractions of any one dose.
        d_primes: (doses,) measured on plain reconstructions.

    Raises:
        ValueError: for doses out of order, or values that are not finite.
    """
    doses, d_primes = np.asarray(doses, np.float64), np.maximum(np.asarray(d_primes, np.float64), 0.0)
    if doses.ndim != 1 or not len(doses) or doses.shape != d_primes.shape or (np.diff(doses, prepend=0.0) <= 0).any():
        raise ValueError("`doses` must be positive and increasing, with one of `d_primes` for each.")
    if not np.isfinite(d_primes).all() or not 0.0 <= d_prime < np.inf:
        raise ValueError("d' must be finite. An AUC of 1 has none: choose a fainter signal.")
    squared = np.concatenate([[0.0], optimize.isotonic_regression(d_primes**2).x])
    doses = np.concatenate([[0.0], doses])
    k = int(np.searchsorted(squared, d_prime**2))
    if k == len(squared):
        return float("inf")
    if k == 0:
        return 0.0
    part = (d_prime**2 - squared[k - 1]) / (squared[k] - squared[k - 1])
    return float(doses[k - 1] + part * (doses[k] - doses[k - 1]))


def dose_equivalence(
    method: Detectability, plain: Mapping[float, Detectability], *, resamples: int, seed: int, level: float = 0.95
) -> Interval:
    """The dose at which the plain reconstruction has the AUC that the method has.

    The interval is the bootstrap's, over the realisations of all, with training anew. Realisations that method and
    plain share are drawn apart, which errs to the wide side. A `high` of infinity says that the highest dose may not suffice.

    Args:
        method: of the method's images at its dose.
        plain: dose fraction -> of the plain reconstructions (FBP) at that dose: same signal, channels and number of
            realisations, since finite training lowers every AUC.
        resamples: of the bootstrap; 2000 is usual.
        seed: of the bootstrap.
        level: of the interval.

    Raises:
        ValueError: for other channels or numbers of realisations, or an AUC of exactly 1, which says no dose.
    """
    shape = [(len(a), len(b)) for a, b in method.folds]
    for dose, one in plain.items():
        if one.channels != method.channels or [(len(a), len(b)) for a, b in one.folds] != shape:
            raise ValueError(f"The observer at dose {dose} has other channels or realisations than the method's.")
    if not plain or max(one.auc for one in (method, *plain.values())) >= 1.0:
        raise ValueError("Every AUC must be below 1, and one plain dose given: choose a fainter signal.")
    if resamples < 100 or not 0.0 < level < 1.0:
        raise ValueError(f"`resamples` must be 100 at least and `level` in (0, 1), got {resamples} and {level}.")
    doses = np.array(sorted(plain))
    # A resample may be perfect where the sample is not: half a wrong pair keeps its d' finite.
    ceiling = 1.0 - 0.5 / sum(a * b for a, b in shape)
    rng = np.random.default_rng(seed)
    studies = [method, *(plain[dose] for dose in doses)]
    drawn = np.stack([[one.auc, *one.bootstrap(resamples, rng)] for one in studies], axis=1)
    d_primes = np.maximum(d_prime_of_auc(np.clip(drawn, 0.5, ceiling)), 0.0)
    found = np.array([dose_at(row[0], doses=doses, d_primes=row[1:]) for row in d_primes])
    low, high = np.quantile(found[1:], [0.5 - level / 2, 0.5 + level / 2], method="inverted_cdf")
    return Interval(float(found[0]), float(low), float(high))


def _split(outputs: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Outputs in two random halves, each with whole groups."""
    halves = np.array_split(rng.permutation(np.unique(groups)), 2)
    return [outputs[[k for group in half for k in np.flatnonzero(groups == group)]] for half in halves]


def _template(present: np.ndarray, absent: np.ndarray) -> tuple[np.ndarray, float]:
    """Hotelling weights (channels,) and the standard deviation of their ratings."""
    difference, covariance = _moments(present, absent)
    weights = np.linalg.solve(covariance, difference)
    return weights, float(np.sqrt(weights @ covariance @ weights))


def _templates(half: Pair, counts: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """`_template` of each draw: weights (draws, channels) and standard deviations (draws,)."""
    center = np.concatenate(half).mean(axis=0)
    means, covariance = [], 0.0
    for outputs, count in zip(half, counts):
        centered, n = outputs - center, len(outputs)
        mean = count @ centered / n
        products = (centered[:, :, None] * centered[:, None, :]).reshape(n, -1)
        squares = (count @ products).reshape(len(count), *[outputs.shape[1]] * 2)
        covariance = covariance + squares - n * mean[:, :, None] * mean[:, None, :]
        means.append(mean)
    covariance = covariance / (sum(len(outputs) for outputs in half) - 2)
    weights = np.linalg.solve(covariance, (means[0] - means[1])[..., None])[..., 0]
    return weights, np.sqrt(np.einsum("dp,dpq,dq->d", weights, covariance, weights))


def _moments(present: np.ndarray, absent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Difference of means (channels,) and pooled covariance."""
    n1, n0, p = len(present), len(absent), present.shape[1]
    if min(n1, n0) < 2 or n1 + n0 < p + 4:
        raise ValueError(
            f"{n1} realisations with the signal and {n0} without cannot train an observer of {p} channels: it takes 2 "
            f"of either kind and {p + 4} together, and some ten times the channels to do it well."
        )
    centered = [outputs - outputs.mean(axis=0) for outputs in (present, absent)]
    # Both kinds weigh by their degrees of freedom: for equal numbers it is the mean of the two covariances.
    covariance = sum(c.T @ c for c in centered) / (n1 + n0 - 2)
    scale = np.sqrt(np.diag(covariance))
    if not (scale > 0).all() or np.linalg.cond(covariance / np.outer(scale, scale)) > 1e12:
        raise ValueError("The channels' outputs depend on each other (or do not vary): drop channels or widen regions.")
    return present.mean(axis=0) - absent.mean(axis=0), covariance
