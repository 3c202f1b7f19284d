"""`diffusers-ct deidentify`: CT series in, the same images without the patient out."""

from pathlib import Path
from typing import Annotated

import typer

_EXAMPLES = """
Copies CT images without who, where and when, after the Basic Profile of DICOM PS3.15 annex E: headers are made anew from a
list of what is allowed, pixels stay bit for bit in their transfer syntax.

    diffusers-ct deidentify STUDY public --key-file private.key

The key file is made if it is not there. With the same key a patient, a study and references between images stay linked in
all copies, and dates stay as far apart as they were; whoever has it can undo the shift of dates: do not publish it. Without
one a key is drawn and thrown away.

Images that may carry text in their pixels (dose reports, saved screens) are left out and named; the exit status is then 1.
Text that no header speaks of is found only where it stands beside the body: look at the images before they leave the house.
The face in a scan of the head is not removed.
"""


def deidentify(
    source: Annotated[Path, typer.Argument(metavar="IN", help="DICOM folder (a series, a study, several) or file.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="New folder; not overwritten.")],
    key_file: Annotated[
        Path | None,
        typer.Option(help="Secret that keeps copies linked; made, for you alone to read, if it is not there."),
    ] = None,
    dates: Annotated[
        str, typer.Option(help="shift: by a secret number of days for each patient; remove: leave dates and times out.")
    ] = "shift",
    remove_device: Annotated[
        bool, typer.Option("--remove-device", help="Also leave out station name and serial numbers.")
    ] = False,
    keep_characteristics: Annotated[
        bool, typer.Option("--keep-characteristics", help="Keep sex, age (at most 90), height and weight.")
    ] = False,
) -> None:
    if dates not in ("shift", "remove"):
        raise ValueError(f"--dates must be shift or remove, got {dates!r}.")

    from ..io import DeidentificationKey, DeidentificationOptions, deidentify_series

    if key_file is not None and key_file.resolve().is_relative_to(output.resolve()):
        raise ValueError("--key-file must not lie in OUT, which is what may be given away.")
    if output.exists():
        raise FileExistsError(17, "It exists and is not overwritten: name a new path", str(output))
    if not source.exists():
        raise FileNotFoundError(2, "There is no file or folder at this path", str(source))
    key = None
    if key_file is not None:
        key = DeidentificationKey.load(key_file) if key_file.exists() else DeidentificationKey.random()
        if not key_file.exists():
            key.save(key_file)
    report = deidentify_series(
        source,
        output,
        key=key,
        options=DeidentificationOptions(
            dates="shift" if dates == "shift" else "remove",
            device_identity=not remove_device,
            patient_characteristics=keep_characteristics,
        ),
    )
    typer.echo(f"de-identified: {report.written} images of {report.series} series in {output}")
    for note in report.notes:
        typer.echo(f"note: {note}", err=True)
    if report.dropped:
        typer.echo(f"left out of some image, as the value was not safe: {', '.join(report.dropped)}", err=True)
    for path, reason in report.left_out:
        typer.echo(f"not copied: {path}: {reason}", err=True)
    if report.left_out:
        raise typer.Exit(1)


deidentify.__doc__ = _EXAMPLES
