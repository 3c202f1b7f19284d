"""What a NIfTI or MetaImage file holds and whether it can be read as a CT scan."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..volume import CTVolume
from .archives import VOLUME_SUFFIXES
from .dicom_groups import plane_of
from .dicom_read import only_read_errors
from .errors import CTReadError
from .metaimage import metaimage_header, read_metaimage
from .nifti import nifti_header, read_nifti
from .volume_header import VolumeHeader


@dataclass(frozen=True)
class VolumeReport:
    """One file as `inspect` shows it; None where it cannot be told.

    Attributes:
        path: of the file; may name a patient.
        format: "NIfTI" or "MetaImage".
        shape: (depth, height, width).
        spacing_mm: (z, y, x).
        orientation: plane of the slices: "axial", "coronal", "sagittal" or "oblique".
        data_type: of the stored values.
        hu_range: smallest and largest value, where the voxels were read.
        usable: "yes" or "no": whether `read_volume` takes it.
        reason: why not, and what to do.
    """

    path: str
    format: str
    shape: tuple[int, int, int] | None
    spacing_mm: tuple[float, float, float] | None
    orientation: str
    data_type: str | None
    hu_range: tuple[float, float] | None
    usable: str
    reason: str


def is_volume_file(path: Path) -> bool:
    """Whether the name is that of a NIfTI or MetaImage file."""
    return path.name.lower().endswith(VOLUME_SUFFIXES)


def inspect_volume(path: Path, *, voxels: bool) -> VolumeReport:
    """Looks at a file with the reader of `read_volume`.

    Args:
        path: a file.
        voxels: read them too; else only the header, which does not tell whether the values are HU.
    """
    nifti = path.name.lower().endswith(VOLUME_SUFFIXES[:2])
    header_of: Callable[[Path], VolumeHeader] = nifti_header if nifti else metaimage_header
    read: Callable[..., CTVolume] = read_nifti if nifti else read_metaimage
    header, hu_range, usable, reason = None, None, "yes", ""
    try:
        with only_read_errors(path):
            header = header_of(path)
            if voxels:
                hu = read(path, assume_hu=False).hu
                hu_range = (float(hu.min()), float(hu.max()))
            else:
                header.check_can_hold_hu(path)
    except CTReadError as error:
        usable, reason = "no", str(error)
    except OSError as error:
        usable, reason = "no", f"{path}: the file cannot be read ({error.strerror or type(error).__name__})."
    return VolumeReport(
        path=str(path),
        format="NIfTI" if nifti else "MetaImage",
        shape=header.shape if header else None,
        spacing_mm=tuple(round(s, 4) for s in header.spacing_mm) if header else None,  # type: ignore[arg-type]
        orientation=_plane(header.affine_lps) if header else "unknown",
        data_type=header.data_type if header else None,
        hu_range=hu_range,
        usable=usable,
        reason=reason,
    )


def _plane(affine_lps: np.ndarray) -> str:
    row, column = (affine_lps[:3, k] / np.linalg.norm(affine_lps[:3, k]) for k in (0, 1))
    return plane_of((*row, *column))
