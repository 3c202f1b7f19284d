"""Evaluating a network tile by tile as if on the whole scan: overlapping tiles with smooth weights.

The noisy field itself is never tiled: at each step all tiles are cut from one field, evaluated and blended back into
one prediction (Bar-Tal et al. 2023, MultiDiffusion, arXiv:2302.08113, eq. 5), so neighbouring tiles cannot drift.
"""

from collections.abc import Callable, Iterator
from itertools import product

import torch

Size = tuple[int, int, int]


def tile_starts(size: int, tile: int, overlap: int, factor: int = 1) -> list[int]:
    """First voxels of tiles of length `tile` that cover `size` with at least `overlap` voxels in common.

    All are multiples of `factor`: a network that works on patches sees another image on a shifted grid.

    Raises:
        ValueError: if the overlap is negative or leaves no progress.
    """
    if overlap < 0:
        raise ValueError(f"`tile_overlap` must not be negative, got {overlap}.")
    if tile >= size:
        return [0]
    step = (tile - overlap) // factor * factor
    if step < 1:
        raise ValueError(
            f"A tile of {tile} voxels cannot overlap its neighbour by {overlap} and advance by a multiple of {factor}: "
            "give a larger `tile_size` or a smaller `tile_overlap`."
        )
    return [*range(0, size - tile, step), size - tile]


def tiles(size: Size, tile: Size, overlap: Size, factor: Size = (1, 1, 1)) -> Iterator[tuple[slice, slice, slice]]:
    """Boxes of all tiles of a (depth, height, width) field."""
    starts = [tile_starts(n, t, o, f) for n, t, o, f in zip(size, tile, overlap, factor)]
    for corner in product(*starts):
        z, y, x = (slice(a, a + min(t, n)) for a, t, n in zip(corner, tile, size))
        yield z, y, x


def blend_weight(box: tuple[slice, slice, slice], size: Size, overlap: Size) -> torch.Tensor:
    """Weight (depth, height, width) of a tile: the product of `axis_weight` along the three axes."""
    z, y, x = (axis_weight(span, n, reach) for span, n, reach in zip(box, size, overlap))
    return z[:, None, None] * y[:, None] * x


def axis_weight(span: slice, size: int, overlap: int) -> torch.Tensor:
    """Weight along one axis of a tile that covers `span`: 1 inside, falling as a squared sine over each overlap.

    The outermost quarter of an overlap counts for nothing: it saw the tile's edge. At the scan's own edge it stays 1.
    """
    position = torch.arange(span.stop - span.start, dtype=torch.float32) + 0.5
    weight = torch.ones_like(position)
    margin = overlap / 4.0
    if overlap:
        width = max(overlap - 2.0 * margin, 1.0)
        if span.start > 0:
            weight = weight * torch.sin(0.5 * torch.pi * ((position - margin) / width).clip(1e-3, 1.0)) ** 2
        if span.stop < size:
            from_end = (span.stop - span.start) - position
            weight = weight * torch.sin(0.5 * torch.pi * ((from_end - margin) / width).clip(1e-3, 1.0)) ** 2
    return weight


def evaluate_tiled(
    evaluate: Callable[[tuple[slice, slice, slice]], torch.Tensor],
    batch: int,
    size: Size,
    tile: Size,
    overlap: Size,
    factor: Size = (1, 1, 1),
) -> torch.Tensor:
    """Blends `evaluate(box)`, (batch, 1, *box), over all tiles into (batch, 1, *size) float32.

    Equal to the whole once the outermost quarter of the overlap exceeds the reach of a network without norms over
    space; group norm takes its statistics from the tile, so there the tiled result is close, never equal.
    """
    boxes = list(tiles(size, tile, overlap, factor))
    if len(boxes) == 1:
        return evaluate(boxes[0]).float()
    total: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    for box in boxes:
        part = evaluate(box).float()
        weight = blend_weight(box, size, overlap).to(part.device)
        if total is None or weights is None:
            total = torch.zeros(batch, 1, *size, device=part.device)
            weights = torch.zeros(size, device=part.device)
        total[:, :, *box] += weight * part
        weights[box] += weight
    assert total is not None and weights is not None
    return total / weights
