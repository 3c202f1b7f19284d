"""The report of `compare_patch_sizes.py`: means and differences with intervals over seeds and patients, a picture."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusers_ct.evaluation.paired_statistics import mean_interval, paired_difference
from diffusers_ct.evaluation.studies import LOW_DOSE

# Key of a run -> heading, digits.
COLUMNS = {
    "gain_body_db": ("gain dB", 2),
    "rmse_body_hu": ("RMSE body HU", 2),
    "psnr_full": ("PSNR dB", 2),
    "f50_per_mm: 25 mm, 30 HU": ("f50 at 30 HU, 1/mm", 3),
    "f50_per_mm: 25 mm, 120 HU": ("f50 at 120 HU, 1/mm", 3),
    "recovery: 20 HU": ("3 mm, 20 HU: kept", 3),
    "recovery: 50 HU": ("3 mm, 50 HU: kept", 3),
    "auc: 3 mm, 14 HU": ("AUC of 3 mm rods", 3),
    "noise_hu": ("noise HU", 2),
}
# In the picture and in the tables of differences.
SHOWN = [column for column in COLUMNS if column not in ("rmse_body_hu", "psnr_full", "recovery: 50 HU")]
Triple = tuple[float | None, float | None, float | None]  # estimate and 95 % interval; None where nothing can be said


def write_report(
    out: Path, runs: list[dict[str, Any]], facts: dict[str, Any], *, reference: str, budgets: Sequence[str]
) -> dict[str, Any]:
    """Writes patch_sizes.json, .md and .png, and returns what is in the first.

    Args:
        out: folder.
        runs: one a variant, budget and seed, of flat values; the low dose among them, without a budget.
        facts: to keep; "patient_gain_db" has for each seed the gain of each patient by "variant, budget".
        reference: the variant that others are compared with; its runs of the first budget are those of all.
        budgets: of training.
    """
    report = {"facts": facts, "summary": summary(runs, facts, reference, budgets), "runs": runs}
    (out / "patch_sizes.json").write_text(json.dumps(report, indent=2) + "\n")
    text = markdown(report, reference)
    (out / "patch_sizes.md").write_text(text)
    draw(report, out / "patch_sizes.png", budgets)
    print(text)
    return report


def summary(
    runs: list[dict[str, Any]], facts: dict[str, Any], reference: str, budgets: Sequence[str]
) -> list[dict[str, Any]]:
    """One row a variant and budget, the low dose first: means over seeds and differences from the reference."""

    def of(variant: str, budget: str) -> list[dict[str, Any]]:
        return [run for run in runs if (run["variant"], run["budget"]) == (variant, budget)]

    def patients(variant: str, budget: str) -> np.ndarray:
        name = f"{variant}, {budgets[0] if variant == reference else budget}"
        return np.mean([of_seed[name] for of_seed in facts["patient_gain_db"]], axis=0)

    rows: list[dict[str, Any]] = []
    for variant, budget in dict.fromkeys((run["variant"], run["budget"]) for run in runs):
        own, base = of(variant, budget), of(reference, budget)
        row: dict[str, Any] = {"variant": variant, "budget": budget}
        row["means"] = {column: interval([run[column] for run in own]) for column in COLUMNS}
        if budget:
            row["parameters"], row["steps"] = own[0]["parameters"], own[0]["steps"]
            row["seconds_per_step"] = statistics.median(run["seconds_per_step"] for run in own)
            row["training_seconds"] = statistics.mean(run["training_seconds"] for run in own)
        if budget and variant != reference:
            row["differences"] = {
                column: interval(
                    [None if None in (a[column], b[column]) else a[column] - b[column] for a, b in zip(own, base)]
                )
                for column in COLUMNS
            }
            over = paired_difference(patients(variant, budget), patients(reference, budget)).difference
            row["gain_difference_over_patients"] = finite(over.estimate, over.low, over.high)
        rows.append(row)
    return sorted(rows, key=lambda row: ["", *budgets].index(row["budget"]))


def interval(values: Sequence[float | None]) -> Triple:
    """Mean with Student's interval; nothing where one of the values is missing, whose mean would flatter."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None, None, None
    found = mean_interval(known)
    return finite(found.estimate, found.low, found.high)


def finite(*values: float) -> Triple:
    estimate, low, high = (value if np.isfinite(value) else None for value in values)
    return estimate, low, high


def markdown(report: dict[str, Any], reference: str) -> str:
    facts, rows = report["facts"], report["summary"]
    low_dose, trained = rows[0], rows[1:]
    lines = []
    for budget in dict.fromkeys(row["budget"] for row in trained):
        of_budget = [row for row in trained if row["budget"] == budget]
        headings = [
            "patch",
            "parameters k",
            "steps",
            "ms / step",
            "training s",
            *(name for name, _ in COLUMNS.values()),
        ]
        lines += [f"**{budget}**", "", "| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
        lines.append(line([LOW_DOSE, "–", "–", "–", "–", *means(low_dose)]))
        for row in of_budget:
            training = (f"{1e3 * row['seconds_per_step']:.0f}", f"{row['training_seconds']:.0f}")
            lines.append(
                line([row["variant"], f"{row['parameters'] / 1e3:.0f}", str(row["steps"]), *training, *means(row)])
            )
        headings = [f"less {reference}", "gain dB over patients"]
        headings += [f"{COLUMNS[column][0]} over seeds" for column in SHOWN]
        lines += ["", "| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
        for row in of_budget:
            if "differences" in row:
                cells = [spread(row["gain_difference_over_patients"], 2)]
                cells += [spread(row["differences"][column], COLUMNS[column][1]) for column in SHOWN]
                lines.append(line([row["variant"], *cells]))
        lines.append("")
    seeds = sorted({run["seed"] for run in report["runs"]})
    size, environment = facts["size"], facts["environment"]
    patients = len(next(iter(facts["patient_gain_db"][0].values())))
    depth, height, width = size["patch"]
    lines.append(
        f"2.5-D networks of widths {', '.join(map(str, size['channels']))}, with a branch of {size['branch']} channels; one "
        f"patch of {depth} x {height} x {width} a step. Dose {100 * facts['dose_fraction']:g} %, voxels of "
        f"{' x '.join(f'{mm:g}' for mm in facts['spacing_mm'])} mm, {patients} test phantoms, {size['lesion_scans']} with "
        f"lesions, {len(seeds)} seeds. Square brackets: 95 %, over seeds (Student) or over patients, whose gains are means "
        "over seeds (Hodges-Lehmann). f50: frequency of half transfer of an edge; kept: share of the contrast of inserted "
        f"3 mm lesions. `{facts['command']}`, revision {environment['git_revision']}"
        f"{' with changes' if environment['git_changed'] else ''}, torch {environment['torch']}, {environment['threads']} "
        "threads."
    )
    return "\n".join(lines) + "\n"


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def means(row: dict[str, Any]) -> list[str]:
    return [number(row["means"][column][0], digits) for column, (_, digits) in COLUMNS.items()]


def number(value: float | None, digits: int, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.{digits}f}"


def spread(values: Triple, digits: int) -> str:
    estimate, low, high = values
    if estimate is None:
        return "–"
    return f"{number(estimate, digits, '+')} [{number(low, digits, '+')}, {number(high, digits, '+')}]"


def draw(report: dict[str, Any], path: Path, budgets: Sequence[str]) -> None:
    """A panel a metric, a line a variant: the mean of each budget, and small dots for the seeds."""
    from matplotlib.figure import Figure

    low_dose, trained = report["summary"][0], report["summary"][1:]
    variants = list(dict.fromkeys(row["variant"] for row in trained))
    figure = Figure(figsize=(11.0, 1.6 + 0.75 * len(variants)), layout="constrained")
    panels = figure.subplots(2, 3, sharey=True).ravel()
    for axes, column in zip(panels, SHOWN, strict=True):
        for number_of, (budget, colour, marker) in enumerate(zip(budgets, ("#0072B2", "#D55E00"), ("o", "s"))):
            shift = 0.18 * (2 * number_of - 1)
            for run in report["runs"]:
                if run["budget"] == budget and run[column] is not None:
                    axes.plot(run[column], variants.index(run["variant"]) + shift, ".", color=colour, alpha=0.45, ms=5)
            points = [(row["means"][column][0], variants.index(row["variant"]) + shift) for row in trained
                      if row["budget"] == budget and row["means"][column][0] is not None]  # fmt: skip
            axes.plot([x for x, _ in points], [y for _, y in points], marker, color=colour, ms=7, label=budget)
        plain = low_dose["means"][column][0]
        if plain is not None and column != "noise_hu":  # whose noise is far off the scale
            axes.axvline(plain, color="#777777", linestyle="--", linewidth=1.2, label=LOW_DOSE)
        axes.set_title(COLUMNS[column][0], fontsize=10)
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(variants)), variants)
    panels[0].set_ylim(len(variants) - 0.5, -0.5)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=110)
