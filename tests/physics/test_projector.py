"""The projector against closed forms, its own adjoint, and an independent implementation."""

import numpy as np
import pytest
import torch
from skimage.transform import radon

from diffusers_ct.hounsfield import MU_WATER_PER_MM
from diffusers_ct.physics import KERNELS, FanBeam, ParallelBeam, Projector
from diffusers_ct.physics.fan_rebinning import keys_weights
from diffusers_ct.physics.projector import ramp_filter

SIZE, PIXEL_MM = 512, 400.0 / 512
GEOMETRIES = {
    "parallel": ParallelBeam((SIZE, SIZE), PIXEL_MM),
    "arc": FanBeam((SIZE, SIZE), PIXEL_MM, "arc"),
    "flat": FanBeam((SIZE, SIZE), PIXEL_MM, "flat"),
}
SMALL = {
    "parallel": ParallelBeam((24, 20), 2.0, views=18, bins=36, bin_mm=1.9),
    "arc": FanBeam((24, 20), 2.0, "arc", views=30, bins=24, pitch_mm=4.0),
    "flat": FanBeam((24, 20), 2.0, "flat", views=30, bins=24, pitch_mm=4.0),
}


@pytest.fixture(scope="module")
def projectors():
    return {name: Projector(geometry) for name, geometry in GEOMETRIES.items()}


def grid():
    axis = (np.arange(SIZE) - (SIZE - 1) / 2) * PIXEL_MM
    return np.meshgrid(axis, axis)  # x along columns, y along rows


def disc(radius_mm: float, x0: float, y0: float) -> np.ndarray:
    x, y = grid()
    return np.clip(0.5 - (np.hypot(x - x0, y - y0) - radius_mm) / PIXEL_MM, 0.0, 1.0) * MU_WATER_PER_MM


def rays(geometry) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(geometry, FanBeam):
        return geometry.parallel_coordinates()
    return np.broadcast_arrays(geometry.angles[:, None], geometry.positions_mm[None])


def chord(geometry, radius_mm: float, x0: float, y0: float) -> tuple[np.ndarray, np.ndarray]:
    theta, s = rays(geometry)
    distance = s - (x0 * np.cos(theta) + y0 * np.sin(theta))
    return 2 * MU_WATER_PER_MM * np.sqrt(np.clip(radius_mm**2 - distance**2, 0, None)), distance


@pytest.mark.parametrize("name", GEOMETRIES)
def test_disc_has_its_analytic_chords(projectors, name):
    expected, distance = chord(GEOMETRIES[name], 150.0, 20.0, -10.0)
    found = projectors[name].forward(torch.from_numpy(disc(150.0, 20.0, -10.0)).float()).numpy()
    inside = np.abs(distance) < 140.0
    assert np.sqrt(np.mean((found - expected)[inside] ** 2) / np.mean(expected[inside] ** 2)) < 3e-4


@pytest.mark.parametrize("name", GEOMETRIES)
def test_fbp_of_analytic_water_is_water(projectors, name):
    sinogram, _ = chord(GEOMETRIES[name], 150.0, 20.0, -10.0)
    image = projectors[name].fbp(torch.from_numpy(sinogram), KERNELS["soft"]).numpy()
    hu = (image / MU_WATER_PER_MM - 1.0) * 1000.0
    x, y = grid()
    radius = np.hypot(x - 20.0, y + 10.0)
    assert abs(hu[radius < 50].mean()) < 0.1
    assert abs(hu[(radius > 100) & (radius < 130)].mean()) < 0.1
    assert hu[(radius > 160) & (radius < 175)].mean() == pytest.approx(-1000.0, abs=0.1)


def test_smooth_round_trip(projectors):
    x, y = grid()
    body = np.exp(-((((x - 10) / 110) ** 2 + ((y + 5) / 80) ** 2) ** 2)) + 0.3 * np.exp(-((x - 40) ** 2 + y**2) / 30**2)
    mu = torch.from_numpy(MU_WATER_PER_MM * body)
    projector = projectors["parallel"]
    no_window = lambda f: np.ones_like(f)  # noqa: E731
    error = (projector.fbp(projector.forward(mu), no_window) - mu).numpy() * 1000.0 / MU_WATER_PER_MM
    inside = np.hypot(x, y) < 150
    assert np.sqrt(np.mean(error[inside] ** 2)) < 0.1
    assert abs(error[inside].mean()) < 0.02


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_adjoint_is_the_transpose(name, dtype, limit):
    projector = Projector(SMALL[name])
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, *projector.image_shape, generator=g, dtype=dtype)
    y = torch.randn(3, *projector.sinogram_shape, generator=g, dtype=dtype)
    forward, backward = projector.forward(x), projector.adjoint(y)
    difference = (forward * y).sum() - (x * backward).sum()
    assert abs(difference) / (forward.norm() * y.norm()) < limit


@pytest.mark.parametrize("name", SMALL)
def test_gradients_of_both_orders(name):
    geometry = {
        "parallel": ParallelBeam((8, 8), 4.0, views=5, bins=12, bin_mm=4.0),
        "arc": FanBeam((8, 8), 4.0, "arc", views=6, bins=8, pitch_mm=8.0),
        "flat": FanBeam((8, 8), 4.0, "flat", views=6, bins=8, pitch_mm=8.0),
    }[name]
    projector = Projector(geometry)
    x = torch.randn(8, 8, dtype=torch.float64, requires_grad=True)
    y = torch.randn(projector.sinogram_shape, dtype=torch.float64, requires_grad=True)
    for function, argument in ((projector.forward, x), (projector.adjoint, y)):
        # finufft's threads add in any order: two calls agree to rounding, not bit for bit.
        assert torch.autograd.gradcheck(function, argument, nondet_tol=1e-9)
        assert torch.autograd.gradgradcheck(function, argument, nondet_tol=1e-9)


def test_agrees_with_scikit_image_away_from_edges():
    size, pixel = 128, 1.0
    axis = np.arange(size) - (size - 1) / 2
    x, y = np.meshgrid(axis, axis)
    image = np.exp(-(((x - 8) / 22) ** 2 + ((y + 6) / 14) ** 2)) * (np.hypot(x, y) < 60)
    geometry = ParallelBeam((size, size), pixel, views=30, bins=size, bin_mm=pixel)
    ours = Projector(geometry).forward(torch.from_numpy(image)).numpy()
    # scikit-image turns the other way and rotates about pixel size // 2, half a pixel from the centre.
    theirs = radon(image, theta=-np.degrees(geometry.angles), circle=True).T
    assert np.abs(ours.sum(axis=1) - theirs.sum(axis=1)).max() / theirs.sum(axis=1).mean() < 2e-3
    assert np.abs(ours.max(axis=1) - theirs.max(axis=1)).max() / theirs.max() < 0.01


def test_batches_do_not_change_the_result():
    x = torch.randn(5, 24, 20, dtype=torch.float64)
    whole = Projector(SMALL["parallel"], batch=8).forward(x)
    torch.testing.assert_close(Projector(SMALL["parallel"], batch=2).forward(x), whole, rtol=0, atol=1e-9)


def test_keys_weights_sum_to_one_and_hit_the_samples():
    weights = keys_weights(np.linspace(0, 1, 11))
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(weights[0], [0, 1, 0, 0], atol=1e-12)


def test_ramp_is_the_absolute_frequency():
    ramp = ramp_filter(2048, 0.5)
    frequency = np.arange(1025) / (2048 * 0.5)
    np.testing.assert_allclose(ramp[50:-50], frequency[50:-50], rtol=1e-3)


def test_wrong_shapes_and_types_are_refused():
    projector = Projector(SMALL["parallel"])
    with pytest.raises(ValueError, match="image must be"):
        projector.forward(torch.zeros(20, 24))
    with pytest.raises(ValueError, match="sinogram must be"):
        projector.adjoint(torch.zeros(3, 3))
    with pytest.raises(TypeError, match="float32 or float64"):
        projector.forward(torch.zeros(24, 20, dtype=torch.int32))
    with pytest.raises(ValueError, match="detector"):
        FanBeam((8, 8), 1.0, "curved")
    with pytest.raises(ValueError, match="`bins` must be positive"):
        ParallelBeam((8, 8), 1.0, bins=0)
