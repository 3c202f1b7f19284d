"""Trains the learned baselines on a prepared dataset with one set of settings, each into a folder of its own.

    diffusers-ct prepare data/phantoms --phantoms 32 --dose 0.25 --dose 0.1
    python examples/train_baselines.py --dataset data/phantoms --output_dir outputs/baselines --max_train_steps 1500

Flags that `train_ldct.py` has too mean the same, and with the same seed the same patches come in the same order; so
with equal flags all methods have had the same data and budget. --terminal_fraction and --noise_schedule belong to the
residual diffusion and have no effect here. `load_baseline(OUTPUT_DIR + "/red-cnn/baseline").restore(case.low)` is a
method of `run_benchmark`; --evaluate runs it on all of them.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from diffusers_ct import UNet3DCTModel, load_paired_ct
from diffusers_ct.cli.scripts import one_line_mistakes
from diffusers_ct.data import PatchDataset, check_patch_size
from diffusers_ct.evaluation import cases_from_rows, run_benchmark
from diffusers_ct.evaluation.learned_baselines import LEARNED_BASELINES, LearnedBaseline, load_baseline, make_baseline
from diffusers_ct.models import PRESETS
from diffusers_ct.models.presets import preset_config
from diffusers_ct.training import TrainingConfig, train

CALIBRATION_BATCHES = 32  # for what is measured rather than trained: the statistics of DnCNN's batch norms


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="Folder made by `diffusers-ct prepare`, or a Hub dataset.")
    parser.add_argument("--baselines", nargs="+", choices=tuple(LEARNED_BASELINES), default=tuple(LEARNED_BASELINES))
    parser.add_argument(
        "--patch_size", type=int, nargs=3, default=(8, 64, 64), metavar=("D", "H", "W"),
        help="Voxels of a training patch: slices (no more than the thinnest scan has), rows and columns. [8 64 64]",
    )  # fmt: skip
    parser.add_argument(
        "--noise_gain", type=float, nargs=2, default=None, metavar=("MIN", "MAX"),
        help="Varies the dose: the noise of each patch times a factor drawn between these, such as 0.7 1.8.",
    )  # fmt: skip
    parser.add_argument(
        "--preset", choices=tuple(PRESETS), default="ct-unet25d-s",
        help="The backbone: that of the model they are compared with. [ct-unet25d-s]",
    )  # fmt: skip
    parser.add_argument(
        "--block_out_channels", type=int, nargs="+", metavar="C", help="Of the backbone, instead of the preset's."
    )
    parser.add_argument("--conv_mode", choices=("3d", "2.5d"), help="Of the backbone, instead of the preset's.")
    parser.add_argument("--evaluate", choices=("validation", "test"), help="Judge all on this split when trained.")
    TrainingConfig.add_arguments(parser)
    return parser


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = make_parser()
    args = parser.parse_args(arguments)
    with one_line_mistakes(parser):
        return run(args)


def run(args: argparse.Namespace) -> dict[str, Any]:
    config = TrainingConfig.from_args(args)
    out = Path(config.output_dir)
    backbone = preset_config(args.preset, block_out_channels=args.block_out_channels, conv_mode=args.conv_mode)
    if config.push_to_hub:
        raise SystemExit("Baselines are not pushed: leave out --push_to_hub.")
    if config.gradient_checkpointing and {"red-cnn", "dncnn"} & set(args.baselines):
        raise SystemExit("--gradient_checkpointing is of the backbone: RED-CNN and DnCNN do not have it.")

    check_patch_size(args.patch_size, UNet3DCTModel(**backbone).size_factor)

    # 1. one dataset for all
    rows = load_paired_ct(args.dataset, split="train")
    judged = load_paired_ct(args.dataset, split=args.evaluate) if args.evaluate else None
    patches = PatchDataset(
        rows, tuple(args.patch_size),
        patches_per_epoch=64 * config.train_batch_size * config.gradient_accumulation_steps,
        seed=config.seed, noise_gain=args.noise_gain,
    )  # fmt: skip

    # 2. train each with the same settings
    trained = {}
    for name in args.baselines:
        torch.manual_seed(config.seed)
        baseline = make_baseline(name, backbone=backbone)
        trained[name] = train_one(baseline, replace(config, output_dir=str(out / name)), patches)
        print(f"{name}: loss {trained[name]['loss']:.4f}, saved in {out / name / 'baseline'}")

    # 3. judge
    summary: dict[str, Any] = {"baselines": trained, "training_config": config.to_dict()}
    if judged is not None:
        methods = {name: method_of(out / name / "baseline") for name in args.baselines}
        result = run_benchmark(
            cases_from_rows(judged), methods, facts={"split": args.evaluate, "training": trained},
            progress=lambda cases: tqdm(cases, desc="evaluating"),
        )  # fmt: skip
        summary["benchmark"] = result.to_dict()
        print(result.to_markdown())
    (out / "baselines.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def train_one(baseline: LearnedBaseline, config: TrainingConfig, patches: PatchDataset) -> dict[str, Any]:
    """Trains a baseline, saves it with averaged weights, and says what the training was."""

    def save(averaged: torch.nn.Module) -> None:
        baseline.network = averaged
        baseline.calibrate(first_batches(patches, config.train_batch_size))
        baseline.save(Path(config.output_dir) / "baseline")

    patches.set_epoch(0)
    started = time.monotonic()
    result = train(
        config, model=baseline.network, make_objective=baseline.make_objective, dataset=patches, save_pretrained=save
    )
    return {
        "num_parameters": baseline.num_parameters,
        "steps": result.step,
        "loss": result.loss,
        "minutes": (time.monotonic() - started) / 60.0,
    }


def first_batches(patches: PatchDataset, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
    """The first batches of the dataset's epoch."""
    for start in range(0, min(CALIBRATION_BATCHES * batch_size, len(patches)), batch_size):
        yield torch.utils.data.default_collate([patches[i] for i in range(start, start + batch_size)])


def method_of(folder: Path) -> Any:
    """A saved baseline as a method of `run_benchmark`, one sample from seed 0."""
    baseline = load_baseline(folder)
    baseline.network.to("cuda" if torch.cuda.is_available() else "cpu")
    return lambda case: baseline.restore(case.low, seed=0)


if __name__ == "__main__":
    main()
