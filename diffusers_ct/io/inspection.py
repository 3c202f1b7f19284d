"""What lies at a path and what of it can be read: one entry a stack, without a patient's identity."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .dicom_conditions import conditions_of, values_of
from .dicom_files import Contents, find_slices
from .dicom_geometry import slice_geometry
from .dicom_groups import Stack, plane_of, without_identity
from .dicom_pixels import transfer_syntax
from .dicom_read import only_read_errors, plan_stack, read_pixels, stacks_in
from .errors import CTReadError
from .header_notes import header_notes, same_dose_note


@dataclass(frozen=True)
class StackReport:
    """One stack as `inspect` shows it; None where the header does not say.

    Attributes:
        series_uid: to choose it with.
        stack: to choose it with, if the series has several.
        stacks: of the series.
        description: SeriesDescription without words that name the patient.
        difference: what tells the stack from the others of its series.
        kind: "original", "reformat" or "localizer".
        slices: number of images.
        matrix: (rows, columns).
        spacing_mm: (z, y, x); z is the median distance of neighbours.
        thickness_mm: SliceThickness.
        orientation: "axial", "coronal", "sagittal", "oblique" or "unknown".
        kernel: ConvolutionKernel.
        kvp: KVP.
        mas: exposure in mAs.
        transfer_syntax: name of the encoding.
        usable: "yes", "resample" (with resample=True only) or "no".
        reason: why not, and what to do.
        notes: where the header does not fit the scan, and what was left out.
    """

    series_uid: str
    stack: int
    stacks: int
    description: str
    difference: str
    kind: str
    slices: int
    matrix: tuple[int, int]
    spacing_mm: tuple[float | None, float | None, float | None]
    thickness_mm: float | None
    orientation: str
    kernel: str | None
    kvp: float | None
    mas: float | None
    transfer_syntax: str
    usable: str
    reason: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """All that was found.

    Attributes:
        stacks: one entry each.
        problems: files that should be images and cannot be read.
        pixels_checked: whether pixel data were decoded, or headers only looked at.
    """

    stacks: tuple[StackReport, ...]
    problems: tuple[str, ...]
    pixels_checked: bool

    @property
    def all_usable(self) -> bool:
        """Whether every stack can be read; a localizer is meant to be left out, and is no failure."""
        good = all(s.usable == "yes" or s.kind == "localizer" for s in self.stacks)
        return good and not self.problems and any(s.usable == "yes" for s in self.stacks)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect_path(path: str | Path, *, pixels: bool = False) -> Inspection:
    """Looks at a DICOM folder, file, archive or DICOMDIR.

    Args:
        path: as `read_volume` takes it.
        pixels: decode every slice too, which finds damage that headers do not show.

    Raises:
        CTReadError: if there is nothing of DICOM.
        FileNotFoundError: if there is nothing at `path`.
    """
    path = Path(path)
    with only_read_errors(path):
        contents = find_slices(path)
        stacks = stacks_in(contents)
        reports = [_report(contents, stack, stacks, pixels) for stack in stacks]
        problems = [str(error) for _, error in contents.damaged]
        problems += [f"{path}: {name} is listed by the DICOMDIR and not there" for name, _ in contents.missing]
        return Inspection(tuple(reports), tuple(problems), pixels)


def _report(contents: Contents, stack: Stack, stacks: Sequence[Stack], pixels: bool) -> StackReport:
    header = stack.slices[0].header
    usable, reason, notes = "yes", "", list(stack.notes)
    if stack.kind == "localizer":
        usable, reason = "no", "a localizer (scout) is no CT slice; it is left out"
    else:
        try:
            with only_read_errors(contents.path):
                plan = plan_stack(contents, stack, resample=True)
                notes = plan.notes
                if plan.mendable is not None:
                    usable, reason = "resample", f"{plan.mendable}: read it with resample=True (--resample)"
                if pixels:
                    read_pixels(contents, plan.slices, _Discard())  # type: ignore[arg-type]
        except CTReadError as error:
            usable, reason = "no", str(error)
    spacing: tuple[float | None, float | None, float | None]
    try:
        with only_read_errors(contents.path):
            labels = [s.label for s in stack.slices]
            geometry, order = slice_geometry([s.header for s in stack.slices], labels)
            headers = [stack.slices[i].header for i in order]
            gaps = np.diff(geometry.along_mm)
            spacing = (round(float(np.median(gaps)), 4) if len(gaps) else None, *geometry.pixel_mm)
            orientation = plane_of((*geometry.row, *geometry.column))
            if stack.kind != "localizer":
                notes += header_notes(headers, geometry)
                notes += _pair_notes(stack, stacks)
    except CTReadError:
        spacing, orientation = (None, None, None), "unknown"
    conditions = conditions_of(header)
    syntaxes = sorted({transfer_syntax(s.file.header).name for s in stack.slices})
    return StackReport(
        **vars(stack.summary()),
        spacing_mm=spacing,
        thickness_mm=conditions.slice_thickness_mm,
        orientation=orientation,
        kernel=without_identity("\\".join(str(v) for v in values_of(header.get("ConvolutionKernel"))), header) or None,
        kvp=conditions.kvp,
        mas=conditions.tube_current_mas,
        transfer_syntax=", ".join(syntaxes),
        usable=usable,
        reason=reason,
        notes=tuple(notes),
    )


def _pair_notes(stack: Stack, stacks: Sequence[Stack]) -> list[str]:
    mine = [s.header for s in stack.slices]
    for other in stacks:
        if other is not stack and other.kind == stack.kind and other.matrix == stack.matrix:
            name = f"series {other.series_uid}" + (f" stack {other.number}" if other.of > 1 else "")
            note = same_dose_note(mine, [s.header for s in other.slices], name)
            if note is not None:
                return [note]
    return []


class _Discard:
    """Takes slices and keeps none."""

    def __setitem__(self, key: int, value: np.ndarray) -> None: ...
