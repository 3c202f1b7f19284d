"""Finding CT slices in folders of DICOM: whose they are and at which dose; `slice_matching` makes scans and pairs of them.

Only headers are read here; pixels are read by `diffusers_ct.io`. Known layouts, all told apart by the words in file and
folder names and then by the headers:

* Mayo / AAPM 2016 challenge: `L067/full_1mm/*.IMA` beside `L067/quarter_1mm`, `full_3mm_sharp_sorted`, or file names
  such as `L506_FD_1_1.CT...` and `L506_QD_1_1.CT...` in any folder;
* TCIA LDCT-and-Projection-data: `C002/<study>/1.000000-Full Dose Images-71581` beside `... Low Dose Images ...`
  (the projection folders are left aside);
* a plain pair of folders, `full` beside `low` or `quarter`.

References:
    McCollough et al. 2017, Low-dose CT for the detection and classification of metastatic liver lesions,
    doi:10.1002/mp.12345. Moen et al. 2021, Low-dose CT image and projection dataset, doi:10.1002/mp.14594.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import pydicom
from pydicom.errors import InvalidDicomError

from ..io.quiet import quiet_pydicom
from .folders import existing_folder
from .workers import WorkerDied, Workers

_FULL = re.compile(r"(?<![a-z])(full|fd|ndct|normal)(?![a-z])|(?<![a-z])(full|normal)[ _-]?dose", re.IGNORECASE)
_LOW = re.compile(r"(?<![a-z])(quarter|low|qd|ld|ldct)(?![a-z])|(?<![a-z])(quarter|low)[ _-]?dose", re.IGNORECASE)
_MAYO_CASE = re.compile(r"(?<![A-Za-z0-9])(L\d{3})(?![0-9])")
_NO_IDENTITY = re.compile(r"(anon[a-z]*|unknown|none|removed|no ?name|x*|0*)", re.IGNORECASE)
_DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
_FILES_AT_ONCE = 256
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd")
Value = TypeVar("Value")
_HEADER_TAGS = [
    "ImageType", "Modality", "PatientID", "PatientName", "SeriesDescription", "StudyInstanceUID",
    "SpecificCharacterSet", "SeriesInstanceUID", "ConvolutionKernel", "SliceThickness", "Rows", "Columns",
    "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "NumberOfFrames",
]  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A scan that could not be used: what it is (a file or folder of the user's, shown only to the user) and why.

    Attributes:
        where: file, folder or scan; may name a patient.
        reason: in words; may name a file.
        kind: the same in one word that names nothing, for the report that lies beside the data.
        rows: keys of the rows that are missing for it.
    """

    where: str
    reason: str
    kind: str
    rows: tuple[str, ...] = ()

    def __str__(self) -> str:
        """In one line that says a path once."""
        folder = self.where.partition(" (")[0]
        return f"{self.where}: {self.reason.removeprefix(f'{self.where}: ').removeprefix(f'{folder}{os.sep}')}"


@dataclass(frozen=True, slots=True)
class SliceHeader:
    """What matching needs of one slice; `patient` identifies and never leaves the machine unhashed.

    There are hundreds of thousands of these in a large collection: what slices of a series share is one object.
    """

    folder: str
    name: str
    patient: str
    dose: str | None
    study: str
    series: str
    kernel: str
    thickness_mm: float
    matrix: tuple[int, int]
    pixel_spacing_mm: tuple[float, float]
    orientation: tuple[float, ...]
    position_mm: tuple[float, float, float]

    @property
    def path(self) -> Path:
        return Path(self.folder, self.name)

    @property
    def along_normal_mm(self) -> float:
        (a, b, c, d, e, f), (x, y, z) = self.orientation, self.position_mm
        return x * (b * f - c * e) + y * (c * d - a * f) + z * (a * e - b * d)

    @property
    def geometry(self) -> tuple:
        """What has to agree before slices can be one volume or a pair."""
        return (self.matrix, self.pixel_spacing_mm, self.thickness_mm, self.orientation)


def read_headers(root: Path, workers: Workers | None = None) -> tuple[list[SliceHeader], list[Problem]]:
    """Reads the headers of all CT slices under `root`; localizers, projections and files of other kinds are left out.

    Args:
        root: folder.
        workers: that read; None for this process. They do not change the result.

    Raises:
        FileNotFoundError: if there is no folder `root`.
        NotADirectoryError: if it is a file.
        ValueError: if there is no CT slice in it.
    """
    paths = list(walk(root))
    parts = [(root, paths[n : n + _FILES_AT_ONCE]) for n in range(0, len(paths), _FILES_AT_ONCE)]
    slices: list[SliceHeader] = []
    problems: list[Problem] = []
    for found in (workers or Workers(0)).in_order(_read_part, parts):
        if isinstance(found, WorkerDied):
            raise ValueError(f"A process that read headers under {root} was killed: is the memory used up?")
        slices += found[0]
        problems += found[1]
    if not slices:
        raise ValueError("\n".join([f"No CT slices were found under {root}.", *map(str, problems)]))
    return slices, problems


def walk(root: Path, *, volumes: bool = False) -> Iterator[str]:
    """Paths of the files under a folder in a fixed order; hidden ones, projections and DICOMDIR are left out.

    Args:
        root: folder.
        volumes: whether to give the NIfTI and MetaImage files, or all others.

    Raises:
        FileNotFoundError: if there is no folder `root`.
        NotADirectoryError: if it is a file.
    """
    existing_folder(root)
    visited: set[Path] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = Path(folder).resolve()
        if real in visited:  # a link back to a folder that was read already, or in a circle
            subfolders.clear()
            continue
        visited.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and not _is_projection(name))
        for name in sorted(names):
            if name.startswith(".") or name.upper() == "DICOMDIR":
                continue
            if name.lower().endswith(VOLUME_SUFFIXES) == volumes:
                yield os.path.join(folder, name)


def _read_part(part: tuple[Path, list[str]]) -> tuple[list[SliceHeader], list[Problem]]:
    slices, problems = [], []
    for name in part[1]:
        path = Path(name)
        try:
            with quiet_pydicom():
                header = _read_header(path, part[0])
        except InvalidDicomError:
            if path.suffix.lower() in _DICOM_SUFFIXES:
                problems.append(Problem(name, "is not a DICOM file.", "not_dicom"))
        except (ValueError, AttributeError, TypeError, OSError, EOFError) as error:
            said = error.strerror if isinstance(error, OSError) and error.strerror else error
            problems.append(Problem(name, f"has an unusable header ({said}).", "unusable_header"))
        else:
            if header is not None:
                slices.append(header)
    return slices, problems


def _read_header(path: Path, root: Path) -> SliceHeader | None:
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_HEADER_TAGS)
    image_type = [str(value).upper() for value in header.get("ImageType") or []]
    if header.get("Modality", "CT") != "CT" or "LOCALIZER" in image_type or "Rows" not in header:
        return None
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise ValueError(
            "a multi-frame object; write it as NIfTI (`read_volume`, `write_volume`) and prepare that with "
            "`patient_from_name`"
        )
    for name in ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"):
        if not header.get(name):
            raise ValueError(f"{name} is missing")
    places = [path.name, *reversed(path.parent.relative_to(root).parts), root.name, str(header.get("PatientName", ""))]
    kernel = header.get("ConvolutionKernel") or ""
    return SliceHeader(
        folder=_shared(str(path.parent)),
        name=path.name,
        patient=_shared(_patient(header, places)),
        dose=named_dose([*places[:-1], str(header.get("SeriesDescription", ""))]),
        study=_shared(str(header.get("StudyInstanceUID", ""))),
        series=_shared(str(header.get("SeriesInstanceUID", ""))),
        kernel=_shared(kernel if isinstance(kernel, str) else "\\".join(kernel)),
        thickness_mm=_shared(round(float(header.get("SliceThickness") or 0.0), 3)),
        matrix=(int(header.Rows), int(header.Columns)),
        pixel_spacing_mm=_shared(tuple(round(float(v), 4) for v in header.PixelSpacing)),
        orientation=_shared(tuple(round(float(v), 4) + 0.0 for v in header.ImageOrientationPatient)),
        position_mm=tuple(float(v) for v in header.ImagePositionPatient),  # type: ignore[arg-type]
    )


@lru_cache(maxsize=4096)
def _shared(value: Value) -> Value:
    """One object for equal values, also after the way from a worker, for a pickle keeps them one."""
    return value


def _is_projection(folder: str) -> bool:
    return "projection" in folder.lower() and "ldct-and-projection" not in folder.lower()


def named_dose(places: list[str]) -> str | None:
    """The dose the innermost name that tells it tells: file, folder, its parents, at last the series description."""
    for place in places:
        full, low = bool(_FULL.search(place)), bool(_LOW.search(place))
        if full != low:
            return "full" if full else "low"
    return None


def _patient(header: pydicom.Dataset, places: list[str]) -> str:
    """PatientID; where that is a placeholder (as in the Mayo challenge) the case number, else the outer folder."""
    identity = str(header.get("PatientID", "")).strip()
    if not _NO_IDENTITY.fullmatch(identity):
        return identity
    for place in places:
        if found := _MAYO_CASE.search(place):
            return found.group(1)
    for place in reversed(places[1:-2]):  # outermost first: two patients as one do less harm than one as two
        if not _FULL.search(place) and not _LOW.search(place):
            return f"folder {place}"
    return f"folder {places[-2]}"
