"""The card of a synthesis model: rendered from its contract and from what an independent judge saw in its volumes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from huggingface_hub import EvalResult

from . import __version__
from .card_pictures import CardPicture, listed
from .card_rendering import CardError
from .evaluation.synthesis import rows_to_markdown
from .model_card_parts import missing_parts, render_card_of
from .pipelines import CTDiffusionPipeline

_NEEDED = ("rows", "findings", "steps", "seed", "shape", "spacing_mm", "judge_phantoms")
# share -> (heading, what it is a share of)
_SHARES = {
    "body_part": ("body part as asked", "volumes"),
    "possible_findings": ("findings as asked", "findings that a volume's region can have, taken as independent"),
}


def render_synthesis_card(
    pipeline: CTDiffusionPipeline,
    *,
    repo_id: str,
    licence: str,
    evaluation: Mapping[str, Any],
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
    """A model card from the checkpoint's contract and the synthesis.json of `examples/evaluate_synthesis.py`.

    Args:
        pipeline: whose contract is shown.
        repo_id: "user/name".
        licence: of the weights, as the Hub spells it.
        evaluation: rows of `evaluation.judge_row`, the first of real volumes that the judge did not learn from, which is the
            ceiling; and how they were made.
        command: that made them.
        training_config: settings of the run.
        limits: known failure modes, in sentences.
        population: as in `render_model_card`, and so are the others.
        pictures: of what each condition changes.
        compute: of the training.
        audit: of memorisation.
        co2_grams: of the training.
        co2_source: how it was measured.

    Raises:
        CardError: listing all that is missing.
    """
    missing = missing_parts(
        pipeline.contract, compute, audit, co2_grams, co2_source, licence=licence, command=command,
        training_config=training_config, limits=limits,
    )  # fmt: skip
    missing += [f"{key!r} in the evaluation" for key in _NEEDED if not evaluation.get(key) and evaluation.get(key) != 0]
    if len(evaluation.get("rows") or ()) < 2:
        missing.append("a row of synthesised volumes beside that of real ones in the evaluation")
    if missing:
        raise CardError(f"The model card would lack {', '.join(missing)}.")
    if pipeline.config.target != "image" or pipeline.contract is None:
        raise CardError("This card is of a synthesis model; one that restores has `render_model_card`.")
    real, *made = evaluation["rows"]
    findings = list(evaluation["findings"])
    z, y, x = evaluation["spacing_mm"]
    known = () if pipeline.condition_encoder is None else tuple(pipeline.condition_encoder.config.conditions)
    return render_card_of(
        pipeline,
        "synthesis_card.md.jinja",
        repo_id=repo_id,
        licence=licence,
        # the Hub's nearest: it has no task for images from conditions that are no text
        pipeline_tag="unconditional-image-generation",
        tags=["synthetic-data"],
        results=[result for row in made for result in _eval_results(row, real, evaluation)],
        training_config=training_config,
        limits=limits,
        population=population,
        pictures=(),
        compute=compute,
        audit=audit,
        co2_grams=co2_grams,
        co2_source=co2_source,
        shown=listed(pictures),
        conditions=list(known),
        example_spacing=f"({z:g}, {y:g}, {x:g})",
        shape=" x ".join(map(str, evaluation["shape"])),
        steps=evaluation["steps"],
        seed=evaluation["seed"],
        judge_phantoms=evaluation["judge_phantoms"],
        real=real,
        shares=[(heading, of) for heading, of in _SHARES.values()],
        table=rows_to_markdown(evaluation["rows"], findings),
        command=command,
        package_version=evaluation.get("package_version", __version__),
        git_revision=evaluation.get("git_revision"),
        git_changed=bool(evaluation.get("git_changed")),
        weights=evaluation.get("weights"),
    )


def _eval_results(row: Mapping[str, Any], real: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[EvalResult]:
    """The two shares that have an exact interval, of one setting."""
    results = []
    for key, (heading, of) in _SHARES.items():
        if not np.isfinite(row[key]):
            continue
        results.append(
            EvalResult(
                task_type="unconditional-image-generation",
                dataset_type="diffusers-ct phantoms",
                dataset_name=f"balanced requests, {row['name']}",
                dataset_config=row["name"],
                dataset_split="test",
                metric_type=f"{key}_share",
                metric_name=f"{heading}, by an independent judge",
                metric_value=round(float(row[key]), 4),
                metric_args={
                    "convention": f"share of {of}, judged by a network trained on {evaluation['judge_phantoms']} real phantoms",
                    "n_volumes": row["volumes"],
                    "interval_95": [round(float(bound), 4) for bound in row[f"{key}_95"]],
                    "aggregation": "exact binomial interval over " + of.split(",")[0],
                    "on_real_volumes": round(float(real[key]), 4),
                },
            )
        )
    return results
