"""`diffusers-ct card`: a model, its benchmark and the record of its training in, the model's card out."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .checkpoints import fingerprint, load_pipeline

if TYPE_CHECKING:
    from ..evaluation.benchmark_result import BenchmarkResult

_EXAMPLES = """
Renders the card of a model from what was measured: nothing in it is typed but its limits, licence and name.

    diffusers-ct card outputs/model/pipeline --repo user/model --benchmark outputs/report/benchmark.json
    --training-config outputs/model/training_config.json --licence apache-2.0 --limit "Trained on adults alone."
    --output outputs/card/README.md

With the time that the training took, the worst scans as pictures, who the training patients were, and an audit of
memorisation (`diffusers_ct.hub.audit_of`); the card says which of these it does not have:

    diffusers-ct card outputs/model/pipeline ... --compute outputs/model/compute.json --pictures outputs/report/worst
    --training-dataset data/train --memorisation audit.json

Of a synthesis model, --benchmark is the synthesis.json of examples/evaluate_synthesis.py, and --pictures its folder.

A card that would lack something required is refused by its name. `diffusers-ct push` takes the card. `card-dataset` makes that
of a dataset.
"""


def card(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a pipeline, or its repository on the Hub.")],
    output: Annotated[Path, typer.Option(help="New Markdown file; its pictures come into a folder beside it.")],
    benchmark: Annotated[Path, typer.Option(help="benchmark.json of `diffusers-ct evaluate`.")],
    repo: Annotated[str, typer.Option(help="Repository that the model is or will be in: user/name.")],
    training_config: Annotated[
        list[Path] | None,
        typer.Option(help="training_config.json, which training leaves in its folder; of several phases, each."),
    ] = None,
    licence: Annotated[str, typer.Option(help="Of the weights, as the Hub spells it, such as apache-2.0.")] = "",
    limit: Annotated[list[str] | None, typer.Option(help="A known limit or failure, a sentence; repeatable.")] = None,
    method: Annotated[str, typer.Option(help="The model's row in the benchmark.", show_default="its subject")] = "",
    dataset_name: Annotated[
        str, typer.Option(help="What it was measured on.", show_default="what the benchmark says")
    ] = "",
    dataset_split: Annotated[
        str, typer.Option(help="Of it: validation or test.", show_default="what the benchmark says")
    ] = "",
    command: Annotated[str, typer.Option(help="That made the numbers.", show_default="what the benchmark says")] = "",
    compute: Annotated[
        list[Path] | None,
        typer.Option(help="compute.json, which training leaves in its folder; of several phases, each."),
    ] = None,
    co2_grams: Annotated[
        float | None, typer.Option(help="CO2 equivalent of the training in g, if measured.", min=0.0)
    ] = None,
    co2_source: Annotated[str, typer.Option(help="How it was measured.")] = "",
    memorisation: Annotated[Path | None, typer.Option(help="JSON of `diffusers_ct.hub.audit_of`.")] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder of pictures of failures: `worst`, which `evaluate` leaves.")
    ] = None,
    training_dataset: Annotated[
        str | None, typer.Option(help="Prepared dataset, whose training patients are counted.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a Hub repository.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    if output.exists():
        raise FileExistsError(17, "It exists and is not overwritten: name a new path", str(output))
    configs, computes = ([_read(path) for path in paths or ()] for paths in (training_config, compute))
    audit = None if memorisation is None else _read(memorisation)

    from ..hub import (
        acquisition_of,
        joined_compute,
        joined_configs,
        population_of,
        read_pictures,
        render_model_card,
        render_synthesis_card,
        write_card,
    )

    pipeline, weights = load_pipeline(model, revision)
    of_folder = fingerprint(Path(model)) if Path(model).is_dir() else weights
    shown = [] if pictures is None else read_pictures(pictures)
    told: dict[str, Any] = {
        "repo_id": repo, "licence": licence, "training_config": joined_configs(configs), "limits": limit or [], "pictures": shown,
        "compute": joined_compute(computes) if computes else None, "audit": audit, "co2_grams": co2_grams,
        "co2_source": co2_source,
    }  # fmt: skip
    if training_dataset is not None:
        rows = open_dataset(training_dataset, "train")
        told["population"] = [*population_of(rows), *acquisition_of(rows)]
    if pipeline.config.target == "image":
        evaluation = _read(benchmark)
        _check_weights({"model": evaluation.get("weights")}, benchmark, model, of_folder)
        method, command = "synthesis", command or str(evaluation.get("command") or "")
        text = render_synthesis_card(pipeline, evaluation=evaluation, command=command, **told)
    else:
        result = _benchmark(benchmark)
        method = method or (result.comparisons[0]["method"] if result.comparisons else "")
        judged = {name: value for name, value in _weights(result.facts).items() if method.startswith(f"{name}, ")}
        _check_weights(judged, benchmark, model, of_folder)
        split = re.split(r"\W", str(result.facts.get("split") or ""))[0]
        text = render_model_card(
            pipeline,
            benchmark=result,
            method=method,
            dataset_name=dataset_name or str(result.facts.get("data") or ""),
            dataset_split=dataset_split or (split if split in ("validation", "test") else ""),
            command=command or str(result.facts.get("command") or ""),
            **told,
        )
    written = write_card(output, text, shown)
    if as_json:
        typer.echo(json.dumps({"card": str(output), "pictures": [str(path) for path in written], "method": method}))
    else:
        typer.echo(f"card: {output}")


card.__doc__ = _EXAMPLES


def open_dataset(path: str, split: str | None) -> Any:
    """Rows of a prepared dataset, of pairs or of single scans."""
    from ..data import load_paired_ct, load_unpaired_ct
    from ..data.manifest import read_manifest

    unpaired = Path(path).is_dir() and any(entry.dose is not None for entry in read_manifest(Path(path)))
    return load_unpaired_ct(path, split=split) if unpaired else load_paired_ct(path, split=split)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(read, dict):
        raise ValueError(f"{path} does not hold a JSON object.")
    return read


def _check_weights(judged: Mapping[str, str | None], benchmark: Path, model: str, of_model: str | None) -> None:
    """Refuses the measurement of other weights."""
    for name, of_benchmark in judged.items():
        if None not in (of_benchmark, of_model) and of_benchmark != of_model:
            raise ValueError(
                f"{benchmark} is not of this model: its {name} has the weights {of_benchmark}, {model} has {of_model}."
            )


def _weights(facts: Mapping[str, Any]) -> dict[str, str | None]:
    """Model -> fingerprint of its weights, as the benchmark tells it."""
    told = facts.get("weights", facts.get("models", {}))
    return dict(json.loads(told) if isinstance(told, str) else told)


def _benchmark(path: Path) -> "BenchmarkResult":
    from ..evaluation.benchmark_result import BenchmarkResult

    try:
        return BenchmarkResult(**_read(path))
    except TypeError as error:
        raise ValueError(f"{path} is no benchmark.json of `diffusers-ct evaluate`.") from error
