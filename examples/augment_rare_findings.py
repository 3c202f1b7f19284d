"""Do synthetic cases of a rare finding help a classifier? A table, whichever way it falls.

    python examples/augment_rare_findings.py --model outputs/synthesis/pipeline --output_dir outputs/rare \
        --train_few --max_train_steps 3000 --train_batch_size 32 --learning_rate 8e-4

A finding has `--positives` known cases; there are many patients without it. The same classifier gets as many optimizer
steps in each setting:

* few: the cases as they come among the patients without the finding;
* few, balanced: every batch is half positive, which costs nothing and may be all that a gain consists of;
* few, balanced and augmented: noise of varying strength besides;
* few + synthetic: the same, and half of every batch is synthetic;
* placebo: the same synthetic volumes, but of every second pair of twins (see below) the labels are exchanged, so that
  they say nothing. What it gains is what anything at all beside the few does, by keeping the classifier from fitting
  them too closely;
* many: balanced and augmented, all real cases of the pool; the ceiling.

Synthetic cases help if they beat few *and* their placebo.

**What the synthesis model has seen.** A model trained on many cases of the finding hands on what the classifier with
few cases does not have: a gain from it is no gain from the few. So each row says which model it is. `--model` has seen
many. `--few_model` has seen the few alone, which is the honest setting of a rare finding; `--train_few` trains it here
(hours), with the flags of `examples/train_synthesis.py` that follow. Both may be given.

**Synthetic must not become the label.** With synthetic positives alone, a classifier learns what looks synthetic. With
as many synthetic negatives it still may, while most real cases are negative: of the synthetic ones half have the
finding, of the real ones hardly any. So every synthetic positive has a synthetic twin without the finding (the other
conditions and the noise the same), and each batch holds equal parts of real and synthetic, positive and negative: what
looks synthetic says nothing of the label.

All are judged on held-out real phantoms that no model has seen, of the regions that can have the finding. The intervals
are bootstraps over these patients, differences paired; the spread between training runs stands beside them. What they
do not hold is the luck of *which* few cases there are, so control and synthetic cases are also compared on every other
set of as many cases of the pool (not for the model that saw the few: it has seen these few).

The classifier is linear in `spot_features`. A small convolutional network was at chance after what these 10 minutes
allow, with all cases of the pool, and would have compared nothing. Writes `rare_findings.md`, `.json` and
`synthetic_cases.png`.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from rare_findings_report import (
    CONTROL,
    FEW,
    MANY,
    PLACEBO,
    Setting,
    draw_cases,
    judge_twins,
    markdown,
    score,
    statistics,
    synthetic_name,
)
from train_synthesis import main as train_synthesis
from train_synthesis import rare_words

from diffusers_ct import CTDiffusionPipeline, ScanConditions
from diffusers_ct.cli.checkpoints import load_pipeline, model_name
from diffusers_ct.data.volumes import FINDINGS, REGIONS, phantom_volumes
from diffusers_ct.evaluation.benchmark import environment
from diffusers_ct.evaluation.spot_classifier import (
    Group,
    SpotClassifier,
    feature_scale,
    labelled,
    mixed,
    noisy_features,
    train_spot_classifier,
)
from diffusers_ct.metrics import (
    auc,
)
from diffusers_ct.physics import CONTRAST_PHASES, LESION_KINDS_OF_REGION

POOL_SEED, TEST_SEED = 4_000_000, 5_000_000  # apart from those of the other examples
NOISE_HU, AUGMENTED_NOISE_HU = 10.0, 30.0
COPIES = 4  # of each training volume, with other noise


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument(
        "--model", help="Folder or repository of a synthesis pipeline that has seen many cases of the finding."
    )
    parser.add_argument("--few_model", help="Likewise of one that has seen the same few cases alone.")
    parser.add_argument("--finding", choices=FINDINGS, default="ground_glass_nodule")
    parser.add_argument("--positives", type=int, default=8, help="Real cases in the few settings.")
    parser.add_argument("--synthetic", type=int, default=48, help="Synthetic cases, and as many twins without.")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=15, help="Of DPM-Solver++.")
    parser.add_argument("--sample_batch_size", type=int, default=8)
    parser.add_argument("--phantoms", type=int, default=600, help="In the pool: real training data.")
    parser.add_argument("--test_phantoms", type=int, default=600)
    parser.add_argument("--shape", type=int, nargs=3, default=(6, 48, 64), metavar=("D", "H", "W"))
    parser.add_argument("--spacing", type=float, nargs=3, default=(6.0, 6.0, 6.0), metavar=("Z", "Y", "X"))
    parser.add_argument("--lesion_radius", type=float, nargs=2, default=(9.0, 15.0), metavar=("MIN", "MAX"))
    parser.add_argument("--classifier_steps", type=int, default=300)
    parser.add_argument("--batch_size", type=int, default=64, help="A multiple of 4.")
    parser.add_argument("--seeds", type=int, default=3, help="Classifiers trained in each setting.")
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--train_few", nargs=argparse.REMAINDER, metavar="FLAG",
        help="Train the model that has seen the few alone. Stands last: what follows goes to train_synthesis.py.",
    )  # fmt: skip
    args = parser.parse_args(arguments)
    if args.train_few is None and not (args.model or args.few_model):
        raise SystemExit("Give --model, --few_model or --train_few: there is nothing to compare without synthesis.")
    if args.train_few is not None and args.few_model:
        raise SystemExit("Give --few_model or --train_few, not both.")
    if args.batch_size < 4 or args.batch_size % 4:
        raise SystemExit(f"--batch_size must be a multiple of 4, got {args.batch_size}.")
    if args.synthetic % 2:
        raise SystemExit(
            f"--synthetic must be even, for the placebo exchanges half of the labels: got {args.synthetic}."
        )
    if min(args.positives, args.synthetic, args.classifier_steps, args.seeds, args.resamples) < 1:
        raise SystemExit("--positives, --synthetic, --classifier_steps, --seeds and --resamples must be positive.")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    started = time.monotonic()
    folder = Path(args.output_dir)
    # models are checked before any work
    pipes, revisions = {}, {}
    if args.model:
        pipes["many"], revisions["many"] = load_synthesis(args.model, args, few=False)
    if args.few_model:
        pipes["few"], revisions["few"] = load_synthesis(args.few_model, args, few=True)

    # 1. real phantoms
    folder.mkdir(parents=True, exist_ok=True)
    positives, negatives = real_phantoms(args, "pool", args.phantoms, POOL_SEED)
    if len(positives) <= args.positives:
        raise SystemExit(
            f"The pool has {len(positives)} cases, --positives asks for {args.positives}: more --phantoms."
        )
    test_positives, test_negatives = real_phantoms(args, "test", args.test_phantoms, TEST_SEED)
    truth = np.arange(len(test_positives) + len(test_negatives)) < len(test_positives)

    # 2. synthetic ones
    if args.train_few is not None:
        args.few_model = train_few_model(args)
        pipes["few"], revisions["few"] = load_synthesis(args.few_model, args, few=True)
    synthetic = {seen: synthesise_twins(pipe, args) for seen, pipe in pipes.items()}

    # 3. the same classifier in each setting
    def describe(volumes: np.ndarray, seed: int, *, augmented: bool = True, copies: int = COPIES) -> torch.Tensor:
        strength_hu = AUGMENTED_NOISE_HU if augmented else NOISE_HU
        return noisy_features(
            volumes, args.spacing, strength_hu, varying=augmented, copies=copies, seed=args.seed + seed
        )

    plain_positives, plain_negatives = describe(positives, 1, augmented=False), describe(negatives, 2, augmented=False)
    real = describe(positives, 3), describe(negatives, 4)
    twins = {seen: tuple(describe(volumes, 5) for volumes in pair) for seen, pair in synthetic.items()}
    held_out = [describe(v, 6, augmented=False, copies=1)[0] for v in (test_positives, test_negatives)]
    test = torch.cat(held_out)

    def with_few(few: torch.Tensor, extra: Sequence[torch.Tensor] = ()) -> tuple[Group, ...]:
        return tuple(labelled(features, 1 - k % 2) for k, features in enumerate((few, real[1], *extra)))

    def settings_with(cases: torch.Tensor, seen: str) -> tuple[Setting, Setting]:
        source = f"a model trained on {pipes[seen].contract.training_data}"
        groups = with_few(cases, twins[seen])
        placebo = with_few(cases, exchange_labels(*twins[seen]))
        name = synthetic_name(seen)
        return Setting(name, groups, source), Setting(f"{name}{PLACEBO}", placebo, source)

    few, plain_few = real[0][:, : args.positives], plain_positives[:, : args.positives]
    scale = feature_scale(plain_negatives)
    settings = [
        Setting(FEW, (mixed(plain_few, plain_negatives),)),
        Setting("few, balanced", (labelled(plain_few, 1), labelled(plain_negatives, 0))),
        Setting(CONTROL, with_few(few)),
    ]
    for seen in twins:
        settings += settings_with(few, seen)
    settings.append(Setting(MANY, (labelled(real[0], 1), labelled(real[1], 0))))

    def train(setting: Setting, run: int) -> SpotClassifier:
        return train_spot_classifier(
            setting.groups, scale=scale, steps=args.classifier_steps, batch_size=args.batch_size, seed=args.seed + run
        )

    scores, classifiers = [], {}
    for setting in settings:
        classifiers[setting.name] = [train(setting, run) for run in range(args.seeds)]
        scores.append([score(one, test) for one in classifiers[setting.name]])
        print(f"{setting.name}: AUC {' '.join(f'{auc(s[truth], s[~truth]):.3f}' for s in scores[-1])}", flush=True)

    # 4. the luck of the draw
    luck: dict[str, dict[str, float]] = {}
    for number, cases in enumerate(real[0][:, args.positives :].split(args.positives, dim=1)):
        if cases.shape[1] == args.positives:
            others = plain_positives[:, args.positives :].split(args.positives, dim=1)[number]
            tried = [Setting(FEW, (mixed(others, plain_negatives),)), Setting(CONTROL, with_few(cases))]
            tried += settings_with(cases, "many") if "many" in twins else ()
            of_others = {t.name: score(train(t, 0), test) for t in tried}
            luck[f"set {number + 2}"] = {name: float(auc(s[truth], s[~truth])) for name, s in of_others.items()}

    # 5. report
    rows = statistics(settings, np.array(scores), truth, args)
    seen_in_synthetic = {
        seen: judge_twins(classifiers[MANY], held_out[1], *(describe(v, 7, augmented=False, copies=1)[0] for v in pair))
        for seen, pair in synthetic.items()
    }
    given = sys.argv[1:] if arguments is None else arguments
    facts = {
        "command": shlex.join(["python", "examples/augment_rare_findings.py", *given]),
        "finding": args.finding,
        "checkpoints": {
            seen: {"name": model_name(model), "revision": revisions[seen], **pipes[seen].contract.to_dict()}
            for seen, model in (("many", args.model), ("few", args.few_model))
            if seen in pipes
        },
        "pool": {"first_seed": POOL_SEED, "positives": len(positives), "negatives": len(negatives)},
        "test": {"first_seed": TEST_SEED, "positives": int(truth.sum()), "negatives": int((~truth).sum())},
        "settings": {name: value for name, value in vars(args).items() if not isinstance(value, str)},  # no paths
        "environment": environment(),
        "minutes": (time.monotonic() - started) / 60,
        "seen_in_synthetic": seen_in_synthetic,
        "auc_of_other_few": luck,
        "rows": rows,
    }
    (folder / "rare_findings.json").write_text(json.dumps(facts, indent=2) + "\n")
    text = markdown(facts)
    (folder / "rare_findings.md").write_text(text)
    print(text)
    print(f"picture: {draw_cases(folder, args, classifiers[MANY][0], positives, synthetic)}")


def load_synthesis(model: str, args: argparse.Namespace, *, few: bool) -> tuple[CTDiffusionPipeline, str | None]:
    """A pipeline that can make the finding on this grid and has seen what its flag says; and its revision."""
    pipe, revision = load_pipeline(model, None)
    contract, encoder = pipe.contract, pipe.condition_encoder
    if contract is None or contract.target != "image" or encoder is None or args.finding not in encoder.config.findings:
        raise SystemExit(f"{model} is not a synthesis pipeline that knows the finding {args.finding}.")
    if tuple(contract.volume_shape or ()) != tuple(args.shape):
        raise SystemExit(f"{model} makes volumes of {contract.volume_shape} voxels: give that as --shape.")
    words = rare_words(POOL_SEED, args.finding, args.positives)
    if few and not contract.training_data.endswith(words):
        raise SystemExit(
            f"--few_model must have been trained on phantoms {words} (`train_synthesis.py --seed {POOL_SEED} "
            f"--keep_positives {args.finding} {args.positives}`); {model} was trained on {contract.training_data}."
        )
    if not few and f"of those with {args.finding} only" in contract.training_data:
        raise SystemExit(f"{model} has seen few cases of {args.finding}: give it as --few_model.")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe, revision


def real_phantoms(args: argparse.Namespace, name: str, count: int, first_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Phantoms with the finding and without, (n, D, H, W) in HU each; regions that cannot have it are left out."""
    volumes = phantom_volumes(
        count,
        first_seed=first_seed,
        shape=tuple(args.shape),
        spacing_mm=tuple(args.spacing),
        lesion_radius_mm=tuple(args.lesion_radius),
        cache=Path(args.output_dir) / f"{name}_phantoms.npz",
    )
    regions = [region.upper() for region in regions_of(args.finding)]
    present = [v.hu for v in volumes if args.finding in v.conditions.findings]
    absent = [
        v.hu for v in volumes if args.finding in v.conditions.findings_absent and v.conditions.body_part in regions
    ]
    if not (present and absent):
        raise SystemExit(
            f"{count} phantoms hold {len(present)} with {args.finding} and {len(absent)} without: too few."
        )
    return np.stack(present), np.stack(absent)


def regions_of(finding: str) -> list[str]:
    return [region for region in REGIONS if finding in LESION_KINDS_OF_REGION[region]]


def train_few_model(args: argparse.Namespace) -> str:
    """Trains a synthesis model on the pool with no cases but the few; goes on where an earlier call was cut off."""
    folder = Path(args.output_dir) / "few_model"
    numbers = {"--shape": args.shape, "--spacing": args.spacing, "--lesion_radius": args.lesion_radius}
    train_synthesis([
        "--phantoms", str(args.phantoms), "--seed", str(POOL_SEED), "--output_dir", str(folder),
        "--keep_positives", args.finding, str(args.positives), "--resume_from_checkpoint", "latest",
        *(word for flag, values in numbers.items() for word in (flag, *map(str, values))), *args.train_few,
    ])  # fmt: skip
    return str(folder / "pipeline")


def synthesise_twins(pipe: CTDiffusionPipeline, args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Synthetic cases with the finding, and the same (conditions, noise) without."""
    twins = []
    for asked in draw_conditions(pipe.condition_encoder.config.findings, args):
        made = pipe(
            conditions=asked,
            num_samples=len(asked),
            sample_batch_size=args.sample_batch_size,
            spacing_mm=tuple(args.spacing),
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            generator=torch.Generator().manual_seed(args.seed),
            output_type="np",
        ).volumes
        twins.append(np.stack(made))
    return twins[0], twins[1]


def draw_conditions(
    known: Sequence[str], args: argparse.Namespace
) -> tuple[list[ScanConditions], list[ScanConditions]]:
    """Requests with the finding and without, equal in all else; the rest is drawn as in the real phantoms."""
    rng = np.random.default_rng([args.seed, 11])
    regions, pairs = regions_of(args.finding), []
    for _ in range(args.synthetic):
        region, phase = str(rng.choice(regions)), str(rng.choice(CONTRAST_PHASES))
        possible = [kind for kind in LESION_KINDS_OF_REGION[region] if kind in known and kind != args.finding]
        others = tuple(kind for kind in possible if rng.random() < 0.4)
        pair = []
        for present in ((args.finding, *others), others):
            absent = tuple(kind for kind in known if kind not in present)
            pair.append(ScanConditions(body_part=region.upper(), contrast_phase=phase, findings=present, findings_absent=absent))  # fmt: skip
        pairs.append(pair)
    return [with_finding for with_finding, _ in pairs], [without for _, without in pairs]


def exchange_labels(with_finding: torch.Tensor, without: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Twins (copies, n, features) of which every second pair stands the wrong way round."""
    wrong = (torch.arange(with_finding.shape[1]) % 2 == 1)[None, :, None]
    return torch.where(wrong, without, with_finding), torch.where(wrong, with_finding, without)


if __name__ == "__main__":
    main()
