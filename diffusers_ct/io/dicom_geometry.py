"""From slice positions to a regular volume, or a refusal with the numbers (DICOM PS3.3 C.7.6.2)."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..hounsfield import AIR_HU
from .errors import GeometryError

_TILT_DEGREES = 0.3
_SPACING_TOLERANCE = 0.02  # of the median spacing, at least the rounding of positions to 0.01 mm
_LEAST_SPACING_MM = 1e-3


@dataclass(frozen=True)
class SliceGeometry:
    """Place of the slices of one stack, sorted along the normal.

    Attributes:
        positions_mm: (n, 3) centres of the first voxels, LPS.
        row: unit vector along a row (towards the next column).
        column: unit vector along a column (towards the next row).
        pixel_mm: (y, x) spacing of rows and of columns.
    """

    positions_mm: np.ndarray
    row: np.ndarray
    column: np.ndarray
    pixel_mm: tuple[float, float]

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.row, self.column)

    @property
    def along_mm(self) -> np.ndarray:
        """Position of each slice along the normal."""
        return self.positions_mm @ self.normal

    @property
    def tilt_degrees(self) -> float:
        """Angle between the stack's direction and the normal of its slices."""
        if len(self.positions_mm) < 2:
            return 0.0
        step = self.positions_mm[-1] - self.positions_mm[0]
        sideways = step - (step @ self.normal) * self.normal
        return float(np.degrees(np.arctan2(np.linalg.norm(sideways), abs(step @ self.normal))))

    def affine(self, slice_vector_mm: np.ndarray, origin_mm: np.ndarray) -> np.ndarray:
        """(4, 4) map of (column, row, slice, 1) to LPS (PS3.3 equation C.7.6.2.1-1)."""
        affine = np.eye(4)
        affine[:3, 0] = self.row * self.pixel_mm[1]
        affine[:3, 1] = self.column * self.pixel_mm[0]
        affine[:3, 2] = slice_vector_mm
        affine[:3, 3] = origin_mm
        return affine


def find_irregularity(geometry: SliceGeometry) -> tuple[str, bool] | None:
    """What keeps a stack from being a regular volume, and whether resampling can mend it; None if it is regular."""
    gaps = np.diff(geometry.along_mm)
    if len(gaps) == 0:
        return None
    if gaps.min() < _LEAST_SPACING_MM:
        count = int((gaps < _LEAST_SPACING_MM).sum())
        return f"{count + 1} slices lie at the same position: several acquisitions or copies are mixed", False
    median = float(np.median(gaps))
    tolerance = max(_SPACING_TOLERANCE * median, 0.02)
    if np.abs(gaps - median).max() > tolerance:
        multiples = gaps / median
        whole = np.abs(multiples - np.rint(multiples)) < 0.05
        if whole.all() and (np.rint(multiples) == 1).mean() >= 0.5:
            missing = int((np.rint(multiples) - 1).sum())
            where = geometry.along_mm[int(np.argmax(gaps))]
            return (
                f"{missing} of {len(gaps) + 1 + missing} slices missing: the spacing is {median:.2f} mm, but "
                f"{gaps.max():.2f} mm after position {where:.2f} mm",
                False,
            )
        return f"uneven slice spacing: {gaps.min():.2f} to {gaps.max():.2f} mm (median {median:.2f} mm)", True
    if geometry.tilt_degrees > _TILT_DEGREES:
        return f"gantry tilt of {geometry.tilt_degrees:.1f} degrees: the slices are sheared against each other", True
    return None


def regular_affine(geometry: SliceGeometry, lone_spacing_mm: float | None) -> tuple[np.ndarray, float]:
    """Affine and slice spacing of a regular stack; `lone_spacing_mm` is that of a single slice."""
    count = len(geometry.positions_mm)
    if count == 1:
        assert lone_spacing_mm is not None
        return geometry.affine(geometry.normal * lone_spacing_mm, geometry.positions_mm[0]), lone_spacing_mm
    step = (geometry.positions_mm[-1] - geometry.positions_mm[0]) / (count - 1)
    return geometry.affine(step, geometry.positions_mm[0]), float(np.linalg.norm(step))


def resample_regular(hu: np.ndarray, geometry: SliceGeometry) -> tuple[np.ndarray, np.ndarray, float]:
    """Straightens a sheared stack and evens out its spacing, by linear interpolation; outside is air.

    Each slice is moved within its plane onto a common grid that holds them all; then slices are interpolated along
    the normal at the median spacing. It smooths the noise: not for dose studies.

    Returns:
        hu (depth, height, width), its affine, and its slice spacing in mm.

    Raises:
        GeometryError: if the stack would grow beyond four times its size.
    """
    along = geometry.along_mm
    origin = geometry.positions_mm[0]
    offset = geometry.positions_mm - origin
    shift = np.stack([offset @ geometry.column / geometry.pixel_mm[0], offset @ geometry.row / geometry.pixel_mm[1]], 1)
    low, high = np.floor(shift.min(axis=0)), np.ceil(shift.max(axis=0))
    _, height, width = hu.shape
    size = (int(height + high[0] - low[0]), int(width + high[1] - low[1]))
    spacing = float(np.median(np.diff(along)))
    count = int(np.floor((along[-1] - along[0]) / spacing + 1e-6)) + 1
    if count * size[0] * size[1] > 4 * hu.size:
        raise GeometryError(f"Resampling would grow the volume from {hu.shape} to {(count, *size)} voxels.")
    straight = np.empty((len(hu), *size), dtype=np.float32)
    for k, image in enumerate(hu):
        start = low - shift[k]  # where the common grid's first voxel lies in this slice
        ndimage.affine_transform(
            image,
            (1.0, 1.0),
            offset=start,
            output_shape=size,
            order=1,
            mode="constant",
            cval=AIR_HU,
            output=straight[k],
        )
    targets = along[0] + spacing * np.arange(count)
    upper = np.clip(np.searchsorted(along, targets - 1e-6), 1, len(along) - 1)
    weight = ((targets - along[upper - 1]) / (along[upper] - along[upper - 1])).astype(np.float32)[:, None, None]
    even = (1.0 - weight) * straight[upper - 1] + weight * straight[upper]
    corner = origin + low[0] * geometry.pixel_mm[0] * geometry.column + low[1] * geometry.pixel_mm[1] * geometry.row
    return even, geometry.affine(geometry.normal * spacing, corner), spacing
