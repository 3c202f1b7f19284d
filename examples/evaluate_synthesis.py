"""Do synthesised phantoms show what was asked for? An independent judge, a measurement, and pictures.

    python examples/evaluate_synthesis.py --model outputs/synthesis/model/pipeline --output_dir outputs/synthesis/evaluation

The judge (`diffusers_ct.evaluation.ConditionJudge`) is trained on real phantoms that the synthesis model never saw and
tested on others; its accuracy there is the ceiling of the table. The HU of the aorta are measured without any network.
Writes `synthesis.json`, `synthesis.md` and a picture for each condition, which `diffusers-ct card` takes:

    diffusers-ct card outputs/synthesis/model/pipeline --repo user/model --benchmark outputs/synthesis/evaluation/synthesis.json \
        --pictures outputs/synthesis/evaluation --training-config outputs/synthesis/model/training_config.json \
        --compute outputs/synthesis/model/compute.json --licence apache-2.0 --limit "Drawn anatomy alone." --output card/README.md
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

from diffusers_ct import CTDiffusionPipeline, CTVolume, ScanConditions
from diffusers_ct.cli.checkpoints import fingerprint, model_name
from diffusers_ct.data.volumes import REGIONS, phantom_volumes
from diffusers_ct.evaluation import draw_requests, judge_row, rows_to_markdown, train_judge
from diffusers_ct.evaluation.benchmark import environment
from diffusers_ct.hounsfield import hu_to_unit
from diffusers_ct.physics import CONTRAST_PHASES, LESION_KINDS_OF_REGION

PHANTOM_CONDITIONS = ("body_part", "contrast_phase", "findings")
JUDGE_SEED, HELD_OUT_SEED = 2_000_000, 3_000_000


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder or repository of a synthesis pipeline.")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--samples", type=int, default=96, help="Volumes for each guidance scale.")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument("--steps", type=int, default=20, help="Of DPM-Solver++.")
    parser.add_argument("--judge_phantoms", type=int, default=2400)
    parser.add_argument("--held_out_phantoms", type=int, default=240)
    parser.add_argument("--judge_epochs", type=int, default=5)
    parser.add_argument("--lesion_radius", type=float, nargs=2, default=(9.0, 15.0), metavar=("MIN", "MAX"))
    parser.add_argument("--sample_batch_size", type=int, default=8)
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="Of the judge's training.")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    if args.samples < len(REGIONS) * len(CONTRAST_PHASES):
        raise SystemExit(f"--samples must be {len(REGIONS) * len(CONTRAST_PHASES)} or more: one a region and phase.")
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    pipe = CTDiffusionPipeline.from_pretrained(args.model)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    if torch.cuda.is_available():
        pipe.to("cuda")
    known = () if pipe.condition_encoder is None else pipe.condition_encoder.config.conditions
    if missing := [name for name in PHANTOM_CONDITIONS if name not in known]:
        raise SystemExit(f"{args.model} was trained without {', '.join(missing)}: there is nothing to judge.")
    findings = tuple(pipe.condition_encoder.config.findings)
    contract = pipe.contract
    shape = contract.volume_shape
    # the ranges of a contract are those of its training data, widened by a tenth on both sides
    z, yx = (float(np.round(np.mean(r), 3)) for r in (contract.slice_spacing_mm, contract.pixel_spacing_mm))
    spacing = (z, yx, yx)

    # 1. the judge, and what it is worth on real phantoms
    drawn = {"shape": shape, "spacing_mm": spacing, "lesion_radius_mm": tuple(args.lesion_radius), "with_lesions": True}
    real = phantom_volumes(args.judge_phantoms, first_seed=JUDGE_SEED, cache=folder / "judge_phantoms.npz", **drawn)
    held_out = phantom_volumes(
        args.held_out_phantoms, first_seed=HELD_OUT_SEED, cache=folder / "held_out_phantoms.npz", **drawn
    )
    regions = [region.upper() for region in REGIONS]
    judge = train_judge(
        [(v.hu, v.conditions) for v in real],
        body_parts=regions,
        findings=findings,
        epochs=args.judge_epochs,
        seed=args.seed,
        lesions=[v.lesions for v in real],
        bf16=args.mixed_precision == "bf16",
        cache=folder / "judge.safetensors",
    )
    truth = [v.conditions for v in held_out]
    volumes = [CTVolume.from_array(v.hu.astype(np.float32), spacing, v.conditions) for v in held_out]
    rows = [judge_row("real phantoms, held out", judge, volumes, truth, findings)]
    print(line_of(rows[0]))

    # 2. synthesis at each guidance scale
    asked = draw_requests(args.samples, args.seed, findings)
    for scale in args.guidance:
        started = time.monotonic()
        made = pipe(
            conditions=asked,
            num_samples=len(asked),
            sample_batch_size=args.sample_batch_size,
            spacing_mm=spacing,
            num_inference_steps=args.steps,
            guidance_scale=scale,
            generator=torch.Generator().manual_seed(args.seed),
        ).volumes
        row = judge_row(f"synthesised, guidance {scale:g}", judge, made, asked, findings)
        row["seconds_per_volume"] = (time.monotonic() - started) / len(asked)
        rows.append(row)
        print(line_of(row))

    # 3. report
    table = rows_to_markdown(rows, findings)
    (folder / "synthesis.md").write_text(table)
    facts = {
        "model": pipe.contract.to_dict(), "steps": args.steps, "seed": args.seed, "shape": shape, "spacing_mm": spacing,
        "judge_phantoms": args.judge_phantoms, "torch_threads": torch.get_num_threads(), "rows": rows, "findings": findings,
        "weights": fingerprint(Path(args.model)) if Path(args.model).is_dir() else None,
        **{name: value for name, value in environment().items() if name in ("package_version", "git_revision", "git_changed")},
        "command": f"python examples/evaluate_synthesis.py --model {model_name(args.model)} --samples {args.samples} "
        f"--guidance {' '.join(f'{scale:g}' for scale in args.guidance)} --steps {args.steps} --judge_phantoms "
        f"{args.judge_phantoms} --judge_epochs {args.judge_epochs} --seed {args.seed}",
    }  # fmt: skip
    (folder / "synthesis.json").write_text(json.dumps(facts, indent=2))
    print(table)
    drawn_grids = draw_grids(pipe, folder, spacing, findings, args)
    (folder / "pictures.json").write_text(json.dumps(drawn_grids, indent=2) + "\n")
    for picture in drawn_grids:
        print(f"picture: {folder / picture['file']}")


def line_of(row: dict) -> str:
    return f"{row['name']}: body part {100 * row['body_part']:.1f} %, findings {100 * row['possible_findings']:.1f} %"


def draw_grids(pipe, folder: Path, spacing, findings, args) -> list[dict[str, str]]:
    """One picture a condition: each column one noise, each row one value of the condition, all else equal.

    Returns file, title and caption of each.
    """
    scale = sorted(args.guidance)[len(args.guidance) // 2]
    settings = [("body_part", "thorax", [("thorax", {}), ("abdomen", {"body_part": "ABDOMEN"})])]
    for region in REGIONS:
        settings.append(
            (f"contrast_phase_{region}", region, [(phase, {"contrast_phase": phase}) for phase in CONTRAST_PHASES])
        )
        for kind in LESION_KINDS_OF_REGION[region]:
            if kind in findings:
                others = tuple(f for f in findings if f != kind)
                values = [
                    (f"no {kind}", {"findings": (), "findings_absent": findings}),
                    (kind, {"findings": (kind,), "findings_absent": others}),
                ]
                settings.append((f"{kind}_{region}", region, values))
    listed = []
    for name, region, values in settings:
        base = ScanConditions(body_part=region.upper(), contrast_phase="portal", findings=(), findings_absent=findings)
        rows = []
        for _, change in values:
            made = pipe(
                conditions=replace(base, **change),
                num_samples=4,
                sample_batch_size=4,
                spacing_mm=spacing,
                num_inference_steps=args.steps,
                guidance_scale=scale,
                generator=torch.Generator().manual_seed(args.seed + 1),
                output_type="pt",
            ).volumes
            rows.append(torch.stack(made))
        # the slice that differs most between the rows shows the condition
        change = (rows[0] - rows[-1]).abs().clip(0, 400).mean(dim=(2, 3))
        slices = change.argmax(dim=1)
        window = "lung" if "nodule" in name else "soft_tissue"
        picture = torch.cat([torch.cat([hu_to_unit(hu[i, slices[i]], window) for i in range(4)], dim=1) for hu in rows])
        grey = ((picture.numpy() + 1.0) * 127.5).round().astype(np.uint8)
        path = folder / f"grid_{name}.png"
        image = Image.fromarray(grey)
        image.resize((image.width * 4, image.height * 4), Image.Resampling.BICUBIC).save(path)
        caption = f"Rows from above: {', '.join(label for label, _ in values)}. Guidance {scale:g}; the slice that differs most."
        listed.append({"file": path.name, "title": f"{name.replace('_', ' ')}", "caption": caption})
    return listed


if __name__ == "__main__":
    main()
