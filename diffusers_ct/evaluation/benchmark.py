"""Methods x cases -> one table: every method on every scan, by patient, with ceilings."""

import hashlib
import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from datasets import Dataset

from .. import __version__
from ..conditions import ScanConditions
from ..metrics import CONVENTIONS, bias, body_mask, mae, psnr_pooled, psnr_slice_mean, rmse, ssim
from ..volume import CTVolume
from .benchmark_result import CEILING, COLUMNS, LOW_DOSE, PERFECT, BenchmarkResult
from .paired_statistics import mean_interval
from .studies.methods import dose_group


@dataclass(frozen=True)
class Case:
    """One scan to restore.

    Attributes:
        name: of the scan, without identity.
        patient_key: the unit of statistics.
        low: the low-dose scan.
        full_hu: the reference, (depth, height, width).
        dose_fraction: of the low dose.
        target: "noise_free", "normal_dose" or "same_scan", as in the dataset's rows.
    """

    name: str
    patient_key: str
    low: CTVolume
    full_hu: np.ndarray
    dose_fraction: float
    target: str

    @property
    def low_hu(self) -> np.ndarray:
        return self.low.hu


Method = Callable[[Case], np.ndarray]


def cases_from_rows(dataset: Dataset) -> list[Case]:
    """Rows of `load_paired_ct` as cases, in memory."""
    cases = []
    for row in dataset.with_format("numpy", dtype=np.float32):
        z, y, x = (float(s) for s in row["spacing_mm"])
        affine = np.asarray(row["affine_lps"], dtype=np.float64).reshape(4, 4)
        low = CTVolume(row["low"], (z, y, x), affine, ScanConditions(**json.loads(row["conditions"])))
        name, patient, target = str(row["scan_key"]), str(row["patient_key"]), str(row["target"])
        cases.append(Case(name, patient, low, row["full"], float(row["dose_fraction"]), target))
    return cases


def spread_over_doses(dataset: Dataset, count: int) -> Dataset:
    """That many rows of each dose, or all there are, spread over the dataset and in its order: to tune baselines on."""
    doses = np.array(dataset["dose_fraction"])
    of_doses = [np.flatnonzero(doses == dose) for dose in np.unique(doses)]
    picks = [of[np.unique(np.linspace(0, len(of) - 1, count).round().astype(int))] for of in of_doses]
    return dataset.select(np.sort(np.concatenate(picks)))


def ceiling_gain_db(dose_fraction: float) -> float:
    """Largest gain over the low dose against a reference of the same scan, whose noise the low dose shares.

    With ND = x + n, LD = x + n + m and var m = var n (1/f - 1), the best estimate that even knows x is
    x + f (LD - x), of error f times that of LD: 10 log10(1/f) dB.
    """
    return 10.0 * float(np.log10(1.0 / dose_fraction))


def perfect_gain_db(dose_fraction: float) -> float:
    """Gain that the noise-free image itself scores against a noisy reference of the same scan: 10 log10(1/f - 1)."""
    return 10.0 * float(np.log10(1.0 / dose_fraction - 1.0))


def run_benchmark(
    cases: Sequence[Case],
    methods: Mapping[str, Method],
    *,
    group_of: Callable[[Case], str] | None = None,
    facts: Mapping[str, Any] | None = None,
    progress: Callable[[Iterable[Case]], Iterable[Case]] = iter,
    journal: Path | None = None,
) -> BenchmarkResult:
    """Runs every method on every case.

    Args:
        cases: held-out scans.
        methods: name -> method; the low dose itself is always the first row.
        group_of: table of a case; by default its dose.
        facts: to keep with the result: data, split, command, seeds.
        progress: wraps the cases, for a progress bar.
        journal: JSON lines, one a method and scan, written as they are done; those that are there already, for the same
            images, are not done again. It does not know a method but by its name: use one journal for one set of methods.

    Raises:
        ValueError: if there is no case, two cases have one name and dose, a method takes a reserved name, or what a
            method returns has another shape or is not finite.
    """
    if not cases:
        raise ValueError("There is no case to evaluate.")
    if reserved := {LOW_DOSE, PERFECT, CEILING} & set(methods):
        raise ValueError(f"These names are rows of the table already: {sorted(reserved)}.")
    group_of = group_of or (lambda case: dose_group(case.dose_fraction))
    if len({(group_of(case), case.name) for case in cases}) < len(cases):
        raise ValueError("Two cases of one table have one name: give each scan its own.")
    made_with = environment()
    revision = f"{made_with['git_revision']}{'+' if made_with['git_changed'] else ''}"
    done, revisions = _read_journal(journal)
    records = []
    all_methods: dict[str, Method] = {LOW_DOSE: lambda case: case.low_hu, **methods}
    data = hashlib.sha256()
    for case in progress(cases):
        images = _sha256(case.low_hu, case.full_hu)
        data.update(images.encode())
        missing = [name for name in all_methods if (name, group_of(case), case.name, images) not in done]
        mask = body_mask(case.full_hu) if missing else None
        for name, method in all_methods.items():
            key = (name, group_of(case), case.name, images)
            if mask is not None and key not in done:
                done[key] = _record(name, method, case, mask)
                _write_journal(journal, key, done[key], revision)
            of_case = {"method": name, "group": group_of(case), "patient": case.patient_key, "scan": case.name}
            records.append({**of_case, "n_slices": len(case.low_hu), **done[key]})
    # A run that went on may hold values that an earlier revision measured.
    told = {**made_with, "data_sha256": data.hexdigest(), "revisions": ", ".join(sorted({*revisions, revision}))}
    result = BenchmarkResult([], {**told, **(facts or {})}, records)
    for group in dict.fromkeys(record["group"] for record in records):
        for name in all_methods:
            result.rows.append({"method": name, "group": group, **_by_patient(result, group, name)})
        result.rows += _ceiling_rows(group, [case for case in cases if group_of(case) == group])
    return result


def _record(name: str, method: Method, case: Case, mask: np.ndarray) -> dict[str, Any]:
    """One method's values of one case."""
    started = time.perf_counter()
    restored = np.asarray(method(case))
    seconds = time.perf_counter() - started
    if restored.shape != case.full_hu.shape:
        raise ValueError(f"{name!r} returned shape {restored.shape} for a scan of shape {case.full_hu.shape}.")
    if not np.isfinite(restored).all():
        raise ValueError(f"{name!r} returned values that are not finite.")
    values = _measure(restored, case, mask, _mse(case.low_hu, case.full_hu, mask))
    return {**values, "seconds_per_slice": None if name == LOW_DOSE else seconds / len(case.low_hu)}


def _read_journal(path: Path | None) -> tuple[dict[tuple[str, ...], dict[str, Any]], set[str]]:
    """Values by key, and the revisions that measured them ("+": with changes)."""
    if path is None or not path.exists():
        return {}, set()
    done, revisions = {}, set()
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # the line that a killed run did not finish
            continue
        done[tuple(entry["key"])] = entry["values"]
        revisions.add(entry["revision"])
    return done, revisions


def _write_journal(path: Path | None, key: tuple[str, ...], values: Mapping[str, Any], revision: str) -> None:
    if path is not None:
        with path.open("a") as file:
            file.write(json.dumps({"key": key, "revision": revision, "values": values}) + "\n")


def _sha256(*volumes: np.ndarray) -> str:
    digest = hashlib.sha256()
    for volume in volumes:
        digest.update(np.ascontiguousarray(volume, dtype="<f4").tobytes())
    return digest.hexdigest()


def _mse(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    return float(np.square(a[mask] - b[mask], dtype=np.float64).mean())


def _measure(restored: np.ndarray, case: Case, mask: np.ndarray, low_mse: float) -> dict[str, Any]:
    full = case.full_hu
    mse = _mse(restored, full, mask)
    gain = 10.0 * float(np.log10(low_mse / mse)) if mse > 0.0 else float("inf")
    # Share of the gain that is possible at all; a noise-free reference sets no such limit.
    limited = case.target == "same_scan" and case.dose_fraction < 1.0
    share = gain / ceiling_gain_db(case.dose_fraction) if limited else None
    return {
        "psnr_full": psnr_pooled(restored, full, convention="full"),
        "psnr_full_slice_mean": psnr_slice_mean(restored, full, convention="full"),
        "psnr_soft": psnr_pooled(restored, full, convention="soft"),
        "ssim_full": ssim(restored, full, convention="full"),
        "ssim_soft": ssim(restored, full, convention="soft"),
        "rmse_body_hu": rmse(restored, full, convention="full", mask=mask),
        "mae_body_hu": mae(restored, full, convention="full", mask=mask),
        "bias_body_hu": bias(restored, full, convention="full", mask=mask),
        "gain_body_db": gain,
        "ceiling_share": share,
    }


def _by_patient(result: BenchmarkResult, group: str, method: str) -> dict[str, Any]:
    """Mean over each patient's scans, then over patients, with Student's interval."""
    patients = result.patient_means(group, method).values()
    row: dict[str, Any] = {}
    intervals: dict[str, list[float]] = {}
    for column in COLUMNS:
        means = [value for patient in patients if (value := patient[column]) is not None]
        row[column] = float(np.mean(means)) if means else None
        if len(means) > 1 and np.isfinite(means).all():
            interval = mean_interval(means)
            intervals[column] = [interval.low, interval.high]
    scans = [r for r in result.records if (r["group"], r["method"]) == (group, method)]
    counts = {"n_patients": len(patients), "n_scans": len(scans), "n_slices": sum(r["n_slices"] for r in scans)}
    return {**row, "intervals": intervals, **counts}


def _ceiling_rows(group: str, cases: list[Case]) -> list[dict[str, Any]]:
    """What a noise-free image and the best conceivable estimate would score, where the reference shares its noise."""
    if any(case.target != "same_scan" or case.dose_fraction >= 1.0 for case in cases):
        return []
    rows = []
    for name, gain in ((PERFECT, perfect_gain_db), (CEILING, ceiling_gain_db)):
        value = float(np.mean([gain(case.dose_fraction) for case in cases]))
        limit = float(np.mean([ceiling_gain_db(case.dose_fraction) for case in cases]))
        empty: dict[str, Any] = dict.fromkeys(COLUMNS)
        counts = {"n_patients": len({c.patient_key for c in cases}), "n_scans": len(cases)}
        row = {"method": name, "group": group, **empty, **counts, "n_slices": sum(len(c.low_hu) for c in cases)}
        rows.append({**row, "gain_body_db": value, "ceiling_share": value / limit})
    return rows


def environment() -> dict[str, Any]:
    """Versions, processor, conventions and, in a source checkout, the git revision; no machine names."""
    here = Path(__file__).parent
    revision = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=here, check=False)
    changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True,
                             cwd=here, check=False)  # fmt: skip
    return {
        "package_version": __version__,
        "git_revision": revision.stdout.strip() or None,
        "git_changed": bool(changed.stdout.strip()) if changed.returncode == 0 else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "threads": torch.get_num_threads(),
        "aggregation": "mean over a patient's scans, then over patients; intervals: 95 %, Student's t over patients",
        "mask": "body: largest component above -500 HU, holes filled",
        "conventions": "; ".join(_in_words(name) for name in ("full", "soft")),
    }


def _in_words(name: str) -> str:
    rule = CONVENTIONS[name]
    low, high = rule.clip_hu
    window = "Gaussian 11 x 11, sigma 1.5" if rule.ssim_window == "gaussian" else "uniform 7 x 7"
    border = "border left out" if rule.ssim_border == "crop" else "border padded with zeros"
    return f"{name}: clipped to {low:g}..{high:g} HU, range {rule.data_range_hu:g} HU, SSIM {window}, {border}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
