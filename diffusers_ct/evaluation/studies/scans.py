"""Scans whose truth is known: what the studies of lesions and materials restore."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ...physics import DoseSettings, make_phantom, simulate_low_dose
from ...physics.phantom import Region
from ...volume import CTVolume


@dataclass(frozen=True, eq=False)
class TrueScan:
    """A scan without noise.

    Attributes:
        patient_key: the unit of statistics.
        volume: of the truth.
        lesions: bool (depth, height, width), where it has any.
    """

    patient_key: str
    volume: CTVolume
    lesions: np.ndarray

    def at_dose(self, dose_fraction: float, *, seed: int, settings: DoseSettings | None = None) -> CTVolume:
        """The scan with the noise of a dose, by the simulator that makes the phantoms' pairs."""
        volume = self.volume
        hu = simulate_low_dose(
            volume.hu,
            spacing_mm=volume.spacing_mm,
            dose_fraction=dose_fraction,
            seed=seed,
            source_noise="noise_free",
            settings=settings,
            slice_thickness_mm=volume.conditions.slice_thickness_mm,
        )
        conditions = replace(volume.conditions, dose_fraction=dose_fraction)
        return replace(volume.with_hu(hu), conditions=conditions)


class RestorationCase(Protocol):
    """A low-dose scan and its reference, such as the benchmark's `Case`."""

    @property
    def patient_key(self) -> str: ...
    @property
    def low(self) -> CTVolume: ...
    @property
    def full_hu(self) -> np.ndarray: ...
    @property
    def dose_fraction(self) -> float: ...


def phantom_scans(
    seeds: Sequence[int],
    regions: Sequence[Region],
    *,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
) -> list[TrueScan]:
    """Phantoms of these seeds, regions in turn: take seeds that no model was trained on.

    Args:
        seeds: one patient each.
        regions: of the body.
        shape: (depth, height, width).
        spacing_mm: (z, y, x).
    """
    scans = []
    for k, seed in enumerate(seeds):
        phantom = make_phantom(seed, regions[k % len(regions)], shape=shape, spacing_mm=spacing_mm)
        scans.append(TrueScan(f"phantom-{seed}", replace(phantom.volume, synthetic=True), phantom.lesion_mask > 0))
    return scans
