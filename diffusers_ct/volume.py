"""`CTVolume`: a scan in Hounsfield units with its place in the patient; `ScanSlices`: one that is never whole in memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy import ndimage

from .conditions import ScanConditions
from .hounsfield import AIR_HU


@dataclass(frozen=True, eq=False)
class CTVolume:
    """One CT scan.

    Attributes:
        hu: (depth, height, width) float32 in HU.
        spacing_mm: (z, y, x): distance of neighbouring slices, rows, columns.
        affine_lps: (4, 4) float64; maps (column, row, slice, 1) to the patient's LPS coordinates in mm
            (x to the left, y to the posterior, z to the head: DICOM PS3.3 C.7.6.2.1.1, and ITK's convention).
        conditions: how the scan was made.
        synthetic: whether no patient was scanned; it is written only with a derivation that says so.
        source: the header it was read from; opaque, made and used by `diffusers_ct.io`; never pickled or logged.
    """

    hu: np.ndarray
    spacing_mm: tuple[float, float, float]
    affine_lps: np.ndarray
    conditions: ScanConditions = field(default_factory=ScanConditions)
    source: Any = field(default=None, repr=False)
    synthetic: bool = False

    def __post_init__(self) -> None:
        hu = np.ascontiguousarray(self.hu, dtype=np.float32)
        if hu.ndim != 3 or hu.size == 0:
            raise ValueError(f"`hu` must be (depth, height, width) and not empty, got shape {np.shape(self.hu)}.")
        spacing = tuple(float(s) for s in self.spacing_mm)
        if len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing):
            raise ValueError(f"`spacing_mm` must be three positive numbers (z, y, x), got {self.spacing_mm}.")
        affine = np.array(self.affine_lps, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], [0, 0, 0, 1]):
            raise ValueError("`affine_lps` must be a finite (4, 4) matrix with last row (0, 0, 0, 1).")
        lengths = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
        if not np.allclose(lengths, spacing, rtol=1e-3):
            raise ValueError(
                f"`spacing_mm` (z, y, x) = {spacing} does not agree with the columns of `affine_lps`, "
                f"whose lengths are {tuple(float(v) for v in lengths)}."
            )
        object.__setattr__(self, "hu", hu)
        object.__setattr__(self, "spacing_mm", spacing)
        object.__setattr__(self, "affine_lps", affine)

    @classmethod
    def from_array(
        cls,
        hu: np.ndarray,
        spacing_mm: tuple[float, float, float],
        conditions: ScanConditions | None = None,
    ) -> "CTVolume":
        """Builds an axial volume centred at the origin of LPS from (depth, height, width) HU."""
        z, y, x = (float(s) for s in spacing_mm)
        affine = np.diag([x, y, z, 1.0])
        depth, height, width = np.shape(hu)
        affine[:3, 3] = [-x * (width - 1) / 2, -y * (height - 1) / 2, -z * (depth - 1) / 2]
        return cls(hu, (z, y, x), affine, conditions or ScanConditions())

    @property
    def shape(self) -> tuple[int, int, int]:
        depth, height, width = self.hu.shape
        return depth, height, width

    def with_hu(self, hu: np.ndarray) -> "CTVolume":
        """The same scan with other voxel values of the same shape."""
        if np.shape(hu) != self.shape:
            raise ValueError(f"The new values have shape {np.shape(hu)}, the scan has {self.shape}.")
        return replace(self, hu=hu)

    def crop(self, start: Sequence[int], size: Sequence[int]) -> "CTVolume":
        """The box of `size` voxels (z, y, x) that begins at voxel `start`; the affine follows, the source does not.

        Raises:
            ValueError: if the box leaves the volume.
        """
        stop = [a + b for a, b in zip(start, size)]
        if any(a < 0 or b < 1 for a, b in zip(start, size)) or any(e > n for e, n in zip(stop, self.shape)):
            raise ValueError(f"The box from {tuple(start)} of {tuple(size)} voxels leaves the volume of {self.shape}.")
        box = tuple(slice(a, b) for a, b in zip(start, stop))
        affine = self.affine_lps.copy()
        affine[:, 3] = self.affine_lps @ np.array([start[2], start[1], start[0], 1.0])
        return replace(self, hu=self.hu[box].copy(), affine_lps=affine, source=None)

    def resample(self, spacing_mm: tuple[float, float, float]) -> "CTVolume":
        """Trilinear resampling to `spacing_mm` (z, y, x); outside is air. Smooths the noise: not for dose studies."""
        new = tuple(float(s) for s in spacing_mm)
        extent = [(n - 1) * s for n, s in zip(self.shape, self.spacing_mm)]
        shape = tuple(int(np.floor(e / s + 1e-6)) + 1 for e, s in zip(extent, new))
        scale = [b / a for a, b in zip(self.spacing_mm, new)]
        hu = ndimage.affine_transform(self.hu, scale, output_shape=shape, order=1, mode="constant", cval=AIR_HU)
        affine = self.affine_lps.copy()
        affine[:3, :3] = affine[:3, :3] * np.array(scale[::-1])
        return CTVolume(hu, (new[0], new[1], new[2]), affine, self.conditions, synthetic=self.synthetic)


@dataclass(frozen=True, eq=False)
class ScanSlices:
    """A scan whose voxels are read some slices at a time; the other attributes are those of `CTVolume`.

    Attributes:
        shape: (depth, height, width).
        spacing_mm: (z, y, x).
        affine_lps: (4, 4) float64.
        read: f(start, stop) -> (stop - start, height, width) float32 in HU.
        conditions: how the scan was made.
        source: the header it was read from.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    affine_lps: np.ndarray
    read: Callable[[int, int], np.ndarray]
    conditions: ScanConditions = field(default_factory=ScanConditions)
    source: Any = field(default=None, repr=False)

    @classmethod
    def of(cls, volume: CTVolume) -> "ScanSlices":
        """Of a scan in memory."""

        def read(start: int, stop: int) -> np.ndarray:
            return volume.hu[start:stop]

        return cls(volume.shape, volume.spacing_mm, volume.affine_lps, read, volume.conditions, volume.source)
