"""What is no CT image in Hounsfield units, and which files are copies of one another."""

import hashlib
from collections import defaultdict

import numpy as np
import pydicom

from .archives import Storage
from .dicom_conditions import values_of
from .dicom_files import CT_IMAGE_STORAGE, DicomFile, Slice
from .dicom_multiframe import ENHANCED_CT, is_multiframe
from .dicom_pixels import transfer_syntax
from .errors import CTReadError, DamagedFileError, NotCTError

# Defined terms of RescaleType (PS3.3 C.11.1.1.2) that are not HU.
_NOT_HU = ("OD", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT", "CC_M", "MV", "VMR")
# Values of ImageType and FrameType (PS3.3 C.8.16.1.4, table C.8-131) for maps of something else.
_MAPS = (
    "PERFUSION", "RCBF", "RCBV", "CBF", "CBV", "MTT", "TTP", "TMAX", "PEI", "PERMEABILITY", "ELECTRON_DENSITY",
    "EFF_ATOMIC_NUM", "MAT_FRACTIONAL", "MAT_SPECIFIC", "MAT_MODIFIED", "MAT_REMOVED", "VALUE_BASED_COLOR",
)  # fmt: skip
_HU_CODE = "[hnsf'U]"  # UCUM


def check_is_ct(header: pydicom.Dataset, label: str) -> None:
    """Refuses what is not a CT image in HU.

    Raises:
        CTReadError: NotCTError for another kind of object, DamagedFileError for one that lacks what it needs.
    """
    if "ReferencedFrameNumber" not in header and is_multiframe(header):
        raise NotCTError(
            f"{label}: a multi-frame object (NumberOfFrames {header.get('NumberOfFrames')}) whose functional groups do not "
            "say where its frames lie. Convert it to Enhanced CT or to one file a slice with the tool that made it."
        )
    modality = header.get("Modality")
    known = (CT_IMAGE_STORAGE, *ENHANCED_CT, None)
    if modality not in ("CT", None, "") or (not modality and header.get("SOPClassUID") not in known):
        raise NotCTError(f"{label}: the modality (0008,0060) is {modality!r}, not CT. Choose a CT series.")
    if header.get("PhotometricInterpretation") not in ("MONOCHROME2", None, ""):
        raise NotCTError(
            f"{label}: PhotometricInterpretation (0028,0004) is {header.get('PhotometricInterpretation')!r}, a CT image has "
            "MONOCHROME2: the values' meaning is not certain. Export the original images."
        )
    if header.get("RescaleType") in _NOT_HU:
        raise NotCTError(f"{label}: the values are of RescaleType (0028,1054) {header.RescaleType}, not HU.")
    words = [str(word).upper() for word in values_of(header.get("ImageType"))]
    maps = [word for word in words if word in _MAPS]
    if maps:
        raise NotCTError(
            f"{label}: ImageType (0008,0008) says {maps[-1]}: a map, not HU. Choose the series it was made of."
        )
    unit = _unit(header)
    if unit not in (None, _HU_CODE):
        raise NotCTError(f"{label}: RealWorldValueMappingSequence (0040,9096) gives the unit {unit}, not HU.")
    try:
        slope, intercept = float(header.RescaleSlope), float(header.RescaleIntercept)
    except (AttributeError, TypeError, ValueError):
        raise DamagedFileError(
            f"{label}: RescaleSlope (0028,1053) and RescaleIntercept (0028,1052) are missing, so the values cannot be turned "
            "into HU. Export the original images anew."
        ) from None
    if not (np.isfinite(slope) and np.isfinite(intercept) and 0 < slope < 1e4 and abs(intercept) < 1e6):
        raise DamagedFileError(
            f"{label}: RescaleSlope (0028,1053) {slope} and RescaleIntercept (0028,1052) {intercept} give no HU."
        )


def _unit(header: pydicom.Dataset) -> str | None:
    """The lifted Real World Value Mapping of a frame (PS3.3 C.7.6.16.2.11)."""
    if "RealWorldValueSlope" not in header:
        return None
    items = values_of(header.get("MeasurementUnitsCodeSequence"))
    code = items[0].get("CodeValue") if items and isinstance(items[0], pydicom.Dataset) else None
    return str(code) if code else None


def drop_copies(storage: Storage, slices: list[Slice]) -> tuple[list[Slice], dict[int, int]]:
    """Leaves out bit-identical copies of one instance; two that differ stay and are refused where they coincide.

    Copies agree in all elements but the file meta group and in their encoded pixels.

    Returns:
        The slices that stay, and how many copies of a slice were left out, by its `id`.
    """
    same: dict[tuple[str, int], list[Slice]] = defaultdict(list)
    for one in slices:
        uid = str(one.header.get("SOPInstanceUID", "") or "")
        same[uid or f"{id(one)}", one.frame].append(one)
    doubled = [group for group in same.values() if len(group) > 1]
    if not doubled:
        return slices, {}
    wanted = {one.file.stored.number: one.file for group in doubled for one in group}
    digests = _pixel_digests(storage, wanted)
    gone: set[int] = set()
    copies: dict[int, int] = defaultdict(int)
    for group in doubled:
        kept: list[Slice] = []
        for one in group:
            original = next((other for other in kept if _is_copy(one.file, other.file, digests)), None)
            if original is None:
                kept.append(one)
            else:
                gone.add(id(one))
                copies[id(original)] += 1
    return [one for one in slices if id(one) not in gone], copies


def _pixel_digests(storage: Storage, wanted: dict[int, DicomFile]) -> dict[int, bytes]:
    digests = {}
    for stored, opener in storage.scan(set(wanted)):
        file, digest = wanted[stored.number], hashlib.sha256()
        with opener() as stream:
            stream.allow(stored.size)
            stream.seek(0 if file.deflated else file.pixels_at or 0)
            while chunk := stream.read(2**20):
                digest.update(chunk)
        digests[stored.number] = digest.digest()
    return digests


def _is_copy(a: DicomFile, b: DicomFile, digests: dict[int, bytes]) -> bool:
    if digests[a.stored.number] != digests[b.stored.number] or transfer_syntax(a.header) != transfer_syntax(b.header):
        return False
    try:
        return bool(a.header == b.header)
    except (CTReadError, ValueError, TypeError, AttributeError):
        return False
