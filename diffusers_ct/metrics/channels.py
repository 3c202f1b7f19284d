"""Channels of the channelised Hotelling observer: a few profiles that stand for the image around a known place.

All banks are (channels, side, side) for square regions of an odd side, centered on the middle pixel, and are applied by
`channel_outputs`.
"""

from collections.abc import Sequence

import numpy as np
from scipy import special


def laguerre_gauss_channels(*, roi_pixels: int, pixel_mm: float, width_mm: float, count: int) -> np.ndarray:
    """Laguerre-Gauss channels: orthonormal, round, efficient for a round signal at a known place.

    u_p(r) = sqrt(2)/a exp(-pi r^2/a^2) L_p(2 pi r^2/a^2), in 1/mm, p = 0 .. count - 1.

    Args:
        roi_pixels: odd side of the regions.
        pixel_mm: side of the pixels.
        width_mm: a; the first channel falls to 1/e at a radius of a / sqrt(pi). Two thirds of a disc's diameter do well.
        count: number of channels; 5 is usual.

    References:
        Barrett et al. 1998, Proc. SPIE 3340; Gallas and Barrett 2003, J. Opt. Soc. Am. A 20(9) 1725.
    """
    radius = np.hypot(*_axes_mm(roi_pixels, pixel_mm))
    _check_positive(width_mm=width_mm, count=count)
    g = 2 * np.pi * (radius / width_mm) ** 2
    orders = range(count)
    return np.stack([np.sqrt(2) / width_mm * np.exp(-g / 2) * special.eval_laguerre(p, g) for p in orders])


def dense_dog_channels(
    *,
    roi_pixels: int,
    pixel_mm: float,
    first_sd_per_mm: float,
    ratio: float = 1.4,
    quality: float = 1.67,
    count: int = 10,
) -> np.ndarray:
    """Dense differences of Gaussians: bands of frequency like those of human vision, round.

    C_j(f) = exp(-f^2 / (2 Q^2 s_j^2)) - exp(-f^2 / (2 s_j^2)), s_j = first_sd ratio^(j-1); here its exact inverse
    transform in the plane (in 1/mm^2). The widest channels are cut by the region.

    Args:
        roi_pixels: odd side of the regions.
        pixel_mm: side of the pixels.
        first_sd_per_mm: s_1; the paper's is 0.005 / pixel_mm.
        ratio, quality, count: the paper's for its dense set.

    References:
        Abbey and Barrett 2001, "Human- and model-observer performance in ramp-spectrum noise", J. Opt. Soc. Am. A
        18(3) 473, section on channel models.
    """
    radius = np.hypot(*_axes_mm(roi_pixels, pixel_mm))
    _check_positive(first_sd_per_mm=first_sd_per_mm, count=count)
    if not (ratio > 1 and quality > 1):
        raise ValueError(f"`ratio` and `quality` must be above 1, got {ratio} and {quality}.")

    def gaussian(sd: float) -> np.ndarray:
        return 2 * np.pi * sd**2 * np.exp(-2 * (np.pi * sd * radius) ** 2)

    sds = first_sd_per_mm * ratio ** np.arange(count)
    return np.stack([gaussian(quality * sd) - gaussian(sd) for sd in sds])


def gabor_channels(
    *,
    roi_pixels: int,
    pixel_mm: float,
    center_frequencies_per_mm: Sequence[float],
    orientations: int,
    phases_rad: Sequence[float] = (0.0,),
) -> np.ndarray:
    """Gabor channels one octave wide: bands of frequency and of direction.

    exp(-4 ln2 r^2 / w^2) cos(2 pi f_c (x cos a + y sin a) + phase), w = 6 ln2 / (pi f_c): half of the peak in frequency
    lies at f_c 2/3 and f_c 4/3. Orientations a are multiples of pi / `orientations`. 4 bands of
    3/128 to 3/16 cycles a pixel with 4 directions are usual.

    References:
        Eckstein and Whiting 1996, J. Opt. Soc. Am. A 13(9) 1777; Yu et al. 2013, Med. Phys. 40(4) 041908 (CT, against
        human readers).
    """
    y, x = _axes_mm(roi_pixels, pixel_mm)
    _check_positive(orientations=orientations, **{f"frequency {f}": f for f in center_frequencies_per_mm})
    if not len(center_frequencies_per_mm) or not len(phases_rad):
        raise ValueError("`center_frequencies_per_mm` and `phases_rad` must not be empty.")
    channels = []
    for frequency in center_frequencies_per_mm:
        width = 6 * np.log(2) / (np.pi * frequency)
        envelope = np.exp(-4 * np.log(2) * (x**2 + y**2) / width**2)
        for angle in np.arange(orientations) * np.pi / orientations:
            along = x * np.cos(angle) + y * np.sin(angle)
            channels += [envelope * np.cos(2 * np.pi * frequency * along + phase) for phase in phases_rad]
    return np.stack(channels)


def channel_outputs(regions_hu: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """(regions, channels): the sum of each region times each channel, in HU times the channel's unit.

    A constant background that is the same in all regions moves all outputs alike, which no Hotelling observer feels:
    none is taken off.

    Args:
        regions_hu: (regions, side, side).
        channels: (channels, side, side).

    Raises:
        ValueError: for other shapes or values that are not finite.
    """
    regions, channels = np.asarray(regions_hu, np.float64), np.asarray(channels, np.float64)
    if regions.ndim != 3 or channels.ndim != 3 or regions.shape[1:] != channels.shape[1:]:
        raise ValueError(
            f"Regions (regions, side, side) and channels (channels, side, side) must agree, got {regions.shape} "
            f"and {channels.shape}."
        )
    outputs = regions.reshape(len(regions), -1) @ channels.reshape(len(channels), -1).T
    if not np.isfinite(outputs).all():
        raise ValueError("`regions_hu` holds values that are not finite.")
    return outputs


def regions_around(images_hu: np.ndarray, *, center: tuple[int, int], roi_pixels: int) -> np.ndarray:
    """(realisations, side, side): the same square around (row, column) of (realisations, height, width) images.

    Raises:
        ValueError: for an even side, or a square that leaves the image.
    """
    images = np.asarray(images_hu)
    if images.ndim != 3:
        raise ValueError(f"`images_hu` must be (realisations, height, width), got shape {images.shape}.")
    half = _half(roi_pixels)
    (row, column), (height, width) = center, images.shape[1:]
    if not (half <= row < height - half and half <= column < width - half):
        raise ValueError(f"The square of {roi_pixels} pixels around {center} leaves the image {images.shape[1:]}.")
    return images[:, row - half : row + half + 1, column - half : column + half + 1]


def _half(roi_pixels: int) -> int:
    if roi_pixels < 3 or roi_pixels % 2 == 0:
        raise ValueError(f"`roi_pixels` must be odd and 3 at least, so that there is a middle pixel, got {roi_pixels}.")
    return roi_pixels // 2


def _axes_mm(roi_pixels: int, pixel_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Broadcastable y and x in mm from the middle pixel."""
    _check_positive(pixel_mm=pixel_mm)
    half = _half(roi_pixels)
    axis = np.arange(-half, half + 1) * pixel_mm
    return axis[:, None], axis[None, :]


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"`{name}` must be positive, got {value}.")
