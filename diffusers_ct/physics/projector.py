"""Forward projection, its exact adjoint and filtered back-projection by the Fourier slice theorem.

The projection of an image at angle theta is, in the Fourier domain, the image's spectrum on the line through the
origin at theta (Bracewell 1956; Kak and Slaney 1988, section 3.2). The spectrum at those polar points is a
non-uniform FFT (finufft: Barnett, Magland and af Klinteberg 2019, SIAM J. Sci. Comput. 41(5) C479). The image is a
sum of square pixels and a bin averages over its width, both exactly (two sincs); what is left out is the spectrum
beyond the pixel grid's band. Fan-beam rays are interpolated from the parallel ones by a sparse matrix (Keys 1981,
cubic convolution).
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import finufft
import numpy as np
import torch
from scipy import sparse

from .geometry import FanBeam, ParallelBeam

Window = Callable[[np.ndarray], np.ndarray]


class Projector:
    """A, its adjoint and FBP for a geometry, on torch tensors; `forward` and `adjoint` are differentiable.

    Images are (..., height, width), attenuation in 1/mm; sinograms are (..., views, bins), line integrals without
    unit. The transforms run on the CPU in the tensor's precision (float32 or float64): a tensor of another device is
    moved there and its result back.

    Args:
        geometry: `ParallelBeam` or `FanBeam`.
        eps: relative error of the transforms; None for 1e-5 in float32 and 1e-12 in float64.
        batch: images per transform.
    """

    def __init__(self, geometry: ParallelBeam | FanBeam, *, eps: float | None = None, batch: int = 8) -> None:
        self.geometry = geometry
        self.eps = eps
        self.batch = batch
        self._fan = _FanRebinning(geometry) if isinstance(geometry, FanBeam) else None
        self._parallel = geometry if isinstance(geometry, ParallelBeam) else self._fan.parallel  # type: ignore[union-attr]
        self._points = _PolarPoints(self._parallel)

    @property
    def image_shape(self) -> tuple[int, int]:
        return self.geometry.image_shape

    @property
    def sinogram_shape(self) -> tuple[int, int]:
        return self.geometry.views, self.geometry.bins

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """A x: line integrals of an attenuation image."""
        _check_shape(image, self.image_shape, "image")
        return _Linear.apply(image, self._forward, self._adjoint)

    def adjoint(self, sinogram: torch.Tensor) -> torch.Tensor:
        """A^T y: the transpose of `forward`, not an inverse."""
        _check_shape(sinogram, self.sinogram_shape, "sinogram")
        return _Linear.apply(sinogram, self._adjoint, self._forward)

    def fbp(self, sinogram: torch.Tensor, window: Window) -> torch.Tensor:
        """Filtered back-projection: attenuation in 1/mm.

        Args:
            sinogram: (..., views, bins).
            window: amplitude of the apodisation at a frequency in cycles/mm, such as a `ReconstructionKernel`.
        """
        _check_shape(sinogram, self.sinogram_shape, "sinogram")
        return _Linear.apply(sinogram, lambda y: self._fbp(y, window), None)

    # The three transforms on (n, a, b) NumPy arrays.

    def _forward(self, images: np.ndarray) -> np.ndarray:
        points, geometry = self._points, self._parallel
        spectrum = np.zeros((len(images), geometry.views, points.half), dtype=_complex(images.dtype))
        values = self._nufft(2, images.astype(spectrum.dtype), images.dtype)
        spectrum[:, points.inside] = values * points.to_sinogram.astype(spectrum.dtype)
        sinograms = np.fft.irfft(spectrum, points.padded, axis=-1)[..., : geometry.bins]
        sinograms = sinograms.astype(images.dtype) / images.dtype.type(geometry.bin_mm)
        return self._fan.apply(sinograms) if self._fan else sinograms

    def _adjoint(self, sinograms: np.ndarray) -> np.ndarray:
        if self._fan:
            sinograms = self._fan.apply_transposed(sinograms)
        points = self._points
        spectrum = np.fft.rfft(sinograms, points.padded, axis=-1) * (points.hermitian / points.padded)
        values = spectrum[:, points.inside] * np.conj(points.to_sinogram) / self._parallel.bin_mm
        return self._nufft(1, values.astype(_complex(sinograms.dtype)), sinograms.dtype)

    def _fbp(self, sinograms: np.ndarray, window: Window) -> np.ndarray:
        if self._fan:
            sinograms = self._fan.rebin(sinograms)
        points, geometry = self._points, self._parallel
        gain = (
            ramp_filter(points.padded, geometry.bin_mm) * window(points.frequencies) * points.hermitian / points.padded
        )
        values = (np.fft.rfft(sinograms, points.padded, axis=-1) * gain)[:, points.inside] * np.conj(points.phase)
        image = self._nufft(1, values.astype(_complex(sinograms.dtype)), sinograms.dtype)
        return image * sinograms.dtype.type(np.pi / geometry.views)

    def _nufft(self, kind: int, data: np.ndarray, dtype: Any) -> np.ndarray:
        """Type 2 (image to points, sign -) or the real part of type 1 (points to image, sign +), batch by batch."""
        eps = self.eps or (1e-5 if dtype == np.float32 else 1e-12)
        out = []
        for start in range(0, len(data), self.batch):
            part = np.ascontiguousarray(data[start : start + self.batch])
            plan = self._points.plan(kind, len(part), eps, np.dtype(dtype).str)
            result = plan.execute(part if len(part) > 1 else part[0])
            result = result if len(part) > 1 else result[None]
            out.append(result if kind == 2 else result.real)
        return np.concatenate(out)


class _PolarPoints:
    """The polar frequencies of a parallel geometry inside the image's band, with their factors and plans."""

    def __init__(self, geometry: ParallelBeam) -> None:
        height, width = geometry.image_shape
        self.shape = (height, width)
        self.padded = 2 * int(2 ** np.ceil(np.log2(geometry.bins)))  # at least 2x, so that nothing wraps around
        self.half = self.padded // 2 + 1
        self.frequencies = np.arange(self.half) / (self.padded * geometry.bin_mm)
        self.hermitian = np.where((np.arange(self.half) % (self.padded // 2)) == 0, 1.0, 2.0)
        k = self.frequencies[None, :]
        kx, ky = np.cos(geometry.angles)[:, None] * k, np.sin(geometry.angles)[:, None] * k
        band = 0.5 / geometry.pixel_mm
        self.inside = (np.abs(kx) < band) & (np.abs(ky) < band)
        kx, ky, k = kx[self.inside], ky[self.inside], np.broadcast_to(k, self.inside.shape)[self.inside]
        # finufft counts pixels from -(n // 2); ours are centred on the axis. The detector begins at its first bin.
        shift_y, shift_x = ((n // 2 - (n - 1) / 2) * geometry.pixel_mm for n in self.shape)
        self.phase = np.exp(2j * np.pi * (k * geometry.positions_mm[0] - kx * shift_x - ky * shift_y))
        pixel = geometry.pixel_mm**2 * np.sinc(kx * geometry.pixel_mm) * np.sinc(ky * geometry.pixel_mm)
        self.to_sinogram = self.phase * pixel * np.sinc(k * geometry.bin_mm)
        self._coordinates = (2 * np.pi * geometry.pixel_mm * ky, 2 * np.pi * geometry.pixel_mm * kx)
        self.plan = lru_cache(maxsize=8)(self._plan)

    def _plan(self, kind: int, n_trans: int, eps: float, dtype: str) -> finufft.Plan:
        real = np.dtype(dtype)
        threads = 1 if self.inside.sum() < 20_000 else 0  # starting threads costs more than a small transform
        plan = finufft.Plan(
            kind, self.shape, n_trans, eps, isign=1 if kind == 1 else -1, dtype=_complex(real), nthreads=threads
        )
        plan.setpts(*(np.ascontiguousarray(c, dtype=real) for c in self._coordinates))
        return plan


class _FanRebinning:
    """Sparse maps between a fan geometry and the parallel one that it is interpolated from."""

    def __init__(self, fan: FanBeam) -> None:
        reach_mm = fan.source_isocentre_mm * np.sin(np.abs(fan.fan_angles).max())
        bin_mm = fan.pitch_mm * fan.source_isocentre_mm / fan.source_detector_mm
        bins = 2 * (int(np.ceil(reach_mm / bin_mm)) + 3)
        views = int(np.ceil(fan.views * 5 / 8 / 2) * 2)
        self.parallel = ParallelBeam(fan.image_shape, fan.pixel_mm, views, bins, bin_mm)
        theta, s = fan.parallel_coordinates()
        self.matrix = _periodic_interpolation(theta, s, self.parallel)
        # Back: each parallel ray is met twice, from both sides: (beta, gamma) and its conjugate.
        angles, positions = self.parallel.angles[:, None], self.parallel.positions_mm[None, :]
        gamma = np.arcsin(np.clip(positions / fan.source_isocentre_mm, -1, 1))
        there = _fan_interpolation(angles - gamma, gamma, fan)
        back = _fan_interpolation(angles + np.pi + gamma, -gamma, fan)
        self.back = (there + back) * 0.5
        self.fan_shape = (fan.views, fan.bins)
        self.parallel_shape = (views, bins)

    def apply(self, sinograms: np.ndarray) -> np.ndarray:
        return _sparse(self.matrix, sinograms, self.fan_shape)

    def apply_transposed(self, sinograms: np.ndarray) -> np.ndarray:
        return _sparse(self.matrix.T, sinograms, self.parallel_shape)

    def rebin(self, sinograms: np.ndarray) -> np.ndarray:
        return _sparse(self.back, sinograms, self.parallel_shape)


def ramp_filter(padded: int, bin_mm: float) -> np.ndarray:
    """Response of the band-limited ramp on `padded` samples, built in space (Kak and Slaney 1988, eq. 3.61)."""
    n = np.rint(np.fft.fftfreq(padded, 1.0 / padded)).astype(int)
    kernel = np.zeros(padded)
    kernel[n == 0] = 1.0 / (4.0 * bin_mm**2)
    odd = n % 2 != 0
    kernel[odd] = -1.0 / (np.pi * n[odd] * bin_mm) ** 2
    return np.fft.rfft(kernel).real * bin_mm


def keys_weights(fraction: np.ndarray) -> np.ndarray:
    """Weights of the samples at -1, 0, 1, 2 for a point at `fraction` in [0, 1): (..., 4). Keys 1981, eq. 15."""
    t = fraction[..., None] - np.array([-1.0, 0.0, 1.0, 2.0])
    a = np.abs(t)
    near = 1.5 * a**3 - 2.5 * a**2 + 1.0
    far = -0.5 * a**3 + 2.5 * a**2 - 4.0 * a + 2.0
    return np.where(a <= 1.0, near, np.where(a < 2.0, far, 0.0))


def _taps(position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first = np.floor(position)
    return first.astype(int)[..., None] + np.arange(-1, 3), keys_weights(position - first)


def _periodic_interpolation(theta: np.ndarray, s: np.ndarray, grid: ParallelBeam) -> sparse.csr_matrix:
    """Rays (theta, s) from the parallel grid; beyond [0, pi) the grid goes on with p(theta + pi, s) = p(theta, -s)."""
    view, view_weight = _taps(theta.ravel() / np.pi * grid.views)
    turns = np.floor_divide(view, grid.views)
    column, column_weight = _taps(s.ravel() / grid.bin_mm + (grid.bins - 1) / 2)
    flipped = (grid.bins - 1) - column
    odd = (turns % 2 != 0)[:, :, None]
    columns = np.where(odd, flipped[:, None, :], column[:, None, :])
    # A mirrored axis is the same interpolation: the weights belong to the taps, which are mirrored as a whole.
    return _matrix(
        view[:, :, None] % grid.views,
        columns,
        view_weight[:, :, None] * column_weight[:, None, :],
        grid.views,
        grid.bins,
    )


def _fan_interpolation(beta: np.ndarray, gamma: np.ndarray, fan: FanBeam) -> sparse.csr_matrix:
    """Rays (beta, gamma) from the fan grid, beta periodic."""
    beta, gamma = np.broadcast_arrays(beta, gamma)
    offset = gamma if fan.detector == "arc" else np.tan(gamma)
    view, view_weight = _taps(beta.ravel() / (2 * np.pi) * fan.views)
    column, column_weight = _taps(offset.ravel() * fan.source_detector_mm / fan.pitch_mm + (fan.bins - 1) / 2)
    return _matrix(
        view[:, :, None] % fan.views,
        np.broadcast_to(column[:, None, :], (len(view), 4, 4)),
        view_weight[:, :, None] * column_weight[:, None, :],
        fan.views,
        fan.bins,
    )


def _matrix(view: np.ndarray, column: np.ndarray, weight: np.ndarray, views: int, bins: int) -> sparse.csr_matrix:
    view = np.broadcast_to(view, weight.shape)
    rows = np.broadcast_to(np.arange(len(weight))[:, None, None], weight.shape)
    keep = (column >= 0) & (column < bins) & (weight != 0)
    data = weight[keep]
    return sparse.csr_matrix((data, (rows[keep], (view * bins + column)[keep])), shape=(len(weight), views * bins))


def _sparse(matrix: Any, sinograms: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    flat = sinograms.reshape(len(sinograms), -1)
    return (matrix @ flat.T).T.reshape(-1, *shape).astype(sinograms.dtype)


class _Linear(torch.autograd.Function):
    """A linear map with its transpose as gradient; differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, apply: Callable, transpose: Callable | None) -> torch.Tensor:
        ctx.map, ctx.transposed = apply, transpose
        array = x.detach().to("cpu").numpy()
        if array.dtype not in (np.float32, np.float64):
            raise TypeError(f"The projector takes float32 or float64, got {x.dtype}.")
        out = apply(array.reshape(-1, *array.shape[-2:]))
        return torch.from_numpy(np.ascontiguousarray(out)).reshape(*x.shape[:-2], *out.shape[-2:]).to(x.device)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        if ctx.transposed is None:
            raise RuntimeError("FBP has no gradient here: differentiate through `forward` and `adjoint`.")
        return _Linear.apply(gradients[0], ctx.transposed, ctx.map), None, None


def _complex(dtype: Any) -> Any:
    return np.complex64 if np.dtype(dtype) == np.float32 else np.complex128


def _check_shape(x: torch.Tensor, shape: tuple[int, int], name: str) -> None:
    if x.ndim < 2 or tuple(x.shape[-2:]) != tuple(shape):
        raise ValueError(f"The {name} must be (..., {shape[0]}, {shape[1]}), got {tuple(x.shape)}.")
