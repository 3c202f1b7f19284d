"""Pixels of one classic DICOM CT image, checked before they are decoded (DICOM PS3.5 sections 7.5, 8 and annex A)."""

import warnings
from pathlib import Path

import numpy as np
import pydicom
from pydicom.encaps import generate_frames
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from ..hounsfield import AIR_HU, HU_MIN
from .errors import DamagedFileError

# Compressed CT is 2 to 4 times smaller, extreme lossy some 40 times: a header that promises more than this lies.
_LARGEST_COMPRESSION = 2000


def check_declared_size(header: pydicom.Dataset, path: Path) -> None:
    """Refuses a header that declares more pixels than the file can hold, before memory is taken.

    Raises:
        DamagedFileError: naming both numbers.
    """
    rows, columns, bits = (int(header.get(k) or 0) for k in ("Rows", "Columns", "BitsAllocated"))
    if rows < 1 or columns < 1:
        raise DamagedFileError(
            f"{path}: the header gives no image size (Rows, Columns); the file is cut off or damaged."
        )
    if bits != 16 or int(header.get("SamplesPerPixel") or 1) != 1:
        raise DamagedFileError(
            f"{path}: a CT image has one sample of 16 bits a pixel (DICOM PS3.3 C.8.2.1), this has "
            f"{header.get('SamplesPerPixel')} of {bits} bits."
        )
    if not 1 <= int(header.get("BitsStored") or bits) <= bits:
        raise DamagedFileError(f"{path}: BitsStored is {header.get('BitsStored')} of {bits} allocated bits.")
    declared, there = rows * columns * bits // 8, path.stat().st_size
    syntax = transfer_syntax(header)
    if there < (declared // _LARGEST_COMPRESSION if syntax.is_encapsulated else declared):
        raise DamagedFileError(
            f"{path}: the header declares {rows} x {columns} pixels ({declared} bytes), but the whole file has only "
            f"{there} bytes: it is cut off or its header is wrong."
        )


def transfer_syntax(header: pydicom.Dataset) -> UID:
    """The file's transfer syntax; implicit little endian where there is no file meta group (PS3.5 section 10.1)."""
    meta = getattr(header, "file_meta", None)
    return UID(meta.TransferSyntaxUID) if meta is not None and "TransferSyntaxUID" in meta else UID("1.2.840.10008.1.2")


def stored_values(dataset: pydicom.Dataset, path: Path) -> np.ndarray:
    """Stored values (rows, columns) as the file's own signed or unsigned 16-bit integers.

    Raises:
        DamagedFileError: if the pixel data are missing, cut off, not in the declared encoding or cannot be decoded.
    """
    if "PixelData" not in dataset:
        raise DamagedFileError(f"{path}: the file holds no complete pixel data: it is cut off.")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    syntax = transfer_syntax(dataset)
    if syntax.is_encapsulated:
        return _decode(dataset, syntax, path)
    data, expected = dataset.PixelData, rows * columns * 2
    if len(data) not in (expected, expected + expected % 2):
        raise DamagedFileError(
            f"{path}: {rows} x {columns} pixels need {expected} bytes of pixel data, there are {len(data)}."
        )
    signed = int(dataset.get("PixelRepresentation") or 0)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    values = np.frombuffer(data, dtype=f"{order}{'i' if signed else 'u'}2", count=rows * columns).reshape(rows, columns)
    stored = int(dataset.get("BitsStored") or 16)
    if stored < 16:  # bits above BitsStored are not part of the value (PS3.5 section 8.1.1)
        shift = 16 - stored
        values = np.right_shift(np.left_shift(values, shift), shift)
    return values


def _decode(dataset: pydicom.Dataset, syntax: UID, path: Path) -> np.ndarray:
    if not dataset["PixelData"].is_undefined_length:
        raise DamagedFileError(
            f"{path}: the header declares {syntax.name}, but the pixel data are not encapsulated: the transfer syntax or "
            "the pixel data are wrong."
        )
    try:
        frames = list(generate_frames(dataset.PixelData, number_of_frames=1))
    except Exception as error:
        raise DamagedFileError(f"{path}: the compressed pixel data are damaged ({error}).") from error
    if len(frames) != 1 or not frames[0]:
        raise DamagedFileError(f"{path}: one compressed frame is declared, {len(frames)} are there.")
    _check_code_stream(frames[0], syntax, dataset, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # decoders warn where they had to guess
            warnings.filterwarnings("ignore", message=".*(value|length|VR|bits).*", category=UserWarning)
            values = dataset.pixel_array
    except Exception as error:
        raise DamagedFileError(f"{path}: the {syntax.name} pixel data cannot be decoded ({error}).") from error
    if values.shape != (int(dataset.Rows), int(dataset.Columns)):
        raise DamagedFileError(f"{path}: the decoded image is {values.shape}, the header says otherwise.")
    return values


def _check_code_stream(frame: bytes, syntax: UID, dataset: pydicom.Dataset, path: Path) -> None:
    """Refuses a code stream that is cut off or declares more than there is, which some decoders fill with garbage."""
    if syntax in JPEG2000TransferSyntaxes:
        _check_jpeg2000(frame, path)
    elif syntax in JPEGTransferSyntaxes or syntax in JPEGLSTransferSyntaxes:
        if not frame.startswith(b"\xff\xd8"):
            raise DamagedFileError(f"{path}: the pixel data are no JPEG code stream, as {syntax.name} would have it.")
        if b"\xff\xd9" not in frame[-64:]:
            raise DamagedFileError(f"{path}: the JPEG code stream has no end (EOI marker): the file is cut off.")
    elif syntax == RLELossless:
        segments = int.from_bytes(frame[:4], "little")
        offsets = [int.from_bytes(frame[4 + 4 * i : 8 + 4 * i], "little") for i in range(min(segments, 15))]
        if segments != 2 or offsets[0] != 64 or not offsets[0] < offsets[1] < len(frame):
            raise DamagedFileError(
                f"{path}: the RLE header is wrong (PS3.5 annex G.5): {segments} segments, {offsets}."
            )


def _check_jpeg2000(frame: bytes, path: Path) -> None:
    """Walks the tile-parts (ISO/IEC 15444-1 annex A.4.2): each must end within the data."""
    start = frame.find(b"\xff\x4f\xff\x51")
    if start < 0:
        raise DamagedFileError(f"{path}: the pixel data are no JPEG 2000 code stream.")
    position = start + 2
    while position + 4 <= len(frame):
        marker = int.from_bytes(frame[position : position + 2], "big")
        if marker == 0xFFD9:
            return
        length = int.from_bytes(frame[position + 2 : position + 4], "big")
        if marker == 0xFF90:  # SOT: the tile-part's length counts from the marker, 0 means to the end
            part = int.from_bytes(frame[position + 6 : position + 10], "big")
            if part and position + part > len(frame):
                raise DamagedFileError(
                    f"{path}: a JPEG 2000 tile-part declares {part} bytes, but only {len(frame) - position} are left: the "
                    "file is cut off or was written by a faulty encoder. Decode and write it anew with a tool you trust."
                )
            if part == 0:
                return
            position += part
        else:
            position += 2 + length


def to_hu(values: np.ndarray, header: pydicom.Dataset, path: Path) -> np.ndarray:
    """HU = slope x stored + intercept (PS3.3 C.11.1), float32; padding becomes air.

    Padding is what PixelPaddingValue (and PixelPaddingRangeLimit, PS3.3 C.7.5.1.1.2) name, and all below -1024 HU.
    """
    slope, intercept = float(header.RescaleSlope), float(header.RescaleIntercept)
    hu = values.astype(np.float32)
    if slope != 1.0:
        hu *= np.float32(slope)
    hu += np.float32(intercept)
    padding = header.get("PixelPaddingValue")
    if padding is not None:
        low = _as_stored(padding, header)
        limit = header.get("PixelPaddingRangeLimit")
        high = low if limit is None else _as_stored(limit, header)
        low, high = min(low, high), max(low, high)
        if high * slope + intercept <= -900.0:  # a padding value that would be tissue is a wrong header
            hu[(values >= low) & (values <= high)] = AIR_HU
    hu[hu < HU_MIN] = AIR_HU
    return hu


def _as_stored(value: object, header: pydicom.Dataset) -> int:
    """A padding value in the stored values' own sign: it is often written as unsigned where pixels are signed."""
    number = int(value)  # type: ignore[call-overload]
    if int(header.get("PixelRepresentation") or 0) and number >= 2**15:
        number -= 2**16
    return number
