"""Bias by material on images whose bias is known."""

from dataclasses import dataclass

import numpy as np
import pytest

from diffusers_ct.evaluation.studies import material_biases, materials_study
from diffusers_ct.evaluation.studies.materials import material_regions
from diffusers_ct.volume import CTVolume

SPACING_MM = (2.0, 1.0, 1.0)


@dataclass(frozen=True)
class Scan:
    patient_key: str
    low: CTVolume
    full_hu: np.ndarray
    dose_fraction: float = 0.25


def truth(fat_columns: int = 40) -> np.ndarray:
    """A body of soft tissue with a square each of lung, fat and bone, in air, beside a table as light as lung."""
    hu = np.full((2, 160, 200), -1000.0, np.float32)
    hu[:, 10:130, 10:190] = 50.0
    hu[:, 20:60, 20:60] = -850.0
    hu[:, 20:60, 80 : 80 + fat_columns] = -100.0
    hu[:, 20:60, 140:180] = 700.0
    hu[:, 140:155, :] = -800.0
    return hu


def scan(patient: str = "a", sd_hu: float = 30.0, **kwargs) -> Scan:
    clean = truth(**kwargs)
    noise = np.random.default_rng(0).normal(0.0, sd_hu, clean.shape)
    return Scan(patient, CTVolume.from_array(clean + noise, SPACING_MM), clean)


def test_a_shift_is_told_to_the_last_digit():
    clean = truth()
    found = material_biases(clean + 2.0, clean, spacing_mm=SPACING_MM)
    assert set(found) == {"lung", "fat", "soft tissue", "bone"}
    assert all(bias == pytest.approx(2.0, abs=1e-4) for bias, _ in found.values())
    rows = materials_study({"shift": lambda volume: truth() + 2.0}, [scan()])
    shifted = [row for row in rows if row["method"] == "shift"]
    assert [row["material"] for row in shifted] == ["lung", "fat", "soft tissue", "bone"]
    assert all(row["bias_hu"] == pytest.approx(2.0, abs=1e-4) for row in shifted)
    assert all(row["group"] == "dose 25 %" and row["n_patients"] == 1 for row in rows)


def test_noise_is_no_bias_and_a_method_that_errs_in_one_material_is_found():
    def thins_bone(volume):
        return np.where(volume.hu > 400.0, volume.hu - 35.0, volume.hu)

    rows = {(row["method"], row["material"]): row["bias_hu"] for row in materials_study({"thin": thins_bone}, [scan()])}
    for material in ("lung", "fat", "soft tissue"):
        assert rows["low dose", material] == pytest.approx(0.0, abs=30.0 / np.sqrt(2 * 36**2) * 4)
        assert rows["thin", material] == rows["low dose", material]
    assert rows["thin", "bone"] == pytest.approx(rows["low dose", "bone"] - 35.0, abs=1e-3)


def test_regions_keep_off_edges_and_leave_the_table_and_small_places_out():
    clean = truth()
    regions = material_regions(clean)
    # Two pixels at each side of 40, and the corners, which the median rounds.
    assert regions["fat"].sum() == regions["lung"].sum() == regions["bone"].sum() == 2 * (36**2 - 4)
    assert not any(region[:, 135:].any() for region in regions.values())
    assert clean[regions["fat"]].std() == 0.0
    area = material_biases(clean, clean, spacing_mm=SPACING_MM)["fat"][1]
    assert area == pytest.approx(2 * (36**2 - 4) / 100.0)
    assert "fat" not in material_biases(truth(10), truth(10), spacing_mm=SPACING_MM)  # 2 x 36 x 6 mm^2 < 5 cm^2


def test_patients_weigh_alike():
    def by_width(volume):  # 3 HU too high where the fat is narrow
        narrow = volume.hu[0, 40, 115] > 0.0
        return volume.hu + (3.0 if narrow else 0.0)

    cases = [scan("a", 0.0), scan("a", 0.0), scan("b", 0.0, fat_columns=30)]
    rows = {row["material"]: row for row in materials_study({"shift": by_width}, cases) if row["method"] == "shift"}
    assert rows["fat"]["bias_hu"] == pytest.approx(1.5, abs=1e-4) and rows["fat"]["n_patients"] == 2
    assert (rows["fat"]["bias_low_hu"], rows["fat"]["bias_high_hu"]) == pytest.approx((0.0, 3.0), abs=1e-4)
    assert rows["fat"]["area_cm2"] == pytest.approx((2 * 2 * (36**2 - 4) + 2 * (36 * 26 - 4)) / 2 / 100.0)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        material_biases(np.zeros((1, 8, 8)), np.zeros((2, 8, 8)), spacing_mm=SPACING_MM)
