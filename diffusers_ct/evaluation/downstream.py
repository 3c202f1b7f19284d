"""The downstream task: what a low dose costs a frozen classifier of findings, and how much of it a restoration brings back.

A classifier that was fixed beforehand judges the same regions of the same held-out patients on full-dose, low-dose and
restored images. Each has an area under the ROC curve (AUC); a restoration recovers the fraction

    (AUC restored - AUC low dose) / (AUC full dose - AUC low dose)

of what the low dose lost. Where it lost nothing that these patients show, there is nothing to recover and no fraction.

The classifier is any `scores(volume: CTVolume) -> float`, larger where the finding is: a network of one's own, as a
function or as a file (`load_scores`), or a `ConditionJudge` that was trained on full-dose images (`judge_scores`). It must
not have seen these patients, nor any restored image: then the table would judge classifier and restoration together.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..hounsfield import hu_to_companded
from ..metrics import Interval, auc, draw_patients, percentile_interval, resampled_auc
from ..metrics.roc import difference_of_intervals, newcombe_interval
from ..models import NoiseAwareClassifier
from ..volume import CTVolume
from .benchmark import LOW_DOSE, Case, Method
from .condition_judge import ConditionJudge

Scores = Callable[[CTVolume], float]
FULL_DOSE = "full dose"
_TAIL = 0.025  # of the 95 % intervals, at either end


@dataclass(frozen=True)
class Region:
    """A part of a scan that the classifier judges, and the truth.

    Attributes:
        present: whether it holds the finding.
        start: first voxel (z, y, x).
        size: voxels (z, y, x).
    """

    present: bool
    start: tuple[int, int, int]
    size: tuple[int, int, int]


@dataclass(frozen=True)
class Reading:
    """What the classifier sees in one kind of image.

    All intervals are 95 % bootstraps over the patients, the same resamples for all kinds of image. Not exact in small
    samples. At an AUC of 0 or 1 all resamples agree, which is no certainty: there the AUC has Newcombe's score interval, of
    patients with and without the finding, its difference the interval that both AUCs' own make, as if they were of different
    patients (too wide), and the fraction an interval without ends.

    Attributes:
        images: "full dose", "low dose" or the name of the method.
        auc: area under the ROC curve.
        minus_low: AUC less that of the low dose; None for the low dose itself.
        recovered: fraction of the low dose's loss that the method brings back; None for full and low dose, and where the
            loss is not clearly above zero (its interval includes 0). Infinite ends where nothing bounds it.
    """

    images: str
    auc: Interval
    minus_low: Interval | None
    recovered: Interval | None


def whole_scan(case: Case, finding: str) -> Region:
    """All of a scan, with the truth that its conditions state.

    Raises:
        ValueError: if they do not say whether the finding is there.
    """
    conditions = case.low.conditions
    if (finding in conditions.findings) == (finding in conditions.findings_absent):
        raise ValueError(f"The conditions of scan {case.name} do not say whether it shows {finding}.")
    return Region(finding in conditions.findings, (0, 0, 0), case.low.shape)


def run_downstream(
    cases: Sequence[Case],
    regions: Sequence[Sequence[Region]],
    methods: Mapping[str, Method],
    scores: Scores,
    *,
    task: str,
    resamples: int,
    seed: int,
    group_of: Callable[[Case], str] | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[dict[str, Any]]:
    """Judges full-dose, low-dose and restored images of the same scans.

    Methods restore whole scans; regions are cut from the result. What the classifier gets says nothing of findings or
    dose: its conditions leave them out.

    Args:
        cases: held-out scans; `full_hu` is the full-dose image, with its noise.
        regions: of each case; a patient may have several, of both kinds.
        methods: name -> restoration.
        scores: the frozen classifier.
        task: its name in the rows, such as "solid nodule in 48 mm of lung".
        resamples: bootstrap resamples of the patients.
        seed: of the resampling.
        group_of: table of a case; by default its dose.
        progress: wraps the numbers of the cases, for a progress bar.

    Returns:
        A row for each group and kind of image: "group", "task", "images", "auc", "low", "high", "minus_low",
        "minus_low_low", "minus_low_high", "recovered_fraction", "recovered_low", "recovered_high" (None where there is
        no such number or end), "n_patients", "n_present" and "n_absent" (regions).

    Raises:
        ValueError: for cases whose reference is the noise-free truth, which no full dose reaches; for regions that are
            not of these cases or leave them, reserved names, a score that is not finite, or a group without regions of
            both kinds.
    """
    if any(case.target == "noise_free" for case in cases):
        raise ValueError("`full_hu` is the noise-free truth of a case: give its full-dose image, noise and all.")
    if len(regions) != len(cases) or not cases:
        raise ValueError(f"{len(cases)} cases need as many lists of regions, one at least; got {len(regions)}.")
    if reserved := {LOW_DOSE, FULL_DOSE} & set(methods):
        raise ValueError(f"These names are rows of the table already: {sorted(reserved)}.")
    group_of = group_of or (lambda case: f"dose {100 * case.dose_fraction:g} %")
    kinds: dict[str, Method] = {FULL_DOSE: lambda case: case.full_hu, LOW_DOSE: lambda case: case.low_hu, **methods}
    judged: dict[str, _Judged] = {}
    for number in progress(range(len(cases))):
        case, of_case = cases[number], regions[number]
        group = judged.setdefault(group_of(case), _Judged([], [], {name: [] for name in kinds}))
        group.present += [region.present for region in of_case]
        group.patients += [case.patient_key] * len(of_case)
        for name, method in kinds.items() if of_case else ():
            scan = _blinded(case.low, method(case))
            group.ratings[name] += [_score(scores, scan, region, f"{case.name}, {name}") for region in of_case]
    rows = []
    for name, group in judged.items():
        counts = {
            "n_patients": len(set(group.patients)),
            "n_present": sum(group.present),
            "n_absent": len(group.present) - sum(group.present),
        }
        ratings = {images: np.array(values) for images, values in group.ratings.items()}
        for reading in readings(ratings, np.array(group.present, bool), group.patients, resamples=resamples, seed=seed):
            rows.append({"group": name, "task": task, **_row(reading), **counts})
    return rows


def readings(
    ratings: Mapping[str, np.ndarray], present: np.ndarray, patients: Sequence[str], *, resamples: int, seed: int
) -> list[Reading]:
    """The statistics of `run_downstream`, from the classifier's scores.

    Args:
        ratings: by kind of image, "full dose" and "low dose" among them: (regions,) scores of the same regions.
        present: (regions,) bool, the truth.
        patients: of each region.
        resamples: bootstrap resamples of the patients.
        seed: of the resampling.

    Returns:
        One for each kind of image, in order.

    Raises:
        ValueError: without full or low dose, and as `auc` and `draw_patients`.
    """
    if missing := {FULL_DOSE, LOW_DOSE} - set(ratings):
        raise ValueError(f"Ratings of the {' and the '.join(sorted(missing))} are needed.")
    counts = draw_patients(patients, present, resamples=resamples, seed=seed)
    area = {name: float(auc(scores[present], scores[~present])) for name, scores in ratings.items()}
    drawn = {
        name: resampled_auc(scores[present], scores[~present], counts[:, present], counts[:, ~present])
        for name, scores in ratings.items()
    }
    of_patient = np.asarray(patients)
    patients_with, patients_without = (len(set(of_patient[kind])) for kind in (present, ~present))

    def area_interval(name: str) -> Interval:
        if area[name] in (0.0, 1.0):
            return newcombe_interval(area[name], patients_with, patients_without, level=1.0 - 2 * _TAIL)
        return Interval(area[name], *percentile_interval(drawn[name]))

    def gained(name: str) -> Interval:
        if {area[name], area[LOW_DOSE]} & {0.0, 1.0}:
            return difference_of_intervals(area_interval(name), area_interval(LOW_DOSE))
        return Interval(area[name] - area[LOW_DOSE], *percentile_interval(drawn[name] - drawn[LOW_DOSE]))

    loss, drawn_loss = gained(FULL_DOSE), drawn[FULL_DOSE] - drawn[LOW_DOSE]
    lost = loss.low > 0.0 and np.quantile(drawn_loss, _TAIL, method="lower") > 0.0
    found = []
    for name in ratings:
        gain = gained(name)
        recovered = None
        if lost and name not in (FULL_DOSE, LOW_DOSE):
            bounded = not {area[name], area[FULL_DOSE], area[LOW_DOSE]} & {0.0, 1.0}
            ends = _ratio_interval(drawn[name] - drawn[LOW_DOSE], drawn_loss) if bounded else (-np.inf, np.inf)
            recovered = Interval(gain.estimate / loss.estimate, *ends)
        found.append(Reading(name, area_interval(name), None if name == LOW_DOSE else gain, recovered))
    return found


def judge_scores(judge: ConditionJudge, finding: str) -> Scores:
    """The logit that a judge gives a finding.

    Raises:
        ValueError: if the judge does not know the finding.
    """
    if finding not in judge.findings:
        raise ValueError(f"The judge does not know {finding}: it knows {', '.join(judge.findings) or 'none'}.")
    column = judge.findings.index(finding)
    judge.eval()

    @torch.no_grad()
    def scores(volume: CTVolume) -> float:
        return judge(torch.from_numpy(volume.hu)[None, None])[1][0, column].item()

    return scores


def load_scores(path: str | Path, *, finding: str) -> Scores:
    """A frozen classifier from a file or folder.

    * `.pt2`: a program of `torch.export` that takes float32 (1, 1, depth, height, width) in HU and returns one number;
      the finding is its own matter. It runs no Python of its author's.
    * `.safetensors`: a `ConditionJudge`, as `train_judge` keeps it.
    * a folder: a `NoiseAwareClassifier` of images, which is asked for the finding at its first timestep.

    Args:
        path: of the classifier.
        finding: that it is asked for.

    Raises:
        ValueError: for another kind of file, or a classifier that does not know the finding.
    """
    path = Path(path)
    if path.suffix == ".pt2":
        program = torch.export.load(str(path)).module()
        return lambda volume: _one_number(program(torch.from_numpy(volume.hu)[None, None]))
    if path.suffix == ".safetensors":
        return judge_scores(ConditionJudge.load(path), finding)
    if not path.is_dir():
        raise ValueError(f"{path.name} is no classifier: give a .pt2, a .safetensors or a folder.")
    return _noise_aware_scores(path, finding)


@dataclass
class _Judged:
    """Regions of one group: truth, patients, and ratings by kind of image."""

    present: list[bool]
    patients: list[str]
    ratings: dict[str, list[float]]


def _blinded(scan: CTVolume, hu: np.ndarray) -> CTVolume:
    """The scan with other voxels; what its conditions say of the truth and of the dose is taken out."""
    conditions = replace(
        scan.conditions, findings=(), findings_absent=(), text=None, dose_fraction=None, tube_current_mas=None
    )
    return replace(scan.with_hu(hu), conditions=conditions, source=None)


def _score(scores: Scores, scan: CTVolume, region: Region, where: str) -> float:
    value = float(scores(scan.crop(region.start, region.size)))
    if not np.isfinite(value):
        raise ValueError(f"The classifier's score of {where} is {value}.")
    return value


def _ratio_interval(numerator: np.ndarray, denominator: np.ndarray) -> tuple[float, float]:
    """95 % interval of a ratio from bootstrap values, most denominators being positive.

    A resample whose denominator is not positive puts no bound on the ratio on the side of its numerator. There are fewer
    of them than lie beyond either end, so the ends are finite.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(denominator > 0, numerator / denominator, np.where(numerator < 0, -np.inf, np.inf))
    # No interpolation: next to an infinite value it would not be finite.
    return (
        float(np.quantile(ratio, _TAIL, method="lower")),
        float(np.quantile(ratio, 1.0 - _TAIL, method="higher")),
    )


def _row(reading: Reading) -> dict[str, Any]:
    row: dict[str, Any] = {"images": reading.images, "auc": reading.auc.estimate}
    row |= {"low": reading.auc.low, "high": reading.auc.high}
    for name, key, interval in (
        ("minus_low", "minus_low", reading.minus_low),
        ("recovered_fraction", "recovered", reading.recovered),
    ):
        row[name] = None if interval is None else interval.estimate
        row[f"{key}_low"] = interval.low if interval is not None and np.isfinite(interval.low) else None
        row[f"{key}_high"] = interval.high if interval is not None and np.isfinite(interval.high) else None
    return row


def _one_number(output: torch.Tensor) -> float:
    if not isinstance(output, torch.Tensor) or output.numel() != 1:
        raise ValueError("A classifier must return a tensor of one number for a volume.")
    return output.item()


def _noise_aware_scores(folder: Path, finding: str) -> Scores:
    model = NoiseAwareClassifier.from_pretrained(folder).eval()
    known = list(model.config.findings)
    if finding not in known or model.config.target != "image":
        raise ValueError(f"{folder.name} does not judge {finding} in images: it judges {', '.join(known) or 'none'}.")
    timestep = torch.zeros(1, dtype=torch.long)

    @torch.no_grad()
    def scores(volume: CTVolume) -> float:
        sample = hu_to_companded(torch.from_numpy(volume.hu)[None, None])
        return model(sample, timestep).findings[0, known.index(finding)].item()

    return scores
