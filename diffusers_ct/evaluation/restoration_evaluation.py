"""A whole evaluation of restoration models in one folder: table, comparisons, calibration, worst scans, report.

It goes on where a killed run stopped. The folder keeps what was asked for (`evaluation.json`), and another question is
refused there, so that no table mixes two.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..hounsfield import WINDOWS_HU
from ..metrics import body_mask
from ..volume import CTVolume
from .baselines import BASELINES, strength_at, tune_by_dose
from .benchmark import Case, Method, run_benchmark
from .benchmark_result import COLUMNS, COMPARED, BenchmarkResult
from .figures import overview, to_png
from .pipeline_restorer import PipelineRestorer
from .report import write_report
from .studies import SampledCase, calibration_study, dose_group, materials_study

Study = Callable[[], list[dict[str, Any]]]
REFERENCE_NAMES = {"noise_free": "noise-free truth", "normal_dose": "normal dose", "same_scan": "full dose"}
WORST_SHOWN = 3


@dataclass(frozen=True)
class EvaluationSettings:
    """What an evaluation is made of.

    Attributes:
        split: what the judged scans are, in words: the report says it.
        samples: posterior samples of each scan whose calibration is measured; 0 leaves calibration out.
        sampled_scans: scans of each dose that samples are drawn of, spread over the patients.
        sampled_doses: of these alone; None takes all.
        sampled_slices: middle slices of each of these scans; None takes all.
        one_sample: whether one sample of every scan is a row of the table: as dear as a calibration sample of each.
        classical: whether the classical baselines are in the table.
        seed: of everything that is drawn.
    """

    split: str
    samples: int
    sampled_scans: int
    classical: bool
    seed: int
    sampled_doses: tuple[float, ...] | None = None
    sampled_slices: int | None = None
    one_sample: bool = True

    def __post_init__(self) -> None:
        if self.samples == 1 or self.samples < 0 or self.sampled_scans < 1:
            raise ValueError(
                f"Calibration needs 2 samples or more, or 0 to leave it out, of 1 scan or more; got {self.samples} of "
                f"{self.sampled_scans}."
            )


def evaluate_restoration(
    output: Path,
    cases: Sequence[Case],
    models: Mapping[str, PipelineRestorer],
    *,
    training: Sequence[Case],
    learned: Mapping[str, Callable[[CTVolume], np.ndarray]],
    weights: Mapping[str, str | None],
    settings: EvaluationSettings,
    title: str,
    facts: Mapping[str, Any],
    studies: Mapping[str, Study] | None = None,
    pictures: Sequence[tuple[str, str, bytes]] = (),
    progress: Callable[[Iterable[Case]], Iterable[Case]] = iter,
    say: Callable[[str], None] = lambda text: None,
) -> BenchmarkResult:
    """Judges models beside baselines and writes `benchmark.json`, `report.html` and the worst scans' pictures (`worst`).

    Args:
        output: folder, new or of the same evaluation.
        cases: held-out scans.
        models: name -> model; the first is the subject of the report. In tables a model is "<name>, 1 step", and with samples "<name>, one sample"
            too.
        training: scans of training patients, on which the classical baselines are tuned, dose by dose; none are needed
            without these.
        learned: name -> further methods, trained on the same data.
        weights: fingerprint of every model and learned method: with others under the same name it is another evaluation.
        settings: what to do.
        title: of the report.
        facts: to keep: data, models and their fingerprints, command. They decide, too, whether a folder is of the same
            evaluation.
        studies: further measurements by name, each made once; materials and calibration are made without asking.
        pictures: further pictures of the report.
        progress: wraps the cases.
        say: told what is being done.

    Raises:
        ValueError: for a folder of another evaluation, no case or model, a method whose weights are not told, or no training
            scan to tune on.
    """
    if not models:
        raise ValueError("There is no model to evaluate.")
    if settings.classical and not training:
        raise ValueError("Classical baselines are tuned on training scans, and there are none: leave them out.")
    if unnamed := sorted({*models, *learned} - set(weights)):
        raise ValueError(f"`weights` does not say which weights these have: {', '.join(unnamed)}.")
    asked = {
        "weights": dict(weights),
        "settings": asdict(settings),
        "facts": dict(facts),
        "methods": [*models, *learned],
        "cases": _digest(cases),
        "tuned_on": _digest(training),
    }
    output.mkdir(parents=True, exist_ok=True)
    _claim(output, asked)

    # 1. the table
    methods: dict[str, Method] = {}
    strengths: dict[float, dict[str, float]] = {}
    if settings.classical:
        say("tuning the classical baselines on training patients")
        tuned = _once(output / "parts" / "strengths.json", lambda: _tuned(training))
        strengths = {float(dose): of_dose for dose, of_dose in tuned.items()}
        methods |= classical_methods(strengths)
    methods |= {name: lambda case, f=f: f(case.low) for name, f in learned.items()}  # type: ignore[misc]
    methods |= {one_step(name): lambda case, m=m: m.one_step(case.low) for name, m in models.items()}  # type: ignore[misc]
    if settings.samples and settings.one_sample:  # where a sample lies between distortion and perception
        methods |= {one_sample(name): lambda case, m=m: m.one_sample(case.low) for name, m in models.items()}  # type: ignore[misc]
    say(f"{len(methods)} methods on {len(cases)} scans")
    told = {
        **asdict(settings),
        "weights": json.dumps(dict(weights)),
        "baseline_strengths": json.dumps(strengths),
        **facts,
    }
    told["reference"] = ", ".join(sorted({REFERENCE_NAMES[case.target] for case in cases}))
    result = run_benchmark(cases, methods, facts=told, progress=progress, journal=output / "parts" / "records.jsonl")
    subject = one_step(next(iter(models)))
    result.compare(subject)

    # 2. studies
    if settings.samples:
        say(f"{settings.samples} samples each of up to {settings.sampled_scans} scans a dose")
        rows = [
            row
            for number, (name, model) in enumerate(models.items())
            for row in _once(
                output / "parts" / f"calibration-{number}.json",
                lambda name=name, model=model: _calibration(name, model, cases, settings),  # type: ignore[misc]
            )
        ]
        result.studies["calibration"] = rows
    if all(case.target == "noise_free" for case in cases):
        estimates = {one_step(name): model.one_step for name, model in models.items()}
        of_materials: dict[str, Study] = {"materials": lambda: materials_study(estimates, cases)}
    else:
        of_materials = {}
    for name, study in {**of_materials, **(studies or {})}.items():
        say(f"study: {name}")
        result.studies[name] = _once(output / "parts" / f"study-{name}.json", study)
    result.save(output / "benchmark.json")

    # 3. report
    say("report")
    worst = worst_pictures(result, cases, subject, methods[subject])
    _write_pictures(output / "worst", worst)
    summary = [verdict(result, group, subject) for group in result.groups]
    write_report(
        output / "report.html", result, title=title, summary=summary, pictures=pictures, subject=subject, worst=worst
    )
    return result


def one_step(model: str) -> str:
    """Name in tables of a model's estimate."""
    return f"{model}, 1 step"


def one_sample(model: str) -> str:
    """Name in tables of one draw from a model's posterior."""
    return f"{model}, one sample"


def verdict(result: BenchmarkResult, group: str, subject: str) -> str:
    """One sentence on a method in its table; better is what the paired comparisons show at a Holm p below 0.05."""
    shown, ahead, behind = [], [], []
    for column in COMPARED:
        of = [c for c in result.comparisons if c["group"] == group and c["column"] == column and c["method"] == subject]
        sign = 1.0 if COLUMNS[column][1] else -1.0
        if not result.beats(subject, group, column):
            behind.append(COLUMNS[column][0])
        elif of and all(sign * c["difference"] > 0 and c["p_holm"] < 0.05 for c in of):
            shown.append(COLUMNS[column][0])
        else:
            ahead.append(COLUMNS[column][0])
    parts = []
    if shown:
        parts.append(f"is better than every other method in {', '.join(shown)}")
    if ahead:
        parts.append(
            f"is ahead of every other method in the mean of {', '.join(ahead)}, which these patients do not prove"
        )
    if behind:
        parts.append(f"is NOT ahead of every other method in {', '.join(behind)}")
    return f"{group}: {subject} {'; it '.join(parts)}."


def worst_pictures(
    result: BenchmarkResult, cases: Sequence[Case], subject: str, method: Method
) -> list[tuple[str, str, bytes]]:
    """(title, caption, PNG) of the scans that gained least, at the slice of the largest error in the body."""
    records = [r for r in result.records if r["method"] == subject]
    least = sorted(records, key=lambda r: r["gain_body_db"])[:WORST_SHOWN]
    shown = []
    for record in least:
        case = next(c for c in cases if c.name == record["scan"] and _is_of(c, record))
        restored = method(case)
        error = np.where(body_mask(case.full_hu), restored - case.full_hu, 0.0)
        k = int(np.square(error).mean(axis=(1, 2)).argmax())
        figure = overview(
            case.low_hu[k],
            restored[k],
            case.full_hu[k],
            None,
            low_title=f"{100 * case.dose_fraction:g} % dose",
            full_title=REFERENCE_NAMES[case.target],
            window="soft_tissue",
            difference=True,
        )
        lower, upper = WINDOWS_HU["soft_tissue"]
        text = (
            f"Gain of the scan {record['gain_body_db']:.2f} dB, RMSE {record['rmse_body_hu']:.1f} HU, in the body; shown is slice "
            f"{k + 1} of {len(error)}, that of the largest error, at {lower:.0f} to {upper:.0f} HU."
        )
        shown.append((f"{record['group']}, scan {case.name}", text, to_png(figure, dpi=80)))
    return shown


def _write_pictures(folder: Path, pictures: Sequence[tuple[str, str, bytes]]) -> None:
    """PNG files and pictures.json with their captions, for a model card."""
    folder.mkdir(exist_ok=True)
    listed = []
    for number, (title, caption, png) in enumerate(pictures):
        name = f"{number + 1:02d}.png"
        (folder / name).write_bytes(png)
        listed.append({"file": name, "title": title, "caption": caption})
    _write(folder / "pictures.json", json.dumps(listed, indent=2) + "\n")


def _is_of(case: Case, record: Mapping[str, Any]) -> bool:
    return record["patient"] == case.patient_key and record["group"] == dose_group(case.dose_fraction)


def _calibration(
    name: str, model: PipelineRestorer, cases: Sequence[Case], settings: EvaluationSettings
) -> list[dict[str, Any]]:
    """The calibration study of scans that are spread over each dose's patients."""
    chosen: list[Case] = []
    for dose in dict.fromkeys(case.dose_fraction for case in cases):
        if settings.sampled_doses is not None and not np.isclose(dose, settings.sampled_doses, rtol=1e-3).any():
            continue
        of_dose = [case for case in cases if case.dose_fraction == dose]
        picks = np.linspace(0, len(of_dose) - 1, min(settings.sampled_scans, len(of_dose))).round().astype(int)
        chosen += [_middle(of_dose[k], settings.sampled_slices) for k in picks]
    sampled = (
        SampledCase(
            group=dose_group(case.dose_fraction),
            method=f"{name}, {settings.samples} samples",
            patient_key=case.patient_key,
            samples_hu=model.samples(case.low, settings.samples),
            reference_hu=case.full_hu,
            region=body_mask(case.full_hu),
            one_step_hu=model.one_step(case.low),
        )
        for case in chosen
    )
    # Against a noisy reference the samples must be of that same noise: the row says what they were held against.
    reference = ", ".join(sorted({REFERENCE_NAMES[case.target] for case in chosen}))
    return [{**row, "reference": reference} for row in calibration_study(sampled, seed=settings.seed)]


def _middle(case: Case, slices: int | None) -> Case:
    depth = len(case.full_hu)
    if slices is None or slices >= depth:
        return case
    first = (depth - slices) // 2
    low = case.low.crop((first, 0, 0), (slices, *case.low.shape[1:]))
    return replace(case, low=low, full_hu=case.full_hu[first : first + slices])


def classical_methods(strengths: Mapping[float, Mapping[str, float]]) -> dict[str, Method]:
    """The classical baselines as methods, each with the strength of the case's dose (`tune_by_dose`)."""
    return {
        b.name: lambda case, b=b: b(case.low_hu, strength_at(strengths, b.name, case.dose_fraction))  # type: ignore[misc]
        for b in BASELINES
    }


def _tuned(training: Sequence[Case]) -> dict[float, dict[str, float]]:
    return tune_by_dose((c.dose_fraction, c.low_hu, c.full_hu, body_mask(c.full_hu)) for c in training)


def _claim(output: Path, asked: Mapping[str, Any]) -> None:
    """Takes the folder for this evaluation, or goes on with it."""
    path, text = output / "evaluation.json", json.dumps(asked, indent=2, sort_keys=True) + "\n"
    if path.exists():
        if path.read_text() != text:
            raise ValueError(
                f"{output} holds another evaluation (other data, models, methods or settings): give another folder, "
                "or delete it."
            )
        return
    if any(output.iterdir()):
        raise ValueError(f"{output} is not empty and holds no evaluation: give a new folder.")
    (output / "parts").mkdir()
    _write(path, text)


def _once(path: Path, make: Callable[[], Any]) -> Any:
    """What was made before, or is made and kept now, as JSON."""
    if path.exists():
        return json.loads(path.read_text())
    made = make()
    _write(path, json.dumps(made))
    return json.loads(path.read_text())


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)


def _digest(cases: Sequence[Case]) -> str:
    digest = hashlib.sha256()
    for case in cases:
        digest.update(f"{case.name} {case.patient_key} {case.dose_fraction} {case.target}".encode())
        for hu in (case.low_hu, case.full_hu):
            digest.update(np.ascontiguousarray(hu, dtype="<f4").tobytes())
    return digest.hexdigest()
