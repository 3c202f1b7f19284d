"""All sampling steps at once on a scan that is never whole in memory: step after step follows as a wave along z.

A step needs of the step before it only the slices of its own tile, so each step may run a tile behind the one before.
The result is that of tiling the whole field along z at every step (see `tiling`), and what is held is the slices
between the first step and the last: steps x tile, however long the scan.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

from .tiling import axis_weight, tile_starts

# f(latents (rows, 1, depth, height, width), low HU (rows or 1, 1, depth, height, width), noise HU (rows or 1, depth),
# timestep) -> prediction of the same shape as the latents, float32
Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class SlabLayout:
    """How a scan is cut along z.

    Attributes:
        depth: slices, a multiple of the network's factor.
        tile: slices that the network sees at once.
        overlap: of tiles.
        factor: of the network along z.
        tiles_together: tiles of a step that wait for each other, to be evaluated in batches.
    """

    depth: int
    tile: int
    overlap: int
    factor: int = 1
    tiles_together: int = 1

    @property
    def starts(self) -> list[int]:
        """First slice of each tile."""
        return tile_starts(self.depth, self.tile, self.overlap, self.factor)

    def spread(self, most: int) -> list[int]:
        """First slices of at most `most` tiles: of all, or of as many that lie evenly over the scan."""
        if len(self.starts) <= most:
            return self.starts
        room = (self.depth - self.height_of_tile) // self.factor
        return [round(k * room / max(most - 1, 1)) * self.factor for k in range(most)]

    def inner(self, start: int) -> tuple[float, float]:
        """The part of the tile from `start` on that is nearer to its middle than to a neighbour's, as fractions of it."""
        margin = self.overlap // 2 / self.height_of_tile
        return margin if start > 0 else 0.0, 1.0 - margin if start + self.height_of_tile < self.depth else 1.0

    @property
    def blocks(self) -> list[slice]:
        """What is finished once a tile is done: all that lies before the next tile."""
        starts = self.starts
        return [slice(a, b) for a, b in zip(starts, [*starts[1:], self.depth])]

    @property
    def height_of_tile(self) -> int:
        """Slices of a tile, which a short scan does not fill."""
        return min(self.tile, self.depth)


@dataclass(frozen=True)
class Block:
    """Some slices on their way through the steps.

    Attributes:
        z: which.
        low_hu: (1, 1, slices, height, width) of the low-dose scan.
        noise_hu: (1, slices) noise level.
        latents: (samples, 1, slices, height, width) noisy field.
        scaled: the same as the network is shown it; made by the scheduler for the step to come.
        scheduler: of this block alone: solvers of several steps remember earlier ones.
        generators: of each slice of each sample, sample after sample, for schedulers that draw noise.
    """

    z: slice
    low_hu: torch.Tensor
    noise_hu: torch.Tensor
    latents: torch.Tensor
    scheduler: Any
    generators: list[torch.Generator]
    scaled: torch.Tensor | None = None

    def shown(self, timestep: torch.Tensor) -> "Block":
        """With the input of the network at `timestep`."""
        scaled = self.scheduler.scale_model_input(as_slices(self.latents), timestep)
        return replace(self, scaled=scaled.reshape(self.latents.shape))

    def stepped(self, prediction: torch.Tensor, timestep: torch.Tensor, step_kwargs: dict[str, Any]) -> "Block":
        """One step further; every slice is a sample of its own for the scheduler, and draws its own noise."""
        if "generator" in step_kwargs:
            step_kwargs = {**step_kwargs, "generator": self.generators}
        sample, output = as_slices(self.latents), as_slices(prediction)
        latents = self.scheduler.step(output, timestep, sample, **step_kwargs, return_dict=False)[0]
        return replace(self, latents=latents.reshape(self.latents.shape), scaled=None)


def as_slices(field: torch.Tensor) -> torch.Tensor:
    """(samples, 1, slices, height, width) -> (samples x slices, 1, height, width)."""
    return field.reshape(-1, 1, *field.shape[3:])


class Stage:
    """One step of the wave: takes blocks in their order and gives those that the step is done with."""

    def __init__(
        self, layout: SlabLayout, timestep: torch.Tensor, predict: Predict, step_kwargs: dict[str, Any], batch: int
    ) -> None:
        self._layout, self._timestep, self._predict = layout, timestep, predict
        self._step_kwargs, self._batch = step_kwargs, batch
        self._starts = layout.starts
        self._done = 0  # tiles
        self._window: list[Block] = []  # in reach of tiles to come
        self._total: torch.Tensor | None = None  # weighted predictions of the slices from the window's first on
        self._weights: torch.Tensor | None = None

    def feed(self, block: Block) -> Iterator[Block]:
        """Takes the next block; yields the blocks that are finished thereby."""
        self._window.append(block.shown(self._timestep))
        while self._done < len(self._starts):
            group = self._starts[self._done : self._done + self._layout.tiles_together]
            if block.z.stop < group[-1] + self._layout.height_of_tile:
                return
            self._add(group)
            self._done += len(group)
            yield from self._finished()

    def _add(self, group: Sequence[int]) -> None:
        """Evaluates the tiles that begin at `group` and adds them, weighted, to what is there."""
        depth = self._layout.height_of_tile
        origin = self._window[0].z.start
        latents = torch.cat([b.scaled for b in self._window if b.scaled is not None], dim=2)
        low_hu = torch.cat([b.low_hu for b in self._window], dim=2)
        noise_hu = torch.cat([b.noise_hu for b in self._window], dim=1)
        samples = len(latents)
        rows = [(start - origin, sample) for start in group for sample in range(samples)]
        predictions = []
        for some in batches(rows, self._batch):
            cuts = [slice(a, a + depth) for a, _ in some]
            x_t = torch.cat([latents[s : s + 1, :, cut] for cut, (_, s) in zip(cuts, some)])
            same = all(cut == cuts[0] for cut in cuts)  # samples of one tile: its condition is encoded once
            shown = cuts[:1] if same else cuts
            low = torch.cat([low_hu[:, :, cut] for cut in shown])
            noise = torch.cat([noise_hu[:, cut] for cut in shown])
            predictions += list(self._predict(x_t, low, noise, self._timestep))
        stop = group[-1] - origin + depth
        self._lengthen(stop, latents)
        assert self._total is not None and self._weights is not None
        for (start, sample), prediction in zip(rows, predictions):
            span = slice(start + origin, start + origin + depth)
            weight = axis_weight(span, self._layout.depth, self._layout.overlap).to(prediction.device)
            self._total[sample, :, start : start + depth] += weight[:, None, None] * prediction
            if sample == 0:
                self._weights[start : start + depth] += weight

    def _lengthen(self, slices: int, like: torch.Tensor) -> None:
        there = 0 if self._total is None else self._total.shape[2]
        more = like.new_zeros((len(like), 1, slices - there, *like.shape[3:]), dtype=torch.float32)
        weights = like.new_zeros(slices - there, dtype=torch.float32)
        self._total = more if self._total is None else torch.cat([self._total, more], dim=2)
        self._weights = weights if self._weights is None else torch.cat([self._weights, weights])

    def _finished(self) -> Iterator[Block]:
        """Blocks before the next tile, stepped; what belongs to them is let go."""
        last = self._done == len(self._starts)
        limit = self._layout.depth if last else self._starts[self._done]
        while self._window and self._window[0].z.stop <= limit:
            block = self._window.pop(0)
            assert self._total is not None and self._weights is not None
            size = block.z.stop - block.z.start
            prediction = self._total[:, :, :size] / self._weights[:size, None, None]
            # A copy, so that what was added up so far does not stay.
            self._total, self._weights = self._total[:, :, size:].clone(), self._weights[size:].clone()
            yield block.stepped(prediction, self._timestep, self._step_kwargs)


def run_wave(blocks: Iterable[Block], stages: Sequence[Stage]) -> Iterator[Block]:
    """Blocks after all stages, in their order."""
    for block in blocks:
        under_way = [block]
        for stage in stages:
            under_way = [done for each in under_way for done in stage.feed(each)]
        yield from under_way


def batches(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most `size` items."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some
