"""Measurements that judge a made-up thorax or abdomen without its truth, for models that learned from phantoms.

A synthesised volume has no truth to compare with, but it was asked for something: a contrast phase is seen in the HU of
the aorta. These measurements know the layout of `physics.make_phantom` and are checked on phantoms whose truth is
known (tests/evaluation/test_phantom_measurements.py). They hold for nothing else, least of all for patients.
"""

import numpy as np
from scipy import ndimage

from ..volume import CTVolume

# Where phantoms have the aorta, from the middle of the spinal canal: (y, x) in mm, to the back and to the left.
_AORTA_FROM_CANAL_MM = {"THORAX": (-49.0, 19.0), "ABDOMEN": (-49.0, 9.0)}
_WANDER_MM = 3.5  # one standard deviation of that place, by build and by the warp of the anatomy
_UNEVEN_HU = 10.0  # the standard deviation in the core that counts as much as one `_WANDER_MM`
_SEARCH_MM = 8.0
_CORE_MM = 7.0  # radius that lies within the aorta (11 mm or more) even beside a blurred edge
_LARGEST_PIXEL_MM = 6.0
_BODY_HU = -300.0  # between the body and the carbon fibre of the table
_BONE_RANGE_HU = (0.0, 500.0)  # clipped to that, lung is no darker a hole than the canal
# Semi-axes (y, x) in mm of the bony ring around the canal, outside and inside, and of the part of the canal compared.
_RING_MM, _RING_HOLE_MM, _CANAL_MM = (12.0, 14.0), (9.5, 11.0), (5.0, 6.0)


def measure_aorta_hu(volume: CTVolume, body_part: str) -> float:
    """HU of the blood in the descending (thorax) or abdominal aorta of a phantom-like volume.

    Finds the spinal canal as a dark hole in a bright ring, and in front of it, slice by slice, the most even core near
    the place where phantoms have the aorta.

    Args:
        volume: whole sections of a body on its back, with pixels of at most 6 mm; its middle within some 45 mm of the
            region's middle, for the phantom's descending aorta ends above that.
        body_part: "THORAX" or "ABDOMEN".

    Returns:
        The median over slices of the mean of the core. Always a number: if the volume shows no aorta, that of what
        lies in its place.

    Raises:
        ValueError: for another body part, too large pixels, or a volume without a body or too small for one.
    """
    if body_part not in _AORTA_FROM_CANAL_MM:
        raise ValueError(f"`body_part` must be one of {', '.join(_AORTA_FROM_CANAL_MM)}, got {body_part!r}.")
    pixel_mm = (volume.spacing_mm[1], volume.spacing_mm[2])
    if max(pixel_mm) > _LARGEST_PIXEL_MM:
        raise ValueError(f"An aorta needs pixels of at most {_LARGEST_PIXEL_MM} mm, got {pixel_mm} mm.")
    hu = np.asarray(volume.hu, dtype=np.float32)
    canal_y_mm, canal_x_mm = _find_canal(hu.mean(axis=0), pixel_mm)
    y_mm, x_mm = _AORTA_FROM_CANAL_MM[body_part]
    return float(np.median(_most_even_cores(hu, pixel_mm, (canal_y_mm + y_mm, canal_x_mm + x_mm))))


def _find_canal(mean_hu: np.ndarray, pixel_mm: tuple[float, float]) -> tuple[float, float]:
    """Middle (y, x) in mm from the first pixel of the canal in the mean of the slices: where ring minus hole is most."""
    bodies, count = ndimage.label(mean_hu > _BODY_HU)
    if count == 0:
        raise ValueError("The volume shows no body: every voxel of its mean slice is air.")
    rows, columns = ndimage.find_objects(bodies)[int(np.bincount(bodies.ravel())[1:].argmax())]
    height_mm, back_mm = (rows.stop - rows.start) * pixel_mm[0], (rows.stop - 1) * pixel_mm[0]
    middle_mm = 0.5 * (columns.start + columns.stop - 1) * pixel_mm[1]
    y_mm = np.arange(back_mm - 0.45 * height_mm, back_mm - 20.0)
    x_mm = np.arange(middle_mm - 14.0, middle_mm + 14.5)
    bone = np.clip(mean_hu, *_BONE_RANGE_HU)

    def mean_over(part: np.ndarray) -> np.ndarray:  # (n, 2) offsets -> (len(y_mm), len(x_mm))
        y = (y_mm[:, None, None] + part[:, 0]) / pixel_mm[0]
        x = (x_mm[:, None] + part[:, 1]) / pixel_mm[1]
        values = ndimage.map_coordinates(bone, np.broadcast_arrays(y, x), order=1, mode="nearest")
        return values.mean(axis=-1)

    offsets = np.stack(np.meshgrid(*[np.arange(-16.0, 16.5)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)

    def within(semi_axes_mm: tuple[float, float]) -> np.ndarray:
        return ((offsets / semi_axes_mm) ** 2).sum(axis=1) <= 1.0

    ring = offsets[within(_RING_MM) & ~within(_RING_HOLE_MM)]
    contrast = mean_over(ring) - mean_over(offsets[within(_CANAL_MM)])
    row, column = np.unravel_index(contrast.argmax(), contrast.shape)
    return float(y_mm[row]), float(x_mm[column])


def _most_even_cores(hu: np.ndarray, pixel_mm: tuple[float, float], place_mm: tuple[float, float]) -> np.ndarray:
    """Mean HU, one a slice, of the disc that is the best compromise of even and near to a place (y, x)."""
    y_mm, x_mm = (np.arange(n) * s for n, s in zip(hu.shape[1:], pixel_mm))
    costs, means = [], []
    steps = np.arange(-_SEARCH_MM, _SEARCH_MM + 0.5)
    for dy in steps:
        for dx in steps[dy**2 + steps**2 <= _SEARCH_MM**2]:
            away = (y_mm[:, None] - place_mm[0] - dy) ** 2 + (x_mm - place_mm[1] - dx) ** 2
            core = hu[:, away <= _CORE_MM**2]
            if not core.shape[1]:
                raise ValueError("The volume ends where the aorta should be: give whole sections of the body.")
            costs.append((core.std(axis=1) / _UNEVEN_HU) ** 2 + (dy**2 + dx**2) / _WANDER_MM**2)
            means.append(core.mean(axis=1))
    best = np.argmin(costs, axis=0)
    return np.asarray(means)[best, np.arange(len(hu))]
