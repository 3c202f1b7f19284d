"""Bias in HU by material: whether a method keeps the numbers that diagnoses read."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from ...metrics import body_mask
from .methods import Method, dose_group, restored, with_low_dose
from .scans import RestorationCase

# HU of the truth's local median that make a material. What lies between is partial volume, or too little to be a class.
MATERIALS_HU: dict[str, tuple[float, float]] = {
    "lung": (-950.0, -600.0),
    "fat": (-150.0, -50.0),
    "soft tissue": (0.0, 100.0),
    "contrast medium": (120.0, 190.0),
    "bone": (200.0, 2000.0),
}
_EROSION_PIXELS = 2
SMALLEST_AREA_CM2 = 5.0


def material_regions(truth_hu: np.ndarray) -> dict[str, np.ndarray]:
    """Bool masks (depth, height, width) of each material in the body, two pixels away from any other in its slice.

    Classes go by the median of 3 x 3 pixels, so that the texture of a tissue does not tear it and edges stay in place.

    Args:
        truth_hu: (depth, height, width) without noise: noise would choose voxels by their error, and bias with it.
    """
    local = ndimage.median_filter(np.asarray(truth_hu), (1, 3, 3), mode="nearest")
    body, square = body_mask(truth_hu), np.ones((1, 3, 3), bool)  # the table's foam is as light as lung
    return {
        name: ndimage.binary_erosion(body & (local >= low) & (local <= high), square, iterations=_EROSION_PIXELS)
        for name, (low, high) in MATERIALS_HU.items()
    }


def material_biases(
    restored_hu: np.ndarray, truth_hu: np.ndarray, *, spacing_mm: tuple[float, float, float]
) -> dict[str, tuple[float, float]]:
    """Material -> (mean of restored minus truth in HU, area in cm^2 summed over slices), where it is large enough.

    Args:
        restored_hu, truth_hu: (depth, height, width).
        spacing_mm: (z, y, x).

    Raises:
        ValueError: for shapes that differ.
    """
    if np.shape(restored_hu) != np.shape(truth_hu):
        raise ValueError(f"The image {np.shape(restored_hu)} and the truth {np.shape(truth_hu)} differ in shape.")
    found = {}
    for name, region in material_regions(truth_hu).items():
        area = float(region.sum() * spacing_mm[1] * spacing_mm[2] / 100.0)
        if area > SMALLEST_AREA_CM2:
            difference = restored_hu[region].astype(np.float64) - truth_hu[region]
            found[name] = (float(difference.mean()), area)
    return found


def materials_rows(
    measured: Sequence[tuple[str, str, str, Mapping[str, tuple[float, float]]]],
) -> list[dict[str, Any]]:
    """Means over each patient's scans, then over patients.

    Args:
        measured: (group, method, patient_key, what `material_biases` gave), one for each method and scan.

    Returns:
        One dict for each group, method and material: "group", "method", "material", "area_cm2" (a patient's, summed over
        slices), "bias_hu", "bias_low_hu" and "bias_high_hu" (smallest and largest of a patient), and "n_patients".
    """
    by_patient: dict[tuple[str, str, str], dict[str, list[tuple[float, float]]]] = {}
    for group, method, patient, biases in measured:
        for material, value in biases.items():
            by_patient.setdefault((group, method, material), {}).setdefault(patient, []).append(value)
    order = {name: k for k, name in enumerate(MATERIALS_HU)}
    names = list(dict.fromkeys((group, method) for group, method, _, _ in measured))
    rows = []
    for key in sorted(by_patient, key=lambda key: (names.index(key[:2]), order[key[2]])):
        patients = [
            (np.mean([bias for bias, _ in scans]), np.sum([area for _, area in scans]))
            for scans in by_patient[key].values()
        ]
        means = [float(bias) for bias, _ in patients]
        rows.append(
            {
                "group": key[0],
                "method": key[1],
                "material": key[2],
                "area_cm2": float(np.mean([area for _, area in patients])),
                "bias_hu": float(np.mean(means)),
                "bias_low_hu": min(means),
                "bias_high_hu": max(means),
                "n_patients": len(patients),
            }
        )
    return rows


def materials_study(methods: Mapping[str, Method], cases: Sequence[RestorationCase]) -> list[dict[str, Any]]:
    """Restores every case by every method and tells the bias by material; see `materials_rows`.

    Args:
        methods: name -> method; the low dose itself is always judged.
        cases: with references free of noise.
    """
    measured = []
    for case in cases:
        for name, method in with_low_dose(methods).items():
            hu = restored(name, method, case.low)
            biases = material_biases(hu, case.full_hu, spacing_mm=case.low.spacing_mm)
            measured.append((dose_group(case.dose_fraction), name, case.patient_key, biases))
    return materials_rows(measured)
