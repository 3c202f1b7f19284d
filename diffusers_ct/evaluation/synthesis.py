"""Do synthesised phantoms show what was asked for? Requests, and a row of figures for a set of volumes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..conditions import ScanConditions
from ..data.volumes import REGIONS
from ..metrics import binomial_rate
from ..physics import BLOOD_HU, CONTRAST_PHASES, LESION_KINDS_OF_REGION
from ..volume import CTVolume
from .condition_judge import ConditionJudge, agreement, finding_targets
from .phantom_measurements import measure_aorta_hu

FINDING_PROBABILITY = 0.4


def draw_requests(count: int, seed: int, findings: Sequence[str]) -> list[ScanConditions]:
    """Balanced requests: each region and phase equally often, each of the region's findings with probability 0.4.

    Args:
        count: requests.
        seed: of the findings.
        findings: that the model knows; of each request every one is either present or absent.
    """
    rng = np.random.default_rng([seed, 7])
    asked = []
    for number in range(count):
        region = REGIONS[number % len(REGIONS)]
        phase = CONTRAST_PHASES[number // len(REGIONS) % len(CONTRAST_PHASES)]
        possible = [kind for kind in LESION_KINDS_OF_REGION[region] if kind in findings]
        present = tuple(kind for kind in possible if rng.random() < FINDING_PROBABILITY)
        absent = tuple(kind for kind in findings if kind not in present)
        asked.append(
            ScanConditions(body_part=region.upper(), contrast_phase=phase, findings=present, findings_absent=absent)
        )
    return asked


def judge_row(
    name: str,
    judge: ConditionJudge,
    volumes: Sequence[CTVolume],
    asked: Sequence[ScanConditions],
    findings: Sequence[str],
) -> dict[str, Any]:
    """What an independent judge and a measurement say of volumes.

    Args:
        name: of the row.
        judge: trained on other, real volumes.
        volumes: to be judged.
        asked: what each was asked to show.
        findings: that were asked for.

    Returns:
        The numbers of `agreement`; "possible_findings": share of the findings that a volume's region can have and that
        are seen exactly where asked for; both shares with exact 95 % intervals (`<name>_95`; findings of one volume are
        counted as independent); "aorta_hu <phase>": mean over the volumes of the measured HU of the aorta,
        "aorta_error_hu <phase>": their mean absolute deviation from the phase's nominal HU, and "aorta_missing <phase>":
        number of volumes that show no body to measure in, which are not in the two means.
    """
    judgement = judge.judge(volumes)
    row: dict[str, Any] = {"name": name, "volumes": len(volumes), **agreement(judgement, asked, findings)}
    right = sum(a == c.body_part for a, c in zip(judgement.body_part, asked))
    row["body_part_95"] = _interval(right, len(asked))
    target, seen = finding_targets(asked, findings), judgement.findings > 0.5
    # A nodule of the lung is absent from every abdomen: that is no merit.
    possible = np.array([[f in LESION_KINDS_OF_REGION[str(c.body_part).lower()] for f in findings] for c in asked])
    counted = np.isfinite(target) & possible
    hits, total = int((seen == (target > 0.5))[counted].sum()), int(counted.sum())
    row["possible_findings"] = hits / total if total else float("nan")
    row["possible_findings_95"] = _interval(hits, total)
    for phase in CONTRAST_PHASES:
        all_hu = np.array([_aorta_hu(v, str(c.body_part)) for v, c in zip(volumes, asked) if c.contrast_phase == phase])
        hu = all_hu[np.isfinite(all_hu)]
        row[f"aorta_hu {phase}"] = float(hu.mean()) if hu.size else float("nan")
        row[f"aorta_error_hu {phase}"] = float(np.abs(hu - BLOOD_HU[phase]).mean()) if hu.size else float("nan")
        row[f"aorta_missing {phase}"] = len(all_hu) - len(hu)
    return row


def rows_to_markdown(rows: Sequence[dict[str, Any]], findings: Sequence[str]) -> str:
    """Two tables: body part, findings and aorta; and each finding's sensitivity and specificity."""

    def share(row: dict[str, Any], key: str) -> str:
        low, high = row[f"{key}_95"]
        return f"{100 * row[key]:.1f} ({100 * low:.1f}-{100 * high:.1f})"

    head = ["volumes", "n", "body part [%]", "findings as asked [%]"]
    head += [f"aorta {phase} [HU]" for phase in CONTRAST_PHASES]
    first = [head, ["---"] * len(head)]
    first.append(["asked for (nominal)", "", "", "", *(f"{BLOOD_HU[phase]:.0f}" for phase in CONTRAST_PHASES)])
    for row in rows:
        aorta = [f"{row[f'aorta_hu {p}']:.0f} (mean error {row[f'aorta_error_hu {p}']:.0f})" for p in CONTRAST_PHASES]
        shares = [share(row, "body_part"), share(row, "possible_findings")]
        first.append([row["name"], str(row["volumes"]), *shares, *aorta])
    head = ["seen where asked / not seen where not asked [%]", *findings]
    second = [head, ["---"] * len(head)]
    for row in rows:
        cells = [f"{100 * row[f'{f} present']:.0f} / {100 * row[f'{f} absent']:.0f}" for f in findings]
        second.append([row["name"], *cells])
    return "\n\n".join("\n".join(f"| {' | '.join(line)} |" for line in lines) for lines in (first, second)) + "\n"


def _aorta_hu(volume: CTVolume, body_part: str) -> float:
    """NaN where a volume shows no body: a made-up one may fail that far, and the others are to be judged all the same."""
    try:
        return measure_aorta_hu(volume, body_part)
    except ValueError:
        return float("nan")


def _interval(hits: int, total: int) -> list[float]:
    if not total:
        return [0.0, 1.0]
    rate = binomial_rate(hits, total)
    return [rate.low, rate.high]
