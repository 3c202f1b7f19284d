"""The projector against closed forms, its own adjoint, and an independent implementation."""

import pickle
from functools import partial

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


COARSE = {  # the same rays at lower resolution
    256: ParallelBeam((256, 256), 400 / 256, views=360, bins=368, bin_mm=500 / 368),
    128: ParallelBeam((128, 128), 400 / 128, views=180, bins=184, bin_mm=500 / 184),
}
COARSE_ARC = {
    256: FanBeam((256, 256), 400 / 256, "arc", views=576, bins=368, pitch_mm=2 * 1.2858),
    128: FanBeam((128, 128), 400 / 128, "arc", views=288, bins=184, pitch_mm=4 * 1.2858),
}


def round_trip_error_hu(projector: Projector) -> np.ndarray:
    """FBP of the projections of a smooth body minus the body, within 150 mm."""
    (size, _), pixel_mm = projector.image_shape, projector.geometry.pixel_mm
    axis = (np.arange(size) - (size - 1) / 2) * pixel_mm
    x, y = np.meshgrid(axis, axis)
    body = np.exp(-((((x - 10) / 110) ** 2 + ((y + 5) / 80) ** 2) ** 2)) + 0.3 * np.exp(-((x - 40) ** 2 + y**2) / 30**2)
    mu = torch.from_numpy(MU_WATER_PER_MM * body)
    error = (projector.fbp(projector.forward(mu), np.ones_like) - mu).numpy() * 1000.0 / MU_WATER_PER_MM
    return error[np.hypot(x, y) < 150]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_smooth_round_trip_at_full_size(projectors, name):
    error = round_trip_error_hu(projectors[name])
    assert np.sqrt(np.mean(error**2)) < 0.1
    assert abs(error.mean()) < 0.02


@pytest.mark.parametrize("rays", [COARSE, COARSE_ARC], ids=["parallel", "arc"])
@pytest.mark.parametrize(("size", "limit"), [(256, 0.3), (128, 1.2)])
def test_smooth_round_trip_of_coarse_images(rays, size, limit):
    error = round_trip_error_hu(Projector(rays[size]))
    assert np.sqrt(np.mean(error**2)) < limit
    assert abs(error.mean()) < 0.02 * limit / 0.1


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


@pytest.mark.parametrize(
    "geometry",
    [
        ParallelBeam((SIZE, SIZE), PIXEL_MM, views=24),
        FanBeam((SIZE, SIZE), PIXEL_MM, "arc", views=36),
        FanBeam((SIZE, SIZE), PIXEL_MM, "flat", views=36),
    ],
    ids=["parallel", "arc", "flat"],
)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_adjoint_is_the_transpose_at_full_size(geometry, dtype, limit):
    projector = Projector(geometry)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(projector.image_shape, generator=g, dtype=dtype)
    y = torch.randn(projector.sinogram_shape, generator=g, dtype=dtype)
    forward = projector.forward(x)
    difference = (forward.double() * y).sum() - (x.double() * projector.adjoint(y)).sum()
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
    fbp = partial(projector.fbp, window=KERNELS["sharp"])
    for function, argument in ((projector.forward, x), (projector.adjoint, y), (fbp, y)):
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


def test_each_sinogram_can_have_its_own_window():
    projector = Projector(SMALL["arc"])
    y = torch.randn(2, 3, *projector.sinogram_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    windows = [KERNELS["smooth"], KERNELS["sharp"]]
    together = projector.fbp(y, windows)
    for k in range(2):
        torch.testing.assert_close(together[k], projector.fbp(y[k], windows[k]), rtol=0, atol=1e-11)
    with pytest.raises(ValueError, match="one for each of the 2 sinograms"):
        projector.fbp(y, windows[:1])


def test_a_pickled_projector_projects_the_same():
    projector = Projector(SMALL["flat"], eps=1e-6, threads=1)
    x = torch.randn(projector.image_shape, generator=torch.Generator().manual_seed(0))
    expected = projector.forward(x)
    assert torch.equal(pickle.loads(pickle.dumps(projector)).forward(x), expected)


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
