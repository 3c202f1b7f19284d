"""Trains on real full/quarter-dose pairs of some patients and restores another: Mayo 2016 challenge layout.

    python examples/mayo_pairs.py --pairs PAIRS_FOLDER --test_patient L506 --output_dir outputs/mayo \
        --npy_pair INPUT.npy TARGET.npy

Every pair of another patient trains; no setting is chosen on the test patient, and baselines are tuned on the training
patients. To make the most of a few slices, sharp-kernel pairs are also shown as a smoother kernel would have made them
(`data/kernel_transfer.py`) and the inserted noise is varied. Both images of a pair share the noise of one scan: the table
has the row of a perfect image and the ceiling that follows (facts in `evaluation/benchmark.py`). `--npy_pair` adds a test
slice stored as (HU + 1024) / 4096, of the same test patient.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler
from evaluate_ldct import OURS, print_table
from tqdm.auto import tqdm

from diffusers_ct import (
    CheckpointContract,
    CTDiffusionPipeline,
    CTVolume,
    ScanConditions,
    UNet3DCTModel,
    __version__,
    load_paired_ct,
)
from diffusers_ct.data import PatchDataset, prepare_paired_ct
from diffusers_ct.data.kernel_transfer import smoother_kernel_pairs
from diffusers_ct.evaluation import BASELINES, Case, cases_from_rows, run_benchmark, tune, write_report
from diffusers_ct.evaluation.figures import overview, to_png
from diffusers_ct.metrics import body_mask
from diffusers_ct.schedulers import make_noise_scheduler
from diffusers_ct.training import ResidualDiffusionObjective, TrainingConfig, train

DOSE = 0.25


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, help="Folder of the pairs, any layout `diffusers-ct prepare` knows.")
    parser.add_argument("--test_patient", required=True)
    parser.add_argument("--sharp_kernel", default="D45f")
    parser.add_argument("--smooth_kernel", default="B30f")
    parser.add_argument("--npy_pair", nargs=2, action="append", default=[], metavar=("INPUT", "TARGET"))
    TrainingConfig.add_arguments(parser)
    parser.set_defaults(max_train_steps=5000, learning_rate=8e-4, checkpointing_steps=1000, lr_warmup_steps=50)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    config = TrainingConfig.from_args(args)
    out = Path(config.output_dir)

    # 1. pairs -> dataset; the test patient apart
    override = {args.test_patient: "test"}
    report = prepare_paired_ct(
        out / "dataset", pairs=args.pairs, dose_fractions=(DOSE,), split_by_patient=override, validation_fraction=0.0,
        test_fraction=0.0,
    )  # fmt: skip
    print(f"rows: {report.rows}")
    measured = load_paired_ct(out / "dataset", split="train")
    copies = [
        smoother_kernel_pairs(measured, from_kernel=args.sharp_kernel, to_kernel=args.smooth_kernel, strength=s)
        for s in (0.5, 1.0)
    ]
    patches = PatchDataset(
        [measured, *copies], (1, 96, 96), 64 * config.train_batch_size, seed=config.seed, noise_gain=(0.65, 1.85)
    )

    # 2. train
    scheduler = make_noise_scheduler(config.noise_schedule)
    torch.manual_seed(config.seed)
    model = UNet3DCTModel(block_out_channels=(48, 96, 144), conv_mode="2.5d")

    def save_pipeline(averaged):
        contract = CheckpointContract(
            training_data=f"{len(measured)} slice pairs of {len(set(measured['patient_key']))} patients, Mayo 2016 challenge",
            training_data_licence="AAPM/Mayo Low Dose CT Grand Challenge terms",
            dose_fraction=(0.2, 0.3),
            package_version=__version__,
        )
        CTDiffusionPipeline(averaged, DDIMScheduler.from_config(scheduler.config), contract.to_dict()).save_pretrained(
            out / "pipeline"
        )

    train(
        config,
        model=model,
        make_objective=lambda m: ResidualDiffusionObjective(m, scheduler, terminal_fraction=config.terminal_fraction),
        dataset=patches,
        save_pretrained=save_pipeline,
    )

    # 3. restore the patient that was never seen, beside baselines tuned on the training patients
    pipe = CTDiffusionPipeline.from_pretrained(out / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    training_cases = cases_from_rows(measured)
    pairs = [(c.low_hu, c.full_hu, body_mask(c.full_hu)) for c in training_cases]
    strengths = {b.name: tune(b, pairs) for b in tqdm(BASELINES, desc="tuning baselines")}
    methods = {b.name: lambda case, b=b: b(case.low_hu, strengths[b.name]) for b in BASELINES}
    methods[OURS] = lambda case: pipe(case.low, output_type="np").volumes
    cases = cases_from_rows(load_paired_ct(out / "dataset", split="test"))
    cases += [npy_case(cases[0], *paths) for paths in args.npy_pair]
    facts = {
        "training": f"{len(measured)} pairs of other patients",
        "split": f"test patient {args.test_patient}",
        "baseline_strengths": json.dumps(strengths),
        "reference": "full dose of the same scan, whose noise the low dose shares",
    }
    result = run_benchmark(cases, methods, group_of=group_of, facts=facts)
    result.save(out / "benchmark.json")
    pictures = []
    for case in cases:
        restored = methods[OURS](case)
        spread = pipe(
            case.low,
            num_inference_steps=10,
            num_samples=4,
            generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).uncertainty_hu
        figure = overview(
            case.low_hu[0], restored[0], case.full_hu[0], spread[0], low_title="quarter dose", full_title="full dose",
            difference=True,
        )  # fmt: skip
        pictures.append((group_of(case), "Soft-tissue window.", to_png(figure)))
    write_report(
        out / "report.html", result, title="Quarter-dose restoration on real pairs", summary=[], pictures=pictures
    )
    print_table(result)


def group_of(case: Case) -> str:
    """One table a slice: kernels and thicknesses are not averaged."""
    return f"{case.low.spacing_mm[0]:g} mm slices, {case.low.conditions.kernel or 'kernel not stated'}"


def npy_case(like: Case, low_path: str, full_path: str) -> Case:
    """A slice pair stored as (HU + 1024) / 4096, with the in-plane spacing of the patient's DICOM slice."""
    low, full = (np.clip(4096.0 * np.load(path) - 1024.0, -1024.0, 3071.0)[None] for path in (low_path, full_path))
    spacing = (3.0, *like.low.spacing_mm[1:])
    conditions = ScanConditions(dose_fraction=DOSE, slice_thickness_mm=3.0)
    volume = CTVolume.from_array(low, spacing, conditions)
    return Case(Path(low_path).stem, like.patient_key, volume, full.astype(np.float32), DOSE, "same_scan")


if __name__ == "__main__":
    main()
