"""What lies at a path and what of it can be read: one entry a stack of DICOM slices or a file.

Of headers nothing that names a patient comes out; paths are those of the user, and stay as they are.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .dicom_conditions import conditions_of, values_of
from .dicom_files import Contents, find_slices
from .dicom_geometry import slice_geometry
from .dicom_groups import Stack, plane_of
from .dicom_pixels import transfer_syntax
from .dicom_read import only_read_errors, plan_stack, read_pixels, stacks_in
from .errors import CTReadError
from .header_notes import header_notes, same_dose_note
from .identity import without_identity
from .volume_inspection import VolumeReport, inspect_volume, is_volume_file


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
        usable: "yes", "resample" (with resample=True only) or "no": whether `read_volume` takes it.
        reason: why not, and what to do.
        notes: where the header does not fit the scan, and what of the stack was left out.
        files: that hold the slices, as messages name them; may name a patient.
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
    files: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True)
class Inspection:
    """All that was found.

    Attributes:
        stacks: of DICOM slices, one entry each.
        volumes: NIfTI and MetaImage files, one entry each.
        problems: files that should be images and cannot be read; their paths may name a patient.
        notes: what else was left out of the DICOM that is there, whatever the stack.
        pixels_checked: whether pixel data were decoded, or headers only looked at.
    """

    stacks: tuple[StackReport, ...]
    volumes: tuple[VolumeReport, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    pixels_checked: bool

    @property
    def all_usable(self) -> bool:
        """Whether all can be read; a localizer is meant to be left out, and is no failure."""
        meant = [s.usable for s in self.stacks if s.kind != "localizer"] + [v.usable for v in self.volumes]
        return bool(meant) and all(usable == "yes" for usable in meant) and not self.problems

    def to_dict(self) -> dict[str, Any]:
        """For JSON; without the files of the stacks, which may be thousands."""
        plain = asdict(self)
        for stack in plain["stacks"]:
            del stack["files"]
        return plain


def inspect_path(path: str | Path, *, pixels: bool = False) -> Inspection:
    """Looks at a DICOM folder, file, archive or DICOMDIR, at a NIfTI or MetaImage file, or at a folder of all these.

    Args:
        path: as `read_volume` takes it.
        pixels: decode every slice and voxel too, which finds damage and false units that headers do not show. Of a NIfTI
            or MetaImage file that is itself the path they are always read.

    Raises:
        CTReadError: if there is no image.
        FileNotFoundError: if there is nothing at `path`.
    """
    path = Path(path)
    if path.is_file() and is_volume_file(path):
        return Inspection((), (inspect_volume(path, voxels=True),), (), (), True)
    volumes = tuple(inspect_volume(file, voxels=pixels) for file in _volume_files(path))
    with only_read_errors(path):
        try:
            contents = find_slices(path)
        except CTReadError:
            if volumes:  # a folder of such files alone
                return Inspection((), volumes, (), (), pixels)
            raise
        stacks = stacks_in(contents)
        reports = [_report(contents, stack, stacks, pixels) for stack in stacks]
        problems = [str(error) for _, error in contents.damaged]
        problems += [f"{path}: {name} is listed by the DICOMDIR and not there" for name, _ in contents.missing]
        return Inspection(tuple(reports), volumes, tuple(problems), tuple(contents.notes), pixels)


def _volume_files(path: Path) -> list[Path]:
    files = path.rglob("*") if path.is_dir() else ()
    return sorted(file for file in files if is_volume_file(file) and file.is_file() and not file.name.startswith("."))


def _report(contents: Contents, stack: Stack, stacks: Sequence[Stack], pixels: bool) -> StackReport:
    header = stack.slices[0].header
    usable, reason, notes = "yes", "", list(stack.notes)
    if stack.kind == "localizer":
        usable, reason = "no", "a localizer (scout) is no CT slice; it is left out"
    else:
        try:
            with only_read_errors(contents.path):
                plan = plan_stack(contents, stack, resample=True)
                notes = [note for note in plan.notes if note not in contents.notes]  # those are told once
                if plan.mendable is not None:
                    usable, reason = "resample", f"{plan.mendable}: read it with resample=True"
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
        files=tuple(dict.fromkeys(s.file.stored.label for s in stack.slices)),
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
