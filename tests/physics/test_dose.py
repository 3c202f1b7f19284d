"""The low-dose simulator against theory, against itself in two stages, and against real scanner pairs."""

import numpy as np
import pydicom
import pytest
import torch
from scipy import ndimage, special, stats

from diffusers_ct.hounsfield import MU_WATER_PER_MM, hu_to_mu_per_mm
from diffusers_ct.physics import (
    PUBLISHED_SETTINGS,
    DoseSettings,
    FanBeam,
    ParallelBeam,
    Projector,
    ReconstructionKernel,
    TabulatedKernel,
    calibrate_i0,
    correlate_slices,
    match_kernel,
    simulate_low_dose,
)
from diffusers_ct.physics.counts import poisson_counts
from diffusers_ct.physics.dose import _modulation, bowtie_transmission
from diffusers_ct.physics.projector import ramp_filter

PIXEL_MM = 400.0 / 512
SPACING = (1.0, PIXEL_MM, PIXEL_MM)
AXIS = (np.arange(512) - 255.5) * PIXEL_MM
X, Y = np.meshgrid(AXIS, AXIS)
WATER = (np.clip(0.5 - (np.hypot(X, Y) - 150.0) / PIXEL_MM, 0, 1) * 1000.0 - 1000.0).astype(np.float32)
CENTRE = np.hypot(X, Y) < 40.0


def noise(dose: float, *, slices: int = 2, seed: int = 1, **kwargs) -> np.ndarray:
    volume = np.stack([WATER] * slices)
    low = simulate_low_dose(
        volume, spacing_mm=SPACING, dose_fraction=dose, seed=seed, source_noise="noise_free", **kwargs
    )
    return low - volume


def predicted_sd_hu(
    dose: float, i0: float = 5e5, electronic: float = 10.0, ds: float = 500.0 / 736, views: int = 720
) -> float:
    """(1000 / mu_w) sqrt(pi^2 / V ds Var_p 2 int f^2 W^2 df), the noise of FBP at the centre of a disc (Kak, 5.2)."""
    frequency = np.arange(4097) / (8192 * ds)
    window = DoseSettings().window(frequency)
    integral = 2 * np.sum((ramp_filter(8192, ds) * window) ** 2) * (frequency[1] - frequency[0])
    counts = dose * i0 * np.exp(-0.01923 * 300.0)
    variance = 1.0 / counts + electronic / counts**2
    return 1000.0 / 0.01923 * np.sqrt(np.pi**2 / views * ds * variance * integral)


@pytest.mark.parametrize(
    ("dose", "recorded"), [(1.0, 13.9), (0.5, 19.6), (0.25, 27.4), (0.1, 44.3), (0.05, 65.8), (0.025, 98.6)]
)
def test_noise_of_water_is_what_theory_and_the_record_say(dose, recorded):
    sd = noise(dose)[:, CENTRE].std()
    assert sd == pytest.approx(recorded, rel=0.06)
    assert sd == pytest.approx(predicted_sd_hu(dose), rel=0.06)


@pytest.mark.parametrize("detector", ["arc", "flat"])
def test_noise_of_fan_beams_is_what_theory_says(detector):
    rays = FanBeam((512, 512), PIXEL_MM, detector)
    # Each line is met from both sides: as many views over half a turn, with bins as wide as they are at the axis.
    at_axis_mm = rays.pitch_mm * rays.source_isocentre_mm / rays.source_detector_mm
    sd = noise(0.25, geometry=rays)[:, CENTRE].std()
    assert sd == pytest.approx(predicted_sd_hu(0.25, ds=at_axis_mm, views=rays.views), rel=0.06)  # 2.5 %: interpolation


def test_without_electronic_noise_variance_is_inverse_to_dose():
    settings = DoseSettings(electronic_variance=0.0)
    scaled = [noise(a, settings=settings, slices=4)[:, CENTRE].std() * np.sqrt(a) for a in (0.1, 0.3, 1.0)]
    np.testing.assert_allclose(scaled, np.mean(scaled), rtol=0.02)


@pytest.mark.parametrize("dose", [0.5, 0.1])
def test_two_stages_equal_one(dose):
    full = WATER + noise(1.0, slices=4, seed=5)
    low = simulate_low_dose(full, spacing_mm=SPACING, dose_fraction=dose, seed=6, source_noise="normal_dose")
    assert (low - WATER)[:, CENTRE].std() == pytest.approx(noise(dose, slices=4)[:, CENTRE].std(), rel=0.03)


def test_at_endless_dose_the_image_is_unchanged():
    bars = WATER.copy()
    bars[200:300, ::7] += 300.0  # fine detail that a reconstruction would blur
    low = simulate_low_dose(
        bars[None], spacing_mm=SPACING, dose_fraction=0.5, seed=0, source_noise="noise_free",
        settings=DoseSettings(i0=1e12, electronic_variance=0.0),
    )  # fmt: skip
    assert np.sqrt(np.mean((low[0] - bars) ** 2)) < 0.05


def test_full_dose_of_a_normal_dose_scan_is_returned_unchanged():
    out = simulate_low_dose(WATER[None], spacing_mm=SPACING, dose_fraction=1.0, seed=0, source_noise="normal_dose")
    assert np.array_equal(out[0], WATER)


def small_body(seed: int = 0) -> np.ndarray:
    size, pixel = 128, 3.2
    axis = (np.arange(size) - (size - 1) / 2) * pixel
    x, y = np.meshgrid(axis, axis)
    inside = (x / 180.0) ** 2 + (y / 100.0) ** 2 < 1
    image = np.where(inside, 40.0, -1000.0)
    for side in (-1, 1):  # humeral heads left and right
        image[np.hypot(x - side * 150.0, y) < 20.0] = 700.0
    return image.astype(np.float32)


def test_noise_is_fixed_by_seed_and_slice_alone():
    volume = np.stack([small_body()] * 11)
    kwargs = {"spacing_mm": (1.0, 3.2, 3.2), "dose_fraction": 0.1, "source_noise": "noise_free"}
    whole = simulate_low_dose(volume, seed=3, **kwargs)
    first = simulate_low_dose(volume[:3], seed=3, **kwargs)
    np.testing.assert_allclose(whole[:3], first, atol=0.02)
    assert np.abs(whole[0] - whole[1]).max() > 10
    assert np.abs(simulate_low_dose(volume[:1], seed=4, **kwargs) - whole[:1]).max() > 10


def test_threads_do_not_change_a_bit():
    volume = np.stack([small_body()] * 11)
    kwargs = {"spacing_mm": (1.0, 3.2, 3.2), "dose_fraction": 0.1, "source_noise": "noise_free", "seed": 3}
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            runs.append(simulate_low_dose(volume, **kwargs))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(*runs)


def test_a_last_bit_of_the_expected_counts_changes_no_other_ray():
    expected = np.geomspace(0.01, 1e5, 20_000)
    counts = poisson_counts(expected, np.random.default_rng(0).standard_normal(expected.shape))
    nudged = poisson_counts(expected * (1.0 + 1e-9), np.random.default_rng(0).standard_normal(expected.shape))
    assert (counts != nudged).mean() < 1e-3 and np.abs(counts - nudged).max() <= 1.0


def test_counts_are_the_quantiles_of_the_distribution():
    expected = np.geomspace(0.01, 3e4, 200_000)
    z = np.random.default_rng(2).standard_normal(expected.shape)
    exact = stats.poisson.ppf(special.ndtr(z), expected)
    counts = poisson_counts(expected, z)
    assert np.array_equal(counts[expected < 10], exact[expected < 10])
    assert (counts != exact).mean() < 3e-3 and np.abs(counts - exact).max() <= 1
    on_torch = poisson_counts(torch.from_numpy(expected), torch.from_numpy(z)).numpy()
    assert (on_torch != counts).mean() < 1e-5
    single = poisson_counts(expected.astype(np.float32), z.astype(np.float32))
    assert single.dtype == np.float32 and np.abs(single - counts).max() <= 1


@pytest.mark.parametrize("expected", [0.003, 0.3, 6.0, 9.9, 10.1, 25.0, 101.0, 5000.0])
def test_counts_are_poisson(expected):
    counts = poisson_counts(np.full(400_000, expected), np.random.default_rng(1).standard_normal(400_000))
    assert counts.mean() == pytest.approx(expected, abs=5 * np.sqrt(expected / 400_000))
    assert counts.var() == pytest.approx(expected, rel=0.015 + 0.01 / expected)
    for k in stats.poisson.ppf([0.01, 0.5, 0.99], expected):
        assert (counts <= k).mean() == pytest.approx(stats.poisson.cdf(k, expected), abs=0.004)


def test_streaks_run_along_the_most_attenuated_rays():
    settings = DoseSettings(i0=2e5)
    volume = np.stack([small_body()] * 6)
    kwargs = {"spacing_mm": (1.0, 3.2, 3.2), "dose_fraction": 0.1, "seed": 0, "source_noise": "noise_free"}
    field = simulate_low_dose(volume, settings=settings, **kwargs) - volume
    roi = field[:, 54:74, 54:74]
    power = (np.abs(np.fft.fft2(roi - roi.mean(axis=(1, 2), keepdims=True))) ** 2).mean(axis=0)
    vertical, horizontal = power[2:6, 0].sum(), power[0, 2:6].sum()
    assert vertical / horizontal > 5
    # Tube-current modulation sends photons where they are needed.
    modulated = simulate_low_dose(volume, settings=DoseSettings(i0=2e5, modulation_alpha=0.5), **kwargs) - volume
    assert modulated[:, 54:74, 54:74].std() < 0.95 * roi.std()


def pelvis() -> np.ndarray:
    """An ellipse with two femoral heads and their sockets, 256 x 256 on 400 mm."""
    axis = (np.arange(256) - 127.5) * 400.0 / 256
    x, y = np.meshgrid(axis, axis)
    image = np.where((x / 180.0) ** 2 + (y / 115.0) ** 2 < 1, -100.0, -1000.0)  # fat
    image[(x / 165.0) ** 2 + (y / 100.0) ** 2 < 1] = 50.0
    for side in (-1, 1):
        distance = np.hypot(x - side * 95.0, y - 5.0)
        image[distance < 38.0] = 700.0  # cortex of the socket
        image[distance < 30.0] = 400.0
    return image.astype(np.float32)


def directional_power(field: np.ndarray) -> tuple[float, float]:
    """Noise power of structure that runs along x (its frequency is vertical), and along y; (slices, side, side)."""
    power = (np.abs(np.fft.fft2(field - field.mean(axis=(1, 2), keepdims=True))) ** 2).mean(axis=0)
    last = round(0.16 * field.shape[1])
    return float(power[2:last, 0].sum()), float(power[0, 2:last].sum())


def test_streaks_cross_the_pelvis_from_hip_to_hip():
    volume, pixel_mm = np.stack([pelvis()] * 4), 400.0 / 256
    low = simulate_low_dose(
        volume, spacing_mm=(1.0, pixel_mm, pixel_mm), dose_fraction=0.1, seed=0, source_noise="noise_free"
    )
    along_x, along_y = directional_power((low - volume)[:, 112:144, 112:144])
    assert along_x / along_y > 5
    noise_hu = (low - volume)[:, 120:136, 120:136]
    above = (low - volume)[:, 60:70, 120:136]  # rays from hip to hip do not pass here
    assert noise_hu.std() > 1.2 * above.std()


def test_mean_is_kept_in_soft_tissue_at_a_tenth_of_the_dose():
    volume = np.stack([small_body()] * 160)
    low = simulate_low_dose(
        volume, spacing_mm=(1.0, 3.2, 3.2), dose_fraction=0.1, seed=0, source_noise="noise_free"
    )  # fmt: skip
    tissue = ndimage.binary_erosion(volume[0] == 40.0, iterations=3)
    assert abs((low - volume)[:, tissue].mean()) < 1.0


def _expected_log_bias(expected: np.ndarray, electronic: float) -> np.ndarray:
    """E[-ln(max(n, 1) / expected)] of Poisson + normal counts, summed over both distributions."""
    z, weight = np.polynomial.hermite_e.hermegauss(60)
    bias = []
    for rate in expected:
        k = np.arange(max(0, int(rate - 9 * np.sqrt(rate) - 9)), int(rate + 9 * np.sqrt(rate) + 12))
        probability = stats.poisson.pmf(k, rate)
        value = -np.log(np.maximum(k[:, None] + np.sqrt(electronic) * z, 1.0) / rate)
        bias.append((probability[:, None] * weight * value).sum() / (probability.sum() * weight.sum()))
    return np.array(bias)


def test_bias_of_starved_rays_is_what_the_logarithm_makes():
    body = small_body()
    projector = Projector(ParallelBeam.for_image(body.shape, 3.2))
    clean = projector.forward(torch.from_numpy(hu_to_mu_per_mm(body))).numpy().astype(np.float64)
    log_rate = np.log(0.1 * 5e5) - clean
    nodes = np.linspace(log_rate.min(), min(log_rate.max(), np.log(3e4)), 60)  # above, there is no bias
    bias = np.interp(log_rate, nodes, _expected_log_bias(np.exp(nodes), 10.0)).astype(np.float32)
    expected = projector.fbp(torch.from_numpy(bias), DoseSettings().window).numpy() * 1000.0 / MU_WATER_PER_MM
    volume = np.stack([body] * 80)
    low = simulate_low_dose(volume, spacing_mm=(1.0, 3.2, 3.2), dose_fraction=0.1, seed=0, source_noise="noise_free")
    tissue = ndimage.binary_erosion(body == 40.0, iterations=3)
    assert (low - volume)[:, tissue].mean() == pytest.approx(expected[tissue].mean(), abs=0.12)  # 3.5 SE


def test_bowtie_and_modulation_are_their_formulas():
    rays = ParallelBeam.for_image((64, 64), 400 / 64)
    transmission = bowtie_transmission(rays, 0.19)
    gamma = np.arcsin(rays.positions_mm / 595.0)
    assert np.interp(0.0, gamma, transmission) == pytest.approx(1.0, abs=1e-4)
    assert np.interp(0.19, gamma, transmission) == pytest.approx(0.115 + 0.885 / 2, abs=0.01)
    assert bowtie_transmission(FanBeam((64, 64), 400 / 64, "arc"), None).tolist() == [1.0] * 736
    lines = np.random.default_rng(0).uniform(0.0, 6.0, (50, 92))
    current = _modulation(lines, transmission, 0.5)
    assert current.mean() == pytest.approx(1.0)
    largest = (lines + np.log(1.0 / transmission)).max(axis=1)
    np.testing.assert_allclose(current[:, 0] / current[0, 0], np.exp(0.5 * (largest - largest[0])))


def test_bowtie_raises_the_noise_at_the_rim_alone():
    plain, bowtie = noise(0.25), noise(0.25, settings=DoseSettings(bowtie_half_width_rad=0.19))
    rim = (np.hypot(X, Y) > 120) & (np.hypot(X, Y) < 140)
    assert bowtie[:, rim].std() > 1.03 * plain[:, rim].std()
    assert bowtie[:, CENTRE].std() < 1.25 * plain[:, CENTRE].std()


def test_integral_of_the_noise_power_is_the_variance_and_its_shape_the_kernel():
    field = noise(0.25, slices=6)
    roi = field[:, 192:320, 192:320].astype(np.float64)
    roi -= roi.mean(axis=(1, 2), keepdims=True)
    power = (np.abs(np.fft.fft2(roi)) ** 2).mean(axis=0) * PIXEL_MM**2 / roi[0].size
    assert power.sum() / (128 * PIXEL_MM) ** 2 == pytest.approx(roi.var(), rel=1e-3)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128, PIXEL_MM), np.fft.fftfreq(128, PIXEL_MM)))
    ring = np.digitize(frequency.ravel(), np.linspace(0, 0.6, 31)) - 1
    radial = np.bincount(ring, power.ravel(), 31)[1:30] / np.bincount(ring, minlength=31)[1:30]
    centres = np.linspace(0, 0.6, 31)[1:30] + 0.01
    assert np.corrcoef(radial, centres * DoseSettings().window(centres) ** 2)[0, 1] > 0.995


def test_overlapping_slices_share_noise_and_keep_their_variance():
    field = np.random.default_rng(0).normal(size=(400, 8, 8)).astype(np.float32)
    mixed = correlate_slices(field, 2.0, 4.0)
    assert mixed.std() == pytest.approx(1.0, abs=0.03)
    neighbours = [np.mean(mixed[:-k] * mixed[k:]) for k in (1, 2, 3)]
    np.testing.assert_allclose(neighbours, [0.5, 0.0, 0.0], atol=0.04)  # 1 - d / T
    assert abs(np.mean(mixed[0] * mixed[-1])) < 0.4  # 64 voxels: 3 SD; the ends are not neighbours
    assert correlate_slices(field, 2.0, 2.0) is field


def test_settings_round_trip_and_refuse():
    for kernel in (ReconstructionKernel(0.4, boost=1.0), TabulatedKernel((0.0, 0.5), (1.0, 0.0)), "sharp"):
        settings = DoseSettings(i0=1e5, kernel=kernel)
        assert DoseSettings.from_dict(settings.to_dict()) == settings
    assert PUBLISHED_SETTINGS["lodopab"].i0 == 4096.0
    with pytest.raises(ValueError, match="Unknown kernel"):
        DoseSettings(kernel="bone-plus")
    with pytest.raises(ValueError, match="`i0`"):
        DoseSettings(i0=0.0)
    kwargs = {"spacing_mm": SPACING, "seed": 0, "source_noise": "noise_free"}
    with pytest.raises(ValueError, match="dose_fraction"):
        simulate_low_dose(WATER[None], dose_fraction=0.0, **kwargs)
    with pytest.raises(ValueError, match="depth, height, width"):
        simulate_low_dose(WATER, dose_fraction=0.5, **kwargs)
    with pytest.raises(ValueError, match="square pixels"):
        simulate_low_dose(WATER[None], dose_fraction=0.5, **{**kwargs, "spacing_mm": (1.0, 1.0, 0.8)})
    with pytest.raises(ValueError, match="source_noise"):
        simulate_low_dose(WATER[None], dose_fraction=0.5, **{**kwargs, "source_noise": "some"})


# --- real scanner pairs: calibrate on some slices, predict the inserted noise of others


def _pair(folder, name: str) -> tuple[np.ndarray, np.ndarray, float]:
    images = []
    for dose in ("full", "quarter"):
        d = pydicom.dcmread(folder / dose / name)
        images.append(d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept))
    return images[0].astype(np.float32), images[1].astype(np.float32), float(d.PixelSpacing[0])


def _soft_tissue(full: np.ndarray) -> np.ndarray:
    smooth = ndimage.gaussian_filter(full, 2.0)
    return ndimage.binary_erosion((smooth > -20) & (smooth < 150), iterations=4)


def _radial(field: np.ndarray, pixel_mm: float) -> np.ndarray:
    roi = field[160:352, 160:352].astype(np.float64)
    power = np.abs(np.fft.fft2(roi - roi.mean())) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(192, pixel_mm), np.fft.fftfreq(192, pixel_mm)))
    ring = np.digitize(frequency.ravel(), np.linspace(0, 0.7, 29)) - 1
    return np.bincount(ring, power.ravel(), 30)[:28] / np.maximum(np.bincount(ring, minlength=30)[:28], 1)


@pytest.mark.real_data
def test_predicts_the_inserted_noise_of_each_real_slice_from_the_others(real_data):
    # Kernel from the noise of the other slices, I0 from theirs in proportion to the tube current in the headers.
    folder = real_data / "pairs" / "mayo_L096_D45f_3mm"
    names = sorted(p.name for p in (folder / "full").iterdir())
    pairs = {name: _pair(folder, name) for name in names}
    current_ma = {
        n: float(pydicom.dcmread(folder / "full" / n, stop_before_pixels=True).XRayTubeCurrent) for n in names
    }
    pixel_mm = pairs[names[0]][2]
    kwargs = {"spacing_mm": (3.0, pixel_mm, pixel_mm), "dose_fraction": 0.25, "source_noise": "normal_dose"}
    ratios, spectra = [], []
    for held_out in names:
        others = [n for n in names if n != held_out]
        kernel = match_kernel(np.stack([pairs[n][1] - pairs[n][0] for n in others]), pixel_mm)
        i0_per_ma = []
        for name in others:
            full, low, _ = pairs[name]
            tissue = _soft_tissue(full)
            sd, settings = float((low - full)[tissue].std()), DoseSettings(kernel=kernel)
            i0 = calibrate_i0(full[None], tissue[None], measured_sd_hu=sd, settings=settings, **kwargs)
            i0_per_ma.append(i0 / current_ma[name])
        i0 = float(np.exp(np.mean(np.log(i0_per_ma)))) * current_ma[held_out]
        full, low, _ = pairs[held_out]
        # what is predicted is the expectation: several draws of the noise
        settings = DoseSettings(kernel=kernel, i0=i0)
        drawn = [simulate_low_dose(full[None], seed=s, settings=settings, **kwargs)[0] - full for s in range(3)]
        tissue = _soft_tissue(full)
        ratios.append(float(np.mean([d[tissue].std() for d in drawn]) / (low - full)[tissue].std()))
        predicted = np.mean([_radial(d, pixel_mm) for d in drawn], axis=0)
        spectra.append(float(np.corrcoef(predicted[1:], _radial(low - full, pixel_mm)[1:])[0, 1]))
    print(f"SD ratios {ratios}, NPS correlations {spectra}")
    # Recorded: 5 of 6 within 10 % (the sixth 17 % too noisy), median correlation 0.983 (one slice 0.76). All slices
    # within 10 % and above 0.98 is not reached: the scanner's bowtie and modulation within a turn are not known.
    assert sum(abs(ratio - 1.0) < 0.10 for ratio in ratios) >= 5
    assert max(abs(ratio - 1.0) for ratio in ratios) < 0.25
    assert np.median(spectra) > 0.98


def test_kernel_is_recovered_from_the_noise():
    field = noise(0.25, slices=8)
    kernel = match_kernel(field, PIXEL_MM)
    frequency = np.linspace(0.08, 0.45, 20)
    truth = DoseSettings().window(frequency)
    found = kernel(frequency)
    scale = (found * truth).sum() / (truth**2).sum()
    np.testing.assert_allclose(found / scale, truth, atol=0.06)
