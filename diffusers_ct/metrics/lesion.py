"""Profiles of lesions that are inserted into images: discs through slices, and balls, with a soft edge."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

# Parts of a voxel's side over which its share of the lesion is averaged.
_PARTS = 5


@dataclass(frozen=True, eq=False)
class Lesion:
    """What is added to an image around a place.

    Attributes:
        profile_hu: (depth, height, width) of odd sides, centered on the middle voxel.
        diameter_mm: its size, for the tables and for the distance between two lesions.
        contrast_hu: its contrast, for the tables.

    Raises:
        ValueError: for a profile of even sides, of zeros, or not finite, or a diameter that is not positive.
    """

    profile_hu: np.ndarray
    diameter_mm: float
    contrast_hu: float

    def __post_init__(self) -> None:
        shape = np.shape(self.profile_hu)
        if len(shape) != 3 or any(side % 2 == 0 for side in shape):
            raise ValueError(f"`profile_hu` must be (depth, height, width) of odd sides, got {shape}.")
        if not np.isfinite(self.profile_hu).all() or not np.any(self.profile_hu) or not self.diameter_mm > 0:
            raise ValueError("A lesion needs a finite profile that is not 0 everywhere, and a positive `diameter_mm`.")

    @property
    def template(self) -> np.ndarray:
        """Matched filter for white noise and an unknown level: <lesion, template> = 1, <constant, template> = 0.

        In the plane it is a quarter of the profile's sides wider on each side, so that the level is taken around it.
        """
        margin = [0, *(max(2, side // 4) for side in self.profile_hu.shape[1:])]
        padded = np.pad(self.profile_hu.astype(np.float64), [(m, m) for m in margin])
        centered = padded - padded.mean()
        return centered / np.sum(centered * padded)


def rod_lesion(*, diameter_mm: float, contrast_hu: float, pixel_mm: float, slices: int, edge_sd_mm: float) -> Lesion:
    """A cylinder along the slices, as in low-contrast phantoms.

    Args:
        diameter_mm: of the circle.
        contrast_hu: that its middle would have if it were large.
        pixel_mm: side of the pixels.
        slices: odd number of slices that it goes through.
        edge_sd_mm: standard deviation of the Gaussian blur in the plane: match it to the images' resolution, 0 for none.

    Raises:
        ValueError: for sizes that are not positive, an even number of slices, a negative blur.
    """
    if slices < 1 or slices % 2 == 0:
        raise ValueError(f"`slices` must be odd, so that there is a middle one, got {slices}.")
    disc = _round((pixel_mm, pixel_mm), diameter_mm, contrast_hu, edge_sd_mm)
    return Lesion(np.repeat(disc[None], slices, axis=0), float(diameter_mm), float(contrast_hu))


def ball_lesion(
    *, diameter_mm: float, contrast_hu: float, spacing_mm: tuple[float, float, float], edge_sd_mm: float
) -> Lesion:
    """A ball, each voxel averaging over its volume.

    Args:
        diameter_mm: of the ball.
        contrast_hu: that its middle would have if it were large.
        spacing_mm: (z, y, x) of the voxels.
        edge_sd_mm: standard deviation of the Gaussian blur in all directions, 0 for none.

    Raises:
        ValueError: for sizes that are not positive, a negative blur.
    """
    if len(spacing_mm) != 3:
        raise ValueError(f"`spacing_mm` must be (z, y, x), got {spacing_mm}.")
    return Lesion(_round(spacing_mm, diameter_mm, contrast_hu, edge_sd_mm), float(diameter_mm), float(contrast_hu))


def _round(spacing_mm: tuple[float, ...], diameter_mm: float, contrast_hu: float, edge_sd_mm: float) -> np.ndarray:
    """Disc or ball, blurred on a grid of voxel parts, then averaged over the voxels."""
    if not all(s > 0 for s in spacing_mm) or not diameter_mm > 0 or not edge_sd_mm >= 0:
        raise ValueError(
            f"Spacing and `diameter_mm` must be positive and `edge_sd_mm` 0 or more, got {spacing_mm}, {diameter_mm} and "
            f"{edge_sd_mm}."
        )
    halves = [int(np.ceil((diameter_mm / 2 + 3 * edge_sd_mm) / s)) for s in spacing_mm]
    parts = [s / _PARTS for s in spacing_mm]
    counts = [(2 * half + 1) * _PARTS for half in halves]
    axes = [(np.arange(n) - (n - 1) / 2) * part for n, part in zip(counts, parts)]
    distance = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True)))
    # A part at the edge counts by how deep it is in: the volume comes out right to a few in a thousand.
    inside = np.clip((diameter_mm / 2 - distance) / min(parts) + 0.5, 0.0, 1.0)
    soft = ndimage.gaussian_filter(inside, [edge_sd_mm / part for part in parts], mode="constant")
    split = [side for half in halves for side in (2 * half + 1, _PARTS)]
    return contrast_hu * soft.reshape(split).mean(axis=tuple(range(1, 2 * len(halves), 2)))
