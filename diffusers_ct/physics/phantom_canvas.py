"""A voxel grid onto which the phantom's solids are painted, and the smooth random fields that bend and texture it.

Everything is a function of the position in mm (x to the left, y to the back, z to the head), so the same anatomy can
be drawn at any spacing and neighbouring slices agree.
"""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from .phantom_solids import Points, Solid

Box = tuple[slice, slice, slice]
Warp = Sequence[tuple[Sequence["NoiseLattice"], float]]


class NoiseLattice:
    """Smooth random field of unit variance, periodic, with linear interpolation: the same at every spacing."""

    def __init__(self, rng: np.random.Generator, cell_mm: float, cells: int = 48, smooth: float = 0.7) -> None:
        values = ndimage.gaussian_filter(rng.normal(size=(cells,) * 3), smooth, mode="wrap")
        self.values = (values / values.std()).astype(np.float32)
        self.cell_mm = cell_mm

    def __call__(self, points: Points) -> np.ndarray:
        """The field at any positions in mm."""
        shape = np.broadcast_shapes(*(p.shape for p in points))
        where = np.stack([np.broadcast_to(p, shape) / self.cell_mm for p in points])
        return ndimage.map_coordinates(self.values, where, order=1, mode="grid-wrap", output=np.float32)

    def on_grid(self, axes: Sequence[np.ndarray]) -> np.ndarray:
        """The field on the grid of three axes in mm: one axis after the other, far quicker than position by position."""
        field = self.values
        for axis, positions in enumerate(axes):
            where = np.asarray(positions, dtype=np.float64) / self.cell_mm
            first = np.floor(where).astype(np.int64)
            shape = [1, 1, 1]
            shape[axis] = len(where)
            share = (where - first).astype(np.float32).reshape(shape)
            low, high = (np.take(field, (first + step) % len(self.values), axis=axis) for step in (0, 1))
            high -= low
            high *= share
            low += high
            field = low
        return field


class Canvas:
    """HU, organ labels and the warped positions of a grid, painted back to front.

    Args:
        z_mm: slice positions.
        shape: (height, width).
        pixel_mm: (y, x).
        warp: displacement fields for z, y, x with their amplitudes in mm, summed; each is cut at twice its amplitude.
        textures: fields with their weights, summed.
        background_hu: value of an empty canvas.
    """

    def __init__(
        self,
        z_mm: np.ndarray,
        shape: tuple[int, int],
        pixel_mm: tuple[float, float],
        warp: Warp,
        textures: Sequence[tuple[NoiseLattice, float]],
        background_hu: float,
    ) -> None:
        axes = [z_mm, *((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, pixel_mm))]
        self.axes = [np.asarray(a, dtype=np.float32) for a in axes]
        self._sorted_axes = [axis.tolist() for axis in self.axes]
        self.size = (len(z_mm), *shape)
        grid: Points = (self.axes[0][:, None, None], self.axes[1][:, None], self.axes[2])
        self.still: Points = tuple(np.broadcast_to(g, self.size) for g in grid)  # type: ignore[assignment]
        moved = [g.copy() for g in self.still]
        for lattices, amplitude_mm in warp:
            for component, lattice in zip(moved, lattices):
                shift = lattice.on_grid(self.axes)
                shift *= amplitude_mm
                component += np.clip(shift, -2.0 * amplitude_mm, 2.0 * amplitude_mm, out=shift)
        self.points: Points = (moved[0], moved[1], moved[2])
        self.pixel_mm = float(min(pixel_mm))
        self._reach_mm = sum(2.0 * amplitude for _, amplitude in warp) + 0.5 * self.pixel_mm + 0.2
        self.hu = np.full(self.size, background_hu, dtype=np.float32)
        self.labels = np.zeros(self.size, dtype=np.uint8)
        self._textures: Sequence[tuple[NoiseLattice, float]] = textures
        self._texture: np.ndarray | None = None

    @property
    def texture(self) -> np.ndarray:
        """The sum of the textures on the whole grid, evaluated once."""
        if self._texture is None:
            self._texture = np.zeros(self.size, dtype=np.float32)
            for lattice, weight in self._textures:
                field = lattice.on_grid(self.axes)
                field *= weight
                self._texture += field
        return self._texture

    def forget_texture(self) -> None:
        """Frees the memory of `texture`."""
        self._texture = None

    def box(self, solid: Solid) -> Box | None:
        """Slices of the grid that may see a solid; None if none can."""
        slices = []
        for axis, low, high in zip(self._sorted_axes, solid.lower, solid.upper):
            first = bisect_left(axis, low - self._reach_mm)
            last = bisect_left(axis, high + self._reach_mm)
            if first >= last:
                return None
            slices.append(slice(first, last))
        return slices[0], slices[1], slices[2]

    def near(self, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """Which of n boxes between `lower` and `upper`, (n, 3) in mm, meet the grid: all at once, for trees."""
        seen = np.ones(len(lower), dtype=bool)
        for axis, low, high in zip(self.axes, lower.T, upper.T):
            seen &= np.searchsorted(axis, low - self._reach_mm) < np.searchsorted(axis, high + self._reach_mm)
        return seen

    def measure(self, solid: Solid, *, warped: bool = True) -> tuple[Box, np.ndarray] | None:
        """Box of a solid and its signed distance in mm there; None if the grid does not meet the box."""
        box = self.box(solid)
        if box is None:
            return None
        source = self.points if warped else self.still
        return box, solid.distance((source[0][box], source[1][box], source[2][box]))

    def coverage(self, solid: Solid, *, warped: bool = True) -> tuple[Box, np.ndarray] | None:
        """Box of a solid and its anti-aliased coverage in [0, 1] there; None if it covers nothing."""
        found = self.measure(solid, warped=warped)
        if found is None:
            return None
        cover = self._cover(found[1], 0.0)
        return (found[0], cover) if cover.any() else None

    def paint(
        self,
        solid: Solid | tuple[Box, np.ndarray] | None,
        hu: float,
        *,
        texture_hu: float = 0.0,
        label: int | None = None,
        inset_mm: float = 0.0,
        only_on: Sequence[int] = (),
        above_mm: float | None = None,
        share: float = 1.0,
        thickness_mm: float | None = None,
        warped: bool = True,
    ) -> None:
        """Paints a solid.

        Args:
            solid: or what `measure` found of it, to paint several layers of one.
            hu: mean inside.
            texture_hu: standard deviation of the texture inside.
            label: organ label for voxels more than half covered; None leaves the labels.
            inset_mm: paints only what lies deeper than that below the surface.
            only_on: labels that may be painted over; empty for all.
            above_mm: paints only what lies in front of that y in mm, which the warp does not move: a gas-fluid level.
            share: factor of the coverage, for what is thinner than a pixel (`thin_share`).
            thickness_mm: paints a sheet of that thickness on the surface instead of the inside.
            warped: whether the solid moves with the anatomy (the table does not).
        """
        found = self.measure(solid, warped=warped) if isinstance(solid, Solid) else solid
        if found is None:
            return
        box, distance = found
        if thickness_mm is None:
            cover = self._cover(distance, inset_mm)
        else:
            cover = self._cover(distance, -0.5 * thickness_mm)
            cover -= self._cover(distance, 0.5 * thickness_mm)
        if share != 1.0:
            cover *= share
        if above_mm is not None:
            cover *= self._cover(self.axes[1][box[1]][:, None] - above_mm, 0.0)
        if only_on:
            paintable = np.zeros(256, dtype=np.float32)  # a table: far quicker than np.isin on small boxes
            paintable[list(only_on)] = 1.0
            cover *= paintable[self.labels[box]]
        if not cover.any():
            return
        change = hu - self.hu[box]
        if texture_hu:
            change += texture_hu * self.texture[box]
        change *= cover
        self.hu[box] += change
        if label is not None:
            self.labels[box][cover > 0.5] = label

    def _cover(self, distance: np.ndarray, inset_mm: float) -> np.ndarray:
        cover = distance * (-1.0 / self.pixel_mm)
        cover += 0.5 - inset_mm / self.pixel_mm
        return np.clip(cover, 0.0, 1.0, out=cover).astype(np.float32, copy=False)
