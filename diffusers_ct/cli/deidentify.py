"""`diffusers-ct deidentify`: CT series in, the same images without the patient out."""

import json
from dataclasses import asdict
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

IN is DICOM; NIfTI and MetaImage are refused. It may be a zip or tar archive of a study, which is read in place. Images that may carry text in their pixels (dose reports,
saved screens), objects that are no CT image and damaged files are left out; the exit status is then 1. As names of files may
name a patient, they are told by number: "file 17" is the 17th in the order of the paths (`find IN -type f | LC_ALL=C sort`)
or of the archive. If nothing can be copied, the exit status is 2 and nothing is written.

Text that no header speaks of is found only where it stands beside the body: look at the images before they leave the house.
The face in a scan of the head is not removed.
"""


def deidentify(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN", help="DICOM folder (a series, a study, several), file, or zip or tar archive."),
    ],
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    if dates not in ("shift", "remove"):
        raise ValueError(f"--dates must be shift or remove, got {dates!r}.")

    from ..io import DeidentificationKey, DeidentificationOptions, deidentify_series
    from ..io.deidentify_series import check_copy_paths

    if key_file is not None and key_file.resolve().is_relative_to(output.resolve()):
        raise ValueError("--key-file must not lie in OUT, which is what may be given away.")
    if key_file is not None and source.is_dir() and key_file.resolve().is_relative_to(source.resolve()):
        raise ValueError("--key-file must not lie in IN, whose files are those to copy.")
    check_copy_paths(source, output)
    options = DeidentificationOptions(
        dates="shift" if dates == "shift" else "remove",
        device_identity=not remove_device,
        patient_characteristics=keep_characteristics,
    )
    key, made = None, None
    if key_file is not None and key_file.exists():
        key = DeidentificationKey.load(key_file)
    elif key_file is not None:
        key = DeidentificationKey.random()
        made = key.save(key_file)  # before the copy: one whose key cannot be kept would stay unlinked
    try:
        report = deidentify_series(source, output, key=key, options=options)
    except BaseException:
        if made is not None:  # nothing was written that it belongs to
            made.unlink()
        raise
    if as_json:
        typer.echo(json.dumps({"output": str(output), **asdict(report)}, indent=2))
    else:
        typer.echo(f"de-identified: {report.written} images of {report.series} series in {output}")
        for note in report.notes:
            typer.echo(f"note: {note}", err=True)
        if report.dropped:
            typer.echo(f"left out of some image, as the value was not safe: {', '.join(report.dropped)}", err=True)
        for name, reason in report.left_out:
            typer.echo(f"not copied: {name}: {reason}", err=True)
    if report.left_out:
        raise typer.Exit(1)


deidentify.__doc__ = _EXAMPLES
