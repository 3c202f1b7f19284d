"""Classifier guidance: a noise-aware classifier steers a synthesis model towards findings, with and without CFG.

    python examples/classifier_guidance.py --model outputs/synthesis/model/pipeline \
        --classifier outputs/classifier/classifier --output_dir outputs/classifier_guidance

Puts the classifier into the pipeline, saves both as one (`OUTPUT_DIR/pipeline`), and compares scales: an independent
judge, trained on phantoms that neither network saw, says how often the volumes show what was asked for. What the classifier
judges (body part, findings) the synthesis model is not told: it comes from the classifier alone.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler

from diffusers_ct import CTDiffusionPipeline, NoiseAwareClassifier
from diffusers_ct.conditions import ConditionVocabulary, collate_conditions
from diffusers_ct.data.volumes import REGIONS, phantom_volumes
from diffusers_ct.evaluation import draw_requests, judge_row, rows_to_markdown, train_judge

JUDGE_SEED = 2_000_000  # of the first phantom of the judge, as in evaluate_synthesis.py


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder or repository of a synthesis pipeline.")
    parser.add_argument("--classifier", required=True, help="Folder made by examples/train_classifier.py.")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--samples", type=int, default=48, help="Volumes for each row.")
    parser.add_argument("--classifier_scales", type=float, nargs="+", default=[0.0, 5.0, 25.0])
    parser.add_argument("--guidance", type=float, default=2.0, help="Classifier-free scale of the stacked rows.")
    parser.add_argument("--interval", type=float, nargs=2, default=(0.0, 0.99), help="Part of the schedule guided.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sample_batch_size", type=int, default=8)
    parser.add_argument("--judge_phantoms", type=int, default=2400)
    parser.add_argument("--judge_epochs", type=int, default=5)
    parser.add_argument("--lesion_radius", type=float, nargs=2, default=(9.0, 15.0), metavar=("MIN", "MAX"))
    parser.add_argument("--judge_dir", type=Path, help="Folder of evaluate_synthesis.py, to take its judge from.")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="Of the judge's training.")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)

    # 1. one pipeline with both networks; it loads again as it is
    pipe = CTDiffusionPipeline.from_pretrained(
        args.model, classifier=NoiseAwareClassifier.from_pretrained(args.classifier, use_safetensors=True)
    )
    pipe.save_pretrained(folder / "pipeline")
    pipe = CTDiffusionPipeline.from_pretrained(folder / "pipeline")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    if torch.cuda.is_available():
        pipe.to("cuda")
    contract, findings = pipe.contract, tuple(pipe.condition_encoder.config.findings)
    z, yx = (float(np.round(np.mean(r), 3)) for r in (contract.slice_spacing_mm, contract.pixel_spacing_mm))

    # 2. the judge
    real = phantom_volumes(
        args.judge_phantoms,
        first_seed=JUDGE_SEED,
        shape=contract.volume_shape,
        spacing_mm=(z, yx, yx),
        lesion_radius_mm=tuple(args.lesion_radius),
        with_lesions=True,
        cache=(args.judge_dir or folder) / "judge_phantoms.npz",
    )
    judge = train_judge(
        [(v.hu, v.conditions) for v in real],
        body_parts=[region.upper() for region in REGIONS],
        findings=findings,
        epochs=args.judge_epochs,
        seed=args.seed,
        lesions=[v.lesions for v in real],
        bf16=args.mixed_precision == "bf16",
        cache=(args.judge_dir or folder) / "judge.safetensors",
    )

    # 3. sample: the phase by the network's own condition, the rest by the classifier
    asked = draw_requests(args.samples, args.seed, findings)
    rows = []
    settings = [(1.0, scale) for scale in args.classifier_scales] + [(args.guidance, max(args.classifier_scales))]
    for guidance, scale in settings:
        started = time.monotonic()
        volumes = sample(pipe, asked, (z, yx, yx), guidance, scale, args)
        row = judge_row(f"CFG {guidance:g}, classifier {scale:g}", judge, volumes, asked, findings)
        row["seconds_per_volume"] = (time.monotonic() - started) / len(asked)
        rows.append(row)
        print(
            f"{row['name']}: body part {100 * row['body_part']:.0f} %, findings {100 * row['possible_findings']:.0f} %"
        )
    table = rows_to_markdown(rows, findings)
    (folder / "classifier_guidance.md").write_text(table)
    facts = {"rows": rows, "steps": args.steps, "interval": list(args.interval), "seed": args.seed}
    (folder / "classifier_guidance.json").write_text(json.dumps(facts, indent=2))
    print(table)


def sample(pipe, asked, spacing_mm, guidance: float, classifier_scale: float, args) -> list:
    """Volumes for the requests, batch by batch, since each batch has targets of its own."""
    # What the classifier judges it asks for alone: the network's own condition of it stays unknown.
    heads = pipe.classifier.heads
    unknown = {"body_part": None, "findings": (), "findings_absent": ()}
    unknown = {k: v for k, v in unknown.items() if k.removesuffix("_absent") in heads}
    told = [replace(c, **unknown) for c in asked]
    config = pipe.classifier.config
    known = {"body_part": tuple(config.body_parts), "findings": tuple(config.findings)}
    vocabulary = ConditionVocabulary(heads, **{k: v for k, v in known.items() if k in heads})
    targets, _ = collate_conditions(asked, vocabulary, strict=False)
    volumes = []
    generator = torch.Generator().manual_seed(args.seed)
    for start in range(0, len(asked), args.sample_batch_size):
        rows = slice(start, start + args.sample_batch_size)

        def log_probability(x_t, timestep, rows=rows):
            return pipe.classifier.log_probability(
                x_t, timestep, {k: v[rows].to(x_t.device) for k, v in targets.items()}
            )

        volumes += pipe(
            conditions=told[rows],
            num_samples=len(told[rows]),
            sample_batch_size=args.sample_batch_size,
            spacing_mm=spacing_mm,
            num_inference_steps=args.steps,
            guidance_scale=guidance,
            guidance_interval=tuple(args.interval),
            classifiers=[(log_probability, classifier_scale)] if classifier_scale else [],
            generator=generator,
        ).volumes
    return volumes


if __name__ == "__main__":
    main()
