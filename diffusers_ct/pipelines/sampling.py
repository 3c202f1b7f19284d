"""The sampling loop, and how a field is laid out for the network: padding, tiles, noise."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..guidance import in_interval
from ..schedulers import CTAdaptiveDDIMScheduler, CTConsistencyScheduler
from ..volume import CTVolume
from .guided_network import GuidanceSettings, GuidedNetwork
from .tiling import Size

_TILE_VOXELS = 2**22  # 16 slices of 512 x 512: some 2 GB of activations in float32 with the small presets
_TILE_WIDTH = 512  # of planes so large that a tile of whole planes would be too thin to overlap its neighbours


@dataclass(frozen=True)
class SamplingSettings:
    """The arguments of `CTDiffusionPipeline.__call__` that restoration and synthesis share; see there."""

    num_inference_steps: int
    num_samples: int
    sample_batch_size: int
    eta: float
    generator: torch.Generator | Sequence[torch.Generator] | None
    tile_size: Size | None
    tile_overlap: Size
    output_type: str
    guidance: GuidanceSettings
    classifier_scale: float | Mapping[str, float]
    callback: Callable[..., dict[str, Any]] | None
    callback_inputs: Sequence[str]

    def batches(self) -> list[slice]:
        """The samples that are evaluated together."""
        n, size = self.num_samples, self.sample_batch_size
        return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def sample(
    pipe: Any,
    network: GuidedNetwork,
    noise: torch.Tensor,
    generators: list[torch.Generator],
    settings: SamplingSettings,
    bar: Any,
) -> torch.Tensor:
    """Runs the scheduler from noise (batch, 1, D, H, W) to the clean field in network units.

    Raises:
        ValueError: for guidance in an interval that none of the steps lies in, or of a distilled network, before the first
            step.
    """
    scheduler = pipe.scheduler
    if isinstance(scheduler, CTConsistencyScheduler) and network.guidance.acts:
        raise ValueError(
            "A distilled checkpoint goes to the end in each step, where nothing is left to guide: leave guidance out, or "
            "load its teacher."
        )
    step_kwargs = extra_step_kwargs(scheduler, settings.eta)
    if "generator" in step_kwargs:
        step_kwargs["generator"] = generators
    if isinstance(scheduler, CTAdaptiveDDIMScheduler):
        scheduler.set_timesteps(settings.num_inference_steps, noise.device, conditions=network.numbers)
    else:
        scheduler.set_timesteps(settings.num_inference_steps, device=noise.device)
    guidance = network.guidance
    inside = in_interval(scheduler.timesteps, guidance.interval, scheduler.config.num_train_timesteps)
    if guidance.acts and not inside.any():
        raise ValueError(
            f"None of the {settings.num_inference_steps} steps lies in the `guidance_interval` {guidance.interval}, so "
            "guidance would do nothing: widen it, or take more steps."
        )
    latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for step, timestep in enumerate(scheduler.timesteps):
        prediction = network.predict(latents, timestep)
        latents = scheduler.step(prediction, timestep, latents, **step_kwargs, return_dict=False)[0]
        if settings.callback is not None:
            tensors = {}
            for name in settings.callback_inputs:
                tensors[name] = latents
            changed = settings.callback(pipe, step, timestep, tensors)
            latents = (changed or {}).get("latents", latents)
        bar.update()
    return latents


def extra_step_kwargs(scheduler: Any, eta: float) -> dict[str, Any]:
    """What `scheduler.step` takes beyond the essentials.

    Raises:
        ValueError: for an `eta` that it does not take.
    """
    accepted = inspect.signature(scheduler.step).parameters
    kwargs: dict[str, Any] = {"generator": None} if "generator" in accepted else {}
    if "eta" in accepted:
        kwargs["eta"] = eta
    elif eta:
        raise ValueError(f"`eta` belongs to DDIM; {type(scheduler).__name__} does not take it.")
    return kwargs


def sample_generators(
    generator: torch.Generator | Sequence[torch.Generator] | None, num_samples: int
) -> list[torch.Generator]:
    """One generator a sample, so that batching and the scheduler's own noise do not mix samples.

    Raises:
        ValueError: for a list of generators that are not as many as the samples.
    """
    if isinstance(generator, Sequence):
        if len(generator) != num_samples:
            raise ValueError(
                f"`generator` is a list of {len(generator)}, `num_samples` is {num_samples}: give one for each, or one."
            )
        return list(generator)
    device = generator.device if generator is not None else "cpu"
    seeds = torch.randint(2**62, (num_samples,), generator=generator, device=device).tolist()
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def padded_size(shape: Size, factor: Size) -> Size:
    """The smallest multiples of the network's factor that hold `shape`."""
    depth, height, width = (n + -n % f for n, f in zip(shape, factor))
    return depth, height, width


def pad_volume(volume: np.ndarray, size: Size) -> torch.Tensor:
    """(1, 1, *size) with the edges repeated."""
    depth, height, width = (n - m for n, m in zip(size, volume.shape))
    return F.pad(torch.from_numpy(volume)[None, None], (0, width, 0, height, 0, depth), mode="replicate")


def choose_tile(size: Size, wanted: Size | None, overlap: Size, factor: Size) -> Size:
    """Whole planes and as many slices as fit the memory meant for a tile, unless the user says otherwise."""
    if wanted is not None:
        return wanted
    depth_factor, *plane_factors = factor
    height, width = size[1:]
    thinnest = -(-2 * overlap[0] // depth_factor) * depth_factor or depth_factor
    if size[0] > thinnest > _TILE_VOXELS // (height * width):
        height, width = (min(n, -(-_TILE_WIDTH // f) * f) for n, f in zip(size[1:], plane_factors))
    slices = max(thinnest, _TILE_VOXELS // (height * width) // depth_factor * depth_factor)
    return min(slices, size[0]), height, width


def as_output_type(hu: np.ndarray, like: CTVolume, output_type: str) -> Any:
    """HU as `CTVolume`, torch tensor or NumPy array."""
    if output_type == "volume":
        return like.with_hu(hu)
    return torch.from_numpy(hu) if output_type == "pt" else hu
