"""I0 from measured noise, of a pair and of a scan alone."""

import numpy as np
import pytest

from diffusers_ct.physics import (
    DoseSettings,
    calibrate_i0,
    calibrate_i0_from_scan,
    simulate_low_dose,
)

SIZE, PIXEL_MM = 256, 1.5
SPACING = (3.0, PIXEL_MM, PIXEL_MM)
AXIS = (np.arange(SIZE) - (SIZE - 1) / 2) * PIXEL_MM
X, Y = np.meshgrid(AXIS, AXIS)


def abdomen() -> np.ndarray:
    """Fat around soft tissue with a liver, a kidney, the aorta, a vertebra and gas; (4, 256, 256)."""
    image = np.where((X / 170) ** 2 + (Y / 115) ** 2 < 1, -100.0, -1000.0)
    image[(X / 155) ** 2 + (Y / 100) ** 2 < 1] = 50.0
    for x, y, radius, hu in (
        (-70, -10, 45, 60),
        (50, -30, 25, 40),
        (60, 30, 30, 30),
        (0, 60, 18, 600),
        (-20, 20, 20, -400),
    ):
        image[np.hypot(X - x, Y - y) < radius] = hu
    return np.stack([image.astype(np.float32)] * 4)


def scan(**settings) -> np.ndarray:
    return simulate_low_dose(
        abdomen(), spacing_mm=SPACING, dose_fraction=1.0, seed=3, source_noise="noise_free",
        settings=DoseSettings(**settings),
    )  # fmt: skip


def test_i0_is_recovered_from_the_noise_of_a_pair():
    volume = abdomen()
    region = np.broadcast_to(np.hypot(X, Y) < 40.0, volume.shape)
    kwargs = {"spacing_mm": SPACING, "dose_fraction": 0.25, "source_noise": "noise_free"}
    low = simulate_low_dose(volume, seed=11, settings=DoseSettings(i0=2.3e5), **kwargs)
    found = calibrate_i0(volume, region, measured_sd_hu=float((low - volume)[region].std()), seed=12, **kwargs)
    assert found == pytest.approx(2.3e5, rel=0.1)


@pytest.mark.parametrize(("i0", "kernel"), [(5e4, "sharp"), (2.3e5, "soft"), (2e6, "smooth")])
def test_i0_is_recovered_from_a_scan_alone(i0, kernel):
    found = calibrate_i0_from_scan(scan(i0=i0, kernel=kernel), spacing_mm=SPACING, settings=DoseSettings(kernel=kernel))
    assert found == pytest.approx(i0, rel=0.1)


def test_i0_is_recovered_behind_a_bowtie_and_with_modulation():
    known = {"bowtie_half_width_rad": 0.19, "modulation_alpha": 0.5, "electronic_variance": 30.0}
    found = calibrate_i0_from_scan(scan(i0=4e5, **known), spacing_mm=SPACING, settings=DoseSettings(**known))
    assert found == pytest.approx(4e5, rel=0.1)


def test_thickness_is_taken_into_account():
    # The scan's slices of 3 mm hold three times the photons that I0 states for 1 mm.
    found = calibrate_i0_from_scan(scan(i0=3e5), spacing_mm=SPACING, settings=DoseSettings(i0_thickness_mm=1.0))
    assert found == pytest.approx(1e5, rel=0.1)


def test_refuses_what_it_cannot_measure():
    volume = abdomen()
    kwargs = {"measured_sd_hu": 1.0, "spacing_mm": SPACING, "dose_fraction": 0.5, "source_noise": "noise_free"}
    with pytest.raises(ValueError, match="`region` must be a mask"):
        calibrate_i0(volume, np.zeros(volume.shape, bool), **kwargs)
    with pytest.raises(ValueError, match="`measured_sd_hu` must be positive"):
        calibrate_i0(volume, np.ones(volume.shape, bool), **{**kwargs, "measured_sd_hu": 0.0})
    with pytest.raises(ValueError, match="too few to"):
        calibrate_i0_from_scan(np.full((2, 128, 128), -1000.0, np.float32), spacing_mm=SPACING)
    with pytest.raises(ValueError, match="no noise"):
        calibrate_i0_from_scan(np.zeros((2, 128, 128), np.float32), spacing_mm=SPACING)
