"""`diffusers-ct prepare`: DICOM folders or phantoms in, a dataset of low/full-dose pairs out."""

from pathlib import Path
from typing import Annotated

import typer

_EXAMPLES = """
Makes a folder of low/full-dose pairs that `load_paired_ct` and the training example open.

A killed run goes on where it stopped: give the same command again. Scans that cannot be used are named at the end;
the exit status is then 1.

**Measured pairs** (layouts of the Mayo 2016 challenge and of TCIA LDCT-and-Projection-data, or `full` beside `low`):

    diffusers-ct prepare data/mayo --pairs MAYO_FOLDER --dose 0.25 --split-by-patient test=L506,L333

**Normal-dose scans**, low doses simulated, two noise realisations each:

    diffusers-ct prepare data/sim --normal-dose DICOM_FOLDER --dose 0.25 --dose 0.1 --realizations 2

**Phantoms** with known truth:

    diffusers-ct prepare data/phantoms --phantoms 24 --dose 0.25 --dose 0.1
"""


def prepare(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="New folder, or that of an unfinished run.")],
    pairs: Annotated[Path | None, typer.Option(help="Folder with full- and low-dose DICOM series.")] = None,
    normal_dose: Annotated[Path | None, typer.Option(help="Folder with normal-dose DICOM series.")] = None,
    phantoms: Annotated[int | None, typer.Option(help="Number of phantoms to make.", min=1)] = None,
    dose: Annotated[
        list[float] | None,
        typer.Option(
            help="Dose of the low-dose images as a fraction of the routine dose, in (0, 1). Required: headers of "
            "public pairs carry the full-dose mAs on both sides. Repeat it for several simulated doses."
        ),
    ] = None,
    realizations: Annotated[int, typer.Option(help="Simulated noise realisations for each dose.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the simulation; number of the first phantom.", min=0)] = 0,
    region: Annotated[list[str] | None, typer.Option(help="Phantom region: thorax or abdomen; repeatable.")] = None,
    shape: Annotated[tuple[int, int, int], typer.Option(help="Slices, rows, columns of a phantom.")] = (32, 256, 256),
    spacing: Annotated[tuple[float, float, float], typer.Option(help="Phantom spacing z y x in mm.")] = (2.0, 1.4, 1.4),
    i0: Annotated[
        float | None,
        typer.Option(help="Photons for each ray at routine dose (simulation).", show_default="simulator's"),
    ] = None,
    validation_fraction: Annotated[float, typer.Option(help="Fraction of patients for validation.")] = 0.1,
    test_fraction: Annotated[float, typer.Option(help="Fraction of patients for testing.")] = 0.1,
    split_by_patient: Annotated[
        list[str] | None,
        typer.Option(metavar="SPLIT=ID[,ID]", help="Sends patients to train, validation or test by name; repeatable."),
    ] = None,
    salt: Annotated[
        str | None,
        typer.Option(
            envvar="DIFFUSERS_CT_SALT",
            help="Secret from which patient keys are made. Without it one is drawn and kept in OUT/private, which must "
            "not be published.",
            show_default=False,
        ),
    ] = None,
) -> None:
    overrides = parse_split_by_patient(split_by_patient or [])

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..data.prepare import describe, prepare_paired_ct

    columns = (
        TextColumn("preparing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, transient=True) as bar:
        line = bar.add_task("")
        report = prepare_paired_ct(
            output,
            progress=lambda done, total, label: bar.update(line, completed=done, total=total, description=label),
            pairs=str(pairs) if pairs else None,
            normal_dose=str(normal_dose) if normal_dose else None,
            phantoms=phantoms,
            dose_fractions=tuple(dose or ()),
            realizations=realizations,
            seed=seed,
            **({"regions": tuple(region)} if region else {}),
            shape=shape,
            spacing_mm=spacing,
            validation_fraction=validation_fraction,
            test_fraction=test_fraction,
            split_by_patient=overrides,
            salt=salt,
            simulation={} if i0 is None else {"i0": i0},
        )
    for text in describe(report):
        typer.echo(text, err=text.startswith("  "))
    if report.problems:
        raise typer.Exit(1)


prepare.__doc__ = _EXAMPLES


def parse_split_by_patient(options: list[str]) -> dict[str, str]:
    """["test=L506,L333", "train=L096"] -> {"L506": "test", "L333": "test", "L096": "train"}.

    Raises:
        ValueError: if an option has another form or a patient is sent to two splits.
    """
    overrides: dict[str, str] = {}
    for option in options:
        split, separator, names = option.partition("=")
        patients = [name.strip() for name in names.split(",") if name.strip()]
        if not separator or not patients:
            raise ValueError(f"--split-by-patient takes SPLIT=ID[,ID...], such as test=L506; got {option!r}.")
        for patient in patients:
            if overrides.setdefault(patient, split.strip()) != split.strip():
                raise ValueError(f"--split-by-patient sends {patient} to {overrides[patient]} and to {split.strip()}.")
    return overrides
