"""What the header of a NIfTI or MetaImage file says, checked before any voxel is read."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import CTReadError, NotCTError
from .plausibility import no_air


@dataclass(frozen=True, eq=False)
class VolumeHeader:
    """Place and kind of the voxels of one file.

    Attributes:
        shape: (depth, height, width).
        spacing_mm: (z, y, x).
        affine_lps: as in `CTVolume`.
        data_type: of the stored values, such as "int16".
        least_value: smallest value that can be stored, after scaling.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    affine_lps: np.ndarray
    data_type: str
    least_value: float

    @classmethod
    def of(
        cls,
        path: Path,
        size: tuple[int, ...],
        affine_lps: np.ndarray,
        data_type: np.dtype,
        slope: float = 1.0,
        intercept: float = 0.0,
    ) -> "VolumeHeader":
        """From the number of voxels along (x, y, z), and how stored values become HU.

        Raises:
            CTReadError: if the values are no numbers, such as colours.
        """
        if data_type.kind not in "iuf":
            raise CTReadError(f"{path}: a CT volume has one number a voxel, this has values of the type {data_type}.")
        x, y, z = (float(length) for length in np.linalg.norm(affine_lps[:3, :3], axis=0))
        least = -np.inf
        if data_type.kind in "iu":
            info = np.iinfo(data_type)
            least = min(slope * info.min, slope * info.max) + intercept
        return cls((size[2], size[1], size[0]), (z, y, x), affine_lps, data_type.name, float(least))

    def check_can_hold_hu(self, path: Path) -> None:
        """Refuses a type of values that cannot hold air; what `read_volume` would find out from the voxels.

        Raises:
            NotCTError: naming the type.
        """
        if no_air(self.least_value):
            raise NotCTError(
                f"{path}: its values, {self.data_type} from {self.least_value:g} on, hold no air (-1000): they do not look "
                "like Hounsfield units. If they are, pass assume_hu=True."
            )
