"""`diffusers-ct synthesize`: conditions in, synthetic volumes out, marked as such."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .checkpoints import load_pipeline, model_name

_EXAMPLES = """
Makes volumes with the conditions that are asked for and writes each as DICOM (a folder), .nii.gz or .mha.

Seed, conditions, guidance and checkpoint are stored in the files, which are marked as synthetic. Conditions that are
not named are unknown to the model. A volume longer than the model's own is made in overlapping slabs:

    diffusers-ct synthesize made.nii.gz --model outputs/synthesis/pipeline --body-part THORAX --finding solid_nodule

    diffusers-ct synthesize made --model user/repo --body-part ABDOMEN --contrast-phase portal --slices 32 --count 4
"""


def synthesize(
    output: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="New folder (DICOM), .nii.gz or .mha; numbered with --count above 1."),
    ],
    model: Annotated[str, typer.Option(help="Folder of a synthesis pipeline, or its repository on the Hub.")],
    revision: Annotated[str | None, typer.Option(help="Revision of a Hub repository.")] = None,
    body_part: Annotated[str | None, typer.Option(help="DICOM name, such as THORAX.")] = None,
    age: Annotated[float | None, typer.Option(help="Years.")] = None,
    sex: Annotated[str | None, typer.Option(help="M, F or O.")] = None,
    kvp: Annotated[float | None, typer.Option(help="Tube voltage in kV.")] = None,
    mas: Annotated[float | None, typer.Option(help="Exposure in mAs.")] = None,
    dose: Annotated[float | None, typer.Option(help="Fraction of the routine dose.")] = None,
    kernel: Annotated[str | None, typer.Option(help="Reconstruction kernel.")] = None,
    manufacturer: Annotated[str | None, typer.Option(help="As in a DICOM header.")] = None,
    contrast_phase: Annotated[str | None, typer.Option(help="none, arterial, portal, ...")] = None,
    finding: Annotated[list[str] | None, typer.Option(help="Finding to show; repeatable.")] = None,
    no_finding: Annotated[list[str] | None, typer.Option(help="Finding not to show; repeatable.")] = None,
    text: Annotated[str | None, typer.Option(help="Report, for models with a text encoder.")] = None,
    slices: Annotated[int | None, typer.Option(help="Number of slices; the model's own without it.", min=1)] = None,
    spacing: Annotated[
        tuple[float, float, float] | None, typer.Option(help="z y x in mm; that of the training without it.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; 1 is none; 2 if any condition is given.", min=0.0)
    ] = None,
    guide: Annotated[list[str] | None, typer.Option(help="Instead, by condition: findings=4; repeatable.")] = None,
    classifier_guidance: Annotated[float, typer.Option(help="By the pipeline's classifier; 0 is none.", min=0.0)] = 0.0,
    steps: Annotated[int, typer.Option(help="Sampling steps.", min=1)] = 30,
    count: Annotated[int, typer.Option(help="Volumes.", min=1)] = 1,
    seed: Annotated[
        int, typer.Option(help="Of the noise; that of the second volume is one more, and so on.", min=0, max=2**32 - 1)
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    from ..io import check_output_path

    paths = [output] if count == 1 else [_numbered(output, number) for number in range(count)]
    for path in paths:
        check_output_path(path)
    if guide and guidance is not None:
        raise ValueError("Give --guidance, one scale for all conditions, or --guide for each, not both.")
    scales = _scales(guide)

    from dataclasses import replace

    import torch

    from .. import ScanConditions, __version__
    from ..io import Derivation, write_volume
    from ..pipelines.synthesis import stored_conditions

    conditions = ScanConditions(
        body_part=body_part.upper() if body_part else None,
        age_years=age,
        sex=sex,
        kvp=kvp,
        tube_current_mas=mas,
        dose_fraction=dose,
        kernel=kernel,
        manufacturer=manufacturer,
        contrast_phase=contrast_phase,
        findings=tuple(finding or ()),
        findings_absent=tuple(no_finding or ()),
        text=text,
    )
    pipeline, weights = load_pipeline(model, revision)
    if pipeline.config.target != "image":
        raise ValueError(f"{model} is not a synthesis checkpoint: use `diffusers-ct restore` for restoration.")
    contract = pipeline.contract
    if contract is None or contract.volume_shape is None:
        raise ValueError(f"{model} does not say which volumes it makes: its contract has no `volume_shape`.")
    shape = (slices or contract.volume_shape[0], *contract.volume_shape[1:])
    if spacing is None:
        limits = contract.slice_spacing_mm, contract.pixel_spacing_mm
        if None in limits:
            raise ValueError(f"The contract of {model} does not say the voxel size: give --spacing Z Y X.")
        z, yx = (round(sum(limit) / 2, 3) for limit in limits if limit)
        spacing = (z, yx, yx)
    wanted = stored_conditions(conditions)
    if guidance is None:
        guidance = 2.0 if wanted else 1.0
    asked = {"guidance_scale": scales or guidance, "classifier_scale": classifier_guidance}
    facts = {**asked, "num_inference_steps": steps, "seed": seed + count, "conditions": wanted}
    derivation = Derivation.from_provenance(  # before the work, which would be lost on one too long for the file
        facts, package_version=__version__, model_id=model_name(model), model_revision=weights
    )
    result = pipeline(
        conditions=conditions,
        shape=shape,
        spacing_mm=spacing,
        **asked,
        num_inference_steps=steps,
        num_samples=count,
        generator=[torch.Generator().manual_seed(seed + number) for number in range(count)],
    )
    for path, volume, facts in zip(paths, result.volumes, result.provenance):
        made = replace(derivation, seed=facts["seed"])
        write_volume(volume, path, derivation=made, series_description="diffusers-ct synthesis")
        if not as_json:
            typer.echo(f"synthetic: {path}")
    if as_json:
        made_of = {"model": derivation.model_id, "weights": weights, "steps": steps, **asked, "conditions": wanted}
        volumes = [{"output": str(p), "seed": f["seed"]} for p, f in zip(paths, result.provenance)]
        typer.echo(json.dumps({"volumes": volumes, "shape": shape, "spacing_mm": spacing, **made_of}, indent=2))


synthesize.__doc__ = _EXAMPLES


def _numbered(path: Path, number: int) -> Path:
    suffix = "".join(path.suffixes[-2:]) if path.name.lower().endswith(".nii.gz") else path.suffix
    return path.with_name(f"{path.name.removesuffix(suffix)}-{number:03d}{suffix}")


def _scales(guide: list[str] | None) -> dict[str, float]:
    scales = {}
    for text in guide or []:
        name, _, value = text.partition("=")
        try:
            scales[name] = float(value)
        except ValueError:
            raise ValueError(f"--guide takes NAME=SCALE, such as findings=4; got {text!r}.") from None
    return scales
