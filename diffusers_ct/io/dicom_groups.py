"""Which slices belong together: stacks of one series, orientation, matrix and reconstruction, one acquisition each."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pydicom

from .dicom_conditions import values_of
from .dicom_files import Slice, counted
from .dicom_geometry import LEAST_SPACING_MM, find_irregularity, slice_geometry
from .errors import CTReadError
from .identity import without_identity

_REFORMAT_WORDS = ("REFORMATTED", "MPR", "MIP", "MINIP", "AVERAGE", "CSA", "CSAMIP", "VRT")
_ORIENTATION_TOLERANCE = 0.02
_PIXEL_TOLERANCE_MM = 1e-3
_KINDS = ("original", "reformat", "localizer")


@dataclass(frozen=True)
class SeriesSummary:
    """One stack of slices.

    Attributes:
        series_uid: SeriesInstanceUID.
        description: SeriesDescription, empty where there is none; names and numbers of the patient are left out.
        kind: "original", "reformat" or "localizer".
        slices: number of images.
        matrix: (rows, columns).
        stack: number of the stack within its series, from 1.
        stacks: how many stacks the series has.
        difference: what tells the stack from the others of its series.
    """

    series_uid: str
    description: str
    kind: str
    slices: int
    matrix: tuple[int, int]
    stack: int = 1
    stacks: int = 1
    difference: str = ""

    def __str__(self) -> str:
        rows, columns = self.matrix
        name = self.description or "no description"
        text = f"{counted(self.slices, 'slice')} of {rows} x {columns}, {self.kind}, {name!r}, series_uid={self.series_uid or repr('')}"
        if self.stacks == 1:
            return text
        return f"{text}, stack={self.stack}" + (f" ({self.difference})" if self.difference else "")


@dataclass(eq=False)
class Stack:
    """Slices that may make one volume.

    Attributes:
        slices: unsorted.
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID.
        kind: see `SeriesSummary`.
        matrix: (rows, columns).
        difference: see `SeriesSummary`.
        number: within the series, from 1.
        of: stacks of the series.
    """

    slices: list[Slice]
    study_uid: str
    series_uid: str
    kind: str
    matrix: tuple[int, int]
    difference: str = ""
    number: int = 1
    of: int = 1
    notes: list[str] = field(default_factory=list)

    def summary(self) -> SeriesSummary:
        header = self.slices[0].header
        return SeriesSummary(
            self.series_uid,
            without_identity(str(header.get("SeriesDescription", "") or ""), header),
            self.kind,
            len(self.slices),
            self.matrix,
            self.number,
            self.of,
            self.difference,
        )


def group(
    slices: Iterable[Slice], drop_copies: Callable[[list[Slice]], tuple[list[Slice], dict[int, int]]]
) -> list[Stack]:
    """Sorts slices into stacks, series by series; the stacks of a series are numbered from 1, originals first.

    What makes another image (orientation, matrix, pixel spacing, kernel, frame of reference, stack of a multi-frame object)
    always parts stacks. Acquisitions part a stack only where, taken as one, it is no regular volume: a step-and-shoot scan
    gives every slice its own AcquisitionNumber.

    Args:
        slices: of any number of series.
        drop_copies: leaves out bit-identical copies of an instance, and counts those of each slice that stays.
    """
    series: dict[tuple[str, str], list[Slice]] = defaultdict(list)
    for one in slices:
        series[_text(one.header, "StudyInstanceUID"), _text(one.header, "SeriesInstanceUID")].append(one)
    out = []
    for (study, uid), members in series.items():
        stacks = []
        for key, part in _apart(members):
            part, copies = drop_copies(part)
            for name, piece in _acquisitions(part):
                difference = "; ".join(text for text in (key.difference, name) if text)
                count = sum(copies.get(id(one), 0) for one in piece)
                notes = (
                    [f"{count} bit-identical {'copy' if count == 1 else 'copies'} of images left out"] if count else []
                )
                stacks.append(Stack(piece, study, uid, key.kind, key.matrix, difference, notes=notes))
        stacks.sort(key=lambda s: (_KINDS.index(s.kind), _natural(s.difference)))
        for k, stack in enumerate(stacks):
            stack.number, stack.of = k + 1, len(stacks)
        out += stacks
    return out


def _natural(text: str) -> list[tuple[int, str]]:
    """Sorts "2" before "10"."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,18})", text)]


def kind_of(header: pydicom.Dataset) -> str:
    """ "original", "reformat" or "localizer", by ImageType."""
    words = [str(word).upper() for word in values_of(header.get("ImageType"))]
    if "LOCALIZER" in words:
        return "localizer"
    return "reformat" if any(word in _REFORMAT_WORDS for word in words) else "original"


def plane_of(orientation: Sequence[float]) -> str:
    """Name of the plane of six direction cosines: axial, coronal, sagittal, oblique, or unknown."""
    if len(orientation) != 6:
        return "unknown"
    normal = np.abs(np.cross(orientation[:3], orientation[3:]))
    return ("sagittal", "coronal", "axial")[int(normal.argmax())] if normal.max() > 0.9 else "oblique"


@dataclass(frozen=True)
class _Key:
    kind: str
    matrix: tuple[int, int]
    difference: str


def _apart(slices: list[Slice]) -> list[tuple[_Key, list[Slice]]]:
    """Parts a series by what makes another kind of image."""
    headers = [s.header for s in slices]
    orientations = [_floats(h, "ImageOrientationPatient") for h in headers]
    traits = {
        "": [kind_of(h) for h in headers],
        "matrix": [f"{_whole(h, 'Rows')} x {_whole(h, 'Columns')}" for h in headers],
        "orientation": _clusters(orientations, _ORIENTATION_TOLERANCE, plane_of),
        "pixel spacing": _clusters([_floats(h, "PixelSpacing") for h in headers], _PIXEL_TOLERANCE_MM, _joined),
        "kernel": [without_identity("\\".join(map(str, values_of(h.get("ConvolutionKernel")))), h) for h in headers],
        "StackID": [_text(h, "StackID") for h in headers],
        "temporal position": [_text(h, "TemporalPositionIndex") for h in headers],
    }
    parts: dict[tuple, list[int]] = defaultdict(list)
    for i, values in enumerate(zip(*traits.values())):
        parts[values].append(i)
    varying = [name for name, values in traits.items() if len(set(values)) > 1 and name]
    out = []
    for indices in parts.values():
        first = indices[0]
        difference = ", ".join(f"{name} {traits[name][first] or 'unnamed'}" for name in varying)
        matrix = (_whole(headers[first], "Rows"), _whole(headers[first], "Columns"))
        out.append((_Key(traits[""][first], matrix, difference), [slices[i] for i in indices]))
    return out


def _acquisitions(slices: list[Slice]) -> list[tuple[str, list[Slice]]]:
    """Parts a stack that is no regular volume by the first attribute whose parts are."""
    try:
        along = _along(slices)
    except CTReadError:  # refused with its reason if it is chosen
        return [("", slices)]
    order = np.argsort(along)
    coincide = bool((np.diff(along[order]) < LEAST_SPACING_MM).any()) if len(slices) > 1 else False
    if len(slices) < 4 or (not coincide and _irregular(slices) is None):
        return [("", slices)]
    for name, values in _traits_of_acquisition(slices, along, timed=coincide):
        pieces: dict[str, list[Slice]] = defaultdict(list)
        for one, value in zip(slices, values):
            pieces[value].append(one)
        if len(pieces) < 2 or min(map(len, pieces.values())) < 2:
            continue
        if coincide and all(not _coincide(piece) for piece in pieces.values()):
            return [(f"{name} {value or 'unnamed'}", piece) for value, piece in pieces.items()]
        if not coincide and all(_irregular(piece) is None for piece in pieces.values()):
            return [(f"{name} {value or 'unnamed'}", piece) for value, piece in pieces.items()]
    return [("", slices)]


def _traits_of_acquisition(slices: list[Slice], along: np.ndarray, *, timed: bool) -> Iterable[tuple[str, list[str]]]:
    headers = [s.header for s in slices]
    yield "dimension index", [_dimension(h) for h in headers]
    names = ["AcquisitionNumber", "TemporalPositionIdentifier"]
    if timed:  # several images at one place
        names += ["NominalPercentageOfCardiacPhase", "KVP", "ImageType", "SliceThickness", "ReconstructionDiameter"]
        names += ["FilterType", "Exposure"]
    yield "frame of reference", _numbered([_text(h, "FrameOfReferenceUID") for h in headers])
    for name in names:
        yield name, [without_identity("\\".join(map(str, values_of(h.get(name)))), h) for h in headers]
    if timed:
        yield "acquisition", _numbered([_text(h, "IrradiationEventUID") for h in headers])
        times = max(Counter(np.round(along / LEAST_SPACING_MM / 2).tolist()).values())
        for name in ("AcquisitionDateTime", "FrameAcquisitionDateTime", "AcquisitionTime", "ContentTime"):
            yield f"by {name}: part", _runs_in_time([_text(h, name) for h in headers], max(times, 2))


def _runs_in_time(texts: list[str], count: int) -> list[str]:
    """Cuts times into `count` runs at the longest pauses; times themselves are not shown."""
    values = np.array([_seconds(text) for text in texts])
    if not np.isfinite(values).all():
        return ["1"] * len(texts)
    order = np.argsort(values, kind="stable")
    pauses = np.diff(values[order])
    cuts = np.sort(np.argsort(-pauses, kind="stable")[: count - 1])
    run = np.zeros(len(texts), int)
    run[order] = np.searchsorted(cuts, np.arange(len(texts)), side="left")
    return [str(k + 1) for k in run]


def _seconds(text: str) -> float:
    """HHMMSS.FFFFFF (TM), or the same after YYYYMMDD (DT); PS3.5 section 6.2."""
    digits = text.split(".")[0].split("+")[0].split("-")[0]
    days, clock = (digits[:8], digits[8:]) if len(digits) > 8 else ("0", digits)
    if not (days.isdecimal() and clock.isdecimal() and len(clock) >= 4):
        return float("nan")
    fraction = text.partition(".")[2][:6]
    parts = [int(clock[i : i + 2]) for i in (0, 2, 4) if clock[i : i + 2]]
    seconds = sum(v * w for v, w in zip(parts, (3600, 60, 1)))
    return int(days) * 86400.0 + seconds + (float(f"0.{fraction}") if fraction.isdecimal() else 0.0)


def _dimension(header: pydicom.Dataset) -> str:
    """DimensionIndexValues without those of the position within the stack (PS3.3 C.7.6.17)."""
    pointers = [item.get("DimensionIndexPointer") for item in header.get("DimensionIndexSequence") or []]
    values = values_of(header.get("DimensionIndexValues"))
    if len(pointers) != len(values):
        return ""
    place = (0x00209057, 0x00200032, 0x00209113)  # InStackPositionNumber, ImagePositionPatient, PlanePositionSequence
    return "\\".join(str(v) for p, v in zip(pointers, values) if p not in place)


def _along(slices: list[Slice]) -> np.ndarray:
    geometry, order = slice_geometry([s.header for s in slices], [s.label for s in slices])
    along = np.empty(len(slices))
    along[order] = geometry.along_mm
    return along


def _irregular(slices: list[Slice]) -> str | None:
    """Why the slices are not evenly spaced; a tilt is none of it."""
    geometry, _ = slice_geometry([s.header for s in slices], [s.label for s in slices])
    found = find_irregularity(geometry)
    return None if found is None or "tilt" in found[0] else found[0]


def _coincide(slices: list[Slice]) -> bool:
    return bool((np.diff(np.sort(_along(slices))) < LEAST_SPACING_MM).any())


def _clusters(values: list[tuple[float, ...]], tolerance: float, name: Callable) -> list[str]:
    """A name for each value; values within the tolerance of the first of their kind get the same."""
    kinds: dict[int, np.ndarray] = {}
    names: dict[int, list[str]] = defaultdict(list)
    out = []
    for value in values:
        size = len(value)
        known = kinds.get(size, np.empty((0, size)))
        near: np.ndarray | list = (
            np.flatnonzero(np.abs(known - np.array(value)).max(axis=1, initial=0.0) <= tolerance) if size else []
        )
        if size and len(near) == 0:
            text = name(value)
            same = sum(n.split(" #")[0] == text for n in names[size])
            names[size].append(f"{text} #{same + 1}" if same else text)
            kinds[size] = np.vstack([known, np.array(value)])
            out.append(names[size][-1])
        else:
            out.append(names[size][int(near[0])] if size else "")
    return out


def _joined(values: Sequence[float]) -> str:
    return " x ".join(f"{v:g}" for v in values) + " mm"


def _numbered(values: list[str]) -> list[str]:
    """1, 2, ... for different values in order of appearance: UIDs say nothing to a reader."""
    seen: dict[str, str] = {}
    return [seen.setdefault(value, str(len(seen) + 1)) for value in values]


def _floats(header: pydicom.Dataset, name: str) -> tuple[float, ...]:
    try:
        values = tuple(float(v) for v in values_of(header.get(name)))
    except (TypeError, ValueError):
        return ()
    return values if np.isfinite(values).all() else ()


def _whole(header: pydicom.Dataset, name: str) -> int:
    try:
        return int(header.get(name) or 0)
    except (TypeError, ValueError, OverflowError):
        return 0


def _text(header: pydicom.Dataset, name: str) -> str:
    value = header.get(name)
    return "" if value is None else str(value)
