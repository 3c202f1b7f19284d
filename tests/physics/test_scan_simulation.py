"""A whole scan at a lower dose: kernel and I0 found in its own noise, what is added, what is refused."""

import numpy as np
import pytest

from diffusers_ct.conditions import ScanConditions
from diffusers_ct.physics import DoseSettings, ReconstructionKernel, noise_of_scan, simulate_low_dose
from diffusers_ct.physics.geometry import FanBeam
from diffusers_ct.physics.scan_simulation import simulate_scan
from diffusers_ct.volume import CTVolume

SIZE, PIXEL_MM = 192, 1.5
SPACING = (3.0, PIXEL_MM, PIXEL_MM)
TRUTH = DoseSettings(i0=4e5, kernel=ReconstructionKernel(0.45))


def body(slices: int) -> np.ndarray:
    axis = (np.arange(SIZE) - (SIZE - 1) / 2) * PIXEL_MM
    x, y = np.meshgrid(axis, axis)
    image = np.where((x / 120.0) ** 2 + (y / 90.0) ** 2 < 1, 40.0, -1000.0)
    image[np.hypot(x, y - 60.0) < 12.0] = 400.0  # spine
    return np.stack([image] * slices).astype(np.float32)


@pytest.fixture(scope="module")
def scan() -> CTVolume:
    """A scan whose noise is that of `TRUTH` at full dose."""
    noisy = simulate_low_dose(
        body(6), spacing_mm=SPACING, dose_fraction=1.0, seed=11, source_noise="noise_free", settings=TRUTH
    )
    return CTVolume.from_array(noisy, SPACING, ScanConditions(slice_thickness_mm=3.0))


def test_i0_kernel_and_noise_follow_from_the_scan_alone(scan):
    made = simulate_scan(scan, dose_fraction=0.1, seed=3)
    assert made.i0_from == "scan" and made.kernel_name == "matched"
    frequency = np.linspace(0.0, 0.3, 13)
    np.testing.assert_allclose(made.settings.window(frequency), TRUTH.window(frequency), atol=0.1)
    assert made.settings.i0 == pytest.approx(TRUTH.i0, rel=0.2)
    truth = simulate_low_dose(
        body(6), spacing_mm=SPACING, dose_fraction=0.1, seed=5, source_noise="noise_free", settings=TRUTH
    )
    assert noise_of_scan(made.volume.hu, SPACING) == pytest.approx(noise_of_scan(truth, SPACING), rel=0.08)
    np.testing.assert_array_equal(made.volume.affine_lps, scan.affine_lps)
    again = simulate_scan(scan, dose_fraction=0.1, seed=3)
    np.testing.assert_array_equal(again.volume.hu, made.volume.hu)
    other = simulate_scan(scan, dose_fraction=0.1, seed=4)
    assert np.abs(other.volume.hu - made.volume.hu).max() > 5


def test_what_is_given_is_used():
    scan = CTVolume.from_array(body(1), SPACING)
    made = simulate_scan(
        scan, dose_fraction=0.5, seed=0, source_noise="noise_free", kernel="sharp", i0=3e5, modulation=True, bowtie=True,
        electronic_variance=4.0, geometry="fan",
    )  # fmt: skip
    assert made.settings == DoseSettings(3e5, 4.0, 0.5, 0.19, "sharp") and made.i0_from == "given"
    assert isinstance(made.geometry, FanBeam) and made.geometry.detector == "arc"
    text = " ".join(made.assumptions)
    assert "0.5 within a turn" in text and "0.19 rad" in text and "thick as their distance, 3 mm" in text
    direct = simulate_low_dose(
        scan.hu, spacing_mm=SPACING, dose_fraction=0.5, seed=0, source_noise="noise_free", settings=made.settings,
        geometry=made.geometry,
    )  # fmt: skip
    np.testing.assert_allclose(made.volume.hu, direct, atol=1e-3)
    preset = simulate_scan(scan, dose_fraction=0.5, seed=0, source_noise="noise_free", preset="corediff")
    assert preset.i0_from == "preset" and preset.settings.i0 == 1.5e5 and preset.geometry.bins == 672


def test_a_cut_body_is_continued_and_makes_more_noise():
    axis = (np.arange(SIZE) - (SIZE - 1) / 2) * PIXEL_MM  # 288 mm
    x, y = np.meshgrid(axis, axis)
    cut = np.where((x / 175.0) ** 2 + (y / 90.0) ** 2 < 1, 40.0, -1000.0).astype(np.float32)[None]
    scan = CTVolume.from_array(cut, SPACING)
    kwargs = {"dose_fraction": 0.5, "seed": 0, "source_noise": "noise_free", "kernel": "soft", "i0": 3e5}
    plain, continued = (simulate_scan(scan, field_mm=field, **kwargs) for field in (None, 500.0))
    assert continued.volume.shape == scan.shape
    centre = (slice(None), slice(80, 112), slice(80, 112))
    assert (continued.volume.hu - cut)[centre].std() > 1.15 * (plain.volume.hu - cut)[centre].std()
    assert any("cuts the body off" in text for text in continued.assumptions)
    assert not any("cuts the body off" in text for text in plain.assumptions)


def test_what_cannot_be_told_is_refused(scan):
    for dose in (0.0, 1.0, 1.5):
        with pytest.raises(ValueError, match="dose_fraction"):
            simulate_scan(scan, dose_fraction=dose, seed=0)
    with pytest.raises(ValueError, match="no noise to match"):
        simulate_scan(scan, dose_fraction=0.1, seed=0, source_noise="noise_free")
    with pytest.raises(ValueError, match="no preset 'siemens'"):
        simulate_scan(scan, dose_fraction=0.1, seed=0, preset="siemens")
    lungs = CTVolume.from_array(np.full((2, 64, 64), -850.0, np.float32), SPACING)
    with pytest.raises(ValueError, match="name a `kernel`"):
        simulate_scan(lungs, dose_fraction=0.1, seed=0)
    with pytest.raises(ValueError, match="no noise"):
        simulate_scan(CTVolume.from_array(body(2), SPACING), dose_fraction=0.1, seed=0)
    oblong = CTVolume.from_array(scan.hu, (3.0, 1.5, 1.2))
    with pytest.raises(ValueError, match="square pixels"):
        simulate_scan(oblong, dose_fraction=0.1, seed=0)
