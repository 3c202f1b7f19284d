"""MetaImage (.mha, .mhd) through SimpleITK, whose coordinates are LPS as ours."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..hounsfield import AIR_HU, HU_MIN
from ..volume import CTVolume
from .errors import DamagedFileError, GeometryError
from .metaimage_header import check_header
from .plausibility import check_looks_like_hu, check_volume_bytes


def read_metaimage(path: Path, *, assume_hu: bool) -> CTVolume:
    """Reads a MetaImage as HU; see `read_volume`."""
    declared, holder, compressed = check_header(path)
    check_volume_bytes(holder, declared, compressed=compressed)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO")  # whatever the bytes look like to other readers
    reader.SetFileName(str(path))
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise DamagedFileError(f"{path}: the voxels cannot be read: the file is cut off or damaged.") from error
    hu = sitk.GetArrayFromImage(image).astype(np.float32)
    check_looks_like_hu(path, hu, assume_hu=assume_hu)
    hu[hu < HU_MIN] = AIR_HU
    x, y, z = image.GetSpacing()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array([x, y, z])
    affine[:3, 3] = image.GetOrigin()
    columns = affine[:3, :3] / np.array([x, y, z])
    if np.abs(columns.T @ columns - np.eye(3)).max() > 1e-3:
        raise GeometryError(f"{path}: the axes are not at right angles (TransformMatrix): straighten the volume first.")
    return CTVolume(hu, (z, y, x), affine)


def write_metaimage(volume: CTVolume, path: Path, facts: Mapping[str, Any]) -> Path:
    """Writes float32 HU; the file appears whole or not at all.

    `facts` of how it was made go into header fields named DiffusersCT_<name>.
    """
    image = sitk.GetImageFromArray(volume.hu)
    z, y, x = volume.spacing_mm
    image.SetSpacing((x, y, z))
    image.SetOrigin(tuple(volume.affine_lps[:3, 3]))
    image.SetDirection((volume.affine_lps[:3, :3] / np.array([x, y, z])).ravel().tolist())
    for name, value in facts.items():
        image.SetMetaData(f"DiffusersCT_{name}", " ".join(str(value).splitlines()))  # a header field ends with its line
    partial = path.with_name(f".{secrets.token_hex(4)}.partial.mha")
    try:
        sitk.WriteImage(image, str(partial), useCompression=True)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path
