"""The insertion test: known lesions are put into images before the method, and sought after it.

It tells a method that keeps lesions from one that erases them or draws its own, which no mean error does.

References:
    Garwood 1936, doi:10.1093/biomet/28.3-4.437 (exact intervals of counts).
    Barrett and Myers 2004, Foundations of Image Science, chapter 13 (matched filter).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, signal, stats

from .lesion import Lesion
from .rates import Rate, binomial_rate
from .roc import Interval

Place = tuple[int, int, int]
Method = Callable[[np.ndarray], np.ndarray]
# A lesion that keeps less than half of its contrast counts as erased.
ERASED_BELOW = 0.5


@dataclass(frozen=True, eq=False)
class InsertionCase:
    """Images of one patient or phantom.

    Attributes:
        low_hu: (depth, height, width), what the method gets.
        full_hu: of the same shape, at full dose: it sets the threshold.
        places: (slice, row, column) of lesions, all inserted at once, in tissue that has none.
        truth_hu: of the same shape, without noise or lesions, taken off before the matched filter (the background is
            known exactly); None where there is no such image: then anatomy is part of the filter's noise.
    """

    low_hu: np.ndarray
    full_hu: np.ndarray
    places: Sequence[Place]
    truth_hu: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Insertion:
    """What became of one lesion at one dose, one entry a place.

    Attributes:
        lesion: that was inserted.
        dose_fraction: of the images.
        recovery: (places,) <D(y + s) - D(y), s> / <s, s>: share of the lesion that the method keeps.
        present, absent: (places,) matched filter after the method with and without the lesion, in units of its contrast.
        threshold: of the matched filter, of full-dose images; above it a place is called a lesion.
        case: (places,) index of the case, for statistics by patient.
        backgrounds: (depth, height, width) of each case, after the method without lesions.
    """

    lesion: Lesion
    dose_fraction: float
    recovery: np.ndarray
    present: np.ndarray
    absent: np.ndarray
    threshold: float
    case: np.ndarray
    backgrounds: Sequence[np.ndarray]

    def mean_recovery(self, level: float = 0.95) -> Interval:
        """Mean share of the contrast that is kept, with Student's interval over the places."""
        mean, n = float(self.recovery.mean()), len(self.recovery)
        if n < 2:
            return Interval(mean, -np.inf, np.inf)
        half = float(stats.t.ppf(0.5 + level / 2, n - 1) * self.recovery.std(ddof=1) / np.sqrt(n))
        return Interval(mean, mean - half, mean + half)

    def erased(self, level: float = 0.95) -> Rate:
        """Lesions that keep less than half of their contrast. No threshold or noise enters: both images share it."""
        return binomial_rate(int(np.sum(self.recovery < ERASED_BELOW)), len(self.recovery), level=level)

    def missed(self, level: float = 0.95) -> Rate:
        """Lesions that the matched filter does not find after the method (false negatives)."""
        return binomial_rate(int(np.sum(self.present <= self.threshold)), len(self.present), level=level)

    def false(self, level: float = 0.95) -> Rate:
        """Places without a lesion at which the matched filter finds one after the method (false positives)."""
        return binomial_rate(int(np.sum(self.absent > self.threshold)), len(self.absent), level=level)


@dataclass(frozen=True)
class Density:
    """False lesions in an area, with the exact interval of their number a square centimetre (of a Poisson count)."""

    count: int
    area_cm2: float
    low: float
    high: float

    @property
    def per_cm2(self) -> float:
        return self.count / self.area_cm2


def insertion_test(
    method: Method | Sequence[Method],
    cases: Sequence[InsertionCase],
    lesions: Sequence[Lesion],
    *,
    dose_fraction: float,
    false_positive_rate: float,
) -> list[Insertion]:
    """Inserts each lesion at all places of each case, runs the method, and measures what is left.

    The method runs once a case without lesions and once a case and lesion with them. Its randomness must be the same in
    both (a fixed seed), or its noise adds to the recovery's.

    Not exact about: places that are near each other share noise, and so do places of one patient: the exact intervals
    take all places as independent. Noise that the lesion itself would add is left out.

    Args:
        method: (depth, height, width) in HU -> the same; `lambda image: image` for the images as they are. One for each
            case where it must know more of a scan than its values.
        cases: images and places.
        lesions: sizes and contrasts.
        dose_fraction: of the low-dose images, kept with the results.
        false_positive_rate: of the matched filter on full-dose images without lesions; it sets the threshold for each
            lesion, the same at every dose and for every method.

    Returns:
        One result for each lesion, in order.

    Raises:
        ValueError: for shapes that do not fit, places outside the image or so near that lesions overlap, too few places
            for the false positive rate, and a method that returns another shape or values that are not finite.
    """
    if not 0.0 < dose_fraction <= 1.0 or not 0.0 < false_positive_rate < 1.0:
        raise ValueError(
            f"`dose_fraction` must be in (0, 1] and `false_positive_rate` in (0, 1), got {dose_fraction} and "
            f"{false_positive_rate}."
        )
    if not cases or not lesions:
        raise ValueError("The insertion test needs one case and one lesion at least.")
    places = sum(len(case.places) for case in cases)
    if (places + 1) * false_positive_rate < 1.0:
        raise ValueError(
            f"{places} places cannot set a threshold of {false_positive_rate:.3g} false positives: give "
            f"{int(np.ceil(1 / false_positive_rate)) - 1} at least."
        )
    for case in cases:
        _check_case(case, lesions)

    methods = [method] * len(cases) if callable(method) else list(method)
    if len(methods) != len(cases):
        raise ValueError(f"One method, or one for each of the {len(cases)} cases is needed, got {len(methods)}.")
    backgrounds = [_run(of_case, case.low_hu) for of_case, case in zip(methods, cases)]
    results = []
    for lesion in lesions:
        recovery: list[float] = []
        present: list[float] = []
        absent: list[float] = []
        full: list[float] = []
        for of_case, case, background in zip(methods, cases, backgrounds):
            truth = 0.0 if case.truth_hu is None else case.truth_hu
            restored = _run(of_case, with_lesions(case.low_hu, lesion, case.places))
            kept = restored - background
            recovery += [
                np.sum(_patch(kept, place, lesion.profile_hu.shape) * lesion.profile_hu) for place in case.places
            ]
            for responses, image in ((present, restored), (absent, background), (full, case.full_hu)):
                responses += list(matched_filter(image - truth, lesion, case.places))
        results.append(
            Insertion(
                lesion,
                dose_fraction,
                np.array(recovery) / np.sum(lesion.profile_hu**2),
                np.array(present),
                np.array(absent),
                threshold_at(np.array(full), false_positive_rate=false_positive_rate),
                np.repeat(np.arange(len(cases)), [len(case.places) for case in cases]),
                backgrounds,
            )
        )
    return results


def with_lesions(volume_hu: np.ndarray, lesion: Lesion, places: Sequence[Place]) -> np.ndarray:
    """A copy of the volume (depth, height, width) with the lesion added at each (slice, row, column)."""
    volume = np.array(volume_hu, np.float64)
    for place in places:
        _patch(volume, place, lesion.profile_hu.shape)[...] += lesion.profile_hu
    return volume


def matched_filter(volume_hu: np.ndarray, lesion: Lesion, places: Sequence[Place]) -> np.ndarray:
    """(places,) share of the lesion's contrast that is seen: 0 on any flat background, 1 for the lesion itself.

    The template is the lesion less its mean over a box with a margin of its radius, so a background's level is no lesion.

    Args:
        volume_hu: (depth, height, width).
        lesion: that is sought.
        places: (slice, row, column).

    Raises:
        ValueError: if a template leaves the volume.
    """
    volume = np.asarray(volume_hu, np.float64)
    template = lesion.template
    return np.array([np.sum(_patch(volume, place, template.shape) * template) for place in places])


def threshold_at(absent: np.ndarray, *, false_positive_rate: float) -> float:
    """Threshold that a further response without a lesion exceeds with that rate at most, whatever their law.

    It is the k-th smallest of n responses, k = ceil((n + 1)(1 - rate)).

    Raises:
        ValueError: for fewer than 1/rate - 1 responses.
    """
    absent = np.sort(np.asarray(absent, np.float64))
    k = int(np.ceil((len(absent) + 1) * (1 - false_positive_rate) - 1e-9))
    if not 1 <= k <= len(absent):
        raise ValueError(f"{len(absent)} responses cannot set a threshold of {false_positive_rate} false positives.")
    return float(absent[k - 1])


def false_lesion_density(
    restored_hu: np.ndarray,
    full_hu: np.ndarray,
    lesion: Lesion,
    *,
    searched: np.ndarray,
    pixel_mm: float,
    full_dose_per_cm2: float,
    level: float = 0.95,
) -> Density:
    """False lesions a square centimetre in a search over a region that holds none.

    A lesion is called where the matched filter has its highest value within a lesion's diameter and that value is above
    a threshold: the one at which the full-dose image has `full_dose_per_cm2` of them in the same region.

    Args:
        restored_hu: (depth, height, width) after the method, without lesions (less the truth, where it is known).
        full_hu: of the same shape, at full dose (less the truth likewise).
        lesion: that is sought.
        searched: bool mask of the same shape, without lesions; places nearer to the border than the template are left out.
        pixel_mm: side of the pixels.
        full_dose_per_cm2: sets the threshold.
        level: of the interval.

    Raises:
        ValueError: for other shapes, an empty region, or too small a region for that rate.
    """
    restored, full, searched = np.asarray(restored_hu), np.asarray(full_hu), np.asarray(searched)
    if restored.ndim != 3 or not restored.shape == full.shape == searched.shape or searched.dtype != bool:
        raise ValueError("Images (depth, height, width) and the bool mask `searched` must have one shape.")
    if not pixel_mm > 0 or not full_dose_per_cm2 > 0:
        raise ValueError("`pixel_mm` and `full_dose_per_cm2` must be positive.")
    inside = np.zeros(searched.shape, bool)
    half = [size // 2 for size in lesion.template.shape]
    inner = tuple(slice(h, size - h) for h, size in zip(half, searched.shape))
    inside[inner] = searched[inner]
    area_cm2 = float(inside.sum() * pixel_mm**2 / 100.0)
    expected = int(area_cm2 * full_dose_per_cm2)
    full_peaks = np.sort(_peaks(full, lesion, inside, pixel_mm))[::-1]
    if expected < 1 or expected >= len(full_peaks):
        raise ValueError(
            f"{area_cm2:.1f} cm^2 cannot set a threshold of {full_dose_per_cm2} a cm^2 ({len(full_peaks)} peaks at full "
            "dose): search a larger region or choose another rate."
        )
    count = int(np.sum(_peaks(restored, lesion, inside, pixel_mm) > full_peaks[expected]))
    tail = (1 - level) / 2
    low = stats.chi2.ppf(tail, 2 * count) / 2 if count else 0.0
    return Density(count, area_cm2, float(low / area_cm2), float(stats.chi2.isf(tail, 2 * count + 2) / 2 / area_cm2))


def _peaks(volume: np.ndarray, lesion: Lesion, inside: np.ndarray, pixel_mm: float) -> np.ndarray:
    """Heights of the matched filter's local maxima in the mask."""
    response = signal.oaconvolve(volume.astype(np.float64), lesion.template[::-1, ::-1, ::-1], mode="same")
    reach = int(np.ceil(lesion.diameter_mm / pixel_mm))
    size = (lesion.profile_hu.shape[0], 2 * reach + 1, 2 * reach + 1)
    response = np.where(inside, response, -np.inf)
    return response[inside & (response == ndimage.maximum_filter(response, size=size, mode="constant", cval=-np.inf))]


def _run(method: Method, volume_hu: np.ndarray) -> np.ndarray:
    restored = np.asarray(method(np.array(volume_hu)), np.float64)
    if restored.shape != np.shape(volume_hu):
        raise ValueError(f"The method turned {np.shape(volume_hu)} into {restored.shape}: it must keep the shape.")
    if not np.isfinite(restored).all():
        raise ValueError("The method returned values that are not finite.")
    return restored


def _patch(volume: np.ndarray, place: Place, shape: tuple[int, ...]) -> np.ndarray:
    """View of the volume around a place; an error where it leaves the volume."""
    starts = [center - size // 2 for center, size in zip(place, shape)]
    if any(a < 0 or a + n > total for a, n, total in zip(starts, shape, volume.shape)):
        raise ValueError(f"A lesion's box of {tuple(shape)} around {tuple(place)} leaves the volume {volume.shape}.")
    return volume[tuple(slice(a, a + n) for a, n in zip(starts, shape))]


def _check_case(case: InsertionCase, lesions: Sequence[Lesion]) -> None:
    if np.ndim(case.low_hu) != 3 or np.shape(case.low_hu) != np.shape(case.full_hu):
        raise ValueError(
            f"`low_hu` and `full_hu` must be (depth, height, width), got {np.shape(case.low_hu)} and "
            f"{np.shape(case.full_hu)}."
        )
    if case.truth_hu is not None and np.shape(case.truth_hu) != np.shape(case.low_hu):
        raise ValueError(f"`truth_hu` {np.shape(case.truth_hu)} must have the shape of `low_hu`.")
    for lesion in lesions:
        box = lesion.template.shape
        for k, place in enumerate(case.places):
            _patch(np.asarray(case.low_hu), place, box)
            for other in case.places[:k]:
                if all(abs(a - b) < n for a, b, n in zip(place, other, box)):
                    raise ValueError(
                        f"Lesions of {lesion.diameter_mm} mm at {other} and {place} overlap: move them apart."
                    )
