"""The Fourier slice theorem on NumPy arrays: images to parallel projections and back, by finufft on the CPU.

The projection of an image at angle theta is, in the Fourier domain, the image's spectrum on the line through the
origin at theta (Bracewell 1956; Kak and Slaney 1988, section 3.2). The spectrum at those polar points is a
non-uniform FFT (finufft: Barnett, Magland and af Klinteberg 2019, SIAM J. Sci. Comput. 41(5) C479).
"""

from collections import OrderedDict
from threading import Lock
from typing import Any

import finufft
import numpy as np
from scipy import fft

from .geometry import ParallelBeam

_PLANS_KEPT = 8


class PolarPoints:
    """The polar frequencies of a parallel geometry that are used, with what the image's pixels make of them.

    Args:
        geometry: of the projections.
        padded: samples of a projection after zero padding: the radial step is 1 / (padded x bin).
        pixel_basis: whether the image is a sum of square pixels (projection) or of points (back-projection).
        radii: how many radial frequencies, from 0 on, are used; None for all.

    Attributes:
        inside: boolean (views, radii): the points within the band of the pixel grid; the others are left out.
        ky, kx: (points,) angular frequencies in radians per pixel; ky is never negative.
        gain: (points,) real factor of the pixel basis.
    """

    def __init__(self, geometry: ParallelBeam, padded: int, *, pixel_basis: bool, radii: int | None = None) -> None:
        self.geometry = geometry
        self.padded = padded
        self.half = padded // 2 + 1
        self.frequencies = np.arange(self.half) / (padded * geometry.bin_mm)
        # How often each of them stands in the full spectrum of a real projection.
        self.hermitian = np.where((np.arange(self.half) % (padded // 2)) == 0, 1.0, 2.0)
        k = self.frequencies[None, : self.half if radii is None else radii]
        kx, ky = np.cos(geometry.angles)[:, None] * k, np.sin(geometry.angles)[:, None] * k
        band = 0.5 / geometry.pixel_mm
        self.inside = (np.abs(kx) < band) & (np.abs(ky) < band)
        kx, ky = kx[self.inside] * geometry.pixel_mm, ky[self.inside] * geometry.pixel_mm
        self.gain = np.sinc(kx) * np.sinc(ky) * geometry.pixel_mm**2 if pixel_basis else np.ones(len(kx))
        self.ky, self.kx = 2 * np.pi * ky, 2 * np.pi * kx
        view, radius = np.nonzero(self.inside)
        self.radius = radius
        self.flat = view * self.half + radius  # where a point lies in the (views, half) spectrum

    @property
    def radial_phase(self) -> np.ndarray:
        """The detector begins at its first bin, not at the axis: (half,) complex."""
        return np.exp(2j * np.pi * self.frequencies * self.geometry.positions_mm[0])


class FinufftSlice:
    """Projection and its transpose with a radial filter, on (n, height, width) and (n, views, bins) arrays.

    Args:
        points: where the spectrum is taken.
        eps: relative error of the transforms; None for 1e-5 in float32 and 1e-12 in float64.
        batch: images per transform.
        threads: of a transform; 1 gives the same bits at each call.
    """

    def __init__(self, points: PolarPoints, eps: float | None, batch: int, threads: int) -> None:
        self.points, self.eps, self.batch = points, eps, batch
        self.threads = threads if len(points.kx) > 20_000 else 1  # starting threads costs more than a small transform
        # finufft counts pixels from -(n // 2); ours are centred on the axis.
        shift_y, shift_x = (n // 2 - (n - 1) / 2 for n in points.geometry.image_shape)
        phase = points.radial_phase[points.radius] * np.exp(-1j * (points.kx * shift_x + points.ky * shift_y))
        self._weight = {np.dtype(c): (phase * points.gain).astype(c) for c in (np.complex64, np.complex128)}
        self._plans: OrderedDict[tuple, list[finufft.Plan]] = OrderedDict()
        self._lock = Lock()

    def project(self, images: np.ndarray, radial: np.ndarray) -> np.ndarray:
        """Projections whose spectrum is multiplied by `radial`, (half,) or (n, 1, half)."""
        points, geometry, dtype = self.points, self.points.geometry, images.dtype
        spectrum = np.zeros((len(images), geometry.views * points.half), dtype=_complex(dtype))
        for start in range(0, len(images), self.batch):
            part = images[start : start + self.batch].astype(spectrum.dtype)
            values = self._execute(2, part, dtype)
            values *= self._weight[spectrum.dtype]
            for row, value in zip(spectrum[start : start + self.batch], values, strict=True):
                row[points.flat] = value
        spectrum = spectrum.reshape(len(images), geometry.views, points.half)
        spectrum *= radial.astype(dtype)
        return np.ascontiguousarray(fft.irfft(spectrum, points.padded, axis=-1)[..., : geometry.bins])

    def backproject(self, sinograms: np.ndarray, radial: np.ndarray) -> np.ndarray:
        """The transpose of `project` with the same `radial`."""
        points, dtype = self.points, sinograms.dtype
        weight = np.conj(self._weight[np.dtype(_complex(dtype))])
        images = np.empty((len(sinograms), *points.geometry.image_shape), dtype=dtype)
        radial = np.broadcast_to(radial * (points.hermitian / points.padded), (len(sinograms), 1, points.half))
        for start in range(0, len(sinograms), self.batch):
            here = slice(start, start + self.batch)
            spectrum = fft.rfft(sinograms[here], points.padded, axis=-1)
            spectrum *= radial[here].astype(dtype)
            values = spectrum.reshape(len(spectrum), -1).take(points.flat, axis=1)
            values *= weight
            images[here] = self._execute(1, values, dtype).real
        return images

    def _execute(self, kind: int, data: np.ndarray, dtype: Any) -> np.ndarray:
        """Type 2 (image to points, sign -) or type 1 (points to image, sign +)."""
        key = (kind, len(data), np.dtype(dtype).str)
        with self._lock:  # a plan serves one thread at a time
            free = self._plans.setdefault(key, [])
            plan = free.pop() if free else None
        plan = plan or self._plan(*key)
        result = plan.execute(data if len(data) > 1 else data[0])
        with self._lock:
            self._plans.setdefault(key, []).append(plan)
            self._plans.move_to_end(key)
            while len(self._plans) > _PLANS_KEPT:
                self._plans.popitem(last=False)
        return result if len(data) > 1 else result[None]

    def _plan(self, kind: int, n_trans: int, dtype: str) -> finufft.Plan:
        real = np.dtype(dtype)
        eps = self.eps or (1e-5 if real == np.float32 else 1e-12)
        shape = self.points.geometry.image_shape
        sign = 1 if kind == 1 else -1
        plan = finufft.Plan(kind, shape, n_trans, eps, isign=sign, dtype=_complex(real), nthreads=self.threads)
        plan.setpts(*(np.ascontiguousarray(c, dtype=real) for c in (self.points.ky, self.points.kx)))
        return plan


def _complex(dtype: Any) -> Any:
    return np.complex64 if np.dtype(dtype) == np.float32 else np.complex128
