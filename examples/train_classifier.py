"""Trains a classifier of noisy volumes, p(conditions | x_t, t), that can guide a synthesis model.

    accelerate launch examples/train_classifier.py --phantoms 3000 --output_dir outputs/classifier \
        --max_train_steps 1500 --train_batch_size 16 --learning_rate 2e-3
    accelerate launch examples/train_classifier.py --dataset data/mine --heads body_part age_years dose_fraction \
        --dose_thresholds 0.15 0.5 --output_dir outputs/mine_classifier

It sees volumes as `examples/train_synthesis.py` shows them to its model, with the same noise: train both with the same
`--noise_schedule`. Held-out patients are judged at several noise levels: where a table's row is at chance, guidance at
that level says nothing. Flags carry diffusers' names; `--help` lists them. `NoiseAwareClassifier.from_pretrained(
OUTPUT_DIR + "/classifier")` loads the result; `CTDiffusionPipeline(..., classifier=...)` takes it.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from diffusers_ct import NoiseAwareClassifier, ScanConditions, load_paired_ct
from diffusers_ct.conditions import ConditionVocabulary
from diffusers_ct.data.patches import volume_view
from diffusers_ct.data.volumes import ConditionedVolume, ConditionedVolumes, phantom_volumes, volumes_from_rows
from diffusers_ct.hounsfield import hu_to_companded
from diffusers_ct.metrics import auc
from diffusers_ct.models.noise_classifier import HEADS
from diffusers_ct.schedulers import alpha_sigma, make_noise_scheduler
from diffusers_ct.training import ClassificationObjective, TrainingConfig, Validation, train

TEST_SEED = 1_000_000  # of the first phantom that is never trained on
NOISE_LEVELS = (0.0, 0.25, 0.5, 0.75)  # fractions of the timesteps at which held-out patients are judged


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", help="Folder made by `diffusers-ct prepare`, or a dataset on the Hub.")
    parser.add_argument("--phantoms", type=int, help="Instead: this many phantoms with balanced conditions.")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=["findings", "body_part"], help="What it judges.")
    parser.add_argument(
        "--dose_thresholds", type=float, nargs="+", default=(), help="Between classes of dose fraction."
    )
    parser.add_argument("--shape", type=int, nargs=3, default=(6, 48, 64), metavar=("D", "H", "W"))
    parser.add_argument("--spacing", type=float, nargs=3, default=(6.0, 6.0, 6.0), metavar=("Z", "Y", "X"))
    parser.add_argument("--lesion_radius", type=float, nargs=2, default=(9.0, 15.0), metavar=("MIN", "MAX"))
    parser.add_argument("--block_out_channels", type=int, nargs="+", default=(32, 64, 128))
    parser.add_argument("--conv_mode", choices=("3d", "2.5d"), default="3d")
    parser.add_argument("--first_timestep", type=int, default=0, help="Noise is drawn from this timestep on.")
    TrainingConfig.add_arguments(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    config = TrainingConfig.from_args(args)
    if config.push_to_hub:
        raise SystemExit(
            "A classifier is pushed as part of a pipeline: load both and use `pipe.push_to_hub(card=...)`."
        )
    if (args.dataset is None) == (args.phantoms is None):
        raise SystemExit("Give exactly one of --dataset and --phantoms.")
    if ("dose_fraction" in args.heads) != bool(args.dose_thresholds):
        raise SystemExit("The head dose_fraction needs --dose_thresholds, which is for nothing else.")
    if args.phantoms and not {"findings", "body_part"}.issuperset(args.heads):
        raise SystemExit("Phantoms know body part and findings alone: the other heads need --dataset.")

    # 1. data: volumes in network units, and what is known of them
    training, held_out = load_volumes(args)
    vocabulary = ConditionVocabulary.from_scans([v.conditions for v in training], tuple(args.heads))
    batch = config.train_batch_size * config.gradient_accumulation_steps
    volumes = ConditionedVolumes(training, vocabulary, tuple(args.shape), 64 * batch, seed=config.seed)

    # 2. model and objective
    torch.manual_seed(config.seed)
    model = NoiseAwareClassifier(
        findings=vocabulary.findings,
        body_parts=vocabulary.body_part,
        dose_thresholds=tuple(args.dose_thresholds),
        age="age_years" in args.heads,
        block_out_channels=tuple(args.block_out_channels),
        conv_mode=args.conv_mode,
        downsample_strides=(1, 2, 2) * (len(args.block_out_channels) - 1),
    )
    scheduler = make_noise_scheduler(config.noise_schedule)

    # 3. train, judge, save the averaged weights
    result = train(
        config,
        model=model,
        make_objective=lambda m: ClassificationObjective(m, scheduler, first_timestep=args.first_timestep),
        dataset=InNetworkUnits(volumes),
        validate=ClassifierValidator(held_out, vocabulary, tuple(args.shape), scheduler) if held_out else None,
        save_pretrained=lambda averaged: averaged.save_pretrained(Path(config.output_dir) / "classifier"),
    )
    if result.validation is not None:
        print(table(result.validation.metrics))
    print(f"classifier: {Path(config.output_dir) / 'classifier'}")


def load_volumes(args: argparse.Namespace) -> tuple[list[ConditionedVolume], list[ConditionedVolume]]:
    """Volumes of training patients and of held-out ones."""
    if args.dataset:
        rows = load_paired_ct(args.dataset)
        splits = [rows.get(name) for name in ("train", "validation")]
        found = [volumes_from_rows(part) if part is not None else [] for part in splits]
        if "dose_fraction" in args.heads:
            for volumes, part in zip(found, splits):
                volumes += low_dose_volumes(part) if part is not None else []
        return found[0], found[1]
    folder, grid = Path(args.output_dir), {"shape": tuple(args.shape), "spacing_mm": tuple(args.spacing)}
    return tuple(
        phantom_volumes(
            count, first_seed=seed, lesion_radius_mm=tuple(args.lesion_radius), cache=folder / f"{name}.npz", **grid
        )
        for name, count, seed in (
            ("phantoms", args.phantoms, args.seed),
            ("held_out", max(16, args.phantoms // 10), TEST_SEED),
        )
    )


def low_dose_volumes(rows) -> list[ConditionedVolume]:
    """The low-dose volumes of a prepared dataset, so that the dose is not always the routine one."""
    facts = rows.select_columns(["spacing_mm", "conditions"]).with_format(None)[:]
    return [
        ConditionedVolume(volume_view(rows, i, "low"), tuple(spacing), ScanConditions(**json.loads(text)))
        for i, (spacing, text) in enumerate(zip(facts["spacing_mm"], facts["conditions"]))
    ]


class InNetworkUnits(torch.utils.data.Dataset):
    """`ConditionedVolumes` with "x0" on the scale of synthesis instead of "hu"."""

    def __init__(self, volumes: ConditionedVolumes) -> None:
        self.volumes = volumes
        self.set_epoch = volumes.set_epoch

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        item = self.volumes[index]
        return {"x0": hu_to_companded(item.pop("hu")), **item}


class ClassifierValidator:
    """`validate` of the training loop: each held-out volume once, its middle, at each of `NOISE_LEVELS`.

    Findings: area under the ROC curve among patients of one body part (a lung has no liver cyst: telling the parts
    apart is not finding), averaged over parts and findings that some have and some have not; chance is 0.5. Body part,
    dose class: accuracy. Age: mean absolute error in years.
    """

    def __init__(self, volumes, vocabulary: ConditionVocabulary, shape: tuple[int, int, int], scheduler) -> None:
        dataset = ConditionedVolumes(volumes, vocabulary, shape, len(volumes), seed=0)
        middles = []
        for volume in volumes:
            start = [(n - wanted) // 2 for n, wanted in zip(volume.hu.shape, shape)]
            z, y, x = (slice(a, a + n) for a, n in zip(start, shape))
            middles.append(torch.from_numpy(volume.hu[z, y, x].astype(np.float32)))
        self.x0 = hu_to_companded(torch.stack(middles)[:, None])
        self.fields = dataset.fields
        self.body_parts = [volume.conditions.body_part for volume in volumes]
        self.scheduler = scheduler
        self.noise = torch.randn(self.x0.shape, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def __call__(self, model: NoiseAwareClassifier, step: int) -> Validation:
        metrics = {}
        for level in NOISE_LEVELS:
            timestep = torch.tensor([round(level * (self.scheduler.config.num_train_timesteps - 1))])
            alpha, sigma = alpha_sigma(self.scheduler, timestep)
            x_t = alpha * self.x0 + sigma * self.noise
            parts = [model(x.to(model.device), timestep.to(model.device)) for x in x_t.split(16)]
            for head in model.heads:
                predicted = torch.cat([part[head] for part in parts]).cpu()
                name, value = judge(head, predicted, self.fields[head], self.body_parts, model.config.dose_thresholds)
                metrics[f"{name}_t{timestep.item()}"] = value
        return Validation(metrics)


def judge(head: str, predicted: torch.Tensor, truth: torch.Tensor, body_parts, dose_thresholds) -> tuple[str, float]:
    """Name and value of a head's measure over the items whose truth is known; nan where there is none."""
    if head == "findings":
        areas = []
        for part in set(body_parts):
            here = torch.tensor([other == part for other in body_parts])
            for scores, present in zip(predicted.T, truth.T):
                known = here & present.isfinite()
                areas.append(area_under_roc(scores[known], present[known] > 0.5))
        return "findings_auc", float(np.nanmean(areas)) if np.isfinite(areas).any() else float("nan")
    known = truth >= 0 if head == "body_part" else truth.isfinite()
    predicted, truth = predicted[known], truth[known]
    if head == "body_part":
        return "body_part_accuracy", (predicted.argmax(dim=1) == truth).float().mean().item()
    if head == "dose_fraction":
        above = torch.bucketize(truth, torch.tensor(list(dose_thresholds)))
        return "dose_accuracy", ((predicted > 0).sum(dim=1) == above).float().mean().item()
    return "age_error_years", (predicted[:, 0] - truth).abs().mean().item()


def area_under_roc(scores: torch.Tensor, present: torch.Tensor) -> float:
    """`auc`, nan where all or none have the finding."""
    if present.all() or not present.any():
        return float("nan")
    return float(auc(scores[present].numpy(), scores[~present].numpy()))


def table(metrics) -> str:
    """One row a measure, one column a timestep."""
    names = list(dict.fromkeys(name.rsplit("_t", 1)[0] for name in metrics))
    steps = list(dict.fromkeys(name.rsplit("_t", 1)[1] for name in metrics))
    lines = [f"{'held-out':20}" + "".join(f"{f't = {step}':>10}" for step in steps)]
    return "\n".join(
        lines + [f"{name:20}" + "".join(f"{metrics[f'{name}_t{step}']:10.3f}" for step in steps) for name in names]
    )


if __name__ == "__main__":
    main()
