"""Methods x cases -> one table: every method on every scan, by patient, with ceilings, as JSON and Markdown."""

import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from .. import __version__
from ..conditions import ScanConditions
from ..metrics import bias, body_mask, mae, psnr_pooled, psnr_slice_mean, rmse, ssim
from ..volume import CTVolume

LOW_DOSE = "low dose"
PERFECT = "perfect image"
CEILING = "ceiling"
# column -> (heading, whether more is better; None where neither is)
COLUMNS: dict[str, tuple[str, bool | None]] = {
    "psnr_full": ("PSNR full, pooled [dB]", True),
    "psnr_full_slice_mean": ("PSNR full, slice mean [dB]", True),
    "psnr_soft": ("PSNR soft, pooled [dB]", True),
    "ssim_full": ("SSIM full", True),
    "ssim_soft": ("SSIM soft", True),
    "rmse_body_hu": ("RMSE body [HU]", False),
    "mae_body_hu": ("MAE body [HU]", False),
    "bias_body_hu": ("bias body [HU]", None),
    "gain_body_db": ("gain body [dB]", True),
    "ceiling_share": ("share of ceiling", True),
    "seconds_per_slice": ("s / slice", False),
}


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


@dataclass
class BenchmarkResult:
    """The table and what made it.

    Attributes:
        rows: one per method and group: "method", "group", the columns of `COLUMNS`, "n_patients", "n_scans", "n_slices".
        facts: versions, conventions, command, data, split, seeds.
    """

    rows: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(row["group"] for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def save(self, path: str | Path) -> Path:
        """Writes JSON."""
        path = Path(path)
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        return path

    @classmethod
    def load(cls, path: str | Path) -> "BenchmarkResult":
        return cls(**json.loads(Path(path).read_text()))

    def table(self, group: str) -> list[dict[str, Any]]:
        """Rows of one group, in the order of the methods."""
        return [row for row in self.rows if row["group"] == group]

    def best(self, group: str, column: str) -> float | None:
        """Best value of a column among the methods, ceilings and the low dose left out."""
        more = COLUMNS[column][1]
        values = [
            row[column]
            for row in self.table(group)
            if row["method"] not in (LOW_DOSE, PERFECT, CEILING) and row.get(column) is not None
        ]
        if more is None or not values:
            return None
        return max(values) if more else min(values)

    def beats(self, method: str, group: str, column: str) -> bool:
        """Whether a method is strictly better than every other method of its group."""
        more = COLUMNS[column][1]
        table = {row["method"]: row[column] for row in self.table(group) if row["method"] not in (PERFECT, CEILING)}
        own = table.pop(method)
        return all(own > other if more else own < other for other in table.values())

    def to_markdown(self) -> str:
        """One table per group."""
        parts = []
        for group in self.groups:
            columns = self.shown_columns(group)
            lines = [
                "| method | " + " | ".join(COLUMNS[c][0] for c in columns) + " |",
                "|---" * (len(columns) + 1) + "|",
            ]
            for row in self.table(group):
                lines.append("| " + " | ".join([row["method"], *(format_value(c, row.get(c)) for c in columns)]) + " |")
            first = self.table(group)[0]
            count = f"{first['n_patients']} patients, {first['n_scans']} scans, {first['n_slices']} slices"
            parts.append(f"**{group}** ({count})\n\n" + "\n".join(lines))
        return "\n\n".join(parts) + "\n"

    def shown_columns(self, group: str) -> list[str]:
        """Columns that hold anything."""
        return [c for c in COLUMNS if any(row.get(c) is not None for row in self.table(group))]


def format_value(column: str, value: float | None) -> str:
    """A number with the digits that its column deserves; a dash where there is none."""
    if value is None:
        return "–"
    if not np.isfinite(value):
        return "∞"
    if column == "ceiling_share":
        return f"{100 * value:.0f} %"
    return f"{value:.4f}" if column.startswith("ssim") else f"{value:.3f}" if column.startswith("s") else f"{value:.2f}"


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
) -> BenchmarkResult:
    """Runs every method on every case.

    Args:
        cases: held-out scans.
        methods: name -> method; the low dose itself is always the first row.
        group_of: table of a case; by default its dose.
        facts: to keep with the result: data, split, command, seeds.
        progress: wraps the cases, for a progress bar.

    Raises:
        ValueError: if there is no case or a method takes a reserved name.
    """
    if not cases:
        raise ValueError("There is no case to evaluate.")
    if reserved := {LOW_DOSE, PERFECT, CEILING} & set(methods):
        raise ValueError(f"These names are rows of the table already: {sorted(reserved)}.")
    group_of = group_of or (lambda case: f"dose {100 * case.dose_fraction:g} %")
    measured: dict[tuple[str, str], list[dict[str, Any]]] = {}
    all_methods: dict[str, Method] = {LOW_DOSE: lambda case: case.low_hu, **methods}
    for case in progress(cases):
        mask = body_mask(case.full_hu)
        low_mse = _mse(case.low_hu, case.full_hu, mask)
        for name, method in all_methods.items():
            started = time.perf_counter()
            restored = method(case)
            seconds = time.perf_counter() - started
            values = _measure(restored, case, mask, low_mse)
            values |= {"seconds_per_slice": None if name == LOW_DOSE else seconds / len(case.low_hu), "case": case}
            measured.setdefault((group_of(case), name), []).append(values)
    rows = []
    for group in dict.fromkeys(group for group, _ in measured):
        for name in all_methods:
            rows.append({"method": name, "group": group, **_by_patient(measured[group, name])})
        rows += _ceiling_rows(group, [values["case"] for values in measured[group, LOW_DOSE]])
    return BenchmarkResult(rows, {**environment(), **(facts or {})})


def _mse(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    return float(np.square(a[mask] - b[mask], dtype=np.float64).mean())


def _measure(restored: np.ndarray, case: Case, mask: np.ndarray, low_mse: float) -> dict[str, Any]:
    full = case.full_hu
    mse = _mse(restored, full, mask)
    gain = 10.0 * float(np.log10(low_mse / mse)) if mse > 0.0 else float("inf")
    # Share of the gain that is possible at all; a noise-free reference sets no such limit.
    share = gain / ceiling_gain_db(case.dose_fraction) if case.target == "same_scan" else None
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


def _by_patient(values: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over each patient's scans, then over patients."""
    patients: dict[str, list[dict[str, Any]]] = {}
    for value in values:
        patients.setdefault(value["case"].patient_key, []).append(value)
    row: dict[str, Any] = {}
    for column in COLUMNS:
        means = [np.mean([v[column] for v in scans]) for scans in patients.values() if scans[0][column] is not None]
        row[column] = float(np.mean(means)) if means else None
    row["n_patients"], row["n_scans"] = len(patients), len(values)
    row["n_slices"] = sum(len(v["case"].low_hu) for v in values)
    return row


def _ceiling_rows(group: str, cases: list[Case]) -> list[dict[str, Any]]:
    """What a noise-free image and the best conceivable estimate would score, where the reference shares its noise."""
    if any(case.target != "same_scan" for case in cases):
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
    """Versions and, in a source checkout, the git revision; no machine names."""
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    return {
        "package_version": __version__,
        "git_revision": revision.stdout.strip() or None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "aggregation": "mean over a patient's scans, then over patients",
        "mask": "body: largest component above -500 HU, holes filled",
    }
