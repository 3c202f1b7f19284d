"""NIfTI: the only place that turns RAS into LPS and back."""

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..hounsfield import AIR_HU, HU_MIN
from ..volume import CTVolume, ScanSlices
from .errors import CTReadError, DamagedFileError, GeometryError
from .plausibility import check_looks_like_hu, check_volume_bytes
from .volume_header import VolumeHeader

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_nifti(path: Path, *, assume_hu: bool) -> CTVolume:
    """Reads .nii or .nii.gz as HU; see `read_volume`."""
    header, image = _open(path)
    try:
        data = np.asarray(image.dataobj, dtype=np.float32).reshape(header.shape[::-1])
    except Exception as error:
        raise DamagedFileError(f"{path}: the voxels cannot be read ({_reason(error)}).") from error
    check_looks_like_hu(path, data, assume_hu=assume_hu)
    hu = np.ascontiguousarray(data.transpose(2, 1, 0))
    hu[hu < HU_MIN] = AIR_HU
    return CTVolume(hu, header.spacing_mm, header.affine_lps)


def other_handedness(affine: np.ndarray) -> np.ndarray:
    """(4, 4) from LPS to RAS, or from RAS to LPS: turning both axes twice changes nothing."""
    return _RAS_TO_LPS @ affine


def nifti_header(path: Path) -> VolumeHeader:
    """Header of a .nii or .nii.gz file.

    Raises:
        CTReadError: as `read_volume`, as far as the header tells.
    """
    return _open(path)[0]


def _open(path: Path) -> tuple[VolumeHeader, Any]:
    """The checked header, and nibabel's image with its voxels still in the file."""
    if path.stat().st_size == 0:
        raise DamagedFileError(f"{path}: the file is empty. Get it anew.")
    try:
        image: Any = nib.load(path)
        shape, affine = image.shape, np.asarray(image.affine, dtype=np.float64)
        data_type = image.get_data_dtype()
        slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
        unit = image.header.get_xyzt_units()[0]
    except Exception as error:
        raise DamagedFileError(f"{path}: the NIfTI header cannot be read ({type(error).__name__}).") from error
    shape = tuple(shape[:3]) if len(shape) == 4 and shape[3] == 1 else tuple(shape)
    if len(shape) != 3 or min(shape) < 1:
        raise CTReadError(f"{path}: a CT volume has three axes, this has the shape {shape}.")
    if unit not in ("mm", "unknown"):
        raise CTReadError(f"{path}: the unit of length is {unit!r}; convert it to mm.")
    compressed = path.name.lower().endswith(".gz")
    check_volume_bytes(path, int(np.prod(shape, dtype=object)) * data_type.itemsize, compressed=compressed)
    columns = affine[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    if not (np.isfinite(affine).all() and (lengths > 1e-4).all()):
        raise DamagedFileError(f"{path}: the affine has no valid voxel size.")
    if np.abs((columns / lengths).T @ (columns / lengths) - np.eye(3)).max() > 1e-3:
        raise GeometryError(f"{path}: the affine is sheared (gantry tilt kept in it): straighten the volume first.")
    return VolumeHeader.of(path, shape, _RAS_TO_LPS @ affine, data_type, slope, intercept), image


def _reason(error: Exception) -> str:
    """The error in a few words, without a path: the message begins with it."""
    return "the file ends before them" if isinstance(error, EOFError | OSError) else type(error).__name__


def nifti_start(like: ScanSlices, facts: Mapping[str, Any]) -> bytes:
    """What stands before the voxels, float32 HU slice after slice, in a .nii file.

    `facts` of how it was made go into a comment extension (code 6) as JSON, and their short form into `descrip`.
    """
    image = nib.Nifti1Image(np.zeros((1, 1, 1), dtype=np.float32), _RAS_TO_LPS @ like.affine_lps)
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    header = image.header
    header.set_data_shape(like.shape[::-1])
    header.set_xyzt_units("mm")
    header.set_slope_inter(1.0, 0.0)
    if facts:
        word = "SYNTHETIC" if facts.get("synthetic") else "DERIVED"
        short = " ".join(f"{word}; {facts.get('method', '')}".splitlines())
        header["descrip"] = short[:79].encode("ascii", "replace")
        header.extensions.append(nib.nifti1.Nifti1Extension("comment", json.dumps(facts).encode()))
    stream = BytesIO()
    header.write_to(stream)
    return stream.getvalue()
