"""MetaImage (.mha, .mhd), whose coordinates are LPS as ours; read through SimpleITK."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..hounsfield import AIR_HU, HU_MIN
from ..volume import CTVolume, ScanSlices
from .errors import DamagedFileError, GeometryError
from .metaimage_header import check_header
from .plausibility import check_looks_like_hu, check_volume_bytes
from .volume_header import VolumeHeader

_DATA_TYPES = {
    sitk.sitkInt8: np.int8, sitk.sitkUInt8: np.uint8, sitk.sitkInt16: np.int16, sitk.sitkUInt16: np.uint16,
    sitk.sitkInt32: np.int32, sitk.sitkUInt32: np.uint32, sitk.sitkInt64: np.int64, sitk.sitkUInt64: np.uint64,
    sitk.sitkFloat32: np.float32, sitk.sitkFloat64: np.float64,
}  # fmt: skip


def read_metaimage(path: Path, *, assume_hu: bool) -> CTVolume:
    """Reads a MetaImage as HU; see `read_volume`."""
    header, reader = _open(path)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise DamagedFileError(f"{path}: the voxels cannot be read: the file is cut off or damaged.") from error
    hu = sitk.GetArrayFromImage(image).astype(np.float32)
    check_looks_like_hu(path, hu, assume_hu=assume_hu)
    hu[hu < HU_MIN] = AIR_HU
    return CTVolume(hu, header.spacing_mm, header.affine_lps)


def metaimage_header(path: Path) -> VolumeHeader:
    """Header of a .mha or .mhd file.

    Raises:
        CTReadError: as `read_volume`, as far as the header tells.
    """
    return _open(path)[0]


def _open(path: Path) -> tuple[VolumeHeader, sitk.ImageFileReader]:
    """The checked header, and the reader with the voxels still in the file."""
    declared, holder, compressed = check_header(path)
    check_volume_bytes(holder, declared, compressed=compressed)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO")  # whatever the bytes look like to other readers
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise DamagedFileError(f"{path}: the MetaImage header is damaged.") from error
    spacing = np.array(reader.GetSpacing())
    direction = np.array(reader.GetDirection()).reshape(3, 3)
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = reader.GetOrigin()
    if np.abs(direction.T @ direction - np.eye(3)).max() > 1e-3:
        raise GeometryError(f"{path}: the axes are not at right angles (TransformMatrix): straighten the volume first.")
    data_type = np.dtype(_DATA_TYPES[reader.GetPixelID()])
    return VolumeHeader.of(path, reader.GetSize(), affine, data_type), reader


def metaimage_start(like: ScanSlices, facts: Mapping[str, Any], *, compressed_bytes: int) -> bytes:
    """The header of a .mha file, before its zlib stream of float32 HU; as long for any `compressed_bytes`.

    `facts` of how it was made go into fields named DiffusersCT_<name>.
    """
    depth, height, width = like.shape
    z, y, x = like.spacing_mm
    directions = like.affine_lps[:3, :3] / np.array([x, y, z])
    fields = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "True",
        "CompressedDataSize": f"{compressed_bytes:015d}",
        "TransformMatrix": _row(directions.T.ravel()),  # one axis after another
        "Offset": _row(like.affine_lps[:3, 3]),
        "CenterOfRotation": "0 0 0",
        "ElementSpacing": _row((x, y, z)),
        "DimSize": f"{width} {height} {depth}",
        "ElementType": "MET_FLOAT",
    }
    # A header field ends with its line.
    fields |= {f"DiffusersCT_{name}": " ".join(str(value).splitlines()) for name, value in facts.items()}
    fields["ElementDataFile"] = "LOCAL"
    return "".join(f"{name} = {value}\n" for name, value in fields.items()).encode()


def _row(numbers: Iterable[float]) -> str:
    return " ".join(repr(float(number)) for number in numbers)
