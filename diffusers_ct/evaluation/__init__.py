"""Judging restorations (classical and learned baselines, benchmark, report) and synthesised volumes (judge, measurement)."""

from .baselines import BASELINES, Baseline, tune
from .benchmark import BenchmarkResult, Case, cases_from_rows, ceiling_gain_db, perfect_gain_db, run_benchmark
from .condition_judge import ConditionJudge, Judgement, agreement, finding_targets, train_judge
from .learned_baselines import LEARNED_BASELINES, LearnedBaseline, load_baseline, make_baseline
from .phantom_measurements import measure_aorta_hu
from .report import write_report
from .synthesis import draw_requests, judge_row, rows_to_markdown
from .validation import RestorationValidator

__all__ = [
    "BASELINES",
    "LEARNED_BASELINES",
    "Baseline",
    "BenchmarkResult",
    "Case",
    "ConditionJudge",
    "Judgement",
    "LearnedBaseline",
    "RestorationValidator",
    "agreement",
    "cases_from_rows",
    "ceiling_gain_db",
    "draw_requests",
    "finding_targets",
    "judge_row",
    "load_baseline",
    "make_baseline",
    "measure_aorta_hu",
    "perfect_gain_db",
    "rows_to_markdown",
    "run_benchmark",
    "train_judge",
    "tune",
    "write_report",
]
