"""Evaluating a network tile by tile as if on the whole scan: overlapping tiles with smooth weights.

The noisy field itself is never tiled: at each step all tiles are cut from one field, evaluated and blended back into
one prediction (Bar-Tal et al. 2023, MultiDiffusion, arXiv:2302.08113, eq. 5), so neighbouring tiles cannot drift.
"""

from collections.abc import Callable, Iterator
from itertools import product

import torch

Size = tuple[int, int, int]


def tile_starts(size: int, tile: int, overlap: int) -> list[int]:
    """First voxels of tiles of length `tile` that cover `size` with at least `overlap` voxels in common.

    Raises:
        ValueError: if the overlap leaves no progress.
    """
    if tile >= size:
        return [0]
    step = tile - overlap
    if step < 1:
        raise ValueError(f"A tile of {tile} voxels cannot overlap its neighbour by {overlap}.")
    return [*range(0, size - tile, step), size - tile]


def tiles(size: Size, tile: Size, overlap: Size) -> Iterator[tuple[slice, slice, slice]]:
    """Boxes of all tiles of a (depth, height, width) field."""
    starts = [tile_starts(n, t, o) for n, t, o in zip(size, tile, overlap)]
    for corner in product(*starts):
        z, y, x = (slice(a, a + min(t, n)) for a, t, n in zip(corner, tile, size))
        yield z, y, x


def blend_weight(box: tuple[slice, slice, slice], size: Size, overlap: Size) -> torch.Tensor:
    """Weight (depth, height, width) of a tile: 1 inside, falling as a squared sine over each overlap.

    The outermost half of an overlap counts for nothing: it saw the tile's edge. At the scan's own edge it stays 1.
    """
    ramps = []
    for span, n, reach in zip(box, size, overlap):
        position = torch.arange(span.stop - span.start, dtype=torch.float32) + 0.5
        weight = torch.ones_like(position)
        margin = reach / 4.0
        if reach:
            width = max(reach - 2.0 * margin, 1.0)
            if span.start > 0:
                weight = weight * torch.sin(0.5 * torch.pi * ((position - margin) / width).clip(1e-3, 1.0)) ** 2
            if span.stop < n:
                from_end = (span.stop - span.start) - position
                weight = weight * torch.sin(0.5 * torch.pi * ((from_end - margin) / width).clip(1e-3, 1.0)) ** 2
        ramps.append(weight)
    return ramps[0][:, None, None] * ramps[1][:, None] * ramps[2]


def evaluate_tiled(
    evaluate: Callable[[tuple[slice, slice, slice]], torch.Tensor], batch: int, size: Size, tile: Size, overlap: Size
) -> torch.Tensor:
    """Blends `evaluate(box)`, (batch, 1, *box), over all tiles into (batch, 1, *size) float32."""
    boxes = list(tiles(size, tile, overlap))
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
