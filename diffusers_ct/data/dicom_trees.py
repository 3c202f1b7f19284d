"""Finding scans in folders of DICOM: whose they are, at which dose, which slices belong together and which are pairs.

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
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from ..io import CTReadError, read_volume
from ..io.quiet import quiet_pydicom
from ..volume import CTVolume
from .workers import WorkerDied, Workers

_FULL = re.compile(r"(?<![a-z])(full|fd|ndct|normal)(?![a-z])|(?<![a-z])(full|normal)[ _-]?dose", re.IGNORECASE)
_LOW = re.compile(r"(?<![a-z])(quarter|low|qd|ld|ldct)(?![a-z])|(?<![a-z])(quarter|low)[ _-]?dose", re.IGNORECASE)
_MAYO_CASE = re.compile(r"(?<![A-Za-z0-9])(L\d{3})(?![0-9])")
_NO_IDENTITY = re.compile(r"(anon[a-z]*|unknown|none|removed|no ?name|x*|0*)", re.IGNORECASE)
_DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
_POSITION_TOLERANCE_MM = 0.05
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
        return f"{self.where}: {self.reason}"


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


@dataclass(frozen=True)
class PairedRun:
    """Evenly spaced slices at full and low dose, in the order of their position along the normal."""

    full: tuple[SliceHeader, ...]
    low: tuple[SliceHeader, ...]

    @property
    def label(self) -> str:
        return f"{self.full[0].folder} ({len(self.full)} slices from {self.full[0].name})"


def read_headers(root: Path, workers: Workers | None = None) -> tuple[list[SliceHeader], list[Problem]]:
    """Reads the headers of all CT slices under `root`; localizers, projections and files of other kinds are left out.

    Args:
        root: folder.
        workers: that read; None for this process. They do not change the result.

    Raises:
        FileNotFoundError: if `root` is no folder.
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
        FileNotFoundError: if `root` is no folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder.")
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
            problems.append(Problem(name, f"has an unusable header ({error}).", "unusable_header"))
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
            "a multi-frame object; write it as NIfTI with `read_volume` and `write_volume`, and prepare that with "
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


def split_runs(slices: Iterable[SliceHeader]) -> list[list[SliceHeader]]:
    """Sorts slices of one geometry by position and cuts them where the spacing changes: gaps are never bridged.

    Slices farther apart than twice their thickness are no volume: each becomes a run of one.

    Raises:
        ValueError: if two slices lie at one place, or the positions do not follow the normal (gantry tilt).
    """
    ordered = sorted(slices, key=lambda header: header.along_normal_mm)
    places = np.array([header.position_mm for header in ordered])
    steps = np.diff([header.along_normal_mm for header in ordered])
    if len(steps) and steps.min() < _POSITION_TOLERANCE_MM:
        twice = int(steps.argmin())
        raise ValueError(
            f"two slices at one position: {ordered[twice].name} and {ordered[twice + 1].name} "
            f"({ordered[twice].along_normal_mm:.2f} mm); keep one of them."
        )
    sideways = np.sqrt(np.maximum((np.diff(places, axis=0) ** 2).sum(axis=1) - steps**2, 0.0))
    runs = [[ordered[0]]]
    near = steps[steps <= 2.0 * max(ordered[0].thickness_mm, 0.1)]
    increment = float(np.median(near)) if len(near) else 0.0
    for header, step, shift in zip(ordered[1:], steps, sideways):
        if abs(step - increment) > max(0.02 * increment, _POSITION_TOLERANCE_MM):
            runs.append([header])
            continue
        if shift > max(0.02 * increment, _POSITION_TOLERANCE_MM):
            angle = np.degrees(np.arctan2(shift, step))
            raise ValueError(f"gantry tilt of {angle:.1f} degrees: resample the series before preparing it.")
        runs[-1].append(header)
    return runs


def find_runs(slices: Iterable[SliceHeader]) -> tuple[list[list[SliceHeader]], list[Problem]]:
    """Groups slices by patient, series and geometry and cuts each group into evenly spaced runs."""
    groups: dict[tuple, list[SliceHeader]] = defaultdict(list)
    for header in slices:
        groups[header.patient, header.study, header.series, header.kernel, header.geometry].append(header)
    runs, problems = [], []
    for group in groups.values():
        try:
            runs += split_runs(group)
        except ValueError as error:
            problems.append(Problem(group[0].folder, str(error), "irregular_geometry"))
    return runs, problems


def find_pairs(slices: Iterable[SliceHeader]) -> tuple[list[PairedRun], list[Problem]]:
    """Matches full- and low-dose slices by patient, kernel, geometry and position.

    Returns:
        The pairs, cut into evenly spaced runs, and what could not be matched, each with its reason.
    """
    groups: dict[tuple, dict[str, list[SliceHeader]]] = defaultdict(lambda: {"full": [], "low": []})
    problems = []
    unnamed: dict[str, int] = defaultdict(int)
    for header in slices:
        if header.dose is None:
            unnamed[header.folder] += 1
        else:
            groups[header.patient, header.kernel, header.geometry][header.dose].append(header)
    for folder, count in unnamed.items():
        problems.append(
            Problem(
                str(folder),
                f"{count} slices whose dose no name tells: name the folders `full` and `low` (or `quarter`).",
                "dose_not_named",
            )
        )
    pairs: list[PairedRun] = []
    lone: list[SliceHeader] = []
    for group in groups.values():
        if not group["full"] or not group["low"]:
            lone += group["full"] + group["low"]
            continue
        try:
            found, unmatched = _match(group["full"], group["low"])
        except ValueError as error:
            problems.append(Problem(group["full"][0].folder, str(error), "irregular_geometry"))
            continue
        pairs += found
        problems += _missing_partners(unmatched)
    return pairs, problems + _explain_lone(lone)


def _match(full: list[SliceHeader], low: list[SliceHeader]) -> tuple[list[PairedRun], list[SliceHeader]]:
    runs = {"full": split_runs(full), "low": split_runs(low)}
    ordered_low = [header for run in runs["low"] for header in run]
    low_mm = np.array([header.along_normal_mm for header in ordered_low])
    partner: dict[Path, SliceHeader] = {}
    for header in full:
        nearest = ordered_low[int(np.abs(low_mm - header.along_normal_mm).argmin())]
        if np.linalg.norm(np.subtract(header.position_mm, nearest.position_mm)) < _POSITION_TOLERANCE_MM:
            partner[header.path] = nearest
    matched = [header for header in full if header.path in partner]
    taken = {header.path for header in partner.values()}
    unmatched = [header for header in full if header.path not in partner]
    unmatched += [header for header in low if header.path not in taken]
    pairs = (
        [PairedRun(tuple(run), tuple(partner[h.path] for h in run)) for run in split_runs(matched)] if matched else []
    )
    return pairs, unmatched


def _missing_partners(unmatched: list[SliceHeader]) -> list[Problem]:
    by_folder: dict[tuple[str, str | None], list[SliceHeader]] = defaultdict(list)
    for header in unmatched:
        by_folder[header.folder, header.dose].append(header)
    return [
        Problem(
            str(folder),
            f"{len(headers)} {dose}-dose slices have no partner at their position ({_some(headers)}); left out.",
            "no_partner",
        )
        for (folder, dose), headers in by_folder.items()
    ]


def _explain_lone(lone: list[SliceHeader]) -> list[Problem]:
    """Says of each group without a partner whether the other dose is missing or differs, and in what."""
    groups: dict[tuple, list[SliceHeader]] = defaultdict(list)
    for header in lone:
        groups[header.folder, header.patient, header.dose, header.kernel, header.geometry].append(header)
    problems = []
    for (folder, patient, dose, _, _), headers in groups.items():
        other_dose = "low" if dose == "full" else "full"
        others = [h for h in lone if h.patient == patient and h.dose == other_dose]
        reason = f"{len(headers)} {dose}-dose slices have no {other_dose}-dose partner ({_some(headers)})"
        if others:
            reason = f"the {other_dose}-dose images of this patient differ in {_differences(headers[0], others[0])}"
        problems.append(Problem(str(folder), f"{reason}; left out.", "no_partner"))
    return problems


def _differences(one: SliceHeader, other: SliceHeader) -> str:
    found = []
    for name, field in (("kernel", "kernel"), ("matrix", "matrix"), ("pixel spacing", "pixel_spacing_mm"),
                        ("slice thickness", "thickness_mm"), ("orientation", "orientation")):  # fmt: skip
        a, b = getattr(one, field), getattr(other, field)
        if a != b:
            found.append(f"{name} ({a} against {b})")
    return ", ".join(found)


def _some(headers: list[SliceHeader]) -> str:
    names = [header.name for header in headers[:3]]
    return ", ".join(names) + (", ..." if len(headers) > 3 else "")


def read_run(run: Iterable[SliceHeader]) -> CTVolume:
    """Reads the pixels of an evenly spaced run of slices as one volume in HU.

    Raises:
        CTReadError: if a file is damaged or no CT image in HU.
    """
    headers = list(run)
    volumes = [read_volume(header.path) for header in headers]
    first = volumes[0]
    if any(volume.shape != (1, *headers[0].matrix) for volume in volumes):
        raise CTReadError(f"{headers[0].folder}: a file of the series does not hold exactly one slice.")
    if len(headers) == 1:
        return first
    affine = first.affine_lps.copy()
    step = np.subtract(headers[-1].position_mm, headers[0].position_mm) / (len(headers) - 1)
    affine[:3, 2] = step
    spacing = (float(np.linalg.norm(step)), first.spacing_mm[1], first.spacing_mm[2])
    return CTVolume(np.concatenate([volume.hu for volume in volumes]), spacing, affine, first.conditions)
