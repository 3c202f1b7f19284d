"""Noise power spectrum (NPS) of CT images: how strong the noise is at each spatial frequency.

References:
    IEC 61223-3-5:2019, Acceptance and constancy tests of CT equipment (noise power spectrum of uniform images).
    ICRU Report 87 (2012), J. ICRU 12(1), section on noise; Boone et al.: ensemble of detrended regions.
    Kijewski and Judy 1987, "The noise power spectrum of CT images", Phys. Med. Biol. 32(5) 565.
    Samei et al. 2019, AAPM TG-233, Med. Phys. 46(11) e735 (mean and peak frequency).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Detrend = Literal["mean", "plane", "quadratic"]
_ORDERS = {"mean": 0, "plane": 1, "quadratic": 2}
Corner = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class NoisePower:
    """Noise power spectrum of an ensemble of square regions.

    Attributes:
        power_hu2mm2: (side, side) in HU^2 mm^2, mean over the regions, in the order of `numpy.fft.fftfreq`.
        pixel_mm: side of the pixels.
        rois: number of regions.
    """

    power_hu2mm2: np.ndarray
    pixel_mm: float
    rois: int

    @property
    def variance_hu2(self) -> float:
        """Integral over the frequency plane: the mean square of the detrended regions (Parseval)."""
        side = len(self.power_hu2mm2)
        return float(self.power_hu2mm2.sum() / (side * self.pixel_mm) ** 2)

    @property
    def sd_hu(self) -> float:
        return float(np.sqrt(self.variance_hu2))

    def radial(self, bins: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean over directions.

        Args:
            bins: rings from 0 to the Nyquist frequency; None for rings as wide as the spectrum's own step.

        Returns:
            Mean frequency of each ring in 1/mm and its mean power in HU^2 mm^2. Frequency zero, which detrending
            removed, and the corners beyond the Nyquist frequency are in no ring; empty rings are left out.
        """
        side = len(self.power_hu2mm2)
        axis = np.fft.fftfreq(side, self.pixel_mm)
        frequency = np.hypot(axis[:, None], axis[None, :])
        nyquist = 0.5 / self.pixel_mm
        if bins is None:  # rings centred on the multiples of the step, where the axes' frequencies lie
            ring = np.rint(frequency * side * self.pixel_mm).astype(int)
        else:
            ring = np.minimum((frequency / nyquist * bins).astype(int), bins - 1)
        inside = (frequency > 0) & (frequency <= nyquist * (1 + 1e-9))
        last = int(ring[inside].max()) + 1
        count = np.bincount(ring[inside], minlength=last)
        some = count > 0
        mean_frequency = np.bincount(ring[inside], frequency[inside], last)[some] / count[some]
        return mean_frequency, np.bincount(ring[inside], self.power_hu2mm2[inside], last)[some] / count[some]

    @property
    def mean_frequency_per_mm(self) -> float:
        """First moment of the radial spectrum (TG-233), over rings of equal width: low for coarse noise, high for fine."""
        frequency, power = self.radial()
        return float(np.sum(frequency * power) / np.sum(power))

    @property
    def peak_frequency_per_mm(self) -> float:
        """Frequency of the largest radial power, from the parabola through the highest ring and its neighbours."""
        frequency, power = self.radial()
        k = int(np.clip(np.argmax(power), 1, len(power) - 2))
        curvature, slope, _ = np.polyfit(frequency[k - 1 : k + 2] - frequency[k], power[k - 1 : k + 2], 2)
        if curvature >= 0:
            return float(frequency[np.argmax(power)])
        shift = -slope / (2 * curvature)
        return float(np.clip(frequency[k] + shift, frequency[k - 1], frequency[k + 1]))


def noise_power_spectrum(
    noise_hu: np.ndarray,
    *,
    pixel_mm: float,
    corners: Sequence[Corner],
    roi_pixels: int,
    detrend: Detrend,
) -> NoisePower:
    """NPS(fx, fy) = dx dy / (Nx Ny) <|DFT(region - trend)|^2>, averaged over regions.

    Not exact about: the lowest frequencies, whose power goes with the trend (1, 3 or 6 of the Nx Ny degrees of freedom);
    and features narrower than 1 / (side of the region), over which a finite region spreads them (no taper is used).

    Args:
        noise_hu: (depth, height, width) in HU: a difference of two images, or an image whose regions are uniform.
        pixel_mm: side of the pixels.
        corners: (slice, row, column) of the regions' first pixels, such as from `roi_corners`.
        roi_pixels: side of the regions.
        detrend: what is removed of each region: its mean, a plane, or a quadratic surface, by least squares.

    Raises:
        ValueError: for wrong shapes, no region, a region outside the image, or values that are not finite.
    """
    noise_hu = np.asarray(noise_hu)
    if noise_hu.ndim != 3:
        raise ValueError(f"`noise_hu` must be (depth, height, width), got shape {noise_hu.shape}.")
    if not pixel_mm > 0 or roi_pixels < 8:
        raise ValueError(f"`pixel_mm` must be positive and `roi_pixels` 8 at least, got {pixel_mm} and {roi_pixels}.")
    if detrend not in _ORDERS:
        raise ValueError(f"`detrend` must be one of {', '.join(_ORDERS)}, got {detrend!r}.")
    if not len(corners):
        raise ValueError("A noise power spectrum needs one region at least: `corners` is empty.")
    basis = _trend_basis(roi_pixels, _ORDERS[detrend])
    total = np.zeros((roi_pixels, roi_pixels))
    for k, row, column in corners:
        region = noise_hu[k, row : row + roi_pixels, column : column + roi_pixels].astype(np.float64)
        if min(k, row, column) < 0 or region.shape != (roi_pixels, roi_pixels):
            raise ValueError(
                f"The region of {roi_pixels} pixels at {(k, row, column)} leaves the image {noise_hu.shape}."
            )
        total += np.abs(np.fft.fft2(detrended(region, basis))) ** 2
    if not np.isfinite(total).all():
        raise ValueError("`noise_hu` holds values that are not finite within the regions.")
    return NoisePower(total / len(corners) * pixel_mm**2 / roi_pixels**2, float(pixel_mm), len(corners))


def roi_corners(mask: np.ndarray, *, roi_pixels: int, step_pixels: int, fraction: float = 1.0) -> list[Corner]:
    """(slice, row, column) of square regions of which at least `fraction` is in the mask (depth, height, width).

    Regions of half-overlapping steps use the image's information almost fully (Welch 1967).
    """
    if mask.ndim != 3:
        raise ValueError(f"`mask` must be (depth, height, width), got shape {mask.shape}.")
    integral = np.pad(mask.astype(np.int64).cumsum(axis=1).cumsum(axis=2), ((0, 0), (1, 0), (1, 0)))
    _, height, width = mask.shape
    rows = np.arange(0, height - roi_pixels + 1, step_pixels)
    columns = np.arange(0, width - roi_pixels + 1, step_pixels)
    ends_r, ends_c = rows + roi_pixels, columns + roi_pixels
    inside = (
        integral[:, ends_r][:, :, ends_c] - integral[:, rows][:, :, ends_c]
        - integral[:, ends_r][:, :, columns] + integral[:, rows][:, :, columns]
    )  # fmt: skip
    found = np.argwhere(inside >= fraction * roi_pixels**2 - 1e-9)
    return [(int(k), int(rows[i]), int(columns[j])) for k, i, j in found]


def region_variances(
    noise_hu: np.ndarray, corners: Sequence[Corner], *, roi_pixels: int, detrend: Detrend
) -> np.ndarray:
    """Mean square of each detrended region in HU^2, in the order of `corners`."""
    basis = _trend_basis(roi_pixels, _ORDERS[detrend])
    regions = (noise_hu[k, i : i + roi_pixels, j : j + roi_pixels].astype(np.float64) for k, i, j in corners)
    return np.array([np.mean(detrended(region, basis) ** 2) for region in regions])


def detrended(region: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """The region (side, side) without its part in the span of the orthonormal `basis` (side^2, terms)."""
    flat = region.ravel()
    return (flat - basis @ (basis.T @ flat)).reshape(region.shape)


def _trend_basis(side: int, order: int) -> np.ndarray:
    """Orthonormal polynomials up to a total order on the square, (side^2, terms)."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    terms = [(x**i * y**j).ravel() for i in range(order + 1) for j in range(order + 1 - i)]
    return np.linalg.qr(np.stack(terms, axis=1))[0]
