"""The card of a restoration model: rendered from its contract, its benchmark and the record of its training."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult

from . import __version__
from .card_pictures import CardPicture
from .card_rendering import CardError
from .evaluation.benchmark_result import CEILING, COLUMNS, COMPARED, PERFECT, BenchmarkResult, format_value
from .evaluation.restoration_evaluation import verdict
from .model_card_parts import missing_parts, render_card_of
from .pipelines import CTDiffusionPipeline

_REPORTED = ("psnr_full", "psnr_soft", "ssim_full", "ssim_soft", "rmse_body_hu", "bias_body_hu", "gain_body_db")
_COMPARED = "rmse_body_hu"
_TOO_FEW = "too few patients"


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
        population: of the training patients, from `population_of`, and of their scans, from `acquisition_of`; the card says so
            where it is not given.
        pictures: of failures; `write_card` writes them beside the card.
        compute: what `train` left in compute.json: "minutes", "steps", "processes", "device". The card says so where it is
            not known, and so for the next two.
        audit: of memorisation, see `diffusers_ct.hub.audit_of`.
        co2_grams: CO2 equivalent of the training, where it was measured.
        co2_source: how.

    Raises:
        CardError: listing all that is missing.
    """
    rows = [row for row in benchmark.rows if row["method"] == method]
    missing = missing_parts(
        pipeline.contract, compute, audit, co2_grams, co2_source, licence=licence, dataset_name=dataset_name,
        dataset_split=dataset_split, command=command, training_config=training_config, limits=limits,
    )  # fmt: skip
    if not rows:
        missing.append(f"a row {method!r} in the benchmark")
    if missing:
        raise CardError(f"The model card would lack {', '.join(missing)}.")
    if dataset_split == "train":
        raise CardError("A model is not judged on its training split: name a held-out split.")
    if pipeline.config.target != "residual":
        raise CardError("This card is of a restoration model; one that makes images has `render_synthesis_card`.")
    facts = benchmark.facts
    how = str(facts.get("aggregation") or "over patients")
    reference = str(facts.get("reference") or "")
    return render_card_of(
        pipeline,
        "restoration_card.md.jinja",
        repo_id=repo_id,
        licence=licence,
        pipeline_tag="image-to-image",
        tags=["low-dose-ct", "dicom"],
        results=_eval_results(rows, dataset_name, dataset_split, how, reference),
        training_config=training_config,
        limits=limits,
        population=population,
        pictures=pictures,
        compute=compute,
        audit=audit,
        co2_grams=co2_grams,
        co2_source=co2_source,
        dataset_name=dataset_name,
        dataset_split=dataset_split,
        reference=reference,
        conventions=str(facts.get("conventions") or ""),
        mask=str(facts.get("mask") or ""),
        aggregation=how,
        command=command,
        method=method,
        measured=[_shown(row) for row in rows],
        verdicts=_verdicts(benchmark, method),
        tables=benchmark.to_markdown(),
        timed_on=_timed_on(facts),
        compared=COLUMNS[_COMPARED][0],
        comparisons=_comparisons(benchmark, method),
        test=", ".join(sorted({str(c.get("test", "")) for c in benchmark.comparisons} - {""})) or "test not recorded",
        sampling_steps=facts.get("sampling_steps"),
        calibrations=_calibrations(benchmark, method),
        package_version=facts.get("package_version", __version__),
        git_revision=facts.get("git_revision"),
        git_changed=bool(facts.get("git_changed")),
        weights=_weights_of(facts, method),
        data_sha256=facts.get("data_sha256"),
    )


def _eval_results(
    rows: Sequence[Mapping[str, Any]], dataset_name: str, dataset_split: str, how: str, reference: str
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
            facts |= {"n_scans": row["n_scans"], "n_slices": row["n_slices"]}
            if reference:
                facts["reference"] = reference
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
        text = _TOO_FEW if bounds is None else " to ".join(format_value(column, bound) for bound in bounds)
        results.append((COLUMNS[column][0], format_value(column, row[column]), text))
    counts = f"{row['n_patients']} patients, {row['n_scans']} scans, {row['n_slices']} slices"
    return row["group"], counts, results


def _verdicts(benchmark: BenchmarkResult, method: str) -> list[str]:
    """One sentence for each group in which the method was compared with others in every metric."""
    compared = {c["group"] for c in benchmark.comparisons if c["method"] == method}
    return [
        verdict(benchmark, group, method)
        for group in benchmark.groups
        if group in compared
        and all(
            row.get(column) is not None
            for row in benchmark.table(group)
            for column in COMPARED
            if row["method"] not in (PERFECT, CEILING)
        )
    ]


def _comparisons(benchmark: BenchmarkResult, method: str) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for c in benchmark.comparisons:
        if c["method"] != method or c["column"] != _COMPARED:
            continue
        known = c["low"] is not None and c["high"] is not None
        interval = f"{c['low']:.2f} to {c['high']:.2f}" if known else _TOO_FEW
        count = str(c.get("n_patients", ""))
        rows.append((c["group"], c["against"], f"{c['difference']:.2f}", interval, f"{c['p_holm']:.3g}", count))
    return rows


def _calibrations(benchmark: BenchmarkResult, method: str) -> list[tuple[str, ...]]:
    """Of the samples: (group, samples, nominal coverage, coverage, its interval, patients) at 90 %."""
    rows: list[tuple[str, ...]] = []
    for study in benchmark.studies.get("calibration", []):
        name, _, samples = str(study["method"]).rpartition(", ")
        if not method.startswith(f"{name}, ") or 0.9 not in study["nominal"]:
            continue
        at = study["nominal"].index(0.9)
        ends = study.get("coverage_low"), study.get("coverage_high")
        interval = _TOO_FEW if None in ends else " to ".join(f"{100 * end[at]:.1f}" for end in ends)  # type: ignore[index]
        rows.append((study["group"], samples, f"{100 * study['coverage'][at]:.1f}", interval, str(study["n_patients"])))
    return rows


def _timed_on(facts: Mapping[str, Any]) -> str:
    if not facts.get("device"):
        return "a device that was not recorded"
    threads = facts.get("threads")
    return f"{facts['device']}, {threads} thread{'s' if threads != 1 else ''}" if threads else str(facts["device"])


def _weights_of(facts: Mapping[str, Any], method: str) -> str | None:
    """Fingerprint of what was measured, where the benchmark tells it."""
    told = facts.get("weights") or {}
    named = dict(json.loads(told) if isinstance(told, str) else told)
    return next((weights for name, weights in named.items() if method.startswith(f"{name}, ")), None)
