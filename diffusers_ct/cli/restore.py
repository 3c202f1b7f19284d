"""`diffusers-ct restore`: a low-dose scan in, a restored DERIVED series out."""

from pathlib import Path
from typing import Annotated

import typer

from .checkpoints import load_pipeline, model_name

_EXAMPLES = """
Restores a low-dose scan (DICOM folder or file, NIfTI, MetaImage) and writes a new DICOM series, NIfTI or MetaImage.

One step gives the estimate of least mean square error; several samples of 10 or more steps give mean and uncertainty:

    diffusers-ct restore SCAN restored --model outputs/quickstart/model/pipeline

    diffusers-ct restore SCAN restored --model user/repo --steps 10 --samples 8 --uncertainty restored_sd
"""


def restore(
    scan: Annotated[Path, typer.Argument(metavar="IN", help="DICOM folder, file or archive; .nii, .nii.gz, .mha.")],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="New folder (DICOM), .nii.gz or .mha; not overwritten.")
    ],
    model: Annotated[str, typer.Option(help="Folder of a pipeline, or its repository on the Hub.")],
    revision: Annotated[str | None, typer.Option(help="Revision of a Hub repository.")] = None,
    steps: Annotated[int, typer.Option(help="Sampling steps.", min=1)] = 1,
    samples: Annotated[int, typer.Option(help="Posterior samples that are averaged.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Of the noise.", min=0)] = 0,
    uncertainty: Annotated[
        Path | None, typer.Option(help="Also write the per-voxel standard deviation of the samples here.")
    ] = None,
    series_uid: Annotated[str | None, typer.Option(help="Which series of a folder with several.")] = None,
    stack: Annotated[int | None, typer.Option(help="Which stack of a series with several, from 1.", min=1)] = None,
    resample: Annotated[bool, typer.Option(help="Straighten a tilted or unevenly spaced series.")] = False,
    deidentify: Annotated[
        str, typer.Option(help="basic: leave the patient out; keep_patient: for the archive the scan came from.")
    ] = "basic",
    ignore_contract: Annotated[
        list[str] | None,
        typer.Option(help="Promise of the checkpoint not to check, such as kernels; repeatable. Result not validated."),
    ] = None,
) -> None:
    if uncertainty is not None and (samples < 2 or steps < 2):
        raise ValueError("--uncertainty is the spread of samples: give --samples 2 or more and --steps 2 or more.")
    if uncertainty is not None and uncertainty.resolve() == output.resolve():
        raise ValueError("--uncertainty must be another path than OUT.")

    import torch

    from .. import __version__
    from ..io import DEIDENTIFY_CHOICES, Derivation, check_output_path, read_volume, write_volume

    for path in (output, uncertainty):
        if path is not None:
            check_output_path(path)

    if deidentify not in DEIDENTIFY_CHOICES:
        raise ValueError(f"--deidentify must be one of {', '.join(DEIDENTIFY_CHOICES)}, got {deidentify!r}.")
    volume = read_volume(scan, series_uid=series_uid, stack=stack, resample=resample)
    for note in getattr(volume.source, "notes", ()):
        typer.echo(f"note: {note}", err=True)
    pipeline, weights = load_pipeline(model, revision)
    result = pipeline(
        volume,
        num_inference_steps=steps,
        num_samples=samples,
        generator=torch.Generator().manual_seed(seed),
        ignore_contract=ignore_contract or (),
    )
    derivation = Derivation(
        method="low-dose restoration by residual diffusion",
        package_version=__version__,
        model_id=model_name(model),
        model_revision=weights,
        num_inference_steps=steps,
        num_samples=samples,
        seed=seed,
    )
    write_volume(
        result.volumes,
        output,
        source=volume,
        derivation=derivation,
        deidentify=deidentify,
        series_description="diffusers-ct restored",
    )
    typer.echo(f"restored: {output}")
    if uncertainty is not None:
        # The finest step of HU whose 16 bits hold the largest value: metal can spread by hundreds of HU.
        largest = float(result.uncertainty_hu.hu.max())
        slope = next((step for step in (0.01, 0.1) if largest < 32767 * step), 1.0)
        write_volume(
            result.uncertainty_hu,
            uncertainty,
            source=volume,
            derivation=derivation,
            deidentify=deidentify,
            series_description="diffusers-ct uncertainty (SD)",
            rescale_slope=slope,
        )
        typer.echo(f"uncertainty: {uncertainty}")
    if result.unchecked:
        typer.echo(f"not checked, the scan does not say: {', '.join(result.unchecked)}", err=True)
    for sentence in result.left_out:
        typer.echo(f"not used: {sentence}", err=True)


restore.__doc__ = _EXAMPLES
