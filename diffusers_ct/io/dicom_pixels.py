"""Pixels of CT images, checked before they are decoded, one frame at a time (DICOM PS3.5 sections 7.5, 8, annex A)."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import openjpeg.utils
import pydicom
from pydicom.encaps import encapsulate, generate_fragments, parse_basic_offsets
from pydicom.pixels import get_decoder
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from ..hounsfield import AIR_HU, HU_MIN
from .bounded_stream import BoundedStream
from .dicom_files import DicomFile, inflated
from .dicom_multiframe import frame_count
from .errors import CTReadError, DamagedFileError, NotCTError

# Compressed CT is 2 to 4 times smaller, extreme lossy some 40 times: a header that promises more than this lies.
_LARGEST_COMPRESSION = 2000
_HTJ2K = ("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203")
_ENCAPSULATED_UNCOMPRESSED = "1.2.840.10008.1.2.1.98"
_DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
_PIXEL_DATA = 0x7FE00010
_UNDEFINED = 0xFFFFFFFF
_NO_EOI = (RLELossless, _ENCAPSULATED_UNCOMPRESSED, _DEFLATED_FRAMES)  # one fragment a frame (PS3.5 A.4.2, A.4.11)


def check_declared_size(
    header: pydicom.Dataset, label: str, file_bytes: int, *, deflated: bool, frames: int = 1
) -> None:
    """Refuses a header that declares more pixels than the file can hold, before memory is taken.

    Raises:
        DamagedFileError: naming both numbers.
    """
    rows, columns, bits = (int(header.get(k) or 0) for k in ("Rows", "Columns", "BitsAllocated"))
    if rows < 1 or columns < 1:
        raise DamagedFileError(
            f"{label}: Rows is {rows} and Columns {columns}: the file is cut off or its header is damaged. Get it anew."
        )
    if bits != 16 or int(header.get("SamplesPerPixel") or 1) != 1:
        raise DamagedFileError(
            f"{label}: a CT image has one sample of 16 bits a pixel (DICOM PS3.3 C.8.2.1), this has SamplesPerPixel "
            f"{header.get('SamplesPerPixel')} of BitsAllocated {bits}: it is a picture for display. Export the original."
        )
    if not 1 <= int(header.get("BitsStored") or bits) <= bits:
        raise DamagedFileError(f"{label}: BitsStored is {header.get('BitsStored')} of {bits} allocated bits.")
    high = header.get("HighBit")
    if high is not None and high != int(header.get("BitsStored") or bits) - 1:
        raise DamagedFileError(
            f"{label}: HighBit (0028,0102) is {high} with BitsStored {header.get('BitsStored')}; a CT image has one less than "
            "BitsStored (DICOM PS3.3 C.8.2.1): which bits are the value is not certain. Export the file anew."
        )
    check_transfer_syntax(header, label)
    declared = frames * rows * columns * bits // 8
    packed = deflated or is_encapsulated(transfer_syntax(header))
    if file_bytes < (declared // _LARGEST_COMPRESSION if packed else declared):
        raise DamagedFileError(
            f"{label}: the header declares {f'{frames} frames of ' if frames > 1 else ''}{rows} x {columns} pixels "
            f"({declared} bytes), but the whole file has only {file_bytes} bytes: it is cut off or its header is wrong. "
            "Get it anew."
        )


def transfer_syntax(header: pydicom.Dataset) -> UID:
    """The file's transfer syntax; implicit little endian where there is no file meta group (PS3.5 section 10.1)."""
    meta = getattr(header, "file_meta", None)
    return (
        UID(str(meta.TransferSyntaxUID)) if meta is not None and "TransferSyntaxUID" in meta else ImplicitVRLittleEndian
    )


def is_encapsulated(syntax: UID) -> bool:
    """Whether pixel data are wrapped into fragments; pydicom's dictionary ends in 2024."""
    return str(syntax) == _DEFLATED_FRAMES or bool(syntax.is_encapsulated)


def check_transfer_syntax(header: pydicom.Dataset, label: str) -> None:
    """Refuses an encoding whose pixels cannot be told with certainty, such as a vendor's own.

    Raises:
        NotCTError: naming the transfer syntax.
    """
    syntax = transfer_syntax(header)
    known = str(syntax) == _DEFLATED_FRAMES or (syntax.is_transfer_syntax and not syntax.is_private)
    if not known or syntax.name.startswith(("MPEG", "HEVC", "SMPTE", "JPEG XL", "JPIP", "JPT")):
        raise NotCTError(
            f"{label}: the transfer syntax (0002,0010) {syntax} is none in which CT can be read here: convert the file to an "
            "uncompressed one first (dcmconv, gdcmconv --raw)."
        )


def encoded_frames(file: DicomFile, stream: BoundedStream, wanted: set[int]) -> Iterator[tuple[int, bytes]]:
    """The wanted frames of a file one after another, still encoded, each with its number from 0.

    Raises:
        DamagedFileError: if the pixel data are missing, cut off or not in the declared encoding.
    """
    header, label = file.header, file.stored.label
    if file.pixels_at is None:
        raise DamagedFileError(
            f"{label}: the file holds no complete pixel data (7FE0,0010): it is cut off. Get it anew."
        )
    frames, size = max(frame_count(header), 1), 2 * int(header.Rows) * int(header.Columns)
    source: BoundedStream | io.BytesIO = inflated(stream, label) if file.deflated else stream
    stream.allow(2 * size + 2**20)
    source.seek(file.pixels_at)
    length = _element_length(source, file)
    syntax = transfer_syntax(header)
    if is_encapsulated(syntax):
        if length != _UNDEFINED:
            raise DamagedFileError(
                f"{label}: the header declares {syntax.name}, but the pixel data are not encapsulated: the transfer syntax "
                "or the pixel data are wrong. Export the file anew."
            )
        yield from _encapsulated(header, syntax, source, frames, wanted, label, stream, size)
        return
    expected = frames * size
    if length not in (expected, expected + expected % 2):
        raise DamagedFileError(
            f"{label}: {f'{frames} frames of ' if frames > 1 else ''}{header.Rows} x {header.Columns} pixels need {expected} "
            f"bytes of pixel data, there are {length}."
        )
    start = source.tell()
    for k in sorted(wanted):
        source.seek(start + k * size)
        stream.allow(size)
        data = source.read(size)
        if len(data) != size:
            raise DamagedFileError(
                f"{label}: the pixel data are cut off: {len(data)} of {size} bytes of frame {k + 1}."
            )
        yield k, data


def _element_length(source: BoundedStream | io.BytesIO, file: DicomFile) -> int:
    """Reads the header of the PixelData element (PS3.5 section 7.1)."""
    order = "<" if file.little_endian else ">"
    head = source.read(8 if file.implicit_vr else 12)
    try:
        group, element = struct.unpack(f"{order}HH", head[:4])
        (length,) = struct.unpack(f"{order}L", head[-4:] if len(head) in (8, 12) else b"")
    except struct.error:
        group = element = length = 0
    if group << 16 | element != _PIXEL_DATA or (not file.implicit_vr and head[4:6] not in (b"OW", b"OB", b"UN")):
        raise DamagedFileError(
            f"{file.stored.label}: no integer pixel data (7FE0,0010) after the header: the file is cut off or damaged."
        )
    return int(length)


def _encapsulated(
    header: pydicom.Dataset,
    syntax: UID,
    source: BoundedStream | io.BytesIO,
    frames: int,
    wanted: set[int],
    label: str,
    stream: BoundedStream,
    size: int,
) -> Iterator[tuple[int, bytes]]:
    """Joins fragments to frames (PS3.5 annex A.4) in one pass, holding one frame at a time."""
    found = 0
    try:
        # One frame: all fragments. Else offsets tell, or one fragment a frame, or the end marker of each code stream.
        offsets = parse_basic_offsets(source)
        one_each = "ExtendedOffsetTable" in header or str(syntax) in map(str, _NO_EOI)
        parts: list[bytes] = []
        position = 0
        for fragment in generate_fragments(source):
            if parts and frames > 1 and _begins_frame(parts, position, found, offsets, one_each):
                if found in wanted:
                    yield found, b"".join(parts)
                found, parts = found + 1, []
            stream.allow(2 * size + 2**20 - sum(map(len, parts)))
            parts.append(fragment)
            position += len(fragment) + 8
    except CTReadError:
        raise
    except Exception as error:
        raise DamagedFileError(
            f"{label}: the compressed pixel data are damaged ({type(error).__name__}: {error}). Get the file anew."
        ) from error
    if parts and any(parts):
        if found in wanted:
            yield found, b"".join(parts)
        found += 1
    if found != frames:
        raise DamagedFileError(
            f"{label}: {frames} compressed frames are declared, {found} are there. Get the file anew."
        )


def _begins_frame(parts: list[bytes], position: int, found: int, offsets: list[int], one_each: bool) -> bool:
    if one_each:
        return True
    if len(offsets) > 1:
        return found + 1 < len(offsets) and position >= offsets[found + 1]
    return b"\xff\xd9" in parts[-1][-10:]


def decode_frame(frame: bytes, header: pydicom.Dataset, label: str) -> np.ndarray:
    """Stored values (rows, columns) of one frame, as the file's own signed or unsigned 16-bit integers.

    Raises:
        DamagedFileError: if the frame cannot be decoded.
        NotCTError: if its encoding is none of CT.
    """
    syntax = transfer_syntax(header)
    rows, columns = int(header.Rows), int(header.Columns)
    signed = int(header.get("PixelRepresentation") or 0)
    if not is_encapsulated(syntax) or str(syntax) in (_ENCAPSULATED_UNCOMPRESSED, _DEFLATED_FRAMES):
        if str(syntax) == _DEFLATED_FRAMES:
            frame = _inflated_frame(frame, 2 * rows * columns, label)
        if len(frame) < 2 * rows * columns:
            raise DamagedFileError(
                f"{label}: {rows} x {columns} pixels need {2 * rows * columns} bytes, not {len(frame)}."
            )
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        values = np.frombuffer(frame, dtype=f"{order}{'i' if signed else 'u'}2", count=rows * columns)
        return _stored_bits(values.reshape(rows, columns), header)
    _check_code_stream(frame, syntax, rows, columns, label)
    try:
        if str(syntax) in _HTJ2K:
            values = _decode_htj2k(frame, header)
        else:
            values = _decode_by_pydicom(frame, syntax, header)
    except NotImplementedError as error:
        raise NotCTError(
            f"{label}: no decoder for {syntax.name}: convert the file to an uncompressed one first (dcmdjpeg, gdcmconv --raw)."
        ) from error
    except Exception as error:
        raise DamagedFileError(f"{label}: the {syntax.name} pixel data cannot be decoded ({error}).") from error
    if values.shape != (rows, columns) or values.dtype.kind not in "iu":
        raise DamagedFileError(f"{label}: the decoded image is {values.shape}, the header says {(rows, columns)}.")
    return values


def _decode_by_pydicom(frame: bytes, syntax: UID, header: pydicom.Dataset) -> np.ndarray:
    options: dict[str, Any] = {
        "number_of_frames": 1,
        "rows": int(header.Rows),
        "columns": int(header.Columns),
        "samples_per_pixel": 1,
        "bits_allocated": 16,
        "bits_stored": int(header.get("BitsStored") or 16),
        "photometric_interpretation": "MONOCHROME2",
        "pixel_representation": int(header.get("PixelRepresentation") or 0),
        "pixel_keyword": "PixelData",
    }
    values, _ = get_decoder(syntax).as_array(encapsulate([frame]), raw=True, **options)
    return values


def _decode_htj2k(frame: bytes, header: pydicom.Dataset) -> np.ndarray:
    """High-Throughput JPEG 2000 (PS3.5 section 8.2.14), which pydicom decodes only through another package."""
    image = openjpeg.utils.decode(frame)
    if image.ndim != 2 or image.dtype.itemsize > 2:
        raise ValueError(f"an image of shape {image.shape} and type {image.dtype}")
    kind = np.int16 if int(header.get("PixelRepresentation") or 0) else np.uint16
    return _stored_bits(image.astype(kind), header)


def _inflated_frame(frame: bytes, size: int, label: str) -> bytes:
    """Deflated Image Frame Compression (PS3.5 annex A.4.13)."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(frame, size)
    except zlib.error as error:
        raise DamagedFileError(f"{label}: the deflated frame is damaged ({error}).") from error


def _stored_bits(values: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    stored = int(header.get("BitsStored") or 16)
    if stored < 16:  # bits above BitsStored are not part of the value (PS3.5 section 8.1.1)
        shift = 16 - stored
        values = np.right_shift(np.left_shift(values, shift), shift)
    return values


def _check_code_stream(frame: bytes, syntax: UID, rows: int, columns: int, label: str) -> None:
    """Refuses a code stream that is cut off or declares another image than the header.

    Some decoders fill the rest with garbage, or take the memory that the code stream asks for.
    """
    if syntax in JPEG2000TransferSyntaxes or str(syntax) in _HTJ2K:
        _check_jpeg2000(frame, rows, columns, label)
    elif syntax in JPEGTransferSyntaxes or syntax in JPEGLSTransferSyntaxes:
        if not frame.startswith(b"\xff\xd8"):
            raise DamagedFileError(f"{label}: the pixel data are no JPEG code stream, as {syntax.name} would have it.")
        if b"\xff\xd9" not in frame[-64:]:
            raise DamagedFileError(f"{label}: the JPEG code stream has no end (EOI marker): the file is cut off.")
        _check_jpeg_frame(frame, rows, columns, label)
    elif syntax == RLELossless:
        segments = int.from_bytes(frame[:4], "little")
        offsets = [int.from_bytes(frame[4 + 4 * i : 8 + 4 * i], "little") for i in range(min(segments, 15))]
        if segments != 2 or offsets[0] != 64 or not offsets[0] < offsets[1] < len(frame):
            raise DamagedFileError(
                f"{label}: the RLE header is wrong (PS3.5 annex G.5): {segments} segments, {offsets}."
            )


def _check_jpeg_frame(frame: bytes, rows: int, columns: int, label: str) -> None:
    """Reads the frame header (ISO/IEC 10918-1 annex B.2.2, the same in 14495-1): its size must be the header's."""
    position = 2
    while position + 9 < len(frame):
        if frame[position] != 0xFF:
            break
        marker = frame[position + 1]
        if marker == 0xFF:  # fill
            position += 1
            continue
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            there = struct.unpack(">BHHB", frame[position + 4 : position + 10])
            if there[1:] != (rows, columns, 1) or not 2 <= there[0] <= 16:
                raise DamagedFileError(
                    f"{label}: the code stream holds {there[1]} x {there[2]} pixels of {there[3]} components and {there[0]} "
                    f"bits, the header declares {rows} x {columns} of one component. Export the file anew."
                )
            return
        position += 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    raise DamagedFileError(f"{label}: the JPEG code stream has no frame header: it is damaged. Get the file anew.")


def _check_jpeg2000(frame: bytes, rows: int, columns: int, label: str) -> None:
    """Walks the tile-parts (ISO/IEC 15444-1 annex A.4.2): each must end within the data."""
    start = frame.find(b"\xff\x4f\xff\x51")
    if start < 0:
        raise DamagedFileError(f"{label}: the pixel data are no JPEG 2000 code stream.")
    width, height, left, top = struct.unpack(">4L", frame[start + 8 : start + 24].ljust(16, b"\0"))
    components = int.from_bytes(frame[start + 40 : start + 42], "big")
    if (height - top, width - left, components) != (rows, columns, 1):
        raise DamagedFileError(
            f"{label}: the code stream holds {height - top} x {width - left} pixels of {components} components, the header "
            f"declares {rows} x {columns} of one component. Export the file anew."
        )
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
                    f"{label}: a JPEG 2000 tile-part declares {part} bytes, but only {len(frame) - position} are left: the "
                    "file is cut off or was written by a faulty encoder. Decode and write it anew with a tool you trust."
                )
            if part == 0:
                return
            position += part
        else:
            position += 2 + length


def to_hu(values: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
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
