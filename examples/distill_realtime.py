"""Distils a trained restoration model into one that draws a sample, full-dose texture and all, in one step or few.

    accelerate launch examples/distill_realtime.py --teacher outputs/model/pipeline --dataset data/phantoms \
        --output_dir outputs/realtime

The student starts as a copy of the teacher and learns where the teacher's deterministic sampler takes each noise field:
only the low-dose scans of the dataset are used. `OUTPUT_DIR/pipeline` keeps the teacher's contract:

    pipe = CTDiffusionPipeline.from_pretrained("outputs/realtime/pipeline")
    pipe(scan)                                             # one step: a sample
    pipe(scan, num_inference_steps=2)                      # two steps: a better one
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe(scan)                                             # one step: the estimate of least mean square error

Take a teacher that was trained on full-dose images: one of noise-free truth has no texture to keep. `distillation.json`
says on held-out scans how far student and teacher are apart from the same noise, as a share of what the noise does, how much
of the teacher's spread the student has, and what a slice takes.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from accelerate import PartialState
from diffusers import DDIMScheduler, DDPMScheduler, UniPCMultistepScheduler

from diffusers_ct import CheckpointContract, CTConsistencyScheduler, CTDiffusionPipeline, load_paired_ct
from diffusers_ct.cli.scripts import one_line_mistakes
from diffusers_ct.data import PatchDataset, check_patch_size
from diffusers_ct.evaluation import Case, RestorationValidator, cases_from_rows
from diffusers_ct.training import (
    ResidualDiffusionObjective,
    TrainingConfig,
    TrajectoryDistillationObjective,
    train,
)

JUDGED_SCANS, JUDGED_SLICES = 4, 8


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s --teacher P --dataset D --output_dir O [--help for all flags]",
    )
    parser.add_argument(
        "--teacher", required=True, help="Pipeline that restores: a folder, or a repository on the Hub."
    )
    parser.add_argument(
        "--dataset", required=True, help="Folder made by `diffusers-ct prepare`, or a dataset on the Hub."
    )
    parser.add_argument(
        "--teacher_steps",
        type=int,
        default=10,
        help="Of UniPC, to each end that the student learns: its time goes there. [10]",
    )
    parser.add_argument(
        "--student_steps", type=int, default=2, help="That the student may be sampled with at most. [2]"
    )
    parser.add_argument(
        "--patch_size", type=int, nargs=3, default=(8, 64, 64), metavar=("D", "H", "W"),
        help="Voxels of a training patch. [8 64 64]",
    )  # fmt: skip
    parser.add_argument(
        "--noise_gain", type=float, nargs=2, default=None, metavar=("MIN", "MAX"),
        help="Varies the dose: the noise of each patch times a factor drawn between these, such as 0.7 1.8.",
    )  # fmt: skip
    TrainingConfig.add_arguments(parser)
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(arguments)
    with one_line_mistakes(parser, {"depth": "--patch_size"}) as refuse:
        run(args, refuse)


def run(args: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> None:
    config = TrainingConfig.from_args(args)
    if config.push_to_hub:
        refuse(
            "--push_to_hub is not for this example: push OUTPUT_DIR/pipeline with `diffusers-ct push` when it is judged."
        )

    # 1. the teacher, and low-dose scans
    pipe = load_teacher(args.teacher, refuse)
    teacher, scheduler = pipe.unet.requires_grad_(False), DDPMScheduler.from_config(pipe.scheduler.config)
    rows = load_paired_ct(args.dataset)
    training_rows, held_out = rows.get("train"), rows.get("validation") or rows.get("test")
    if not training_rows or not held_out:
        refuse(f"{args.dataset} needs patients to train and to validate on (--dataset): there are {sorted(rows)}.")
    check_patch_size(args.patch_size, teacher.size_factor)
    items_per_epoch = 64 * config.train_batch_size * config.gradient_accumulation_steps
    patches = PatchDataset(
        training_rows, tuple(args.patch_size), items_per_epoch, seed=config.seed, noise_gain=args.noise_gain
    )

    # 2. the objective: where the frozen teacher goes from each noise
    def make_objective(student: torch.nn.Module) -> TrajectoryDistillationObjective:
        frozen = teacher.to(next(student.parameters()).device).eval()
        of = [ResidualDiffusionObjective(m, scheduler, terminal_fraction=0.5) for m in (student, frozen)]
        return TrajectoryDistillationObjective(*of, teacher_steps=args.teacher_steps, student_steps=args.student_steps)

    student = copy.deepcopy(teacher).requires_grad_(True)
    timesteps = make_objective(student).timesteps  # refuses wrong steps before any work
    output = Path(config.output_dir)

    def save(averaged: torch.nn.Module) -> None:
        sampler = CTConsistencyScheduler.from_config(scheduler.config, distilled_timesteps=timesteps)
        CTDiffusionPipeline(averaged, sampler, pipe.config.contract).save_pretrained(output / "pipeline")

    result = train(
        config,
        model=student,
        make_objective=make_objective,
        dataset=patches,
        validate=RestorationValidator(held_out, scheduler.config),  # of the estimate, which the student keeps
        save_pretrained=save,
    )

    if not PartialState().is_main_process:
        return

    # 3. what was learned, on scans that were not trained on
    made = CTDiffusionPipeline.from_pretrained(output / "pipeline").to(teacher.device)
    pipe.scheduler = UniPCMultistepScheduler.from_config(scheduler.config)
    facts = {"training_steps": result.step, "teacher_steps": args.teacher_steps, "distilled_timesteps": list(timesteps)}
    facts |= compare(
        pipe, made, cases_from_rows(held_out.select(range(min(JUDGED_SCANS, len(held_out))))), args.teacher_steps
    )
    (output / "distillation.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(
        f"one step: {facts['distance']:.2f} of the noise's effect from the teacher's sample, {facts['spread']:.2f} of its spread, "
        f"{facts['student_seconds_per_slice']:.3f} s a slice instead of {facts['teacher_seconds_per_slice']:.3f}"
    )
    print(f"pipeline: {output / 'pipeline'}")


def load_teacher(model: str, refuse: Callable[[str], NoReturn]) -> CTDiffusionPipeline:
    pipe = CTDiffusionPipeline.from_pretrained(model)
    if pipe.config.target != "residual" or pipe.condition_encoder is not None or pipe.image_kinds:
        refuse(f"{model} (--teacher) is not a restoration checkpoint without conditions, which this example distils.")
    if isinstance(pipe.scheduler, CTConsistencyScheduler):
        refuse(f"{model} (--teacher) is distilled already: give its own teacher.")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def compare(
    teacher: CTDiffusionPipeline, student: CTDiffusionPipeline, cases: list[Case], teacher_steps: int
) -> dict[str, float | int]:
    """The student's one step beside the teacher's sample from the same noise, in the middle slices of each scan.

    "distance": of the two, over that of the teacher's sample from its estimate, root mean square. "spread": of the student's
    sample about that estimate, over the teacher's. A perfect student has 0 and 1; one that gives the estimate has 1 and 0; one
    whose samples have nothing to do with the teacher's, some 1.4 and 1.
    """
    sampler = DDIMScheduler.from_config(teacher.scheduler.config)
    estimator = CTDiffusionPipeline(teacher.unet, sampler, teacher.config.contract)
    for pipe in (student, estimator):
        pipe.set_progress_bar_config(disable=True)
    squares = {"distance": [], "spread": [], "teacher": []}
    seconds: dict[str, list[float]] = {"teacher": [], "student": []}
    for number, case in enumerate(cases):
        first = max(0, (len(case.low.hu) - JUDGED_SLICES) // 2)
        depth = min(JUDGED_SLICES, len(case.low.hu))
        low = case.low.crop((first, 0, 0), (depth, *case.low.shape[1:]))
        restored = {}
        for name, pipe, steps in (
            ("estimate", estimator, 1),
            ("teacher", teacher, teacher_steps),
            ("student", student, 1),
        ):
            began = time.perf_counter()
            restored[name] = pipe(
                low, num_inference_steps=steps, generator=torch.Generator().manual_seed(number), output_type="np",
                ignore_contract=CheckpointContract.checkable() if pipe.contract is not None else (),
            ).volumes  # fmt: skip
            if name in seconds:
                seconds[name].append((time.perf_counter() - began) / depth)
        squares["distance"].append(np.square(restored["student"] - restored["teacher"]).mean())
        squares["spread"].append(np.square(restored["student"] - restored["estimate"]).mean())
        squares["teacher"].append(np.square(restored["teacher"] - restored["estimate"]).mean())
    means = {name: float(np.mean(values)) for name, values in squares.items()}
    return {
        "distance": (means["distance"] / means["teacher"]) ** 0.5,
        "spread": (means["spread"] / means["teacher"]) ** 0.5,
        "teacher_seconds_per_slice": float(np.median(seconds["teacher"])),
        "student_seconds_per_slice": float(np.median(seconds["student"])),
        "scans": len(cases),
    }


if __name__ == "__main__":
    main()
