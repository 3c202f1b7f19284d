"""`diffusers-ct prepare`: scans or phantoms in, a dataset of low/full-dose pairs (or of single scans) out."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .wording import in_flags

if TYPE_CHECKING:
    from ..data.prepare import PrepareReport

_EXAMPLES = """
Makes a folder of low/full-dose pairs that `load_paired_ct` and the training example open.

A killed or stopped run goes on where it stopped: give the same command again. Scans that cannot be used are named at
the end; the exit status is then 1.

**Measured pairs** (layouts of the Mayo 2016 challenge and of TCIA LDCT-and-Projection-data, or `full` beside `low`):

    diffusers-ct prepare data/mayo --pairs MAYO_FOLDER --dose 0.25 --split-by-patient test=L506,L333

**Normal-dose scans**, low doses simulated as `diffusers-ct simulate` does, two noise realisations each:

    diffusers-ct prepare data/sim --normal-dose DICOM_FOLDER --dose 0.25 --dose 0.1 --realizations 2

**The same from NIfTI or MetaImage files**, whose names say whose they are:

    diffusers-ct prepare data/rate --normal-dose NIFTI_FOLDER --patient-from-name '(train_[0-9]+)_' --dose 0.25

**Phantoms** with known truth:

    diffusers-ct prepare data/phantoms --phantoms 24 --dose 0.25 --dose 0.1

**Scans without a partner**, for training without pairs (`load_unpaired_ct`):

    diffusers-ct prepare data/single --unpaired --normal-dose NORMAL_FOLDER --low-dose LOW_FOLDER

**Thousands of scans**: some processes, and some machines (of one DIFFUSERS_CT_SALT), joined at the end:

    diffusers-ct prepare data/part1 --normal-dose FOLDER --dose 0.25 --num-workers 8 --shard 1/2

    diffusers-ct prepare data/all --merge data/part1 --merge data/part2
"""


def prepare(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="New folder, or that of an unfinished run.")],
    pairs: Annotated[Path | None, typer.Option(help="Folder with full- and low-dose DICOM series.")] = None,
    normal_dose: Annotated[
        Path | None, typer.Option(help="Folder with normal-dose scans: DICOM series, NIfTI or MetaImage files.")
    ] = None,
    phantoms: Annotated[int | None, typer.Option(help="Number of phantoms to make.", min=1)] = None,
    unpaired: Annotated[
        bool, typer.Option("--unpaired", help="Keep the scans as they are: no pairs, no simulation.")
    ] = False,
    low_dose: Annotated[Path | None, typer.Option(help="Folder with low-dose scans, with --unpaired.")] = None,
    dose: Annotated[
        list[float] | None,
        typer.Option(
            help="Dose of the low-dose images as a fraction of the routine dose, in (0, 1). Required for pairs: headers "
            "of public pairs carry the full-dose mAs on both sides. Repeat it for several simulated doses."
        ),
    ] = None,
    realizations: Annotated[int, typer.Option(help="Simulated noise realisations for each dose.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the simulation; number of the first phantom.", min=0)] = 0,
    region: Annotated[
        list[str] | None,
        typer.Option(
            help="Phantom region, repeatable: thorax, abdomen, pelvis, shoulder (give it a field of view of 460 mm) or "
            "head (230 mm).",
            show_default="thorax and abdomen in turns",
        ),
    ] = None,
    shape: Annotated[tuple[int, int, int], typer.Option(help="Slices, rows, columns of a phantom.")] = (32, 256, 256),
    spacing: Annotated[tuple[float, float, float], typer.Option(help="Phantom spacing z y x in mm.")] = (2.0, 1.4, 1.4),
    i0: Annotated[
        float | None,
        typer.Option(
            help="Photons for each ray at routine dose (simulation).",
            show_default="from the noise of each normal-dose scan; 5e5 for phantoms",
        ),
    ] = None,
    kernel: Annotated[
        str | None,
        typer.Option(
            help="Of the simulation: smooth, soft or sharp.",
            show_default="from the noise of each normal-dose scan; soft for phantoms",
        ),
    ] = None,
    validation_fraction: Annotated[float, typer.Option(help="Fraction of patients for validation.")] = 0.1,
    test_fraction: Annotated[float, typer.Option(help="Fraction of patients for testing.")] = 0.1,
    split_by_patient: Annotated[
        list[str] | None,
        typer.Option(metavar="SPLIT=ID[,ID]", help="Sends patients to train, validation or test by name; repeatable."),
    ] = None,
    patient_from_name: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Whose a NIfTI or MetaImage file is: a regular expression with one group, for its path below the "
            "folder. Required for such files: scans of one patient must not land in training and test.",
        ),
    ] = None,
    assume_hu: Annotated[
        bool,
        typer.Option(
            "--assume-hu",
            help="Take the values of NIfTI and MetaImage files as HU though no air is among them (as in crops of an organ).",
        ),
    ] = False,
    salt: Annotated[
        str | None,
        typer.Option(
            envvar="DIFFUSERS_CT_SALT",
            help="Secret from which patient keys are made. Without it one is drawn and kept in OUT/private, which must "
            "not be published.",
            show_default=False,
        ),
    ] = None,
    num_workers: Annotated[
        int,
        typer.Option(
            help="Processes, each with one scan in memory and one thread. The files do not depend on it. 0 works in "
            "this process, with as many threads as it has.",
            min=0,
        ),
    ] = 1,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Makes the I-th of N parts, for N machines with the same scans.")
    ] = None,
    shard_size: Annotated[
        float, typer.Option(help="MB of a file of rows; a larger row has a file of its own.")
    ] = 500.0,
    merge: Annotated[
        list[Path] | None, typer.Option(metavar="PART", help="Joins the parts made with --shard; repeat it for each.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    overrides = parse_split_by_patient(split_by_patient or [])
    part = parse_shard(shard)
    source: dict[str, Any] = {
        "normal_dose": str(normal_dose) if normal_dose else None,
        "validation_fraction": validation_fraction,
        "test_fraction": test_fraction,
        "split_by_patient": overrides,
        "patient_from_name": patient_from_name,
        "assume_hu": assume_hu,
        "salt": salt,
    }
    options: dict[str, Any] = {"num_workers": num_workers, "part": part, "shard_size_mb": shard_size}
    given = {"--pairs": pairs, "--normal-dose": normal_dose, "--low-dose": low_dose, "--phantoms": phantoms}
    if merge:
        if used := [name for name, value in {**given, "--shard": shard, "--dose": dose}.items() if value]:
            raise ValueError(f"--merge joins what has been prepared: leave out {', '.join(used)}.")
        from ..data.merge import merge_prepared

        _tell(merge_prepared(output, merge), output, as_json)
        return
    if unpaired:
        if used := [name for name in ("--pairs", "--phantoms") if given[name]]:
            raise ValueError(f"--unpaired takes --normal-dose and --low-dose: leave out {', '.join(used)}.")
        if dose and (len(dose) > 1 or not low_dose):
            raise ValueError("With --unpaired, --dose is the one dose of the scans under --low-dose.")
        source |= {"low_dose": str(low_dose) if low_dose else None, "low_dose_fraction": dose[0] if dose else None}
    else:
        if low_dose:
            raise ValueError("--low-dose is for --unpaired; measured pairs lie under one folder: --pairs.")
        source |= {
            "pairs": str(pairs) if pairs else None,
            "phantoms": phantoms,
            "dose_fractions": tuple(dose or ()),
            "realizations": realizations,
            "seed": seed,
            **({"regions": tuple(region)} if region else {}),
            "shape": shape,
            "spacing_mm": spacing,
            "i0": i0,
            "kernel": kernel,
        }

    from ..data import prepare as work

    make = work.prepare_unpaired_ct if unpaired else work.prepare_paired_ct
    try:
        report = _with_progress(lambda progress: make(output, progress=progress, **options, **source))
    except KeyboardInterrupt:
        ready = work.rows_ready(output)
        typer.echo(f"Stopped: {ready} rows are ready. Give the same command again to go on.", err=True)
        raise typer.Exit(130) from None
    _tell(report, output, as_json)


prepare.__doc__ = _EXAMPLES


def _with_progress(make: Callable[[Callable[[int, int, str], None]], "PrepareReport"]) -> "PrepareReport":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("preparing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, transient=True) as bar:
        line = bar.add_task("reading headers", total=None)
        return make(lambda done, total, label: bar.update(line, completed=done, total=total, description=label))


def _tell(report: "PrepareReport", output: Path, as_json: bool) -> None:
    from ..data.prepare import describe

    if as_json:
        typer.echo(json.dumps({"output": str(output), **asdict(report)}, indent=2, default=str))
    else:
        summary, *rest = describe(report)
        typer.echo(summary)
        for text in rest:
            typer.echo(in_flags(text, "prepare"), err=True)
    if report.problems:
        raise typer.Exit(1)


def parse_shard(option: str | None) -> tuple[int, int] | None:
    """ "2/4" -> (2, 4).

    Raises:
        ValueError: for another form, or a number that is not from 1 to the count.
    """
    if option is None:
        return None
    number, _, count = option.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"--shard takes I/N with I from 1 to N, such as 1/4; got {option!r}.")
    return int(number), int(count)


def parse_split_by_patient(options: list[str]) -> dict[str, str]:
    """["test=L506,L333", "train=L096"] -> {"L506": "test", "L333": "test", "L096": "train"}.

    Messages repeat nothing of what was given, for it names patients.

    Raises:
        ValueError: if an option has another form or a patient is sent to two splits.
    """
    overrides: dict[str, str] = {}
    for option in options:
        split, separator, names = option.partition("=")
        patients = [name.strip() for name in names.split(",") if name.strip()]
        if not separator or not split.strip() or not patients:
            raise ValueError("--split-by-patient takes SPLIT=ID[,ID...], such as test=L506.")
        for patient in patients:
            if overrides.setdefault(patient, split.strip()) != split.strip():
                raise ValueError("--split-by-patient sends a patient to two splits: name each patient once.")
    return overrides
