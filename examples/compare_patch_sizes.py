"""Patch sizes of the stem, with and without the full-resolution branch, against none: at equal steps and at equal time.

    OMP_NUM_THREADS=1 python examples/compare_patch_sizes.py --output_dir outputs/patches --size cpu

Goes on where it stopped. Sizes: `smoke` (shows that it runs and nothing else) and `cpu` (some 30 minutes of one free core). The
task is the quality benchmark's: its phantoms in `data/`, which may be copied from there, one-step restoration. All
variants have the same widths, so their parameters differ by the stem, the head and the branch alone, and at a seed get
the same patches in the same order.

Equal time is CPU time (on a GPU wall time): what the network without patches takes for its steps. How many steps the
others have of it is measured first, a few steps of each in turn, so that a busy machine slows all alike; the learning
rate's cosine then ends with either budget. The network without patches is the same in both.

Judged at the benchmark's lowest noise, where patches lose most: error on test phantoms, transfer function of faint and
strong edges, lesions of 3 mm in anatomy, an observer of 3 mm rods, noise in water. In the folder: `patch_sizes.md`,
`.json`, `.png`. Networks are small and trained briefly, with one learning rate: an ordering, not what each can reach.
"""

import argparse
import json
import math
import shutil
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import benchmark_quality
import torch
from benchmark_quality import FIRST_TEST_PHANTOM, NOISE_GAIN, TEST_DOSES, TRAIN_DOSES, prepare_phantoms, restorer
from compare_families import TIMED_STEPS, Timed
from diffusers import DDIMScheduler
from patch_sizes_report import write_report

from diffusers_ct import CTDiffusionPipeline, UNet3DCTModel, load_paired_ct
from diffusers_ct.data import PatchDataset
from diffusers_ct.evaluation import cases_from_rows, run_benchmark
from diffusers_ct.evaluation.studies import (
    LOW_DOSE,
    detectability_study,
    insertion_study,
    noise_study,
    phantom_scans,
    transfer_study,
)
from diffusers_ct.physics.low_contrast_phantom import LOW_CONTRAST_RODS, RodPhantom
from diffusers_ct.schedulers import make_noise_scheduler
from diffusers_ct.training import ResidualDiffusionObjective, TrainingConfig, train

DOSE = 0.25
BUDGETS = ("equal steps", "equal time")
NONE = "none"
PATCHES = {NONE: (1, 1, 1), "1x2x2": (1, 2, 2), "2x2x2": (2, 2, 2), "1x4x4": (1, 4, 4)}
REFINED = " + branch"
VARIANTS = (NONE, *(patch + end for patch in list(PATCHES)[1:] for end in ("", REFINED)))
TIMED_ROUNDS = 3
LESION_MM, LESIONS_HU = 3.0, (20.0, 50.0)
# Beyond those of `phantom_studies`: no training knows them.
FIRST_LESION_PHANTOM = 910_000


@dataclass(frozen=True)
class Size:
    """How much is trained and measured.

    Attributes:
        variants: that are compared.
        channels, branch: widths of all networks, and of the full-resolution branch.
        patch: (depth, height, width) of a training patch, one a step.
        steps: of the network without patches.
        test_phantoms: of the benchmark's.
        slab_slices: that a network gets at once in the studies of rods.
        transfer_slices, noise_slices, observer_slices: of these studies.
        lesion_scans, lesion_slices: phantoms with lesions.
    """

    variants: tuple[str, ...]
    channels: tuple[int, ...]
    branch: int
    patch: tuple[int, int, int]
    steps: int
    test_phantoms: int
    slab_slices: int
    transfer_slices: int
    noise_slices: int
    observer_slices: int
    lesion_scans: int
    lesion_slices: int


SIZES = {
    "smoke": Size((NONE, "1x2x2", "1x2x2" + REFINED), (8, 8, 8), 4, (2, 32, 32), 2, 2, 2, 4, 4, 8, 2, 8),
    "cpu": Size(VARIANTS, (16, 32, 48), 8, (8, 48, 48), 200, 6, 8, 16, 16, 32, 2, 8),
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--size", choices=tuple(SIZES), required=True)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=(0, 1, 2), help="Of weights, patches and the studies' noise."
    )
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    args = parser.parse_args(arguments)
    if len(set(args.seeds)) < max(2, len(args.seeds)):
        parser.error("--seeds must be different ones, two at least: intervals are over them.")
    return args


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = parse_args(arguments)
    size, out = SIZES[args.size], Path(args.output_dir)
    data = benchmark_quality.SIZES[args.size]

    # 1. the benchmark's phantoms
    prepare_phantoms(out / "data" / "train", data, data.train_phantoms, 0, TRAIN_DOSES, test=False)
    prepare_phantoms(out / "data" / "test", data, data.test_phantoms, FIRST_TEST_PHANTOM, TEST_DOSES, test=True)

    # 2. how many steps each has
    seconds = seconds_per_step(out, size, args)
    steps = {
        "equal steps": dict.fromkeys(size.variants, size.steps),
        "equal time": {name: max(2, round(size.steps * seconds[NONE] / seconds[name])) for name in size.variants},
    }

    # 3. train and judge, one budget after the other; the report grows with them
    environment: dict[str, Any] = {}
    runs: list[dict[str, Any]] = []
    patients: list[dict[str, list[float]]] = [{} for _ in args.seeds]
    for number, budget in enumerate(BUDGETS, start=1):
        for seed, gains in zip(args.seeds, patients):
            names = [name for name in size.variants if (budget, name) != ("equal time", NONE)]
            trained = {name: train_variant(out, name, budget, steps[budget][name], seed, size, args) for name in names}
            judged = judge(out, names, budget, seed, size, data)
            environment = judged["environment"]
            gains |= judged["patients"]
            if budget == "equal time":
                is_none = {"variant": NONE, "seed": seed}.items()
                (of_none,) = [run for run in runs if is_none <= run.items()]
                runs.append({**of_none, "budget": budget})
            else:
                runs.append({"variant": LOW_DOSE, "budget": "", "seed": seed, **judged["methods"][LOW_DOSE]})
            for name in names:
                values = {**trained[name], **judged["methods"][run_name(name, budget)]}
                runs.append({"variant": name, "budget": budget, "seed": seed, **values})
        facts = {
            "command": f"python examples/compare_patch_sizes.py --size {args.size} --seeds "
            f"{' '.join(map(str, args.seeds))} --learning_rate {args.learning_rate:g}",
            "size": asdict(size),
            "spacing_mm": data.spacing_mm,
            "dose_fraction": DOSE,
            "timed_seconds_per_step": seconds,
            "patient_gain_db": patients,
            "environment": environment,
        }
        report = write_report(out, runs, facts, reference=NONE, budgets=BUDGETS[:number])
    return report


def run_name(variant: str, budget: str) -> str:
    return f"{variant}, {budget}"


def model_config(name: str, size: Size) -> dict[str, Any]:
    """Arguments of `UNet3DCTModel` of a variant."""
    return {
        "conv_mode": "2.5d",
        "layers_per_block": 1,
        "block_out_channels": size.channels,
        "patch_size": PATCHES[name.removesuffix(REFINED)],
        "refine_channels": size.branch if name.endswith(REFINED) else 0,
    }


def seconds_per_step(out: Path, size: Size, args: argparse.Namespace) -> dict[str, float]:
    """Median of each variant's steps, the variants in turn; measured once a folder."""
    path = out / "timing.json"
    if not path.exists():
        times: dict[str, list[float]] = {name: [] for name in size.variants}
        for _ in range(TIMED_ROUNDS):
            for name in size.variants:
                timed = run_training(out / "timing" / name, name, TIMED_STEPS, 0, size, args, out)
                times[name].append(timed.seconds_per_step())
        path.write_text(json.dumps({name: statistics.median(values) for name, values in times.items()}) + "\n")
    return json.loads(path.read_text())


def train_variant(
    out: Path, name: str, budget: str, steps: int, seed: int, size: Size, args: argparse.Namespace
) -> dict[str, Any]:
    """Trains one network, unless that is done, and tells what the training was."""
    folder = run_folder(out, name, budget, seed)
    if not (folder / "run.json").exists():
        print(f"seed {seed}, {run_name(name, budget)}: {steps} steps", flush=True)
        timed = run_training(folder, name, steps, seed, size, args, out)
        model = CTDiffusionPipeline.from_pretrained(folder / "pipeline").unet
        facts = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "steps": steps,
            "seconds_per_step": timed.seconds_per_step(),
            "training_seconds": timed.starts[-1] - timed.starts[0] + timed.seconds_per_step(),
        }
        (folder / "run.json").write_text(json.dumps(facts) + "\n")
    return json.loads((folder / "run.json").read_text())


def run_folder(out: Path, name: str, budget: str, seed: int) -> Path:
    return out / f"seed-{seed}" / f"{name} {budget}".replace(" + ", "-").replace(" ", "-")


def run_training(
    folder: Path, name: str, steps: int, seed: int, size: Size, args: argparse.Namespace, out: Path
) -> Timed:
    """One training into `folder/pipeline`; the last step alone is learned, as all is judged by one sampling step."""
    shutil.rmtree(folder, ignore_errors=True)  # of a run that did not end
    patches = PatchDataset(
        load_paired_ct(out / "data" / "train", split="train"), size.patch, 64, seed=seed, noise_gain=NOISE_GAIN
    )
    scheduler = make_noise_scheduler()
    # Of a busy machine's time, what this process had of it.
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    timed: list[Timed] = []

    def make_objective(model: torch.nn.Module) -> Timed:
        timed.append(Timed(ResidualDiffusionObjective(model, scheduler, terminal_fraction=1.0), clock))
        return timed[0]

    config = TrainingConfig(
        output_dir=str(folder), max_train_steps=steps, train_batch_size=1, learning_rate=args.learning_rate,
        lr_warmup_steps=min(20, steps // 10), terminal_fraction=1.0, checkpointing_steps=10 * steps, seed=seed,
    )  # fmt: skip
    torch.manual_seed(seed)
    train(
        config,
        model=UNet3DCTModel(**model_config(name, size)),
        make_objective=make_objective,
        dataset=patches,
        save_pretrained=lambda averaged: CTDiffusionPipeline(
            averaged, DDIMScheduler.from_config(scheduler.config)
        ).save_pretrained(folder / "pipeline"),
    )
    return timed[0]


def judge(
    out: Path, names: list[str], budget: str, seed: int, size: Size, data: benchmark_quality.Size
) -> dict[str, dict[str, Any]]:
    """These variants of a seed: "methods" -> name -> value by metric, "patients" -> name -> gains, "environment"."""
    path = out / f"seed-{seed}" / f"judged-{budget.replace(' ', '-')}.json"
    if path.exists():
        return json.loads(path.read_text())
    print(f"seed {seed}, {budget}: judging", flush=True)
    methods = {
        run_name(name, budget): restorer(run_folder(out, name, budget, seed) / "pipeline", data, seed).one_step
        for name in names
    }
    found: dict[str, dict[str, Any]] = {name: {} for name in (LOW_DOSE, *methods)}

    # 1. test phantoms
    cases = cases_from_rows(load_paired_ct(out / "data" / "test", split="test"))
    cases = [case for case in cases if math.isclose(case.dose_fraction, DOSE)][: size.test_phantoms]
    result = run_benchmark(cases, {name: lambda case, f=f: f(case.low) for name, f in methods.items()})
    (group,) = result.groups
    rows = {row["method"]: row for row in result.table(group)}
    for name, values in found.items():
        values |= {column: rows[name][column] for column in ("gain_body_db", "rmse_body_hu", "psnr_full")}

    # 2. sharpness, noise and an observer, on rods in water
    depth_mm, pixel_mm = data.spacing_mm[0], data.spacing_mm[1]
    common: dict[str, Any] = {"slab_slices": size.slab_slices, "seed": seed, "slice_mm": depth_mm}
    low: dict[str, Any] = {**common, "dose_fractions": (DOSE,)}
    for row in transfer_study(methods, pixel_mm=pixel_mm, slices=size.transfer_slices, **low):
        found[row["method"]][f"f50_per_mm: {row['insert']}"] = row["f50_per_mm"]
    small = RodPhantom(pixel_mm, LOW_CONTRAST_RODS[:1], copies=8)
    for row in noise_study(methods, phantom=small, slices=size.noise_slices, **low):
        if row["method"] in found:
            found[row["method"]]["noise_hu"] = row["sd_hu"]
    for row in detectability_study(methods, phantom=small, slices=size.observer_slices, **low):
        found[row["method"]][f"auc: {row['insert']}"] = row["auc"]

    # 3. small lesions in anatomy
    scans = phantom_scans(
        range(FIRST_LESION_PHANTOM, FIRST_LESION_PHANTOM + size.lesion_scans), ("abdomen",),
        shape=(size.lesion_slices, *data.shape[1:]), spacing_mm=data.spacing_mm,
    )  # fmt: skip
    for row in insertion_study(
        methods, scans, dose_fractions=(DOSE,), diameters_mm=(LESION_MM,), contrasts_hu=LESIONS_HU, places=36, seed=seed
    ):
        found[row["method"]][f"recovery: {row['contrast_hu']:g} HU"] = row["recovery"]

    gains = {name: [p["gain_body_db"] for p in result.patient_means(group, name).values()] for name in methods}
    judged = {"methods": found, "patients": gains, "environment": result.facts}
    path.write_text(json.dumps(judged) + "\n")
    return judged


if __name__ == "__main__":
    main()
