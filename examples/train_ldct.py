"""Trains a low-dose CT restoration model on a prepared dataset and saves it as a `CTDiffusionPipeline`.

    diffusers-ct prepare data/phantoms --phantoms 32 --dose 0.25 --dose 0.1
    accelerate launch examples/train_ldct.py --dataset data/phantoms --output_dir outputs/model \
        --training_data "32 diffusers-ct phantoms" --training_data_licence Apache-2.0

With `--online_doses 0.05 0.5` the dataset's own low doses are not used: every slab of full-dose slices gets another dose, noise
and kernel, drawn from ranges (not measured in the scan, as `prepare` does) and simulated on the training device. `--train_batch_size`
then counts slabs of `--patches_per_slab` patches each: on a CPU give 1.

`accelerate launch` prints its own traceback below the line that tells of a mistake; `python examples/train_ldct.py` does the
same training in one process without it.

The model learns the residual between full and low dose by v-prediction (see docs/methods.md). Flags carry
diffusers' names; `--help` lists them all. `CTDiffusionPipeline.from_pretrained(OUTPUT_DIR + "/pipeline")` loads the
result.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import PartialState
from diffusers import DDIMScheduler

from diffusers_ct import (
    CheckpointContract,
    ConditionEncoder,
    CTDiffusionPipeline,
    ScanConditions,
    UNet3DCTModel,
    __version__,
    load_paired_ct,
)
from diffusers_ct.cli.scripts import one_line_mistakes
from diffusers_ct.conditions import CONDITION_NAMES, ConditionVocabulary
from diffusers_ct.data import FullDoseSlabs, OnlineSimulation, PatchDataset, check_patch_size
from diffusers_ct.evaluation import RestorationValidator, cases_from_rows, run_benchmark
from diffusers_ct.hub import push_model, render_model_card
from diffusers_ct.models import PRESETS, ConditionalDenoiser
from diffusers_ct.models.presets import preset_config
from diffusers_ct.physics import DoseDraws
from diffusers_ct.residual import SCAN_VECTOR_DIM
from diffusers_ct.schedulers import make_noise_scheduler
from diffusers_ct.training import (
    ConditionalResidualObjective,
    PreparedObjective,
    ResidualDiffusionObjective,
    TrainingConfig,
    train,
)

METHOD = "diffusers-ct, 1 step"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s --dataset D --output_dir M --training_data TEXT --training_data_licence TEXT [--help for all flags]",
    )
    parser.add_argument(
        "--dataset", required=True, help="Folder made by `diffusers-ct prepare`, or a dataset on the Hub."
    )
    parser.add_argument(
        "--training_data", required=True, help="What the data are, in words, for the contract and card."
    )
    parser.add_argument("--training_data_licence", required=True, help="Their licence.")
    parser.add_argument("--model_licence", default="apache-2.0", help="Licence of the weights, for the card.")
    parser.add_argument(
        "--matrix", type=int, nargs=2, default=None, metavar=("H", "W"),
        help="Takes the scans of this matrix, where the dataset has several.",
    )  # fmt: skip
    parser.add_argument(
        "--patch_size", type=int, nargs=3, default=(8, 64, 64), metavar=("D", "H", "W"),
        help="Voxels of a training patch: slices (no more than the thinnest scan has), rows and columns (divisible by 8, "
        "with a fast preset by 16, and slices by 4). With --online_doses a slab of D whole slices is simulated, and patches "
        "are cut from it. [8 64 64]",
    )  # fmt: skip
    parser.add_argument(
        "--noise_gain", type=float, nargs=2, default=None, metavar=("MIN", "MAX"),
        help="Varies the dose: the noise of each patch times a factor drawn between these, such as 0.7 1.8.",
    )  # fmt: skip
    parser.add_argument(
        "--online_doses", type=float, nargs=2, default=None, metavar=("MIN", "MAX"),
        help="Simulate low doses while training, drawn between these fractions, from the dataset's full doses.",
    )  # fmt: skip
    parser.add_argument(
        "--patches_per_slab",
        type=int,
        default=8,
        help="With --online_doses: patches cut from each slab. --train_batch_size then counts slabs, so a batch holds this "
        "many times as many patches: on a CPU give 1. [8]",
    )
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default="ct-unet25d-s",
        help="The network; `diffusers-ct models` tells what each costs. [ct-unet25d-s]",
    )
    parser.add_argument(
        "--block_out_channels", type=int, nargs="+", metavar="C",
        help="Channels of the network's levels, instead of the preset's.",
    )  # fmt: skip
    parser.add_argument(
        "--conditions", nargs="+", default=[], choices=CONDITION_NAMES[:-1],
        help="Facts of the scan that the network is told beside the image, such as kernel and slice_thickness_mm.",
    )  # fmt: skip
    parser.add_argument("--conv_mode", choices=("3d", "2.5d"), help="Of the convolutions, instead of the preset's.")
    TrainingConfig.add_arguments(parser)
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(arguments)
    # A mistake in the flags ends in one line, before any work.
    with one_line_mistakes(parser, {"depth": "--patch_size", "dose_fraction": "--online_doses"}) as refuse:
        run(args, refuse)


def run(args: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> None:
    config = TrainingConfig.from_args(args)
    if args.online_doses and (args.noise_gain or args.conditions):
        refuse("--online_doses draws the doses itself: leave out --noise_gain and --conditions.")
    network = preset_config(args.preset, block_out_channels=args.block_out_channels, conv_mode=args.conv_mode)

    # 1. data: patches for training, whole slices of other patients for validation
    training_rows, validation_rows = open_splits(args, config, refuse)
    vocabulary = None
    if args.conditions:
        scans = [ScanConditions(**json.loads(text)) for text in training_rows["conditions"]]
        vocabulary = ConditionVocabulary.from_scans(scans, args.conditions)
    processes = int(os.environ.get("WORLD_SIZE", 1))  # of `accelerate launch`
    items_per_epoch = 64 * config.train_batch_size * config.gradient_accumulation_steps * processes
    simulation = None
    if args.online_doses:
        simulation = OnlineSimulation(
            tuple(args.patch_size),
            draw=DoseDraws(dose_fraction=tuple(args.online_doses)),
            patches_per_slab=args.patches_per_slab,
        )
        patches = FullDoseSlabs(training_rows, args.patch_size[0], items_per_epoch, seed=config.seed)
    else:
        patches = PatchDataset(
            training_rows,
            tuple(args.patch_size),
            patches_per_epoch=items_per_epoch,
            seed=config.seed,
            noise_gain=args.noise_gain,
            vocabulary=vocabulary,
        )

    # 2. model and objective
    torch.manual_seed(config.seed)
    if vocabulary is None:
        model = unet = UNet3DCTModel(**network)
        objective = ResidualDiffusionObjective
    else:
        encoder = ConditionEncoder(**vocabulary.to_config())
        unet = UNet3DCTModel(**network, pooled_dim=SCAN_VECTOR_DIM + encoder.config.pooled_dim)
        model, objective = ConditionalDenoiser(unet, encoder), ConditionalResidualObjective
    check_patch_size(args.patch_size, unet.size_factor)
    scheduler = make_noise_scheduler(config.noise_schedule)

    def make_objective(prepared):
        goal = objective(prepared, scheduler, terminal_fraction=config.terminal_fraction)
        return goal if simulation is None else PreparedObjective(simulation, goal)

    # 3. train, then save what a user loads: averaged weights, sampler, contract
    def save_pipeline(averaged):
        contract = contract_of(training_rows, args, patches, simulation).to_dict()
        sampler = DDIMScheduler.from_config(scheduler.config)
        if vocabulary is None:
            pipeline = CTDiffusionPipeline(averaged, sampler, contract)
        else:
            pipeline = CTDiffusionPipeline(
                averaged.unet, sampler, contract, condition_encoder=averaged.condition_encoder
            )
        pipeline.save_pretrained(Path(config.output_dir) / "pipeline")

    if not len(validation_rows):
        asked = ", though --validation_steps asks for it" if config.validation_steps else ""
        print(f"Warning: {args.dataset} has no validation patients; nothing is validated{asked}.", file=sys.stderr)
    result = train(
        config,
        model=model,
        make_objective=make_objective,
        dataset=patches,
        validate=RestorationValidator(validation_rows, scheduler.config) if len(validation_rows) else None,
        save_pretrained=save_pipeline,
    )
    if not PartialState().is_main_process:
        return
    if result.validation is not None:
        print("validation:", ", ".join(f"{name} {value:.2f}" for name, value in result.validation.metrics.items()))
    print(f"pipeline: {Path(config.output_dir) / 'pipeline'}")
    if config.push_to_hub:
        print(f"pushed: {push(config, args, validation_rows)}")


def open_splits(args: argparse.Namespace, config: TrainingConfig, refuse: Callable[[str], NoReturn]):
    """Rows of the patients to train and to validate on, of which there may be none."""
    rows = load_paired_ct(args.dataset, matrix=tuple(args.matrix) if args.matrix else None)
    training_rows, validation_rows = rows.get("train"), rows.get("validation", [])
    if not training_rows:
        refuse(f"{args.dataset} has no training patients (--dataset).")
    if config.push_to_hub and not len(validation_rows):
        refuse("--push_to_hub needs validation patients: a card without held-out numbers is not pushed.")
    matrix = training_rows.features["full"].shape[1:]
    if any(size > there for size, there in zip(args.patch_size[1:], matrix)):
        refuse(
            f"A --patch_size of {args.patch_size[1:]} rows and columns does not fit into the matrix of {list(matrix)}."
        )
    return training_rows, validation_rows


def push(config: TrainingConfig, args: argparse.Namespace, validation_rows) -> str:
    """Judges the saved pipeline on the validation patients, renders its card from that, and pushes both."""
    made = Path(config.output_dir)
    pipe = CTDiffusionPipeline.from_pretrained(made / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    cases = cases_from_rows(validation_rows)
    everything = CheckpointContract.checkable()
    result = run_benchmark(
        cases, {METHOD: lambda case: pipe(case.low, output_type="np", ignore_contract=everything).volumes}
    )
    card = render_model_card(
        pipe,
        repo_id=config.hub_model_id,
        licence=args.model_licence,
        benchmark=result,
        method=METHOD,
        dataset_name=args.training_data,
        dataset_split="validation",
        command="accelerate launch examples/train_ldct.py",
        training_config=config.to_dict(),
        limits=["Measured on the validation patients of its own data alone, beside no other method."],
        compute=json.loads((made / "compute.json").read_text()),
    )
    return push_model(made / "pipeline", config.hub_model_id, card=card)


def contract_of(rows, args: argparse.Namespace, patches, simulation: OnlineSimulation | None) -> CheckpointContract:
    """The ranges that the training rows cover; varying the dose widens that of the noise, simulating it sets both."""
    gains = args.noise_gain or (1.0, 1.0)
    facts = rows.select_columns(["spacing_mm", "noise_hu", "dose_fraction", "conditions"])[:]
    noise_hu = [level * gain for scan in facts["noise_hu"] for level in scan for gain in gains]
    doses = facts["dose_fraction"]
    conditions = [ScanConditions(**json.loads(text)) for text in facts["conditions"]]
    if simulation is not None:
        draws = [
            simulation(torch.utils.data.default_collate([patches[i]]), torch.tensor([i]))[0]["noise_hu"]
            for i in range(min(48, len(patches)))
        ]
        noise_hu, doses = torch.cat(draws).flatten().tolist(), list(args.online_doses)
    return CheckpointContract.from_scans(
        facts["spacing_mm"],
        noise_hu,
        doses,
        conditions,
        training_data=args.training_data,
        training_data_licence=args.training_data_licence,
        package_version=__version__,
    )


if __name__ == "__main__":
    main()
