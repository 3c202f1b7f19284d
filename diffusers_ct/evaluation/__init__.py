"""Judging restorations: baselines, benchmark, report."""

from .baselines import BASELINES, Baseline, tune
from .benchmark import BenchmarkResult, Case, cases_from_rows, ceiling_gain_db, perfect_gain_db, run_benchmark
from .report import write_report
from .validation import RestorationValidator

__all__ = [
    "BASELINES",
    "Baseline",
    "BenchmarkResult",
    "Case",
    "RestorationValidator",
    "cases_from_rows",
    "ceiling_gain_db",
    "perfect_gain_db",
    "run_benchmark",
    "tune",
    "write_report",
]
