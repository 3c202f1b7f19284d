"""Judging restorations (classical and learned baselines, benchmark, report) and synthesised volumes (judge, measurement)."""

from .baselines import BASELINES, Baseline, tune
from .benchmark import Case, cases_from_rows, ceiling_gain_db, perfect_gain_db, run_benchmark, spread_over_doses
from .benchmark_result import BenchmarkResult
from .condition_judge import ConditionJudge, Judgement, agreement, finding_targets, train_judge
from .downstream import Region, judge_scores, load_scores, run_downstream, whole_scan
from .learned_baselines import LEARNED_BASELINES, LearnedBaseline, load_baseline, make_baseline
from .phantom_measurements import measure_aorta_hu
from .pipeline_restorer import PipelineRestorer
from .report import write_report
from .restoration_claims import Claim, claims_to_markdown, restoration_claims
from .restoration_evaluation import EvaluationSettings, evaluate_restoration
from .studies import (
    STUDY_SIZES,
    SampledCase,
    StudySize,
    TrueScan,
    calibration_study,
    detectability_study,
    insertion_study,
    material_biases,
    materials_study,
    noise_study,
    phantom_scans,
    phantom_studies,
    transfer_study,
)
from .synthesis import draw_requests, judge_row, rows_to_markdown
from .validation import RestorationValidator

__all__ = [
    "BASELINES",
    "LEARNED_BASELINES",
    "STUDY_SIZES",
    "Baseline",
    "BenchmarkResult",
    "Case",
    "Claim",
    "ConditionJudge",
    "EvaluationSettings",
    "Judgement",
    "LearnedBaseline",
    "PipelineRestorer",
    "Region",
    "RestorationValidator",
    "SampledCase",
    "StudySize",
    "TrueScan",
    "agreement",
    "calibration_study",
    "cases_from_rows",
    "ceiling_gain_db",
    "claims_to_markdown",
    "detectability_study",
    "draw_requests",
    "evaluate_restoration",
    "finding_targets",
    "insertion_study",
    "judge_row",
    "judge_scores",
    "load_baseline",
    "load_scores",
    "make_baseline",
    "material_biases",
    "materials_study",
    "measure_aorta_hu",
    "noise_study",
    "perfect_gain_db",
    "phantom_scans",
    "phantom_studies",
    "restoration_claims",
    "rows_to_markdown",
    "run_benchmark",
    "run_downstream",
    "spread_over_doses",
    "train_judge",
    "transfer_study",
    "tune",
    "whole_scan",
    "write_report",
]
