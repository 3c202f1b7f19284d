"""`diffusers-ct evaluate`: restoration models beside baselines on held-out pairs, as JSON and a report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .checkpoints import load_pipeline, model_name

if TYPE_CHECKING:
    from ..evaluation import Case

_EXAMPLES = """
Judges restoration models beside classical and learned baselines on held-out pairs: benchmark.json, report.html, and in
`worst` pictures of the scans that gained least.

A killed or stopped run goes on where it stopped: give the same command again.

A model on the test split of a prepared dataset, with calibration and all studies on phantoms:

    diffusers-ct evaluate outputs/report --dataset data/phantoms --model outputs/model/pipeline --samples 8
    --phantom-studies standard

Two models and the learned baselines of examples/train_baselines.py:

    diffusers-ct evaluate outputs/report --dataset user/pairs --model user/a --model user/b --learned
    outputs/baselines/red-cnn/baseline
"""
STUDIES = ("none", "smoke", "standard")


def evaluate(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="New folder, or that of an unfinished evaluation.")],
    dataset: Annotated[str, typer.Option(help="Folder made by `prepare`, or a dataset on the Hub.")],
    model: Annotated[
        list[str],
        typer.Option(help="Pipeline: folder or Hub repository; repeatable, the first is the report's subject."),
    ],
    split: Annotated[str, typer.Option(help="validation or test: patients that no model was trained on.")] = "test",
    learned: Annotated[
        list[Path] | None, typer.Option(help="Folder of a trained baseline (`LearnedBaseline.save`); repeatable.")
    ] = None,
    classical: Annotated[
        bool, typer.Option(help="Also the classical baselines, tuned on training patients of the dataset.")
    ] = True,
    tuning_scans: Annotated[int, typer.Option(help="Training scans of each dose that tune them.", min=1)] = 4,
    samples: Annotated[int, typer.Option(help="Posterior samples for the calibration; 0 leaves it out.", min=0)] = 0,
    sampling_steps: Annotated[int, typer.Option(help="Steps of a sample (UniPC).", min=2)] = 10,
    sampled_scans: Annotated[int, typer.Option(help="Scans of each dose that are sampled.", min=1)] = 6,
    phantom_studies: Annotated[
        str,
        typer.Option(
            help="Noise, sharpness, detectability and inserted lesions on phantoms: none, smoke (seconds) or standard."
        ),
    ] = "none",
    seed: Annotated[int, typer.Option(help="Of all noise.", min=0)] = 0,
    ignore_contract: Annotated[
        list[str] | None, typer.Option(help="Promise of the checkpoints not to check; repeatable.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of tables.")] = False,
) -> None:
    if split not in ("validation", "test"):
        raise ValueError(f"--split must be validation or test, got {split!r}: training patients judge nothing.")
    if phantom_studies not in STUDIES:
        raise ValueError(f"--phantom-studies must be one of {', '.join(STUDIES)}, got {phantom_studies!r}.")
    if samples == 1:
        raise ValueError("--samples 1 has no spread: give 2 or more, or 0 to leave the calibration out.")
    names = [model_name(m) if model_name(m) != "pipeline" else Path(m).resolve().parent.name for m in model]
    folders = learned or []
    names_learned = [f.resolve().parent.name if f.name == "baseline" else f.resolve().name for f in folders]
    if len({*names, *names_learned}) < len(names) + len(names_learned):
        raise ValueError("Two models have one name: rename a folder, the table tells them apart by it.")

    from rich.console import Console
    from rich.progress import track

    from .. import CheckpointContract
    from ..data import load_paired_ct
    from ..evaluation import EvaluationSettings, PipelineRestorer, cases_from_rows, evaluate_restoration, load_baseline
    from ..evaluation.learned_baselines.baseline import read_config
    from ..evaluation.scan_seed import seed_of_scan
    from ..evaluation.studies import STUDY_SIZES
    from ..evaluation.studies import phantom_studies as make_studies

    console = Console(stderr=True)
    judged = load_paired_ct(dataset, split=split)
    cases = cases_from_rows(judged)
    training = _tuning_cases(dataset, tuning_scans) if classical else []
    models, on_phantoms, weights = {}, {}, {}
    for name, source in zip(names, model):
        pipeline, weights[name] = load_pipeline(source, None)
        drawn: dict[str, Any] = {"sampling_steps": sampling_steps, "seed": seed}
        models[name] = PipelineRestorer(pipeline, ignore_contract=ignore_contract or (), **drawn)
        # no checkpoint promises to know a disc of water
        on_phantoms[name] = PipelineRestorer(pipeline, ignore_contract=CheckpointContract.checkable(), **drawn)
    trained: dict[str, Any] = {}
    fixed: dict[str, Any] = {}
    for name, folder in zip(names_learned, folders):
        baseline = load_baseline(folder)
        weights[name] = f"sha256:{read_config(folder)['weights_sha256'][:12]}"
        trained[name] = lambda volume, b=baseline: b.restore(volume, seed=seed_of_scan(volume, seed))
        fixed[name] = lambda volume, b=baseline: b.restore(volume, seed=seed)
    studies = {}
    if phantom_studies != "none":
        z_mm, y_mm, _ = cases[0].low.spacing_mm
        estimates = {f"{name}, 1 step": m.one_step for name, m in on_phantoms.items()}
        studies = make_studies(
            {**trained, **estimates},
            repeatable={**fixed, **estimates},
            samplers={f"{name}, one sample": m.one_sample for name, m in on_phantoms.items()},
            size=STUDY_SIZES[phantom_studies],
            pixel_mm=y_mm,
            slice_mm=z_mm,
            seed=seed,
        )
    settings = EvaluationSettings(
        split=f"{split} split of the dataset, whose training split alone tunes",
        samples=samples,
        sampled_scans=sampled_scans,
        classical=classical,
        seed=seed,
    )
    facts = {
        "data": model_name(dataset),
        "sampling_steps": sampling_steps,
        "studies": phantom_studies,
        "command": _command(dataset, names, split, phantom_studies, samples),
    }
    result = evaluate_restoration(
        output,
        cases,
        models,
        training=training,
        learned=trained,
        weights=weights,
        settings=settings,
        title="Low-dose CT restoration",
        facts=facts,
        studies=studies,
        progress=lambda of: track(of, "evaluating", console=console, total=len(cases)),
        say=console.print,
    )
    if json_output:
        typer.echo((output / "benchmark.json").read_text())
    else:
        typer.echo(result.to_markdown())
    typer.echo(f"report: {output / 'report.html'}", err=True)


def _command(dataset: str, models: list[str], split: str, studies: str, samples: int) -> str:
    """What made the numbers, for the model's card, without paths of this machine."""
    words = ["diffusers-ct evaluate OUT --dataset", model_name(dataset), *(f"--model {name}" for name in models)]
    return " ".join([*words, f"--split {split} --phantom-studies {studies} --samples {samples}"])


def _tuning_cases(dataset: str, count: int) -> list["Case"]:
    """That many scans of each dose, spread over the training split."""
    from ..data import load_paired_ct
    from ..evaluation import cases_from_rows, spread_over_doses

    try:
        rows = load_paired_ct(dataset, split="train")
    except ValueError as error:
        raise ValueError(
            f"{error} Or leave the classical baselines out, which are tuned there: --no-classical."
        ) from error
    return cases_from_rows(spread_over_doses(rows, count))


evaluate.__doc__ = _EXAMPLES
