"""The report's last sections: how it was made, which conventions its numbers follow, and what they do not say."""

import json
from typing import Any

from ..metrics.image import CONVENTIONS, Convention
from .benchmark_result import CEILING, COLUMNS, PERFECT, BenchmarkResult
from .report_parts import Block, Facts, Heading, Section, Text

# Below this many patients a group's means are the patients' own.
_FEW_PATIENTS = 10


def origins_section(result: BenchmarkResult) -> Section:
    """Facts, conventions and limits."""
    blocks: list[Block] = [
        Heading("Conventions"),
        Text(_conventions(result), listed=True),
        Heading("What the numbers do not say"),
        Text(_limits(result), listed=True),
    ]
    if result.facts:
        facts = [(key.replace("_", " "), _plain(value)) for key, value in sorted(result.facts.items())]
        blocks += [Heading("Facts"), Facts(facts)]
    return Section("origins", "how this was made", "How this was made", blocks)


def _plain(value: Any) -> str:
    if value is None:
        return "not known"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _conventions(result: BenchmarkResult) -> list[str]:
    """A line for each convention that a column is named after, and one for each measure shown."""
    shown = {column for group in result.groups for column in result.shown_columns(group)}
    lines = [
        f"PSNR and SSIM “{name}”: {_in_words(rule)}"
        for name, rule in CONVENTIONS.items()
        if any(column.startswith((f"psnr_{name}", f"ssim_{name}")) for column in shown)
    ]
    if any(column.startswith("psnr") for column in shown):
        lines.append(
            "PSNR pooled: of the mean squared error over all slices of a scan. Slice mean: mean of the slices' own decibels, which "
            "one very good slice lifts. The same images score 20 to 38 dB in published conventions: compare only numbers of one "
            "convention, never across papers."
        )
    if shown & {"rmse_body_hu", "mae_body_hu", "bias_body_hu", "gain_body_db"}:
        lines.append(
            "RMSE, MAE, bias and gain: in HU, inside the body (largest part above -500 HU, holes filled). Bias: method minus "
            "reference. Gain: fall of the mean squared error against the low dose, in dB."
        )
    if "ceiling_share" in shown:
        lines.append(
            f"Share of {CEILING}: gain over the largest possible one, 10 lg(1 / dose fraction); {COLUMNS['ceiling_share'][0]} of "
            "100 % needs the clean image and the input's own noise."
        )
    lines.append("The unit of statistics is the patient: mean over a patient's scans, then over patients.")
    return lines


def _in_words(rule: Convention) -> str:
    low, high = rule.clip_hu
    peak = (
        "maximum minus minimum of each reference slice"
        if rule.data_range_hu == "reference"
        else f"{rule.data_range_hu:g} HU"
    )
    window = "Gaussian, 11 x 11, sigma 1.5" if rule.ssim_window == "gaussian" else "uniform, 7 x 7"
    border = "left out at the border" if rule.ssim_border == "crop" else "padded with zeros at the border"
    return (
        f"clipped to {low:g} to {high:g} HU, peak {peak}; SSIM window {window}, {border}; whole slice, air too. As in: "
        f"{rule.source}."
    )


def _limits(result: BenchmarkResult) -> list[str]:
    lines = []
    if any(row["method"] == CEILING for row in result.rows):
        lines.append(
            "The reference is the same scan at full dose: the low-dose image shares its noise. A perfect, noise-free image does "
            f"not score best (row “{PERFECT}”), and methods near the {CEILING} keep noise rather than anatomy."
        )
    fewest = min((row["n_patients"] for row in result.rows), default=0)
    if fewest < _FEW_PATIENTS:
        lines.append(f"The smallest group has {fewest} patients: its numbers are theirs, not those of a population.")
    lines += [
        "Less error is not more visible disease: image metrics and detectability can disagree.",
        "The observer knows the signal and the place; a radiologist does not.",
        "Nothing here was read by a radiologist or measured on patients' outcomes.",
        "Other scanners, kernels, doses, body parts and diseases than those named were not tested.",
    ]
    return [line for line in lines if "observer" not in line or "detectability" in result.studies]
