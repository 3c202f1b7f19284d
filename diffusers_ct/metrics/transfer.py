"""Task transfer function (TTF): how much contrast of each spatial frequency an image keeps at the edge of a disc.

A method that is not linear has no one modulation transfer function: its TTF depends on the contrast of the insert and on
the noise, so it is measured on inserts of several contrasts, at the dose that is judged.

References:
    Richard et al. 2012, "Towards task-based assessment of CT performance", Med. Phys. 39(7) 4115 (circular edges).
    Samei et al. 2019, AAPM TG-233, Med. Phys. 46(11) e735 (f50, f10).
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class TaskTransfer:
    """Transfer function of one insert.

    Attributes:
        frequency_per_mm: (frequencies,) from 0 to the Nyquist frequency of the pixels (or 0.4 per bin, if less).
        ttf: (frequencies,), 1 at frequency 0.
        contrast_hu: inside minus outside of the insert, away from its edge; its sign is the insert's.
        cnr: |contrast| over the standard deviation of one pixel of the mean image. Noise lifts the TTF at high
            frequencies. With a disc of 25 mm, pixels of 0.5 mm and white noise, a cnr of 15 gives f50 with a standard
            deviation of 2 % and f10 4 % too high with one of 8 %; a cnr of 30, half of each and less: average images.
    """

    frequency_per_mm: np.ndarray
    ttf: np.ndarray
    contrast_hu: float
    cnr: float

    def frequency_at(self, level: float) -> float | None:
        """Lowest frequency in 1/mm at which the TTF falls to `level`; None where it stays above.

        Raises:
            ValueError: for a level outside (0, 1).
        """
        if not 0.0 < level < 1.0:
            raise ValueError(f"`level` must be in (0, 1), got {level}.")
        below = np.flatnonzero(self.ttf <= level)
        if not len(below):
            return None
        k = int(below[0])
        part = (self.ttf[k - 1] - level) / (self.ttf[k - 1] - self.ttf[k])
        return float(self.frequency_per_mm[k - 1] + part * (self.frequency_per_mm[k] - self.frequency_per_mm[k - 1]))

    @property
    def f50_per_mm(self) -> float | None:
        return self.frequency_at(0.5)

    @property
    def f10_per_mm(self) -> float | None:
        return self.frequency_at(0.1)


def task_transfer(
    images_hu: np.ndarray,
    *,
    pixel_mm: float,
    center: tuple[float, float],
    radius_mm: float,
    edge_mm: float,
    bin_mm: float,
) -> TaskTransfer:
    """TTF from the edge of a disc: radial edge spread of the mean image, its increments, a taper, their transform.

    What the binning and the increments take away (each a sinc of the bin's width) is put back, and the increments are
    weighted with sqrt(r/R), which makes the circular edge a straight one to second order in its width over R.

    Not exact about: a center that is off by d, which multiplies by about J0(2 pi f d) (find it with `disc_center`);
    spread wider than `edge_mm` / 2, which the taper cuts; noise (see `TaskTransfer.cnr`).

    Args:
        images_hu: (height, width), or (realisations, height, width) of the same disc, whose mean is taken.
        pixel_mm: side of the pixels.
        center: (row, column) of the disc in pixels, (0, 0) being the center of the first pixel.
        radius_mm: of the disc.
        edge_mm: the edge spread is measured from `radius_mm` - `edge_mm` to `radius_mm` + `edge_mm`. Around the disc
            the image must be uniform as far.
        bin_mm: width of the radial bins; 0.2 is usual. The TTF is right to 0.01 with bins of a fifth of a pixel, to 0.03
            near the Nyquist frequency with bins of 0.4 pixels.

    Raises:
        ValueError: for lengths that do not fit, a disc that leaves the image, a bin without a pixel, no contrast.
    """
    mean = _mean_image(images_hu)
    if not pixel_mm > 0 or not bin_mm > 0:
        raise ValueError(f"`pixel_mm` and `bin_mm` must be positive, got {pixel_mm} and {bin_mm}.")
    if not 0 < edge_mm <= radius_mm or edge_mm < 6 * bin_mm:
        raise ValueError(
            f"`edge_mm` must be in [6 `bin_mm`, `radius_mm`], got {edge_mm} for a radius of {radius_mm} mm."
        )
    reach = (radius_mm + edge_mm) / pixel_mm
    if any(c - reach < -0.5 or c + reach > size - 0.5 for c, size in zip(center, mean.shape)):
        raise ValueError(
            f"The disc at {center} with its surroundings of {radius_mm + edge_mm} mm leaves the image {mean.shape}."
        )
    radius = _radius_mm(mean.shape, center, pixel_mm)
    used = np.abs(radius - radius_mm) < edge_mm
    bins = round(2 * edge_mm / bin_mm)
    width = 2 * edge_mm / bins
    index = np.minimum(((radius[used] - radius_mm + edge_mm) / width).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    if (count == 0).any():
        raise ValueError(f"Some radial bins of {bin_mm} mm hold no pixel of {pixel_mm} mm: widen `bin_mm`.")
    at = np.bincount(index, radius[used], bins) / count
    edge = np.bincount(index, mean[used], bins) / count

    plateau = at - radius_mm
    inner, outer = plateau < -0.5 * edge_mm, plateau > 0.5 * edge_mm
    contrast = float(np.average(edge[inner], weights=count[inner]) - np.average(edge[outer], weights=count[outer]))
    spread = (mean[used] - edge[index])[outer[index]]
    noise = float(np.sqrt(np.sum(spread**2) / max(len(spread) - int(outer.sum()), 1)))
    cnr = abs(contrast) / noise if noise > 0 else np.inf

    middle = 0.5 * (at[1:] + at[:-1])
    increments = -np.diff(edge) * np.sqrt(middle / radius_mm) * _taper(middle - radius_mm, edge_mm)
    if contrast == 0.0 or increments.sum() * contrast <= 0:
        raise ValueError(f"The disc has no contrast that its edge shows ({contrast:.3g} HU): nothing to transfer.")
    frequency = np.linspace(0.0, min(0.5 / pixel_mm, 0.4 / width), 401)
    waves = np.exp(-2j * np.pi * np.outer(frequency, middle - radius_mm)) / np.sinc(np.outer(frequency, np.diff(at)))
    spectrum = np.abs(waves @ increments) / np.sinc(frequency * width)
    return TaskTransfer(frequency, spectrum / spectrum[0], contrast, float(cnr))


def disc_center(
    images_hu: np.ndarray, *, pixel_mm: float, near: tuple[float, float], radius_mm: float, margin_mm: float
) -> tuple[float, float]:
    """(row, column) of a disc's center: the center of mass of its contrast, which blur does not move.

    Args:
        images_hu: (height, width), or (realisations, height, width), whose mean is taken.
        pixel_mm: side of the pixels.
        near: (row, column) within `margin_mm` / 2 of the center.
        radius_mm: of the disc.
        margin_mm: the image is uniform from the disc's edge as far.

    Raises:
        ValueError: if the disc with its margin leaves the image, or its center is not where it was sought.
    """
    mean = _mean_image(images_hu)
    if not min(pixel_mm, radius_mm, margin_mm) > 0:
        raise ValueError("`pixel_mm`, `radius_mm` and `margin_mm` must be positive.")
    rows, columns = np.indices(mean.shape)
    center = (float(near[0]), float(near[1]))
    for _ in range(20):
        if any(
            c - (radius_mm + margin_mm) / pixel_mm < -0.5 or c + (radius_mm + margin_mm) / pixel_mm > size - 0.5
            for c, size in zip(center, mean.shape)
        ):
            raise ValueError(f"The disc near {near} with its margin leaves the image {mean.shape}.")
        radius = _radius_mm(mean.shape, center, pixel_mm)
        ring = (radius > radius_mm + 0.5 * margin_mm) & (radius < radius_mm + margin_mm)
        # The outermost pixels count by the part that is inside, so that the aperture itself pulls nowhere.
        inside = np.clip((radius_mm + 0.75 * margin_mm - radius) / pixel_mm + 0.5, 0.0, 1.0)
        weight = inside * (mean - mean[ring].mean())
        total = weight.sum()
        if total == 0.0:
            raise ValueError(f"There is no contrast near {near}: no center to find.")
        found = (float(np.sum(rows * weight) / total), float(np.sum(columns * weight) / total))
        moved = np.hypot(found[0] - center[0], found[1] - center[1]) * pixel_mm
        if np.hypot(found[0] - near[0], found[1] - near[1]) * pixel_mm > margin_mm:
            raise ValueError(f"No disc of {radius_mm} mm within {margin_mm} mm of {near}.")
        center = found
        if moved < 1e-4 * pixel_mm:
            break
    return center


def _mean_image(images_hu: np.ndarray) -> np.ndarray:
    images = np.asarray(images_hu)
    if images.ndim not in (2, 3):
        raise ValueError(f"`images_hu` must be (height, width) or (realisations, height, width), got {images.shape}.")
    images = images[None] if images.ndim == 2 else images
    mean = images.mean(axis=0, dtype=np.float64)
    if not np.isfinite(mean).all():
        raise ValueError("`images_hu` holds values that are not finite.")
    return mean


def _radius_mm(shape: tuple[int, ...], center: tuple[float, float], pixel_mm: float) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return np.hypot(rows - center[0], columns - center[1]) * pixel_mm


def _taper(distance_mm: np.ndarray, edge_mm: float) -> np.ndarray:
    """1 in the inner half, from there a Hann slope to 0. A Hann window over the whole would narrow the line spread:
    by 7 % of its variance for a standard deviation of 0.12 `edge_mm`."""
    outward = np.clip(2.0 * np.abs(distance_mm) / edge_mm - 1.0, 0.0, 1.0)
    return 0.5 * (1.0 + np.cos(np.pi * outward))
