"""What becomes of small lesions in anatomy: kept, erased, missed, or drawn where there are none."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy import ndimage

from ...metrics import (
    InsertionCase,
    Interval,
    Lesion,
    Rate,
    ball_lesion,
    false_lesion_density,
    insertion_test,
)
from ...metrics.insertion import Density, Insertion, Place
from ...physics import DoseSettings
from ...physics.low_contrast_phantom import scan_seed
from ...volume import CTVolume
from .methods import Method, dose_group, restored, with_low_dose
from .scans import TrueScan

# Gaussian of the soft kernel's second moment: its window falls as 1 - (pi f / 2c)^2 with c = 0.59/mm.
SOFT_KERNEL_SD_MM = 0.6
FALSE_POSITIVE_RATE = 0.05
# Of full-dose images in a search over all soft tissue: it sets the threshold of that search.
FALSE_PER_CM2 = 0.02
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
        "contrast_hu", "recovery", "erased", "missed", "false" and "false_per_cm2", each with "_low" and "_high" (95 %),
        "n_places" and "n_patients". "false_per_cm2" counts what a search for the lesion finds in all soft tissue without
        lesions, at the threshold at which the full dose has `FALSE_PER_CM2`; it is the same for all contrasts, and None
        where there is too little tissue for that threshold.

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
            densities = {
                diameter: _false_density(next(r for r in results if r.lesion.diameter_mm == diameter), full, scans)
                for diameter in dict.fromkeys(result.lesion.diameter_mm for result in results)
            }
            for result in results:
                density = densities[result.lesion.diameter_mm]
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
                row |= {
                    "false_per_cm2": None if density is None else density.per_cm2,
                    "false_per_cm2_low": None if density is None else density.low,
                    "false_per_cm2_high": None if density is None else density.high,
                }
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
    depth, height, width = np.max([lesion.template.shape for lesion in lesions], axis=0).tolist()
    box = (depth, height, width)
    if any(n > size for n, size in zip(box, scan.volume.shape)):
        raise ValueError(
            f"Lesions with their surroundings fill a box of {box} voxels: the scan is {scan.volume.shape}."
        )
    good = soft_tissue(scan, box)
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


def soft_tissue(scan: TrueScan, box: tuple[int, int, int]) -> np.ndarray:
    """Voxels (depth, height, width) around which a box is all soft tissue of one kind, without lesions."""
    truth = scan.volume.hu.astype(np.float64)
    lowest, highest = ndimage.minimum_filter(truth, box), ndimage.maximum_filter(truth, box)
    mean = ndimage.uniform_filter(truth, box)
    variance = ndimage.uniform_filter(truth**2, box) - mean**2
    good = (lowest > _SOFT_TISSUE_HU[0]) & (highest < _SOFT_TISSUE_HU[1]) & (variance < _LARGEST_SD_HU**2)
    return good & ~ndimage.maximum_filter(scan.lesions, box)


def _false_density(result: Insertion, full: Sequence[np.ndarray], scans: Sequence[TrueScan]) -> Density | None:
    """False lesions of all scans together; None where their tissue is too little for the threshold."""
    box = result.lesion.template.shape
    tall, wide = np.max([scan.volume.shape[1:] for scan in scans], axis=0)
    restored, plain, searched = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    for background, full_hu, scan in zip(result.backgrounds, full, scans):
        # Scans are put behind each other, and no box may reach from one into the next.
        inside = np.zeros(scan.volume.shape, bool)
        inner = tuple(slice(n // 2, size - n // 2) for n, size in zip(box, inside.shape))
        inside[inner] = soft_tissue(scan, box)[inner]
        edge = ((0, 0), (0, tall - inside.shape[1]), (0, wide - inside.shape[2]))
        for images, image in (
            (restored, background - scan.volume.hu),
            (plain, full_hu - scan.volume.hu),
            (searched, inside),
        ):
            images.append(np.pad(image, edge))
    pixel_mm = scans[0].volume.spacing_mm[1]
    mask = np.concatenate(searched)
    if mask.sum() * pixel_mm**2 / 100.0 * FALSE_PER_CM2 < 1.0:
        return None
    return false_lesion_density(
        np.concatenate(restored),
        np.concatenate(plain),
        result.lesion,
        searched=mask,
        pixel_mm=pixel_mm,
        full_dose_per_cm2=FALSE_PER_CM2,
    )


def _restored_hu(name: str, method: Method, volume: CTVolume, hu: np.ndarray) -> np.ndarray:
    return restored(name, method, volume.with_hu(hu))
