"""The page on a simulated scan: its numbers are those of the volumes, and it is whole where a scan shows no tissue."""

import re

import numpy as np
import pytest

from diffusers_ct.conditions import ScanConditions
from diffusers_ct.evaluation.simulation_report import simulation_report
from diffusers_ct.physics import noise_of_scan, simulate_low_dose
from diffusers_ct.physics.scan_simulation import simulate_scan
from diffusers_ct.volume import CTVolume

SIZE, SPACING = 128, (3.0, 2.0, 2.0)


def phantom(value: float, slices: int = 2) -> np.ndarray:
    axis = (np.arange(SIZE) - (SIZE - 1) / 2) * SPACING[2]
    x, y = np.meshgrid(axis, axis)
    return np.stack([np.where((x / 105.0) ** 2 + (y / 80.0) ** 2 < 1, value, -1000.0)] * slices).astype(np.float32)


def cells(page: str, row: str) -> list[str]:
    return re.search(rf"<tr><td>{row}</td>((<td>[^<]*</td>)+)</tr>", page).group(1).strip("</td>").split("</td><td>")


def test_numbers_are_those_of_the_volumes():
    noisy = simulate_low_dose(phantom(40.0), spacing_mm=SPACING, dose_fraction=1.0, seed=1, source_noise="noise_free")
    scan = CTVolume.from_array(
        noisy, SPACING, ScanConditions(kernel="B30f", tube_current_mas=200.0, text="Panza, Sancho")
    )
    made = simulate_scan(scan, dose_fraction=0.25, seed=9, kernel="soft")
    page = simulation_report(scan, made, dose_fraction=0.25, seed=9, source_noise="normal_dose")
    before, added, after = (cells(page, name) for name in ("before", "added", "after"))
    own, low = noise_of_scan(scan.hu, SPACING), noise_of_scan(made.volume.hu, SPACING)
    assert float(before[0]) == pytest.approx(own, abs=0.06) and float(after[0]) == pytest.approx(low, abs=0.06)
    assert float(added[0]) == pytest.approx(np.sqrt(low**2 - own**2), abs=0.06)
    assert before[1] == "–" and float(after[1]) == pytest.approx(own * 2.0, abs=0.06)
    assert float(added[1]) == pytest.approx(own * np.sqrt(3.0), abs=0.06)
    assert f"{made.settings.i0:.3g}, calibrated" in page and "200 mAs" in page and "B30f" in page
    assert all(text.split(":")[0][:40] in page for text in made.assumptions)
    assert "Panza" not in page and page.count("data:image/png;base64,") == 2


def test_a_scan_without_soft_tissue_and_one_without_noise_have_a_page_too():
    lungs = CTVolume.from_array(phantom(-850.0, slices=1), SPACING)
    made = simulate_scan(
        lungs, dose_fraction=0.5, seed=0, source_noise="noise_free", kernel="sharp", i0=3e5, electronic_variance=0.0
    )
    page = simulation_report(lungs, made, dose_fraction=0.5, seed=0, source_noise="noise_free")
    for row in ("before", "added", "after"):
        assert cells(page, row) == ["–", "–", "–", "–"]
    assert "given by the user" in page and "free of noise" in page
