"""The forward projector, its exact transpose, and filtered back-projection, through the Fourier slice theorem.

The image is a sum of square pixels and a bin averages over its width, both exactly (two sincs in `PolarPoints` and
`Projector`); what is left out is the spectrum beyond the pixel grid's band. Fan-beam rays are interpolated from the
parallel ones by a sparse matrix (Keys 1981, cubic convolution).
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from scipy import fft

from .fan_rebinning import FanRebinning
from .fourier_slice import FinufftSlice, PolarPoints
from .geometry import FanBeam, ParallelBeam
from .torch_slice import TorchSlice

Window = Callable[[np.ndarray], np.ndarray]
Engine = Literal["auto", "finufft", "torch"]
_SLICES_KEPT = 6


class Projector:
    """A, its adjoint and FBP for a geometry, on torch tensors; all three are differentiable any number of times.

    Images are (..., height, width), attenuation in 1/mm; sinograms are (..., views, bins), line integrals without
    unit. The transforms run in the tensor's precision, float32 or float64: by finufft for tensors on the CPU, and by
    gridding in torch on their own device for all others.

    Args:
        geometry: `ParallelBeam` or `FanBeam`.
        eps: relative error of the transforms; None for 1e-5 in float32 and 1e-12 in float64.
        batch: images per transform, which bounds the memory.
        engine: "auto", "finufft" (tensors of another device are moved to the CPU and back) or "torch".
        threads: of finufft; None for torch's number. With 1, results are the same bits at each call.
    """

    def __init__(
        self,
        geometry: ParallelBeam | FanBeam,
        *,
        eps: float | None = None,
        batch: int = 8,
        engine: Engine = "auto",
        threads: int | None = None,
    ) -> None:
        if engine not in ("auto", "finufft", "torch"):
            raise ValueError(f"`engine` must be 'auto', 'finufft' or 'torch', got {engine!r}.")
        self.geometry = geometry
        self.eps = eps
        self.batch = batch
        self.engine = engine
        self.threads = threads
        self._fan = FanRebinning(geometry) if isinstance(geometry, FanBeam) else None
        self._parallel = geometry if isinstance(geometry, ParallelBeam) else self._fan.parallel  # type: ignore[union-attr]
        # Projections may wrap around as long as nothing comes back onto the detector.
        half_diagonal = np.hypot(*geometry.image_shape) * geometry.pixel_mm / self._parallel.bin_mm / 2
        reach = max(self._parallel.bins, self._parallel.bins / 2 + half_diagonal) + 64
        self._points = PolarPoints(self._parallel, _even_fast_length(reach), pixel_basis=True)
        self._aperture = np.sinc(self._points.frequencies * self._parallel.bin_mm) / self._parallel.bin_mm
        self._fbp_points: OrderedDict[int, PolarPoints] = OrderedDict()
        self._slices: OrderedDict[tuple, FinufftSlice | TorchSlice] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple:
        """Pickled and copied by its arguments: plans and locks stay behind."""
        make = partial(Projector, eps=self.eps, batch=self.batch, engine=self.engine, threads=self.threads)
        return make, (self.geometry,)

    @property
    def image_shape(self) -> tuple[int, int]:
        return self.geometry.image_shape

    @property
    def sinogram_shape(self) -> tuple[int, int]:
        return self.geometry.views, self.geometry.bins

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """A x: line integrals of an attenuation image."""
        _check(image, self.image_shape, "image")
        return _Linear.apply(image, self._forward, self._adjoint)

    def adjoint(self, sinogram: torch.Tensor) -> torch.Tensor:
        """A^T y: the transpose of `forward`, not an inverse."""
        _check(sinogram, self.sinogram_shape, "sinogram")
        return _Linear.apply(sinogram, self._adjoint, self._forward)

    def fbp(self, sinogram: torch.Tensor, window: Window | Sequence[Window]) -> torch.Tensor:
        """Filtered back-projection: attenuation in 1/mm.

        Args:
            sinogram: (..., views, bins).
            window: amplitude of the apodisation at a frequency in cycles/mm, such as a `ReconstructionKernel`; or a
                list of them, one for each entry of the sinogram's first dimension.

        Raises:
            ValueError: if there are not as many windows as sinograms.
        """
        _check(sinogram, self.sinogram_shape, "sinogram")
        windows = [window] if callable(window) else list(window)
        if not callable(window) and (sinogram.ndim < 3 or len(windows) != len(sinogram)):
            raise ValueError(f"Give one window, or one for each of the {len(sinogram)} sinograms, got {len(windows)}.")
        padded = _even_fast_length(2 * self._parallel.bins)
        frequencies = np.arange(padded // 2 + 1) / (padded * self._parallel.bin_mm)
        apodisation = np.stack([np.broadcast_to(w(frequencies), frequencies.shape) for w in windows])
        radial = ramp_filter(padded, self._parallel.bin_mm) * apodisation * (np.pi / self._parallel.views)
        points = self._points_of_fbp(padded, apodisation)
        if len(windows) == 1:
            filters = radial[0]
        else:
            filters = np.repeat(radial, int(np.prod(sinogram.shape[1:-2])), axis=0)[:, None]

        def reconstruct(y: torch.Tensor) -> torch.Tensor:
            return self._backproject(points, self._fan.rebin(y) if self._fan else y, filters)

        def transposed(x: torch.Tensor) -> torch.Tensor:
            y = self._project(points, x, filters)
            return self._fan.rebin_transposed(y) if self._fan else y

        return _Linear.apply(sinogram, self._in_engine(reconstruct), self._in_engine(transposed))

    # The transforms on (n, a, b): NumPy arrays for finufft, tensors for torch.

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        def project(x: Any) -> Any:
            y = self._project(self._points, x, self._aperture)
            return self._fan.apply(y) if self._fan else y

        return self._in_engine(project)(images)

    def _adjoint(self, sinograms: torch.Tensor) -> torch.Tensor:
        def backproject(y: Any) -> Any:
            return self._backproject(self._points, self._fan.apply_transposed(y) if self._fan else y, self._aperture)

        return self._in_engine(backproject)(sinograms)

    def _in_engine(self, transform: Callable) -> Callable[[torch.Tensor], torch.Tensor]:
        def apply(x: torch.Tensor) -> torch.Tensor:
            if self.engine == "torch" or (self.engine == "auto" and x.device.type != "cpu"):
                return transform(x)
            return torch.from_numpy(transform(x.cpu().contiguous().numpy())).to(x.device)

        return apply

    def _project(self, points: PolarPoints, images: Any, radial: np.ndarray) -> Any:
        return self._slice(points, images).project(images, _like(radial, images))

    def _backproject(self, points: PolarPoints, sinograms: Any, radial: np.ndarray) -> Any:
        return self._slice(points, sinograms).backproject(sinograms, _like(radial, sinograms))

    def _slice(self, points: PolarPoints, like: Any) -> Any:
        on_torch = isinstance(like, torch.Tensor)
        key = (points, like.device, like.dtype) if on_torch else (points,)
        with self._lock:
            if key not in self._slices:
                self._slices[key] = (
                    TorchSlice(points, like.device, like.dtype, self.eps, self.batch)
                    if on_torch
                    else FinufftSlice(points, self.eps, self.batch, self.threads or torch.get_num_threads())
                )
            self._slices.move_to_end(key)
            while len(self._slices) > _SLICES_KEPT:
                self._slices.popitem(last=False)
            return self._slices[key]

    def _points_of_fbp(self, padded: int, apodisation: np.ndarray) -> PolarPoints:
        """Points up to where the last window ends, in steps of 1/16 so that few sets of points serve all windows."""
        used = np.flatnonzero(np.abs(apodisation).max(axis=0) > 0)
        half = padded // 2 + 1
        step = -(-half // 16)
        radii = min(half, -(-(int(used[-1]) + 1 if len(used) else 1) // step) * step)
        with self._lock:
            if radii not in self._fbp_points:
                self._fbp_points[radii] = PolarPoints(self._parallel, padded, pixel_basis=False, radii=radii)
            self._fbp_points.move_to_end(radii)
            while len(self._fbp_points) > _SLICES_KEPT:
                self._fbp_points.popitem(last=False)
            return self._fbp_points[radii]


def ramp_filter(padded: int, bin_mm: float) -> np.ndarray:
    """Response of the band-limited ramp on `padded` samples, built in space (Kak and Slaney 1988, eq. 3.61)."""
    n = np.rint(np.fft.fftfreq(padded, 1.0 / padded)).astype(int)
    kernel = np.zeros(padded)
    kernel[n == 0] = 1.0 / (4.0 * bin_mm**2)
    odd = n % 2 != 0
    kernel[odd] = -1.0 / (np.pi * n[odd] * bin_mm) ** 2
    return np.fft.rfft(kernel).real * bin_mm


class _Linear(torch.autograd.Function):
    """A linear map with its transpose as gradient; differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, apply: Callable, transpose: Callable) -> torch.Tensor:
        ctx.map, ctx.transposed = apply, transpose
        out = apply(x.detach().reshape(-1, *x.shape[-2:]))
        return out.reshape(*x.shape[:-2], *out.shape[-2:])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _Linear.apply(gradients[0], ctx.transposed, ctx.map), None, None


def _even_fast_length(samples: float) -> int:
    return 2 * int(fft.next_fast_len(int(np.ceil(samples / 2)), real=True))


def _like(radial: np.ndarray, x: Any) -> Any:
    return torch.from_numpy(radial).to(x.dtype).to(x.device) if isinstance(x, torch.Tensor) else radial


def _check(x: torch.Tensor, shape: tuple[int, int], name: str) -> None:
    if x.ndim < 2 or tuple(x.shape[-2:]) != tuple(shape):
        raise ValueError(f"The {name} must be (..., {shape[0]}, {shape[1]}), got {tuple(x.shape)}.")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"The projector takes float32 or float64, got {x.dtype}.")
