"""The noise study on noise of known power."""

import numpy as np
import pytest
from scipy import ndimage

from diffusers_ct.evaluation.studies import noise_study
from diffusers_ct.physics import KERNELS
from diffusers_ct.physics.low_contrast_phantom import RodPhantom

PIXEL_MM = 1.0


def white(volume):
    rng = np.random.default_rng(int(np.abs(volume.hu).sum()) % 2**31)
    return rng.normal(40.0, 7.0, volume.shape)


@pytest.fixture(scope="module")
def rows():
    methods = {"white": white, "blur": lambda volume: ndimage.gaussian_filter(volume.hu, (0, 1.5, 1.5))}
    found = noise_study(methods, phantom=RodPhantom(PIXEL_MM), dose_fractions=(0.25,), slices=12, slab_slices=4, seed=0)
    return {row["method"]: row for row in found}


def test_rows_are_those_of_the_schema(rows):
    assert list(rows) == ["full dose", "low dose", "white", "blur"]
    for row in rows.values():
        assert row["group"] == "dose 25 %" and row["material"] == "water" and row["n_images"] == 12
        assert isinstance(row["power_hu2_mm2"], list) and len(row["power_hu2_mm2"]) == len(row["frequency_per_mm"])


def test_white_noise_is_flat_with_its_variance(rows):
    power = np.array(rows["white"]["power_hu2_mm2"])
    # Regions that overlap share noise: every ring but the first few, of few values, holds 49 HU^2 x 1 mm^2 to some percent.
    np.testing.assert_allclose(power[3:], 49.0 * PIXEL_MM**2, rtol=0.06)
    assert rows["white"]["sd_hu"] == pytest.approx(7.0, rel=0.01)


def test_plain_noise_is_the_ramp_under_the_kernel_and_falls_with_dose(rows):
    frequency, power = (np.array(rows["low dose"][key]) for key in ("frequency_per_mm", "power_hu2_mm2"))
    theory = frequency * KERNELS["soft"](frequency) ** 2
    assert np.corrcoef(power, theory)[0, 1] > 0.995
    low, full = rows["low dose"], rows["full dose"]
    assert low["sd_hu"] / full["sd_hu"] == pytest.approx(2.0, rel=0.03)
    assert low["mean_frequency_per_mm"] == pytest.approx(np.sum(frequency * theory) / np.sum(theory), rel=0.03)
    assert full["mean_frequency_per_mm"] == pytest.approx(low["mean_frequency_per_mm"], rel=0.03)


def test_a_blur_multiplies_the_power_by_its_square(rows):
    frequency = np.array(rows["low dose"]["frequency_per_mm"])
    ratio = np.array(rows["blur"]["power_hu2_mm2"]) / np.array(rows["low dose"]["power_hu2_mm2"])
    gaussian = np.exp(-4 * (np.pi * 1.5 * PIXEL_MM * frequency) ** 2)
    some = (frequency > 0.08) & (frequency < 0.25)
    # A region without a taper spreads power from the low frequencies to where the blur left 1 %.
    np.testing.assert_allclose(ratio[some], gaussian[some], rtol=0.1, atol=0.01)
    assert rows["blur"]["mean_frequency_per_mm"] < 0.7 * rows["low dose"]["mean_frequency_per_mm"]


def test_what_is_the_same_in_every_image_is_no_noise():
    phantom = RodPhantom(2.0)  # whose noise-free image has shading and ripples of 1.4 HU
    perfect = phantom.noise_free_hu("soft", with_rods=False)
    pattern = np.random.default_rng(0).normal(0.0, 5.0, (2, *perfect.shape))  # another in each slice of a slab

    def printed(volume):
        return white(volume) + pattern

    methods = {"perfect": lambda volume: np.broadcast_to(perfect, volume.shape), "white": white, "printed": printed}
    rows = noise_study(methods, phantom=phantom, dose_fractions=(0.25,), slices=8, slab_slices=2, seed=0)
    found = {row["method"]: row for row in rows}
    assert found["perfect"]["sd_hu"] == 0.0 and found["perfect"]["mean_frequency_per_mm"] is None
    assert found["perfect"]["peak_frequency_per_mm"] is None
    assert found["white"]["sd_hu"] == pytest.approx(7.0, rel=0.02)
    assert found["printed"]["sd_hu"] == pytest.approx(found["white"]["sd_hu"], rel=1e-5)


@pytest.mark.parametrize("slices", [4, 12])
def test_slices_that_share_noise_keep_their_power(slices):
    def same_in_a_slab(volume):
        return np.broadcast_to(white(volume)[:1], volume.shape)

    rows = noise_study(
        {"same": same_in_a_slab}, phantom=RodPhantom(2.0), dose_fractions=(0.25,), slices=slices, slab_slices=2, seed=0
    )
    # 7400 pixels of the disc in each difference of slabs: 4 standard errors of an SD
    assert rows[-1]["sd_hu"] == pytest.approx(7.0, rel=4 / np.sqrt(2 * 7400 * (slices // 2 - 1)))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="two slabs"):
        noise_study({}, phantom=RodPhantom(1.5), dose_fractions=(0.25,), slices=7, slab_slices=4, seed=0)
