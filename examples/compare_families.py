"""Trains 3-D, 2.5-D and transformer networks on one restoration task with one budget and puts them in one table.

    diffusers-ct prepare data/phantoms --phantoms 32 --dose 0.25 --dose 0.1
    python examples/compare_families.py --dataset data/phantoms --output_dir outputs/families --minutes 30

The families are matched by their number of parameters, within 10 % (see `diffusers_ct.models.presets`), and get the same
patches in the same order, the same loss, learning rate and number of samples per step. `--minutes` gives each the same
time, so that a slower network takes fewer steps; `--steps` gives each the same steps. With `--minutes` a few steps are
timed first, so that the cosine of the learning rate ends with the budget. Results are of one seed and of the learning
rate given: a lead, not a verdict on the families.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler

from diffusers_ct import CTDiffusionPipeline, UNet3DCTModel, load_paired_ct
from diffusers_ct.data import PatchDataset
from diffusers_ct.evaluation import RestorationValidator, cases_from_rows, run_benchmark
from diffusers_ct.models import PRESETS
from diffusers_ct.models.complexity import count_complexity
from diffusers_ct.models.presets import preset_config
from diffusers_ct.schedulers import make_noise_scheduler
from diffusers_ct.training import ResidualDiffusionObjective, TrainingConfig, train

TIMED_STEPS = 12  # before the budget begins; the first two are not counted
FAMILIES = ("ct-unet3d-s", "ct-unet25d-s", "ct-transformer-s")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="Folder made by `diffusers-ct prepare`, with a test split.")
    parser.add_argument("--output_dir", required=True, help="Gets comparison.md, comparison.json and the pipelines.")
    parser.add_argument("--models", nargs="+", choices=tuple(PRESETS), default=FAMILIES, help="Presets to compare.")
    parser.add_argument("--width_scale", type=float, default=1.0, help="Factor on all widths of the presets.")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="Training time of each model.")
    budget.add_argument("--steps", type=int, help="Training steps of each model.")
    parser.add_argument("--patch_size", type=int, nargs=3, default=(8, 64, 64), metavar=("D", "H", "W"))
    parser.add_argument("--noise_gain", type=float, nargs=2, default=None, metavar=("MIN", "MAX"))
    parser.add_argument("--train_batch_size", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--terminal_fraction", type=float, default=0.7)
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--seed", type=int, default=0, help="Of weights, patches, timesteps and noise.")
    args = parser.parse_args(arguments)
    if args.minutes is not None and not 0 < args.minutes < math.inf:
        parser.error("--minutes must be positive.")
    if args.steps is not None and args.steps < 2:
        parser.error("--steps must be at least 2.")
    return args


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = parse_args(arguments)
    out = Path(args.output_dir)
    configs = {name: scaled(preset_config(name), args.width_scale) for name in args.models}

    # 1. one dataset: patches of the training patients, whole scans of the test patients
    rows = {split: load_paired_ct(args.dataset, split=split) for split in ("train", "validation", "test")}
    if not len(rows["test"]):
        raise SystemExit("The dataset has no test patients: prepare it with --test-fraction.")
    cases = cases_from_rows(rows["test"])
    patches = PatchDataset(
        rows["train"],
        tuple(args.patch_size),
        patches_per_epoch=64 * args.train_batch_size,
        seed=args.seed,
        noise_gain=args.noise_gain,
    )

    # 2. train each with the same budget
    trained = {name: train_family(name, config, args, patches, rows["validation"]) for name, config in configs.items()}

    # 3. judge all on the same scans, one sampling step
    pipes = {name: load(out / name / "pipeline") for name in configs}
    for pipe in pipes.values():
        restore(pipe, cases[0])  # the first call is slower
    settings = {name: value for name, value in vars(args).items() if name not in ("dataset", "output_dir")}
    result = run_benchmark(
        cases, {name: lambda case, pipe=pipe: restore(pipe, case) for name, pipe in pipes.items()},
        facts={"split": "test: patients that no model has seen", "settings": settings},
    )  # fmt: skip

    # 4. one table
    for name, config in configs.items():
        trained[name] |= memory(config, args, cases[0].low_hu.shape)
    comparison = {"models": trained, "benchmark": result.to_dict()}
    (out / "comparison.json").write_text(json.dumps(comparison, indent=2) + "\n")
    text = markdown(trained, result, args)
    (out / "comparison.md").write_text(text)
    print(text)
    return comparison


def scaled(config: dict[str, Any], factor: float) -> dict[str, Any]:
    """A preset with all widths, and with them the attention heads, multiplied."""
    if factor == 1.0:
        return config
    widths = [width * factor for width in (*config["block_out_channels"], config.get("attention_head_dim", 64))]
    if any(width < 1 or width != int(width) for width in widths):
        raise SystemExit(f"--width_scale {factor} does not give whole widths: {widths}. Try 0.5 or 0.25.")
    *channels, head_dim = map(int, widths)
    return {**config, "block_out_channels": tuple(channels), "attention_head_dim": head_dim}


class Timed:
    """An objective that notes when each step begins."""

    def __init__(self, objective: ResidualDiffusionObjective, clock: Callable[[], float] = time.perf_counter) -> None:
        self.objective, self.clock = objective, clock
        self.starts: list[float] = []

    def __call__(self, batch: Any, seeds: torch.Tensor) -> dict[str, Any]:
        self.starts.append(self.clock())
        return self.objective(batch, seeds)

    def seconds_per_step(self) -> float:
        """Median time from one step to the next: patches, forward, backward, optimizer, average of the weights."""
        starts = self.starts[2:] if len(self.starts) > 4 else self.starts
        return statistics.median(b - a for a, b in pairwise(starts))


def train_family(
    name: str, model_config: dict[str, Any], args: argparse.Namespace, patches: PatchDataset, validation_rows: Any
) -> dict[str, Any]:
    """Trains one model and saves it as a pipeline; returns what the training was."""
    folder = Path(args.output_dir) / name
    scheduler = make_noise_scheduler("cosine")
    validate = RestorationValidator(validation_rows, scheduler.config) if len(validation_rows) else None

    def save_pipeline(averaged: UNet3DCTModel) -> None:
        CTDiffusionPipeline(averaged, DDIMScheduler.from_config(scheduler.config)).save_pretrained(folder / "pipeline")

    def run(steps: int, where: Path, minutes: float | None = None, **hooks: Any) -> tuple[Any, Timed]:
        torch.manual_seed(args.seed)
        timed: list[Timed] = []

        def make_objective(prepared: torch.nn.Module) -> Timed:
            objective = ResidualDiffusionObjective(prepared, scheduler, terminal_fraction=args.terminal_fraction)
            timed.append(Timed(objective))
            return timed[0]

        config = TrainingConfig(
            output_dir=str(where),
            max_train_steps=steps,
            max_train_minutes=minutes,
            train_batch_size=args.train_batch_size,
            learning_rate=args.learning_rate,
            lr_warmup_steps=min(50, steps // 10),
            mixed_precision=args.mixed_precision,
            terminal_fraction=args.terminal_fraction,
            checkpointing_steps=10 * steps,  # one at the end
            seed=args.seed,
        )
        result = train(
            config, model=UNet3DCTModel(**model_config), make_objective=make_objective, dataset=patches, **hooks
        )
        return result, timed[0]

    steps = args.steps
    if args.minutes is not None:
        _, probe = run(TIMED_STEPS, folder / "timing")
        steps = max(2, int(60.0 * args.minutes / probe.seconds_per_step()))
    result, timed = run(steps, folder, args.minutes, validate=validate, save_pretrained=save_pipeline)
    return {
        "config": model_config,
        "steps": result.step,
        "planned_steps": steps,
        "seconds_per_step": timed.seconds_per_step(),
        "training_minutes": (timed.starts[-1] - timed.starts[0]) / 60.0,
        "final_loss": result.loss,
        "validation": dict(result.validation.metrics) if result.validation else None,
    }


def load(folder: Path) -> CTDiffusionPipeline:
    pipe = CTDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")


def restore(pipe: CTDiffusionPipeline, case: Any) -> Any:
    return pipe(case.low, output_type="np", generator=torch.Generator().manual_seed(0)).volumes


def memory(config: dict[str, Any], args: argparse.Namespace, scan_shape: tuple[int, ...]) -> dict[str, Any]:
    """Counted, not measured: parameters, operations and bytes of a training batch and of a whole test scan."""
    with torch.device("meta"):
        factor = UNet3DCTModel(**config).size_factor
    padded: Any = tuple(math.ceil(n / f) * f for n, f in zip(scan_shape, factor))
    inference = count_complexity(config, padded)
    training = count_complexity(config, tuple(args.patch_size), batch=args.train_batch_size)
    return {
        "parameters": inference.parameters,
        "scan_shape": list(padded),
        "scan_flops": inference.forward_flops,
        "scan_peak_bytes": inference.weight_bytes + inference.inference_peak_bytes,
        "batch_saved_bytes": training.weight_bytes + training.training_saved_bytes,
    }


def markdown(trained: dict[str, Any], result: Any, args: argparse.Namespace) -> str:
    budget = f"{args.minutes:g} min each" if args.minutes is not None else f"{args.steps} steps each"
    first = result.rows[0]
    d, h, w = next(iter(trained.values()))["scan_shape"]
    headings = ["model", "parameters M", "steps", "s / step", "GFLOP / scan", "s / slice", "scan MiB", "batch MiB"]
    for group in result.groups:
        headings += [f"{group}: PSNR dB", "RMSE body HU", "gain dB"]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for name in ("low dose", *trained):
        quality = [next(row for row in result.table(group) if row["method"] == name) for group in result.groups]
        cells = [name]
        if name in trained:
            facts = trained[name]
            cells += [
                f"{facts['parameters'] / 1e6:.2f}",
                str(facts["steps"]),
                f"{facts['seconds_per_step']:.3f}",
                f"{facts['scan_flops'] / 1e9:.0f}",
                f"{statistics.mean(row['seconds_per_slice'] for row in quality):.3f}",
                f"{facts['scan_peak_bytes'] / 2**20:.0f}",
                f"{facts['batch_saved_bytes'] / 2**20:.0f}",
            ]
        else:
            cells += ["–"] * 7
        for row in quality:
            cells += [f"{row['psnr_full']:.2f}", f"{row['rmse_body_hu']:.2f}", f"{row['gain_body_db']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    note = (
        f"{budget}, batch {args.train_batch_size} of {' x '.join(map(str, args.patch_size))}, "
        f"{first['n_patients']} test patients a group. PSNR is pooled over the full range, gain is over the low dose in "
        f"the body. scan MiB: weights and peak of activations for {d} x {h} x {w}; batch MiB: weights and what is kept for "
        f"the backward pass; both counted for float32. Threads {torch.get_num_threads()}, seed {args.seed}."
    )
    return "\n".join(lines) + f"\n\n{note}\n"


if __name__ == "__main__":
    main()
