"""The noise of a scan, measured without a second one, against the noise that was put in."""

import numpy as np
import pydicom
import pytest

from diffusers_ct.physics import (
    KERNELS,
    DoseSettings,
    calibrate_i0_from_scan,
    match_kernel,
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
    found = match_kernel_from_scan(scan(8, i0=2e5, kernel=name), SPACING)
    frequency = np.linspace(0.03, 0.3, 28)  # the image's Nyquist frequency is 0.33
    truth, window = KERNELS[name](frequency), found(frequency)
    scale = (window * truth).sum() / (truth**2).sum()
    np.testing.assert_allclose(window / scale, truth, atol=0.07 * truth.max())


def test_texture_of_tissue_is_not_taken_for_the_kernel():
    rng = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIZE, PIXEL_MM), np.fft.fftfreq(SIZE, PIXEL_MM)))
    amplitude = np.where(frequency > 0, np.maximum(frequency, 0.03) ** -1.5, 0.0)  # power f^-3
    texture = np.fft.ifft2(np.fft.fft2(rng.normal(size=(8, SIZE, SIZE))) * amplitude).real
    texture *= 40.0 / texture.std()
    noisy = scan(8, i0=2e5) + (texture * (abdomen(8) > 0)).astype(np.float32)
    found = match_kernel_from_scan(noisy, SPACING)
    frequency = np.linspace(0.03, 0.3, 28)
    truth, window = KERNELS["soft"](frequency), found(frequency)
    scale = (window * truth).sum() / (truth**2).sum()
    np.testing.assert_allclose(window / scale, truth, atol=0.08)  # 0.059; 0.10 without the tissue in the fit


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


@pytest.mark.real_data
def test_a_real_scan_alone_tells_what_its_pair_tells(real_data):
    volumes = {}
    for dose in ("full", "quarter"):
        files = [pydicom.dcmread(f) for f in sorted((real_data / "pairs" / "mayo_L096_D45f_3mm" / dose).iterdir())]
        volumes[dose] = np.stack([d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in files])
    pixel_mm = float(files[0].PixelSpacing[0])
    spacing_mm = (3.0, pixel_mm, pixel_mm)
    of_pair = match_kernel(volumes["quarter"] - volumes["full"], pixel_mm)
    frequency = np.linspace(0.1, 0.6, 20)
    i0 = {}
    for dose, volume in volumes.items():
        kernel = match_kernel_from_scan(volume, spacing_mm)
        truth, window = of_pair(frequency), kernel(frequency)
        scale = (window * truth).sum() / (truth**2).sum()
        np.testing.assert_allclose(window / scale, truth, atol=0.1)  # recorded: 0.04
        i0[dose] = calibrate_i0_from_scan(volume, spacing_mm=spacing_mm, settings=DoseSettings(kernel=kernel))
    assert i0["full"] / i0["quarter"] == pytest.approx(4.0, rel=0.1)


def test_coarse_and_smoothed_scans_are_told_apart_from_scans_without_noise():
    fine = scan(2)
    coarse = fine.reshape(2, SIZE // 2, 2, SIZE // 2, 2).mean(axis=(2, 4))
    with pytest.raises(ValueError, match=r"Pixels of 3 mm are too coarse .*: name a `kernel`"):
        match_kernel_from_scan(coarse, (3.0, 3.0, 3.0))
    with pytest.raises(ValueError, match=r"no noise .*: name a `kernel`"):
        match_kernel_from_scan(np.full((2, SIZE, SIZE), 40.0), SPACING)
    nearly_clean = abdomen(2) + 1e-3 * (fine - abdomen(2))
    with pytest.raises(ValueError, match=r"no scanner has.* Give `i0`"):
        calibrate_i0_from_scan(nearly_clean, spacing_mm=SPACING, settings=DoseSettings(electronic_variance=0.0))
