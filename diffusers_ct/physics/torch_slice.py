"""The Fourier slice theorem in plain torch, on the device of its tensors: a batched non-uniform FFT by gridding.

The image is divided by the transform of a Kaiser-Bessel kernel, transformed on a grid of twice the density, and
interpolated at the points with that kernel; the transpose goes back the same way (Fessler and Sutton 2003, IEEE
Trans. Signal Process. 51(2) 560; the kernel's shape: Beatty et al. 2005, IEEE Trans. Med. Imaging 24(6) 799, eq. 5).
Images are real and no point has a negative ky, so that half of the spectrum is enough.
"""

from collections.abc import Iterator

import numpy as np
import torch
from scipy import fft, special

from .fourier_slice import PolarPoints


class TorchSlice:
    """What `FinufftSlice` does, on (n, height, width) and (n, views, bins) tensors of one device and precision.

    Args:
        points: where the spectrum is taken.
        device, dtype: of the tensors, float32 or float64.
        eps: relative error of the transforms; None for 1e-5 in float32 and 1e-12 in float64.
        batch: images at a time, which bounds the memory: three complex numbers per point and image.
    """

    def __init__(
        self, points: PolarPoints, device: torch.device, dtype: torch.dtype, eps: float | None, batch: int
    ) -> None:
        self.points, self.batch = points, batch
        eps = eps or (1e-5 if dtype == torch.float32 else 1e-12)
        self.width = int(np.clip(np.ceil(-np.log10(eps)) + 1, 3, 14))

        def tensor(array: np.ndarray, kind: torch.dtype = dtype) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(kind).to(device)

        complex_dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
        height, width = points.geometry.image_shape
        self.grid_y, self.grid_x = (_grid_size(n) for n in (height, width))
        first_y, weight_y, rows, correction_y = _kernel_taps(points.ky, height, self.grid_y, self.width)
        first_x, weight_x, columns, correction_x = _kernel_taps(points.kx, width, self.grid_x, self.width)
        self.weight_y, self.weight_x = tensor(weight_y), tensor(weight_x)
        self.first = tensor((first_y - rows[0]) * len(columns) + first_x - columns[0], torch.int64)
        self.grid_shape = len(rows), len(columns)
        self.correction = tensor(correction_y[:, None] * correction_x[None, :])
        # Row r of the full spectrum of a real image is the conjugate of row -r: only rows up to half the grid exist.
        wrapped = rows % self.grid_y
        self.mirrored = tensor((wrapped > self.grid_y // 2)[:, None], torch.bool)
        self.rows = tensor(np.where(wrapped > self.grid_y // 2, self.grid_y - wrapped, wrapped), torch.int64)
        self.columns = tensor(columns % self.grid_x, torch.int64)
        # Pixels are counted from 0 in the FFT, from the axis in the geometry.
        phase_y = np.exp(2j * np.pi * rows * (height - 1) / (2 * self.grid_y))
        phase_x = np.exp(2j * np.pi * columns * (width - 1) / (2 * self.grid_x))
        self.phase = tensor(phase_y[:, None] * phase_x[None, :], complex_dtype)
        once = np.arange(self.grid_y // 2 + 1) % (self.grid_y // 2) == 0
        self.row_share = tensor(np.where(once, 1.0, 0.5)[:, None])  # irfft counts the rows between twice
        self.gain = tensor(points.gain)
        self.flat = tensor(points.flat, torch.int64)
        self.hermitian = tensor(points.hermitian / points.padded)
        self.detector = tensor(points.radial_phase, complex_dtype)

    def project(self, images: torch.Tensor, radial: torch.Tensor) -> torch.Tensor:
        """Projections whose spectrum is multiplied by `radial`, (half,) or (n, 1, half)."""
        points, geometry = self.points, self.points.geometry
        out = []
        for start in range(0, len(images), self.batch):
            part = images[start : start + self.batch]
            values = self._image_to_points(part) * self.gain[:, None, None]
            spectrum = values.new_zeros(geometry.views * points.half, len(part), 2)
            spectrum.index_copy_(0, self.flat, values)
            spectrum = torch.view_as_complex(spectrum.permute(1, 0, 2).contiguous())
            spectrum = spectrum.reshape(len(part), geometry.views, points.half)
            spectrum = spectrum * (_rows_of(radial, start, self.batch) * self.detector)
            out.append(torch.fft.irfft(spectrum, points.padded, dim=-1)[..., : geometry.bins])
        return torch.cat(out)

    def backproject(self, sinograms: torch.Tensor, radial: torch.Tensor) -> torch.Tensor:
        """The transpose of `project` with the same `radial`."""
        out = []
        for start in range(0, len(sinograms), self.batch):
            spectrum = torch.fft.rfft(sinograms[start : start + self.batch], self.points.padded, dim=-1)
            filter_ = (_rows_of(radial, start, self.batch) * self.hermitian) * self.detector.conj()
            spectrum = torch.view_as_real(spectrum * filter_).reshape(len(spectrum), -1, 2)
            values = spectrum.permute(1, 0, 2)[self.flat] * self.gain[:, None, None]
            out.append(self._points_to_image(values))
        return torch.cat(out)

    # Points and grid have the images last, (points, n, 2), so that a tap reads or writes whole rows.

    def _image_to_points(self, images: torch.Tensor) -> torch.Tensor:
        half = torch.fft.rfft(images * self.correction, self.grid_y, dim=-2)
        half = _select(half, 1, self.rows)
        half = torch.where(self.mirrored, half.conj(), half)
        grid = _select(torch.fft.fft(half, self.grid_x, dim=-1), 2, self.columns) * self.phase
        grid = torch.view_as_real(grid).permute(1, 2, 0, 3).reshape(-1, 2 * len(images))
        values = grid.new_zeros(len(self.first), grid.shape[1])
        for offset, weight in self._taps():
            values.addcmul_(grid.index_select(0, self.first + offset), weight[:, None])
        return values.reshape(len(values), -1, 2)

    def _points_to_image(self, values: torch.Tensor) -> torch.Tensor:
        count, flat = values.shape[1], values.reshape(len(values), -1)
        rows, columns = self.grid_shape
        grid = flat.new_zeros(rows * columns, flat.shape[1])
        for offset, weight in self._taps():
            grid.index_add_(0, self.first + offset, flat * weight[:, None])
        spectrum = torch.view_as_complex(grid.reshape(rows, columns, count, 2).permute(2, 0, 1, 3).contiguous())
        spectrum = _add_at(spectrum * self.phase.conj(), 2, self.columns, self.grid_x)
        height, width = self.points.geometry.image_shape
        lines = torch.fft.ifft(spectrum, dim=-1, norm="forward")[..., :width]
        half = _add_at(torch.where(self.mirrored, lines.conj(), lines), 1, self.rows, self.grid_y // 2 + 1)
        images = torch.fft.irfft(half * self.row_share, self.grid_y, dim=-2, norm="forward")[..., :height, :]
        return images * self.correction

    def _taps(self) -> Iterator[tuple[int, torch.Tensor]]:
        """For each of the width^2 grid points around a point: its offset in the flat grid, and the weights."""
        for dy in range(self.width):
            for dx in range(self.width):
                yield dy * self.grid_shape[1] + dx, self.weight_y[dy] * self.weight_x[dx]


def _kernel_taps(
    omega: np.ndarray, pixels: int, grid: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """First grid line of each point, weights (width, points), the grid lines used, correction (pixels,).

    Beatty et al. 2005: eq. 3 is the kernel, eq. 4 its transform, eq. 5 its shape parameter.
    """
    density = grid / pixels
    beta = np.pi * np.sqrt((width / density * (density - 0.5)) ** 2 - 0.8)
    position = omega * (grid / (2 * np.pi))
    first = np.ceil(position - width / 2).astype(np.int64)
    distance = first[None, :] + np.arange(width)[:, None] - position
    weight = special.i0(beta * np.sqrt(np.clip(1.0 - (2.0 * distance / width) ** 2, 0.0, None))) / width
    lines = np.arange(first.min(), first.max() + width)
    frequency = (np.arange(pixels) - (pixels - 1) / 2) / grid
    root = np.sqrt(beta**2 - (np.pi * width * frequency) ** 2)  # real: the image fills at most half of the grid
    return first, weight, lines, root / np.sinh(root)


def _grid_size(pixels: int) -> int:
    """An even, quickly transformed size of at least twice the pixels."""
    return 2 * int(fft.next_fast_len(max(pixels, 4), real=True))


def _rows_of(radial: torch.Tensor, start: int, batch: int) -> torch.Tensor:
    return radial if radial.ndim == 1 else radial[start : start + batch]


# Indexing as pairs of real numbers: not every device indexes complex tensors.


def _select(x: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(torch.view_as_real(x).index_select(dim, index))


def _add_at(x: torch.Tensor, dim: int, index: torch.Tensor, size: int) -> torch.Tensor:
    real = torch.view_as_real(x.resolve_conj())
    shape = list(real.shape)
    shape[dim] = size
    return torch.view_as_complex(real.new_zeros(shape).index_add_(dim, index, real))
