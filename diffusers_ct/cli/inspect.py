"""`diffusers-ct inspect`: what a path holds, what can be read, and what to do about the rest."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from .wording import in_flags

if TYPE_CHECKING:
    from ..io.inspection import Inspection, StackReport
    from ..io.volume_inspection import VolumeReport
    from .prepare_preview import Preview

_EXAMPLES = """
Shows every stack of slices in a DICOM folder, file, zip or tar archive, or DICOMDIR, and every NIfTI and MetaImage file:
what it is and whether it can be read, else why not and what to do.

What headers say of a patient (name, number, dates) is not shown, nor in --json. Paths are shown as they are, in --json too,
so that you find the files, and so are SeriesInstanceUIDs: where a file or folder is named after a patient, take care to whom
you show this.

    diffusers-ct inspect SCANS

    diffusers-ct inspect scan.nii.gz

    diffusers-ct inspect study.zip --pixels --json

Below the table each stack is named by the flags of `simulate` and `restore` that choose it. The last columns: `usable` says what `simulate`, `restore` and `read_volume` do with it, `prepare` what `prepare
--normal-dose` makes of a folder's scans: "parts" where a gap parts a series, for it never bridges one.

Exit status: 0 everything can be read, 1 something is refused, 2 there is no image.
"""


def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="DICOM folder, file, zip or tar archive, or DICOMDIR; .nii, .nii.gz, .mha, .mhd."
        ),
    ],
    pixels: Annotated[
        bool, typer.Option("--pixels", help="Decode all slices and voxels too: finds damage within them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    import json

    from ..io.inspection import inspect_path
    from .prepare_preview import preview_prepare

    found = inspect_path(path, pixels=pixels)
    previews = preview_prepare(path, found, pixels=pixels) if path.is_dir() else None
    if as_json:
        typer.echo(json.dumps(_to_dict(found, previews), indent=1))
    else:
        _print(path, found, previews)
    if not found.all_usable:
        raise typer.Exit(1)


inspect.__doc__ = _EXAMPLES

_Previews: TypeAlias = "tuple[list[Preview], list[Preview]] | None"


def _to_dict(found: "Inspection", previews: _Previews) -> dict[str, Any]:
    plain = found.to_dict()
    for entries, seen in zip((plain["stacks"], plain["volumes"]), previews or ([], [])):
        for entry, preview in zip(entries, seen):
            entry |= {"prepare": preview.prepare, "prepare_reason": preview.reason}
    return plain


def _short(syntax: str) -> str:
    """The name of a transfer syntax as one says it."""
    for long, short in (
        (" VR Little Endian", " LE"), (" VR Big Endian", " BE"), ("JPEG Lossless", "JPEG lossless"),
        ("JPEG 2000 Image Compression (Lossless Only)", "JPEG 2000 lossless"), (" Image Compression", ""),
    ):  # fmt: skip
        syntax = syntax.replace(long, short)
    return syntax.partition(", Non-Hierarchical")[0]


_COLUMNS = (
    "#",
    "what",
    "slices",
    "matrix",
    "spacing mm",
    "thick mm",
    "plane",
    "kernel",
    "kVp",
    "mAs",
    "encoding",
    "usable",
)


def _print(path: Path, found: "Inspection", previews: _Previews) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in (*_COLUMNS, *(["prepare"] if previews else [])):
        table.add_column(name, overflow="fold")
    seen = [preview for part in previews or ([], []) for preview in part]
    rows = _stack_rows(found) + _volume_rows(found)
    for k, row in enumerate(rows):
        cells = (str(k + 1), *row, *([seen[k].prepare] if seen else []))
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
    if not found.pixels_checked:
        print("Headers only were looked at; --pixels decodes the slices and voxels too.")

    def short(text: str) -> str:
        """Files below the folder are named from there."""
        return re.sub(rf"(?<![\w./-]){re.escape(str(path))}(?:/|: )", "", text)

    def say(text: str) -> None:
        print(in_flags(short(text), "inspect"))

    names = [_choice(stack) for stack in found.stacks] + [short(volume.path) for volume in found.volumes]
    notes: list[tuple[str, ...]] = [stack.notes for stack in found.stacks] + [() for _ in found.volumes]
    entries: list[StackReport | VolumeReport] = [*found.stacks, *found.volumes]
    for k, entry in enumerate(entries):
        print(f"{k + 1}: {names[k]}")
        if entry.reason:
            say(f"   {'not usable' if entry.usable == 'no' else entry.usable}: {entry.reason}")
        if seen and seen[k].reason not in ("", entry.reason):
            say(f"   {'not prepared' if seen[k].prepare == 'no' else 'prepare'}: {seen[k].reason}")
        for note in notes[k]:
            say(f"   note: {note}")
    for problem in found.problems:
        say(f"damaged: {problem}")
    for note in found.notes:
        say(f"note: {note}")


def _stack_rows(found: "Inspection") -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for s in found.stacks:
        what = ", ".join(part for part in (s.kind, s.description, s.difference) if part)
        numbers = ["?" if v is None else f"{v:g}" for v in (s.thickness_mm, s.kvp, s.mas)]
        rows.append((what, str(s.slices), f"{s.matrix[0]}x{s.matrix[1]}", _lengths(s.spacing_mm), numbers[0], s.orientation,
                     s.kernel or "?", numbers[1], numbers[2], _short(s.transfer_syntax), s.usable))  # fmt: skip
    return rows


def _volume_rows(found: "Inspection") -> list[tuple[str, ...]]:
    """Thickness, kernel, kVp and mAs are not in such files."""
    rows: list[tuple[str, ...]] = []
    for v in found.volumes:
        what = v.format + (f", {v.hu_range[0]:g} to {v.hu_range[1]:g} HU" if v.hu_range else "")
        slices, matrix = ("?", "?") if v.shape is None else (str(v.shape[0]), f"{v.shape[1]}x{v.shape[2]}")
        spacing = _lengths(v.spacing_mm or (None,))
        rows.append((what, slices, matrix, spacing, "", v.orientation, "", "", "", v.data_type or "?", v.usable))
    return rows


def _lengths(values: Sequence[float | None]) -> str:
    return " ".join("?" if v is None else f"{v:.3g}" for v in values)


def _choice(stack: "StackReport") -> str:
    """The flags of `simulate` and `restore` that choose it."""
    number = f" --stack {stack.stack}" if stack.stacks > 1 else ""
    if not stack.series_uid:
        return f"a series without a SeriesInstanceUID; --series-uid ''{number} chooses it"
    return f"--series-uid {stack.series_uid}{number}"
