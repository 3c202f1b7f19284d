"""Torch's own transforms against a direct sum, against finufft, and as each other's transpose."""

import numpy as np
import pytest
import torch

from diffusers_ct.physics import KERNELS, FanBeam, ParallelBeam, Projector
from diffusers_ct.physics.fourier_slice import PolarPoints
from diffusers_ct.physics.torch_slice import TorchSlice

GEOMETRIES = {
    "parallel": ParallelBeam((24, 20), 2.0, views=18, bins=36, bin_mm=1.9),
    "odd": ParallelBeam((21, 15), 2.0, views=7, bins=31, bin_mm=1.9),
    "arc": FanBeam((24, 20), 2.0, "arc", views=30, bins=24, pitch_mm=4.0),
    "flat": FanBeam((24, 20), 2.0, "flat", views=30, bins=24, pitch_mm=4.0),
}
LIMIT = {torch.float32: 2e-5, torch.float64: 1e-11}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def tensors(projector: Projector, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, *projector.image_shape, generator=g, dtype=dtype)
    return x, torch.randn(3, *projector.sinogram_shape, generator=g, dtype=dtype)


@pytest.mark.parametrize(("eps", "limit"), [(1e-3, 1e-3), (1e-6, 1e-6), (1e-10, 1e-10)])
def test_spectrum_is_the_direct_sum_over_pixels(eps, limit):
    geometry = GEOMETRIES["odd"]
    points = PolarPoints(geometry, 64, pixel_basis=False)
    transform = TorchSlice(points, torch.device("cpu"), torch.float64, eps, 8)
    image = torch.randn(2, 21, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y, x = np.arange(21) - 10.0, np.arange(15) - 7.0
    exponential = np.exp(-1j * (points.ky[:, None, None] * y[:, None] + points.kx[:, None, None] * x))
    expected = torch.from_numpy(np.einsum("pyx,nyx->pn", exponential, image.numpy()))
    found = torch.view_as_complex(transform._image_to_points(image))
    assert relative(found, expected) < limit


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_agrees_with_finufft(name, dtype):
    ours, other = Projector(GEOMETRIES[name], engine="torch"), Projector(GEOMETRIES[name], engine="finufft")
    x, y = tensors(ours, dtype)
    windows = [KERNELS[kernel] for kernel in ("smooth", "soft", "sharp")]
    assert ours.forward(x).dtype == dtype
    assert relative(ours.forward(x), other.forward(x)) < LIMIT[dtype]
    assert relative(ours.adjoint(y), other.adjoint(y)) < LIMIT[dtype]
    assert relative(ours.fbp(y, windows), other.fbp(y, windows)) < LIMIT[dtype]


def test_agrees_with_finufft_at_the_precision_of_the_simulation():
    geometry = ParallelBeam((256, 256), 1.6, views=40, bins=368, bin_mm=1.36)
    ours, other = (Projector(geometry, engine=engine, eps=1e-4) for engine in ("torch", "finufft"))
    x, y = tensors(ours, torch.float32)
    assert relative(ours.forward(x), other.forward(x)) < 1e-4
    assert relative(ours.fbp(y, KERNELS["soft"]), other.fbp(y, KERNELS["soft"])) < 1e-4


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_adjoint_is_the_transpose(name, dtype, limit):
    projector = Projector(GEOMETRIES[name], engine="torch", eps=1e-3)  # holds at any precision of the transforms
    x, y = tensors(projector, dtype)
    forward = projector.forward(x)
    difference = (forward * y).sum() - (x * projector.adjoint(y)).sum()
    assert abs(difference) / (forward.norm() * y.norm()) < limit


@pytest.mark.parametrize("name", ["parallel", "arc"])
def test_gradients_of_both_orders(name):
    geometry = {
        "parallel": ParallelBeam((6, 5), 4.0, views=4, bins=9, bin_mm=4.0),
        "arc": FanBeam((6, 5), 4.0, "arc", views=5, bins=6, pitch_mm=8.0),
    }[name]
    projector = Projector(geometry, engine="torch", eps=1e-3)
    x = torch.randn(projector.image_shape, dtype=torch.float64, requires_grad=True)
    y = torch.randn(projector.sinogram_shape, dtype=torch.float64, requires_grad=True)
    for function, argument in (
        (projector.forward, x),
        (projector.adjoint, y),
        (lambda sinogram: projector.fbp(sinogram, KERNELS["sharp"]), y),
    ):
        assert torch.autograd.gradcheck(function, argument, nondet_tol=1e-9)
        assert torch.autograd.gradgradcheck(function, argument, nondet_tol=1e-9)


def test_images_go_a_few_at_a_time():
    whole, pieces = (Projector(GEOMETRIES["arc"], engine="torch", batch=batch) for batch in (8, 2))
    x, y = tensors(whole)
    windows = [KERNELS[kernel] for kernel in ("smooth", "soft", "sharp")]
    torch.testing.assert_close(pieces.forward(x), whole.forward(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(pieces.fbp(y, windows), whole.fbp(y, windows), rtol=0, atol=1e-12)


def test_an_engine_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="`engine` must be"):
        Projector(GEOMETRIES["parallel"], engine="astra")


@pytest.mark.gpu
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_tensor_on_the_gpu_stays_there(name):
    projector = Projector(GEOMETRIES[name])
    x, y = tensors(projector, torch.float32)
    for function, argument in (
        (projector.forward, x),
        (projector.adjoint, y),
        (lambda sinogram: projector.fbp(sinogram, KERNELS["soft"]), y),
    ):
        found = function(argument.cuda())
        assert found.device.type == "cuda"
        assert relative(found.cpu(), function(argument)) < LIMIT[torch.float32]
