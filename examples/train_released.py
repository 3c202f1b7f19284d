"""Trains the released restoration model: phantoms alone, of four spacings, three kernels and three doses.

    python examples/train_released.py --output_dir outputs/released --mixed_precision bf16
    diffusers-ct evaluate outputs/released/evaluation --dataset outputs/released/judged --model outputs/released/pipeline

Goes on where it stopped. Leaves `pipeline/` (weights in half precision, a few MB) and `judged/`: other phantoms at two doses,
a third of which are for tuning the classical baselines. No image of a patient is used, so the weights may be given to anyone.
"""

import argparse
import json
from itertools import product
from pathlib import Path

import torch
from datasets import concatenate_datasets
from diffusers import DDIMScheduler

from diffusers_ct import (
    CheckpointContract,
    CTDiffusionPipeline,
    ScanConditions,
    UNet3DCTModel,
    __version__,
    load_paired_ct,
)
from diffusers_ct.data import PatchDataset, prepare_paired_ct
from diffusers_ct.schedulers import make_noise_scheduler
from diffusers_ct.training import ResidualDiffusionObjective, TrainingConfig, train

SPACINGS_MM = ((1.0, 0.75, 0.75), (2.0, 0.85, 0.85), (3.0, 0.8, 0.8), (5.0, 0.95, 0.95))
JUDGED_SPACING_MM = (3.0, 0.8, 0.8)
FIRST_JUDGED_PHANTOM = 7000
KERNELS = ("smooth", "soft", "sharp")
DOSES, JUDGED_DOSES = (0.25, 0.1, 0.05), (0.25, 0.1)
NOISE_GAIN = (0.6, 1.6)
# Of the patches, at the last timestep, where one step is learned.
TERMINAL_FRACTION = 0.7


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=int, default=6, help="Of each spacing and kernel, in training.")
    parser.add_argument("--judged_phantoms", type=int, default=12, help="Two thirds of them are the test.")
    parser.add_argument("--shape", type=int, nargs=3, default=(8, 512, 512), metavar=("D", "H", "W"))
    parser.add_argument("--block_out_channels", type=int, nargs=3, default=(48, 96, 144), metavar=("C1", "C2", "C3"))
    parser.add_argument(
        "--patch", type=int, default=64, help="Rows and columns of a patch; its depth is the phantom's."
    )
    TrainingConfig.add_arguments(parser)
    parser.set_defaults(
        max_train_steps=1500, train_batch_size=4, learning_rate=1e-3, terminal_fraction=TERMINAL_FRACTION,
        resume_from_checkpoint="latest",
    )  # fmt: skip
    args = parser.parse_args(arguments)
    if args.push_to_hub:
        parser.error("Nothing is pushed from here: judge the model first, then use `diffusers-ct card` and `push`.")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    out = Path(args.output_dir)

    # 1. phantoms: no two folders share one
    common = {"shape": tuple(args.shape), "validation_fraction": 0.0, "salt": "released"}
    parts = []
    for k, (spacing_mm, kernel) in enumerate(product(SPACINGS_MM, KERNELS)):
        folder = out / "train" / f"{spacing_mm[0]:g}mm-{kernel}"
        prepare_paired_ct(
            folder, phantoms=args.phantoms, seed=100 * k, spacing_mm=spacing_mm, kernel=kernel, dose_fractions=DOSES,
            test_fraction=0.0, **common,
        )  # fmt: skip
        parts.append(load_paired_ct(folder, split="train"))
    prepare_paired_ct(
        out / "judged", phantoms=args.judged_phantoms, seed=FIRST_JUDGED_PHANTOM, spacing_mm=JUDGED_SPACING_MM,
        kernel="soft", dose_fractions=JUDGED_DOSES, test_fraction=2 / 3, **common,
    )  # fmt: skip

    # 2. training
    config = TrainingConfig.from_args(args)
    rows = concatenate_datasets(parts)
    patches = PatchDataset(
        rows, (args.shape[0], args.patch, args.patch), 64 * config.train_batch_size, seed=config.seed,
        noise_gain=NOISE_GAIN,
    )  # fmt: skip
    scheduler = make_noise_scheduler(config.noise_schedule)
    torch.manual_seed(config.seed)

    def save(averaged: torch.nn.Module) -> None:
        pipe = CTDiffusionPipeline(averaged, DDIMScheduler.from_config(scheduler.config), contract_of(rows).to_dict())
        pipe.to(dtype=torch.float16).save_pretrained(out / "pipeline")

    train(
        config,
        model=UNet3DCTModel(block_out_channels=tuple(args.block_out_channels), conv_mode="2.5d"),
        make_objective=lambda m: ResidualDiffusionObjective(m, scheduler, terminal_fraction=config.terminal_fraction),
        dataset=patches,
        save_pretrained=save,
    )
    print(f"pipeline: {out / 'pipeline'}\njudge it on: {out / 'judged'}")


def contract_of(rows) -> CheckpointContract:
    """What the patches cover. No kernel is promised by name: three windows, from smooth to sharp, stand for all."""
    facts = rows.select_columns(["spacing_mm", "noise_hu", "dose_fraction", "conditions", "patient_key"])[:]
    scans = [ScanConditions(**{**json.loads(text), "kernel": None}) for text in facts["conditions"]]
    levels = [level * gain for scan in facts["noise_hu"] for level in scan for gain in NOISE_GAIN]
    return CheckpointContract.from_scans(
        facts["spacing_mm"], levels, facts["dose_fraction"], scans, training_data_licence="Apache-2.0",
        training_data=f"{len(set(facts['patient_key']))} diffusers-ct phantoms, drawn by the package; no patient's image",
        package_version=__version__,
    )  # fmt: skip


if __name__ == "__main__":
    main()
