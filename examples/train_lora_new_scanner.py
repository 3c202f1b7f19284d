"""Adapts a restoration model to a new scanner by low-rank adapters (LoRA): half a megabyte beside the checkpoint.

    diffusers-ct prepare data/new_scanner --pairs FOLDER ...
    accelerate launch examples/train_lora_new_scanner.py --model outputs/model/pipeline --dataset data/new_scanner \
        --output_dir outputs/new_scanner --training_data "12 scans of scanner X" --training_data_licence "internal use"

The base weights stay as they are; the adapter is trained by the loop, the objective and the flags of `train_ldct.py`. What
is left in OUTPUT_DIR: `adapter/pytorch_lora_weights.safetensors`, `pipeline/` (adapter merged, with the contract of the new
scanner) and `gain.json`, both models on patients of the new scanner that neither was trained on. To load the adapter alone:

    pipe = CTDiffusionPipeline.from_pretrained("outputs/model/pipeline")
    pipe.unet.load_lora_adapter(
        "outputs/new_scanner/adapter", prefix=None, weight_name="pytorch_lora_weights.safetensors"
    )
    pipe.unet.fuse_lora()
    pipe.unet.unload_lora()
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
from diffusers import DDPMScheduler
from peft import LoraConfig

from diffusers_ct import CheckpointContract, CTDiffusionPipeline, ScanConditions, __version__, load_paired_ct
from diffusers_ct.cli.scripts import one_line_mistakes
from diffusers_ct.data import PatchDataset, check_patch_size
from diffusers_ct.evaluation import RestorationValidator
from diffusers_ct.models import lora_targets
from diffusers_ct.training import ResidualDiffusionObjective, TrainingConfig, train

WEIGHTS = "pytorch_lora_weights.safetensors"  # named, so that nothing but safetensors is ever loaded


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s --model P --dataset D --output_dir O --training_data TEXT --training_data_licence TEXT [--help]",
    )
    parser.add_argument("--model", required=True, help="Pipeline to adapt: a folder, or a repository on the Hub.")
    parser.add_argument("--dataset", required=True, help="Scans of the new scanner, made by `diffusers-ct prepare`.")
    parser.add_argument(
        "--training_data", required=True, help="What the new data are, in words, for the contract and card."
    )
    parser.add_argument("--training_data_licence", required=True, help="Their licence.")
    parser.add_argument("--rank", type=int, default=4, help="Of the adapter's updates. [4]")
    parser.add_argument(
        "--patch_size", type=int, nargs=3, default=(8, 64, 64), metavar=("D", "H", "W"),
        help="Voxels of a training patch. [8 64 64]",
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
    output = Path(config.output_dir)
    if config.push_to_hub:
        refuse(
            "--push_to_hub is not for adapters: push OUTPUT_DIR/pipeline with `diffusers-ct push` when it is judged."
        )

    # 1. the model to adapt, and scans of the new scanner
    pipe = load_base(args.model, refuse)
    unet, scheduler = pipe.unet, DDPMScheduler.from_config(pipe.scheduler.config)
    rows = load_paired_ct(args.dataset)
    training_rows, test_rows = rows.get("train"), rows.get("test") or rows.get("validation")
    if not training_rows or not test_rows:
        refuse(f"{args.dataset} needs patients to train and to test on (--dataset): there are {sorted(rows)}.")
    items_per_epoch = 64 * config.train_batch_size * config.gradient_accumulation_steps
    patches = PatchDataset(training_rows, tuple(args.patch_size), items_per_epoch, seed=config.seed)
    check_patch_size(args.patch_size, unet.size_factor)

    # 2. adapters, which alone are trained
    torch.manual_seed(config.seed)
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=lora_targets(unet, args.rank)))
    validation_rows = rows.get("validation")
    train(
        config,
        model=unet,
        make_objective=lambda prepared: ResidualDiffusionObjective(
            prepared, scheduler, terminal_fraction=config.terminal_fraction
        ),
        dataset=patches,
        validate=RestorationValidator(validation_rows, scheduler.config) if validation_rows else None,
        save_pretrained=lambda averaged: averaged.save_lora_adapter(output / "adapter"),
    )

    # 3. what a user does: load the base, load the adapter, merge; and what it is worth on patients never seen
    judge = RestorationValidator(test_rows, scheduler.config, max_scans=len(test_rows))
    base = load_base(args.model, refuse)
    before = judge(base.unet, 0).metrics
    base.unet.load_lora_adapter(output / "adapter", prefix=None, weight_name=WEIGHTS)
    base.unet.fuse_lora()
    base.unet.unload_lora()
    after = judge(base.unet, 0).metrics
    contract = contract_of(training_rows, args).to_dict()
    CTDiffusionPipeline(base.unet, base.scheduler, contract).save_pretrained(output / "pipeline")
    size = (output / "adapter" / WEIGHTS).stat().st_size
    (output / "gain.json").write_text(
        json.dumps({"base": before, "adapted": after, "test_scans": len(test_rows), "adapter_bytes": size}, indent=1)
    )
    for name, metrics in (("base", before), ("adapted", after)):
        print(f"{name}:", ", ".join(f"{key} {value:.2f}" for key, value in metrics.items()))
    print(f"adapter: {output / 'adapter'} ({size / 1000:.0f} kB); merged pipeline: {output / 'pipeline'}")


def load_base(model: str, refuse: Callable[[str], NoReturn]) -> CTDiffusionPipeline:
    pipe = CTDiffusionPipeline.from_pretrained(model)
    if pipe.config.target != "residual" or pipe.condition_encoder is not None or pipe.image_kinds:
        refuse(f"{model} (--model) is not a restoration checkpoint without conditions, which this example adapts.")
    return pipe


def contract_of(rows, args: argparse.Namespace) -> CheckpointContract:
    """The ranges that the new scanner's training rows cover."""
    facts = rows.select_columns(["spacing_mm", "noise_hu", "dose_fraction", "conditions"])[:]
    return CheckpointContract.from_scans(
        facts["spacing_mm"],
        [level for scan in facts["noise_hu"] for level in scan],
        facts["dose_fraction"],
        [ScanConditions(**json.loads(text)) for text in facts["conditions"]],
        training_data=args.training_data,
        training_data_licence=args.training_data_licence,
        package_version=__version__,
    )


if __name__ == "__main__":
    main()
