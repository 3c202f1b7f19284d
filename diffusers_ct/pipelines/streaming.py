"""Restoring a scan slab by slab: it is read, sampled and handed on some slices at a time, and is never whole in memory."""

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..image_conditions import encode_images
from ..residual import decode_residual, encode_condition, scan_vector, slice_noise_hu, smooth_noise_levels
from ..schedulers import CTAdaptiveDDIMScheduler
from ..volume import ScanSlices
from .conditioning import encode_conditions, numbers_of, read_elsewhere
from .guided_network import Box, GuidanceSettings, GuidedNetwork
from .restoration_cost import PeakMemory, RestorationCost, check_fits, counted_bytes, free_bytes
from .sampling import choose_tile, extra_step_kwargs, padded_size
from .scan_norms import ScanNorms
from .slab_wave import Block, Predict, SlabLayout, Stage, batches, run_wave
from .tiling import Size, tiles

# Along z 6 slices left seams of up to 0.9 HU in 4 steps of ct-unet25d-s with rms norm, 8 slices 0.15 HU.
_OVERLAP: Size = (8, 64, 64)
_READ_SLICES = 8
_SHARE_OF_GPU = 0.6  # of what is free, given to activations: counted ones leave out the workspaces of convolutions
_MOST_TOGETHER = 8
_NORM_TILES, _NORM_ROUNDS = 5, 3  # spread over the scan, for the statistics of group norm: see `scan_norms`
# Of a process that keeps what it frees, measured on a CPU: the memory of a tile for that of its counted activations (with
# the convolutions' workspaces), and of many tiles for that of the first, as not every gap left by one fits the next.
_TAKEN_FOR_COUNTED, _HEAP_GROWS = 1.5, 1.2
_FEW_EVALUATIONS = 8  # of the network: fewer are not worth an extra one to learn how long they take


@dataclass(frozen=True)
class RestoredSlab:
    """Some slices of the result.

    Attributes:
        z: which.
        hu: (slices, height, width) float32, mean of the samples.
        uncertainty_hu: their standard deviation; None for one sample.
    """

    z: slice
    hu: np.ndarray
    uncertainty_hu: np.ndarray | None


class RestorationStream:
    """The restoration of one scan as an iterator of `RestoredSlab`, in the order of the slices.

    Memory does not grow with the number of slices (beyond steps x slab). It is that of one tile, of the slices that are
    between the first step and the last, and of the headers that `scan.source` holds. The result is that of tiling the
    whole field at every step, as `CTDiffusionPipeline` does; only the noise is another: that of a slice depends on
    (seed, sample, slice) alone, so slabs of any size are cut from one field.

    With `norm_type="rms"` the result differs from the untiled one near seams alone: by up to 0.15 HU with the default
    overlap, not at all where the outermost quarter of the overlap exceeds the network's reach along z. Group norm takes
    its statistics from the tile, by which tiles could differ by tens of HU: see `norm_statistics`.

    Args:
        pipe: a pipeline that restores; it is run unguided, and image conditions count as missing.
        scan: low-dose scan; its slices are read twice, first for their noise level.
        num_inference_steps: see `CTDiffusionPipeline.__call__`, and so are the others.
        num_samples: all samples go through together, so what is held between the steps grows with them.
        seed: of the noise.
        tile_size: (depth, height, width).
        tile_overlap: (z, y, x); None is 8 slices and 64 rows and columns, or half a tile where that is less.
        batch: tiles, of any sample, that the network is given at a time; None fills a GPU and is 1 on a CPU. It changes
            speed and memory, not the result.
        ignore_contract: promises not to check.
        norm_statistics: of group norm, "scan" to gather them first from tiles spread over the scan and use the same for
            all (see `ScanNorms`), which takes the time of three times as many, up to 15, or "tile".
        told: f(calls of the network done, of how many), after each of them; what it raises ends the restoration.

    Attributes:
        evaluations: tiles x samples x steps that the network is given, with those for the statistics.
        unchecked: promises of the contract that could not be checked.
        left_out: what the scan's header says and the checkpoint does not know.

    Raises:
        ValueError: for what cannot be used, as `CTDiffusionPipeline.__call__`.
        ContractError: for a scan outside the checkpoint's contract.
        DoesNotFitError: if not even the counted memory is free.
    """

    def __init__(
        self,
        pipe: Any,
        scan: ScanSlices,
        *,
        num_inference_steps: int = 1,
        num_samples: int = 1,
        seed: int = 0,
        tile_size: Size | None = None,
        tile_overlap: Size | None = None,
        batch: int | None = None,
        ignore_contract: Sequence[str] = (),
        norm_statistics: str = "scan",
        told: Callable[[int, int], Any] | None = None,
    ) -> None:
        # 1. check what needs no voxels
        if pipe.config.target != "residual":
            raise ValueError("This checkpoint synthesises: only one that restores can be given a low-dose scan.")
        if norm_statistics not in ("scan", "tile"):
            raise ValueError(f"`norm_statistics` must be 'scan' or 'tile', got {norm_statistics!r}.")
        pipe.check_inputs(num_inference_steps, num_samples, 1 if batch is None else batch, "np", tile_size, ())
        self._pipe, self._scan, self._samples, self._seed, self._told = pipe, scan, num_samples, seed, told
        self._device: torch.device = pipe._execution_device
        elsewhere = read_elsewhere(pipe, [], describing=True)
        fields, self.left_out = encode_conditions(
            pipe, [scan.conditions], scan.spacing_mm, strict=False, elsewhere=elsewhere
        )
        factor: Size = pipe.unet.size_factor
        size = padded_size(scan.shape, factor)
        if tile_overlap is None:
            tile_overlap = _OVERLAP if tile_size is None else _at_most_half(_OVERLAP, tile_size, factor)
        tile = choose_tile(size, tile_size, tile_overlap, factor)
        self._plane = size[1:]
        self._tile = (min(tile[0], size[0]), min(tile[1], size[1]), min(tile[2], size[2]))
        beside = (0, *tile_overlap[1:])  # along z the tiles are the layout's
        boxes = tiles((self._tile[0], *self._plane), self._tile, beside, factor)
        self._tiles_of_plane = sum(1 for _ in boxes)
        self._scheduler = copy.deepcopy(pipe.scheduler)
        self._step_kwargs = extra_step_kwargs(self._scheduler, 0.0)
        numbers = numbers_of([scan.conditions], scan.spacing_mm)
        if isinstance(self._scheduler, CTAdaptiveDDIMScheduler):
            self._scheduler.set_timesteps(num_inference_steps, self._device, conditions=numbers)
        else:
            self._scheduler.set_timesteps(num_inference_steps, device=self._device)
        self._layout = SlabLayout(size[0], self._tile[0], tile_overlap[0], factor[0])
        self._norms = ScanNorms(pipe.unet)
        # The one tile of a plane that is not tiled, and of a scan no deeper, has the scan's statistics anyway.
        whole = self._tiles_of_plane == 1 and len(self._layout.starts) == 1
        spread = [] if whole or norm_statistics == "tile" or not self._norms else self._layout.spread(_NORM_TILES)
        self._norm_starts = spread * _NORM_ROUNDS
        tiles_along_z = len(self._layout.starts) + len(self._norm_starts)
        self.evaluations = tiles_along_z * self._tiles_of_plane * num_samples * len(self._scheduler.timesteps)
        self._batch = self._that_fits(batch)
        self._layout = replace(self._layout, tiles_together=max(1, self._batch // num_samples))

        # 2. what the network is told of the whole scan
        noise_hu = _noise_levels(scan)
        self.unchecked: list[str] = []
        if pipe.contract is not None:
            self.unchecked = pipe.contract.check(
                spacing_mm=scan.spacing_mm,
                noise_level_hu=(float(noise_hu.min()), float(noise_hu.max())),
                conditions=scan.conditions,
                ignore=ignore_contract,
            )
        padded = np.pad(noise_hu, (0, size[0] - scan.shape[0]), mode="edge")
        self._noise_hu = torch.from_numpy(padded)[None].to(self._device)
        spacing = torch.tensor([scan.spacing_mm], dtype=torch.float32, device=self._device)
        self._network = GuidedNetwork(
            unet=pipe.unet,
            scheduler=self._scheduler,
            condition_encoder=pipe.condition_encoder,
            fields=fields,
            encode_images=lambda box, nulled: None,  # each tile has its own: see `_predict`
            vector=scan_vector(self._noise_hu, spacing),
            spacing_mm=spacing,
            known=(),
            numbers=numbers,
            guidance=GuidanceSettings(),
            tile=self._tile,
            overlap=beside,
            blind_at_zero_snr=True,
        )

    @torch.no_grad()
    def __iter__(self) -> Iterator[RestoredSlab]:
        timesteps = self._scheduler.timesteps
        groups = [[start] for start in self._norm_starts]
        groups += batches(self._layout.starts, self._layout.tiles_together)
        calls = len(timesteps) * sum(-(-len(group) * self._samples // self._batch) for group in groups)
        done = itertools.count(1)
        with self._pipe.progress_bar(total=calls) as bar:

            def counted(predict: Predict) -> Predict:
                def predict_and_count(*given: torch.Tensor) -> torch.Tensor:
                    prediction = predict(*given)
                    bar.update()
                    if self._told is not None:
                        self._told(next(done), calls)
                    return prediction

                return predict_and_count

            self._norms.forget()
            alone = replace(self._layout, depth=self._layout.height_of_tile, tiles_together=1)
            for start in self._norm_starts:
                gather = partial(self._predict_and_gather, self._layout.inner(start))
                for _ in self._restored(alone, timesteps, counted(gather), first=start):
                    pass
                self._norms.keep(start)
            yield from self._restored(self._layout, timesteps, counted(self._predict))
        self._pipe.maybe_free_model_hooks()

    @torch.no_grad()
    def measure(self, seconds_per_written_slice: Callable[[np.ndarray], float] | None = None) -> RestorationCost:
        """Restores the scan's first slab by one step, and tells from it what all will take.

        Args:
            seconds_per_written_slice: told a slice (height, width), what writing it takes.

        Raises:
            DoesNotFitError: if the memory is not free.
        """
        layout, timesteps = self._layout, self._scheduler.timesteps
        tile = layout.tile
        if self.evaluations < _FEW_EVALUATIONS:
            tile = max(tile // 4 // layout.factor, 1) * layout.factor
        together = tile + (layout.tiles_together - 1) * max(tile - layout.overlap, layout.factor)
        half = tile // 2 // layout.factor * layout.factor  # thinner tiles must advance by the network's factor, too
        slab = replace(layout, depth=min(together, layout.depth), tile=tile, overlap=min(layout.overlap, half))
        warm_up = replace(slab, depth=layout.factor, tile=layout.factor, overlap=0)
        list(self._restored(warm_up, timesteps[:1], self._predict))  # what libraries set up at their first call
        in_network = 0.0

        def timed(*given: torch.Tensor) -> torch.Tensor:
            nonlocal in_network
            began = time.perf_counter()
            prediction = self._predict(*given)
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            in_network += time.perf_counter() - began
            return prediction

        free = free_bytes(self._device)
        with PeakMemory(self._device) as memory:
            if self._device.type == "cpu":
                # A process that keeps what it frees asks the kernel for memory once; the other slabs find it there.
                fetched = _TAKEN_FOR_COUNTED * counted_bytes(self._pipe.unet, self._tile) * tile / layout.tile
                torch.empty(int(min(fetched, free / 2)), dtype=torch.uint8).fill_(1)
            began = time.perf_counter()
            restored = list(self._restored(slab, timesteps[:1], timed))
            taken = time.perf_counter() - began
        # Tiles overlap, so slices pass the network more often than they are read.
        beside = taken - in_network
        seconds = beside / slab.depth * (layout.depth + len(self._norm_starts) * layout.height_of_tile)
        evaluations = len(slab.starts) * self._tiles_of_plane * self._samples
        seconds += in_network / evaluations * layout.tile / tile * self.evaluations
        if seconds_per_written_slice is not None:
            seconds += self._scan.shape[0] * seconds_per_written_slice(restored[0].hu[0])
        grows = _HEAP_GROWS if self._device.type == "cpu" else 1.0
        more = (memory.peak - memory.before) * layout.tile / tile * grows
        more += self._held_bytes(len(timesteps), layout) - self._held_bytes(1, slab)
        check_fits(more, free, self._tile, samples=self._samples, steps=len(timesteps))
        return RestorationCost(seconds, memory.before + more, self.evaluations)

    def _restored(
        self, layout: SlabLayout, timesteps: torch.Tensor, predict: Predict, *, first: int = 0
    ) -> Iterator[RestoredSlab]:
        """`layout.depth` slices from `first` on, taken through `timesteps`; they are numbered from there."""

        def block_of(z: slice) -> Block:
            return replace(self._block(slice(first + z.start, first + z.stop)), z=z)

        stages = [Stage(layout, t, predict, self._step_kwargs, self._batch) for t in timesteps]
        depth, height, width = self._scan.shape
        for block in run_wave(map(block_of, layout.blocks), stages):
            low_hu = block.low_hu.expand(self._samples, -1, -1, -1, -1)
            noise_hu = block.noise_hu.expand(self._samples, -1)
            hu = decode_residual(block.latents, low_hu, noise_hu)[
                :, 0, : depth - first - block.z.start, :height, :width
            ]
            if hu.shape[1] == 0:
                continue  # padding alone
            z = slice(block.z.start, block.z.start + hu.shape[1])
            spread = hu.std(dim=0).cpu().numpy() if self._samples > 1 else None
            yield RestoredSlab(z, hu.mean(dim=0).cpu().numpy(), spread)

    def _block(self, z: slice) -> Block:
        """Reads slices, and draws their noise."""
        depth, height, width = self._scan.shape
        there = self._scan.read(min(z.start, depth - 1), min(z.stop, depth))
        low_hu = torch.from_numpy(np.ascontiguousarray(there))[None, None].to(self._device)
        more = [self._plane[1] - width, self._plane[0] - height, z.stop - z.start - len(there)]
        low_hu = F.pad(low_hu, (0, more[0], 0, more[1], 0, more[2]), mode="replicate")
        generators = [
            _slice_generator(self._seed, sample, k) for sample in range(self._samples) for k in range(z.start, z.stop)
        ]
        noise = torch.stack([torch.randn(self._plane, generator=generator) for generator in generators])
        latents = noise.reshape(self._samples, 1, -1, *self._plane).to(self._device)
        latents = latents * getattr(self._scheduler, "init_noise_sigma", 1.0)
        return Block(z, low_hu, self._noise_hu[:, z], latents, copy.deepcopy(self._scheduler), generators)

    def _predict_as_shown(
        self, x_t: torch.Tensor, low_hu: torch.Tensor, noise_hu: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        kinds, mask_classes = self._pipe.image_kinds, self._pipe.config.mask_classes

        def encode(box: Box, nulled: frozenset[str]) -> torch.Tensor:
            cut = low_hu[:, :, *box]
            channels = encode_condition(cut, noise_hu[:, box[0]])
            if not kinds:
                return channels
            return torch.cat([channels, encode_images({}, kinds, like=cut, mask_classes=mask_classes)], dim=1)

        return replace(self._network, encode_images=encode).predict_scaled(x_t, timestep)

    def _predict(self, *given: torch.Tensor) -> torch.Tensor:
        with self._norms.applied(given[-1]):
            return self._predict_as_shown(*given)

    def _predict_and_gather(self, inner: tuple[float, float], *given: torch.Tensor) -> torch.Tensor:
        with self._norms.applied(given[-1]), self._norms.gathered(given[-1], inner):
            return self._predict_as_shown(*given)

    def _that_fits(self, batch: int | None) -> int:
        """The batch, chosen where it is not given; refused if even the counted memory is not free."""
        steps = len(self._scheduler.timesteps)
        activations, held = counted_bytes(self._pipe.unet, self._tile), self._held_bytes(steps, self._layout)
        free = free_bytes(self._device)
        if batch is None and self._device.type == "cuda":
            batch = min(max(int(_SHARE_OF_GPU * (free - held) / activations), 1), _MOST_TOGETHER)
        batch = batch or 1
        check_fits(activations * batch + held, free, self._tile, samples=self._samples, steps=steps)
        return batch

    def _held_bytes(self, steps: int, layout: SlabLayout) -> int:
        """Of the fields between the steps: what waits for its tile, with what the solver remembers, and what overlaps."""
        advance = layout.tile - layout.overlap if layout.depth > layout.tile else layout.depth
        waited_for = layout.tile + (layout.tiles_together - 1) * advance
        slices = min((waited_for - 1) // advance * advance * steps, layout.depth)
        fields = self._samples * (1 + self._scheduler.config.get("solver_order", 1)) + 1
        overlapping = min(layout.overlap * steps, layout.depth) * self._samples
        return 4 * self._plane[0] * self._plane[1] * (slices * fields + overlapping)


def _at_most_half(overlap: Size, tile: Size, factor: Size) -> Size:
    z, y, x = (min(o, n // 2 // f * f) for o, n, f in zip(overlap, tile, factor))
    return z, y, x


def _noise_levels(scan: ScanSlices) -> np.ndarray:
    """Noise level of each slice, as `estimate_noise_hu`; on the way all voxels are checked.

    Raises:
        ValueError: for values that are not finite, or not in HU.
    """
    levels: list[float] = []
    lowest, highest = np.inf, -np.inf
    for start in range(0, scan.shape[0], _READ_SLICES):
        hu = scan.read(start, min(start + _READ_SLICES, scan.shape[0]))
        lowest, highest = min(lowest, float(hu.min())), max(highest, float(hu.max()))
        if not np.isfinite(hu).all():
            raise ValueError("The scan holds values that are not finite.")
        levels += [slice_noise_hu(image) for image in hu]
    if highest - lowest <= 2.0:
        raise ValueError(
            f"The scan's values lie between {lowest:.3g} and {highest:.3g}: that is not in Hounsfield units. Undo the "
            "scaling (air is -1000, water 0)."
        )
    return smooth_noise_levels(levels)


def _slice_generator(seed: int, sample: int, k: int) -> torch.Generator:
    """Of slice `k` of a sample: the same whatever slab it lies in. On the CPU, so that devices do not differ."""
    words = np.random.SeedSequence([seed, sample, k]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]) >> 1)
