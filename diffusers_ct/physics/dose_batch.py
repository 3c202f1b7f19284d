"""The low-dose simulation for training: a batch at a time, on the device that the volumes lie on."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from ..hounsfield import MU_WATER_PER_MM, hu_to_mu_per_mm
from .counts import poisson_counts
from .dose import (
    SourceNoise,
    bowtie_transmission,
    image_geometry,
    photons_and_variance,
    projector_of,
    slice_mixing,
)
from .dose_settings import DoseSettings
from .geometry import FanBeam, ParallelBeam
from .projector import Engine

Spacing = tuple[float, float, float]


@torch.no_grad()
def simulate_low_dose_batch(
    volume_hu: torch.Tensor,
    *,
    spacing_mm: Spacing | Sequence[Spacing],
    dose_fraction: torch.Tensor | Sequence[float],
    seeds: Sequence[int],
    source_noise: SourceNoise,
    settings: DoseSettings | Sequence[DoseSettings] | None = None,
    geometry: ParallelBeam | FanBeam | None = None,
    slice_thickness_mm: float | Sequence[float] | None = None,
    engine: Engine = "auto",
) -> torch.Tensor:
    """Adds the noise of a lower dose to a batch of volumes, as `simulate_low_dose` does to one.

    Each item has its own dose, seed, scanner and spacing; its noise depends on these, its shape and the kind of device
    (whose random numbers differ), not on the other items, up to the rounding of the transforms. Slices must be whole
    (their rays cross all of the body); crop patches after the simulation. Items with the same pixel size and shape
    share their transforms. No gradient flows through it. What it is not exact about: see `simulate_low_dose`.

    Args:
        volume_hu: (batch, 1, depth, height, width) in HU, float32 or float64, on any device.
        spacing_mm: (z, y, x), y and x equal; one for all items or one for each.
        dose_fraction: (batch,) in (0, 1].
        seeds: (batch,) of the items' noise.
        source_noise: "noise_free" or "normal_dose", of all items.
        settings: of the scanner, one for all items or one for each; None for the defaults of `DoseSettings`.
        geometry: rays, of all items; None for `ParallelBeam.for_image` of each item's spacing.
        slice_thickness_mm: larger than the slice spacing where slices overlap; one for all items or one for each;
            None for slices as thick as their spacing.
        engine: "auto" uses torch's own transforms for volumes that are not on the CPU; see `Projector`.

    Returns:
        Like `volume_hu`: (batch, 1, depth, height, width) in HU.

    Raises:
        ValueError: for a wrong shape, dose, spacing or choice, or if not all lists have an entry for each item.
    """
    if volume_hu.ndim != 5 or volume_hu.shape[1] != 1:
        raise ValueError(f"`volume_hu` must be (batch, 1, depth, height, width), got {tuple(volume_hu.shape)}.")
    count, _, depth, height, width = volume_hu.shape
    spacings = _each(spacing_mm, count, "spacing_mm", one=isinstance(spacing_mm[0], (int, float)))
    doses = _each([float(dose) for dose in dose_fraction], count, "dose_fraction")
    seeds = _each([int(seed) for seed in seeds], count, "seeds")
    scanners = _each(settings or DoseSettings(), count, "settings", one=isinstance(settings, DoseSettings | None))
    thick = _each(
        slice_thickness_mm, count, "slice_thickness_mm", one=isinstance(slice_thickness_mm, float | int | None)
    )
    thick = [thickness or spacing[0] for thickness, spacing in zip(thick, spacings, strict=True)]
    exposures = [photons_and_variance(s, a, source_noise, t) for s, a, t in zip(scanners, doses, thick, strict=True)]
    groups: dict[ParallelBeam | FanBeam, list[int]] = {}
    for item, spacing in enumerate(spacings):
        groups.setdefault(geometry or image_geometry((height, width), spacing), []).append(item)

    low_hu = volume_hu.clone()

    def add_noise(rays: ParallelBeam | FanBeam, items: list[int]) -> None:
        projector = projector_of(rays, engine)
        difference = projector.forward(hu_to_mu_per_mm(volume_hu[items, 0]))
        for k, item in enumerate(items):
            difference[k] = _difference(difference[k], rays, scanners[item], exposures[item], seeds[item])
        noise = projector.fbp(difference, [scanners[item].window for item in items]) * (1000.0 / MU_WATER_PER_MM)
        for k, item in enumerate(items):
            mixing = slice_mixing(depth, spacings[item][0], thick[item])
            if mixing is not None:
                noise[k] = torch.tensordot(torch.from_numpy(mixing).to(noise), noise[k], dims=1)
            low_hu[item, 0] += noise[k]

    parts = [(rays, [i for i in items if exposures[i] is not None]) for rays, items in groups.items()]
    if volume_hu.device.type == "cpu":  # an item a thread: that keeps its arrays in the cache
        parts = [(rays, [item]) for rays, items in parts for item in items]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(lambda part: add_noise(*part), parts))
    else:
        for rays, items in parts:
            if items:
                add_noise(rays, items)
    return low_hu


def _difference(
    clean: torch.Tensor,
    rays: ParallelBeam | FanBeam,
    settings: DoseSettings,
    exposure: tuple[float, float] | None,
    seed: int,
) -> torch.Tensor:
    """Noisy minus clean line integrals of an item, (depth, views, bins)."""
    photons, variance = exposure or (0.0, 0.0)
    generator = torch.Generator(clean.device).manual_seed(seed)
    bowtie = torch.from_numpy(bowtie_transmission(rays, settings.bowtie_half_width_rad)).to(clean.dtype)
    bowtie = bowtie.to(clean.device)
    difference = torch.empty_like(clean)
    # One slice after the other on the CPU, where its arrays stay in the cache; all at once elsewhere.
    step = 1 if clean.device.type == "cpu" else len(clean)
    for start in range(0, len(clean), step):
        part = clean[start : start + step]
        rate = photons * bowtie
        if settings.modulation_alpha:
            current = torch.exp(settings.modulation_alpha * (part - bowtie.log()).amax(dim=-1, keepdim=True))
            rate = rate * (current / current.mean(dim=-2, keepdim=True))
        expected = rate * torch.exp(-part)
        counts = poisson_counts(expected, torch.empty_like(part).normal_(generator=generator))
        if variance > 0:
            counts.add_(torch.empty_like(part).normal_(generator=generator), alpha=float(np.sqrt(variance)))
        difference[start : start + step] = -torch.log(counts.clamp_(min=settings.count_floor).div_(expected))
    return difference


def _each(value: Any, count: int, name: str, *, one: bool = False) -> list:
    values = [value] * count if one else list(value)
    if len(values) != count:
        raise ValueError(f"`{name}` must have an entry for each of the {count} items, got {len(values)}.")
    return values
