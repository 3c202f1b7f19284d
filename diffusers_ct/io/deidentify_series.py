"""A de-identified copy of CT series: all images of a folder, file or archive that can be copied, and why others are not."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from .archives import VOLUME_SUFFIXES, Folder, Storage, StoredFile, archive_at
from .deidentify import Deidentifier
from .deidentify_image import deidentified_image
from .deidentify_key import DeidentificationKey
from .deidentify_profile import DeidentificationOptions
from .errors import CTReadError
from .quiet import quiet_pydicom
from .whole_folder import whole_folder


@dataclass
class DeidentifyReport:
    """What `deidentify_series` did.

    Attributes:
        written: images.
        series: series they belong to.
        left_out: files that were not copied, each with the reason. Names of files may name a patient, so each is told by
            its number: "file 17" is the 17th in the order of the paths, or of the archive without its folders.
        dropped: names of attributes left out of some image though the profile allows them: their value held something that
            identifies the patient, or is not of its kind.
        notes: what the user has to know of the result.
    """

    written: int = 0
    series: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def deidentify_series(
    source: str | Path,
    output: str | Path,
    *,
    key: DeidentificationKey | None = None,
    options: DeidentificationOptions | None = None,
) -> DeidentifyReport:
    """Writes a de-identified copy of all CT images at a path; the new folder appears whole or not at all.

    Headers are made anew from an allow-list after the Basic Application Level Confidentiality Profile (PS3.15 E.2);
    pixels stay bit for bit in their transfer syntax. Images that may carry text in their pixels, objects that are no CT
    image and damaged files are left out and reported; no image is copied in part. Text drawn into the pixels of an image
    whose header does not speak of it is found only beside the body, and a face in a scan of the head stays (the options of
    PS3.15 E.3.1 and E.3.2 are not applied): look at the images before they leave the house.

    Args:
        source: folder, file, or zip or tar archive of DICOM; an archive is read in place, within the bounds of
            `read_volume`.
        output: new folder; the files in it are numbered, no name of the source is kept.
        key: with the same key the same UIDs, pseudonyms and shift of dates come out, so that series stay linked; None draws
            one that nobody keeps.
        options: of the profile.

    Raises:
        FileExistsError: if there is something at `output`.
        FileNotFoundError: if there is nothing at `source`.
        ValueError: if `output` lies within `source`.
        CTReadError: if there is no image that can be copied, or an archive is damaged as a whole or made to do harm.
    """
    source, output = Path(source), Path(output)
    check_copy_paths(source, output)
    report = DeidentifyReport()
    deidentifier = Deidentifier(key or DeidentificationKey.random(), options)
    with whole_folder(output) as folder, quiet_pydicom():
        try:
            storage = _storage_at(source)
            _copy_all(storage, folder, deidentifier, report)
        except CTReadError as error:  # of the archive as a whole
            raise type(error)(f"{source}: {_without_names(str(error), source)}") from None
        if not report.written:
            reasons = "".join(f"\n  {name}: {reason}" for name, reason in report.left_out[:10])
            raise CTReadError(f"{source}: there is no CT image that can be copied.{reasons}")
    report.notes += storage.notes
    report.dropped = sorted(deidentifier.dropped)
    return report


def check_copy_paths(source: Path, output: Path) -> None:
    """Refuses what `deidentify_series` would refuse before it reads anything.

    Raises:
        CTReadError: if `source` is a NIfTI or MetaImage file.
        FileExistsError: if there is something at `output`.
        FileNotFoundError: if there is nothing at `source`.
        ValueError: if `output` lies within `source`.
    """
    if not source.exists():
        raise FileNotFoundError(2, "There is no file or folder at this path", str(source))
    if source.is_file() and source.name.lower().endswith(VOLUME_SUFFIXES):
        raise CTReadError(f"{source}: NIfTI and MetaImage are not de-identified: `deidentify` takes DICOM only.")
    if output.exists():
        raise FileExistsError(17, "It exists and is not overwritten: name a new path", str(output))
    if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{output} lies within {source}: name a folder outside, so that a copy is not copied again.")


def _storage_at(source: Path) -> Storage:
    if source.is_dir():
        return Folder(sorted((f for f in source.rglob("*") if f.is_file()), key=str))
    return archive_at(source) or Folder([source])


def _copy_all(storage: Storage, folder: Path, deidentifier: Deidentifier, report: DeidentifyReport) -> None:
    numbers: dict[str, int] = {}  # new SeriesInstanceUID -> number of its folder
    counts: dict[str, int] = {}
    seen: set[str] = set()
    faces = doubtful = unsearched = unlinked = 0
    for stored, opener in storage.scan():
        name = f"file {stored.number + 1}"
        try:
            copy = deidentified_image(stored, opener, deidentifier)
        except Exception as error:  # one odd file must not cost the others; nothing of it has been written
            report.left_out.append((name, _reason(error, stored)))
            continue
        if copy.image_uid in seen:
            report.left_out.append((name, "it has the SOPInstanceUID of an image that is copied already."))
            continue
        seen.add(copy.image_uid)
        number = numbers.setdefault(copy.series_uid, len(numbers) + 1)
        counts[copy.series_uid] = counts.get(copy.series_uid, 0) + 1
        target = folder / f"series{number:03d}"
        target.mkdir(exist_ok=True)
        (target / f"{counts[copy.series_uid]:05d}.dcm").write_bytes(copy.encoded)
        report.written += 1
        faces += copy.face
        doubtful += copy.doubtful
        unsearched += copy.unsearched > 0
        unlinked += copy.unlinked
    report.series = len(numbers)
    of = f"of {report.written} images"
    for count, note in (
        (unsearched, f"{of} could not be searched for text, or not all of their frames: look at them."),
        (unlinked, f"{of} have no StudyInstanceUID or SeriesInstanceUID: those of a patient, day and SeriesNumber were "
                   "taken as one."),
        (doubtful, f"{of} do not say that no text is drawn into their pixels (BurnedInAnnotation): look at them."),
        (faces, f"{of} show the head or neck: a surface rendering shows the face, which is not removed."),
    ):  # fmt: skip
        if count:
            report.notes.append(f"{count} {note}")


def _reason(error: Exception, stored: StoredFile) -> str:
    """Why a file was left out, in words that quote neither a value of its header nor a name."""
    if isinstance(error, CTReadError):
        return _without_names(str(error).replace(stored.label, "").removeprefix(": "), None)
    if isinstance(error, OSError):
        return f"the file cannot be read ({error.strerror or type(error).__name__})."
    return f"an element of the header has an impossible value ({type(error).__name__})."


def _without_names(text: str, source: Path | None) -> str:
    """A message without what it quotes, and without the names of an archive's entries."""
    if source is not None:
        text = re.sub(rf"{re.escape(str(source))}!.*?: ", "an entry of the archive: ", text)
        text = text.removeprefix(f"{source}: ")
    return re.sub(r"(?<!\w)b?(['\"]).*\1(?!\w)", "*", text)
