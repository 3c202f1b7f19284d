"""The table that a benchmark gives: its columns, its rows, what made it, as JSON and Markdown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .paired_statistics import holm, paired_difference

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


# What one method is compared with another by.
COMPARED = ("psnr_full", "psnr_soft", "ssim_full", "ssim_soft", "rmse_body_hu", "mae_body_hu")


@dataclass
class BenchmarkResult:
    """The table and what made it.

    Attributes:
        rows: one per method and group: "method", "group", the columns of `COLUMNS` as means over patients, "intervals"
            (column -> [low, high], 95 %, Student), "n_patients", "n_scans", "n_slices".
        facts: versions, conventions, command, data, split, seeds.
        records: one per method and scan: "method", "group", "patient", "scan", "n_slices" and the columns.
        comparisons: paired by patient, see `compare`.
        studies: name -> measurements beside the table, plain dicts: noise, transfer, detectability, insertion, calibration,
            few_steps, materials, downstream.
    """

    rows: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    studies: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

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

    def compare(self, subject: str, columns: Sequence[str] = COMPARED) -> None:
        """Fills `comparisons`: the subject against every other method of its table, on the same patients.

        p is Holm's over all methods and columns of a table. Differences are subject minus other, in the column's unit.

        Raises:
            ValueError: if there is no such method, or there are no records to pair.
        """
        if subject not in {record["method"] for record in self.records}:
            raise ValueError(f"There are no records of {subject!r} to compare.")
        self.comparisons = []
        for group in self.groups:
            own = self.patient_means(group, subject)
            found = []
            for other in dict.fromkeys(r["method"] for r in self.records if r["group"] == group):
                if other == subject:
                    continue
                theirs = self.patient_means(group, other)
                for column in columns:
                    patients = [p for p in own if own[p].get(column) is not None and theirs[p].get(column) is not None]
                    pairs = np.array([[own[p][column], theirs[p][column]] for p in patients])
                    if not len(pairs) or not np.isfinite(pairs).all():
                        continue  # a method that equals the reference has no finite PSNR
                    result = paired_difference(pairs[:, 0], pairs[:, 1])
                    found.append(
                        {
                            "group": group,
                            "method": subject,
                            "against": other,
                            "column": column,
                            "difference": result.difference.estimate,
                            # None: too few patients for an interval
                            "low": result.difference.low if np.isfinite(result.difference.low) else None,
                            "high": result.difference.high if np.isfinite(result.difference.high) else None,
                            "p": result.p,
                            "n_patients": result.patients,
                            "test": result.test,
                        }
                    )
            for comparison, adjusted in zip(found, holm([c["p"] for c in found])):
                self.comparisons.append({**comparison, "p_holm": adjusted})

    def patient_means(self, group: str, method: str) -> dict[str, dict[str, float | None]]:
        """Patient -> column -> mean over the patient's scans, from the records."""
        scans: dict[str, list[dict[str, Any]]] = {}
        for record in self.records:
            if record["group"] == group and record["method"] == method:
                scans.setdefault(record["patient"], []).append(record)
        return {
            patient: {
                column: float(np.mean(values)) if (values := _known(records, column)) else None for column in COLUMNS
            }
            for patient, records in scans.items()
        }

    def to_markdown(self) -> str:
        """One table per group; the gain with its interval over patients."""
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


def _known(records: Sequence[Mapping[str, Any]], column: str) -> list[float]:
    return [record[column] for record in records if record[column] is not None]


def format_value(column: str, value: float | None) -> str:
    """A number with the digits that its column deserves; a dash where there is none."""
    if value is None:
        return "–"
    if not np.isfinite(value):
        return "∞"
    if column == "ceiling_share":
        return f"{100 * value:.0f} %"
    return f"{value:.4f}" if column.startswith("ssim") else f"{value:.3f}" if column.startswith("s") else f"{value:.2f}"
