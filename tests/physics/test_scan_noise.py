"""The noise of a scan, measured without a second one, against the noise that was put in."""

import numpy as np
import pytest

from diffusers_ct.physics import (
    KERNELS,
    DoseSettings,
    calibrate_i0_from_scan,
    match_kernel_from_scan,
    noise_of_scan,
    simulate_low_dose,
    uniform_soft_tissue,
)

SIZE, PIXEL_MM = 256, 1.5
SPACING = (3.0, PIXEL_MM, PIXEL_MM)
AXIS = (np.arange(SIZE) - (SIZE - 1) / 2) * PIXEL_MM
X, Y = np.meshgrid(AXIS, AXIS)


def abdomen(slices: int = 4) -> np.ndarray:
    """Fat around soft tissue with a liver, a kidney, a vertebra and gas."""
    image = np.where((X / 170) ** 2 + (Y / 115) ** 2 < 1, -100.0, -1000.0)
    image[(X / 155) ** 2 + (Y / 100) ** 2 < 1] = 50.0
    for x, y, radius, hu in ((-70, -10, 45, 60), (50, -30, 25, 40), (0, 60, 18, 600), (-20, 20, 20, -400)):
        image[np.hypot(X - x, Y - y) < radius] = hu
    return np.stack([image.astype(np.float32)] * slices)


def scan(slices: int = 4, **settings) -> np.ndarray:
    return simulate_low_dose(
        abdomen(slices), spacing_mm=SPACING, dose_fraction=1.0, seed=3, source_noise="noise_free",
        settings=DoseSettings(**settings),
    )  # fmt: skip


def test_sd_is_that_of_the_noise_in_uniform_tissue():
    noisy, clean = scan(i0=2e5), abdomen()
    tissue = uniform_soft_tissue(noisy, SPACING)
    assert 0.15 < tissue.mean() < 0.35
    assert set(np.unique(clean[tissue])) <= {40.0, 50.0, 60.0}  # no fat, bone, gas or their edges
    assert noise_of_scan(noisy, SPACING) == pytest.approx((noisy - clean)[tissue].std(), rel=0.06)
    assert noise_of_scan(clean, SPACING) < 1.0
    assert np.isnan(noise_of_scan(np.full((2, 64, 64), -1000.0), SPACING))


@pytest.mark.parametrize("name", ["smooth", "soft", "sharp"])
def test_kernel_is_recovered_from_the_scan_alone(name):
    found = match_kernel_from_scan(scan(12, i0=2e5, kernel=name), SPACING)
    frequency = np.linspace(0.1, 0.3, 15)  # the image's Nyquist frequency is 0.33
    truth, window = KERNELS[name](frequency), found(frequency)
    scale = (window * truth).sum() / (truth**2).sum()
    np.testing.assert_allclose(window / scale, truth, atol=0.1 * truth.max())


def test_kernel_and_i0_from_the_scan_alone_repeat_its_noise():
    noisy = scan(8, i0=3e5, kernel="smooth")
    settings = DoseSettings(kernel=match_kernel_from_scan(noisy, SPACING))
    i0 = calibrate_i0_from_scan(noisy, spacing_mm=SPACING, settings=settings)
    again = simulate_low_dose(
        abdomen(8), spacing_mm=SPACING, dose_fraction=1.0, seed=9, source_noise="noise_free",
        settings=DoseSettings(i0=i0, kernel=settings.kernel),
    )  # fmt: skip
    tissue = uniform_soft_tissue(noisy, SPACING)
    assert (again - abdomen(8))[tissue].std() == pytest.approx((noisy - abdomen(8))[tissue].std(), rel=0.05)


def test_too_little_tissue_is_refused():
    with pytest.raises(ValueError, match="too few to measure its noise spectrum"):
        match_kernel_from_scan(np.full((2, 128, 128), -1000.0, np.float32), SPACING)
