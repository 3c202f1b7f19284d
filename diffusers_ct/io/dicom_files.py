"""Which DICOM images a folder, file, archive or DICOMDIR holds: their headers, each read once."""

import io
import os
import warnings
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom.filereader import read_dataset, read_preamble
from pydicom.uid import DeflatedExplicitVRLittleEndian

from .archives import LARGEST_HEADER_BYTES, Folder, Opener, Storage, StoredFile, archive_at
from .bounded_stream import BoundedStream
from .dicom_multiframe import ENHANCED_CT, frame_headers, is_multiframe
from .errors import CTReadError, DamagedFileError, NotCTError

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
IMAGE_SUFFIXES = (".dcm", ".ima", ".dicom")
_PIXEL_DATA = 0x7FE00010
# What reading needs: damage elsewhere is reported, damage here refuses the file.
_NEEDED = (
    "SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "SeriesInstanceUID", "StudyInstanceUID", "Rows", "Columns",
    "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept", "RescaleType", "PixelSpacing", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "ImagePositionPatient", "ImageOrientationPatient", "PerFrameFunctionalGroupsSequence",
    "SharedFunctionalGroupsSequence", "ConvolutionKernel", "AcquisitionNumber", "SpacingBetweenSlices", "SliceThickness",
)  # fmt: skip


@dataclass(eq=False)
class DicomFile:
    """One DICOM file whose header is read.

    Attributes:
        stored: where it lies.
        header: without pixel data.
        pixels_at: byte at which the PixelData element begins, in the inflated data set where it was deflated; None if
            the file ends before.
        implicit_vr: encoding of the data set.
        little_endian: encoding of the data set.
        deflated: whether the data set is deflated as a whole.
        dropped: names of elements that could not be read and are not needed.
    """

    stored: StoredFile
    header: pydicom.Dataset
    pixels_at: int | None
    implicit_vr: bool
    little_endian: bool
    deflated: bool
    dropped: list[str]


@dataclass(eq=False)
class Slice:
    """One image: a classic file, or one frame of a multi-frame file.

    Attributes:
        file: that holds its pixels.
        header: classic CT attributes of this slice.
        frame: its number within the file, from 0.
        label: how messages name it.
    """

    file: DicomFile
    header: pydicom.Dataset
    frame: int
    label: str


@dataclass
class Contents:
    """All that is found at a path.

    Attributes:
        path: as the user gave it.
        storage: where the files lie.
        slices: of all readable CT-like images.
        damaged: files that should be images and cannot be read, each with its error.
        missing: files that a DICOMDIR lists and that are not there, with the series it gives them.
        files: number of files looked at.
        notes: what was left out, with counts and without names of files, which may be a patient's.
    """

    path: Path
    storage: Storage
    slices: list[Slice] = field(default_factory=list)
    damaged: list[tuple[StoredFile, CTReadError]] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    files: int = 0
    notes: list[str] = field(default_factory=list)


def find_slices(path: Path) -> Contents:
    """Reads the headers of all DICOM images at a path.

    Clutter is left out; a single file that is no DICOM image is an error.

    Raises:
        CTReadError: if there is no DICOM image, or the archive cannot be read.
        FileNotFoundError: if there is nothing at `path`.
    """
    contents = _open(path)
    lone = path.is_file() and isinstance(contents.storage, Folder) and len(contents.storage.files) == 1
    clutter: list[CTReadError] = []
    archives: list[str] = []
    volumes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote values, which may be a patient's
        for stored, outcome in _read_all(contents.storage):
            contents.files += 1
            if isinstance(outcome, DicomFile):
                try:
                    contents.slices += _slices(outcome)
                except CTReadError as error:
                    contents.damaged.append((stored, error))
            elif isinstance(outcome, DamagedFileError):
                contents.damaged.append((stored, outcome))
            elif stored.is_volume:
                volumes.append(stored.label)
            elif stored.is_archive:
                archives.append(stored.label)
            else:
                clutter.append(outcome)
    contents.notes += contents.storage.notes
    if archives:
        contents.notes.append(f"{counted(len(archives), 'archive')} beside the images left out")
    if volumes:
        contents.notes.append(f"{counted(len(volumes), 'NIfTI or MetaImage file')} beside the images left out")
    if contents.slices or contents.damaged or contents.missing:
        return contents
    if lone and clutter:
        raise type(clutter[0])(f"{clutter[0]} NIfTI and MetaImage are told by their names: .nii, .nii.gz, .mha, .mhd.")
    advice = ""
    if volumes and path.is_dir():
        advice = f"; it holds NIfTI or MetaImage files ({_some(volumes)}): name one of them"
    elif volumes:
        advice = f"; NIfTI and MetaImage are not read within an archive ({_some(volumes)}): unpack it"
    elif archives:
        advice = f"; archives are not looked into ({_some(archives)}): name one as the path to read it"
    raise CTReadError(f"{path}: no DICOM image among {counted(contents.files, 'file')}{advice}.")


def _open(path: Path) -> Contents:
    if not path.exists():
        raise FileNotFoundError(2, "There is no file or folder at this path", str(path))
    if path.is_dir():
        found = sorted(f for f in path.rglob("*") if f.is_file() and not f.name.startswith("."))
        return Contents(path, Folder([f for f in found if f.name != "DICOMDIR"]))
    archive = archive_at(path)
    if archive is not None:
        return Contents(path, archive)
    directory = _media_directory(path)
    if directory is None:
        return Contents(path, Folder([path]))
    there, missing = directory
    contents = Contents(path, Folder(there))
    contents.missing = missing
    return contents


def counted(count: int, noun: str) -> str:
    """(1, "link") -> "1 link", (2, "link") -> "2 links"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _read_all(storage: Storage) -> Iterable[tuple[StoredFile, DicomFile | CTReadError]]:
    def read(item: tuple[StoredFile, Opener]) -> tuple[StoredFile, DicomFile | CTReadError]:
        stored, opener = item
        if stored.name.startswith(".") or stored.name == "DICOMDIR" or "__MACOSX" in stored.label:
            return stored, CTReadError(f"{stored.label}: not an image.")
        try:
            with opener() as stream:
                return stored, read_header(stream, stored)
        except CTReadError as error:
            return stored, error
        except OSError as error:
            return stored, DamagedFileError(f"{stored.label}: the file cannot be read ({error.strerror or error}).")

    if not storage.parallel:
        return map(read, storage.scan())
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hides the latency of disks; parsing itself is not parallel
        return list(pool.map(read, storage.scan()))


def read_header(stream: BoundedStream, stored: StoredFile) -> DicomFile:
    """The header of one file, all elements decoded.

    Raises:
        DamagedFileError: if it is a DICOM file that cannot be used.
        CTReadError: if it is none.
    """
    head = stream.read(132)
    stream.seek(0)
    if not head:
        raise DamagedFileError(f"{stored.label}: the file is empty. Get it anew.")
    named = head[128:] == b"DICM"
    looks_like_dicom = named or stored.name.lower().endswith(IMAGE_SUFFIXES)
    problem = DamagedFileError if looks_like_dicom else CTReadError
    try:
        source: BoundedStream | io.BytesIO = stream
        encoding: tuple
        deflated = named and _is_deflated(stream)
        if deflated:
            meta = _meta(stream)  # first: an entry of an archive does not go back
            source = inflated(stream, stored.label)
            header, encoding = _parse_inflated(source), (False, True)
            header.file_meta = meta
        else:
            header = pydicom.dcmread(stream, stop_before_pixels=True, force=not named)
            encoding = header.original_encoding
            header = _without_stream(header, encoding)
        pixels_at = source.tell()
    except CTReadError:
        raise
    except Exception as error:
        raise problem(
            f"{stored.label}: the DICOM header is damaged, or it is no DICOM file ({_name(error)})."
        ) from error
    # Without preamble: PS3.10 allows that to nobody, old systems wrote so.
    if not named and not _is_image(header):
        raise problem(f"{stored.label}: not a DICOM image.")
    dropped = _decode(header, stored.label)
    source.seek(pixels_at)
    there = pixels_at if source.read(4) else None
    return DicomFile(stored, header, there, bool(encoding[0]), encoding[1] is not False, deflated, dropped)


def _is_image(header: pydicom.Dataset) -> bool:
    try:
        return bool(header.get("Rows") and (header.get("SOPClassUID") or header.get("Modality")))
    except Exception:  # an element that cannot be decoded
        return False


def _without_stream(header: pydicom.FileDataset, encoding: tuple) -> pydicom.Dataset:
    """The same elements; a FileDataset would keep the stream and its buffers alive."""
    plain = pydicom.Dataset(header)
    plain.set_original_encoding(encoding[0], encoding[1], header.original_character_set)
    plain.file_meta = header.file_meta
    return plain


def _name(error: Exception) -> str:
    return type(error).__name__  # texts of pydicom's errors quote values, which may be a patient's


def _decode(header: pydicom.Dataset, label: str) -> list[str]:
    """Decodes every element now; what is broken and not needed is dropped and named."""
    dropped = []
    for tag in list(header.keys()):
        try:
            header[tag]
        except Exception as error:
            name = pydicom.datadict.keyword_for_tag(tag) or str(tag)
            if name in _NEEDED:
                raise DamagedFileError(
                    f"{label}: {name} {tag} has an impossible value ({_name(error)}): the header is damaged. Get the file "
                    "anew from its archive."
                ) from error
            del header[tag]
            dropped.append(name)
    try:
        header.decode()
    except Exception as error:
        raise DamagedFileError(f"{label}: the text of the DICOM header cannot be decoded ({_name(error)}).") from error
    return dropped


def _meta(stream: BoundedStream) -> pydicom.dataset.FileMetaDataset:
    stream.seek(0)
    read_preamble(stream, False)  # type: ignore[arg-type]
    elements = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)  # type: ignore[arg-type]
    return pydicom.dataset.FileMetaDataset(elements)


def _is_deflated(stream: BoundedStream) -> bool:
    """Whether the data set is deflated as a whole, told without inflating it."""
    head = stream.read(2**12)
    stream.seek(0)
    return str(DeflatedExplicitVRLittleEndian).encode() in head and (
        _meta(stream).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
    )


def inflated(stream: BoundedStream, label: str) -> io.BytesIO:
    """The data set of a deflated file (PS3.5 annex A.5), never more than a CT image can have."""
    _meta(stream)
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = engine.decompress(stream.read(), LARGEST_HEADER_BYTES)
    except zlib.error as error:
        raise DamagedFileError(f"{label}: the deflated data set is damaged ({error}).") from error
    if engine.unconsumed_tail:
        raise DamagedFileError(f"{label}: the deflated data set is larger than {LARGEST_HEADER_BYTES} bytes.")
    return io.BytesIO(data)


def _parse_inflated(source: io.BytesIO) -> pydicom.Dataset:
    elements = read_dataset(source, False, True, stop_when=lambda tag, vr, length: tag == _PIXEL_DATA)
    header = pydicom.Dataset(elements)
    header.set_original_encoding(False, True, elements._character_set)
    return header


def _slices(file: DicomFile) -> list[Slice]:
    header, label = file.header, file.stored.label
    if not header.get("Rows"):
        declared = str(getattr(header, "file_meta", {}).get("MediaStorageSOPClassUID", ""))
        if declared in (CT_IMAGE_STORAGE, *ENHANCED_CT):
            raise DamagedFileError(f"{label}: the header of a CT image is cut off: it has no Rows.")
        return []  # other objects without pixels (reports, plans) may lie beside
    if not is_multiframe(header):
        return [Slice(file, header, 0, label)]
    try:
        headers = frame_headers(header, label)
    except NotCTError:  # refused only if it is chosen
        return [Slice(file, header, 0, label)]
    except CTReadError:
        raise
    except Exception as error:
        raise DamagedFileError(f"{label}: the functional groups of the frames are damaged ({_name(error)}).") from error
    return [Slice(file, h, k, f"{label}, frame {k + 1}") for k, h in enumerate(headers)]


def _media_directory(path: Path) -> tuple[list[Path], list[tuple[str, str]]] | None:
    """Files that a DICOMDIR (PS3.10 section 8, PS3.3 annex F) lists: those there, and those missing with their series."""
    with path.open("rb") as raw:
        if raw.read(132)[128:] != b"DICM":
            return None
    stored = StoredFile(0, str(path), str(path.parent), path.stat().st_size)
    try:
        with Folder([path]).scan().__next__()[1]() as stream:
            if _meta(stream).get("MediaStorageSOPClassUID") != _MEDIA_DIRECTORY:
                return None
            stream.seek(0)
            records = pydicom.dcmread(stream, stop_before_pixels=True).DirectoryRecordSequence
            listed = _listed(records)
    except CTReadError:
        raise
    except Exception as error:
        if path.name.upper() != "DICOMDIR":
            return None  # whatever it is, reading it as an image names its defect
        raise DamagedFileError(
            f"{stored.label}: the DICOMDIR is damaged ({_name(error)}): name its folder instead, which is then searched."
        ) from error
    base = path.parent.resolve()
    there, missing = [], []
    for parts, series in listed:
        file = base.joinpath(*parts)
        if ".." in parts or not file.resolve().is_relative_to(base):
            raise DamagedFileError(f"{path}: the DICOMDIR lists a file outside its folder: name the folder instead.")
        if file.is_file():
            there.append(file)
        else:
            missing.append(("/".join(parts), series))
    return sorted(set(there)), sorted(set(missing))


def _listed(records: Iterable[pydicom.Dataset]) -> list[tuple[list[str], str]]:
    series, out = "", []
    for record in records:
        kind = record.get("DirectoryRecordType")
        if kind == "SERIES":
            series = str(record.get("SeriesInstanceUID", ""))
        elif record.get("ReferencedFileID"):
            value = record.ReferencedFileID
            parts = [value] if isinstance(value, str) else [str(v) for v in value]
            out.append((parts, series if kind == "IMAGE" else ""))
    return out
