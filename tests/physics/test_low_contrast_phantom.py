"""The rod phantom against the closed forms of a blurred disc and of the noise of filtered back-projection."""

import numpy as np
import pytest
from scipy import special

from diffusers_ct.hounsfield import MU_WATER_PER_MM
from diffusers_ct.physics import KERNELS
from diffusers_ct.physics.low_contrast_phantom import LOW_CONTRAST_RODS, Rod, RodPhantom, scan_seed

KERNEL = "soft"


def blurred_disc(radius_mm: np.ndarray, diameter_mm: float, bin_mm: float) -> np.ndarray:
    """Profile of a disc of 1 HU after the kernel and the detector's aperture: an inverse Hankel transform."""
    f = np.linspace(1e-6, min(KERNELS[KERNEL].cutoff_per_mm, 0.5 / bin_mm), 4000)
    spectrum = 0.5 * diameter_mm * special.j1(np.pi * diameter_mm * f) / f * KERNELS[KERNEL](f) * np.sinc(f * bin_mm)
    return np.trapezoid(spectrum * 2 * np.pi * f * special.j0(2 * np.pi * np.outer(radius_mm, f)), f, axis=1)


def mean_noise_variance(phantom: RodPhantom, dose_fraction: float) -> float:
    """sigma^2 = (1000/mu)^2 (pi^2/V) ds Var_p 2 int f^2 W^2 df, Var_p averaged over the rays through the ring."""
    rays, settings = phantom.geometry, phantom.settings(KERNEL)
    s = phantom.ring_mm * np.cos((np.arange(720) + 0.5) * np.pi / 720)
    counts = settings.i0 * dose_fraction * np.exp(-MU_WATER_PER_MM * 2 * np.sqrt((phantom.disc_mm / 2) ** 2 - s**2))
    variance = np.mean(1 / counts + settings.electronic_variance / counts**2)
    f = np.linspace(0.0, 0.5 / rays.bin_mm, 4000)
    moment = np.trapezoid(f**2 * KERNELS[KERNEL](f) ** 2, f)
    return (1000 / MU_WATER_PER_MM) ** 2 * np.pi**2 / rays.views * rays.bin_mm * variance * 2 * moment


@pytest.mark.parametrize("pixel_mm", [0.7, 1.0])
def test_rods_are_discs_under_the_kernel(pixel_mm):
    phantom = RodPhantom(pixel_mm)
    rods = phantom.noise_free_hu(KERNEL, with_rods=True) - phantom.noise_free_hu(KERNEL, with_rods=False)
    for rod in phantom.rods:
        row, column = phantom.places(rod)[0]
        across = np.arange(-5, 6)
        expected = rod.contrast_hu * blurred_disc(np.abs(across) * pixel_mm, rod.diameter_mm, phantom.geometry.bin_mm)
        # Drawing a small disc on a quarter of a pixel moves its area by some 0.5 %.
        np.testing.assert_allclose(rods[row, column + across], expected, atol=0.015 * rod.contrast_hu)


def test_copies_are_one_image_and_stand_evenly():
    phantom = RodPhantom(1.0)
    image = phantom.noise_free_hu(KERNEL, with_rods=True) - phantom.noise_free_hu(KERNEL, with_rods=False)
    middle = (phantom.side - 1) / 2
    for rod in phantom.rods:
        places = phantom.places(rod)
        copies = np.stack([image[r - 5 : r + 6, c - 5 : c + 6] for r, c in places])
        assert len(places) == 4 and np.ptp(copies, axis=0).max() < 0.02
        angles = np.sort([np.arctan2(r - middle, c - middle) for r, c in places])
        np.testing.assert_allclose(np.diff(angles), np.pi / 2, atol=0.05)
        assert phantom.clearance_mm(rod) > 1.5 + rod.diameter_mm / 2
    everywhere = {place for rod in phantom.rods for place in phantom.places(rod)}
    assert len(everywhere) == 16


@pytest.mark.parametrize("pixel_mm", [0.7, 1.0])
def test_noise_has_the_closed_form_whatever_the_pixels(pixel_mm):
    phantom = RodPhantom(pixel_mm)
    scan = phantom.scan(dose_fraction=0.25, slices=6, seed=3, with_rods=True, kernel=KERNEL, slice_mm=2.0)
    noise = scan.hu - phantom.noise_free_hu(KERNEL, with_rods=True)
    axis = (np.arange(phantom.side) - (phantom.side - 1) / 2) * pixel_mm
    ring = np.abs(np.hypot(axis[:, None], axis[None, :]) - 40.0) < 10.0
    assert noise[:, ring].std() == pytest.approx(np.sqrt(mean_noise_variance(phantom, 0.25)), rel=0.03)
    assert abs(noise[:, ring].mean()) < 0.5
    assert np.sqrt(mean_noise_variance(phantom, 0.25)) == pytest.approx(20.0, rel=0.01)  # the same for both pixels


def test_slices_are_realisations_that_a_seed_repeats():
    phantom = RodPhantom(1.5)
    drawn = {"slices": 2, "with_rods": False, "kernel": KERNEL, "slice_mm": 2.0, "dose_fraction": 0.5}
    scan, same, other = (phantom.scan(seed=seed, **drawn) for seed in (1, 1, 2))
    np.testing.assert_array_equal(scan.hu, same.hu)
    inside = np.s_[60:100, 60:100]
    assert abs(np.corrcoef(scan.hu[0][inside].ravel(), scan.hu[1][inside].ravel())[0, 1]) < 0.15
    assert abs(np.corrcoef(scan.hu[0][inside].ravel(), other.hu[0][inside].ravel())[0, 1]) < 0.15
    assert scan.synthetic and scan.conditions.dose_fraction == 0.5 and scan.spacing_mm == (2.0, 1.5, 1.5)
    assert len({scan_seed(0, a, b) for a in range(20) for b in range(20)}) == 400


def test_drawing_keeps_areas():
    phantom = RodPhantom(0.7)
    drawn = phantom.drawn_hu(with_rods=True, parts=3) - phantom.drawn_hu(with_rods=False, parts=3)
    area = sum(r.contrast_hu * np.pi * (r.diameter_mm / 2) ** 2 for r in LOW_CONTRAST_RODS) * 4
    assert drawn.sum() * (0.7 / 3) ** 2 == pytest.approx(area, rel=0.003)
    disc = (phantom.drawn_hu(with_rods=False) + 1000.0).sum() * 0.7**2
    assert disc == pytest.approx(1000.0 * np.pi * 100.0**2, rel=1e-4)


def test_rods_without_room_are_refused():
    with pytest.raises(ValueError, match="touch others"):
        RodPhantom(1.0, copies=8)
    with pytest.raises(ValueError, match="leave the disc"):
        RodPhantom(1.0, (Rod(30.0, 5.0),), copies=1, ring_mm=90.0)
    with pytest.raises(ValueError, match="positive"):
        RodPhantom(0.0)
