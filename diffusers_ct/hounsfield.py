"""Hounsfield units, attenuation and the network's range: the only place that converts between them.

All functions take and return NumPy arrays or torch tensors of any shape, and keep the kind they were given; the
companded scale takes tensors only.
"""

from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", np.ndarray, torch.Tensor)

# Stored CT values are 12 bit with intercept -1024 on most scanners (DICOM PS3.3 C.8.2.1): this is the full range.
HU_MIN = -1024.0
HU_MAX = 3071.0
AIR_HU = -1000.0
WATER_HU = 0.0

# Linear attenuation of water at about 70 keV, the effective energy of a 120 kVp beam (NIST XCOM, 0.1923 /cm).
MU_WATER_PER_MM = 0.01923

# (lower, upper) in HU. Reading-room windows as level +- width/2.
WINDOWS_HU: dict[str, tuple[float, float]] = {
    "full": (HU_MIN, HU_MAX),
    "soft_tissue": (-160.0, 240.0),  # W 400 L 40
    "lung": (-1350.0, 150.0),  # W 1500 L -600
    "bone": (-450.0, 1050.0),  # W 1500 L 300
    "brain": (0.0, 80.0),  # W 80 L 40
}


def window_bounds_hu(window: str | tuple[float, float]) -> tuple[float, float]:
    """Returns (lower, upper) in HU of a named window, or checks a pair given as numbers.

    Raises:
        ValueError: if the name is not known or the bounds are not increasing.
    """
    if isinstance(window, str):
        if window not in WINDOWS_HU:
            raise ValueError(f"Unknown window {window!r}: choose one of {sorted(WINDOWS_HU)} or give (lower, upper).")
        return WINDOWS_HU[window]
    lower, upper = (float(bound) for bound in window)
    if not lower < upper:
        raise ValueError(f"A window needs lower < upper in HU, got ({lower}, {upper}).")
    return lower, upper


def hu_to_unit(volume_hu: Array, window: str | tuple[float, float], *, clip: bool = True) -> Array:
    """Maps a HU window linearly to [-1, 1]; values outside are clipped unless `clip` is False."""
    lower, upper = window_bounds_hu(window)
    unit = (volume_hu - lower) * (2.0 / (upper - lower)) - 1.0
    return unit.clip(-1.0, 1.0) if clip else unit


def unit_to_hu(unit: Array, window: str | tuple[float, float]) -> Array:
    """Inverse of `hu_to_unit` inside the window."""
    lower, upper = window_bounds_hu(window)
    return (unit + 1.0) * ((upper - lower) / 2.0) + lower


# Knots (HU, network units) of the companded scale: soft tissue (-160 to 240 HU, a tenth of the full range) gets half of
# it and lung an eighth, so that an error of 0.01 is about 4 HU in soft tissue rather than 20.
_COMPANDING = ((HU_MIN, -1.0), (-700.0, -0.75), (-160.0, -0.5), (240.0, 0.5), (1050.0, 0.8), (HU_MAX, 1.0))


def hu_to_companded(volume_hu: torch.Tensor) -> torch.Tensor:
    """Maps HU to [-1, 1] piecewise linearly with most of the range for soft tissue; clipped to the full HU range.

    The scale of synthesis: an image model's error is the same in network units everywhere, which would be tens of HU
    in soft tissue on a linear scale.
    """
    hu, unit = (torch.tensor(column, dtype=torch.float32, device=volume_hu.device) for column in zip(*_COMPANDING))
    return _interpolate(volume_hu.float(), hu, unit)


def companded_to_hu(companded: torch.Tensor) -> torch.Tensor:
    """Inverse of `hu_to_companded`; values outside [-1, 1] are clipped to the full HU range."""
    hu, unit = (torch.tensor(column, dtype=torch.float32, device=companded.device) for column in zip(*_COMPANDING))
    return _interpolate(companded.float(), unit, hu)


def _interpolate(x: torch.Tensor, knots: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    x = x.clip(knots[0], knots[-1]).contiguous()  # torch warns of a hidden copy otherwise
    left = (torch.bucketize(x, knots, right=True) - 1).clip(0, len(knots) - 2)
    slope = (values[1:] - values[:-1]) / (knots[1:] - knots[:-1])
    return values[left] + slope[left] * (x - knots[left])


def hu_to_mu_per_mm(volume_hu: Array, *, mu_water_per_mm: float = MU_WATER_PER_MM) -> Array:
    """Linear attenuation in 1/mm, clipped at 0: mu = mu_water (1 + HU/1000)."""
    return (mu_water_per_mm * (1.0 + volume_hu / 1000.0)).clip(0.0)


def mu_per_mm_to_hu(mu_per_mm: Array, *, mu_water_per_mm: float = MU_WATER_PER_MM) -> Array:
    """HU = 1000 (mu / mu_water - 1); the inverse of `hu_to_mu_per_mm` at and above -1000 HU."""
    return (mu_per_mm / mu_water_per_mm - 1.0) * 1000.0
