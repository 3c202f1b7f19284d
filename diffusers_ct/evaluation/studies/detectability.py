"""Detectability of low-contrast rods after each method, and the dose at which plain images have as much.

References:
    Barrett and Myers 2004, Foundations of Image Science, chapter 14 (Hotelling observer, channels).
    Rao and Scott 1992, Biometrics 48(2) 577, doi:10.2307/2532311 (clustered data: counts over the design effect).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...metrics import (
    Detectability,
    Interval,
    auc_of_d_prime,
    channel_outputs,
    channelised_hotelling,
    d_prime_of_auc,
    dose_at,
    laguerre_gauss_channels,
    regions_around,
)
from ...metrics.roc import difference_of_intervals, newcombe_interval
from ...physics.low_contrast_phantom import Rod, RodPhantom, scan_seed
from .methods import LOW_DOSE, Method, restored, with_low_dose

CHANNELS = 5
_SMALLEST_WIDTH_MM = 3.0
_REACH = 1.6  # radius of the observed circle over the channels' width
_BLUR_MM = 1.5  # reach of the soft kernel beyond an edge


def detectability_study(
    methods: Mapping[str, Method],
    *,
    phantom: RodPhantom,
    dose_fractions: Sequence[float],
    slices: int,
    slab_slices: int,
    seed: int,
    kernel: str = "soft",
    slice_mm: float = 2.0,
) -> list[dict[str, Any]]:
    """AUC of the channelised Hotelling observer for each rod, dose and method, with the equivalent dose.

    Every slice is another realisation of the noise, and every copy of a rod in it one region: half of the slices hold
    rods, half water alone, whose regions are at the same places. Methods see slabs, and rods go through all their
    slices, but the observer reads one slice at a time: a method that works in three dimensions brings what the other
    slices show into each, which a reader of plain images would gain by paging. A mean of three slices is worth three
    times the dose here, so "dose_equivalent" compares one slice with one slice, and "auc_bound" tells what this observer
    has of all the slab's plain slices. With slabs of one slice that is its AUC of the plain images. It is the bound of the
    ideal observer alone, which this one is not: a method may show its few channels what they miss in plain images, and so
    be above it without a leak.
    Slices of a slab then share what the method left of noise: the observer is trained on other slabs than it rates, and
    the intervals count regions over their design effect.

    Regions carry the rounding noise of stored images, 0.3 HU.

    Not exact about: noise that copies in one slice share; the lower AUC of finite training, which is the same for all
    methods of one call; what another training set would change, which is in no interval: all are a little too narrow where
    slabs are few and the AUC is near 0.5.

    Args:
        methods: name -> method; the low dose itself is always judged, as "low dose".
        phantom: with rods.
        dose_fractions: in (0, 1]; the more, the better the equivalent dose is known.
        slices: for each dose and method, half of them with rods.
        slab_slices: that a method gets at once.
        seed: of the noise and of the observers' split.
        kernel: of the reconstruction.
        slice_mm: thickness and distance of slices, for the header.

    Returns:
        One dict for each method, rod and dose: "method", "insert", "diameter_mm", "contrast_hu", "dose_fraction",
        "channels", "auc", "low", "high" (95 %), "n_images", "n_regions" (with a rod, as many without), "design_effect",
        "auc_bound" (of sqrt(slab_slices) times the plain images' d'), "minus_low_dose" with "minus_low" and "minus_high":
        the AUC less that of the plain images of the same dose and noise, paired, with its 95 % interval; None for these
        themselves. "dose_equivalent": the dose at which the plain images reach the AUC; None for these themselves, and
        outside the doses, where "dose_equivalent_side" says on which side: "above" the highest dose or "below" the lowest
        (None elsewhere).

    Raises:
        ValueError: for fewer than two slabs of either kind, or doses out of range.
    """
    slabs = slices // 2 // slab_slices if slab_slices > 0 else 0
    if slabs < 2:
        raise ValueError(
            f"{slices} slices in slabs of {slab_slices} make {slabs} slabs with rods and as many without: the observer needs "
            "two of each, to be rated on other slabs than it was trained on."
        )
    if not dose_fractions or len(set(dose_fractions)) < len(dose_fractions):
        raise ValueError(f"`dose_fractions` must be different doses, one at least, got {list(dose_fractions)}.")
    banks = {rod: rod_channels(phantom, rod) for rod in phantom.rods}
    named = with_low_dose(methods)
    observers: dict[tuple[str, Rod, float], _Observed] = {}
    for dose in sorted(dose_fractions):
        regions: dict[tuple[str, Rod, bool], list[np.ndarray]] = {}
        for present in (True, False):
            for slab in range(slabs):
                volume = phantom.scan(
                    dose_fraction=dose,
                    slices=slab_slices,
                    seed=scan_seed(seed, round(1e6 * dose), present, slab),
                    with_rods=present,
                    kernel=kernel,
                    slice_mm=slice_mm,
                )
                for name, method in named.items():
                    hu = restored(name, method, volume)
                    for rod, bank in banks.items():
                        side = bank.shape[-1]
                        copies = [regions_around(hu, center=p, roi_pixels=side) for p in phantom.places(rod)]
                        # (slices, copies, side, side)
                        regions.setdefault((name, rod, present), []).append(np.stack(copies, axis=1))
        for name in named:
            for rod, bank in banks.items():
                pair = (np.stack(regions[name, rod, True]), np.stack(regions[name, rod, False]))
                observers[name, rod, dose] = _observe(*pair, bank, seed)
    return [
        _row(observers, name, rod, dose, slices=2 * slabs * slab_slices, slab_slices=slab_slices)
        for name in named
        for rod in phantom.rods
        for dose in sorted(dose_fractions)
    ]


def rod_channels(phantom: RodPhantom, rod: Rod) -> np.ndarray:
    """Laguerre-Gauss channels, (channels, side, side), for a rod: cut to a circle that no neighbour's blur enters."""
    width = max(2 / 3 * rod.diameter_mm, _SMALLEST_WIDTH_MM)
    radius = min(_REACH * width, phantom.clearance_mm(rod) - _BLUR_MM)
    half = max(int(radius / phantom.pixel_mm), 1)
    bank = laguerre_gauss_channels(roi_pixels=2 * half + 1, pixel_mm=phantom.pixel_mm, width_mm=width, count=CHANNELS)
    axis = np.arange(-half, half + 1) * phantom.pixel_mm
    return bank * (np.hypot(axis[:, None], axis[None, :]) <= radius)


@dataclass(frozen=True, eq=False)
class _Observed:
    """The observer of one method's images, and a rating of every region (slabs, slices, copies), SD 1, of either kind."""

    observer: Detectability
    ratings: Sequence[np.ndarray]

    def interval(self) -> Interval:
        """AUC with Newcombe's interval of as many regions as these are worth."""
        regions = sum(len(present) for present, _ in self.observer.folds)
        counted = max(int(regions / design_effect(self.ratings)), 1)
        return newcombe_interval(self.observer.auc, counted, counted, level=0.95)

    def minus(self, plain: "_Observed") -> Interval:
        """AUC less that of the plain images of the same realisations.

        DeLong's paired interval, wider by the root of the design effect of the ratings' differences. An AUC of 0 or 1 has
        no variance by DeLong: there the two intervals are put together.
        """
        if {self.observer.auc, plain.observer.auc} & {0.0, 1.0}:
            return difference_of_intervals(self.interval(), plain.interval())
        paired = self.observer.auc_difference(plain.observer)
        differences = [own - other for own, other in zip(self.ratings, plain.ratings)]
        half = (paired.high - paired.estimate) * np.sqrt(design_effect(differences))
        return Interval(paired.estimate, float(paired.estimate - half), float(paired.estimate + half))


def _observe(present: np.ndarray, absent: np.ndarray, bank: np.ndarray, seed: int) -> _Observed:
    """The observer of regions (slabs, slices, copies, side, side) of either kind."""
    # Images are stored in whole HU. An observer without that noise would read digits that nobody sees, and none could be
    # trained on a method that leaves no noise at all.
    rng = np.random.default_rng([seed, 1])
    flat = [regions.reshape(-1, *regions.shape[3:]).astype(np.float64) for regions in (present, absent)]
    flat = [regions + rng.uniform(-0.5, 0.5, regions.shape) for regions in flat]
    groups = [np.repeat(np.arange(len(regions)), np.prod(regions.shape[1:3])) for regions in (present, absent)]
    observer = channelised_hotelling(*flat, channels=bank, seed=seed, groups=(groups[0], groups[1]))
    outputs = [channel_outputs(regions, bank) for regions in flat]
    covariance = sum(np.cov(o.T) for o in outputs) / 2
    weights = np.linalg.solve(covariance, outputs[0].mean(axis=0) - outputs[1].mean(axis=0))
    weights /= np.sqrt(weights @ covariance @ weights)
    return _Observed(observer, [(o @ weights).reshape(kind.shape[:3]) for o, kind in zip(outputs, (present, absent))])


def design_effect(ratings: Sequence[np.ndarray]) -> float:
    """By how much correlation along the slices of a slab raises the variance of a mean: 1 where there is none.

    1 + 2 sum_k (1 - k/n) rho_k of n slices, rho_k the correlation of ratings k slices apart (Kish 1965, section 5.4, for
    correlations that depend on the distance).

    Args:
        ratings: arrays (slabs, slices, places), one for each kind of image. Of ratings that are all alike it is 1.
    """
    centred = [r - r.mean(axis=(0, 1), keepdims=True) for r in ratings]
    depth = centred[0].shape[1]
    # What taking off the mean of n values does to the correlation of independent ones.
    lost = 1.0 / (centred[0].shape[0] * depth)
    variance = np.mean([np.mean(r**2) for r in centred])
    if variance == 0.0:
        return 1.0
    effect = 1.0
    for k in range(1, depth):
        covariance = np.mean([np.mean(r[:, k:] * r[:, :-k]) for r in centred])
        effect += 2.0 * (1.0 - k / depth) * (float(covariance / variance) + lost)
    return float(np.clip(effect, 1.0, depth))


def _row(
    observers: Mapping[tuple[str, Rod, float], _Observed],
    name: str,
    rod: Rod,
    dose: float,
    *,
    slices: int,
    slab_slices: int,
) -> dict[str, Any]:
    observed, plain = observers[name, rod, dose], observers[LOW_DOSE, rod, dose]
    observer, interval = observed.observer, observed.interval()
    difference = None if name == LOW_DOSE else observed.minus(plain)
    equivalent, side = (None, None) if name == LOW_DOSE else _dose_equivalent(observers, observer, rod)
    bound = auc_of_d_prime(np.sqrt(slab_slices) * max(_finite_d_prime(plain.observer), 0.0))
    return {
        "method": name,
        "insert": rod.label,
        "diameter_mm": rod.diameter_mm,
        "contrast_hu": rod.contrast_hu,
        "dose_fraction": float(dose),
        "channels": f"{CHANNELS} Laguerre-Gauss",
        "auc": observer.auc,
        "low": interval.low,
        "high": interval.high,
        "auc_bound": float(bound),
        "minus_low_dose": None if difference is None else difference.estimate,
        "minus_low": None if difference is None else difference.low,
        "minus_high": None if difference is None else difference.high,
        "dose_equivalent": equivalent,
        "dose_equivalent_side": side,
        "n_images": slices,
        "n_regions": sum(len(present) for present, _ in observer.folds),
        "design_effect": design_effect(observed.ratings),
    }


def _dose_equivalent(
    observers: Mapping[tuple[str, Rod, float], _Observed], observer: Detectability, rod: Rod
) -> tuple[float | None, str | None]:
    """The dose at which the plain images reach the AUC, or else on which side of all doses it lies."""
    doses = sorted(d for n, r, d in observers if n == LOW_DOSE and r == rod)
    plain = np.array([_finite_d_prime(observers[LOW_DOSE, rod, d].observer) for d in doses])
    equivalent = dose_at(max(_finite_d_prime(observer), 0.0), doses=np.array(doses), d_primes=plain)
    if equivalent > doses[-1]:
        return None, "above"
    return (equivalent, None) if equivalent >= doses[0] else (None, "below")


def _finite_d_prime(observer: Detectability) -> float:
    """d' of the AUC; of an AUC of 1, as if half a pair of ratings were in the wrong order."""
    half_a_pair = 0.5 / sum(len(present) * len(absent) for present, absent in observer.folds)
    return float(d_prime_of_auc(np.clip(observer.auc, half_a_pair, 1.0 - half_a_pair)))
