"""The report's section on few steps: what each sampler gives for its time."""

from collections.abc import Mapping
from typing import Any

from .benchmark_result import BenchmarkResult
from .figures_few_steps import quality_over_latency
from .figures_style import Look, chart_png
from .report_images import by
from .report_parts import Block, Cell, Heading, Picture, Pictures, Row, Section, Table, Text, number, words
from .studies.few_steps import fewest_steps

MARGIN = 0.02
# key, heading, format, value of a perfect sampler
_QUALITIES: tuple[tuple[str, str, str, float | None], ...] = (
    ("crps_hu", "CRPS [HU]", ".2f", None),
    ("psnr_one_db", "PSNR of a sample [dB]", ".2f", None),
    ("psnr_mean_db", "PSNR of their mean [dB]", ".2f", None),
    ("spread_skill", "spread / error", ".2f", 1.0),
    ("frequency_share", "mean noise frequency / full dose", ".2f", 1.0),
    ("noise_share", "noise / full dose", ".2f", 1.0),
)
_DRAWN = ("crps_hu", "psnr_one_db", "frequency_share")


def few_steps_section(result: BenchmarkResult, looks: Mapping[str, Look]) -> Section | None:
    """Quality over latency of each sampler, and the fewest steps that are enough."""
    studies = result.studies.get("few_steps", ())
    if not studies:
        return None
    blocks: list[Block] = []
    for (group,), rows in by(studies, "group").items():
        chosen = fewest_steps(rows, margin=MARGIN)
        pictures = []
        for key, name, form, exact in _QUALITIES:
            shown = [row for row in rows if row[key] is not None]
            if key not in _DRAWN or not shown:
                continue
            figure = quality_over_latency(shown, looks, key=key, ylabel=name, exact=exact)
            alt = f"{name} over seconds a slice, {group}: " + words([_point(row, key, form) for row in shown]) + "."
            pictures.append(Picture(f"{name}, {group}", "", alt, chart_png(figure), chart=True))
        ordered = sorted(rows, key=lambda row: row["steps"])
        table = [
            Row(
                row["method"],
                [
                    Cell(str(row["steps"]), mark="best" if row == chosen else ""),
                    *(Cell(number(row[key], form)) for key, _, form, _ in _QUALITIES),
                    Cell(number(row["seconds_per_slice"], ".3f")),
                ],
            )
            for row in ordered
        ]
        headings = ["sampler", "steps", *(name for _, name, _, _ in _QUALITIES), "s / slice"]
        sentence = f"Fewest steps whose CRPS is within {100 * MARGIN:.0f} % of the least: {chosen['method']}, {chosen['steps']}."
        blocks += [Heading(group), Text([sentence]), Pictures(pictures), Table(f"few steps, {group}", headings, table)]
    drawn = sorted({row["samples"] for row in studies})
    patients = sorted({row["n_patients"] for row in studies})
    note = (
        "Each point is a sampler with a number of steps, which is written beside it. One step of DDIM, DPM-Solver++ or UniPC is "
        "the estimate of least mean square error: no sample, and without texture; one of a distilled checkpoint is a sample. A "
        "sample's PSNR lies below the estimate's by up to 3 dB if it is one of the posterior: more PSNR with fewer steps is "
        "missing variety, which CRPS and spread over error tell. Noise of one sample is measured in water; 1 is that of the full dose. "
        f"{words([str(n) for n in drawn])} samples of each scan, {words([str(n) for n in patients])} patients; time: median of "
        "samples drawn in turn, on the machine named under origins."
    )
    return Section("few_steps", "few steps", "Few steps: quality for time", [Text([note]), *blocks])


def _point(row: Mapping[str, Any], key: str, form: str) -> str:
    return (
        f"{row['method']} with {row['steps']} {number(row[key], form)} at {number(row['seconds_per_slice'], '.3f')} s"
    )
