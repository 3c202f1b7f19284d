"""Which slices belong together: evenly spaced runs of one series, and pairs of a full and a low dose."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..io import CTReadError, read_volume
from ..volume import CTVolume
from .dicom_trees import Problem, SliceHeader

_POSITION_TOLERANCE_MM = 0.05


@dataclass(frozen=True)
class PairedRun:
    """Evenly spaced slices at full and low dose, in the order of their position along the normal."""

    full: tuple[SliceHeader, ...]
    low: tuple[SliceHeader, ...]

    @property
    def label(self) -> str:
        return run_label(self.full)


def run_label(run: Sequence[SliceHeader]) -> str:
    """What a run is called before the user."""
    return f"{run[0].folder} ({len(run)} {'slice' if len(run) == 1 else 'slices'} from {run[0].name})"


def split_runs(slices: Iterable[SliceHeader]) -> list[list[SliceHeader]]:
    """Sorts slices of one geometry by position and cuts them where the spacing changes: gaps are never bridged.

    Slices farther apart than twice their thickness are no volume: each becomes a run of one.

    Raises:
        ValueError: if two slices lie at one place, or the positions do not follow the normal (gantry tilt).
    """
    ordered = sorted(slices, key=lambda header: header.along_normal_mm)
    places = np.array([header.position_mm for header in ordered])
    steps = np.diff([header.along_normal_mm for header in ordered])
    if len(steps) and steps.min() < _POSITION_TOLERANCE_MM:
        twice = int(steps.argmin())
        raise ValueError(
            f"two slices at one position: {ordered[twice].name} and {ordered[twice + 1].name} "
            f"({ordered[twice].along_normal_mm:.2f} mm); keep one of them."
        )
    sideways = np.sqrt(np.maximum((np.diff(places, axis=0) ** 2).sum(axis=1) - steps**2, 0.0))
    runs = [[ordered[0]]]
    near = steps[steps <= 2.0 * max(ordered[0].thickness_mm, 0.1)]
    increment = float(np.median(near)) if len(near) else 0.0
    for header, step, shift in zip(ordered[1:], steps, sideways):
        if abs(step - increment) > max(0.02 * increment, _POSITION_TOLERANCE_MM):
            runs.append([header])
            continue
        if shift > max(0.02 * increment, _POSITION_TOLERANCE_MM):
            angle = np.degrees(np.arctan2(shift, step))
            raise ValueError(
                f"gantry tilt of {angle:.1f} degrees. A scan that needs no partner can be straightened, which smooths its noise: "
                "read it with resample=True, write it as NIfTI (`write_volume`) and prepare that with `patient_from_name`."
            )
        runs[-1].append(header)
    return runs


def find_runs(slices: Iterable[SliceHeader]) -> tuple[list[list[SliceHeader]], list[Problem]]:
    """Groups slices by patient, series and geometry and cuts each group into evenly spaced runs."""
    groups: dict[tuple, list[SliceHeader]] = defaultdict(list)
    for header in slices:
        groups[header.patient, header.study, header.series, header.kernel, header.geometry].append(header)
    runs, problems = [], []
    for group in groups.values():
        try:
            runs += split_runs(group)
        except ValueError as error:
            problems.append(Problem(group[0].folder, str(error), "irregular_geometry"))
    return runs, problems


def find_pairs(slices: Iterable[SliceHeader]) -> tuple[list[PairedRun], list[Problem]]:
    """Matches full- and low-dose slices by patient, kernel, geometry and position.

    Returns:
        The pairs, cut into evenly spaced runs, and what could not be matched, each with its reason.
    """
    groups: dict[tuple, dict[str, list[SliceHeader]]] = defaultdict(lambda: {"full": [], "low": []})
    problems = []
    unnamed: dict[str, int] = defaultdict(int)
    for header in slices:
        if header.dose is None:
            unnamed[header.folder] += 1
        else:
            groups[header.patient, header.kernel, header.geometry][header.dose].append(header)
    for folder, count in unnamed.items():
        problems.append(
            Problem(
                str(folder),
                f"{count} slices whose dose no name tells: name the folders `full` and `low` (or `quarter`).",
                "dose_not_named",
            )
        )
    pairs: list[PairedRun] = []
    lone: list[SliceHeader] = []
    for group in groups.values():
        if not group["full"] or not group["low"]:
            lone += group["full"] + group["low"]
            continue
        try:
            found, unmatched = _match(group["full"], group["low"])
        except ValueError as error:
            problems.append(Problem(group["full"][0].folder, str(error), "irregular_geometry"))
            continue
        pairs += found
        problems += _missing_partners(unmatched)
    return pairs, problems + _explain_lone(lone)


def _match(full: list[SliceHeader], low: list[SliceHeader]) -> tuple[list[PairedRun], list[SliceHeader]]:
    runs = {"full": split_runs(full), "low": split_runs(low)}
    ordered_low = [header for run in runs["low"] for header in run]
    low_mm = np.array([header.along_normal_mm for header in ordered_low])
    partner: dict[Path, SliceHeader] = {}
    for header in full:
        nearest = ordered_low[int(np.abs(low_mm - header.along_normal_mm).argmin())]
        if np.linalg.norm(np.subtract(header.position_mm, nearest.position_mm)) < _POSITION_TOLERANCE_MM:
            partner[header.path] = nearest
    matched = [header for header in full if header.path in partner]
    taken = {header.path for header in partner.values()}
    unmatched = [header for header in full if header.path not in partner]
    unmatched += [header for header in low if header.path not in taken]
    pairs = (
        [PairedRun(tuple(run), tuple(partner[h.path] for h in run)) for run in split_runs(matched)] if matched else []
    )
    return pairs, unmatched


def _missing_partners(unmatched: list[SliceHeader]) -> list[Problem]:
    by_folder: dict[tuple[str, str | None], list[SliceHeader]] = defaultdict(list)
    for header in unmatched:
        by_folder[header.folder, header.dose].append(header)
    return [
        Problem(
            str(folder),
            f"{_count(headers, dose)} no partner at the same position ({_some(headers)}); left out.",
            "no_partner",
        )
        for (folder, dose), headers in by_folder.items()
    ]


def _explain_lone(lone: list[SliceHeader]) -> list[Problem]:
    """Says of each group without a partner whether the other dose is missing or differs, and in what."""
    groups: dict[tuple, list[SliceHeader]] = defaultdict(list)
    for header in lone:
        groups[header.folder, header.patient, header.dose, header.kernel, header.geometry].append(header)
    problems = []
    for (folder, patient, dose, _, _), headers in groups.items():
        other_dose = "low" if dose == "full" else "full"
        others = [h for h in lone if h.patient == patient and h.dose == other_dose]
        reason = f"{_count(headers, dose)} no {other_dose}-dose partner ({_some(headers)})"
        if others:
            reason = f"the {other_dose}-dose images of this patient differ in {_differences(headers[0], others[0])}"
        problems.append(Problem(str(folder), f"{reason}; left out.", "no_partner"))
    return problems


def _differences(one: SliceHeader, other: SliceHeader) -> str:
    found = []
    for name, field in (("kernel", "kernel"), ("matrix", "matrix"), ("pixel spacing", "pixel_spacing_mm"),
                        ("slice thickness", "thickness_mm"), ("orientation", "orientation")):  # fmt: skip
        a, b = getattr(one, field), getattr(other, field)
        if a != b:
            found.append(f"{name} ({a} against {b})")
    return ", ".join(found)


def _count(headers: list[SliceHeader], dose: str | None) -> str:
    return f"1 {dose}-dose slice has" if len(headers) == 1 else f"{len(headers)} {dose}-dose slices have"


def _some(headers: list[SliceHeader]) -> str:
    names = [header.name for header in headers[:3]]
    return ", ".join(names) + (", ..." if len(headers) > 3 else "")


def read_run(run: Iterable[SliceHeader]) -> CTVolume:
    """Reads the pixels of an evenly spaced run of slices as one volume in HU.

    Raises:
        CTReadError: if a file is damaged or no CT image in HU.
    """
    headers = list(run)
    volumes = [read_volume(header.path) for header in headers]
    first = volumes[0]
    if any(volume.shape != (1, *headers[0].matrix) for volume in volumes):
        raise CTReadError(f"{headers[0].folder}: a file of the series does not hold exactly one slice.")
    if len(headers) == 1:
        return first
    affine = first.affine_lps.copy()
    step = np.subtract(headers[-1].position_mm, headers[0].position_mm) / (len(headers) - 1)
    affine[:3, 2] = step
    spacing = (float(np.linalg.norm(step)), first.spacing_mm[1], first.spacing_mm[2])
    return CTVolume(np.concatenate([volume.hu for volume in volumes]), spacing, affine, first.conditions)
