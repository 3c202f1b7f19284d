"""Trains a conditional synthesis model (conditions -> volume) and saves it as a `CTDiffusionPipeline`.

    accelerate launch examples/train_synthesis.py --phantoms 3000 --output_dir outputs/synthesis/model \
        --max_train_steps 3000 --train_batch_size 32 --learning_rate 8e-4
    accelerate launch examples/train_synthesis.py --dataset data/mine --conditions body_part age_years sex kernel \
        --training_data "our thorax CT" --training_data_licence "internal use" --output_dir outputs/mine_synthesis

Every condition is dropped on its own in training, so each may be missing or guided on its own in sampling. The model
also learns to continue a volume from slices that are already there. Flags carry diffusers' names; `--help` lists them.
`diffusers-ct synthesize` and `examples/evaluate_synthesis.py` use the result.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler

from diffusers_ct import (
    CheckpointContract,
    ConditionEncoder,
    CTDiffusionPipeline,
    UNet3DCTModel,
    __version__,
    load_paired_ct,
)
from diffusers_ct.conditions import CONDITION_NAMES, ConditionVocabulary
from diffusers_ct.data.volumes import ConditionedVolumes, phantom_volumes, volumes_from_rows
from diffusers_ct.image_conditions import image_channels
from diffusers_ct.models import ConditionalDenoiser
from diffusers_ct.physics import LESION_KINDS
from diffusers_ct.schedulers import make_noise_scheduler
from diffusers_ct.training import SynthesisObjective, TrainingConfig, Validation, train

PHANTOM_CONDITIONS = ("body_part", "contrast_phase", "findings")
TEST_SEED = 1_000_000  # of the first phantom that is never trained on


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="Folder made by `diffusers-ct prepare`, or a dataset on the Hub.")
    parser.add_argument("--phantoms", type=int, help="Instead: this many phantoms with balanced conditions.")
    parser.add_argument("--training_data", help="What the data are, in words; needed with --dataset.")
    parser.add_argument("--training_data_licence", help="Their licence; needed with --dataset.")
    parser.add_argument(
        "--keep_positives",
        nargs=2,
        metavar=("FINDING", "N"),
        help="Makes a finding of the phantoms rare: see `make_rare`.",
    )
    parser.add_argument("--conditions", nargs="+", choices=CONDITION_NAMES[:-1], default=list(PHANTOM_CONDITIONS))
    parser.add_argument("--shape", type=int, nargs=3, default=(6, 48, 64), metavar=("D", "H", "W"))
    parser.add_argument("--spacing", type=float, nargs=3, default=(6.0, 6.0, 6.0), metavar=("Z", "Y", "X"))
    parser.add_argument("--lesion_radius", type=float, nargs=2, default=(9.0, 15.0), metavar=("MIN", "MAX"))
    parser.add_argument("--block_out_channels", type=int, nargs="+", default=(32, 96, 128))
    parser.add_argument("--layers_per_block", type=int, default=1)
    parser.add_argument("--conv_mode", choices=("3d", "2.5d"), default="2.5d")
    parser.add_argument("--transformer_depth", type=int, nargs="*", default=(0, 0, 1))
    parser.add_argument("--attention_head_dim", type=int, default=64)
    parser.add_argument("--drop_each", type=float, default=0.1, help="Probability that a condition is dropped alone.")
    parser.add_argument("--drop_all", type=float, default=0.1, help="Probability that all are dropped together.")
    parser.add_argument(
        "--lesion_weight",
        nargs="+",
        default=["1"],
        metavar="WEIGHT",
        help="Of errors in lesions, for all kinds or by kind (3 or solid_nodule=3 cyst=8): see `SynthesisObjective`.",
    )
    parser.add_argument("--init_from", help="Pipeline whose weights to start from; its conditions must be the same.")
    parser.add_argument("--context_probability", type=float, default=0.3, help="Share that continues given slices.")
    TrainingConfig.add_arguments(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    config = TrainingConfig.from_args(args)
    if config.push_to_hub:
        raise SystemExit(
            "A synthesis model is pushed when it is judged: leave out --push_to_hub, run examples/evaluate_synthesis.py, then "
            "`diffusers-ct card` and `diffusers-ct push`."
        )
    if (args.dataset is None) == (args.phantoms is None):
        raise SystemExit("Give exactly one of --dataset and --phantoms.")
    if args.dataset and not (args.training_data and args.training_data_licence):
        raise SystemExit("--dataset needs --training_data and --training_data_licence: they go into the contract.")
    weights = lesion_weights(args.lesion_weight)
    if set(weights) != {1.0} and args.dataset:
        raise SystemExit("--lesion_weight is for --phantoms: a prepared dataset holds no truth of lesions.")
    if args.keep_positives and args.dataset:
        raise SystemExit("--keep_positives is for --phantoms.")
    if args.keep_positives and args.init_from:
        raise SystemExit(
            "--init_from would bring what its pipeline has seen of the finding that --keep_positives makes rare."
        )

    # 1. data, and the conditions that are known of it
    training, held_out, words, licence = load_volumes(args)
    names = tuple(args.conditions)
    vocabulary = ConditionVocabulary.from_scans([v.conditions for v in training], names)
    batch = config.train_batch_size * config.gradient_accumulation_steps
    volumes = ConditionedVolumes(training, vocabulary, tuple(args.shape), 64 * batch, seed=config.seed)

    # 2. model: a U-Net that attends to one token for each condition
    torch.manual_seed(config.seed)
    kinds = ("context",)
    encoder = ConditionEncoder(**vocabulary.to_config())
    unet = UNet3DCTModel(
        in_channels=1 + image_channels(kinds),
        block_out_channels=tuple(args.block_out_channels),
        layers_per_block=args.layers_per_block,
        downsample_strides=(1, 2, 2) * (len(args.block_out_channels) - 1),
        conv_mode=args.conv_mode,
        transformer_depth=tuple(args.transformer_depth),
        cross_attention_dim=encoder.config.token_dim if any(args.transformer_depth) else 0,
        pooled_dim=encoder.config.pooled_dim,
        attention_head_dim=args.attention_head_dim,
        window_depth=args.shape[0],
    )
    if args.init_from:
        start = CTDiffusionPipeline.from_pretrained(args.init_from)
        if start.condition_encoder.config.findings != list(vocabulary.findings):
            raise SystemExit(f"{args.init_from} knows other findings: {start.condition_encoder.config.findings}.")
        unet.load_state_dict(start.unet.state_dict())
        encoder.load_state_dict(start.condition_encoder.state_dict())
    scheduler = make_noise_scheduler(config.noise_schedule)

    def make_objective(prepared, *, dropped: bool = True):
        return SynthesisObjective(
            prepared,
            scheduler,
            image_kinds=kinds,
            drop_each=args.drop_each if dropped else 0.0,
            drop_all=args.drop_all if dropped else 0.0,
            context_probability=args.context_probability,
            lesion_weight=weights if dropped else 1.0,
        )

    # 3. train, then save what a user loads: averaged weights, sampler, conditions, contract
    def validate(model, step):
        """Loss on volumes that are not trained on, all conditions given, the same noise every time."""
        objective = make_objective(model, dropped=False)
        items = ConditionedVolumes(held_out, vocabulary, tuple(args.shape), min(32, 4 * len(held_out)), seed=1)
        losses = []
        for start in range(0, len(items), 8):
            rows = [items[i] for i in range(start, min(start + 8, len(items)))]
            collated = {k: v.to(model.unet.device) for k, v in torch.utils.data.default_collate(rows).items()}
            losses.append(float(objective(collated, torch.arange(start, start + len(rows)))["loss"]))
        return Validation({"loss": float(np.mean(losses))})

    def save_pipeline(model):
        contract = CheckpointContract.from_scans(
            [v.spacing_mm for v in training],
            [],
            [],
            [],  # body parts and kernels are the condition encoder's own vocabulary
            training_data=words,
            training_data_licence=licence,
            package_version=__version__,
            target="image",
            volume_shape=tuple(args.shape),
        )
        CTDiffusionPipeline(
            model.unet,
            DDIMScheduler.from_config(scheduler.config),
            contract.to_dict(),
            condition_encoder=model.condition_encoder,
            target="image",
            image_conditions=",".join(kinds),
        ).save_pretrained(Path(config.output_dir) / "pipeline")

    result = train(
        config,
        model=ConditionalDenoiser(unet, encoder),
        make_objective=make_objective,
        dataset=volumes,
        validate=validate if held_out else None,
        save_pretrained=save_pipeline,
    )
    if result.validation is not None:
        print("validation:", ", ".join(f"{name} {value:.4f}" for name, value in result.validation.metrics.items()))
    print(f"pipeline: {Path(config.output_dir) / 'pipeline'}")


def lesion_weights(texts: list[str]) -> list[float]:
    """One weight for each of `LESION_KINDS`, 1 for those not named, from "3" or from "cyst=8", "lytic=4"."""
    try:
        if len(texts) == 1 and "=" not in texts[0]:
            return [float(texts[0])] * len(LESION_KINDS)
        named = {kind: float(weight) for kind, weight in (text.split("=") for text in texts)}
    except ValueError:
        raise SystemExit(f"--lesion_weight takes one number, or KIND=NUMBER for each kind: got {texts}.") from None
    if unknown := sorted(set(named) - set(LESION_KINDS)):
        raise SystemExit(f"--lesion_weight names {', '.join(unknown)}: the kinds are {', '.join(LESION_KINDS)}.")
    return [named.get(kind, 1.0) for kind in LESION_KINDS]


def load_volumes(args: argparse.Namespace):
    """Training and held-out volumes, what they are in words, their licence."""
    if args.dataset:
        rows = load_paired_ct(args.dataset)
        held_out = volumes_from_rows(rows["validation"]) if "validation" in rows else []
        return volumes_from_rows(rows["train"]), held_out, args.training_data, args.training_data_licence
    kwargs = {
        "shape": tuple(args.shape),
        "spacing_mm": tuple(args.spacing),
        "lesion_radius_mm": tuple(args.lesion_radius),
        "with_lesions": set(lesion_weights(args.lesion_weight)) != {1.0},
    }
    folder = Path(args.output_dir)
    training = phantom_volumes(args.phantoms, first_seed=args.seed, cache=folder / "phantoms.npz", **kwargs)
    held_out = phantom_volumes(
        max(8, args.phantoms // 40), first_seed=TEST_SEED, cache=folder / "held_out.npz", **kwargs
    )
    words = f"{args.phantoms} diffusers-ct phantoms"
    if args.keep_positives:
        finding, count = args.keep_positives[0], int(args.keep_positives[1])
        training, words = make_rare(training, finding, count), f"{words} {rare_words(args.seed, finding, count)}"
    return training, held_out, words, "Apache-2.0"


def make_rare(volumes, finding: str, count: int):
    """Only the first `count` volumes with a finding, and all that are known to be without.

    The kept ones are repeated, so that the finding stays about as frequent in training: what is missing is variety.
    """
    positives = [v for v in volumes if finding in v.conditions.findings]
    if not 1 <= count <= len(positives):
        raise SystemExit(f"{count} volumes with {finding} cannot be kept: there are {len(positives)}.")
    without = [v for v in volumes if finding in v.conditions.findings_absent]
    return without + positives[:count] * (len(positives) // count)


def rare_words(first_seed: int, finding: str, count: int) -> str:
    """What the contract says of such a training set; `examples/augment_rare_findings.py` checks it."""
    return f"from seed {first_seed} on, of those with {finding} only the first {count}"


if __name__ == "__main__":
    main()
