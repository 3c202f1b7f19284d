"""The report's sections on tasks: detectability, inserted lesions, calibration, downstream."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..metrics.calibration import expected_gap_db
from .benchmark_result import LOW_DOSE, BenchmarkResult
from .figures_studies import auc_over_dose, coverage_curves, rank_histograms
from .figures_style import Look, chart_png
from .report_images import Rows, by
from .report_parts import (
    Block,
    Cell,
    Folded,
    Heading,
    Picture,
    Pictures,
    Row,
    Section,
    Table,
    Text,
    interval,
    mean,
    number,
    percent,
    percent_interval,
    words,
)
from .studies import FULL_DOSE
from .studies.insertion import FALSE_PER_CM2

# name, key, whether 1 is bad
_RATES = (
    ("recovery of contrast", "recovery", False),
    ("erased lesions", "erased", True),
    ("missed lesions", "missed", True),
    ("false lesions", "false", True),
)


def detectability_section(result: BenchmarkResult, looks: Mapping[str, Look]) -> Section | None:
    """AUC over dose for each insert and observer, and the dose at which plain FBP is as good."""
    studies = result.studies.get("detectability", ())
    if not studies:
        return None
    pictures, blocks = [], list[Block]()
    for (insert, channels), rows in by(studies, "insert", "channels").items():
        lowest = min(row["dose_fraction"] for row in rows)
        alt = (
            f"AUC of the {channels} observer over dose for the insert {insert}. At {percent(lowest)} of the dose: "
            + words([f"{r['method']} {number(r['auc'], '.2f')}" for r in rows if r["dose_fraction"] == lowest])
            + "."
        )
        pictures.append(Picture(f"{insert}; {channels}", "", alt, chart_png(auc_over_dose(rows, looks)), chart=True))
    for (channels,), rows in by(studies, "channels").items():
        inserts = [insert for (insert,) in by(rows, "insert")]
        doses = [row["dose_fraction"] for row in rows if row["method"] == LOW_DOSE]
        by_dose = sorted(by(rows, "dose_fraction", "method").items(), key=lambda item: item[0][0])
        equivalents, differences = [], []
        for (dose, method), own in by_dose:
            of = [next((r for r in own if r["insert"] == insert), None) for insert in inserts]
            equivalents.append(
                Row(method, [Cell(percent(dose)), *(_dose_cell(row, doses) for row in of)], method == LOW_DOSE)
            )
            if method != LOW_DOSE:
                differences.append(Row(method, [Cell(percent(dose)), *(_difference_cell(row) for row in of)]))
        blocks += [
            Heading(f"Dose equivalence, {channels}"),
            Table(f"dose equivalence, {channels}", ["images", "dose", *inserts], equivalents),
        ]
        if differences:
            blocks += [
                Heading(f"AUC minus {LOW_DOSE}, {channels}"),
                Table(f"AUC minus {LOW_DOSE}, {channels}", ["images", "dose", *inserts], differences),
            ]
    images = sorted({row["n_images"] for row in studies})
    note = (
        "Area under the ROC curve of a channelised Hotelling observer that looks for a known insert at a known place, with 95 % "
        f"intervals; 0.5 is guessing; {words([str(n) for n in images])} images a point. {LOW_DOSE}: plain filtered "
        "backprojection. Equivalent: the dose at which plain filtered backprojection has the method's AUC; where that is "
        "outside the doses measured, the highest or lowest of them and on which side it lies. The difference to the plain images "
        "of the same dose is paired. The observer reads one slice at a time: a method that works on slabs shows in each slice "
        "what the others hold, and so may be worth as many times the dose as its slab has slices. The AUC that this observer has "
        "of all the slab's plain slices is given beside the difference. Far above it, the method shows this observer what its "
        "channels miss in plain images, for it is not the ideal one; or something leaks."
    )
    return Section("detectability", "detectability", "Detectability", [Text([note]), Pictures(pictures), *blocks])


def _dose_cell(row: Mapping[str, Any] | None, doses: Sequence[float]) -> Cell:
    if row is None:
        return Cell("–")
    equivalent = row["dose_fraction"] if row["method"] == LOW_DOSE else row["dose_equivalent"]
    text = "–" if equivalent is None else f"{100.0 * equivalent:.1f} %"
    if side := row.get("dose_equivalent_side"):
        text = f"{side} {percent(max(doses) if side == 'above' else min(doses))}"
    return Cell(text, f"AUC {number(row['auc'], '.3f')} {interval(row['low'], row['high'], '.3f')}")


def _difference_cell(row: Mapping[str, Any] | None) -> Cell:
    if row is None or row.get("minus_low_dose") is None:
        return Cell("–")
    limits = interval(row["minus_low"], row["minus_high"], "+.3f")
    return Cell(
        number(row["minus_low_dose"], "+.3f"),
        f"{limits}, AUC {number(row['auc'], '.3f')}, of the slab {number(row['auc_bound'], '.3f')}",
    )


def insertion_section(result: BenchmarkResult, subject: str | None) -> Section | None:
    """What became of lesions that were put in: by method, then by diameter, contrast and dose."""
    studies = result.studies.get("insertion", ())
    if not studies:
        return None
    blocks: list[Block] = []
    for (group,), rows in by(studies, "group").items():
        table = [
            Row(
                method,
                [_rate_cell(mean([r[key] for r in own]), None, bad) for _, key, bad in _RATES],
                method in (LOW_DOSE, FULL_DOSE),
            )
            for (method,), own in by(rows, "method").items()
        ]
        blocks += [
            Heading(f"{group}, mean of all sizes and contrasts"),
            Table(f"inserted lesions, {group}", ["method", *(name for name, _, _ in _RATES)], table),
            *_false_table(group, rows),
        ]
    methods = [method for (method,) in by(studies, "method")]
    first = [m for m in methods if m == subject]
    blocks.append(Heading("By diameter, contrast and dose"))
    for method in first + [m for m in methods if m not in first]:
        own = [row for row in studies if row["method"] == method]
        tables = [block for rate in _RATES for block in _rate_table(method, own, rate)]
        blocks += [Heading(method), *tables] if method in first else [Folded(method, tables)]
    places = sorted({row["n_places"] for row in studies})
    note = (
        "Lesions are put into the low-dose images and sought after the method. Recovery: share of the contrast that is kept "
        "(1 = all). Erased: less than half of it is left. Missed: a matched filter does not find it. False: the filter finds one "
        "where none was put. A square centimetre: how many the filter finds where it searches all soft tissue without lesions, at a "
        f"threshold at which full dose has {FALSE_PER_CM2:g}; in brackets the exact 95 % interval of the count. In brackets, in "
        "percent: 95 % interval over "
        f"{words([str(n) for n in places])} places, taken as independent. Shaded: the more, the worse."
    )
    return Section("insertion", "inserted lesions", "Inserted lesions: kept, erased, invented", [Text([note]), *blocks])


def _false_table(group: str, rows: Rows) -> list[Block]:
    """False lesions a square centimetre, by diameter: that of the filter, whose contrast is nothing to it."""
    found = {(r["method"], r["diameter_mm"]): r for r in rows if r.get("false_per_cm2") is not None}
    diameters = sorted({diameter for _, diameter in found})
    if not found:
        return []
    table = []
    for method in dict.fromkeys(method for method, _ in found):
        cells = []
        for diameter in diameters:
            row = found.get((method, diameter))
            limits = "" if row is None else interval(row["false_per_cm2_low"], row["false_per_cm2_high"], ".3f")
            cells.append(Cell("–") if row is None else Cell(number(row["false_per_cm2"], ".3f"), limits))
        table.append(Row(method, cells, method == LOW_DOSE))
    headings = ["method", *(f"{diameter:g}\u00a0mm" for diameter in diameters)]
    return [
        Heading(f"{group}, false lesions a cm²"),
        Table(f"false lesions a square centimetre, {group}", headings, table),
    ]


def _rate_table(method: str, rows: Rows, rate: tuple[str, str, bool]) -> list[Block]:
    """Rows: diameters. Columns: contrasts, by dose."""
    name, key, bad = rate
    found = {(r["dose_fraction"], r["contrast_hu"], r["diameter_mm"]): r for r in rows}
    doses = sorted({dose for dose, _, _ in found}, reverse=True)
    contrasts = {dose: sorted({c for d, c, _ in found if d == dose}) for dose in doses}
    table = []
    for diameter in sorted({diameter for _, _, diameter in found}):
        cells = []
        for dose in doses:
            for contrast in contrasts[dose]:
                row = found.get((dose, contrast, diameter))
                limits = None if row is None else percent_interval(row[f"{key}_low"], row[f"{key}_high"])
                cells.append(Cell("–") if row is None else _rate_cell(row[key], limits, bad))
        table.append(Row(f"{diameter:g} mm", cells))
    headings = [name, *(f"{contrast:g}\u00a0HU" for dose in doses for contrast in contrasts[dose])]
    above = [(f"{percent(dose)} dose", len(contrasts[dose])) for dose in doses]
    return [Table(f"{name} of {method}", headings, table, above)]


def _rate_cell(rate: float, limits: str | None, bad: bool) -> Cell:
    heat = rate if bad else abs(1.0 - rate)
    return Cell(f"{100.0 * rate:.0f} %", limits or "", heat=min(max(heat, 0.0), 1.0))


def calibration_section(result: BenchmarkResult, looks: Mapping[str, Look]) -> Section | None:
    """Do the intervals of the samples hold what they promise, and is their mean as far from one sample as theory says."""
    studies = result.studies.get("calibration", ())
    if not studies:
        return None
    pictures, table = [], []
    for (group,), rows in by(studies, "group").items():
        alt = (
            f"Measured over nominal coverage, {group}: "
            + words([f"{r['method']} " + ", ".join(_coverage(r)) for r in rows])
            + "."
        )
        pictures.append(
            Picture(f"Coverage, {group}", "", alt, chart_png(coverage_curves(rows, looks)), chart=True)
        )  # fmt: skip
        ranked = [row for row in rows if row["rank_histogram"]]
        if ranked:
            alt = f"Ranks of the truth among the samples, {group}: " + words([_rank_words(r) for r in ranked]) + "."
            pictures.append(Picture(f"Ranks, {group}", "", alt, chart_png(rank_histograms(ranked, looks)), chart=True))
    levels = sorted({level for row in studies for level in row["nominal"]})
    for row in studies:
        cells = [
            Cell(row["group"]),
            *(_coverage_cell(row, level) for level in levels),
            Cell(number(row["spread_skill"], ".2f")),
            Cell(number(row["crps_hu"], ".2f")),
            Cell(
                number(row["gap_db"], ".2f"),
                f"{_ends(row, 'gap', '.2f')}exact: {expected_gap_db(row['gap_samples']):.2f}, N = {row['gap_samples']}",
            ),
            Cell(number(row["mean_of_samples_minus_one_step_db"], "+.2f"), _ends(row, "loss", "+.2f").strip()),
            Cell(str(row["n_patients"])),
        ]
        table.append(Row(row["method"], cells))
    headings = [
        "method", "group", *(f"in {percent(level)} interval" for level in levels), "spread / error", "CRPS [HU]",
        "mean of N over one sample [dB]", "mean of N over one step [dB]", "patients",
    ]  # fmt: skip
    note = (
        "If samples and truth come from one posterior, an interval of 90 % holds the truth in 90 % of the voxels, every rank of "
        "the truth among the samples is as frequent (a U: samples too narrow; a hill: too wide), spread over error is 1, and the "
        "mean of N samples gains 10 lg(2N / (N + 1)) dB over one sample, 3.01 dB at most. A reference with noise that the samples "
        "do not have makes a perfect sampler look too narrow; samples of full-dose images, noise and all, are judged rightly by "
        "such an image. In brackets: Student's 95 % interval over patients."
    )
    blocks: list[Block] = [Text([note]), Pictures(pictures), Table("calibration", headings, table)]
    return Section("calibration", "calibration", "Is the uncertainty right?", blocks)


def _coverage_cell(row: Mapping[str, Any], level: float) -> Cell:
    if level not in row["nominal"]:
        return Cell("–")
    k = row["nominal"].index(level)
    known = row.get("coverage_low") is not None
    detail = percent_interval(row["coverage_low"][k], row["coverage_high"][k]) if known else ""
    return Cell(percent(row["coverage"][k]), detail)


def _ends(row: Mapping[str, Any], key: str, form: str) -> str:
    low, high = row.get(f"{key}_low_db"), row.get(f"{key}_high_db")
    return "" if low is None else f"{interval(low, high, form)} "


def _coverage(row: Mapping[str, Any]) -> Sequence[str]:
    return [f"{percent(measured)} at {percent(nominal)}" for nominal, measured in zip(row["nominal"], row["coverage"])]


def _rank_words(row: Mapping[str, Any]) -> str:
    counts = row["rank_histogram"]
    ends = (counts[0] + counts[-1]) / 2.0 / mean(counts)
    return f"{row['method']} has the outermost ranks {ends:.2f} times as often as an even share"


def downstream_section(result: BenchmarkResult) -> Section | None:
    """What a frozen reader makes of the images."""
    studies = result.studies.get("downstream", ())
    if not studies:
        return None
    blocks: list[Block] = []
    for (group, task), rows in by(studies, "group", "task").items():
        table = [
            Row(
                row["images"],
                [
                    Cell(number(row["auc"], ".3f"), interval(row["low"], row["high"], ".3f")),
                    _gained_cell(row),
                    _recovered_cell(row),
                    Cell(str(row["n_patients"])),
                ],
                row["images"] in (FULL_DOSE, LOW_DOSE),
            )
            for row in rows
        ]
        headings = ["images", "AUC, 95 % interval", "minus low dose", "recovered of what low dose lost", "patients"]
        blocks += [Heading(f"{group}, {task}"), Table(f"downstream task {task}, {group}", headings, table)]
    note = (
        "The same frozen classifier reads full dose, low dose and restored images. Recovered: share of the AUC lost at low dose "
        "that the method gives back; it is uncertain wherever the intervals of full and low dose overlap. Intervals: bootstrap of "
        "patients; at an AUC of 0 or 1, where no resample differs, Newcombe's for so many patients, and no ends for the share."
    )
    return Section("downstream", "downstream", "Downstream task", [Text([note]), *blocks])


def _gained_cell(row: Mapping[str, Any]) -> Cell:
    if row["minus_low"] is None:
        return Cell("–")
    return Cell(number(row["minus_low"], "+.3f"), interval(row["minus_low_low"], row["minus_low_high"], "+.3f"))


def _recovered_cell(row: Mapping[str, Any]) -> Cell:
    if row["recovered_fraction"] is None:
        return Cell("–")
    return Cell(
        percent(row["recovered_fraction"]), f"{percent(row['recovered_low'])} to {percent(row['recovered_high'])}"
    )
