"""Implicit solids of the phantom: signed distances in mm, with boxes that hold them, and branching vessels.

Positions are (z, y, x) in mm: z to the head, y to the back, x to the patient's left.

References:
    Murray, The physiological principle of minimum work, 1926, https://doi.org/10.1073/pnas.12.3.207 (r^3 = sum r_i^3)
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Points = tuple[np.ndarray, np.ndarray, np.ndarray]  # z, y, x in mm, broadcast to one shape
Vector = Sequence[float] | np.ndarray
Segment = tuple[np.ndarray, np.ndarray, float, float]  # start, end, radius, end radius
_FAR = (-np.inf,) * 3, (np.inf,) * 3


@dataclass(frozen=True)
class Solid:
    """A signed distance (negative inside, in mm near the surface) and the corners of a box that holds the solid."""

    distance: Callable[[Points], np.ndarray]
    lower: tuple[float, ...] = _FAR[0]
    upper: tuple[float, ...] = _FAR[1]

    def __call__(self, points: Points) -> np.ndarray:
        return self.distance(points)

    def __or__(self, other: "Solid") -> "Solid":
        return union([self, other])

    def __and__(self, other: "Solid") -> "Solid":
        lower = tuple(max(a, b) for a, b in zip(self.lower, other.lower))
        upper = tuple(min(a, b) for a, b in zip(self.upper, other.upper))
        return Solid(lambda points: np.maximum(self.distance(points), other.distance(points)), lower, upper)

    def __sub__(self, other: "Solid") -> "Solid":
        return Solid(lambda points: np.maximum(self.distance(points), -other.distance(points)), self.lower, self.upper)

    def grown(self, by_mm: float) -> "Solid":
        """Everything within a distance of the solid; a negative one shrinks it."""
        lower, upper = tuple(v - by_mm for v in self.lower), tuple(v + by_mm for v in self.upper)
        return Solid(lambda points: self.distance(points) - by_mm, lower, upper)

    def rippled(self, amplitude_mm: float, period_mm: float, along: Vector) -> "Solid":
        """Folds across a direction (z, y, x), as of the bowel's wall."""
        length = float(np.linalg.norm(along)) or 1.0  # without a direction there are no folds
        wave = [2.0 * np.pi * float(v) / length / period_mm for v in along]

        def distance(points: Points) -> np.ndarray:
            phase = wave[0] * points[0] + wave[1] * points[1] + wave[2] * points[2]
            return self.distance(points) + amplitude_mm * (0.5 + 0.5 * np.cos(phase))

        return Solid(distance, self.lower, self.upper)

    def shell(self, thickness_mm: float) -> "Solid":
        """The layer of that thickness around the surface."""
        half = 0.5 * thickness_mm
        lower, upper = tuple(v - half for v in self.lower), tuple(v + half for v in self.upper)
        return Solid(lambda points: np.abs(self.distance(points)) - half, lower, upper)


def union(solids: Iterable[Solid], *, blend_mm: float = 0.0) -> Solid:
    """All of some solids; with `blend_mm` the creases between them are filled smoothly (polynomial smooth minimum)."""
    parts = list(solids)
    lower = tuple(min(s.lower[i] for s in parts) - blend_mm / 4.0 for i in range(3))
    upper = tuple(max(s.upper[i] for s in parts) + blend_mm / 4.0 for i in range(3))

    def distance(points: Points) -> np.ndarray:
        result = parts[0].distance(points)
        for solid in parts[1:]:
            other = solid.distance(points)
            nearest = np.minimum(result, other)
            if blend_mm:
                near = np.maximum(blend_mm - np.abs(result - other), 0.0)
                nearest = nearest - near * near / (4.0 * blend_mm)
            result = nearest
        return result

    return Solid(distance, lower, upper)


def half_space(axis: int, limit_mm: float, *, above: bool) -> Solid:
    """Everything beyond a plane across an axis (0 z, 1 y, 2 x)."""
    sign = -1.0 if above else 1.0
    lower, upper = list(_FAR[0]), list(_FAR[1])
    (lower if above else upper)[axis] = limit_mm
    return Solid(lambda points: sign * (points[axis] - limit_mm), tuple(lower), tuple(upper))


def plane(height_mm: float, slope_y: float, slope_x: float = 0.0) -> Solid:
    """Everything below the plane z = height + slope_y y + slope_x x."""
    norm = float(np.sqrt(1.0 + slope_y**2 + slope_x**2))
    return Solid(lambda points: (points[0] - height_mm - slope_y * points[1] - slope_x * points[2]) / norm)


def ellipsoid(centre: Vector, radii: Vector, power: float = 2.0) -> Solid:
    """Super-ellipsoid |z/rz|^n + |y/ry|^n + |x/rx|^n = 1; an infinite radius makes a cylinder. First-order distance."""
    middle, sizes = [float(c) for c in centre], [float(r) for r in radii]
    finite = [i for i in range(3) if np.isfinite(sizes[i])]
    least_slope = 0.5 / max(sizes[i] for i in finite)

    def distance(points: Points) -> np.ndarray:
        level: np.ndarray = np.zeros((), dtype=np.float32)
        slope: np.ndarray = np.zeros((), dtype=np.float32)
        for i in finite:
            q = np.abs(points[i] - middle[i]) * (1.0 / sizes[i])
            steep = q if power == 2.0 else q * np.sqrt(q) if power == 2.5 else q ** (power - 1.0)
            level = level + steep * q
            slope = slope + (steep * (1.0 / sizes[i])) ** 2
        level = np.maximum(level, 1e-6)
        root = np.sqrt(level) if power == 2.0 else level ** (1.0 / power)
        return (root - 1.0) / np.maximum(root / level * np.sqrt(slope), least_slope)

    return Solid(distance, tuple(c - r for c, r in zip(middle, sizes)), tuple(c + r for c, r in zip(middle, sizes)))


def capsule(start: Vector, end: Vector, radius: float, end_radius: float | None = None) -> Solid:
    """Round-ended (tapered) rod between two points (z, y, x)."""
    a, b = [float(v) for v in start], [float(v) for v in end]
    along = [q - p for p, q in zip(a, b)]
    squared = sum(v * v for v in along) or 1e-6
    first, last = float(radius), float(radius if end_radius is None else end_radius)

    def distance(points: Points) -> np.ndarray:
        away = [p - c for p, c in zip(points, a)]
        t = (away[0] * along[0] + away[1] * along[1] + away[2] * along[2]) * (1.0 / squared)
        t = np.minimum(np.maximum(t, 0.0), 1.0)
        squares = [(p - t * d) ** 2 for p, d in zip(away, along)]
        return np.sqrt(squares[0] + squares[1] + squares[2]) - (first + t * (last - first))

    widest = max(first, last)
    return Solid(
        distance, tuple(min(p, q) - widest for p, q in zip(a, b)), tuple(max(p, q) + widest for p, q in zip(a, b))
    )


def rod(course: Sequence[Vector], radii: float | Sequence[float]) -> Solid:
    """Rods through the points of a course, with one radius or one for each point."""
    sizes = [float(radii)] * len(course) if isinstance(radii, (int, float)) else [float(r) for r in radii]
    ends = list(zip(course, sizes))
    return union([capsule(p, q, r, s) for (p, r), (q, s) in pairwise(ends)])


def plate(a: Vector, b: Vector, c: Vector, thickness_mm: float) -> Solid:
    """A triangular plate with round edges."""
    half = 0.5 * thickness_mm
    corners = [np.asarray(v, dtype=float) for v in (a, b, c)]
    u, v = corners[1] - corners[0], corners[2] - corners[0]
    normal = np.cross(u, v) / np.linalg.norm(np.cross(u, v))
    # Rows of the inverse: p - a = s u + t v + h normal.
    inverse = np.linalg.inv(np.stack([u, v, normal], axis=1)).tolist()
    origin = corners[0].tolist()
    edges = union([capsule(p, q, half) for p, q in zip(corners, [*corners[1:], corners[0]])])

    def distance(points: Points) -> np.ndarray:
        away = [p - o for p, o in zip(points, origin)]
        s, t, height = (row[0] * away[0] + row[1] * away[1] + row[2] * away[2] for row in inverse)
        inside = (s >= 0.0) & (t >= 0.0) & (s + t <= 1.0)
        edge = edges.distance(points)
        return np.where(inside, np.minimum(np.abs(height) - half, edge), edge)

    return Solid(distance, edges.lower, edges.upper)


def thin_share(radius_mm: float, pixel_mm: float) -> float:
    """Factor that gives an anti-aliased rod the cross-section of its radius, however thin it is beside a pixel.

    Coverage clip(0.5 - d/p) of a disc of radius r has the area pi (r^2 + p^2/12) for r >= p/2 and, as a cone of height
    h = 0.5 + r/p, pi h^3 p^2 / 3 below; the true one is pi r^2.
    """
    q = radius_mm / pixel_mm
    return q * q / (q * q + 1.0 / 12.0) if q >= 0.5 else 3.0 * q * q / (0.5 + q) ** 3


def grow_tree(
    rng: np.random.Generator, root: Vector, direction: Vector, radius: float, length: float, depth: int
) -> list[Segment]:
    """A branching vessel; children obey Murray's law r^3 = sum r_i^3 and are never wider than their parent."""
    start, heading = np.asarray(root, dtype=float), np.asarray(direction, dtype=float)
    heading = heading / np.linalg.norm(heading)
    end = start + heading * length
    segments: list[Segment] = [(start, end, radius, 0.85 * radius)]
    if depth == 0:
        return segments
    share = rng.uniform(0.35, 0.65)
    for part in (share, 1.0 - share):
        turned = heading + rng.normal(0.0, 0.45, 3)
        child = 0.85 * radius * part ** (1 / 3)
        segments += grow_tree(rng, end, turned, child, length * rng.uniform(0.7, 0.95), depth - 1)
    return segments
