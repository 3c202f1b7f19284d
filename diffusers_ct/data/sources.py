"""The three sources of pairs, planned as tasks: one task a scan, which knows the keys of its rows before any work."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args

import numpy as np
from datasets import Features

from ..physics import PHANTOM_VERSION, SIMULATOR_VERSION, DoseSettings, make_phantom, simulate_low_dose
from ..physics.dose_draws import Kernel
from ..physics.phantom import Region
from ..physics.scan_simulation import MATCHED, scanner_of_scan
from ..physics.truncation import MEASURED_FIELD_MM
from ..volume import CTVolume
from .dicom_trees import Problem, read_headers
from .manifest import SplitRule, check_dose_fraction, features, hashed_key, make_row
from .scans import Scan, find_scans
from .slice_matching import PairedRun, find_pairs, read_run
from .workers import Workers

REGIONS: tuple[Region, ...] = get_args(Region)
DEFAULT_REGIONS: tuple[Region, ...] = ("thorax", "abdomen")

HOW_CALLED = (
    "Write the PatientID as the headers have it, the case number (L506) or 'folder NAME' where that is a placeholder, and of "
    "a NIfTI or MetaImage file what `patient_from_name` finds."
)
# Phantoms have no patient to protect, and everyone who makes phantom 3 should find it under the same key.
_PHANTOM_SALT = "phantom"


class ScanTask(Protocol):
    """One scan still to be made into rows. Small and picklable; volumes are read or made in `rows`."""

    @property
    def label(self) -> str: ...
    @property
    def patient_key(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def row_keys(self) -> tuple[str, ...]: ...
    @property
    def matrix(self) -> tuple[int, int]: ...
    @property
    def row_bytes(self) -> int: ...
    @property
    def schema(self) -> Features: ...
    def rows(self, wanted: Collection[str]) -> Iterator[dict[str, Any]]: ...


@dataclass(frozen=True)
class _Variant:
    """One low-dose realisation of a scan."""

    scan_key: str
    dose_fraction: float
    seed: int


@dataclass(frozen=True)
class PairTask:
    """A measured pair: both images come from files."""

    run: PairedRun
    scan_key: str
    patient_key: str
    split: str
    dose_fraction: float

    @property
    def label(self) -> str:
        return self.run.label

    @property
    def row_keys(self) -> tuple[str, ...]:
        return (self.scan_key,)

    @property
    def matrix(self) -> tuple[int, int]:
        return self.run.full[0].matrix

    @property
    def row_bytes(self) -> int:
        return _pair_bytes((len(self.run.full), *self.matrix))

    @property
    def schema(self) -> Features:
        return features(self.matrix)

    def rows(self, wanted: Collection[str]) -> Iterator[dict[str, Any]]:
        if self.scan_key not in wanted:
            return
        full, low = read_run(self.run.full), read_run(self.run.low)
        yield make_row(
            low.hu,
            full.hu,
            scan_key=self.scan_key,
            patient_key=self.patient_key,
            split=self.split,
            dose_fraction=self.dose_fraction,
            spacing_mm=full.spacing_mm,
            affine_lps=full.affine_lps,
            target="same_scan",
            conditions=replace(low.conditions, dose_fraction=self.dose_fraction),
            provenance={"source": "pairs"},
        )


@dataclass(frozen=True)
class SimulatedTask:
    """A normal-dose scan from files and its simulated low-dose realisations.

    As `diffusers-ct simulate` does, through the same code: a body that the image cuts off is continued, and what is not
    fixed of I0 and kernel is measured in the scan's own noise.
    """

    scan: Scan
    patient_key: str
    split: str
    variants: tuple[_Variant, ...]
    settings: DoseSettings
    i0_fixed: bool
    kernel_fixed: bool

    @property
    def label(self) -> str:
        return self.scan.label

    @property
    def row_keys(self) -> tuple[str, ...]:
        return tuple(variant.scan_key for variant in self.variants)

    @property
    def matrix(self) -> tuple[int, int]:
        return self.scan.shape[1:]

    @property
    def row_bytes(self) -> int:
        return _pair_bytes(self.scan.shape)

    @property
    def schema(self) -> Features:
        return features(self.matrix)

    def rows(self, wanted: Collection[str]) -> Iterator[dict[str, Any]]:
        volume = self.scan.read()
        field_mm = self.scan.field_mm or MEASURED_FIELD_MM
        try:
            scanner = scanner_of_scan(
                volume,
                self.settings,
                match_kernel=not self.kernel_fixed,
                calibrate_i0=not self.i0_fixed,
                field_mm=field_mm,
            )
        except ValueError as error:
            if self.i0_fixed and self.kernel_fixed:
                raise
            raise ValueError(
                f"I0 and kernel cannot be taken from the noise of the scan: {error} They are fixed for all scans by "
                "i0=N and kernel=NAME."
            ) from error
        facts = {
            "source": "normal_dose",
            "simulator_from": {
                "i0": "given" if self.i0_fixed else "scan",
                "kernel": "given" if self.kernel_fixed else MATCHED,
                "field_mm": field_mm,
            },
        }
        for variant in self.variants:
            if variant.scan_key in wanted:
                low_hu = scanner.low_dose_hu(dose_fraction=variant.dose_fraction, seed=variant.seed)
                yield _simulated_row(volume, low_hu, variant, self, scanner.settings, "normal_dose", facts)


@dataclass(frozen=True)
class PhantomTask:
    """A phantom and its simulated low-dose realisations; `full` is the noise-free truth."""

    phantom_seed: int
    region: Region
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    patient_key: str
    split: str
    variants: tuple[_Variant, ...]
    settings: DoseSettings

    @property
    def label(self) -> str:
        return f"phantom {self.phantom_seed} ({self.region})"

    @property
    def row_keys(self) -> tuple[str, ...]:
        return tuple(variant.scan_key for variant in self.variants)

    @property
    def matrix(self) -> tuple[int, int]:
        return self.shape[1], self.shape[2]

    @property
    def row_bytes(self) -> int:
        return _pair_bytes(self.shape)

    @property
    def schema(self) -> Features:
        return features(self.matrix)

    def rows(self, wanted: Collection[str]) -> Iterator[dict[str, Any]]:
        phantom = make_phantom(self.phantom_seed, self.region, shape=self.shape, spacing_mm=self.spacing_mm)
        facts = {
            "source": "phantom",
            "phantom_version": PHANTOM_VERSION,
            "phantom_seed": self.phantom_seed,
            "region": self.region,
            "shape": list(self.shape),
        }
        for variant in self.variants:
            if variant.scan_key in wanted:
                low_hu = simulate_low_dose(
                    phantom.volume.hu,
                    spacing_mm=phantom.volume.spacing_mm,
                    dose_fraction=variant.dose_fraction,
                    seed=variant.seed,
                    source_noise="noise_free",
                    settings=self.settings,
                    slice_thickness_mm=phantom.volume.conditions.slice_thickness_mm,
                )
                yield _simulated_row(phantom.volume, low_hu, variant, self, self.settings, "noise_free", facts)


def _pair_bytes(shape: tuple[int, int, int]) -> int:
    """Two int16 volumes."""
    return 4 * shape[0] * shape[1] * shape[2]


def _simulated_row(
    volume: CTVolume,
    low_hu: np.ndarray,
    variant: _Variant,
    task: SimulatedTask | PhantomTask,
    settings: DoseSettings,
    target: Literal["noise_free", "normal_dose"],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    return make_row(
        low_hu,
        volume.hu,
        scan_key=variant.scan_key,
        patient_key=task.patient_key,
        split=task.split,
        dose_fraction=variant.dose_fraction,
        spacing_mm=volume.spacing_mm,
        affine_lps=volume.affine_lps,
        target=target,
        conditions=replace(volume.conditions, dose_fraction=variant.dose_fraction),
        provenance={
            **facts,
            "simulator_version": SIMULATOR_VERSION,
            "simulator": settings.to_dict(),
            "seed": variant.seed,
        },
    )


def plan_pairs(
    root: Path, *, dose_fraction: float, salt: str, split_rule: SplitRule, workers: Workers | None = None
) -> tuple[list[ScanTask], list[Problem]]:
    """Finds the full/low-dose pairs under a folder (layouts: `dicom_trees`) and plans one row for each run of slices.

    Args:
        root: folder that holds both doses.
        dose_fraction: of the low-dose images. The caller must know it: the headers of the public pair collections
            carry the full-dose mAs on both sides.
        salt: of the patient keys.
        split_rule: sends patients to splits.
        workers: that read headers; None for this process.

    Returns:
        The tasks, and what could not be used and why.
    """
    dose_fraction = check_dose_fraction(dose_fraction)
    slices, problems = read_headers(root, workers)
    pairs, unmatched = find_pairs(slices)
    tasks: list[ScanTask] = []
    for pair in pairs:
        first = pair.full[0]
        patient_key = hashed_key(salt, "patient", first.patient)
        place = (first.kernel, first.geometry, f"{first.along_normal_mm:.2f}", len(pair.full))
        tasks.append(
            PairTask(
                run=pair,
                scan_key=hashed_key(salt, "pair", first.patient, first.study, first.series, *place, dose_fraction),
                patient_key=patient_key,
                split=split_rule.of_patient(first.patient, patient_key),
                dose_fraction=dose_fraction,
            )
        )
    check_overrides(split_rule, {pair.full[0].patient for pair in pairs})
    return tasks, problems + unmatched


def plan_normal_dose(
    root: Path,
    *,
    dose_fractions: Collection[float],
    realizations: int,
    seed: int,
    salt: str,
    split_rule: SplitRule,
    settings: DoseSettings,
    i0: float | None = None,
    kernel: Kernel | None = None,
    patient_from_name: str | None = None,
    assume_hu: bool = False,
    workers: Workers | None = None,
) -> tuple[list[ScanTask], list[Problem]]:
    """Plans simulated low-dose rows for every scan under a folder of normal-dose scans.

    Args:
        root: folder of DICOM series, NIfTI or MetaImage files; low-dose images in it are refused.
        dose_fractions: of the simulated images.
        realizations: noise realisations for each fraction.
        seed: from which, with the scan's key, the seed of every realisation follows.
        salt: of the patient keys.
        split_rule: sends patients to splits.
        settings: the scanner of the simulation, but for I0 and kernel.
        i0: photons per ray at normal dose; None: from the noise of each scan.
        kernel: name in `KERNELS` or a window; None: from the noise of each scan.
        patient_from_name: whose a NIfTI or MetaImage file is, see `find_scans`.
        assume_hu: see `find_scans`.
        workers: that read headers; None for this process.

    Raises:
        ValueError: if the folder holds images that a name calls low dose, or files whose patient nothing tells.
    """
    scans, problems = find_scans(root, patient_from_name, workers, assume_hu=assume_hu)
    low = [scan for scan in scans if scan.dose == "low"]
    if low:
        raise ValueError(
            f"{root} holds images whose name says low dose ({low[0].label}): give the folder of the full-dose "
            "images alone, or use it as measured pairs (`pairs`)."
        )
    if i0 is not None:
        settings = replace(settings, i0=i0)
    if kernel is not None:
        settings = replace(settings, kernel=kernel)
    tasks: list[ScanTask] = []
    for scan in scans:
        patient_key = hashed_key(salt, "patient", scan.patient)
        tasks.append(
            SimulatedTask(
                scan=scan,
                patient_key=patient_key,
                split=split_rule.of_patient(scan.patient, patient_key),
                variants=_variants((salt, "normal_dose", *scan.identity), dose_fractions, realizations, seed),
                settings=settings,
                i0_fixed=i0 is not None,
                kernel_fixed=kernel is not None,
            )
        )
    check_overrides(split_rule, {scan.patient for scan in scans})
    return tasks, problems


def plan_phantoms(
    count: int,
    *,
    dose_fractions: Collection[float],
    realizations: int,
    seed: int,
    regions: Collection[str],
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    split_rule: SplitRule,
    settings: DoseSettings,
) -> list[ScanTask]:
    """Plans `count` phantoms with the seeds `seed`, `seed + 1`, ...; regions take turns."""
    # Keys are made of the text of these numbers: (2, 1, 1), [2.0, 1.0, 1.0] and the like are the same phantom.
    regions, shape, spacing_mm = tuple(regions), (*map(int, shape),), (*map(float, spacing_mm),)  # type: ignore[assignment]
    if count < 1 or seed < 0:
        raise ValueError(f"Phantoms need a count of at least 1 and a seed of at least 0, got {count} and {seed}.")
    if not regions or any(region not in REGIONS for region in regions):
        raise ValueError(
            f"Unknown region in {', '.join(regions) or 'none'} (`regions`): choose of {', '.join(REGIONS)}."
        )
    names = [f"phantom-{number}" for number in range(seed, seed + count)]
    check_overrides(split_rule, names, f"They are called {names[0]} to {names[-1]}.")
    tasks: list[ScanTask] = []
    for number in range(seed, seed + count):
        region = cast(Region, regions[number % len(regions)])
        identity = (_PHANTOM_SALT, number, region, shape, spacing_mm)
        tasks.append(
            PhantomTask(
                phantom_seed=number,
                region=region,
                shape=shape,
                spacing_mm=spacing_mm,
                patient_key=hashed_key(_PHANTOM_SALT, number),
                split=split_rule.of_phantom(number),
                variants=_variants(identity, dose_fractions, realizations, number),
                settings=settings,
            )
        )
    return tasks


def _variants(identity: tuple, dose_fractions: Collection[float], realizations: int, seed: int) -> tuple[_Variant, ...]:
    if realizations < 1 or not dose_fractions:
        raise ValueError("At least one dose fraction and one realisation are needed.")
    salt, *parts = identity
    variants = []
    for fraction in sorted({check_dose_fraction(fraction) for fraction in dose_fractions}):
        for realization in range(realizations):
            key = hashed_key(salt, *parts, fraction, realization, seed)
            # 31 bits fit every generator; taken from the key, so that no two rows share their noise.
            variants.append(_Variant(key, fraction, int(key[:8], 16) >> 1))
    return tuple(variants)


def check_overrides(split_rule: SplitRule, patients: Collection[str], how_called: str = HOW_CALLED) -> None:
    """Refuses to send a patient to a split who is not there.

    Raises:
        ValueError: with how many are; it names nobody, neither those found nor those asked for, for messages end in logs.
    """
    unknown = Counter(split for patient, split in (split_rule.overrides or {}).items() if patient not in patients)
    if unknown:
        sent = " and ".join(f"{count} for {split}" for split, count in sorted(unknown.items()))
        raise ValueError(
            f"`split_by_patient` names patients who are not there ({sent}): {len(patients)} were found, and none of them is "
            f"called so. {how_called}"
        )
