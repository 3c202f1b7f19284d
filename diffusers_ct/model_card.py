"""The card of a restoration model: rendered from its contract, its benchmark and the record of its training, and checked."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from . import __version__
from .card_rendering import CardError, render_card, with_metadata
from .evaluation.benchmark_result import COLUMNS, BenchmarkResult, format_value
from .pipelines import CheckpointContract, CTDiffusionPipeline

_REPORTED = ("psnr_full", "psnr_soft", "ssim_full", "ssim_soft", "rmse_body_hu", "bias_body_hu", "gain_body_db")
_COMPARED = "rmse_body_hu"
# Settings of a run that say nothing of the model, or name a place on the machine.
_NOT_SHOWN = ("resume_from_checkpoint", "push_to_hub", "hub_model_id", "report_to")
_METADATA = ("license", "library_name", "pipeline_tag", "tags", "model-index")
_SECTIONS = (
    "Use", "Data", "For which scans", "Measured", "Limits", "Memorisation", "How it was trained", "Compute", "Citation",
)  # fmt: skip
_COMPUTE = ("minutes", "steps", "processes", "device")
_AUDIT = ("flagged", "volumes", "false_positive_rate", "p_value", "held_out_patients", "extractor")
PICTURE_FOLDER = "pictures"


@dataclass(frozen=True, eq=False)
class CardPicture:
    """A picture of a card, such as a scan at which the model is worst: heading, what it shows, PNG."""

    title: str
    caption: str
    png: bytes


def render_model_card(
    pipeline: CTDiffusionPipeline,
    *,
    repo_id: str,
    licence: str,
    benchmark: BenchmarkResult,
    method: str,
    dataset_name: str,
    dataset_split: str,
    command: str,
    training_config: Mapping[str, Any],
    limits: Sequence[str],
    population: Sequence[tuple[str, str]] = (),
    pictures: Sequence[CardPicture] = (),
    compute: Mapping[str, Any] | None = None,
    audit: Mapping[str, Any] | None = None,
    co2_grams: float | None = None,
    co2_source: str = "",
) -> str:
    """A model card from the checkpoint's contract and the benchmark; nothing in it is typed by hand but limits and names.

    Args:
        pipeline: whose contract is shown.
        repo_id: "user/name".
        licence: of the weights, as the Hub spells it, such as "apache-2.0".
        benchmark: the tables.
        method: this model's row in them.
        dataset_name: what it was measured on.
        dataset_split: of it; never the training split.
        command: that made the numbers.
        training_config: settings of the run.
        limits: known failure modes, in sentences.
        population: of the training patients, from `population_of`; the card says so where it is not given.
        pictures: of failures; `write_card` writes them beside the card.
        compute: what `train` left in compute.json: "minutes", "steps", "processes", "device". The card says so where it is
            not known, and so for the next two.
        audit: of memorisation, see `diffusers_ct.hub.audit_of`.
        co2_grams: CO2 equivalent of the training, where it was measured.
        co2_source: how.

    Raises:
        CardError: listing all that is missing.
    """
    contract = pipeline.contract
    rows = [row for row in benchmark.rows if row["method"] == method]
    missing = _missing_of_contract(contract)
    for name, value in (
        ("licence", licence), ("dataset_name", dataset_name), ("dataset_split", dataset_split), ("command", command),
        ("training_config", training_config), ("limits", limits),
    ):  # fmt: skip
        if not value:
            missing.append(f"`{name}`")
    if not rows:
        missing.append(f"a row {method!r} in the benchmark")
    missing += [f"{key!r} in `compute`" for key in _COMPUTE if compute is not None and key not in compute]
    missing += [f"{key!r} in `audit`" for key in _AUDIT if audit is not None and key not in audit]
    if co2_grams is not None and not co2_source:
        missing.append("`co2_source`")
    if missing:
        raise CardError(f"The model card would lack {', '.join(missing)}.")
    if dataset_split == "train":
        raise CardError("A model is not judged on its training split: name a held-out split.")
    assert contract is not None
    if contract.target != "residual":
        raise CardError("A card is rendered of a restoration model; this one makes images of its own (target 'image').")
    how = str(benchmark.facts.get("aggregation") or "over patients")
    results = _eval_results(rows, dataset_name, dataset_split, how)
    co2: dict[str, Any] = (
        {} if co2_grams is None else {"co2_eq_emissions": {"emissions": co2_grams, "source": co2_source}}
    )
    data = ModelCardData(
        license=licence,
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["diffusers-ct", "computed-tomography", "low-dose-ct", "medical", "dicom"],
        **co2,
    )
    metadata = data.to_dict() | {"model-index": eval_results_to_model_index(repo_id.split("/")[-1], results)}
    body = render_card(
        "model_card.md.jinja",
        repo_id=repo_id,
        what="Restores low-dose CT (HU in, HU out) by residual diffusion.",
        contract=contract,
        population=list(population),
        promises=_promises(contract),
        dataset_name=dataset_name,
        dataset_split=dataset_split,
        command=command,
        aggregation=how,
        method=method,
        measured=[_shown(row) for row in rows],
        tables=benchmark.to_markdown(),
        compared=COLUMNS[_COMPARED][0],
        comparisons=_comparisons(benchmark, method),
        limits=list(limits),
        pictures=[
            {"title": picture.title, "caption": picture.caption, "path": path}
            for picture, path in zip(pictures, _picture_paths(pictures))
        ],
        audit=audit,
        training_config=sorted(
            (k, v) for k, v in training_config.items() if v is not None and "dir" not in k and k not in _NOT_SHOWN
        ),
        package_version=benchmark.facts.get("package_version", __version__),
        git_revision=benchmark.facts.get("git_revision"),
        parameters=sum(p.numel() for p in pipeline.unet.parameters()),
        compute=compute,
        co2_grams=co2_grams,
        co2_source=co2_source,
    )
    return with_metadata(metadata, body)


def write_card(path: Path, card: str, pictures: Sequence[CardPicture] = ()) -> list[Path]:
    """Writes a card and, in a folder beside it, its pictures; the card comes last. Returns the pictures' paths.

    Raises:
        FileExistsError: if the card or the folder exists.
    """
    if path.exists():
        raise FileExistsError(17, "It exists and is not overwritten: name a new path", str(path))
    written = [path.parent / name for name in _picture_paths(pictures)]
    path.parent.mkdir(parents=True, exist_ok=True)
    if pictures:
        try:
            (path.parent / PICTURE_FOLDER).mkdir()
        except FileExistsError as error:
            folder = str(path.parent / PICTURE_FOLDER)
            raise FileExistsError(
                17, "Pictures of another card are there: write this card to a new folder", folder
            ) from error
    for picture, file in zip(pictures, written):
        file.write_bytes(picture.png)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(card, encoding="utf-8")
    partial.replace(path)
    return written


def check_model_card(card: str, repo_id: str, *, folder: Path | None = None) -> list[str]:
    """Refuses a card that lacks what a reader needs to trust it; gives the pictures it shows, relative to it.

    Args:
        card: text, with its metadata.
        repo_id: that it is to be the card of.
        folder: where its pictures lie; None for a card without any.

    Raises:
        CardError: naming all that is missing.
    """
    parts = re.match(r"---\n(.*?\n)---\n(.*)", card, flags=re.DOTALL)
    if parts is None:
        raise CardError("The model card lacks its metadata: render it with `diffusers-ct card`.")
    try:
        metadata = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise CardError("The metadata of the model card is no YAML: render it with `diffusers-ct card`.") from error
    metadata = metadata if isinstance(metadata, dict) else {}
    missing = [f"`{name}`" for name in _METADATA if not metadata.get(name)]
    if metadata.get("model-index"):
        missing += _missing_of_results(metadata["model-index"])
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", parts[2], flags=re.DOTALL | re.MULTILINE))
    missing += [f'the section "{name}"' for name in _SECTIONS if not sections.get(name, "").strip()]
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", parts[2])
    for path in pictures:
        inside = folder is not None and (folder / path).resolve().is_relative_to(folder.resolve())
        if folder is None or not inside or not (folder / path).is_file():
            missing.append(f"the picture {path}")
    if missing:
        raise CardError(f"The model card lacks {', '.join(missing)}: render it with `diffusers-ct card`.")
    if f"# {repo_id}\n" not in parts[2]:
        raise CardError(f"The card is not of {repo_id}: render it with `diffusers-ct card --repo {repo_id}`.")
    return pictures


def read_pictures(folder: Path) -> list[CardPicture]:
    """Pictures that `evaluate` left: PNG files, and pictures.json with "file", "title" and "caption" of each.

    Raises:
        ValueError: if the folder holds something else.
    """
    try:
        listed = json.loads((folder / "pictures.json").read_text(encoding="utf-8"))
        return [CardPicture(p["title"], p["caption"], (folder / Path(p["file"]).name).read_bytes()) for p in listed]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / 'pictures.json'} does not list pictures as `diffusers-ct evaluate` does."
        ) from error


def _picture_paths(pictures: Sequence[CardPicture]) -> list[str]:
    return [f"{PICTURE_FOLDER}/{number + 1:02d}.png" for number in range(len(pictures))]


def _missing_of_contract(contract: CheckpointContract | None) -> list[str]:
    if contract is None:
        return ["a contract in the pipeline (what it was trained on)"]
    return [
        f"the contract's {name}" for name in ("training_data", "training_data_licence") if not getattr(contract, name)
    ]


def _missing_of_results(model_index: Any) -> list[str]:
    try:
        _, results = model_index_to_eval_results(model_index)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return ["`model-index` in the Hub's form"]
    if not results:
        return ["a result in `model-index`"]
    missing = []
    if any(result.dataset_split in (None, "", "train") for result in results):
        missing.append("a held-out `split` of each result in `model-index`")
    if any(not (result.metric_args or {}).get("convention") for result in results):
        missing.append("the `convention` of each metric in `model-index`")
    return missing


def _eval_results(
    rows: Sequence[Mapping[str, Any]], dataset_name: str, dataset_split: str, how: str
) -> list[EvalResult]:
    """One for each metric of each group. The Hub has no field for an interval: it is among the metric's arguments.

    The group is the dataset's configuration, as results are told apart by that and not by the dataset's name.
    """
    results = []
    for row in rows:
        for column in _REPORTED:
            if row.get(column) is None:
                continue
            facts: dict[str, Any] = {"convention": _convention(column), "n_patients": row["n_patients"]}
            if interval := _interval(row, column):
                facts["interval_95"] = [round(bound, 4) for bound in interval]
                facts["aggregation"] = how
            results.append(
                EvalResult(
                    task_type="image-to-image",
                    dataset_type=dataset_name,
                    dataset_name=f"{dataset_name}, {row['group']}",
                    dataset_config=row["group"],
                    dataset_split=dataset_split,
                    metric_type=column,
                    metric_name=COLUMNS[column][0],
                    metric_value=round(float(row[column]), 4),
                    metric_args=facts,
                )
            )
    return results


def _convention(column: str) -> str:
    return column.split("_")[1] if column.startswith(("psnr", "ssim")) else "full, body"


def _interval(row: Mapping[str, Any], column: str) -> tuple[float, float] | None:
    """There is none of too few patients, nor in results of earlier versions."""
    bounds = (row.get("intervals") or {}).get(column)
    if bounds is None or not all(bound is not None and math.isfinite(bound) for bound in bounds):
        return None
    return float(bounds[0]), float(bounds[1])


def _shown(row: Mapping[str, Any]) -> tuple[str, str, list[tuple[str, str, str]]]:
    """Group, how much was measured, and (heading, value, interval) of each metric."""
    results = []
    for column in _REPORTED:
        if row.get(column) is None:
            continue
        bounds = _interval(row, column)
        text = "too few patients" if bounds is None else " to ".join(format_value(column, bound) for bound in bounds)
        results.append((COLUMNS[column][0], format_value(column, row[column]), text))
    counts = f"{row['n_patients']} patients, {row['n_scans']} scans, {row['n_slices']} slices"
    return row["group"], counts, results


def _comparisons(benchmark: BenchmarkResult, method: str) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for c in benchmark.comparisons:
        if c["method"] != method or c["column"] != _COMPARED:
            continue
        known = c["low"] is not None and c["high"] is not None
        interval = f"{c['low']:.2f} to {c['high']:.2f}" if known else "too few patients"
        rows.append((c["group"], c["against"], f"{c['difference']:.2f}", interval, f"{c['p_holm']:.3g}"))
    return rows


def _promises(contract: CheckpointContract) -> list[tuple[str, str]]:
    shown = []
    for name in ("hu_range", *CheckpointContract.checkable()):
        value = getattr(contract, name)
        if not value:
            text = "not stated"
        elif isinstance(value[0], str):
            text = ", ".join(value)
        elif name == "volume_shape":
            text = " x ".join(map(str, value))
        else:
            text = f"{value[0]:.4g} to {value[1]:.4g}"
        shown.append((f"`{name}`", text))
    return shown
