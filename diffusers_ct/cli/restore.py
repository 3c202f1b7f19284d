"""`diffusers-ct restore`: low-dose scans in, restored DERIVED series out, slab by slab."""

from pathlib import Path
from typing import Annotated

import typer

from .checkpoints import load_pipeline, model_name
from .ranks import Rank, together
from .restore_many import FORMATS, NamedScan, list_scans, name_scans, restore_many, total_of
from .restoring import RestoreSettings, restore_scan

_EXAMPLES = """
Restores a low-dose scan (DICOM folder or file, NIfTI, MetaImage) and writes a new DICOM series, NIfTI or MetaImage.

One step gives the estimate of least mean square error; several samples of 10 steps (of UniPC, where the checkpoint comes
with DDIM) give mean and uncertainty. A distilled checkpoint gives a sample in its one step or few:

    diffusers-ct restore SCAN restored --model outputs/quickstart/model/pipeline

    diffusers-ct restore SCAN restored --model user/repo --steps 10 --samples 8 --uncertainty restored_sd

Several scans go into a folder, each under its own name. Processes divide them, what is there is not done again, and one
that fails does not stop the others:

    diffusers-ct restore SCAN1 SCAN2 SCAN3 restored --model user/repo

    accelerate launch --num_processes 4 -m diffusers_ct.cli restore --list scans.txt restored --model user/repo
"""


def restore(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="IN... OUT",
            help="IN: DICOM folder, file or archive; .nii, .nii.gz, .mha. OUT: new folder (DICOM), .nii.gz or .mha; not "
            "overwritten. Of several scans: the folder that holds the results.",
        ),
    ],
    model: Annotated[str, typer.Option(help="Folder of a pipeline, or its repository on the Hub.")],
    revision: Annotated[str | None, typer.Option(help="Revision of a Hub repository.")] = None,
    studies: Annotated[
        Path | None,
        typer.Option(
            "--list",
            help="Many scans: a text file with a path on each line (and behind a tab the name of its result), or a folder "
            "whose entries are scans. Results are named after their scans: names that tell no patient are yours to give.",
        ),
    ] = None,
    file_format: Annotated[
        str | None, typer.Option("--format", help=f"Of several results: {', '.join(FORMATS)}. The default is dicom.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Sampling steps.", min=1)] = 1,
    samples: Annotated[int, typer.Option(help="Posterior samples that are averaged.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Of the noise.", min=0)] = 0,
    uncertainty: Annotated[
        Path | None,
        typer.Option(help="Also write the per-voxel standard deviation of the samples here (several scans: a folder)."),
    ] = None,
    tile_size: Annotated[
        tuple[int, int, int] | None,
        typer.Option(
            metavar="Z Y X",
            help="Voxels that the network sees at once: less needs less memory. The default is 16 slices of 512 x 512.",
        ),
    ] = None,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast", help="bfloat16 where the device multiplies it: some times faster, and moves the result a little."
        ),
    ] = False,
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
    *scans, output = paths
    many = studies is not None or len(scans) > 1
    if not many and not scans:
        raise ValueError("Two paths are needed: the scan, and where its result goes.")
    if uncertainty is not None and (samples < 2 or steps < 2):
        raise ValueError("--uncertainty is the spread of samples: give --samples 2 or more and --steps 2 or more.")
    if uncertainty is not None and uncertainty.resolve() == output.resolve():
        raise ValueError("--uncertainty must be another path than OUT.")
    if file_format is not None and (not many or file_format not in FORMATS):
        raise ValueError(
            f"--format is one of {', '.join(FORMATS)}, and for several scans; of one, the suffix of OUT tells the format."
        )
    rank = Rank.of_environment()
    if rank.world_size > 1 and not many:
        raise ValueError("One scan is not divided between processes: give several, or --list, or launch one process.")

    import torch

    from ..io import DEIDENTIFY_CHOICES, check_output_path
    from ..pipelines.restoration_cost import duration

    if deidentify not in DEIDENTIFY_CHOICES:
        raise ValueError(f"--deidentify must be one of {', '.join(DEIDENTIFY_CHOICES)}, got {deidentify!r}.")
    for path in (output, uncertainty):
        if path is not None and not many:
            check_output_path(path)
    if many and (output.is_file() or (uncertainty is not None and uncertainty.is_file())):
        raise ValueError("Several results go into a folder: OUT (and --uncertainty) is a file.")
    if not many and not scans[0].exists():
        raise FileNotFoundError(2, "There is no file or folder at this path", str(scans[0]))
    todo = list_scans(studies) if studies is not None else []
    if many and scans:
        todo = name_scans([*((scan.path, scan.name) for scan in todo), *((path, None) for path in scans)])

    if torch.cuda.is_available():
        torch.cuda.set_device(rank.local % torch.cuda.device_count())
    pipeline, weights = load_pipeline(model, revision)
    settings = RestoreSettings(
        model_name(model), weights, steps, samples, seed, series_uid, stack, resample, deidentify,
        tuple(ignore_contract or ()), tile_size,
    )  # fmt: skip

    def tell(text: str) -> None:
        typer.echo(text, err=True)

    if fast:
        tell(f"fast: {pipeline.enable_fast_inference()}")
    if not many:
        done = restore_scan(pipeline, scans[0], output, settings, uncertainty=uncertainty, tell=tell)
        tell(f"took {duration(done.seconds)}, at most {done.peak_bytes / 2**30:.2f} GiB of memory")
        typer.echo(f"restored: {output}")
        if uncertainty is not None:
            typer.echo(f"uncertainty: {uncertainty}")
        if done.unchecked:
            tell(f"not checked, the scan does not say: {', '.join(done.unchecked)}")
        for sentence in done.left_out:
            tell(f"not used: {sentence}")
        return

    suffix = "" if file_format in (None, "dicom") else f".{file_format}"
    is_first = iter([True])  # scan of this process: it alone is measured before its start

    def restore_one(scan: NamedScan, result: Path) -> int:
        beside = None if uncertainty is None else uncertainty / result.name
        estimate = next(is_first, False)
        done = restore_scan(pipeline, scan.path, result, settings, uncertainty=beside, tell=tell, estimate=estimate)
        return done.slices

    pipeline.set_progress_bar_config(disable=True)
    with together(rank) as meeting:
        total = total_of(meeting.gather(restore_many(todo, output, suffix, rank, restore_one, tell)))
    if rank.number == 0 or not meeting.joined:
        typer.echo(f"{total}: {output}")
    if total.failed:
        raise typer.Exit(1)


restore.__doc__ = _EXAMPLES
