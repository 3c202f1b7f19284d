"""Drawing implicit solids onto a voxel grid in patient coordinates: the tools of the phantom.

Everything is a function of the position in mm (x to the left, y to the back, z to the head), so the same anatomy can
be drawn at any spacing and neighbouring slices agree.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

Points = tuple[np.ndarray, np.ndarray, np.ndarray]  # z, y, x in mm, broadcast to one shape
Vector = Sequence[float] | np.ndarray
Distance = Callable[[Points], np.ndarray]

_WARP_REACH_MM = 14.0  # no point is displaced further than that: margin of the bounding boxes


class NoiseLattice:
    """Smooth random field of unit variance, periodic, with linear interpolation: the same at every spacing."""

    def __init__(self, rng: np.random.Generator, cell_mm: float, cells: int = 48, smooth: float = 0.7) -> None:
        values = ndimage.gaussian_filter(rng.normal(size=(cells,) * 3), smooth, mode="wrap")
        self.values = (values / values.std()).astype(np.float32)
        self.cell_mm = cell_mm

    def __call__(self, points: Points) -> np.ndarray:
        shape = np.broadcast_shapes(*(p.shape for p in points))
        where = np.stack([np.broadcast_to(p, shape) / self.cell_mm for p in points])
        return ndimage.map_coordinates(self.values, where, order=1, mode="grid-wrap", output=np.float32)


class Canvas:
    """HU, organ labels and the warped positions of a grid, painted back to front.

    Args:
        z_mm: slice positions.
        shape: (height, width).
        pixel_mm: (y, x).
        warp: displacement fields for z, y, x with their amplitudes in mm, summed.
        background_hu: value of an empty canvas.
    """

    def __init__(
        self,
        z_mm: np.ndarray,
        shape: tuple[int, int],
        pixel_mm: tuple[float, float],
        warp: Sequence[tuple[Sequence[NoiseLattice], float]],
        background_hu: float,
    ) -> None:
        axes = [z_mm, *((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, pixel_mm))]
        self.axes = [np.asarray(a, dtype=np.float32) for a in axes]
        grid: Points = (self.axes[0][:, None, None], self.axes[1][:, None], self.axes[2])
        self._sorted_axes = [axis.tolist() for axis in self.axes]
        self.size = (len(z_mm), *shape)
        self.still = tuple(np.broadcast_to(g, self.size) for g in grid)
        moved = [g.copy() for g in self.still]
        for lattices, amplitude_mm in warp:
            for component, lattice in zip(moved, lattices):
                component += np.clip(amplitude_mm * lattice(grid), -2 * amplitude_mm, 2 * amplitude_mm)
        self.points = moved
        self.pixel_mm = float(min(pixel_mm))
        self.hu = np.full(self.size, background_hu, dtype=np.float32)
        self.labels = np.zeros(self.size, dtype=np.uint8)
        self._texture: np.ndarray | None = None

    def mixed_texture(self, fine: NoiseLattice, coarse: NoiseLattice) -> np.ndarray:
        """The patient's texture of about unit variance on the warped positions of the whole grid, evaluated once."""
        if self._texture is None:
            points: Points = (self.points[0], self.points[1], self.points[2])
            self._texture = 0.75 * fine(points) + 0.66 * coarse(points)
        return self._texture

    def forget_texture(self) -> None:
        """Frees the memory of `mixed_texture`."""
        self._texture = None

    def box(self, lower: Vector, upper: Vector) -> tuple[slice, slice, slice] | None:
        """Slices of the grid that may see a solid between `lower` and `upper` (z, y, x) in mm; None if none can."""
        slices = []
        for axis, low, high in zip(self._sorted_axes, lower, upper):
            first = bisect_left(axis, low - _WARP_REACH_MM)
            last = bisect_left(axis, high + _WARP_REACH_MM)
            if first >= last:
                return None
            slices.append(slice(first, last))
        return slices[0], slices[1], slices[2]

    def near(self, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """Which of n solids between `lower` and `upper`, (n, 3) in mm, have a `box`: all at once, for trees."""
        seen = np.ones(len(lower), dtype=bool)
        for axis, low, high in zip(self.axes, lower.T, upper.T):
            seen &= np.searchsorted(axis, low - _WARP_REACH_MM) < np.searchsorted(axis, high + _WARP_REACH_MM)
        return seen

    def coverage(
        self, distance: Distance, bounds: tuple[Vector, Vector] | None, *, warped: bool = True
    ) -> tuple[tuple[slice, slice, slice], np.ndarray] | None:
        """Anti-aliased coverage in [0, 1] of a solid given by its signed distance (negative inside), and its box."""
        box = (slice(None),) * 3 if bounds is None else self.box(*bounds)
        if box is None:
            return None
        source = self.points if warped else self.still
        cover = np.clip(0.5 - distance((source[0][box], source[1][box], source[2][box])) / self.pixel_mm, 0.0, 1.0)
        return (box, cover.astype(np.float32)) if cover.any() else None

    def paint(
        self,
        distance: Distance,
        hu: float | np.ndarray,
        *,
        label: int = 0,
        bounds: tuple[Vector, Vector] | None = None,
        only_on: Sequence[int] = (),
        warped: bool = True,
    ) -> None:
        """Paints a solid.

        Args:
            distance: signed distance in mm.
            hu: one value, or a field on the whole grid.
            label: organ label for voxels more than half covered; 0 leaves the labels.
            bounds: (lower, upper) corner (z, y, x) in mm of the solid before the warp; None for no bound.
            only_on: labels that may be painted over; empty for all.
            warped: whether the solid moves with the anatomy (the table does not).
        """
        found = self.coverage(distance, bounds, warped=warped)
        if found is None:
            return
        box, cover = found
        if only_on:
            paintable = np.zeros(256, dtype=bool)  # a table: far quicker than np.isin on small boxes
            paintable[list(only_on)] = True
            cover = cover * paintable[self.labels[box]]
        value = hu[box] if isinstance(hu, np.ndarray) else hu
        self.hu[box] += cover * (value - self.hu[box])
        if label:
            self.labels[box][cover > 0.5] = label


def ellipsoid(centre: Vector, radii: Vector, power: float = 2.0) -> Distance:
    """Super-ellipsoid |z/rz|^n + |y/ry|^n + |x/rx|^n = 1; an infinite radius makes a cylinder. First-order distance."""

    def distance(points: Points) -> np.ndarray:
        level: np.ndarray = np.zeros((), dtype=np.float32)
        slope: np.ndarray = np.zeros((), dtype=np.float32)
        for p, c, r in zip(points, centre, radii):
            if not np.isfinite(r):
                continue
            q = np.abs(p - c) / r
            level = level + q**power
            slope = slope + (q ** (power - 1.0) / r) ** 2
        level = np.maximum(level, 1e-6)
        gradient = level ** (1.0 / power - 1.0) * np.sqrt(slope)
        return (level ** (1.0 / power) - 1.0) / np.maximum(gradient, 0.5 / max(r for r in radii if np.isfinite(r)))

    return distance


def capsule(start: Vector, end: Vector, radius: float, end_radius: float | None = None) -> Distance:
    """Round-ended (tapered) rod between two points (z, y, x)."""
    a, b = np.asarray(start, dtype=np.float32), np.asarray(end, dtype=np.float32)
    along = b - a
    squared = float(along @ along) or 1e-6
    last = radius if end_radius is None else end_radius

    def distance(points: Points) -> np.ndarray:
        t = np.clip(sum((p - c) * d for p, c, d in zip(points, a, along)) / squared, 0.0, 1.0)
        away = sum((p - c - t * d) ** 2 for p, c, d in zip(points, a, along))
        return np.sqrt(away) - (radius + t * (last - radius))

    return distance


def capsule_bounds(start: Vector, end: Vector, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Bounding box of a capsule."""
    return np.minimum(start, end) - radius, np.maximum(start, end) + radius


def ellipsoid_bounds(centre: Vector, radii: Vector) -> tuple[np.ndarray, np.ndarray]:
    """Bounding box of an ellipsoid."""
    return np.asarray(centre) - np.asarray(radii), np.asarray(centre) + np.asarray(radii)


def grow_tree(
    rng: np.random.Generator,
    root: Vector,
    direction: Vector,
    radius: float,
    length: float,
    depth: int,
) -> list[tuple[np.ndarray, np.ndarray, float, float]]:
    """A branching vessel: (start, end, radius, end radius) of each segment; children obey Murray's law r^3 = sum r_i^3."""
    start, heading = np.asarray(root, dtype=float), np.asarray(direction, dtype=float)
    heading = heading / np.linalg.norm(heading)
    end = start + heading * length
    segments = [(start, end, radius, 0.85 * radius)]
    if depth == 0:
        return segments
    share = rng.uniform(0.35, 0.65)
    for part in (share, 1.0 - share):
        turned = heading + rng.normal(0.0, 0.45, 3)
        child = 0.85 * radius * part ** (1 / 3)
        segments += grow_tree(rng, end, turned, child, length * rng.uniform(0.7, 0.95), depth - 1)
    return segments
