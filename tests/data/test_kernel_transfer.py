"""The filter between kernels, against noise whose spectrum is known."""

import numpy as np
import pytest
from datasets import Dataset

from diffusers_ct.conditions import ScanConditions
from diffusers_ct.data.kernel_transfer import apply_filter, kernel_filter, radial_noise_power, smoother_kernel_pairs
from diffusers_ct.data.manifest import features, make_row

SIZE = 256
BIN_CENTRES = (np.arange(128) + 0.5) / 256


def shaped_noise(rng: np.random.Generator, width: float, sd_hu: float = 20.0) -> np.ndarray:
    """(1, SIZE, SIZE) noise with amplitude spectrum exp(-f / width)."""
    return sd_hu * apply_filter(rng.normal(size=(1, SIZE, SIZE)), np.exp(-BIN_CENTRES / width))


def test_radial_power_of_white_noise_is_its_variance():
    rng = np.random.default_rng(0)
    power = radial_noise_power(rng.normal(scale=7.0, size=(SIZE, SIZE)) for _ in range(8))
    np.testing.assert_allclose(power[4:], 49.0, rtol=0.2)


def test_filter_by_a_known_amplitude_is_that_amplitude():
    wave = np.cos(2 * np.pi * np.arange(SIZE) * 32 / SIZE)[None, None] * np.ones((1, SIZE, 1))
    np.testing.assert_allclose(apply_filter(wave, np.full(128, 0.25)), 0.25 * wave, atol=1e-6)
    np.testing.assert_allclose(apply_filter(wave, 2 * BIN_CENTRES), 2 * 32 / SIZE * wave, atol=1e-3)


def test_measured_filter_is_the_ratio_of_the_amplitudes():
    rng = np.random.default_rng(1)
    sharp = radial_noise_power(shaped_noise(rng, 0.6)[0] for _ in range(12))
    smooth = radial_noise_power(shaped_noise(rng, 0.2)[0] for _ in range(12))
    expected = np.exp(-BIN_CENTRES / 0.2 + BIN_CENTRES / 0.6)
    measured = kernel_filter(sharp, smooth)
    np.testing.assert_allclose(measured[6:], (expected / expected[:6].mean())[6:], atol=0.06)


def pairs(kernels: list[str]) -> Dataset:
    rng = np.random.default_rng(2)
    rows = []
    for i, kernel in enumerate(kernels):
        full = shaped_noise(rng, 0.6 if kernel == "sharp" else 0.2) + 40.0
        low = full + shaped_noise(rng, 0.6 if kernel == "sharp" else 0.2, 35.0)
        row = make_row(
            low,
            full,
            scan_key=f"s{i}",
            patient_key=f"p{i}",
            split="train",
            dose_fraction=0.25,
            spacing_mm=(3.0, 0.7, 0.7),
            affine_lps=np.diag([0.7, 0.7, 3.0, 1.0]),
            target="same_scan",
            conditions=ScanConditions(kernel=kernel),
            provenance={"source": "test"},
        )
        rows.append(row)
    return Dataset.from_list(rows, features=features((SIZE, SIZE)))


def test_copies_have_the_noise_of_the_smooth_kernel():
    dataset = pairs(["sharp"] * 4 + ["smooth"] * 4)
    copies = smoother_kernel_pairs(dataset, from_kernel="sharp", to_kernel="smooth")
    assert len(copies) == 4
    copies = copies.with_format("numpy")
    made = radial_noise_power(copies[i]["low"][0].astype(float) - copies[i]["full"][0] for i in range(4))
    rng = np.random.default_rng(3)
    wanted = radial_noise_power(shaped_noise(rng, 0.2, 35.0)[0] for _ in range(8))
    assert np.corrcoef(made, wanted)[0, 1] > 0.97
    low, high = made[:10].mean() / wanted[:10].mean(), made[40:80].mean() / wanted[40:80].mean()
    assert 0.6 < low / high < 1.6
    assert copies[0]["full"].mean() == pytest.approx(40.0, abs=1.0)
    assert copies[0]["patient_key"] == "p0" and "sharp->smooth" in copies[0]["conditions"]


def test_a_missing_kernel_is_named():
    with pytest.raises(ValueError, match=r"No scan of kernel 'B30f'.*sharp"):
        smoother_kernel_pairs(pairs(["sharp"]), from_kernel="sharp", to_kernel="B30f")
