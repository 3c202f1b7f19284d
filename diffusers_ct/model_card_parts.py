"""What the cards of all models have in common: contract, training, compute, memorisation; and the check before a push."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from .card_pictures import CardPicture, listed
from .card_rendering import CardError, lacking, render_card, take_apart, with_metadata
from .pipelines import CheckpointContract, CTDiffusionPipeline

COMMAND = "diffusers-ct card"
# Settings of a run that say nothing of the model, or name a place on the machine.
_NOT_SHOWN = ("resume_from_checkpoint", "push_to_hub", "hub_model_id", "report_to")
_METADATA = ("license", "library_name", "pipeline_tag", "tags", "model-index")
_SECTIONS = (
    "Use", "Data", "For which scans", "Measured", "Limits", "Memorisation", "How it was trained", "Compute", "Citation",
)  # fmt: skip
_COMPUTE = ("minutes", "steps", "processes", "device")
_AUDIT = ("flagged", "volumes", "false_positive_rate", "p_value", "held_out_patients", "extractor")


def missing_parts(
    contract: CheckpointContract | None,
    compute: Mapping[str, Any] | None,
    audit: Mapping[str, Any] | None,
    co2_grams: float | None,
    co2_source: str,
    **needed: Any,
) -> list[str]:
    """What a card would lack, in words; `needed` are arguments that must hold something."""
    missing = _missing_of_contract(contract) + [f"`{name}`" for name, value in needed.items() if not value]
    missing += [f"{key!r} in `compute`" for key in _COMPUTE if compute is not None and key not in compute]
    missing += [f"{key!r} in `audit`" for key in _AUDIT if audit is not None and key not in audit]
    return missing + (["`co2_source`"] if co2_grams is not None and not co2_source else [])


def render_card_of(
    pipeline: CTDiffusionPipeline,
    template: str,
    *,
    repo_id: str,
    licence: str,
    pipeline_tag: str,
    tags: Sequence[str],
    results: Sequence[EvalResult],
    training_config: Mapping[str, Any],
    limits: Sequence[str],
    population: Sequence[tuple[str, str]],
    pictures: Sequence[CardPicture],
    compute: Mapping[str, Any] | None,
    audit: Mapping[str, Any] | None,
    co2_grams: float | None,
    co2_source: str,
    **values: Any,
) -> str:
    """A card from a template that extends model_card.md.jinja; `values` are what it needs besides."""
    assert pipeline.contract is not None
    emitted: dict[str, Any] = (
        {} if co2_grams is None else {"co2_eq_emissions": {"emissions": co2_grams, "source": co2_source}}
    )
    data = ModelCardData(
        license=licence,
        library_name="diffusers",
        pipeline_tag=pipeline_tag,
        tags=["diffusers-ct", "computed-tomography", *tags, "medical"],
        **emitted,
    )
    metadata = data.to_dict() | {"model-index": eval_results_to_model_index(repo_id.split("/")[-1], list(results))}
    body = render_card(
        template,
        repo_id=repo_id,
        contract=pipeline.contract,
        population=list(population),
        promises=_promises(pipeline.contract),
        limits=list(limits),
        pictures=listed(pictures),
        audit=audit,
        training_config=sorted(
            (k, v) for k, v in training_config.items() if v is not None and "dir" not in k and k not in _NOT_SHOWN
        ),
        parameters=sum(p.numel() for p in pipeline.unet.parameters()),
        compute=compute,
        co2_grams=co2_grams,
        co2_source=co2_source,
        **values,
    )
    return with_metadata(metadata, body)


def joined_configs(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Settings of a training in several phases: what differs is told of each, "1000, then 500"."""
    names = list(dict.fromkeys(name for config in configs for name in config))
    of = {name: [config.get(name) for config in configs] for name in names}
    return {
        name: values[0] if all(value == values[0] for value in values) else ", then ".join(map(str, values))
        for name, values in of.items()
    }


def joined_compute(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """compute.json of a training in several phases, which add up on one kind of device.

    Raises:
        CardError: for phases on different devices, whose minutes mean different things.
    """
    if any(
        (r.get("device"), r.get("processes")) != (records[0].get("device"), records[0].get("processes"))
        for r in records
    ):
        raise CardError("The phases of the training ran on different devices: `compute` cannot add them up.")
    for record in records:
        if any(key not in record for key in _COMPUTE):
            return dict(record)  # which a card refuses
    return {**records[0], **{key: sum(record[key] for record in records) for key in ("minutes", "steps")}}


def check_model_card(card: str, repo_id: str, *, folder: Path | None = None) -> list[str]:
    """Refuses a card that lacks what a reader needs to trust it; gives the pictures it shows, relative to it.

    Args:
        card: text, with its metadata.
        repo_id: that it is to be the card of.
        folder: where its pictures lie; None for a card without any.

    Raises:
        CardError: naming all that is missing.
    """
    metadata, text, sections = take_apart(card, command=COMMAND)
    missing = lacking(metadata, _METADATA, sections, _SECTIONS)
    if metadata.get("model-index"):
        missing += _missing_of_results(metadata["model-index"])
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    for path in pictures:
        inside = folder is not None and (folder / path).resolve().is_relative_to(folder.resolve())
        if folder is None or not inside or not (folder / path).is_file():
            missing.append(f"the picture {path}")
    if missing:
        raise CardError(f"The model card lacks {', '.join(missing)}: render it with `{COMMAND}`.")
    if f"# {repo_id}\n" not in text:
        raise CardError(f"The card is not of {repo_id}: render it with `{COMMAND} --repo {repo_id}`.")
    return pictures


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
