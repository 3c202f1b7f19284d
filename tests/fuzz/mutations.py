"""Damaged copies of scans, each a function of the seed file and a number alone: the same in every run and on every machine."""

import gzip
import io
import struct
import zlib

import numpy as np
import pydicom

# Texts and numbers that headers hold in the wild and in nightmares.
NASTY_TEXTS = (
    "", " ", "0", "-1", "1e308", "-1e308", "nan", "inf", "abc", "1\\2", "1\\2\\3\\4\\5\\6\\7", "99999999999999999999",
    "0.0000000001", "\\\\\\", "CT", "MR", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.4.90", "000Y", "\x00", "é" * 40,
    "A" * 4000,
)  # fmt: skip
NASTY_NUMBERS = (0, 1, 2, 7, 255, 256, 4096, 32767, 32768, 65535)


def mutate(data: bytes, kind: str, number: int) -> bytes:
    """A damaged copy of a file.

    Args:
        data: the sound file.
        kind: "dicom", "nifti", "nifti_gz", "metaimage" or "archive".
        number: of the case.
    """
    rng = np.random.default_rng([number, zlib.crc32(kind.encode())])
    if kind == "dicom" and rng.random() < 0.6:
        return _other_elements(data, rng)
    if kind == "nifti" and rng.random() < 0.6:
        return _other_header(data, rng)
    if kind == "nifti_gz" and rng.random() < 0.8:
        inner = gzip.decompress(data)
        inner = _other_header(inner, rng) if rng.random() < 0.7 else _other_bytes(inner, rng)
        return gzip.compress(inner, compresslevel=1, mtime=0)
    if kind == "metaimage" and rng.random() < 0.6:
        return _other_lines(data, rng)
    return _other_bytes(data, rng)


def _other_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Flipped bits, overwritten, lost, doubled or foreign stretches, a lost end; most of them near the header."""
    out = bytearray(data)
    for _ in range(1 + rng.geometric(0.3)):
        if not out:
            break
        reach = len(out) if rng.random() < 0.3 else min(len(out), 4096)
        at = int(rng.integers(reach))
        length = int(rng.integers(1, 64))
        action = rng.integers(7)
        if action == 0:
            out[at] ^= 1 << int(rng.integers(8))
        elif action == 1:
            out[at : at + length] = rng.bytes(min(length, len(out) - at))
        elif action == 2:
            del out[at : at + length]
        elif action == 3:
            out[at:at] = out[at : at + length]
        elif action == 4:
            out[at : at + 4] = struct.pack("<I", int(rng.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF, 1 << 20])))
        elif action == 5:
            del out[int(rng.integers(len(out))) :]
        else:
            other = int(rng.integers(len(out)))
            out[at : at + length] = out[other : other + length]
    return bytes(out)


def _other_elements(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three elements with another value, of another kind, or gone; sequences emptied, repeated or nested."""
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        for _ in range(int(rng.integers(1, 4))):
            _change(dataset, rng)
        out = io.BytesIO()
        dataset.save_as(out, enforce_file_format=False)
        return out.getvalue()
    except Exception:  # what pydicom will not write is damaged as bytes
        return _other_bytes(data, rng)


def _change(dataset: pydicom.Dataset, rng: np.random.Generator) -> None:
    target = dataset
    sequences = [e for e in dataset if e.VR == "SQ" and e.value]
    while sequences and rng.random() < 0.6:  # go down into a sequence
        items = sequences[int(rng.integers(len(sequences)))].value
        target = items[int(rng.integers(len(items)))]
        sequences = [e for e in target if e.VR == "SQ" and e.value]
    tags = list(target.keys())
    if not tags:
        return
    tag = tags[int(rng.integers(len(tags)))]
    if rng.random() < 0.25:
        del target[tag]
        return
    element = target[tag]
    if element.VR == "SQ":
        action = rng.integers(3)
        if action == 0:
            element.value = []
        elif action == 1 and element.value:
            element.value = [*element.value, element.value[0]] * int(rng.integers(1, 4))
        else:
            nested = pydicom.Dataset()
            for _ in range(int(rng.choice([1, 5, 40]))):
                outer = pydicom.Dataset()
                outer.add_new(tag, "SQ", [nested])
                nested = outer
            element.value = [nested]
    elif element.VR in ("US", "SS", "UL", "SL"):
        number = int(rng.choice(NASTY_NUMBERS))
        target.add_new(tag, element.VR, [number, number] if rng.random() < 0.1 else number)
    elif element.VR in ("OB", "OW", "UN", "OB or OW"):
        value = bytes(element.value or b"")
        keep = int(rng.integers(len(value) + 1))
        element.value = value[:keep] if rng.random() < 0.5 else _other_bytes(value, rng)
    elif rng.random() < 0.1:
        target.add_new(tag, "SQ", [pydicom.Dataset()])
    else:
        target.add_new(tag, "LO", NASTY_TEXTS[int(rng.integers(len(NASTY_TEXTS)))])


def _other_header(data: bytes, rng: np.random.Generator) -> bytes:
    """Fields of the NIfTI-1 header (348 bytes) with extreme values."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        if rng.random() < 0.5:  # dim[8] at 40, datatype, bitpix at 70
            at = int(rng.choice([*range(40, 56, 2), 70, 72, 74]))
            out[at : at + 2] = struct.pack("<h", int(rng.choice([-32768, -1, 0, 1, 2, 4, 8, 16, 512, 768, 32767])))
        else:  # pixdim[8] at 76, vox_offset, scl_slope, scl_inter, quaternions and sform
            at = int(rng.choice([*range(76, 120, 4), *range(256, 328, 4)]))
            value = float(rng.choice([0.0, -1.0, 1.0, 1e-30, 3e38, np.nan, np.inf, 352.0, 1e9]))
            out[at : at + 4] = struct.pack("<f", value)
    return bytes(out)


def _other_lines(data: bytes, rng: np.random.Generator) -> bytes:
    """Lines of the MetaImage header with other values, gone, or doubled."""
    end = data.find(b"ElementDataFile")
    if end < 0:
        return _other_bytes(data, rng)
    lines, rest = data[:end].split(b"\n"), data[end:]
    for _ in range(int(rng.integers(1, 4))):
        k = int(rng.integers(len(lines)))
        name = lines[k].split(b"=")[0]
        action = rng.integers(4)
        if action == 0:
            lines[k] = b""
        elif action == 1:
            lines.insert(k, lines[k])
        elif action == 2:
            text = NASTY_TEXTS[int(rng.integers(len(NASTY_TEXTS)))]
            lines[k] = name + b"= " + text.encode("utf-8", "replace").replace(b"\n", b"")
        else:
            numbers = rng.choice([0, -1, 1, 2, 65535, 2147483647, 1e300], int(rng.integers(1, 10)))
            lines[k] = name + b"= " + " ".join(f"{n:g}" for n in numbers).encode()
    if rng.random() < 0.15:
        rest = rest.replace(b"LOCAL", bytes(rng.choice([b"LIST", b"/etc/hostname", b"", b"a%d.raw 1 9 1"])), 1)
    return b"\n".join(lines) + rest
