"""Quality over latency of DDIM, DPM-Solver++ and UniPC with few steps, and of a distilled checkpoint beside them.

    python examples/few_steps_curve.py --model outputs/model/pipeline --dataset data/phantoms --output_dir outputs/few_steps

For every sampler and number of steps: CRPS, PSNR of a sample and of the mean of some, spread over error, noise texture in
water, seconds a slice. Leaves `benchmark.json` (study "few_steps"), `report.html` and `few_steps.md`.

A model that was trained on full-dose images draws such: give `--reference full_dose`, which puts the noise of the full
dose on the dataset's noise-free truth before samples are judged by it.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from diffusers_ct import CheckpointContract, CTDiffusionPipeline, load_paired_ct, simulate_low_dose
from diffusers_ct.evaluation import BenchmarkResult, Case, cases_from_rows, write_report
from diffusers_ct.evaluation.benchmark import environment
from diffusers_ct.evaluation.few_step_samplers import FEW_STEPS, few_step_samplers
from diffusers_ct.evaluation.restoration_evaluation import REFERENCE_NAMES
from diffusers_ct.evaluation.studies import few_steps_study, few_steps_texture
from diffusers_ct.physics.low_contrast_phantom import RodPhantom

COLUMNS = ("group", "method", "steps", "crps_hu", "psnr_one_db", "psnr_mean_db", "spread_skill", "frequency_share", "noise_share",
           "seconds_per_slice")  # fmt: skip
SLAB_SLICES = 4  # of water that a method gets at once


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Pipeline that restores: a folder or a Hub repository.")
    parser.add_argument("--distilled", help="Pipeline of `distill_realtime.py`, to be drawn beside it.")
    parser.add_argument("--dataset", required=True, help="Folder made by `diffusers-ct prepare`, or a Hub dataset.")
    parser.add_argument("--split", default="test")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--dose", type=float, help="Of the scans; all doses without it.")
    parser.add_argument("--patients", type=int, default=2, help="The first ones of the split.")
    parser.add_argument("--slices", type=int, default=4, help="Middle slices of each scan.")
    parser.add_argument("--samples", type=int, default=4, help="Of each scan, 2 or more.")
    parser.add_argument("--steps", type=int, nargs="+", default=FEW_STEPS)
    parser.add_argument("--reference", choices=("dataset", "full_dose"), default="dataset", help="See above.")
    parser.add_argument(
        "--texture_slices", type=int, default=2 * SLAB_SLICES,
        help=f"Slices of water, {2 * SLAB_SLICES} or more, that noise is measured in; 0 leaves it out.",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="Of the noise.")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> BenchmarkResult:
    args = parse_args(arguments)
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    cases = chosen_cases(args)
    samplers = [
        sampler
        for folder in (args.model, args.distilled)
        if folder is not None
        for sampler in few_step_samplers(
            loaded(folder), seed=args.seed, steps=args.steps, ignore_contract=CheckpointContract.checkable()
        )
    ]
    texture = None
    if args.texture_slices:
        slice_mm, pixel_mm, _ = cases[0].low.spacing_mm
        texture = few_steps_texture(
            samplers, phantom=RodPhantom(pixel_mm=pixel_mm), dose_fractions=sorted({c.dose_fraction for c in cases}),
            slices=args.texture_slices, slab_slices=SLAB_SLICES, seed=args.seed, slice_mm=slice_mm,
        )  # fmt: skip
    rows = few_steps_study(samplers, cases, samples=args.samples, texture=texture)
    facts = {
        **environment(),
        "split": f"{args.split}: the first {args.patients} patients, {args.slices} middle slices of each scan",
        "reference": ", ".join(sorted({REFERENCE_NAMES[case.target] for case in cases})),
        "samples": args.samples,
        "seed": args.seed,
        "command": "python examples/few_steps_curve.py",
    }
    result = BenchmarkResult([], facts, studies={"few_steps": rows})
    result.save(out / "benchmark.json")
    table = as_markdown(rows)
    (out / "few_steps.md").write_text(table)
    write_report(out / "report.html", result, title="Few steps: quality for time", summary=[], pictures=[])
    print(table)
    return result


def loaded(folder: str) -> CTDiffusionPipeline:
    pipe = CTDiffusionPipeline.from_pretrained(folder)
    return pipe.to("cuda") if torch.cuda.is_available() else pipe


def chosen_cases(args: argparse.Namespace) -> list[Case]:
    """Middle slices of the scans of the first patients, with the reference that was asked for."""
    rows = load_paired_ct(args.dataset, split=args.split)
    patients = list(dict.fromkeys(rows["patient_key"]))[: args.patients]
    doses, keys = rows["dose_fraction"], rows["patient_key"]
    of_dose = [args.dose is None or abs(dose / args.dose - 1.0) < 1e-3 for dose in doses]
    picked = [k for k in range(len(rows)) if keys[k] in patients and of_dose[k]]
    if not picked:
        raise SystemExit(
            f"{args.dataset} has no scan of these patients at --dose {args.dose}: it has {sorted(set(doses))}."
        )
    cases = []
    for number, case in enumerate(cases_from_rows(rows.select(picked))):
        if args.reference == "full_dose":
            if case.target != "noise_free":
                raise SystemExit("--reference full_dose adds noise to noise-free truth, which this dataset has not.")
            z, y, x = case.low.spacing_mm
            hu = simulate_low_dose(
                case.full_hu, spacing_mm=(z, y, x), dose_fraction=1.0, seed=10**6 + args.seed + number,
                source_noise="noise_free", slice_thickness_mm=z,
            )  # fmt: skip
            case = replace(case, full_hu=hu, target="normal_dose")
        depth = min(args.slices, len(case.full_hu))
        first = (len(case.full_hu) - depth) // 2
        low = case.low.crop((first, 0, 0), (depth, *case.low.shape[1:]))
        cases.append(replace(case, low=low, full_hu=case.full_hu[first : first + depth]))
    return cases


def as_markdown(rows: list[dict]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for row in sorted(rows, key=lambda row: (row["group"], row["steps"])):
        lines.append("| " + " | ".join(_word(row[column]) for column in COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def _word(value: object) -> str:
    return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
