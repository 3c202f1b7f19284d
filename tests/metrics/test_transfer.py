"""The task transfer function against the closed form of a Gaussian and against another estimator."""

import numpy as np
import pytest
import torch
from scipy import interpolate, special

from diffusers_ct.metrics.transfer import disc_center, task_transfer
from diffusers_ct.physics import ParallelBeam, Projector, ReconstructionKernel

PIXEL_MM = 0.5
CENTER = (63.3, 64.8)
RADIUS_MM = 12.5
WHERE = {"pixel_mm": PIXEL_MM, "center": CENTER, "radius_mm": RADIUS_MM, "edge_mm": 6.0, "bin_mm": 0.2}
SHAPE = (128, 128)


STEP = 1.6 / 1600
FREQUENCY = (np.arange(1600) + 0.5) * STEP
GRID_MM = np.linspace(0.0, 47.5, 951)
# Rows of the inverse Hankel transform, times the transform R J1(2 pi R f) / f of a disc.
HANKEL = special.j0(2 * np.pi * np.outer(GRID_MM, FREQUENCY)) * (
    2 * np.pi * STEP * RADIUS_MM * special.j1(2 * np.pi * RADIUS_MM * FREQUENCY)
)


def disc(transfer, *, center=CENTER, contrast_hu=100.0, background_hu=40.0) -> np.ndarray:
    """Samples of a disc behind a radial transfer function that ends below 1.6 / mm (no pixel is averaged)."""
    rows, columns = np.indices(SHAPE)
    profile = interpolate.CubicSpline(GRID_MM, HANKEL @ transfer(FREQUENCY))
    return background_hu + contrast_hu * profile(np.hypot(rows - center[0], columns - center[1]) * PIXEL_MM)


def gaussian(sd_mm: float):
    return lambda f: np.exp(-2 * (np.pi * sd_mm * f) ** 2)


@pytest.mark.parametrize("sd_mm", [0.5, 0.8, 1.2])
def test_a_gaussian_blur_has_a_gaussian_transfer(sd_mm):
    found = task_transfer(disc(gaussian(sd_mm)), **WHERE)
    truth = gaussian(sd_mm)(found.frequency_per_mm)
    seen = truth > 0.1
    np.testing.assert_allclose(found.ttf[seen], truth[seen], rtol=0.02)
    np.testing.assert_allclose(found.ttf[~seen], truth[~seen], atol=0.015)
    assert found.f50_per_mm == pytest.approx(np.sqrt(np.log(2) / 2) / (np.pi * sd_mm), rel=0.01)
    assert found.f10_per_mm == pytest.approx(np.sqrt(np.log(10) / 2) / (np.pi * sd_mm), rel=0.01)
    assert found.contrast_hu == pytest.approx(100.0, rel=0.005)


def test_a_sharpening_kernel_is_followed_above_one():
    def transfer(f):
        return (1 + 10.0 * f**2) * np.exp(-((f / 0.45) ** 2) * 1.2)

    found = task_transfer(disc(transfer), **WHERE)
    assert found.ttf.max() > 1.02
    np.testing.assert_allclose(found.ttf, transfer(found.frequency_per_mm), atol=0.015)


@pytest.mark.parametrize("contrast_hu", [-900.0, -35.0, 120.0, 1000.0])
def test_the_transfer_of_a_linear_system_does_not_depend_on_the_insert(contrast_hu):
    one = task_transfer(disc(gaussian(0.7), contrast_hu=contrast_hu), **WHERE)
    other = task_transfer(disc(gaussian(0.7)), **WHERE)
    np.testing.assert_allclose(one.ttf, other.ttf, atol=1e-9)
    assert one.contrast_hu == pytest.approx(contrast_hu * other.contrast_hu / 100.0)


def test_a_method_that_blurs_faint_inserts_alone_is_caught():
    def method(image):  # keeps what differs from 40 HU by more than 50, blurs the rest more
        strong = np.abs(image - 40.0).max() > 50.0
        return image if strong else disc(gaussian(1.4), contrast_hu=image.max() - 40.0)

    f50 = [task_transfer(method(disc(gaussian(0.7), contrast_hu=c)), **WHERE).f50_per_mm for c in (20.0, 120.0, 900.0)]
    assert f50[1] == pytest.approx(f50[2], rel=1e-6) and f50[0] == pytest.approx(f50[1] / 2, rel=0.02)


def test_the_mean_over_noisy_realisations_has_the_transfer_and_says_its_contrast_to_noise():
    rng = np.random.default_rng(0)
    images = disc(gaussian(0.7)) + rng.normal(0.0, 20.0, (100, *SHAPE))
    found = task_transfer(images, **WHERE)
    assert found.cnr == pytest.approx(100.0 / 2.0, rel=0.05)
    np.testing.assert_allclose(found.ttf, gaussian(0.7)(found.frequency_per_mm), atol=0.03)
    alone = task_transfer(images[:1], **WHERE)
    assert alone.cnr == pytest.approx(found.cnr / 10, rel=0.05)


def test_it_agrees_with_a_fit_of_the_edge_in_the_image():
    """Independent: the Gaussian whose blurred disc fits the pixels best, by least squares in the image."""
    rng = np.random.default_rng(1)
    image = disc(gaussian(0.9)) + rng.normal(0.0, 1.0, SHAPE)
    widths = np.linspace(0.8, 1.0, 41)
    errors = [np.sum((image - disc(gaussian(s))) ** 2) for s in widths]
    best = widths[int(np.argmin(errors))]
    found = task_transfer(image, **WHERE)
    assert found.f50_per_mm == pytest.approx(np.sqrt(np.log(2) / 2) / (np.pi * best), rel=0.02)


@pytest.mark.parametrize("kernel", [ReconstructionKernel(0.75), ReconstructionKernel(1.0, boost=3.0)])
def test_fbp_of_a_disc_has_the_transfer_of_its_kernel_and_detector(kernel):
    """Independent: the disc's line integrals in closed form, averaged over the bins; then W(f) sinc(f bin) is kept."""
    bins, bin_mm = 480, 0.2  # coarser bins alias
    geometry = ParallelBeam(SHAPE, PIXEL_MM, views=360, bins=bins, bin_mm=bin_mm)
    y, x = ((c - (size - 1) / 2) * PIXEL_MM for c, size in zip(CENTER, SHAPE))
    shift = x * np.cos(geometry.angles) + y * np.sin(geometry.angles)
    edges = np.clip((np.arange(bins + 1) - bins / 2) * bin_mm - shift[:, None], -RADIUS_MM, RADIUS_MM)
    area = edges * np.sqrt(RADIUS_MM**2 - edges**2) + RADIUS_MM**2 * np.arcsin(edges / RADIUS_MM)
    image = Projector(geometry).fbp(torch.from_numpy(np.diff(area) / bin_mm), kernel).numpy()
    center = disc_center(image, pixel_mm=PIXEL_MM, near=(62.0, 66.0), radius_mm=RADIUS_MM, margin_mm=6.0)
    assert center == pytest.approx(CENTER, abs=0.001)
    found = task_transfer(image, **{**WHERE, "center": center, "bin_mm": 0.1})
    f = found.frequency_per_mm
    np.testing.assert_allclose(found.ttf, kernel(f) * np.sinc(f * bin_mm), atol=0.006)
    assert found.contrast_hu == pytest.approx(1.0, abs=0.001)


def test_the_center_is_found_to_a_hundredth_of_a_pixel():
    image = disc(gaussian(0.8), contrast_hu=-60.0)
    center = disc_center(image, pixel_mm=PIXEL_MM, near=(60.0, 68.0), radius_mm=RADIUS_MM, margin_mm=6.0)
    assert center == pytest.approx(CENTER, abs=0.01)
    noisy = image + np.random.default_rng(2).normal(0.0, 2.0, SHAPE)
    center = disc_center(noisy, pixel_mm=PIXEL_MM, near=(62.0, 66.0), radius_mm=RADIUS_MM, margin_mm=6.0)
    assert center == pytest.approx(CENTER, abs=0.1)


def test_a_center_that_is_off_loses_transfer_as_a_bessel_function():
    off_mm = 0.6
    found = task_transfer(disc(gaussian(0.7)), **{**WHERE, "center": (CENTER[0] + off_mm / PIXEL_MM, CENTER[1])})
    truth = gaussian(0.7)(found.frequency_per_mm) * np.abs(special.j0(2 * np.pi * found.frequency_per_mm * off_mm))
    np.testing.assert_allclose(found.ttf, truth, atol=0.02)


def test_a_level_that_is_not_reached_before_the_nyquist_frequency_is_none():
    found = task_transfer(disc(gaussian(0.35)), **WHERE)
    assert found.frequency_per_mm[-1] == pytest.approx(1.0)
    assert found.f50_per_mm == pytest.approx(np.sqrt(np.log(2) / 2) / (np.pi * 0.35), rel=0.01)
    assert found.f10_per_mm == pytest.approx(np.sqrt(np.log(10) / 2) / (np.pi * 0.35), rel=0.02)
    assert found.frequency_at(0.05) is None


def test_bad_input_is_refused():
    image = disc(gaussian(0.7))
    for change, message in [
        ({"pixel_mm": 0.0}, "pixel_mm"),
        ({"edge_mm": 13.0}, "edge_mm"),
        ({"edge_mm": 1.0}, "edge_mm"),
        ({"center": (20.0, 64.0)}, "leaves the image"),
        ({"bin_mm": 0.001}, "hold no pixel"),
    ]:
        with pytest.raises(ValueError, match=message):
            task_transfer(image, **{**WHERE, **change})
    with pytest.raises(ValueError, match="no contrast"):
        task_transfer(np.zeros(SHAPE), **WHERE)
    with pytest.raises(ValueError, match="finite"):
        task_transfer(np.where(np.eye(128) > 0, np.nan, image), **WHERE)
    with pytest.raises(ValueError, match="level"):
        task_transfer(image, **WHERE).frequency_at(1.0)
    with pytest.raises(ValueError, match="contrast"):
        disc_center(np.zeros(SHAPE), pixel_mm=PIXEL_MM, near=CENTER, radius_mm=RADIUS_MM, margin_mm=6.0)
