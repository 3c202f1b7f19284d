"""The transfer study against the closed form of kernel, aperture and a known blur."""

import numpy as np
import pytest
from scipy import ndimage, optimize

from diffusers_ct.evaluation.studies import transfer_study
from diffusers_ct.physics import KERNELS
from diffusers_ct.physics.low_contrast_phantom import RodPhantom

PIXEL_MM = 0.8
BLUR_PIXELS = 1.25


def expected(frequency, blur_pixels=0.0):
    """Window of the kernel x aperture of the detector x the blur's Gaussian."""
    aperture = np.sinc(frequency * RodPhantom.for_transfer(PIXEL_MM).geometry.bin_mm)
    return KERNELS["soft"](frequency) * aperture * np.exp(-2 * (np.pi * blur_pixels * PIXEL_MM * frequency) ** 2)


@pytest.fixture(scope="module")
def rows():
    methods = {
        "blur": lambda volume: ndimage.gaussian_filter(volume.hu, (0, BLUR_PIXELS, BLUR_PIXELS)),
        "identity": lambda volume: volume.hu,
        "water": lambda volume: np.zeros(volume.shape),
    }
    return transfer_study(methods, pixel_mm=PIXEL_MM, dose_fractions=(1.0,), slices=8, slab_slices=4, seed=0)


def test_plain_images_have_the_transfer_of_the_kernel(rows):
    for row in rows[:3]:
        frequency, transfer = np.array(row["frequency_per_mm"]), np.array(row["transfer"])
        band = frequency < 0.45
        np.testing.assert_allclose(transfer[band], expected(frequency[band]), atol=0.02)
        assert row["f50_per_mm"] == pytest.approx(optimize.brentq(lambda f: expected(f) - 0.5, 0.1, 0.4), rel=0.015)
        assert row["f10_per_mm"] == pytest.approx(optimize.brentq(lambda f: expected(f) - 0.1, 0.3, 0.55), rel=0.02)
        assert row["measured_contrast_hu"] == pytest.approx(row["contrast_hu"], rel=0.002) and row["cnr"] is None
        assert row["group"] == "dose 100 %" and row["method"] == "low dose"


def test_a_blur_multiplies_the_transfer(rows):
    f50 = optimize.brentq(lambda f: expected(f, BLUR_PIXELS) - 0.5, 0.05, 0.4)
    blurred = [row for row in rows if row["method"] == "blur"]
    assert [row["contrast_hu"] for row in blurred] == [30.0, 120.0, -100.0]
    for row in blurred:
        # Noise of the mean: some 10 % of f50 at 30 HU, a third of that at 100.
        assert row["f50_per_mm"] == pytest.approx(f50, rel=0.15 if row["contrast_hu"] == 30.0 else 0.05)


def test_where_noise_hides_the_edge_or_none_is_left_no_frequency_is_told(rows):
    faint = next(r for r in rows if r["method"] == "identity" and r["contrast_hu"] == 30.0)
    clear = next(r for r in rows if r["method"] == "identity" and r["contrast_hu"] == 120.0)
    assert (
        faint["cnr"] > 10.0
        and clear["f50_per_mm"] is not None
        and clear["cnr"] == pytest.approx(4 * faint["cnr"], rel=0.25)
    )
    for row in (r for r in rows if r["method"] == "water"):
        assert row["f50_per_mm"] is None and row["transfer"] == [] and row["measured_contrast_hu"] == 0.0
    noisy = transfer_study(
        {"identity": lambda volume: volume.hu},
        pixel_mm=PIXEL_MM,
        dose_fractions=(0.1,),
        slices=1,
        slab_slices=1,
        seed=0,
    )
    hidden = next(r for r in noisy if r["method"] == "identity" and r["contrast_hu"] == 30.0)
    assert 0.0 < hidden["cnr"] < 15.0 and hidden["f50_per_mm"] is None and hidden["frequency_per_mm"] == []


@pytest.mark.parametrize("pixel_mm", [0.7, 0.9, 1.0, 1.2, 1.5])
def test_edges_are_sampled_at_all_pixel_sizes(pixel_mm):
    rows = transfer_study({}, pixel_mm=pixel_mm, dose_fractions=(1.0,), slices=1, slab_slices=1, seed=0)
    f50 = [row["f50_per_mm"] for row in rows]
    assert max(f50) == pytest.approx(min(f50), rel=0.01)  # it does not depend on the contrast


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="one slab"):
        transfer_study({}, pixel_mm=1.0, dose_fractions=(1.0,), slices=2, slab_slices=4, seed=0)
