"""`diffusers-ct simulate`: a scan in, the same scan at a lower dose out, with a page that says how."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from .wording import in_flags

_EXAMPLES = """
Adds the noise of a lower dose to a scan (DICOM folder, file or archive, NIfTI, MetaImage) through its projections and
writes a new DERIVED series, NIfTI or MetaImage, and a report of one page beside it.

Photons per ray and reconstruction kernel are taken from the scan's own noise unless they are given:

    diffusers-ct simulate SCAN --dose 0.1

    diffusers-ct simulate SCAN --dose 0.25 --output low.nii.gz --kernel sharp --i0 8e5 --modulation --bowtie

    diffusers-ct simulate phantom.nii.gz --dose 0.1 --source-noise noise_free --preset corediff

The new series leaves out the header's mAs and CTDIvol, which are those of the source; its derivation holds them.
"""


def simulate(
    scan: Annotated[Path, typer.Argument(metavar="SCAN", help="DICOM folder, file or archive, .nii, .nii.gz, .mha.")],
    dose: Annotated[float, typer.Option(help="Dose of the new scan as a fraction of the scan's own, such as 0.1.")],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Names the result: new folder (DICOM), .nii.gz or .mha; not overwritten. Without it low_dose_0.1 in this "
            "folder, which does not repeat SCAN's name, as that may be a patient's."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise.", min=0, max=2**32 - 1)] = 0,
    kernel: Annotated[
        str | None,
        typer.Option(help="smooth, soft, sharp, or matched to the scan's noise (that of the preset, else matched)."),
    ] = None,
    i0: Annotated[
        float | None, typer.Option(help="Photons per ray at the scan's own dose; calibrated from its noise without it.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Scanner of a publication, such as corediff or mayo_abdomen.")
    ] = None,
    source_noise: Annotated[
        str, typer.Option(help="normal_dose: the scan has its own noise; noise_free: a phantom without noise.")
    ] = "normal_dose",
    modulation: Annotated[
        bool | None, typer.Option("--modulation/--no-modulation", help="Tube current follows the attenuation.")
    ] = None,
    bowtie: Annotated[bool | None, typer.Option("--bowtie/--no-bowtie", help="Body bowtie filter.")] = None,
    electronic_variance: Annotated[
        float | None, typer.Option(help="Of the detector's read-out, in counts squared; 10 without it.", min=0.0)
    ] = None,
    geometry: Annotated[str | None, typer.Option(help="parallel, or fan (arc detector, 595 and 1085.6 mm).")] = None,
    slice_thickness: Annotated[
        float | None,
        typer.Option(
            help="mm, where the header does not say or lies (of a single slice, also its spacing); thicker than the spacing "
            "is overlap."
        ),
    ] = None,
    complete_body: Annotated[
        bool, typer.Option("--complete-body/--no-complete-body", help="Continue a body that the image cuts off.")
    ] = True,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write OUT_report.html.")] = True,
    series_uid: Annotated[str | None, typer.Option(help="Which series of a folder with several.")] = None,
    stack: Annotated[
        int | None, typer.Option(help="Which stack, as `diffusers-ct inspect` numbers them.", min=1)
    ] = None,
    resample: Annotated[bool, typer.Option(help="Straighten a tilted or unevenly spaced series.")] = False,
    assume_hu: Annotated[
        bool,
        typer.Option("--assume-hu", help="Take values of a NIfTI or MetaImage file as HU though no air is in them."),
    ] = False,
    deidentify: Annotated[
        str, typer.Option(help="basic: leave the patient out; keep_patient: for the archive the scan came from.")
    ] = "basic",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    # 1. everything that can be refused before work
    _check_choice("--source-noise", source_noise, ("normal_dose", "noise_free"))
    _check_choice("--kernel", kernel, ("smooth", "soft", "sharp", "matched", None))
    _check_choice("--geometry", geometry, ("parallel", "fan", None))
    if i0 is not None and not 0 < i0 < float("inf"):
        raise ValueError(f"--i0 must be positive, got {i0}.")
    if slice_thickness is not None and not 0 < slice_thickness < 1000:
        raise ValueError(f"--slice-thickness must be positive, in mm, got {slice_thickness}.")
    if not 0 < dose <= 1 or (dose == 1 and source_noise == "normal_dose"):
        raise ValueError(f"--dose must be above 0 and below 1, such as 0.1, got {dose}: 1 is the scan itself.")
    if report:
        _check_matplotlib()

    from rich.console import Console

    from ..derivations import (
        header_number,
        notes_of_reading,
        notes_of_truncation,
        simulation_derivation,
        simulation_settings,
        source_without_dose,
    )
    from ..io import DEIDENTIFY_CHOICES, check_output_path, read_volume, write_volume
    from ..physics import DOSE_PRESETS
    from ..physics.scan_simulation import simulate_scan
    from ..physics.truncation import MEASURED_FIELD_MM

    _check_choice("--deidentify", deidentify, DEIDENTIFY_CHOICES)
    _check_choice("--preset", preset, (*DOSE_PRESETS, None))
    out = output or _default_output(scan, dose)
    if output is None and out.exists():  # no number behind it: nobody could tell whose scan is which
        raise FileExistsError(17, "It exists and is not overwritten: name the result with --output", str(out))
    check_output_path(out)
    page = out.with_name(f"{_stem(out)}_report.html")
    if report and page.exists():
        raise FileExistsError(17, "The report exists and is not overwritten: name another --output", str(page))

    # 2. the simulation
    console = Console(stderr=True)
    with console.status("reading"):
        volume = read_volume(
            scan,
            series_uid=series_uid,
            stack=stack,
            resample=resample,
            slice_spacing_mm=slice_thickness,
            assume_hu=assume_hu,
        )
    field_mm = (header_number(volume, "DataCollectionDiameter") or MEASURED_FIELD_MM) if complete_body else None
    with console.status(f"simulating {volume.shape[0]} slices"), _naming(scan):
        made = simulate_scan(
            volume,
            dose_fraction=dose,
            seed=seed,
            source_noise="noise_free" if source_noise == "noise_free" else "normal_dose",
            preset=preset,
            kernel=kernel,
            i0=i0,
            modulation=modulation,
            bowtie=bowtie,
            electronic_variance=electronic_variance,
            geometry=None if geometry is None else "fan" if geometry == "fan" else "parallel",
            slice_thickness_mm=slice_thickness,
            field_mm=field_mm,
        )

    notes = [*notes_of_reading(volume), *notes_of_truncation(volume, made)]
    settings = simulation_settings(
        volume, made, dose_fraction=dose, seed=seed, source_noise=source_noise, preset=preset
    )
    for note in notes:
        typer.echo(f"note: {in_flags(note, 'simulate')}", err=True)

    # 3. what is written
    html = None
    if report:
        from ..evaluation.simulation_report import simulation_report

        with console.status("report"):
            html = simulation_report(
                volume, made, dose_fraction=dose, seed=seed, source_noise=source_noise, notes=notes
            )
    write_volume(
        replace(made.volume, source=None) if volume.synthetic else made.volume,
        out,
        source=None if volume.synthetic else source_without_dose(volume),
        derivation=simulation_derivation(volume, settings),
        deidentify="keep_patient" if deidentify == "keep_patient" else "basic",
        series_description=f"diffusers-ct simulated dose {dose:g}",
    )
    if html is not None:
        page.write_text(html, encoding="utf-8")
    if as_json:
        told = {"output": str(out), "report": str(page) if html is not None else None, "notes": notes}
        typer.echo(json.dumps(told | settings, indent=2))
        return
    typer.echo(f"simulated: {out}")
    if html is not None:
        typer.echo(f"report: {page}")
    typer.echo(f"I0 {made.settings.i0:.3g} photons per ray ({made.i0_from}), kernel {made.kernel_name}")


simulate.__doc__ = _EXAMPLES


class _naming:
    """What the simulation finds wrong with a scan names its file."""

    def __init__(self, scan: Path) -> None:
        self._scan = scan

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from ..mistakes import is_users_mistake

        if isinstance(error, ValueError) and is_users_mistake(error):
            raise ValueError(f"{self._scan}: {error}") from error


def _default_output(scan: Path, dose: float) -> Path:
    """Without the scan's name, which may be a patient's."""
    name = scan.name.lower()
    suffix = ".nii.gz" if name.endswith((".nii", ".nii.gz")) else ".mha" if name.endswith((".mha", ".mhd")) else ""
    return Path(f"low_dose_{dose:g}{suffix}")


def _stem(path: Path) -> str:
    for suffix in (".nii.gz", ".nii", ".mha", ".mhd", ".dcm", ".zip", ".tar.gz", ".tar"):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def _check_choice(option: str, value: str | None, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{option} must be one of {', '.join(c for c in choices if c)}, got {value!r}.")


def _check_matplotlib() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise ValueError(
            'The report needs matplotlib: pip install "diffusers-ct[report]", or pass --no-report to go without.'
        )
