"""What a noise schedule that follows the dose buys: the same small model trained and sampled with and without it.

    python examples/adaptive_schedule.py --output_dir outputs/adaptive_schedule

Phantoms at 50, 25, 10 and 5 % dose in one training set. The residual is on an absolute scale, r = (full - low) / 40 HU,
so that its size differs between doses by a factor of three and one schedule cannot fit all of them. (The package's
own residual is divided by the measured noise level of the scan, which is already an adaptation: a shift of the
log-SNR by -log v is the same as dividing the data by sqrt(v). `--scale measured` shows what is left after it.)

1. A model is trained with the fixed schedule, and its denoising error measured against the log-SNR for each dose, on
   phantoms of their own. Where half of the error without signal is left is the shift of that dose.
2. The same model, from the same weights and with as many steps, is trained with the adaptive schedule.
3. Both restore test phantoms: in one step, and by samples of few steps. Because the networks are told the noise level
   and not the schedule, the model of the fixed schedule is sampled with others too: one shift for all doses, and one
   for each. So what comes of training, of a common shift and of the dose is seen apart.

Prints a table and writes `adaptive_schedule.md` and `adaptive_schedule.json`.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diffusers_ct import CTAdaptiveDDIMScheduler, UNet3DCTModel, make_phantom, simulate_low_dose
from diffusers_ct.residual import (
    CONDITION_CHANNELS,
    decode_residual,
    encode_condition,
    encode_residual,
    estimate_noise_hu,
    scan_vector,
)
from diffusers_ct.schedulers import (
    LogSNRShift,
    denoising_errors,
    fit_shift_table,
    log_snr_at_error,
    make_noise_scheduler,
    network_timesteps,
    v_to_x0,
)
from diffusers_ct.training import ResidualDiffusionObjective, TrainingConfig, train

DOSES = (0.5, 0.25, 0.1, 0.05)
SCALE_HU = 40.0  # of the absolute residual: about the noise of the lowest dose
FIELD_MM = 400.0


@dataclass(frozen=True)
class Slices:
    """Single slices of phantoms, every one at every dose; tensors with the slice first."""

    full_hu: torch.Tensor  # (n, 1, 1, H, W)
    low_hu: torch.Tensor  # (n, 1, 1, H, W)
    noise_hu: torch.Tensor  # (n, 1): what the residual is divided by
    dose_fraction: torch.Tensor  # (n,)
    body: torch.Tensor  # (n, 1, 1, H, W) bool
    patient: torch.Tensor  # (n,)
    spacing_mm: torch.Tensor  # (3,)


def make_slices(patients: range, size: int, slices: int, scale: str) -> Slices:
    spacing = (4.0, FIELD_MM / size, FIELD_MM / size)
    parts = []
    for seed in patients:
        phantom = make_phantom(seed, ("thorax", "abdomen")[seed % 2], shape=(slices, size, size), spacing_mm=spacing)
        full = phantom.volume.hu
        for dose in DOSES:
            low = simulate_low_dose(full, spacing_mm=spacing, dose_fraction=dose, seed=seed, source_noise="noise_free")
            noise = np.full(slices, SCALE_HU, np.float32) if scale == "fixed" else estimate_noise_hu(low)
            parts += [(full[k], low[k], noise[k], dose, phantom.organs[k] > 0, seed) for k in range(slices)]
    full, low, noise, dose, body, patient = (np.array(column) for column in zip(*parts))
    image = (len(parts), 1, 1, size, size)
    return Slices(
        torch.from_numpy(full).reshape(image),
        torch.from_numpy(low).reshape(image),
        torch.from_numpy(noise).float()[:, None],
        torch.from_numpy(dose).float(),
        torch.from_numpy(body).reshape(image),
        torch.from_numpy(patient),
        torch.tensor(spacing),
    )


class Patches(torch.utils.data.Dataset):
    """Random square patches: item i depends on (seed, epoch, i) alone, so that both models see the same ones."""

    def __init__(self, slices: Slices, size: int, length: int, seed: int) -> None:
        self.slices, self.size, self.length, self.seed, self.epoch = slices, size, length, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng([self.seed, self.epoch, index])
        s, k = self.slices, int(rng.integers(len(self.slices.full_hu)))
        height, width = s.full_hu.shape[-2:]
        y, x = (int(rng.integers(0, n - self.size + 1)) for n in (height, width))
        box = (..., slice(y, y + self.size), slice(x, x + self.size))
        flip = [axis for axis in (-1, -2) if rng.random() < 0.5]
        return {
            "full_hu": s.full_hu[k][box].flip(flip),
            "low_hu": s.low_hu[k][box].flip(flip),
            "noise_hu": s.noise_hu[k],
            "spacing_mm": s.spacing_mm,
            "dose_fraction": s.dose_fraction[k],
        }


def train_model(args: argparse.Namespace, name: str, scheduler, patches: Patches, steps: int | None):
    """Trains from the same weights on the same patches; returns the averaged model and the steps it had."""
    torch.manual_seed(args.seed)
    model = UNet3DCTModel(
        in_channels=1 + CONDITION_CHANNELS, block_out_channels=tuple(args.block_out_channels), layers_per_block=1,
        conv_mode="2.5d", patch_size=(1, 1, 1), refine_channels=0,
    )  # fmt: skip
    folder = Path(args.output_dir) / name
    config = TrainingConfig(
        output_dir=str(folder),
        max_train_steps=steps or 1_000_000,
        max_train_minutes=None if steps else 0.35 * args.minutes,
        train_batch_size=args.train_batch_size,
        learning_rate=3e-3,
        lr_scheduler="constant_with_warmup",
        lr_warmup_steps=min(50, (steps or 1_000_000) - 1),
        ema_decay=0.995,
        terminal_fraction=0.25,
        checkpointing_steps=1_000_000,
        seed=args.seed,
    )
    result = train(
        config,
        model=model,
        make_objective=lambda prepared: ResidualDiffusionObjective(prepared, scheduler, terminal_fraction=0.25),
        dataset=patches,
        save_pretrained=lambda averaged: averaged.save_pretrained(folder / "unet"),
    )
    return UNet3DCTModel.from_pretrained(folder / "unet").eval(), result.step


def predict(model, x_t: torch.Tensor, told: torch.Tensor, s: Slices) -> torch.Tensor:
    """v of the residual."""
    pooled = scan_vector(s.noise_hu, s.spacing_mm.expand(len(x_t), 3))
    return model(torch.cat([x_t, encode_condition(s.low_hu, s.noise_hu)], dim=1), told, pooled=pooled).sample


def measure_shifts(model, scheduler, s: Slices, generator: torch.Generator) -> tuple[list[float], dict]:
    """Of each dose: the log-SNR at which half of the error without signal is left."""
    last = scheduler.config.num_train_timesteps - 1
    table = scheduler.alphas_cumprod.sqrt(), (1.0 - scheduler.alphas_cumprod).sqrt()

    def denoiser(x_t, t):
        alpha, sigma = (values[t].reshape(-1, 1, 1, 1, 1) for values in table)
        return v_to_x0(predict(model, x_t, t, s), x_t, alpha, sigma)

    x0 = encode_residual(s.full_hu, s.low_hu, s.noise_hu)
    log_snr, errors = denoising_errors(denoiser, x0, scheduler, [last, *range(25, last - 20, 35)], generator)
    curves = [errors[:, np.isclose(s.dose_fraction, dose)].mean(axis=1) for dose in DOSES]
    shifts = [log_snr_at_error(log_snr[1:], curve[1:], curve[0]) for curve in curves]
    facts = {"log_snr": log_snr[1:].tolist(), "error_left": [(c[1:] / c[0]).tolist() for c in curves]}
    return shifts, facts


def draw_samples(model, scheduler, s: Slices, steps: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """(count, n, 1, 1, H, W) restored slices in HU, each slice on the schedule of its dose."""
    samples = []
    for _ in range(count):
        x = torch.randn(s.full_hu.shape, generator=generator)
        scheduler.set_timesteps(steps, conditions={"dose_fraction": s.dose_fraction})
        for t in scheduler.timesteps:
            v = predict(model, x, network_timesteps(scheduler, t), s)
            x = scheduler.step(v, t, x).prev_sample
        samples.append(decode_residual(x, s.low_hu, s.noise_hu))
    return torch.stack(samples)


def score(samples: torch.Tensor, s: Slices) -> dict[str, np.ndarray]:
    """Means over the body of each slice, (n,): squared error of the mean, variance between samples, CRPS in HU.

    CRPS: mean |x_i - y| - mean |x_i - x_j| / 2 over pairs i != j (Gneiting and Raftery 2007, eq. 21, in its unbiased
    form): a proper score of the samples as a distribution, the absolute error where there is one sample.
    """

    def body_mean(values: torch.Tensor) -> np.ndarray:
        return ((values * s.body).flatten(1).sum(1) / s.body.flatten(1).sum(1)).double().numpy()

    found = {"squared_error": body_mean((samples.mean(0) - s.full_hu).square())}
    if (count := len(samples)) > 1:
        ordered = samples.sort(dim=0).values
        rank = torch.arange(1 - count, count, 2).reshape(-1, *(1,) * (samples.ndim - 1))
        pairs = (rank * ordered).sum(0) / (count * (count - 1))  # sum over i < j of |x_i - x_j|, per ordered pair
        found["variance"] = body_mean(samples.var(0))
        found["crps_hu"] = body_mean((samples - s.full_hu).abs().mean(0) - pairs)
    return found


def compare(arms: dict[str, tuple], s: Slices, args: argparse.Namespace) -> list[dict]:
    """One row for each dose and arm."""
    rows = []
    scored = {}
    for name, (model, scheduler) in arms.items():
        for steps in (1, *args.steps):
            generator = torch.Generator().manual_seed(args.seed + 1)  # the same starting noise for every arm
            count = 1 if steps == 1 else args.samples
            scored[name, steps] = score(draw_samples(model, scheduler, s, steps, count, generator), s)
    first = next(iter(arms))
    inflation = 1.0 + 1.0 / args.samples  # the error of a mean of K samples of the truth's own law, in variances
    for dose in DOSES:
        of_dose = np.isclose(s.dose_fraction, dose)
        patients = s.patient.numpy()[of_dose]

        def by_patient(values, of_dose=of_dose, patients=patients):
            return np.array([values[of_dose][patients == p].mean() for p in np.unique(patients)])

        for name in arms:
            row = {"dose_fraction": dose, "arm": name}
            row["one_step_rmse_hu"] = float(np.sqrt(scored[name, 1]["squared_error"][of_dose].mean()))
            for steps in args.steps:
                found = scored[name, steps]
                error, variance = (found[key][of_dose].mean() for key in ("squared_error", "variance"))
                change = by_patient(found["crps_hu"]) - by_patient(scored[first, steps]["crps_hu"])
                row[f"rmse_{steps}_hu"] = float(np.sqrt(error))
                row[f"spread_{steps}"] = float(np.sqrt(variance / (error / inflation)))
                row[f"crps_{steps}_hu"] = float(found["crps_hu"][of_dose].mean())
                row[f"crps_change_{steps}_hu"] = float(change.mean())
                row[f"crps_change_se_{steps}_hu"] = float(change.std(ddof=1) / np.sqrt(len(change)))
            rows.append(row)
    return rows


def to_markdown(rows: list[dict], args: argparse.Namespace) -> str:
    header = ["dose", "trained / sampled with", "1 step: RMSE"]
    for n in args.steps:
        header += [f"{n} steps: RMSE of mean", "spread / error", "CRPS", "change of CRPS ± SE"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        cells = [f"{row['dose_fraction']:.0%}", row["arm"], f"{row['one_step_rmse_hu']:.2f}"]
        for n in args.steps:
            cells += [f"{row[f'rmse_{n}_hu']:.2f}", f"{row[f'spread_{n}']:.2f}", f"{row[f'crps_{n}_hu']:.3f}"]
            cells.append(f"{row[f'crps_change_{n}_hu']:+.3f} ± {row[f'crps_change_se_{n}_hu']:.3f}")
        lines.append("| " + " | ".join(cells) + " |")
    lines.append(f"\nIn HU, over the body; mean of {args.samples} samples; spread / error is 1 where the samples are as far "
                 "apart as the truth is from them; changes are against the first row of the dose, SE over test patients.")  # fmt: skip
    return "\n".join(lines)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--minutes", type=float, default=10.0, help="Of the whole on 2 cores; 35 %% for each training.")
    parser.add_argument("--max_train_steps", type=int, default=None, help="Steps of each training, in place of time.")
    parser.add_argument("--scale", choices=("fixed", "measured"), default="fixed", help="What divides the residual.")
    parser.add_argument("--patients", type=int, nargs=3, default=(32, 4, 8), metavar=("TRAIN", "FIT", "TEST"))
    parser.add_argument("--size", type=int, default=96, help="Voxels across a slice.")
    parser.add_argument("--slices", type=int, default=6, help="Of each training phantom; 2 of the others.")
    parser.add_argument("--patch_size", type=int, default=32)
    parser.add_argument("--train_batch_size", type=int, default=8)
    parser.add_argument("--block_out_channels", type=int, nargs="+", default=(12, 16, 24))
    parser.add_argument("--steps", type=int, nargs="+", default=(3, 8), help="Of the samples.")
    parser.add_argument("--samples", type=int, default=4, help="Drawn for each slice; at least 2.")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    out = Path(args.output_dir)

    # 1. data: patients of their own for training, for the fit of the schedule, and for the test
    ends = np.cumsum([0, *args.patients]).tolist()
    training, fitting, test = (
        make_slices(range(a, b), args.size, slices, args.scale)
        for a, b, slices in zip(ends, ends[1:], (args.slices, 2, 2))
    )
    patches = Patches(training, args.patch_size, 64 * args.train_batch_size, args.seed)

    # 2. the fixed schedule, and what its model says of each dose
    fixed = CTAdaptiveDDIMScheduler.from_config(make_noise_scheduler().config)
    fixed_model, steps = train_model(args, "fixed", fixed, patches, args.max_train_steps)
    with torch.no_grad():
        shifts, curves = measure_shifts(fixed_model, fixed, fitting, torch.Generator().manual_seed(args.seed))
    wanted = LogSNRShift(torch.tensor(shifts))
    table = fit_shift_table({"dose_fraction": torch.tensor(DOSES)}, wanted, {"dose_fraction": sorted(DOSES)})
    common = {
        "shift_conditions": ["dose_fraction"], "shift_knot_counts": [1], "shift_knots": [1.0],
        "shift_values": [float(np.mean(shifts))],
    }  # fmt: skip
    print("shift of the log-SNR:", ", ".join(f"{s:+.2f} at {d:.0%}" for s, d in zip(shifts, DOSES)))

    # 3. the same model with the adaptive schedule
    adaptive = CTAdaptiveDDIMScheduler.from_config(fixed.config, **table)
    adaptive_model, _ = train_model(args, "adaptive", adaptive, patches, steps)

    # 4. compare
    arms = {
        "fixed / fixed": (fixed_model, fixed),
        "fixed / one shift": (fixed_model, CTAdaptiveDDIMScheduler.from_config(fixed.config, **common)),
        "fixed / adaptive": (fixed_model, adaptive),
        "adaptive / adaptive": (adaptive_model, adaptive),
    }
    with torch.no_grad():
        rows = compare(arms, test, args)
    markdown = to_markdown(rows, args)
    (out / "adaptive_schedule.md").write_text(markdown + "\n")
    settings = {name: value for name, value in vars(args).items() if name != "output_dir"}
    facts = {"settings": settings, "train_steps": steps, "doses": DOSES, "shifts": shifts, "curves": curves}
    (out / "adaptive_schedule.json").write_text(json.dumps({**facts, "table": table, "rows": rows}, indent=2) + "\n")
    print(f"{steps} training steps each\n\n{markdown}")


if __name__ == "__main__":
    main()
