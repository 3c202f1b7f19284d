"""Fan-beam rays from parallel ones and back, by cubic interpolation as sparse matrices.

References:
    Keys 1981, "Cubic convolution interpolation for digital image processing", IEEE Trans. ASSP 29(6) 1153.
    Kak and Slaney 1988, section 3.4 (fan-beam coordinates).
"""

from typing import Any

import numpy as np
import torch
from scipy import sparse

from .geometry import FanBeam, ParallelBeam


class FanRebinning:
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
        self.back = ((there + back) * 0.5).tocsr()
        self.fan_shape = (fan.views, fan.bins)
        self.parallel_shape = (views, bins)
        self._tables: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}

    # Each takes (n, views, bins): NumPy arrays, or tensors on their own device.

    def apply(self, sinograms: Any) -> Any:
        """Fan rays from parallel ones."""
        return self._map("matrix", sinograms, self.fan_shape, transposed=False)

    def apply_transposed(self, sinograms: Any) -> Any:
        return self._map("matrix", sinograms, self.parallel_shape, transposed=True)

    def rebin(self, sinograms: Any) -> Any:
        """Parallel rays from fan ones."""
        return self._map("back", sinograms, self.parallel_shape, transposed=False)

    def rebin_transposed(self, sinograms: Any) -> Any:
        return self._map("back", sinograms, self.fan_shape, transposed=True)

    def _map(self, name: str, sinograms: Any, shape: tuple[int, int], *, transposed: bool) -> Any:
        matrix = getattr(self, name)
        if isinstance(sinograms, np.ndarray):
            flat = sinograms.reshape(len(sinograms), -1)
            out = ((matrix.T if transposed else matrix) @ flat.T).T
            return np.ascontiguousarray(out.reshape(-1, *shape), dtype=sinograms.dtype)
        flat = sinograms.reshape(len(sinograms), -1).T.contiguous()
        key = (name, sinograms.device, sinograms.dtype)
        if key not in self._tables:
            self._tables[key] = _tap_table(matrix, sinograms.device, sinograms.dtype)
        out = flat.new_zeros(shape[0] * shape[1], flat.shape[1])
        for index, weight in zip(*self._tables[key], strict=True):
            if transposed:
                out.index_add_(0, index, flat * weight[:, None])
            else:
                out.addcmul_(flat.index_select(0, index), weight[:, None])
        return out.T.reshape(-1, *shape)


def _tap_table(
    matrix: sparse.csr_matrix, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The entries of each row as (taps, rows) of column and weight, short rows filled with weight 0."""
    count = np.diff(matrix.indptr)
    table = np.zeros((int(count.max()), len(count)), dtype=np.int32), np.zeros((int(count.max()), len(count)))
    row = np.repeat(np.arange(len(count)), count)
    tap = np.arange(len(matrix.data)) - np.repeat(matrix.indptr[:-1], count)
    table[0][tap, row], table[1][tap, row] = matrix.indices, matrix.data
    return torch.from_numpy(table[0]).to(device), torch.from_numpy(table[1]).to(dtype).to(device)


def keys_weights(fraction: np.ndarray) -> np.ndarray:
    """Weights of the samples at -1, 0, 1, 2 for a point at `fraction` in [0, 1): (..., 4). Keys 1981, eq. 15."""
    t = np.asarray(fraction)
    return 0.5 * np.stack(
        [((2.0 - t) * t - 1.0) * t, (3.0 * t - 5.0) * t**2 + 2.0, ((4.0 - 3.0 * t) * t + 1.0) * t, (t - 1.0) * t**2],
        axis=-1,
    )


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
    """One row a ray, from its taps (rays, taps, taps)."""
    keep = (column >= 0) & (column < bins) & (weight != 0)
    indices = (view.astype(np.int32) * np.int32(bins) + column.astype(np.int32))[keep]
    ends = np.concatenate([[0], np.cumsum(keep.sum(axis=(1, 2)))]).astype(np.int32)
    return sparse.csr_matrix((weight[keep], indices, ends), shape=(len(weight), views * bins))
