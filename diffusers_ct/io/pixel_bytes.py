"""Pixel data without what may hide beside the pixels: comments of a compressed image, trailing bytes, overlay bits.

The decoded pixels stay bit for bit, and so does the length of every fragment: what is no image is overwritten in place.
"""

import struct
from itertools import accumulate

import numpy as np
import pydicom

from .errors import DamagedFileError

_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
_JPEG = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81))
_JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))
_RLE = "1.2.840.10008.1.2.5"
_ITEM = b"\xfe\xff\x00\xe0"


def pixels_alone(header: pydicom.Dataset, value: bytes, label: str) -> bytes:
    """The value of PixelData with everything that is no pixel blanked.

    Args:
        header: with the description of the pixels, and the file meta information.
        value: of PixelData, as it lies in the file.
        label: how messages name the file.

    Raises:
        DamagedFileError: if it is not what the header says, so that nobody can tell what is in it.
    """
    syntax = str(header.file_meta.get("TransferSyntaxUID", ""))
    if syntax in _NATIVE:
        return _native(header, value, label)
    if syntax not in (*_JPEG, *_JPEG_2000, _RLE):
        raise DamagedFileError(f"{label}: pixels in the transfer syntax {syntax} cannot be looked through for text.")
    if _overlay_bits(header):
        raise DamagedFileError(f"{label}: an overlay lies in bits of compressed pixels: decompress the file first.")
    offsets, fragments = _fragments(value, label)
    blank = _blank_rle if syntax == _RLE else _blank_jpeg if syntax in _JPEG else _blank_jpeg_2000
    frames = max(int(header.get("NumberOfFrames") or 1), 1)
    out: list[bytes] = []
    for group in _frames(fragments, frames, offsets, label):
        code = bytearray(b"".join(group))
        try:
            blank(code, header)
        except (IndexError, struct.error, ValueError) as error:
            raise DamagedFileError(f"{label}: the compressed image is damaged ({type(error).__name__}).") from error
        at = 0
        for fragment in group:
            out.append(bytes(code[at : at + len(fragment)]))
            at += len(fragment)
    table = b"" if offsets is None else struct.pack(f"<{len(offsets)}I", *offsets)
    items = [_ITEM + struct.pack("<I", len(data)) + data for data in (table, *out)]
    return b"".join(items)  # pydicom writes the delimiter of the sequence


def _native(header: pydicom.Dataset, value: bytes, label: str) -> bytes:
    bits = int(header.BitsAllocated)
    count = (
        int(header.Rows)
        * int(header.Columns)
        * int(header.SamplesPerPixel)
        * max(int(header.get("NumberOfFrames") or 1), 1)
    )
    expected = count * bits // 8
    if bits not in (8, 16, 32) or len(value) < expected:
        raise DamagedFileError(
            f"{label}: PixelData has {len(value)} bytes, the header asks for {expected}: it is cut off."
        )
    value = value[:expected]  # beyond it lies anything
    if overlay := _overlay_bits(header):
        big = str(header.file_meta.TransferSyntaxUID) == "1.2.840.10008.1.2.2"
        stored = np.frombuffer(value, f"{'>' if big else '<'}u{bits // 8}").copy()
        low = int(header.HighBit) + 1 - int(header.BitsStored)
        for bit in overlay:
            if low <= bit <= int(header.HighBit):
                raise DamagedFileError(f"{label}: an overlay is said to lie in bit {bit}, which is one of the pixel's.")
            stored &= ~stored.dtype.type(1 << bit)
        value = stored.tobytes()
    return value + b"\0" * (len(value) % 2)


def _overlay_bits(header: pydicom.Dataset) -> list[int]:
    """Bits of the pixels that hold overlays (PS3.3 C.9.2 of 2004 and before: there without OverlayData)."""
    bits = []
    for group in range(0x6000, 0x6020, 2):
        if (group, 0x0010) in header and (group, 0x3000) not in header:
            bit = header.get((group, 0x0102))
            allocated = header.get((group, 0x0100))
            if bit is not None and allocated is not None and int(allocated.value) > 1:
                bits.append(int(bit.value))
    return bits


def _fragments(value: bytes, label: str) -> tuple[list[int] | None, list[bytes]]:
    """Basic offset table, None where it is empty, and the fragments (PS3.5 annex A.4)."""
    items, at = [], 0
    while value[at : at + 4] == _ITEM:
        length = struct.unpack_from("<I", value, at + 4)[0]
        if at + 8 + length > len(value):
            raise DamagedFileError(f"{label}: the compressed pixels are cut off.")
        items.append(value[at + 8 : at + 8 + length])
        at += 8 + length
    if len(items) < 2:
        raise DamagedFileError(f"{label}: the compressed pixels hold no fragment.")
    table, fragments = items[0], items[1:]
    starts = {0, *accumulate(8 + len(f) for f in fragments[:-1])}
    offsets = list(struct.unpack(f"<{len(table) // 4}I", table)) if len(table) % 4 == 0 else []
    return (offsets if offsets and set(offsets) <= starts else None), fragments


def _frames(fragments: list[bytes], frames: int, offsets: list[int] | None, label: str) -> list[list[bytes]]:
    if frames == 1:
        return [fragments]
    if len(fragments) == frames:
        return [[fragment] for fragment in fragments]
    groups: list[list[bytes]] = []
    starts = set(offsets or ())
    at = 0
    for fragment in fragments:
        # PS3.5 A.4: told by the offset table, which may be empty; an image begins with its start-of-image marker
        begins = at in starts if starts else fragment[:2] in (b"\xff\xd8", b"\xff\x4f")
        if begins or not groups:
            groups.append([])
        groups[-1].append(fragment)
        at += 8 + len(fragment)
    if len(groups) != frames:
        raise DamagedFileError(f"{label}: the header says {frames} frames, the compressed pixels hold {len(groups)}.")
    return groups


def _blank_jpeg(code: bytearray, header: pydicom.Dataset) -> None:
    """Overwrites comments, application data and what follows the image (ITU-T T.81 annex B, T.87 annex C)."""
    if code[:2] != b"\xff\xd8":
        raise ValueError("no start of image")
    at = 2
    while True:
        at = _next_marker(code, at)
        marker = code[at + 1]
        at += 2
        if marker == 0xD9:
            break
        length = struct.unpack_from(">H", code, at)[0]
        payload = slice(at + 2, at + length)
        if payload.stop > len(code):
            raise ValueError("segment beyond the end")
        if marker == 0xFE or (0xE0 <= marker <= 0xEF and not _plain_application_data(marker, bytes(code[payload]))):
            code[payload] = b"\0" * (length - 2)
        at += length
    code[at:] = b"\0" * (len(code) - at)


def _next_marker(code: bytearray, at: int) -> int:
    """Place of the next marker; entropy-coded data hold no 0xFF before a byte above 0x7F but restart markers."""
    while True:
        at = code.index(b"\xff", at)
        if code[at + 1] >= 0x80 and code[at + 1] != 0xFF and not 0xD0 <= code[at + 1] <= 0xD7:
            return at
        at += 1


def _plain_application_data(marker: int, payload: bytes) -> bool:
    """Whether it is what decoders read: JFIF without thumbnail, Adobe's and JPEG-LS's colour transforms."""
    return (
        (marker == 0xE0 and payload[:5] == b"JFIF\0" and len(payload) == 14 and payload[12:] == b"\0\0")
        or (marker == 0xE8 and payload[:4] == b"mrfx" and len(payload) == 5)
        or (marker == 0xEE and payload[:5] == b"Adobe" and len(payload) == 12)
    )


def _blank_jpeg_2000(code: bytearray, header: pydicom.Dataset) -> None:
    """Overwrites comments and what follows the codestream (ITU-T T.800 annex A)."""
    if code[:4] != b"\xff\x4f\xff\x51":
        raise ValueError("no codestream")  # or the file format around one, whose boxes hold anything
    at = 2
    while True:
        marker = struct.unpack_from(">H", code, at)[0]
        if marker == 0xFFD9:
            break
        if marker == 0xFF93:  # data: no two bytes above 0xFF8F until the next tile-part or the end
            at = _next_tile_part(code, at + 2)
            continue
        length = struct.unpack_from(">H", code, at + 2)[0]
        if marker < 0xFF30 or at + 2 + length > len(code):
            raise ValueError("no marker")
        if marker == 0xFF64:
            code[at + 6 : at + 2 + length] = b"\0" * (length - 4)
        at += 2 + length
    at += 2
    code[at:] = b"\0" * (len(code) - at)


def _next_tile_part(code: bytearray, at: int) -> int:
    while True:
        at = code.index(b"\xff", at)
        if code[at + 1] in (0x90, 0xD9):
            return at
        at += 1


def _blank_rle(code: bytearray, header: pydicom.Dataset) -> None:
    """Overwrites unused places of the RLE header and what follows the last segment (PS3.5 annex G)."""
    count = struct.unpack_from("<I", code)[0]
    if not 1 <= count <= 15:
        raise ValueError("impossible number of segments")
    code[4 + 4 * count : 64] = b"\0" * (60 - 4 * count)
    offsets = struct.unpack_from(f"<{count}I", code, 4)
    if offsets[0] != 64 or list(offsets) != sorted(set(offsets)):
        code[64 : min(offsets)] = b"\0" * (min(offsets) - 64)
    wanted = int(header.Rows) * int(header.Columns)
    for start, stop in zip(offsets, (*offsets[1:], len(code))):
        at, made = start, 0
        while made < wanted:
            control = code[at]
            if control < 128:
                made, at = made + control + 1, at + control + 2
            else:
                made, at = made + (257 - control if control > 128 else 0), at + (2 if control > 128 else 1)
        if at > stop:
            raise ValueError("segments overlap")
        code[at:stop] = b"\0" * (stop - at)
