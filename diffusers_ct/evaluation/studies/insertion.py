"""What becomes of small lesions in anatomy: kept, erased, missed, or drawn where there are none."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy import ndimage

from ...metrics import InsertionCase, Interval, Lesion, Rate, ball_lesion, insertion_test
from ...metrics.insertion import Place
from ...physics import DoseSettings
from ...physics.low_contrast_phantom import scan_seed
from ...volume import CTVolume
from .methods import Method, dose_group, restored, with_low_dose
from .scans import TrueScan

# Gaussian of the soft kernel's second moment: its window falls as 1 - (pi f / 2c)^2 with c = 0.59/mm.
SOFT_KERNEL_SD_MM = 0.6
FALSE_POSITIVE_RATE = 0.05
# Where lesions may be put: all of a lesion's surroundings is soft tissue of one kind.
_SOFT_TISSUE_HU = (-30.0, 160.0)
_LARGEST_SD_HU = 15.0


def insertion_study(
    methods: Mapping[str, Method],
    scans: Sequence[TrueScan],
    *,
    dose_fractions: Sequence[float],
    diameters_mm: Sequence[float],
    contrasts_hu: Sequence[float],
    places: int,
    seed: int,
    settings: DoseSettings | None = None,
) -> list[dict[str, Any]]:
    """Inserts balls of each diameter and contrast into true scans, adds the noise of each dose, and runs the methods.

    A method runs once a scan and dose without lesions, and once for each diameter and contrast, with one of them at all
    places. Lesions are as sharp as the soft kernel shows them. The noise is simulated once: what the lesion itself would
    change in it is left out.

    Not exact about: the intervals, which take all places as independent (see `metrics.insertion_test`).

    Args:
        methods: name -> method, which must repeat itself (a sampler: with a fixed seed); the low dose itself is always
            judged.
        scans: truths of one shape or several, deep enough for the largest lesion.
        dose_fractions: in (0, 1]. The threshold of finding comes from images of the full dose.
        diameters_mm, contrasts_hu: of the lesions, every pair of them.
        places: of lesions in each scan, at most; as many as find room are used.
        seed: of noise and places.
        settings: of the simulated scanner.

    Returns:
        One dict for each dose, method, diameter and contrast: "group", "method", "dose_fraction", "diameter_mm",
        "contrast_hu", "recovery", "erased", "missed" and "false", each with "_low" and "_high" (95 %), "n_places" and
        "n_patients".

    Raises:
        ValueError: if all scans together have too few places for the threshold, or one is not deep enough.
    """
    if not scans or len({scan.volume.spacing_mm for scan in scans}) > 1:
        raise ValueError("The study needs one scan at least, and one spacing of all.")
    spacing_mm = scans[0].volume.spacing_mm
    lesions = [
        ball_lesion(diameter_mm=diameter, contrast_hu=contrast, spacing_mm=spacing_mm, edge_sd_mm=SOFT_KERNEL_SD_MM)
        for diameter in diameters_mm
        for contrast in contrasts_hu
    ]
    chosen = [lesion_places(scan, lesions, count=places, seed=scan_seed(seed, k, 0)) for k, scan in enumerate(scans)]
    full = [scan.at_dose(1.0, seed=scan_seed(seed, k, 1), settings=settings).hu for k, scan in enumerate(scans)]
    rows = []
    for dose in dose_fractions:
        low = [
            scan.at_dose(dose, seed=scan_seed(seed, k, 2, round(1e6 * dose)), settings=settings)
            for k, scan in enumerate(scans)
        ]
        cases = [
            InsertionCase(volume.hu, full_hu, at, scan.volume.hu)
            for volume, full_hu, at, scan in zip(low, full, chosen, scans)
        ]
        for name, method in with_low_dose(methods).items():
            results = insertion_test(
                [partial(_restored_hu, name, method, volume) for volume in low],
                cases,
                lesions,
                dose_fraction=dose,
                false_positive_rate=FALSE_POSITIVE_RATE,
            )
            for result in results:
                row = {
                    "group": dose_group(dose),
                    "method": name,
                    "dose_fraction": float(dose),
                    "diameter_mm": result.lesion.diameter_mm,
                    "contrast_hu": result.lesion.contrast_hu,
                }
                measured: dict[str, Interval | Rate] = {
                    "recovery": result.mean_recovery(),
                    "erased": result.erased(),
                    "missed": result.missed(),
                    "false": result.false(),
                }
                for key, value in measured.items():
                    row |= {key: value.estimate, f"{key}_low": value.low, f"{key}_high": value.high}
                patients = {scan.patient_key for scan, at in zip(scans, chosen) if at}
                rows.append({**row, "n_places": len(result.recovery), "n_patients": len(patients)})
    return rows


def lesion_places(scan: TrueScan, lesions: Sequence[Lesion], *, count: int, seed: int) -> list[Place]:
    """Places (slice, row, column) in soft tissue of one kind, without lesions, whose surroundings do not overlap.

    Around each, in the box of the largest matched filter, all is soft tissue in the truth, and the truth's standard
    deviation is small. Places are drawn at random among these.

    Args:
        scan: the truth.
        lesions: of which the largest must have room.
        count: at most.
        seed: of the draw.

    Raises:
        ValueError: for a scan that is not as deep as the largest lesion.
    """
    box = tuple(int(n) for n in np.max([lesion.template.shape for lesion in lesions], axis=0))
    truth = scan.volume.hu.astype(np.float64)
    if any(n > size for n, size in zip(box, truth.shape)):
        raise ValueError(f"Lesions with their surroundings fill a box of {box} voxels: the scan is {truth.shape}.")
    lowest, highest = ndimage.minimum_filter(truth, box), ndimage.maximum_filter(truth, box)
    mean = ndimage.uniform_filter(truth, box)
    variance = ndimage.uniform_filter(truth**2, box) - mean**2
    good = (lowest > _SOFT_TISSUE_HU[0]) & (highest < _SOFT_TISSUE_HU[1]) & (variance < _LARGEST_SD_HU**2)
    good &= ~ndimage.maximum_filter(scan.lesions, box)
    inside = np.zeros_like(good)
    inside[tuple(slice(n // 2, size - n // 2) for n, size in zip(box, good.shape))] = True
    candidates = np.argwhere(good & inside)
    found: list[Place] = []
    for k, i, j in np.random.default_rng(seed).permutation(candidates).tolist():
        if len(found) == count:
            break
        if all(abs(k - a) >= box[0] or abs(i - b) >= box[1] or abs(j - c) >= box[2] for a, b, c in found):
            found.append((k, i, j))
    return found


def _restored_hu(name: str, method: Method, volume: CTVolume, hu: np.ndarray) -> np.ndarray:
    return restored(name, method, volume.with_hu(hu))
