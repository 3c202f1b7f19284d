"""Restores the test split with a trained pipeline and judges it beside classical baselines.

    python examples/evaluate_ldct.py --dataset data/phantoms --model outputs/model/pipeline --output_dir outputs/report

Leaves in the output folder: `benchmark.json`, `report.html`, `overview.png`, and of the first test scan the restored
DICOM series (`restored_dicom/`), `restored.nii.gz` and `uncertainty.nii.gz`. Baselines are tuned on training patients.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from diffusers_ct import CTDiffusionPipeline, __version__, load_paired_ct, write_volume
from diffusers_ct.evaluation import Case, cases_from_rows, run_benchmark, spread_over_doses, write_report
from diffusers_ct.evaluation.baselines import tune_by_dose
from diffusers_ct.evaluation.benchmark_result import COLUMNS, BenchmarkResult, format_value
from diffusers_ct.evaluation.figures import noise_curves, overview, to_png, training_curves
from diffusers_ct.evaluation.restoration_evaluation import REFERENCE_NAMES, classical_methods, verdict, worst_pictures
from diffusers_ct.io import Derivation
from diffusers_ct.metrics import body_mask

OURS = "diffusers-ct, 1 step"


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="Folder made by `diffusers-ct prepare`, or a Hub dataset.")
    parser.add_argument("--model", required=True, help="Pipeline: a folder or a Hub repository.")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--metrics_jsonl", help="metrics.jsonl of the training run, for its curves.")
    parser.add_argument("--steps", type=int, default=10, help="Sampling steps of the uncertainty.")
    parser.add_argument("--samples", type=int, default=4, help="Posterior samples of the uncertainty.")
    parser.add_argument(
        "--tuning_scans", type=int, default=4, help="Training scans of each dose that tune the baselines."
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> BenchmarkResult:
    args = parse_args(arguments)
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    pipe = CTDiffusionPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    if torch.cuda.is_available():
        pipe.to("cuda")

    # 1. baselines, tuned on training patients
    print("tuning baselines on training patients")
    training = cases_of(args.dataset, "train", limit=args.tuning_scans)
    strengths = tune_by_dose((c.dose_fraction, c.low_hu, c.full_hu, body_mask(c.full_hu)) for c in training)
    methods = classical_methods(strengths)

    # 2. every method on every test scan
    cases = cases_of(args.dataset, "test")
    methods[OURS] = lambda case: restore(pipe, case).volumes
    facts = {
        "split": "test: patients that neither training nor tuning has seen",
        "reference": ", ".join(sorted({case.target for case in cases})),
        "baseline_strengths": json.dumps(strengths),
        "steps_of_samples": args.steps,
        "samples": args.samples,
    }
    result = run_benchmark(cases, methods, facts=facts, progress=lambda c: tqdm(c, desc="evaluating"))
    result.compare(OURS)
    result.save(out / "benchmark.json")

    # 3. one scan as a user would keep it
    shown = min(cases, key=lambda case: case.dose_fraction)
    restored = restore(pipe, shown).volumes
    # few steps of UniPC keep the spread of the samples (4 % too small at 10 steps, DDIM 15 %)
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    uncertainty = restore(pipe, shown, steps=args.steps, samples=args.samples).uncertainty_hu
    write_scan(out, shown, restored, uncertainty, args.model)

    # 4. pictures, report, table
    write_report_of(out, args, result, cases, shown, restored, uncertainty, methods)
    print_table(result)
    print(f"report: {out / 'report.html'}")
    return result


def cases_of(dataset: str, split: str, limit: int | None = None) -> list[Case]:
    """A split as benchmark cases; `limit` takes that many of each dose, spread over the split."""
    rows = load_paired_ct(dataset, split=split)
    if limit is not None:
        rows = spread_over_doses(rows, limit)
    return cases_from_rows(rows)


def restore(pipe: CTDiffusionPipeline, case: Case, *, steps: int = 1, samples: int = 1):
    """The pipeline's output for a case, as arrays; always from the same seed."""
    generator = torch.Generator().manual_seed(0)
    # The test phantoms are new patients: their noise may lie a little beyond what training saw.
    return pipe(case.low, num_inference_steps=steps, num_samples=samples, generator=generator, output_type="np",
                ignore_contract=("noise_level_hu",))  # fmt: skip


def write_scan(out: Path, case: Case, restored_hu: np.ndarray, uncertainty_hu: np.ndarray, model: str) -> None:
    """The restored scan as a DERIVED DICOM series and as NIfTI, its uncertainty as NIfTI; replaces an earlier run's."""
    targets = {"restored_dicom": restored_hu, "restored.nii.gz": restored_hu, "uncertainty.nii.gz": uncertainty_hu}
    derivation = Derivation("low-dose restoration by residual diffusion", __version__, model_id=Path(model).name,
                            num_inference_steps=1, num_samples=1, seed=0)  # fmt: skip
    for name, hu in targets.items():
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        write_volume(case.low.with_hu(hu), path, derivation=derivation, series_description="diffusers-ct restored")


def write_report_of(
    out: Path,
    args: argparse.Namespace,
    result: BenchmarkResult,
    cases: list[Case],
    case: Case,
    restored_hu: np.ndarray,
    uncertainty_hu: np.ndarray,
    methods: dict,
) -> None:
    middle = len(case.full_hu) // 2
    slices = (case.low_hu[middle], restored_hu[middle], case.full_hu[middle], uncertainty_hu[middle])
    titles = {"low_title": f"{100 * case.dose_fraction:g} % dose", "full_title": REFERENCE_NAMES[case.target]}
    (out / "overview.png").write_bytes(to_png(overview(*slices, **titles), dpi=90))
    caption = "Middle slice of the test scan with the lowest dose; difference and uncertainty in HU."
    pictures = [
        (f"{window.replace('_', ' ')} window", caption,
         to_png(overview(*slices, **titles, window=window, difference=True)))
        for window in ("soft_tissue", "lung")
    ]  # fmt: skip
    errors = {"low dose": case.low_hu - case.full_hu, OURS: restored_hu - case.full_hu}
    errors |= {name: methods[name](case) - case.full_hu for name in ("non-local means", "total variation")}
    text = "Power of the error over spatial frequency, in the central half of the same scan."
    pictures.append(("What is left of the noise", text, to_png(noise_curves(errors, case.low.spacing_mm[2]))))
    if args.metrics_jsonl:
        lines = [json.loads(line) for line in Path(args.metrics_jsonl).read_text().splitlines()]
        pictures.append(("Training", "Loss, and error on validation patients.", to_png(training_curves(lines))))
    summary = [verdict(result, group, OURS) for group in result.groups]
    write_report(
        out / "report.html", result, title="Low-dose CT restoration", summary=summary, pictures=pictures, subject=OURS,
        worst=worst_pictures(result, cases, OURS, methods[OURS]),
    )  # fmt: skip


def print_table(result: BenchmarkResult) -> None:
    console = Console(width=170)
    for group in result.groups:
        table = Table(title=group)
        columns = result.shown_columns(group)
        table.add_column("method")
        for column in columns:
            table.add_column(COLUMNS[column][0], justify="right")
        for row in result.table(group):
            table.add_row(row["method"], *(format_value(c, row.get(c)) for c in columns))
        console.print(table)
        console.print(verdict(result, group, OURS))


if __name__ == "__main__":
    main()
