"""The text header of a MetaImage, checked line by line: the library that reads the voxels trusts it and may crash on a false one.

Fields after the MetaIO documentation of ITK ("MetaImage Tags"): a header of `Name = value` lines, closed by ElementDataFile.
"""

import math
from pathlib import Path

from .errors import CTReadError, DamagedFileError

_LONGEST_HEADER_BYTES = 1 << 16
_ITEM_BYTES = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4, "MET_LONG": 4,
    "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8,
}  # fmt: skip
# Name -> how many numbers it holds; several names stand for one thing in files of different age.
_NUMBERS = {
    "ElementSpacing": 3, "ElementSize": 3, "Offset": 3, "Position": 3, "Origin": 3, "TransformMatrix": 9, "Rotation": 9,
    "Orientation": 9, "CenterOfRotation": 3, "ElementNumberOfChannels": 1, "HeaderSize": 1, "CompressedDataSize": 1,
    "ElementMin": 1, "ElementMax": 1, "ID": 1, "ParentID": 1,
}  # fmt: skip
_WORDS = {
    "ObjectType": ("Image",), "BinaryData": ("True", "False"), "BinaryDataByteOrderMSB": ("True", "False"),
    "ElementByteOrderMSB": ("True", "False"), "CompressedData": ("True", "False"), "NDims": ("3",),
}  # fmt: skip


def check_header(path: Path) -> tuple[int, Path, bool]:
    """Checks the header of a .mha or .mhd file of three axes and one value a voxel.

    Returns:
        Declared bytes of voxels, the file that holds them, and whether they are compressed.

    Raises:
        CTReadError: for what is sound, yet no volume of this kind.
        DamagedFileError: naming the line.
    """
    fields = _fields(path)
    for name, words in _WORDS.items():
        if name in fields and fields[name] not in words:
            kind = CTReadError if name in ("ObjectType", "NDims") else DamagedFileError
            raise kind(f"{path}: {name} is {fields[name][:40]!r}; a CT volume needs {' or '.join(words)}.")
    for name, count in _NUMBERS.items():
        if name in fields:
            _numbers(path, name, fields[name], count)
    if missing := [name for name in ("NDims", "DimSize", "ElementType") if name not in fields]:
        raise DamagedFileError(f"{path}: the MetaImage header lacks {', '.join(missing)}.")
    if float(fields.get("ElementNumberOfChannels", "1")) != 1:
        raise CTReadError(f"{path}: a CT volume has one value a voxel, this has {fields['ElementNumberOfChannels']}.")
    for name in ("ElementSpacing", "ElementSize"):
        if name in fields and not all(1e-4 < size < 1e4 for size in _numbers(path, name, fields[name], 3)):
            raise DamagedFileError(f"{path}: {name} is {fields[name][:60]!r}, which is no voxel size in mm.")
    size = _numbers(path, "DimSize", fields["DimSize"], 3)
    if not all(n == int(n) and 1 <= n <= 1 << 20 for n in size):
        raise DamagedFileError(f"{path}: DimSize is {fields['DimSize'][:60]!r}; it takes three numbers of voxels.")
    if fields["ElementType"] not in _ITEM_BYTES:
        raise CTReadError(f"{path}: values of ElementType {fields['ElementType'][:40]!r} are not read as a CT volume.")
    if fields.get("BinaryData", "True") != "True":
        raise CTReadError(f"{path}: voxels written as text are not read: store them as binary data.")
    if float(fields.get("HeaderSize", "0")) not in (0.0, -1.0):
        raise CTReadError(f"{path}: HeaderSize {fields['HeaderSize'][:20]} is not read: store the voxels alone.")
    declared = math.prod(int(n) for n in size) * _ITEM_BYTES[fields["ElementType"]]
    return declared, _data_file(path, fields["ElementDataFile"]), fields.get("CompressedData") == "True"


def _fields(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        start = file.read(_LONGEST_HEADER_BYTES)
    fields: dict[str, str] = {}
    for line in start.split(b"\n"):
        name, separator, value = line.partition(b"=")
        try:
            key, text = name.decode("ascii").strip(), value.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise DamagedFileError(f"{path}: the MetaImage header is damaged: a line of it is not text.") from None
        if not separator or not key.replace("_", "").replace(".", "").isalnum() or "\0" in text:
            raise DamagedFileError(f"{path}: the MetaImage header is damaged after {len(fields)} lines.")
        if key in fields:
            raise DamagedFileError(f"{path}: the MetaImage header gives {key} twice.")
        fields[key] = text
        if key == "ElementDataFile":
            return fields
    raise DamagedFileError(f"{path}: this is no MetaImage header: it has no ElementDataFile.")


def _numbers(path: Path, name: str, text: str, count: int) -> list[float]:
    try:
        values = [float(word) for word in text.split()]
    except ValueError:
        values = []
    if len(values) != count or not all(math.isfinite(value) and abs(value) < 1e12 for value in values):
        raise DamagedFileError(f"{path}: {name} is {text[:60]!r}; it takes {count} numbers.")
    return values


def _data_file(path: Path, text: str) -> Path:
    """The file of the voxels: the header's own, or one beside it; never one elsewhere."""
    if path.suffix.lower() == ".mha" or text == "LOCAL":
        if text != "LOCAL":
            raise CTReadError(
                f"{path}: a .mha file holds its own voxels (ElementDataFile = LOCAL), this names {text[:60]!r}."
            )
        return path
    other = path.parent / text
    if not text or "%" in text or " " in text or Path(text).name != text or not other.is_file():
        raise CTReadError(
            f"{path}: ElementDataFile is {text[:60]!r}; the voxels must be one file beside the header, named without spaces."
        )
    return other
