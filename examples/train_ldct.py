"""Trains a low-dose CT restoration model on a prepared dataset and saves it as a `CTDiffusionPipeline`.

    diffusers-ct prepare data/phantoms --phantoms 32 --dose 0.25 --dose 0.1
    accelerate launch examples/train_ldct.py --dataset data/phantoms --output_dir outputs/model \
        --training_data "32 diffusers-ct phantoms" --training_data_licence Apache-2.0

The model learns the residual between full and low dose by v-prediction (see the README's method index). Flags carry
diffusers' names; `--help` lists them all. `CTDiffusionPipeline.from_pretrained(OUTPUT_DIR + "/pipeline")` loads the
result.
"""

import argparse
import json
from pathlib import Path

from diffusers import DDIMScheduler

from diffusers_ct import (
    CheckpointContract,
    CTDiffusionPipeline,
    ScanConditions,
    UNet3DCTModel,
    __version__,
    load_paired_ct,
)
from diffusers_ct.data import PatchDataset
from diffusers_ct.evaluation.validation import RestorationValidator
from diffusers_ct.schedulers import make_noise_scheduler
from diffusers_ct.training import ResidualDiffusionObjective, TrainingConfig, train


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--dataset", required=True, help="Folder made by `diffusers-ct prepare`, or a dataset on the Hub."
    )
    parser.add_argument(
        "--training_data", required=True, help="What the data are, in words, for the contract and card."
    )
    parser.add_argument("--training_data_licence", required=True, help="Their licence.")
    parser.add_argument("--patch_size", type=int, nargs=3, default=(8, 64, 64), metavar=("D", "H", "W"))
    parser.add_argument(
        "--noise_gain", type=float, nargs=2, default=None, metavar=("MIN", "MAX"), help="Vary the dose."
    )
    parser.add_argument("--block_out_channels", type=int, nargs="+", default=(48, 96, 144))
    parser.add_argument("--conv_mode", choices=("3d", "2.5d"), default="2.5d")
    TrainingConfig.add_arguments(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    config = TrainingConfig.from_args(args)

    # 1. data: patches for training, whole slices of other patients for validation
    training_rows = load_paired_ct(args.dataset, split="train")
    validation_rows = load_paired_ct(args.dataset, split="validation")
    patches = PatchDataset(
        training_rows,
        tuple(args.patch_size),
        patches_per_epoch=64 * config.train_batch_size * config.gradient_accumulation_steps,
        seed=config.seed,
        noise_gain=args.noise_gain,
    )

    # 2. model and objective
    model = UNet3DCTModel(block_out_channels=tuple(args.block_out_channels), conv_mode=args.conv_mode)
    scheduler = make_noise_scheduler(config.noise_schedule)

    def make_objective(prepared):
        return ResidualDiffusionObjective(prepared, scheduler, terminal_fraction=config.terminal_fraction)

    # 3. train, then save what a user loads: averaged weights, sampler, contract
    def save_pipeline(averaged):
        contract = contract_of(training_rows, args).to_dict()
        pipeline = CTDiffusionPipeline(averaged, DDIMScheduler.from_config(scheduler.config), contract)
        pipeline.save_pretrained(Path(config.output_dir) / "pipeline")

    result = train(
        config,
        model=model,
        make_objective=make_objective,
        dataset=patches,
        validate=RestorationValidator(validation_rows, scheduler.config) if len(validation_rows) else None,
        save_pretrained=save_pipeline,
    )
    if result.validation is not None:
        print("validation:", ", ".join(f"{name} {value:.2f}" for name, value in result.validation.metrics.items()))
    print(f"pipeline: {Path(config.output_dir) / 'pipeline'}")


def contract_of(rows, args: argparse.Namespace) -> CheckpointContract:
    """The ranges that the training rows cover; varying the dose widens that of the noise."""
    gains = args.noise_gain or (1.0, 1.0)
    facts = rows.select_columns(["spacing_mm", "noise_hu", "dose_fraction", "conditions"])[:]
    return CheckpointContract.from_scans(
        facts["spacing_mm"],
        [level * gain for scan in facts["noise_hu"] for level in scan for gain in gains],
        facts["dose_fraction"],
        [ScanConditions(**json.loads(text)) for text in facts["conditions"]],
        training_data=args.training_data,
        training_data_licence=args.training_data_licence,
        package_version=__version__,
    )


if __name__ == "__main__":
    main()
