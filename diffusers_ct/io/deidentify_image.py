"""One CT image, read whole, and its de-identified copy: the same pixels in the same transfer syntax, by new names."""

import io
from dataclasses import dataclass

import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import UID

from .archives import Opener, StoredFile
from .burned_in import burned_in_reasons, shows_face, text_in_pixels
from .deidentify import Deidentifier
from .deidentify_key import patient_of
from .dicom_files import CT_IMAGE_STORAGE, DicomFile, inflated, read_header
from .dicom_multiframe import ENHANCED_CT, frame_count
from .dicom_pixels import check_declared_size, is_encapsulated
from .errors import CTReadError, DamagedFileError, NotCTError
from .pixel_bytes import pixels_alone

_PIXEL_DATA = 0x7FE00010


@dataclass(frozen=True)
class DeidentifiedImage:
    """A copy, ready to be written.

    Attributes:
        encoded: the whole file.
        image_uid: its new SOPInstanceUID.
        series_uid: its new SeriesInstanceUID.
        unsearched: frames in whose pixels no text was searched.
        unlinked: whether the source had no UID of its study or series.
        doubtful: whether the source does not say that no text is drawn into its pixels.
        face: whether a surface rendering may show the patient's face.
    """

    encoded: bytes
    image_uid: str
    series_uid: str
    unsearched: int
    unlinked: bool
    doubtful: bool
    face: bool


def deidentified_image(stored: StoredFile, opener: Opener, deidentifier: Deidentifier) -> DeidentifiedImage:
    """Reads one file and makes its de-identified copy; nothing is written.

    Raises:
        NotCTError: if it is no CT image, or may show text.
        DamagedFileError: if it is cut off, or what it holds cannot be told.
        Exception: of any kind for an impossible value, which its text may quote.
    """
    image = _read(stored, opener)
    label = stored.label
    try:
        copy = deidentifier.copied(image)
    except DamagedFileError as error:
        raise DamagedFileError(f"{label}: {error}") from None
    pixels = pixels_alone(image, image.PixelData, label)
    image["PixelData"].value = pixels
    drawn, unsearched = text_in_pixels(image, label)
    if drawn:
        raise NotCTError(f"{label}: there is what looks like a line of text in its pixels outside the body.")
    _name_anew(image, copy, deidentifier, label)
    copy.SeriesDescription = "de-identified"
    copy.add(image["PixelData"])
    copy.file_meta = FileMetaDataset()
    copy.file_meta.MediaStorageSOPClassUID = copy.SOPClassUID
    copy.file_meta.MediaStorageSOPInstanceUID = copy.SOPInstanceUID
    copy.file_meta.TransferSyntaxUID = UID(image.file_meta.TransferSyntaxUID)
    encoded = io.BytesIO()
    copy.save_as(encoded, enforce_file_format=True)
    return DeidentifiedImage(
        encoded.getvalue(),
        str(copy.SOPInstanceUID),
        str(copy.SeriesInstanceUID),
        unsearched,
        unlinked=not (image.get("StudyInstanceUID") and image.get("SeriesInstanceUID")),
        doubtful=image.get("BurnedInAnnotation") != "NO",
        face=shows_face(image),
    )


def _read(stored: StoredFile, opener: Opener) -> pydicom.Dataset:
    """A CT image that may be copied, with its pixels."""
    with opener() as stream:
        try:
            file = read_header(stream, stored)
        except CTReadError as error:
            if type(error) is not CTReadError:
                raise
            kind = "an archive: name it as IN to copy what is in it" if stored.is_archive else "no DICOM file"
            raise NotCTError(f"{stored.label}: it is {kind}.") from None
        image = file.header
        _complete_meta(image, file)
        reasons = burned_in_reasons(image)
        is_ct = str(image.get("SOPClassUID", "")) in (CT_IMAGE_STORAGE, *ENHANCED_CT)
        if not is_ct or image.get("Modality", "CT") != "CT":
            reasons = reasons or ["it is no CT image"]
        if reasons:
            raise NotCTError(f"{stored.label}: {'; '.join(reasons)}.")
        frames = max(frame_count(image), 1)
        check_declared_size(image, stored.label, stored.size, deflated=file.deflated, frames=frames)
        if file.pixels_at is None:
            raise DamagedFileError(
                f"{stored.label}: PixelData (7FE0,0010) is missing: the file is cut off, or no image."
            )
        if not file.deflated:
            # no more than the header declares, whatever length the element or an archive's entry gives
            stream.allow(4 * frames * int(image.Rows) * int(image.Columns) + 2**24)
            stream.seek(file.pixels_at)
            rest = stream.read()  # at once: to find the end of compressed pixels pydicom goes forth and back
            return _with_pixels(file, io.BytesIO(rest), 0)
    with opener() as stream:  # anew: it is inflated from its first byte, and an entry of an archive does not go back
        return _with_pixels(file, inflated(stream, stored.label), file.pixels_at)


def _complete_meta(image: pydicom.Dataset, file: DicomFile) -> None:
    """Some de-identifiers empty the UIDs of the image and leave those of its file; old files have no meta information."""
    meta = getattr(image, "file_meta", None) or FileMetaDataset()
    for name, of_file in (("SOPClassUID", "MediaStorageSOPClassUID"), ("SOPInstanceUID", "MediaStorageSOPInstanceUID")):
        if not image.get(name) and meta.get(of_file):
            setattr(image, name, meta.get(of_file))
    if not meta.get("TransferSyntaxUID"):
        meta.TransferSyntaxUID = UID(
            "1.2.840.10008.1.2" if file.implicit_vr else f"1.2.840.10008.1.2.{1 if file.little_endian else 2}"
        )
    image.file_meta = meta


def _with_pixels(file: DicomFile, source: io.BytesIO, start: int) -> pydicom.Dataset:
    """The header with the pixels that begin at byte `start` of `source`."""
    source.seek(start)
    elements = read_dataset(
        source,
        file.implicit_vr,
        file.little_endian,
        stop_when=lambda tag, vr, length: tag > _PIXEL_DATA,
    )
    value = elements.get_item(_PIXEL_DATA).value if _PIXEL_DATA in elements else None
    if not isinstance(value, bytes):
        raise DamagedFileError(f"{file.stored.label}: there are no integer pixel data (7FE0,0010) after the header.")
    packed = is_encapsulated(UID(file.header.file_meta.TransferSyntaxUID))
    file.header.add_new(_PIXEL_DATA, "OB" if packed else "OW", value)  # PS3.5 A.1 to A.4, of 16 bits allocated
    file.header["PixelData"].is_undefined_length = packed
    return file.header


def _name_anew(image: pydicom.Dataset, copy: pydicom.Dataset, deidentifier: Deidentifier, label: str) -> None:
    """Sees to the UIDs that the copy must have (Type 1 of PS3.3 C.12.1, C.7.2.1, C.7.3.1)."""
    for name in ("SOPClassUID", "SOPInstanceUID"):
        if name not in copy:
            raise DamagedFileError(
                f"{label}: {name} is missing or garbled: without it the image cannot be told from others."
            )
    if "StudyInstanceUID" not in copy:
        copy.StudyInstanceUID = deidentifier.key.uid(f"study of {patient_of(image)} {image.get('StudyDate', '')}")
    if "SeriesInstanceUID" not in copy:
        copy.SeriesInstanceUID = deidentifier.key.uid(
            f"series {image.get('SeriesNumber', '')} of {copy.StudyInstanceUID}"
        )
