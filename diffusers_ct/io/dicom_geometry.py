"""From slice positions to a regular volume, or a refusal with the numbers (DICOM PS3.3 C.7.6.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pydicom
from scipy import ndimage

from ..hounsfield import AIR_HU
from .dicom_conditions import values_of
from .errors import DamagedFileError, GeometryError

_TILT_DEGREES = 0.3
_SPACING_TOLERANCE = 0.02  # of the median spacing, at least the rounding of positions to 0.01 mm
LEAST_SPACING_MM = 1e-3
_LARGEST_MM = 1e5  # of any coordinate


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


def slice_geometry(headers: Sequence[pydicom.Dataset], labels: Sequence[str]) -> tuple[SliceGeometry, np.ndarray]:
    """The place of slices of one orientation, and the order that sorts them along their normal.

    Raises:
        DamagedFileError: naming the file and the element that holds no usable numbers.
        GeometryError: if PixelSpacing changes.
    """
    orientations, positions, pixels = [], [], []
    for header, label in zip(headers, labels):
        orientation = _numbers(header, "ImageOrientationPatient", 6, label)
        row, column = orientation[:3], orientation[3:]
        if abs(row @ row - 1) > 1e-2 or abs(column @ column - 1) > 1e-2 or abs(row @ column) > 1e-2:
            raise DamagedFileError(
                f"{label}: ImageOrientationPatient (0020,0037) {orientation.tolist()} are not two unit vectors at a right angle."
            )
        spacing = _numbers(header, "PixelSpacing", 2, label)
        if not (spacing > 0).all():
            raise DamagedFileError(f"{label}: PixelSpacing (0028,0030) {spacing.tolist()} is not positive.")
        orientations.append(orientation)
        positions.append(_numbers(header, "ImagePositionPatient", 3, label))
        pixels.append(spacing)
    if np.ptp(np.array(pixels), axis=0).max() > 1e-3:
        raise GeometryError(f"{labels[0]}: PixelSpacing (0028,0030) changes within the stack.")
    mean = np.mean(orientations, axis=0)
    row, column = mean[:3] / np.linalg.norm(mean[:3]), mean[3:]
    column = column - (column @ row) * row
    column /= np.linalg.norm(column)
    order = np.argsort(np.array(positions) @ np.cross(row, column), kind="stable")
    y, x = pixels[0]
    return SliceGeometry(np.array(positions)[order], row, column, (float(y), float(x))), order


def _numbers(header: pydicom.Dataset, name: str, count: int, label: str) -> np.ndarray:
    try:
        values = np.array([float(v) for v in values_of(header.get(name))])
    except (TypeError, ValueError):
        raise DamagedFileError(f"{label}: {name} holds no numbers.") from None
    if len(values) != count or not np.isfinite(values).all() or np.abs(values).max() > _LARGEST_MM:
        raise DamagedFileError(
            f"{label}: {name} is missing or has {len(values)} of {count} usable values, so the place of the slice is unknown. "
            "Export the original images anew, not screen captures."
        )
    return values


def find_irregularity(geometry: SliceGeometry) -> tuple[str, bool] | None:
    """What keeps a stack from being a regular volume, and whether resampling can mend it; None if it is regular."""
    gaps = np.diff(geometry.along_mm)
    if len(gaps) == 0:
        return None
    if gaps.min() < LEAST_SPACING_MM:
        count = int((gaps < LEAST_SPACING_MM).sum())
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
                f"{gaps.max():.2f} mm after position {where:.2f} mm. Find the missing files and put them beside the others",
                False,
            )
        return f"uneven slice spacing: {gaps.min():.2f} to {gaps.max():.2f} mm (median {median:.2f} mm)", True
    if geometry.tilt_degrees > _TILT_DEGREES:
        return f"gantry tilt of {geometry.tilt_degrees:.1f} degrees: the slices are sheared against each other", True
    line = np.linspace(geometry.positions_mm[0], geometry.positions_mm[-1], len(geometry.positions_mm))
    aside = np.linalg.norm(geometry.positions_mm - line, axis=1)
    if aside.max() > max(tolerance, 0.1 * min(geometry.pixel_mm)):
        k = int(aside.argmax())
        return (
            f"slices are shifted sideways by up to {aside.max():.2f} mm (at position {geometry.along_mm[k]:.2f} mm)",
            True,
        )
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
