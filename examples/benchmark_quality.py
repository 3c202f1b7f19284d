"""The benchmark of restoration quality: phantoms with noise-free truth, learned baselines of equal data, all studies.

    python examples/benchmark_quality.py --output_dir outputs/quality --size cpu

Goes on where it stopped. Sizes: `smoke` (a minute, shows that it runs and nothing else), `cpu` (some two hours on 2
cores), `standard` (a GPU hour). In the folder: `data/` (training and test phantoms; the test has a dose that no training
saw), `models/`, `evaluation/` (benchmark.json, report.html) and `claims.md`: each claim with its limit and the figure.

Two trainings more are for texture: a posterior of noise-free truth has no noise to show, so the network and its twin
are trained on from there with full-dose images, of other noise, as targets.
"""

import argparse
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import train_baselines
from datasets import Dataset
from diffusers import DDIMScheduler

from diffusers_ct import (
    CheckpointContract,
    CTDiffusionPipeline,
    CTVolume,
    ScanConditions,
    UNet3DCTModel,
    __version__,
    load_paired_ct,
)
from diffusers_ct.data import PatchDataset, prepare_paired_ct
from diffusers_ct.evaluation import (
    BenchmarkResult,
    EvaluationSettings,
    LearnedBaseline,
    PipelineRestorer,
    cases_from_rows,
    claims_to_markdown,
    evaluate_restoration,
    load_baseline,
    restoration_claims,
)
from diffusers_ct.evaluation.scan_seed import seed_of_scan
from diffusers_ct.evaluation.studies import STUDY_SIZES, phantom_studies
from diffusers_ct.physics import simulate_low_dose
from diffusers_ct.schedulers import make_noise_scheduler
from diffusers_ct.training import ResidualDiffusionObjective, TrainingConfig, train

OURS = "diffusers-ct"
TWIN = "mse-twin"
TEXTURE = "full-dose target"
TRAIN_DOSES, TEST_DOSES = (0.25, 0.1, 0.05), (0.25, 0.1, 0.05, 0.15)
SAMPLED_DOSES = (0.25, 0.1)
FIRST_TEST_PHANTOM = 5000
NOISE_GAIN = (0.75, 1.8)
TERMINAL_FRACTION = 0.7  # of the patches, at the last timestep; of the texture's trainings 0.3
TUNING_PHANTOMS = 4  # that the classical baselines are tuned on, at every dose
EVERYTHING = CheckpointContract.checkable()


@dataclass(frozen=True)
class Size:
    """How much is trained and measured.

    Attributes:
        train_phantoms, test_phantoms: patients.
        shape: (depth, height, width) of a phantom.
        spacing_mm: (z, y, x).
        steps, batch: of every training but those for texture.
        texture_steps: of these.
        patch: (depth, height, width).
        channels: of the backbone.
        baselines: learned ones, the twin among them.
        studied: those of them that the studies judge as well, beside the model.
        samples, sampled_scans, sampled_slices, sampling_steps: of the calibration, at the doses `SAMPLED_DOSES`.
        one_sample: whether one sample is a row of the table.
        studies: of `STUDY_SIZES`.
    """

    train_phantoms: int
    test_phantoms: int
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    steps: int
    batch: int
    texture_steps: int
    patch: tuple[int, int, int]
    channels: tuple[int, ...]
    baselines: tuple[str, ...]
    studied: tuple[str, ...]
    samples: int
    sampled_scans: int
    sampled_slices: int | None
    sampling_steps: int
    one_sample: bool
    studies: str


ALL = ("red-cnn", "dncnn", TWIN, "cold-diffusion", "epsilon-ddpm")
SIZES = {
    "smoke": Size(3, 2, (2, 192, 192), (2.0, 2.0, 2.0), 2, 1, 2, (1, 32, 32), (8, 8, 8), (TWIN,),
                  (TWIN,), 3, 1, 1, 2, True, "smoke"),
    "cpu": Size(40, 12, (8, 256, 256), (3.0, 1.5, 1.5), 2400, 2, 400, (8, 64, 64), (48, 96, 144), ("red-cnn", TWIN),
                (TWIN,), 8, 3, 2, 8, False, "standard"),
    "standard": Size(400, 40, (16, 384, 384), (2.0, 1.0, 1.0), 20000, 8, 4000, (8, 96, 96), (64, 128, 192), ALL,
                     ALL, 8, 20, None, 20, True, "standard"),
}  # fmt: skip


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--size", choices=tuple(SIZES), required=True)
    parser.add_argument("--seed", type=int, default=0, help="Of weights, patches and noise; one folder a seed.")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no")
    parser.add_argument(
        "--slice_network_steps", type=int, default=None,
        help="Steps of RED-CNN and DnCNN, one of which costs several of the others'; None gives them as many.",
    )  # fmt: skip
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> BenchmarkResult:
    args = parse_args(arguments)
    size, out = SIZES[args.size], Path(args.output_dir)

    # 1. data
    prepare_phantoms(out / "data" / "train", size, size.train_phantoms, 0, TRAIN_DOSES, test=False)
    prepare_phantoms(out / "data" / "test", size, size.test_phantoms, FIRST_TEST_PHANTOM, TEST_DOSES, test=True)

    # 2. models: same data, patches and learning-rate schedule
    common = [
        "--dataset", str(out / "data" / "train"), "--train_batch_size", str(size.batch), "--seed", str(args.seed),
        "--mixed_precision", args.mixed_precision, "--noise_gain", *map(str, NOISE_GAIN), "--resume_from_checkpoint", "latest",
        "--patch_size", *map(str, size.patch), "--block_out_channels", *map(str, size.channels),
        "--lr_warmup_steps", str(min(50, size.steps // 2)),
    ]  # fmt: skip
    train_ours(out, size, args)
    for name in size.baselines:
        if not (out / "models" / name / "baseline" / "config.json").exists():
            slices = name in ("red-cnn", "dncnn")
            steps = args.slice_network_steps if slices and args.slice_network_steps else size.steps
            rate = ["--learning_rate", "5e-4" if slices else "1e-3", "--max_train_steps", str(steps)]
            train_baselines.main([*common, *rate, "--output_dir", str(out / "models"), "--baselines", name])
    train_for_texture(out, size, args)

    # 3. everything that is measured
    result = evaluate(out, size, args)
    claims = restoration_claims(
        result, model=f"{OURS}, 1 step", twin=TWIN, reference="red-cnn", sampler=f"{OURS}, {TEXTURE}, one sample",
        sampler_twin=f"{TWIN}, {TEXTURE}",
    )  # fmt: skip
    (out / "claims.md").write_text(claims_to_markdown(claims))
    print(result.to_markdown())
    print(claims_to_markdown(claims))
    return result


def train_ours(out: Path, size: Size, args: argparse.Namespace) -> None:
    """One phase, most patches at the last timestep, where one step is learned.

    Steps at the last timestep alone and samples afterwards left one step as far behind the twin and the samples worse.
    """
    folder = out / "models" / "ours"
    if (folder / "pipeline" / "model_index.json").exists():
        return
    rows = load_paired_ct(out / "data" / "train", split="train")
    scheduler = make_noise_scheduler()
    sampler = DDIMScheduler.from_config(scheduler.config)
    config = TrainingConfig(
        output_dir=str(folder), max_train_steps=size.steps, train_batch_size=size.batch, learning_rate=1e-3,
        lr_warmup_steps=min(50, size.steps // 2), terminal_fraction=TERMINAL_FRACTION, seed=args.seed,
        mixed_precision=args.mixed_precision, resume_from_checkpoint="latest",
    )  # fmt: skip
    torch.manual_seed(args.seed)
    train(
        config,
        model=UNet3DCTModel(block_out_channels=size.channels, conv_mode="2.5d"),
        make_objective=lambda m: ResidualDiffusionObjective(m, scheduler, terminal_fraction=TERMINAL_FRACTION),
        dataset=PatchDataset(rows, size.patch, 64 * size.batch, seed=args.seed, noise_gain=NOISE_GAIN),
        save_pretrained=lambda averaged: CTDiffusionPipeline(
            averaged, sampler, contract_of(rows, size)
        ).save_pretrained(folder / "pipeline"),
    )


def contract_of(rows: Dataset, size: Size) -> dict[str, Any]:
    facts = rows.select_columns(["spacing_mm", "noise_hu", "dose_fraction", "conditions"])[:]
    levels = [level * gain for scan in facts["noise_hu"] for level in scan for gain in NOISE_GAIN]
    scans = [ScanConditions(**json.loads(text)) for text in facts["conditions"]]
    return CheckpointContract.from_scans(
        facts["spacing_mm"], levels, facts["dose_fraction"], scans, training_data_licence="Apache-2.0",
        training_data=f"{size.train_phantoms} diffusers-ct phantoms, drawn by the package", package_version=__version__,
    ).to_dict()  # fmt: skip


def prepare_phantoms(folder: Path, size: Size, count: int, first: int, doses: tuple[float, ...], *, test: bool) -> None:
    """Pairs with noise-free truth; a finished folder is left as it is."""
    prepare_paired_ct(
        folder, phantoms=count, seed=first, dose_fractions=doses, shape=size.shape, spacing_mm=size.spacing_mm,
        validation_fraction=0.0 if test else 0.05, test_fraction=1.0 if test else 0.0, salt="benchmark",
    )  # fmt: skip


def train_for_texture(out: Path, size: Size, args: argparse.Namespace) -> None:
    """Trains the network and its twin on, with full-dose images as targets."""
    pipeline, twin = out / "models" / "ours-texture" / "pipeline", out / "models" / f"{TWIN}-texture" / "baseline"
    if (pipeline / "model_index.json").exists() and (twin / "config.json").exists():
        return
    patches = PatchDataset(full_dose_targets(out, size), size.patch, 64 * size.batch, seed=args.seed + 1)
    scheduler = make_noise_scheduler()

    def settings(folder: Path) -> TrainingConfig:
        return TrainingConfig(
            output_dir=str(folder), max_train_steps=size.texture_steps, train_batch_size=size.batch, learning_rate=5e-4,
            lr_warmup_steps=min(20, size.texture_steps // 2), terminal_fraction=0.3, seed=args.seed + 1,
            mixed_precision=args.mixed_precision, resume_from_checkpoint="latest",
        )  # fmt: skip

    if not (pipeline / "model_index.json").exists():
        sampler = DDIMScheduler.from_config(scheduler.config)
        train(
            settings(pipeline.parent),
            model=CTDiffusionPipeline.from_pretrained(out / "models" / "ours" / "pipeline").unet,
            make_objective=lambda m: ResidualDiffusionObjective(m, scheduler, terminal_fraction=0.3),
            dataset=patches,
            save_pretrained=lambda averaged: CTDiffusionPipeline(averaged, sampler).save_pretrained(pipeline),
        )
    if not (twin / "config.json").exists():
        baseline = load_baseline(out / "models" / TWIN / "baseline")

        def save(averaged: torch.nn.Module) -> None:
            baseline.network = averaged
            baseline.save(twin)

        train(
            settings(twin.parent), model=baseline.network, make_objective=baseline.make_objective, dataset=patches,
            save_pretrained=save,
        )  # fmt: skip


def full_dose_targets(out: Path, size: Size) -> Dataset:
    """The training pairs with a full-dose image of its own noise in place of the truth; kept on disk."""
    folder = out / "data" / "train-full-dose"
    if not (folder / "dataset_info.json").exists():
        rows = load_paired_ct(out / "data" / "train", split="train")

        def noisy(row: dict[str, Any], index: int) -> dict[str, Any]:
            truth = np.asarray(row["full"], np.float32)
            hu = simulate_low_dose(
                truth, spacing_mm=tuple(row["spacing_mm"]), dose_fraction=1.0, seed=10_000 + index,
                source_noise="noise_free", slice_thickness_mm=size.spacing_mm[0],
            )  # fmt: skip
            return {"full": np.round(hu).astype(np.int16), "target": "normal_dose"}

        rows.with_format("numpy").map(noisy, with_indices=True, features=rows.features).save_to_disk(folder)
    return Dataset.load_from_disk(folder)


def evaluate(out: Path, size: Size, args: argparse.Namespace) -> BenchmarkResult:
    cases = cases_from_rows(load_paired_ct(out / "data" / "test", split="test"))
    train_rows = load_paired_ct(out / "data" / "train", split="train")
    tuning = len(TRAIN_DOSES) * min(
        TUNING_PHANTOMS, len(train_rows) // len(TRAIN_DOSES)
    )  # a phantom's doses follow each other
    training = cases_from_rows(train_rows.select(range(tuning)))
    ours = restorer(out / "models" / "ours" / "pipeline", size, args.seed)
    texture = restorer(out / "models" / "ours-texture" / "pipeline", size, args.seed)
    learned = {name: method(out / "models" / name / "baseline", args.seed) for name in size.baselines}
    steps = {OURS: size.steps} | {
        name: json.loads((out / "models" / name / "training_config.json").read_text())["max_train_steps"]
        for name in size.baselines
    }
    texture_twin = method(out / "models" / f"{TWIN}-texture" / "baseline", args.seed)
    studied = {name: out / "models" / name / "baseline" for name in size.studied}
    studies = phantom_studies(
        {f"{OURS}, 1 step": ours.one_step, **{name: learned[name] for name in studied}},
        repeatable={
            f"{OURS}, 1 step": ours.one_step,
            **{name: fixed(folder, args.seed) for name, folder in studied.items()},
        },
        samplers={
            f"{OURS}, {TEXTURE}, 1 step": texture.one_step,
            f"{OURS}, {TEXTURE}, one sample": texture.one_sample,
            f"{TWIN}, {TEXTURE}": texture_twin,
        },
        size=STUDY_SIZES[size.studies],
        pixel_mm=size.spacing_mm[1],
        slice_mm=size.spacing_mm[0],
        seed=args.seed,
    )
    weights = {OURS: sha256(out / "models" / "ours" / "pipeline" / "unet")}
    weights |= {name: sha256(out / "models" / name / "baseline") for name in learned}
    settings = EvaluationSettings(
        split="phantoms that no model was trained on; 15 % is a dose that none was trained on",
        samples=size.samples, sampled_scans=size.sampled_scans, classical=True, seed=args.seed,
        sampled_doses=SAMPLED_DOSES, sampled_slices=size.sampled_slices, one_sample=size.one_sample,
    )  # fmt: skip
    facts = {
        "size": args.size,
        "training": f"{size.train_phantoms} phantoms, batches of {size.batch}",
        "steps": json.dumps(steps),
        "sampling_steps": size.sampling_steps,
        "texture_weights": sha256(out / "models" / "ours-texture" / "pipeline" / "unet"),
        "command": f"python examples/benchmark_quality.py --size {args.size} --seed {args.seed} --mixed_precision "
        f"{args.mixed_precision} --slice_network_steps {args.slice_network_steps}",
    }
    return evaluate_restoration(
        out / "evaluation", cases, {OURS: ours}, training=training, learned=learned, weights=weights, settings=settings,
        title="Quality of low-dose restoration", facts=facts, studies=studies, say=print,
    )  # fmt: skip


def restorer(folder: Path, size: Size, seed: int) -> PipelineRestorer:
    """A trained pipeline, on the GPU where there is one."""
    pipe = CTDiffusionPipeline.from_pretrained(folder)
    if torch.cuda.is_available():
        pipe.to("cuda")
    # The test set leaves the training doses on purpose.
    ignored = EVERYTHING if pipe.contract is not None else ()
    return PipelineRestorer(pipe, sampling_steps=size.sampling_steps, seed=seed, ignore_contract=ignored)


def method(folder: Path, seed: int) -> Callable[[CTVolume], np.ndarray]:
    """A trained baseline as a method; those that sample draw other noise for every scan."""
    baseline = on_device(folder)
    return lambda volume: baseline.restore(volume, seed=seed_of_scan(volume, seed))


def fixed(folder: Path, seed: int) -> Callable[[CTVolume], np.ndarray]:
    """The same with one noise for all scans, for scans with and without a lesion."""
    baseline = on_device(folder)
    return lambda volume: baseline.restore(volume, seed=seed)


def on_device(folder: Path) -> LearnedBaseline:
    baseline = load_baseline(folder)
    baseline.network.to("cuda" if torch.cuda.is_available() else "cpu")
    return baseline


def sha256(folder: Path) -> str:
    """Of the weights in a folder."""
    (file,) = folder.glob("*.safetensors")
    return f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"


if __name__ == "__main__":
    main()
