"""The noise power spectrum against closed forms: white noise, filtered noise, Parseval, a ramp with a Hann window."""

import numpy as np
import pytest

from diffusers_ct.metrics.noise_power import NoisePower, noise_power_spectrum, region_variances, roi_corners

PIXEL_MM = 0.75


def spectrum(field: np.ndarray, side: int = 64, detrend: str = "mean", step: int | None = None):
    corners = roi_corners(np.ones(field.shape, bool), roi_pixels=side, step_pixels=step or side)
    return noise_power_spectrum(field, pixel_mm=PIXEL_MM, corners=corners, roi_pixels=side, detrend=detrend)


def filtered(transfer, *, slices: int = 8, size: int = 512, seed: int = 0) -> np.ndarray:
    """White noise of SD 1 through a radial transfer function of the frequency in 1/mm: its NPS is dx dy T(f)^2."""
    white = np.random.default_rng(seed).normal(size=(slices, size, size))
    axis = np.fft.fftfreq(size, PIXEL_MM)
    return np.fft.ifft2(np.fft.fft2(white) * transfer(np.hypot(axis[:, None], axis[None, :]))).real


def expected_power(transfer, side: int, size: int = 512) -> np.ndarray:
    """Of regions of filtered noise, exactly: the DFT of autocovariance times the regions' overlap (Wiener, Khinchin)."""
    axis = np.fft.fftfreq(size, PIXEL_MM)
    covariance = np.fft.ifft2(transfer(np.hypot(axis[:, None], axis[None, :])) ** 2).real
    lag = np.arange(-side + 1, side)
    overlap = 1.0 - np.abs(lag) / side
    weighted = covariance[np.ix_(lag % size, lag % size)] * np.outer(overlap, overlap)
    folded = np.zeros((side, side))
    np.add.at(folded, np.ix_(lag % side, lag % side), weighted)
    return np.fft.fft2(folded).real * PIXEL_MM**2


def test_white_noise_has_the_power_variance_times_pixel_area_at_every_frequency():
    field = np.random.default_rng(1).normal(0.0, 12.0, (16, 512, 512))
    power = spectrum(field)
    truth = 12.0**2 * PIXEL_MM**2
    assert power.rois == 16 * 64
    frequency, radial = power.radial(16)
    # A ring of n modes (half of them independent) over 1024 regions: 4 SE.
    modes = 2 * np.pi * frequency * (0.5 / PIXEL_MM / 16) * (64 * PIXEL_MM) ** 2
    assert (np.abs(radial / truth - 1.0) < 4.0 / np.sqrt(modes / 2 * power.rois)).all()


@pytest.mark.parametrize("detrend", ["mean", "plane", "quadratic"])
def test_the_integral_is_the_variance_of_the_detrended_regions(detrend):
    field = np.random.default_rng(2).normal(5.0, 7.0, (2, 256, 256)) + np.linspace(0, 90, 256)
    corners = roi_corners(np.ones(field.shape, bool), roi_pixels=32, step_pixels=16)
    power = noise_power_spectrum(field, pixel_mm=PIXEL_MM, corners=corners, roi_pixels=32, detrend=detrend)
    variances = region_variances(field, corners, roi_pixels=32, detrend=detrend)
    assert power.variance_hu2 == pytest.approx(variances.mean(), rel=1e-12)
    if detrend == "mean":
        regions = [field[k, i : i + 32, j : j + 32].var() for k, i, j in corners]
        assert power.variance_hu2 == pytest.approx(np.mean(regions), rel=1e-12)
    else:  # the slope is gone: what is left is the noise, less the trend's degrees of freedom
        terms = {"plane": 3, "quadratic": 6}[detrend]
        assert power.variance_hu2 == pytest.approx(49.0 * (1 - terms / 32**2), rel=0.02)


def test_the_integral_is_the_variance_of_white_noise_to_one_in_a_thousand():
    field = np.random.default_rng(3).normal(0.0, 10.0, (16, 512, 512))
    field *= 10.0 / field.std()
    power = spectrum(field, side=128)
    assert power.variance_hu2 == pytest.approx(100.0, rel=1e-3)
    assert power.sd_hu == pytest.approx(10.0, rel=5e-4)


def test_filtered_noise_has_the_power_of_its_transfer_function():
    def transfer(f):
        return 30.0 * np.exp(-((f / 0.25) ** 2))

    power = spectrum(filtered(transfer, slices=12), step=32)
    truth = NoisePower(expected_power(transfer, 64), PIXEL_MM, 1)
    frequency, radial = power.radial(20)
    np.testing.assert_allclose(radial[1:], truth.radial(20)[1][1:], rtol=0.05)  # the first ring holds 12 modes
    assert power.variance_hu2 == pytest.approx(truth.variance_hu2, rel=0.02)
    strong = (frequency > 0.08) & (frequency < 0.3)  # there the finite region hardly matters
    np.testing.assert_allclose(radial[strong], transfer(frequency[strong]) ** 2 * PIXEL_MM**2, rtol=0.08)


def test_the_spectrum_does_not_depend_on_the_size_of_the_regions():
    def transfer(f):
        return 40.0 * f * np.exp(-f / 0.15)

    field = filtered(transfer, slices=12)
    small, large = (spectrum(field, side=side) for side in (32, 96))
    assert small.variance_hu2 == pytest.approx(large.variance_hu2, rel=0.01)
    assert small.mean_frequency_per_mm == pytest.approx(large.mean_frequency_per_mm, rel=0.02)
    grid = np.linspace(0.06, 0.5, 12)
    a, b = (np.interp(grid, *power.radial(15)) for power in (small, large))
    np.testing.assert_allclose(a / b.max(), b / b.max(), atol=0.06)  # the small regions blur the peak


def test_peak_and_mean_of_a_ramp_with_a_hann_window():
    cutoff = 0.5

    def transfer(f):  # noise of FBP: power f W(f)^2
        return 100.0 * np.sqrt(f) * np.where(f < cutoff, 0.5 * (1 + np.cos(np.pi * f / cutoff)), 0.0)

    power = spectrum(filtered(transfer, slices=12), side=96)
    f = np.linspace(0, cutoff, 20001)
    truth = transfer(f) ** 2
    assert power.peak_frequency_per_mm == pytest.approx(f[truth.argmax()], abs=0.01)  # a ring is 0.014 wide
    assert power.mean_frequency_per_mm == pytest.approx(np.sum(f * truth) / np.sum(truth), rel=0.02)


def test_an_oriented_wave_stands_at_its_own_frequency_and_axis():
    x = np.arange(64) * PIXEL_MM
    wave = np.broadcast_to(20.0 * np.cos(2 * np.pi * x * 6 / (64 * PIXEL_MM)), (1, 64, 64))
    power = spectrum(np.array(wave))
    assert np.unravel_index(power.power_hu2mm2.argmax(), (64, 64)) in ((0, 6), (0, 58))  # columns are the second axis
    assert power.variance_hu2 == pytest.approx(200.0, rel=1e-9)
    assert power.peak_frequency_per_mm == pytest.approx(6 / (64 * PIXEL_MM), rel=0.02)


def test_corners_lie_in_the_mask():
    mask = np.zeros((3, 40, 50), bool)
    mask[1, 5:30, 10:45] = True
    corners = roi_corners(mask, roi_pixels=10, step_pixels=5)
    brute = [
        (k, i, j) for k in range(3) for i in range(0, 31, 5) for j in range(0, 41, 5)
        if mask[k, i : i + 10, j : j + 10].all()
    ]  # fmt: skip
    assert corners == brute and len(brute) == 4 * 6
    mask[1, 5, 10] = False
    assert len(roi_corners(mask, roi_pixels=10, step_pixels=5)) == len(brute) - 1
    assert len(roi_corners(mask, roi_pixels=10, step_pixels=5, fraction=0.95)) == len(brute)


def test_bad_input_is_refused():
    field = np.zeros((1, 40, 40))
    good = {"pixel_mm": 0.7, "corners": [(0, 0, 0)], "roi_pixels": 16, "detrend": "mean"}
    with pytest.raises(ValueError, match="depth, height, width"):
        noise_power_spectrum(field[0], **good)
    with pytest.raises(ValueError, match="corners"):
        noise_power_spectrum(field, **{**good, "corners": []})
    with pytest.raises(ValueError, match="leaves the image"):
        noise_power_spectrum(field, **{**good, "corners": [(0, 30, 0)]})
    with pytest.raises(ValueError, match="detrend"):
        noise_power_spectrum(field, **{**good, "detrend": "cubic"})
    with pytest.raises(ValueError, match="pixel_mm"):
        noise_power_spectrum(field, **{**good, "pixel_mm": 0.0})
    field[0, 3, 3] = np.nan
    with pytest.raises(ValueError, match="finite"):
        noise_power_spectrum(field, **good)
