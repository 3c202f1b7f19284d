"""Cards rendered from what was measured, and pushing models and datasets to the Hub."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index

from . import __version__
from .card_rendering import CardError, render_card, with_metadata
from .deidentified_rows import check_nothing_identifying
from .evaluation.benchmark_result import COLUMNS, BenchmarkResult
from .hub_datasets import push_dataset, render_dataset_card
from .pipelines import CheckpointContract, CTDiffusionPipeline

__all__ = ["CardError", "check_nothing_identifying", "push_dataset", "render_dataset_card", "render_model_card"]

_REPORTED = ("psnr_full", "ssim_full", "rmse_body_hu", "bias_body_hu")


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
) -> str:
    """A model card from the checkpoint's contract and the benchmark; nothing in it is typed by hand.

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

    Raises:
        CardError: listing all that is missing.
    """
    contract = pipeline.contract
    missing = []
    if contract is None:
        missing.append("a contract in the pipeline (what it was trained on)")
    else:
        missing += [
            f"the contract's {k}" for k in ("training_data", "training_data_licence") if not getattr(contract, k)
        ]
    for name, value in (
        ("licence", licence), ("dataset_name", dataset_name), ("dataset_split", dataset_split), ("command", command),
        ("training_config", training_config), ("limits", limits),
    ):  # fmt: skip
        if not value:
            missing.append(f"`{name}`")
    rows = [row for row in benchmark.rows if row["method"] == method]
    if not rows:
        missing.append(f"a row {method!r} in the benchmark")
    if missing:
        raise CardError(f"The model card would lack {', '.join(missing)}.")
    if dataset_split == "train":
        raise CardError("A model is not judged on its training split: name a held-out split.")
    assert contract is not None
    results = [
        EvalResult(
            task_type="image-to-image",
            dataset_type=dataset_name,
            dataset_name=f"{dataset_name}, {row['group']}",
            dataset_split=dataset_split,
            metric_type=column,
            metric_name=COLUMNS[column][0],
            metric_value=round(float(row[column]), 4),
            metric_args={"convention": column.split("_")[-1] if column.startswith(("psnr", "ssim")) else "full, body"},
        )
        for row in rows
        for column in _REPORTED
        if row.get(column) is not None
    ]
    data = ModelCardData(
        license=licence,
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["diffusers-ct", "computed-tomography", "low-dose-ct", "medical", "dicom"],
    )
    metadata = data.to_dict() | {"model-index": eval_results_to_model_index(repo_id.split("/")[-1], results)}
    body = render_card(
        "model_card.md.jinja",
        repo_id=repo_id,
        what="Restores low-dose CT (HU in, HU out) by residual diffusion.",
        contract=contract,
        promises=_promises(contract),
        dataset_name=dataset_name,
        dataset_split=dataset_split,
        command=command,
        tables=benchmark.to_markdown(),
        limits=list(limits),
        training_config=sorted((k, v) for k, v in training_config.items() if v is not None and "dir" not in k),
        package_version=benchmark.facts.get("package_version", __version__),
        git_revision=benchmark.facts.get("git_revision"),
    )
    return with_metadata(metadata, body)


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
