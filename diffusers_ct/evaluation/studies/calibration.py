"""Whether a sampler's spread is its real uncertainty, by patient."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from ...metrics import (
    central_interval,
    crps,
    expected_gap_db,
    rank_histogram,
    sample_to_mean_gap_db,
    spread_skill_ratio,
)
from ...metrics.calibration import Intervals

LEVELS = (0.5, 0.9, 0.95)


@dataclass(frozen=True, eq=False)
class SampledCase:
    """Samples of one scan.

    Attributes:
        group: table of the case, such as its dose.
        method: that drew the samples.
        patient_key: the unit of statistics.
        samples_hu: (samples, depth, height, width).
        reference_hu: (depth, height, width), of the kind that the sampler draws: an image that could itself be one of a
            perfect sampler's samples. That is the noise-free truth for a sampler of such, and a full-dose image with its
            noise for one that learnt these. Where the reference alone has noise, a perfect sampler looks too narrow.
        region: bool (depth, height, width) that is judged, such as the body: outside there is nothing to be unsure of.
        one_step_hu: (depth, height, width), the method's own estimate of the mean; None where it has none.
    """

    group: str
    method: str
    patient_key: str
    samples_hu: np.ndarray
    reference_hu: np.ndarray
    region: np.ndarray
    one_step_hu: np.ndarray | None

    def __post_init__(self) -> None:
        shape = np.shape(self.reference_hu)
        one_step = shape if self.one_step_hu is None else np.shape(self.one_step_hu)
        if (
            np.ndim(self.samples_hu) != 4
            or not np.shape(self.samples_hu)[1:] == np.shape(self.region) == shape == one_step
        ):
            raise ValueError(
                f"Samples (samples, depth, height, width), reference, region and estimate must agree, got "
                f"{np.shape(self.samples_hu)}, {shape}, {np.shape(self.region)} and {one_step}."
            )
        if np.asarray(self.region).dtype != bool or not np.any(self.region):
            raise ValueError("`region` must be a bool mask with one voxel at least.")


def calibration_study(cases: Iterable[SampledCase], *, seed: int) -> list[dict[str, Any]]:
    """Coverage, CRPS, the gap of one sample to the mean, spread, and ranks: means over scans, then over patients.

    Intervals are between order statistics where this number of samples has exact ones of all levels (39 samples), else
    Gaussian prediction intervals, which are exact for Gaussian posteriors of any number of samples from 2: both hold a
    further draw as often as they say, however few the samples.

    Not exact about: the 95 % intervals of the means, Student's over patients: the patients' means are taken as normal.

    Args:
        cases: one for each method and scan; they may come from a generator, one is held at a time.
        seed: of the rank among equal values.

    Returns:
        One dict for each group and method: "group", "method", "nominal", "coverage" with "coverage_low" and
        "coverage_high" (lists, as "nominal"), "intervals" ("order" or "gaussian"), "crps_hu", "gap_db" with "gap_low_db"
        and "gap_high_db", "gap_samples", "gap_expected_db" (of a perfect sampler with as many samples),
        "mean_of_samples_minus_one_step_db" with "loss_low_db" and "loss_high_db" (None without an estimate),
        "spread_skill", "rank_histogram" (shares that sum to 1, `gap_samples` + 1 of them), "n_patients". Ends of intervals
        are None for fewer than 2 patients.

    Raises:
        ValueError: for no case, or numbers of samples that differ within a group and method.
    """
    measured: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for case in cases:
        of_patient = measured.setdefault((case.group, case.method), {}).setdefault(case.patient_key, [])
        of_patient.append(_measure(case, seed))
    if not measured:
        raise ValueError("There is no case of samples.")
    rows = []
    for (group, method), patients in measured.items():
        scans = [scan for of_patient in patients.values() for scan in of_patient]
        counts = {scan["gap_samples"] for scan in scans}
        if len(counts) > 1:
            raise ValueError(f"{method!r} at {group!r} has {sorted(counts)} samples: give all scans as many.")

        def by_patient(key: str, patients: dict[str, list[dict[str, Any]]] = patients) -> np.ndarray:
            return np.array([np.mean([scan[key] for scan in of_patient], axis=0) for of_patient in patients.values()])

        def mean(key: str, of: Callable[[str], np.ndarray] = by_patient) -> Any:
            return of(key).mean(axis=0).tolist()

        samples = counts.pop()
        compared = all(scan["one_step"] is not None for scan in scans)
        low, high = _student(by_patient("coverage"))
        gap_low, gap_high = _student(by_patient("gap_db"))
        loss_low, loss_high = _student(by_patient("one_step")) if compared else (None, None)
        rows.append(
            {
                "group": group,
                "method": method,
                "nominal": list(LEVELS),
                "coverage": mean("coverage"),
                "coverage_low": None if low is None else np.maximum(low, 0.0).tolist(),
                "coverage_high": None if high is None else np.minimum(high, 1.0).tolist(),
                "intervals": _intervals_of(samples),
                "crps_hu": mean("crps_hu"),
                "gap_db": mean("gap_db"),
                "gap_low_db": gap_low,
                "gap_high_db": gap_high,
                "gap_samples": samples,
                "gap_expected_db": expected_gap_db(samples),
                "mean_of_samples_minus_one_step_db": mean("one_step") if compared else None,
                "loss_low_db": loss_low,
                "loss_high_db": loss_high,
                "spread_skill": mean("spread_skill"),
                "rank_histogram": mean("ranks"),
                "n_patients": len(patients),
            }
        )
    return rows


def _student(by_patient: np.ndarray) -> tuple[Any, Any]:
    """Ends of Student's 95 % interval of the mean over patients (patients, ...), numbers or lists; None for one patient."""
    n = len(by_patient)
    if n < 2:
        return None, None
    half = stats.t.ppf(0.975, n - 1) * by_patient.std(axis=0, ddof=1) / np.sqrt(n)
    return (by_patient.mean(axis=0) - half).tolist(), (by_patient.mean(axis=0) + half).tolist()


def _intervals_of(samples: int) -> Intervals:
    """ "order" where the samples have an exact interval of each level: where (1 - level) (samples + 1) / 2 is whole."""
    ranks = [(1 - level) * (samples + 1) / 2 for level in LEVELS]
    return "order" if all(k > 0.5 and abs(k - round(k)) < 1e-6 for k in ranks) else "gaussian"


def _measure(case: SampledCase, seed: int) -> dict[str, Any]:
    samples = np.asarray(case.samples_hu)[:, case.region].astype(np.float64)
    truth = np.asarray(case.reference_hu)[case.region].astype(np.float64)
    held = []
    for level in LEVELS:
        low, high = central_interval(samples, level=level, intervals=_intervals_of(len(samples)))
        held.append(float(np.mean((low <= truth) & (truth <= high))))
    one_step = None
    if case.one_step_hu is not None:
        errors = [np.mean((hu - truth) ** 2) for hu in (case.one_step_hu[case.region], samples.mean(axis=0))]
        one_step = float(10.0 * np.log10(errors[0] / errors[1]))
    counts = rank_histogram(samples, truth, seed=seed).counts
    return {
        "gap_samples": len(samples),
        "coverage": held,
        "crps_hu": float(crps(samples, truth).mean()),
        "gap_db": sample_to_mean_gap_db(samples, truth),
        "one_step": one_step,
        "spread_skill": spread_skill_ratio(samples, truth),
        "ranks": counts / counts.sum(),
    }
