"""What a sampler's steps buy: quality, texture and time of every sampler at every number of steps."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...metrics import body_mask, crps, psnr_pooled, spread_skill_ratio
from ...physics.low_contrast_phantom import RodPhantom
from ...volume import CTVolume
from .methods import FULL_DOSE, Method, dose_group, restored
from .noise import noise_study
from .scans import RestorationCase

# (group, method, steps) -> shares of the full dose's noise
Texture = Mapping[tuple[str, str, int], Mapping[str, float | None]]


@dataclass(frozen=True)
class FewStepSampler:
    """One sampler with one number of steps.

    Attributes:
        method: the sampler's name; its curve goes through all its steps.
        steps: evaluations of the network.
        draw: (scan, number of the sample) -> (depth, height, width) in HU.
    """

    method: str
    steps: int
    draw: Callable[[CTVolume, int], np.ndarray]

    def sample(self, number: int) -> Method:
        """One of its samples as a method."""
        return lambda volume: self.draw(volume, number)


def few_steps_study(
    samplers: Sequence[FewStepSampler],
    cases: Sequence[RestorationCase],
    *,
    samples: int,
    texture: Texture | None = None,
) -> list[dict[str, Any]]:
    """Quality and latency of every sampler: means over scans, then over patients.

    Samples are drawn in turn, one of every sampler before the next of any, so that what else the machine does falls on all
    alike; the time is the median over scans and samples.

    A reference that the sampler could itself have drawn (full dose with its noise, for a model that learnt these) is judged
    rightly by CRPS and spread; see `SampledCase.reference_hu`.

    Args:
        samplers: no two of one name and number of steps.
        cases: held-out scans.
        samples: of each scan, 2 or more.
        texture: of `few_steps_texture`.

    Returns:
        One dict for each group and sampler: "group", "method", "steps", "psnr_one_db" (of a sample, the mean over them) and
        "psnr_mean_db" (of their mean; pooled, whole HU range), "crps_hu" and "spread_skill" in the body (0 is no spread, 1
        is as far as the error), "seconds_per_slice", "frequency_share" and "noise_share" (None without `texture`),
        "samples", "n_patients", "n_scans".

    Raises:
        ValueError: for no case, fewer than 2 samples, or two samplers of one name.
    """
    names = [(sampler.method, sampler.steps) for sampler in samplers]
    if len(set(names)) < len(names):
        raise ValueError("Two samplers have one name and number of steps.")
    if samples < 2 or not cases:
        raise ValueError(f"The study takes 2 samples or more of one scan or more, got {samples} of {len(cases)}.")
    measured: dict[tuple[str, str, int], dict[str, list[dict[str, float]]]] = {}
    seconds: dict[tuple[str, str, int], list[float]] = {}
    for case in cases:
        group = dose_group(case.dose_fraction)
        drawn: dict[tuple[str, int], list[np.ndarray]] = {name: [] for name in names}
        for number in range(samples):
            for name, sampler in zip(names, samplers):
                began = time.perf_counter()
                drawn[name].append(restored(f"{name[0]}, {name[1]} steps", sampler.sample(number), case.low))
                each = (time.perf_counter() - began) / len(case.full_hu)
                seconds.setdefault((group, *name), []).append(each)
        region = body_mask(case.full_hu)
        for name, images in drawn.items():
            of_patient = measured.setdefault((group, *name), {}).setdefault(case.patient_key, [])
            of_patient.append(_measure(np.stack(images), case.full_hu, region))
    rows = []
    for (group, method, steps), patients in measured.items():
        means = {
            key: float(np.mean([np.mean([scan[key] for scan in of]) for of in patients.values()]))
            for key in ("psnr_one_db", "psnr_mean_db", "crps_hu", "spread_skill")
        }
        shares = (texture or {}).get((group, method, steps), {"frequency_share": None, "noise_share": None})
        rows.append(
            {
                "group": group,
                "method": method,
                "steps": steps,
                **means,
                "seconds_per_slice": float(np.median(seconds[group, method, steps])),
                **shares,
                "samples": samples,
                "n_patients": len(patients),
                "n_scans": sum(len(of) for of in patients.values()),
            }
        )
    return rows


def few_steps_texture(
    samplers: Sequence[FewStepSampler],
    *,
    phantom: RodPhantom,
    dose_fractions: Sequence[float],
    slices: int,
    slab_slices: int,
    seed: int,
    slice_mm: float,
) -> dict[tuple[str, str, int], dict[str, float | None]]:
    """Noise of one sample of water as shares of the full dose's: its mean frequency and its standard deviation.

    Of samples like full-dose images both are 1. The mean of a posterior has little noise, and that coarse; arguments as of
    `noise_study`, which says what it is not exact about.

    Returns:
        (group, method, steps) -> "frequency_share" (None where there is no noise) and "noise_share".
    """
    by_name = {f"{sampler.method}, {sampler.steps} steps": sampler for sampler in samplers}
    rows = noise_study(
        {name: sampler.sample(0) for name, sampler in by_name.items()},
        phantom=phantom, dose_fractions=dose_fractions, slices=slices, slab_slices=slab_slices, seed=seed, slice_mm=slice_mm,
    )  # fmt: skip
    full = {row["group"]: row for row in rows if row["method"] == FULL_DOSE}
    found = {}
    for row in rows:
        if row["method"] in by_name:
            sampler, of = by_name[row["method"]], full[row["group"]]
            frequency = row["mean_frequency_per_mm"]
            found[row["group"], sampler.method, sampler.steps] = {
                "frequency_share": None if frequency is None else frequency / of["mean_frequency_per_mm"],
                "noise_share": row["sd_hu"] / of["sd_hu"],
            }
    return found


def fewest_steps(rows: Sequence[Mapping[str, Any]], *, margin: float) -> dict[str, Any]:
    """The row of fewest steps, and of these of least CRPS, whose CRPS is at most `margin` (a share) above the least of all.

    Args:
        rows: of `few_steps_study`, of one group.
        margin: such as 0.02.
    """
    least = min(row["crps_hu"] for row in rows)
    enough = [row for row in rows if row["crps_hu"] <= (1.0 + margin) * least]
    return dict(min(enough, key=lambda row: (row["steps"], row["crps_hu"])))


def _measure(samples_hu: np.ndarray, full_hu: np.ndarray, region: np.ndarray) -> dict[str, float]:
    inside, truth = samples_hu[:, region].astype(np.float64), full_hu[region].astype(np.float64)
    return {
        "psnr_one_db": float(np.mean([psnr_pooled(hu, full_hu, convention="full") for hu in samples_hu])),
        "psnr_mean_db": psnr_pooled(samples_hu.mean(axis=0), full_hu, convention="full"),
        "crps_hu": float(crps(inside, truth).mean()),
        "spread_skill": spread_skill_ratio(inside, truth),
    }
