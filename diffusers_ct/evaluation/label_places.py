"""Places for the labels of points, so that none covers another label, a point, or a line from a point to its label."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

# Up to this distance a label needs no line to its point.
NEAR = 16.0
_DISTANCES = (8.0, 12.0, 16.0, 24.0, 34.0, 46.0, 60.0, 76.0, 96.0, 120.0, 150.0)
_ANGLES_DEGREES = (0, 30, -30, 180, 150, -150, 90, -90, 60, -60, 120, -120)
_ORDERS = 200
_FORBIDDEN = 1000.0
Side = Literal["left", "center", "right"]


@dataclass(frozen=True)
class Place:
    """Of a label: where its near side is, from its point, and which side that is."""

    offset: tuple[float, float]
    side: Side


@dataclass(frozen=True, eq=False)
class _Candidates:
    """All places of one label: (candidates, 4) boxes x0 y0 x1 y1, (candidates, samples, 2) lines, (candidates,) costs."""

    places: list[Place]
    boxes: np.ndarray
    lines: np.ndarray
    costs: np.ndarray


def place_labels(
    points: np.ndarray, sizes: np.ndarray, *, frame: tuple[float, float, float, float], radius: float
) -> list[Place]:
    """Near places without overlap, where there are any: the best of several orders in which labels choose.

    Args:
        points: (labels, 2) x and y, in one unit with all else.
        sizes: (labels, 2) width and height of the labels.
        frame: x0, y0, x1, y1 that labels stay in.
        radius: of the points.
    """
    candidates = [_candidates(k, points, sizes, frame, radius) for k in range(len(points))]
    rng = np.random.default_rng(0)
    best, least = np.zeros(len(points), int), np.inf
    for _ in range(_ORDERS):
        chosen, cost = _choose(candidates, rng.permutation(len(points)), least)
        if cost < least:
            best, least = chosen, cost
    return [c.places[k] for c, k in zip(candidates, best)]


def _choose(candidates: list[_Candidates], order: np.ndarray, least: float) -> tuple[np.ndarray, float]:
    """Each label in turn takes its cheapest place; gives up where the sum passes `least`."""
    chosen = np.zeros(len(candidates), int)
    boxes = np.empty((0, 4))
    lines = np.empty((0, candidates[0].lines.shape[1], 2))
    total = 0.0
    for k in order:
        own = candidates[k]
        clashes = _overlap(own.boxes[:, None], boxes[None]).sum(axis=1)
        clashes += _hits(own.lines[:, None], boxes[None]).sum(axis=1) + _hits(lines[None], own.boxes[:, None]).sum(
            axis=1
        )
        cost = own.costs + _FORBIDDEN * clashes
        chosen[k] = int(np.argmin(cost))
        total += float(cost[chosen[k]])
        if total >= least:
            break
        boxes = np.vstack([boxes, own.boxes[chosen[k]][None]])
        lines = np.concatenate([lines, own.lines[chosen[k]][None]])
    return chosen, total


def _candidates(
    k: int, points: np.ndarray, sizes: np.ndarray, frame: tuple[float, float, float, float], radius: float
) -> _Candidates:
    places = list(_places())
    offsets = np.array([place.offset for place in places])
    share = np.array([{"left": 0.0, "center": 0.5, "right": 1.0}[place.side] for place in places])
    width, height = sizes[k]
    near = points[k] + offsets
    x0, y0 = near[:, 0] - share * width, near[:, 1] - height / 2
    boxes = np.stack([x0, y0, x0 + width, y0 + height], axis=1)
    lines = points[k] + offsets[:, None] * np.linspace(0.0, 1.0, 24)[None, :, None]
    markers = np.concatenate([points - radius, points + radius], axis=1)
    others = np.delete(markers, k, axis=0)
    wrong = _overlap(boxes[:, None], markers[None]).sum(axis=1) + _hits(lines[:, None], others[None]).sum(axis=1)
    left, bottom, right, top = frame
    wrong += (boxes[:, 0] < left) | (boxes[:, 1] < bottom) | (boxes[:, 2] > right) | (boxes[:, 3] > top)
    return _Candidates(places, boxes, lines, np.hypot(*offsets.T) + _FORBIDDEN * wrong)


def _places() -> Iterator[Place]:
    for distance in _DISTANCES:
        for degrees in _ANGLES_DEGREES:
            x, y = distance * np.cos(np.radians(degrees)), distance * np.sin(np.radians(degrees))
            side: Side = "left" if x > 1e-6 else "right" if x < -1e-6 else "center"
            yield Place((float(x), float(y)), side)


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether boxes (..., 4) share any area."""
    return (a[..., 0] < b[..., 2]) & (b[..., 0] < a[..., 2]) & (a[..., 1] < b[..., 3]) & (b[..., 1] < a[..., 3])


def _hits(lines: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Whether lines (..., samples, 2) touch boxes (..., 4)."""
    x, y = lines[..., 0], lines[..., 1]
    b = boxes[..., None, :]
    return np.any((b[..., 0] < x) & (x < b[..., 2]) & (b[..., 1] < y) & (y < b[..., 3]), axis=-1)
