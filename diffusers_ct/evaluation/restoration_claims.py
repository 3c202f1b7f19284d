"""What a restoration benchmark is to show, each claim with its limit, the figure, and whether it is reached.

The limits are those that theory sets for a posterior sampler and its mean (see `metrics.calibration`): one step is the
posterior mean, so it is no worse than a regression on the same backbone; the mean of N samples loses 10 log10(1 + 1/N) dB
to it; one sample against the mean of many loses up to 3.01 dB; intervals hold what they say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .benchmark_result import BenchmarkResult
from .studies import FULL_DOSE, LOW_DOSE

TWIN_MARGIN_DB = 0.05
MEAN_MARGIN_DB = 0.6
TEXTURE_MARGIN = 0.10
COVERAGE_90 = (0.85, 0.95)
GAP_MARGIN_DB = 0.5
BIAS_HU = 0.5
AUC_MARGIN = 0.01


@dataclass(frozen=True)
class Claim:
    """One line of the list.

    Attributes:
        text: what is claimed, with its limit.
        group: table it is about, or "".
        figure: what was measured, in words.
        reached: whether the limit is kept; None where the figure cannot tell (too few patients for an interval).
    """

    text: str
    group: str
    figure: str
    reached: bool | None


def restoration_claims(
    result: BenchmarkResult, *, model: str, twin: str, reference: str, sampler: str, sampler_twin: str
) -> list[Claim]:
    """All claims that the result holds figures for.

    Args:
        result: with comparisons and studies.
        model: the estimate, as in the tables.
        twin: the regression on the same backbone.
        reference: the learned baseline of the field that is to be beaten.
        sampler: one sample, in the study of noise.
        sampler_twin: the regression that was trained on the sampler's data, in the study of noise.
    """
    found = []
    for group in result.groups:
        found += _against(result, group, model, twin, reference)
    found += [claim for row in result.studies.get("calibration", []) for claim in _calibration(row)]
    found += _texture(result.studies.get("noise", []), sampler, sampler_twin)
    found += _materials(result.studies.get("materials", []), model)
    found += _detectability(result.studies.get("detectability", []), model)
    return found


def claims_to_markdown(claims: Sequence[Claim]) -> str:
    """A table: claim, table, figure, reached."""
    words = {True: "yes", False: "**no**", None: "cannot be told"}
    lines = ["| claim | table | measured | reached |", "|---|---|---|---|"]
    lines += [f"| {c.text} | {c.group} | {c.figure} | {words[c.reached]} |" for c in claims]
    return "\n".join(lines) + "\n"


def _against(result: BenchmarkResult, group: str, model: str, twin: str, reference: str) -> list[Claim]:
    claims = []
    for comparison in result.comparisons:
        if comparison["group"] != group or comparison["method"] != model or comparison["column"] != "psnr_full":
            continue
        low, high = comparison["low"], comparison["high"]
        ends = f"{low:+.2f} to {high:+.2f}" if low is not None else "no interval of so few"
        figure = f"{comparison['difference']:+.2f} dB ({ends}), {comparison['n_patients']} patients"
        if comparison["against"] == twin:
            text = f"PSNR not below the twin's by more than {TWIN_MARGIN_DB:g} dB"
            claims.append(Claim(text, group, figure, comparison["difference"] >= -TWIN_MARGIN_DB))
        if comparison["against"] == reference:
            text = f"PSNR above that of {reference}, the interval excludes 0"
            claims.append(Claim(text, group, figure, None if low is None else low > 0.0))
    return claims


def _calibration(row: dict[str, Any]) -> list[Claim]:
    group, n = row["group"], row["gap_samples"]
    covered = dict(zip(row["nominal"], row["coverage"]))[0.9]
    gap, exact = row["gap_db"], row["gap_expected_db"]
    claims = [
        Claim(
            f"90 % intervals cover {100 * COVERAGE_90[0]:.0f} to {100 * COVERAGE_90[1]:.0f} %",
            group,
            f"{100 * covered:.1f} %",
            COVERAGE_90[0] <= covered <= COVERAGE_90[1],
        ),
        Claim(
            f"gap of a sample to the mean of {n} within {GAP_MARGIN_DB:g} dB of an exact sampler's {exact:.2f} dB",
            group,
            f"{gap:.2f} dB",
            abs(gap - exact) <= GAP_MARGIN_DB,
        ),
    ]
    loss = row["mean_of_samples_minus_one_step_db"]
    if loss is not None:
        text = f"mean of {n} samples within {MEAN_MARGIN_DB:g} dB of one step"
        claims.append(Claim(text, group, f"{loss:+.2f} dB", abs(loss) <= MEAN_MARGIN_DB))
    return claims


def _texture(rows: Sequence[dict[str, Any]], sampler: str, twin: str) -> list[Claim]:
    claims = []
    for group in dict.fromkeys(row["group"] for row in rows):
        frequency = {row["method"]: row["mean_frequency_per_mm"] for row in rows if row["group"] == group}
        if not {sampler, twin, FULL_DOSE} <= set(frequency):
            continue
        sample, other = (frequency[name] / frequency[FULL_DOSE] - 1.0 for name in (sampler, twin))
        claims.append(
            Claim(
                f"mean frequency of a sample's noise within {100 * TEXTURE_MARGIN:.0f} % of full dose, the twin's not",
                group,
                f"sample {100 * sample:+.1f} %, twin {100 * other:+.1f} %",
                bool(abs(sample) <= TEXTURE_MARGIN < abs(other)),
            )
        )
    return claims


def _materials(rows: Sequence[dict[str, Any]], model: str) -> list[Claim]:
    claims = []
    for group in dict.fromkeys(row["group"] for row in rows):
        biases = {r["material"]: r["bias_hu"] for r in rows if r["group"] == group and r["method"] == model}
        if biases:
            worst = max(biases, key=lambda name: abs(biases[name]))
            figure = f"worst: {worst} {biases[worst]:+.2f} HU, of {len(biases)} materials"
            claims.append(
                Claim(f"bias within {BIAS_HU:g} HU of 0 in every material", group, figure, abs(biases[worst]) < BIAS_HU)
            )
    return claims


def _detectability(rows: Sequence[dict[str, Any]], model: str) -> list[Claim]:
    claims = []
    for dose in dict.fromkeys(row["dose_fraction"] for row in rows):
        auc = {(r["method"], r["insert"]): r["auc"] for r in rows if r["dose_fraction"] == dose}
        inserts = [insert for method, insert in auc if method == model]
        if inserts:
            losses = {insert: auc[model, insert] - auc[LOW_DOSE, insert] for insert in inserts}
            worst = min(losses, key=lambda insert: losses[insert])
            claims.append(
                Claim(
                    f"AUC of every insert not below the plain images' by more than {AUC_MARGIN:g}",
                    f"dose {100 * dose:g} %",
                    f"worst: {worst} {losses[worst]:+.3f}; mean {np.mean(list(losses.values())):+.3f}",
                    losses[worst] >= -AUC_MARGIN,
                )
            )
    return claims
