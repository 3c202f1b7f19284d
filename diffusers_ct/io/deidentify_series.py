"""A de-identified copy of CT series: the same images with the same pixels in the same transfer syntax, by new names."""

from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID

from .burned_in import burned_in_reasons, looks_like_text, shows_face
from .deidentify import Deidentifier
from .deidentify_key import DeidentificationKey, patient_of
from .deidentify_profile import DeidentificationOptions
from .dicom_files import CT_IMAGE_STORAGE, IMAGE_SUFFIXES
from .dicom_multiframe import ENHANCED_CT
from .errors import CTReadError, DamagedFileError
from .pixel_bytes import pixels_alone
from .quiet import quiet_pydicom
from .whole_folder import whole_folder

_CT_IMAGES = (CT_IMAGE_STORAGE, *ENHANCED_CT)


@dataclass
class DeidentifyReport:
    """What `deidentify_series` did.

    Attributes:
        written: images.
        series: series they belong to.
        left_out: files that were not copied, each with the reason; for the user's eyes only, as names of files may name
            a patient.
        dropped: names of attributes left out of some image though the profile allows them: their value held something that
            identifies the patient, or is not of its kind.
        notes: what the user has to know of the result.
    """

    written: int = 0
    series: int = 0
    left_out: list[tuple[Path, str]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def deidentify_series(
    source: str | Path,
    output: str | Path,
    *,
    key: DeidentificationKey | None = None,
    options: DeidentificationOptions | None = None,
) -> DeidentifyReport:
    """Writes a de-identified copy of all CT images of a folder or file; the folder appears whole or not at all.

    Headers are made anew from an allow-list after the Basic Application Level Confidentiality Profile (PS3.15 annex E);
    pixels stay bit for bit in their transfer syntax. Images that may carry text in their pixels, and objects that are no CT
    image, are left out and reported. Text drawn into the pixels of an image whose header does not speak of it is not
    found, and a face in a scan of the head stays: look at the images before they leave the house.

    Args:
        source: folder or file of DICOM.
        output: new folder; the files in it are numbered, no name of the source is kept.
        key: with the same key the same UIDs, pseudonyms and shift of dates come out, so that series stay linked; None draws
            one that nobody keeps.
        options: of the profile.

    Raises:
        FileExistsError: if there is something at `output`.
        FileNotFoundError: if there is nothing at `source`.
        ValueError: if `output` lies within `source`.
        CTReadError: if a CT image is damaged, or there is none that can be copied.
    """
    source, output = Path(source), Path(output)
    if not source.exists():
        raise FileNotFoundError(2, "There is no file or folder at this path", str(source))
    if output.exists():
        raise FileExistsError(17, "It exists and is not overwritten: name a new path", str(output))
    if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{output} lies within {source}: name a folder outside, so that a copy is not copied again.")
    report = DeidentifyReport()
    deidentifier = Deidentifier(key or DeidentificationKey.random(), options)
    files = sorted(f for f in source.rglob("*") if f.is_file()) if source.is_dir() else [source]
    with whole_folder(output) as folder, quiet_pydicom():
        _copy_all(files, folder, deidentifier, report)
        if not report.written:
            reasons = "".join(f"\n  {path}: {reason}" for path, reason in report.left_out[:10])
            raise CTReadError(f"{source}: there is no CT image that can be copied.{reasons}")
    report.dropped = sorted(deidentifier.dropped)
    return report


def _copy_all(files: list[Path], folder: Path, deidentifier: Deidentifier, report: DeidentifyReport) -> None:
    numbers: dict[str, int] = {}  # new SeriesInstanceUID -> number of its folder
    counts: dict[str, int] = {}
    seen: set[str] = set()
    faces = doubtful = undecoded = unlinked = 0
    for file in files:
        image = _image_of(file, report)
        if image is None:
            continue
        copy = deidentified_image(image, deidentifier, str(file))
        drawn = _drawn_text(image)
        if drawn:
            report.left_out.append((file, "there is what looks like a line of text in its pixels outside the body"))
            continue
        undecoded += drawn is None
        unlinked += not (image.get("StudyInstanceUID") and image.get("SeriesInstanceUID"))
        uid = str(copy.get("SeriesInstanceUID", ""))
        if copy.SOPInstanceUID in seen:
            report.left_out.append((file, "it has the SOPInstanceUID of an image that is copied already"))
            continue
        seen.add(copy.SOPInstanceUID)
        number = numbers.setdefault(uid, len(numbers) + 1)
        counts[uid] = counts.get(uid, 0) + 1
        target = folder / f"series{number:03d}"
        target.mkdir(exist_ok=True)
        copy.save_as(target / f"{counts[uid]:05d}.dcm", enforce_file_format=True)
        report.written += 1
        faces += shows_face(image)
        doubtful += image.get("BurnedInAnnotation") != "NO"
    report.series = len(numbers)
    if undecoded:
        report.notes.append(f"{undecoded} of {report.written} images could not be searched for text: look at them.")
    if unlinked:
        report.notes.append(
            f"{unlinked} of {report.written} images have no StudyInstanceUID or SeriesInstanceUID: those of a patient, day and "
            "SeriesNumber were taken as one."
        )
    if doubtful:
        report.notes.append(
            f"{doubtful} of {report.written} images do not say that no text is drawn into their pixels (BurnedInAnnotation): "
            "look at them."
        )
    if faces:
        report.notes.append(
            f"{faces} of {report.written} images show the head or neck: a surface rendering shows the face, which is not removed."
        )


def _image_of(file: Path, report: DeidentifyReport) -> pydicom.Dataset | None:
    """The CT image of a file; None, with the reason reported, for what is not copied."""
    looks_like_dicom = file.suffix.lower() in IMAGE_SUFFIXES
    try:
        image = _read(file)
    except InvalidDicomError:
        if looks_like_dicom:
            raise DamagedFileError(f"{file}: it is no DICOM file, or its header is damaged.") from None
        report.left_out.append((file, "it is no DICOM file"))
        return None
    except OSError:
        raise
    except Exception as error:  # whatever a damaged header brings about; its text may quote values
        raise DamagedFileError(f"{file}: the DICOM header is damaged ({type(error).__name__}).") from None
    _take_uids_of_the_file(image)
    reasons = burned_in_reasons(image)
    if str(image.get("SOPClassUID", "")) not in _CT_IMAGES or image.get("Modality", "CT") != "CT":
        reasons = reasons or ["it is no CT image"]
    if reasons:
        report.left_out.append((file, "; ".join(reasons)))
        return None
    return image


def _read(file: Path) -> pydicom.Dataset:
    try:
        return pydicom.dcmread(file)
    except InvalidDicomError:
        image = pydicom.dcmread(file, force=True)  # without preamble, as old systems wrote
        if not image.get("SOPClassUID") or not image.get("Rows"):
            raise
        return image


def _take_uids_of_the_file(image: pydicom.Dataset) -> None:
    """Some de-identifiers empty the UIDs of the image and leave those of the file that holds it."""
    meta = getattr(image, "file_meta", FileMetaDataset())
    for name, of_file in (("SOPClassUID", "MediaStorageSOPClassUID"), ("SOPInstanceUID", "MediaStorageSOPInstanceUID")):
        if not image.get(name) and meta.get(of_file):
            setattr(image, name, meta.get(of_file))


def _drawn_text(image: pydicom.Dataset) -> bool | None:
    """Whether what looks like text lies in the pixels of any frame; None if they cannot be decoded."""
    try:
        slope, intercept = float(image.RescaleSlope), float(image.RescaleIntercept)
        stored = image.pixel_array
    except Exception:  # whatever a decoder says of a damaged image; its pixels are copied as they are
        return None
    frames = stored[None] if stored.ndim == 2 else stored
    return any(looks_like_text(frame * slope + intercept) for frame in frames)


def deidentified_image(image: pydicom.Dataset, deidentifier: Deidentifier, label: str) -> pydicom.Dataset:
    """The de-identified copy of one CT image, ready to be saved.

    Raises:
        DamagedFileError: if what its pixels hold cannot be told.
    """
    syntax = str(getattr(image, "file_meta", FileMetaDataset()).get("TransferSyntaxUID", ""))
    if not syntax:  # a file without meta information
        implicit, little = image.original_encoding
        syntax = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = UID(syntax)
    try:
        copy = deidentifier.copied(image)
        if "PixelData" not in image:
            raise DamagedFileError(f"{label}: PixelData (7FE0,0010) is missing: the file is cut off, or no image.")
        pixels = pixels_alone(image, image.PixelData, label)
        vr = image["PixelData"].VR
    except CTReadError:
        raise
    except Exception as error:  # an impossible value in what describes the pixels
        raise DamagedFileError(
            f"{label}: an element of the header has an impossible value ({type(error).__name__})."
        ) from None
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
    copy.SeriesDescription = "de-identified"
    copy.add_new(0x7FE00010, vr, pixels)
    copy["PixelData"].is_undefined_length = syntax.startswith("1.2.840.10008.1.2.4") or syntax == "1.2.840.10008.1.2.5"
    copy.file_meta = FileMetaDataset()
    copy.file_meta.MediaStorageSOPClassUID, copy.file_meta.MediaStorageSOPInstanceUID = (
        copy.SOPClassUID,
        copy.SOPInstanceUID,
    )
    copy.file_meta.TransferSyntaxUID = UID(syntax)
    return copy
