"""What a restoration benchmark is to show, each claim with its limit, the figure, and whether it is reached.

The limits are those that theory sets for a posterior sampler and its mean (see `metrics.calibration`): one step is the
posterior mean, so it is no worse than a regression on the same backbone; the mean of N samples loses 10 log10(1 + 1/N) dB
to it; one sample against the mean of many loses up to 3.01 dB; intervals hold what they say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .benchmark_result import BenchmarkResult
from .studies import FULL_DOSE

TWIN_MARGIN_DB = 0.05
MEAN_MARGIN_DB = 0.6
TEXTURE_MARGIN = 0.10
TEXTURE_SD = (0.75, 1.25)  # of a sample's noise over that of the full dose: no noise at all has a mean frequency, too
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
        reached: whether the limit is kept by the whole 95 % interval; None where that reaches across the limit or there are
            too few patients for one.
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
            claims.append(Claim(text, group, figure, _within(low, high, -TWIN_MARGIN_DB, None)))
        if comparison["against"] == reference:
            text = f"PSNR above that of {reference}, the interval excludes 0"
            claims.append(Claim(text, group, figure, _within(low, high, 0.0, None)))
    return claims


def _within(low: float | None, high: float | None, least: float | None, most: float | None) -> bool | None:
    """Whether a value lies in a range for all that its interval tells; None where the interval reaches across an end."""
    if low is None or high is None:
        return None
    if (least is None or low >= least) and (most is None or high <= most):
        return True
    outside = (least is not None and high < least) or (most is not None and low > most)
    return False if outside else None


def _ends(low: float | None, high: float | None, digits: int) -> str:
    return "no interval of so few" if low is None or high is None else f"{low:.{digits}f} to {high:.{digits}f}"


def _calibration(row: dict[str, Any]) -> list[Claim]:
    group, n = row["group"], row["gap_samples"]
    at = row["nominal"].index(0.9)
    covered = row["coverage"][at]
    low, high = (None if ends is None else ends[at] for ends in (row["coverage_low"], row["coverage_high"]))
    gap, exact = row["gap_db"], row["gap_expected_db"]
    patients = f"{row['n_patients']} patients"
    claims = [
        Claim(
            f"90 % intervals cover {100 * COVERAGE_90[0]:.0f} to {100 * COVERAGE_90[1]:.0f} %",
            group,
            f"{100 * covered:.1f} % ({_ends(low, high, 3)}), {patients}",
            _within(low, high, *COVERAGE_90),
        ),
        Claim(
            f"gap of a sample to the mean of {n} within {GAP_MARGIN_DB:g} dB of an exact sampler's {exact:.2f} dB",
            group,
            f"{gap:.2f} dB ({_ends(row['gap_low_db'], row['gap_high_db'], 2)}), {patients}",
            _within(row["gap_low_db"], row["gap_high_db"], exact - GAP_MARGIN_DB, exact + GAP_MARGIN_DB),
        ),
    ]
    loss = row["mean_of_samples_minus_one_step_db"]
    if loss is not None:
        ends = row["loss_low_db"], row["loss_high_db"]
        text = f"mean of {n} samples within {MEAN_MARGIN_DB:g} dB of one step"
        figure = f"{loss:+.2f} dB ({_ends(*ends, 2)}), {patients}"
        claims.append(Claim(text, group, figure, _within(*ends, -MEAN_MARGIN_DB, MEAN_MARGIN_DB)))
    return claims


def _texture(rows: Sequence[dict[str, Any]], sampler: str, twin: str) -> list[Claim]:
    claims = []
    for group in dict.fromkeys(row["group"] for row in rows):
        of = {row["method"]: row for row in rows if row["group"] == group}
        if not {sampler, twin, FULL_DOSE} <= set(of):
            continue
        full = of[FULL_DOSE]
        sample, other = (
            of[name]["mean_frequency_per_mm"] / full["mean_frequency_per_mm"] - 1.0 for name in (sampler, twin)
        )
        level, other_level = (of[name]["sd_hu"] / full["sd_hu"] for name in (sampler, twin))
        alike = abs(sample) <= TEXTURE_MARGIN and TEXTURE_SD[0] <= level <= TEXTURE_SD[1]
        claims.append(
            Claim(
                f"mean frequency of a sample's noise within {100 * TEXTURE_MARGIN:.0f} % of full dose and its SD within "
                f"{100 * (TEXTURE_SD[1] - 1):.0f} %, the twin's frequency not",
                group,
                f"sample {100 * sample:+.1f} %, SD x {level:.2f}; twin {100 * other:+.1f} %, SD x {other_level:.2f}",
                bool(alike and abs(other) > TEXTURE_MARGIN),
            )
        )
    return claims


def _materials(rows: Sequence[dict[str, Any]], model: str) -> list[Claim]:
    claims = []
    for group in dict.fromkeys(row["group"] for row in rows):
        of = [row for row in rows if row["group"] == group and row["method"] == model]
        if of:
            worst = max(of, key=lambda row: abs(row["bias_hu"]))
            told = [_within(row["bias_low_hu"], row["bias_high_hu"], -BIAS_HU, BIAS_HU) for row in of]
            ends = _ends(worst["bias_low_hu"], worst["bias_high_hu"], 2)
            figure = f"worst: {worst['material']} {worst['bias_hu']:+.2f} HU ({ends}), of {len(of)} materials"
            claims.append(Claim(f"bias within {BIAS_HU:g} HU of 0 in every material", group, figure, _all(told)))
    return claims


def _detectability(rows: Sequence[dict[str, Any]], model: str) -> list[Claim]:
    claims = []
    for dose in dict.fromkeys(row["dose_fraction"] for row in rows):
        of = [row for row in rows if row["dose_fraction"] == dose and row["method"] == model]
        if of:
            worst = min(of, key=lambda row: row["minus_low_dose"])
            told = [_within(row["minus_low"], row["minus_high"], -AUC_MARGIN, None) for row in of]
            ends = _ends(worst["minus_low"], worst["minus_high"], 3)
            claims.append(
                Claim(
                    f"AUC of every insert not below the plain images' by more than {AUC_MARGIN:g}",
                    f"dose {100 * dose:g} %",
                    f"worst: {worst['insert']} {worst['minus_low_dose']:+.3f} ({ends})",
                    _all(told),
                )
            )
    return claims


def _all(told: Sequence[bool | None]) -> bool | None:
    """No if one is no; yes if all are yes; else it cannot be told."""
    return False if False in told else True if all(told) else None
