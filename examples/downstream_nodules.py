"""What a low dose costs a nodule classifier, and how much of it a restoration brings back.

    python examples/downstream_nodules.py --output_dir outputs/downstream
    python examples/downstream_nodules.py --output_dir outputs/downstream --model outputs/model/pipeline
    python examples/downstream_nodules.py --output_dir outputs/downstream --classifier mine.pt2

Thorax phantoms, half of them with nodules, are scanned twice: at full dose and, with noise of its own, at `--dose`. A
small network learns from full-dose images of training patients to tell patches of lung with a nodule from those without,
and is frozen. Then it judges patches of held-out patients: full dose, low dose, and the low dose restored by classical
baselines (tuned on training patients) and by `--model`. A fraction of the loss is told where the low dose lost something
that these patients show.

Vessels look like nodules in a patch, at any dose: the full dose's AUC is below 1 for that, and no restoration mends it.
`--classifier` judges with a network of one's own instead; see `diffusers_ct.evaluation.load_scores` for its form.
Writes `downstream.md` and `downstream.json`, and keeps the trained network in `nodules.safetensors`. Phantoms are
drawings: what this says of methods must be seen on patients before it is believed.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from diffusers_ct import CTDiffusionPipeline, ScanConditions
from diffusers_ct.evaluation import BASELINES, Case, train_judge, tune
from diffusers_ct.evaluation.benchmark import Method, environment
from diffusers_ct.evaluation.downstream import Region, Scores, judge_scores, load_scores, run_downstream
from diffusers_ct.metrics import body_mask
from diffusers_ct.physics import (
    KERNELS,
    LESION_KINDS,
    ORGAN_LABELS,
    DoseSettings,
    Phantom,
    make_phantom,
    simulate_low_dose,
)

TRAIN_SEED, TEST_SEED = 6_000_000, 7_000_000  # apart from those of the other examples
FINDINGS = ("ground_glass_nodule", "solid_nodule")  # of the lung
TRIES = 200  # for a patch of lung without a nodule


@dataclass(frozen=True)
class Scan:
    """A phantom patient at both doses.

    Attributes:
        case: low and full dose.
        regions: patches that are judged.
        lesions: (depth, height, width) uint8, 0 or 1 + the index of the lesion's kind in `LESION_KINDS`.
    """

    case: Case
    regions: list[Region]
    lesions: np.ndarray


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--model", help="A restoration pipeline: a folder or a Hub repository.")
    parser.add_argument("--classifier", help="A frozen classifier: a .pt2, a .safetensors or a folder.")
    parser.add_argument("--finding", choices=FINDINGS, default="solid_nodule")
    parser.add_argument(
        "--lesion_radius", type=float, nargs=2, default=(2.0, 3.5), metavar=("MIN", "MAX"), help="In mm."
    )
    parser.add_argument("--dose", type=float, default=0.1, help="Fraction of the full dose.")
    parser.add_argument("--i0", type=float, default=1e5, help="Photons a ray at full dose.")
    parser.add_argument("--kernel", choices=sorted(KERNELS), default="sharp", help="Of the reconstruction.")
    parser.add_argument("--train_phantoms", type=int, default=160)
    parser.add_argument("--test_phantoms", type=int, default=120)
    parser.add_argument("--shape", type=int, nargs=3, default=(3, 192, 208), metavar=("D", "H", "W"))
    parser.add_argument("--spacing", type=float, nargs=3, default=(3.0, 2.0, 2.0), metavar=("Z", "Y", "X"))
    parser.add_argument("--patch", type=int, default=24, help="Side of a patch in pixels; it holds all slices.")
    parser.add_argument("--epochs", type=int, default=12, help="Of the classifier.")
    parser.add_argument(
        "--baselines", nargs="+", choices=[b.name for b in BASELINES], default=("Gaussian", "total variation")
    )
    parser.add_argument("--tuning_scans", type=int, default=4, help="Training scans that tune each baseline.")
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if not 0.0 < args.dose < 1.0:
        raise SystemExit(f"--dose must be in (0, 1), got {args.dose}.")
    if min(args.train_phantoms, args.test_phantoms, args.tuning_scans, args.epochs) < 1:
        raise SystemExit("--train_phantoms, --test_phantoms, --tuning_scans and --epochs must be positive.")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    started = time.monotonic()
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)

    # 1. patients, and a classifier that is frozen before any low dose is seen
    training = draw_scans(args, args.train_phantoms, TRAIN_SEED, "training patients")
    if args.classifier:
        scores = load_scores(args.classifier, finding=args.finding)
    else:
        scores = train_classifier(training, args, folder / "nodules.safetensors")

    # 2. restorations
    pairs = [(s.case.low_hu, s.case.full_hu, body_mask(s.case.full_hu)) for s in training[: args.tuning_scans]]
    strengths = {b.name: tune(b, pairs) for b in BASELINES if b.name in args.baselines}
    methods: dict[str, Method] = {
        b.name: lambda case, b=b: b(case.low_hu, strengths[b.name]) for b in BASELINES if b.name in strengths
    }
    if args.model:
        methods["diffusers-ct, 1 step"] = restoration(args.model)

    # 3. the same patches of held-out patients on every kind of image
    test = draw_scans(args, args.test_phantoms, TEST_SEED, "held-out patients")
    depth_mm, side_mm = args.shape[0] * args.spacing[0], args.patch * args.spacing[1]
    rows = run_downstream(
        [scan.case for scan in test],
        [scan.regions for scan in test],
        methods,
        scores,
        task=f"{args.finding} in {side_mm:g} x {side_mm:g} x {depth_mm:g} mm of lung",
        resamples=args.resamples,
        seed=args.seed,
        progress=lambda numbers: tqdm(numbers, desc="judging"),
    )

    # 4. report
    given = sys.argv[1:] if arguments is None else arguments
    facts = {
        "command": shlex.join(["python", "examples/downstream_nodules.py", *given]),
        "settings": {
            name: value for name, value in vars(args).items() if name not in ("output_dir", "model", "classifier")
        },
        "first_seeds": {"training": TRAIN_SEED, "test": TEST_SEED},
        "baseline_strengths": strengths,
        "minutes": (time.monotonic() - started) / 60,
        "environment": environment(),
    }
    (folder / "downstream.json").write_text(json.dumps({"downstream": rows, "facts": facts}, indent=2) + "\n")
    text = markdown(rows, facts)
    (folder / "downstream.md").write_text(text)
    print(text)


def draw_scans(args: argparse.Namespace, count: int, first_seed: int, what: str) -> list[Scan]:
    """Phantom patients, every second one with nodules."""
    return [draw_scan(args, first_seed + k, with_nodules=k % 2 == 0) for k in tqdm(range(count), desc=what)]


def draw_scan(args: argparse.Namespace, seed: int, *, with_nodules: bool) -> Scan:
    """A patient, scanned at full dose and again at the low one."""
    spacing_mm = tuple(args.spacing)
    phantom = make_phantom(
        seed,
        "thorax",
        shape=tuple(args.shape),
        spacing_mm=spacing_mm,
        findings=[args.finding] if with_nodules else [],
        lesion_radius_mm=tuple(args.lesion_radius),
    )
    settings = DoseSettings(i0=args.i0, kernel=args.kernel)
    full_hu, low_hu = (
        simulate_low_dose(
            phantom.volume.hu,
            spacing_mm=spacing_mm,
            dose_fraction=dose,
            seed=2 * seed + number,
            source_noise="noise_free",
            settings=settings,
        )
        for number, dose in enumerate((1.0, args.dose))
    )
    conditions = replace(phantom.volume.conditions, dose_fraction=args.dose)
    low = replace(phantom.volume.with_hu(low_hu), conditions=conditions)
    kinds = np.array([0, *(1 + LESION_KINDS.index(lesion.kind) for lesion in phantom.lesions)], dtype=np.uint8)
    case = Case(f"phantom {seed}", f"phantom {seed}", low, full_hu, args.dose, "normal_dose")
    return Scan(case, patches(phantom, args.patch, seed), kinds[phantom.lesion_mask])


def patches(phantom: Phantom, side: int, seed: int) -> list[Region]:
    """One patch around each nodule, which lies anywhere in its middle half; and one of lung without, two of the healthy."""
    rng = np.random.default_rng([seed, 29])
    depth, *plane = phantom.volume.shape

    def around(y: float, x: float) -> tuple[int, int, int]:
        start = [int(np.clip(round(c) - side // 2, 0, n - side)) for c, n in zip((y, x), plane)]
        return 0, start[0], start[1]

    def voxels(start: tuple[int, int, int]) -> np.ndarray:
        return phantom.lesion_mask[:, start[1] : start[1] + side, start[2] : start[2] + side]

    size = (depth, side, side)
    found = []
    for number in range(1, len(phantom.lesions) + 1):
        _, y, x = np.nonzero(phantom.lesion_mask == number)
        start = around(*(c.mean() + rng.uniform(-side / 4, side / 4) for c in (y, x)))
        found.append(Region(True, start, size))
    _, y, x = np.nonzero(phantom.organs == ORGAN_LABELS["lung"])
    wanted = len(found) + (1 if found else 2)
    for place in rng.integers(len(y), size=TRIES) if len(y) else ():
        start = around(y[place], x[place])
        if len(found) < wanted and not voxels(start).any():
            found.append(Region(False, start, size))
    return found


def train_classifier(scans: Sequence[Scan], args: argparse.Namespace, cache: Path) -> Scores:
    """A `ConditionJudge` of full-dose patches, taught where the nodules lie; an earlier one is taken from the cache."""
    volumes, lesions = [], []
    for scan in scans:
        for region in scan.regions:
            box = tuple(slice(a, a + n) for a, n in zip(region.start, region.size))
            known = {"findings" if region.present else "findings_absent": (args.finding,)}
            volumes.append((scan.case.full_hu[box], ScanConditions(body_part="THORAX", **known)))
            lesions.append(scan.lesions[box])
    judge = train_judge(
        volumes,
        body_parts=("THORAX",),
        findings=(args.finding,),
        epochs=args.epochs,
        seed=args.seed,
        lesions=lesions,
        noise_hu=0.0,  # the images have their own
        cache=cache,
    )
    return judge_scores(judge, args.finding)


def restoration(model: str) -> Method:
    """A pipeline's estimate of least mean square error, in one step."""
    pipe = CTDiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    if torch.cuda.is_available():
        pipe.to("cuda")

    def restore(case: Case) -> np.ndarray:
        # Phantoms of another scanner than those it was trained on: their noise may lie beyond the contract's.
        output = pipe(
            case.low, num_inference_steps=1, generator=torch.Generator().manual_seed(0), output_type="np",
            ignore_contract=("noise_level_hu",),
        )  # fmt: skip
        return output.volumes

    return restore


def markdown(rows: Sequence[dict], facts: dict) -> str:
    """The table and what must be known to read it."""

    def cell(row: dict, value: str, low: str, high: str, sign: str = "") -> str:
        if row[value] is None:
            return "–"
        return f"{row[value]:{sign}.3f} ({row[low]:{sign}.3f} to {row[high]:{sign}.3f})"

    first = rows[0]
    lines = [["images", "AUC", "minus low dose", "recovered fraction of the loss"], ["---"] * 4]
    for row in rows:
        gain = cell(row, "minus_low", "minus_low_low", "minus_low_high", "+")
        recovered = cell(row, "recovered_fraction", "recovered_low", "recovered_high")
        lines.append([row["images"], cell(row, "auc", "low", "high"), gain, recovered])
    text = [
        f"{first['task']}, {first['group']}: {first['n_patients']} held-out phantoms, {first['n_present']} patches with and "
        f"{first['n_absent']} without. In brackets: 95 % bootstrap over the phantoms, differences paired.",
        "\n".join("| " + " | ".join(line) + " |" for line in lines),
    ]
    if rows[0]["minus_low_low"] <= 0.0:
        text.append("These patients do not show that the low dose loses anything: no fraction can be recovered.")
    text.append(f"`{facts['command']}`, {facts['minutes']:.0f} min.")
    return "\n\n".join(text) + "\n"


if __name__ == "__main__":
    main()
