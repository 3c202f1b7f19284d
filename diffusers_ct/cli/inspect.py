"""`diffusers-ct inspect`: what a path holds, what can be read, and what to do about the rest."""

from pathlib import Path
from typing import Annotated

import typer

_EXAMPLES = """
Shows every stack of slices in a DICOM folder, file, zip or tar archive, or DICOMDIR: what it is and whether it can be
read, else why not and what to do. No patient's name or number is shown.

    diffusers-ct inspect SCANS

    diffusers-ct inspect study.zip --pixels --json

Exit status: 0 everything can be read, 1 something is refused, 2 there is no DICOM image.
"""


def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="DICOM folder, file, zip or tar archive, or DICOMDIR.")],
    pixels: Annotated[bool, typer.Option("--pixels", help="Decode all slices too: finds damage within them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    import json

    from ..io.inspection import inspect_path

    found = inspect_path(path, pixels=pixels)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=1))
    else:
        _print(found)
    if not found.all_usable:
        raise typer.Exit(1)


inspect.__doc__ = _EXAMPLES


def _short(syntax: str) -> str:
    """The name of a transfer syntax as one says it."""
    for long, short in (
        (" VR Little Endian", " LE"), (" VR Big Endian", " BE"), ("JPEG Lossless", "JPEG lossless"),
        ("JPEG 2000 Image Compression (Lossless Only)", "JPEG 2000 lossless"), (" Image Compression", ""),
    ):  # fmt: skip
        syntax = syntax.replace(long, short)
    return syntax.partition(", Non-Hierarchical")[0]


def _print(found) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in ("#", "what", "slices", "matrix", "spacing mm", "thick mm", "plane", "kernel", "kVp", "mAs", "encoding",
                 "usable"):  # fmt: skip
        table.add_column(name, overflow="fold")
    for k, s in enumerate(found.stacks):
        what = ", ".join(part for part in (s.kind, s.description, s.difference) if part)
        spacing = " ".join("?" if v is None else f"{v:.3g}" for v in s.spacing_mm)
        numbers = ["?" if v is None else f"{v:g}" for v in (s.thickness_mm, s.kvp, s.mas)]
        row = (str(k + 1), what, str(s.slices), f"{s.matrix[0]}x{s.matrix[1]}", spacing, numbers[0], s.orientation,
               s.kernel or "?", numbers[1], numbers[2], _short(s.transfer_syntax), s.usable)  # fmt: skip
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    if not found.pixels_checked:
        print("Headers only were looked at; --pixels decodes the slices too.")
    for k, s in enumerate(found.stacks):
        choice = f"series_uid={s.series_uid or repr('')}" + (f" stack={s.stack}" if s.stacks > 1 else "")
        print(f"{k + 1}: {choice}")
        if s.reason:
            print(f"   {'not usable' if s.usable == 'no' else s.usable}: {s.reason}")
        for note in s.notes:
            print(f"   note: {note}")
    for problem in found.problems:
        print(f"damaged: {problem}")
