"""Contrast measures against numbers known beforehand."""

import numpy as np
import pytest
from scipy import ndimage

from diffusers_ct.metrics.contrast import contrast_hu, contrast_recovery, contrast_to_noise

SIGNAL = np.zeros((64, 64), bool)
SIGNAL[8:24, 8:24] = True
BACKGROUND = np.zeros((64, 64), bool)
BACKGROUND[:, 36:] = True
REGIONS = {"signal": SIGNAL, "background": BACKGROUND}


def scene(contrast_hu: float, sd_hu: float, *, slices: int = 40, sd_signal_hu: float | None = None) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0.0, 1.0, (slices, 64, 64))
    sd = np.where(SIGNAL, sd_hu if sd_signal_hu is None else sd_signal_hu, sd_hu)
    return 30.0 + contrast_hu * SIGNAL + sd * noise


def test_contrast_and_its_ratio_to_noise_are_the_known_ones():
    image = scene(-24.0, 12.0)
    assert contrast_hu(image, **REGIONS) == pytest.approx(-24.0, abs=4 * 12.0 / np.sqrt(40 * 256))
    assert contrast_to_noise(image, **REGIONS, noise="background") == pytest.approx(-2.0, rel=0.02)
    assert contrast_hu(scene(17.0, 0.0), **REGIONS) == 17.0


def test_pooled_noise_is_the_mean_of_both_variances():
    image = scene(30.0, 6.0, sd_signal_hu=12.0)
    assert contrast_to_noise(image, **REGIONS, noise="background") == pytest.approx(5.0, rel=0.03)
    assert contrast_to_noise(image, **REGIONS, noise="pooled") == pytest.approx(30.0 / np.sqrt(90.0), rel=0.03)


def test_drift_from_slice_to_slice_is_no_noise():
    image = scene(24.0, 12.0) + 100.0 * np.arange(40)[:, None, None]
    assert contrast_to_noise(image, **REGIONS, noise="background") == pytest.approx(2.0, rel=0.02)


def test_the_variance_is_numpys_sample_variance():
    image = scene(24.0, 12.0, slices=1)[0]
    expected = (image[SIGNAL].mean() - image[BACKGROUND].mean()) / image[BACKGROUND].std(ddof=1)
    assert contrast_to_noise(image, **REGIONS, noise="background") == pytest.approx(expected, rel=1e-12)


def test_recovery_is_the_kept_share():
    truth = scene(20.0, 0.0, slices=1)[0]
    assert contrast_recovery(truth + 7.0, truth, **REGIONS) == pytest.approx(1.0)
    assert contrast_recovery(30.0 + 0.4 * (truth - 30.0), truth, **REGIONS) == pytest.approx(0.4)
    blurred = ndimage.uniform_filter(truth, (1, 9), mode="nearest")
    # Of 16 columns, those 4, 3, 2, 1 from either edge lose 4, 3, 2, 1 ninths: 20/9 of 16 columns.
    assert contrast_recovery(blurred, truth, **REGIONS) == pytest.approx(1.0 - 20 / 9 / 16, abs=1e-9)


def test_bad_input_is_refused():
    image = scene(20.0, 5.0)
    with pytest.raises(ValueError, match="overlap"):
        contrast_hu(image, signal=SIGNAL, background=~BACKGROUND)
    with pytest.raises(ValueError, match="empty"):
        contrast_hu(image, signal=SIGNAL & BACKGROUND, background=BACKGROUND)
    with pytest.raises(ValueError, match="bool mask"):
        contrast_hu(image, signal=SIGNAL.astype(int), background=BACKGROUND)
    with pytest.raises(ValueError, match="noise"):
        contrast_to_noise(image, **REGIONS, noise="signal")
    with pytest.raises(ValueError, match="constant"):
        contrast_to_noise(scene(20.0, 0.0), **REGIONS, noise="background")
    with pytest.raises(ValueError, match="differ in shape"):
        contrast_recovery(image, image[0], **REGIONS)
    with pytest.raises(ValueError, match="no contrast"):
        contrast_recovery(image, np.zeros_like(image), **REGIONS)
    with pytest.raises(ValueError, match="finite"):
        contrast_hu(np.full((64, 64), np.nan), **REGIONS)
