"""How a low-dose scan and its residual are shown to a network, and how the network's answer becomes HU again.

The residual is r = (x - LD) / s with s the noise level of the low-dose scan, so that r has unit scale at every
dose (a zero network is the identity, and HU are exact in float32 whatever precision the network runs in).
Data, training and pipelines share this file, so that what a model is trained on is what it is given in use.
Every function here is pointwise in (y, x): the encoding of a patch is the patch of the encoding.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from .hounsfield import hu_to_unit

# Reading-room windows keep HU resolution in low precision; the last two channels are in units of the noise, so that
# noise has the same contrast at every dose in soft tissue and in lung.
CONDITION_WINDOWS = ("full", "soft_tissue", "lung")
NOISE_WINDOW_CENTRES_HU = (40.0, -850.0)
NOISE_WINDOW_HALF_WIDTH = 8.0  # in noise levels
CONDITION_CHANNELS = len(CONDITION_WINDOWS) + len(NOISE_WINDOW_CENTRES_HU)

SCAN_VECTOR_DIM = 3
NOISE_LEVEL_VERSION = "mad-highpass-1"
_MIN_NOISE_HU = 1.0
_NOISE_TISSUE_HU = ((-150.0, 200.0), (-950.0, 1000.0))
_ENOUGH_PIXELS = 400


def estimate_noise_hu(volume_hu: np.ndarray) -> np.ndarray:
    """Noise level of each slice, smoothed along z.

    1.4826 x the median absolute value of (slice - 5 x 5 mean) over soft tissue away from edges (-150 to 200 HU,
    eroded; wider ranges where a slice has too little of it). It is a *scale* that follows the noise, not the
    exact SD: noise of long correlation length is underestimated.

    Args:
        volume_hu: (depth, height, width) in HU.

    Returns:
        (depth,) float32 in HU, at least 1.
    """
    if volume_hu.ndim != 3:
        raise ValueError(f"`volume_hu` must be (depth, height, width), got shape {volume_hu.shape}.")
    return smooth_noise_levels([slice_noise_hu(np.asarray(image, dtype=np.float32)) for image in volume_hu])


def smooth_noise_levels(slice_levels_hu: Sequence[float]) -> np.ndarray:
    """The end of `estimate_noise_hu`, for a scan that is not in memory: levels of all its slices -> (depth,) float32."""
    levels = np.array(slice_levels_hu, dtype=np.float32)
    if len(levels) > 1:
        levels = ndimage.gaussian_filter1d(levels, 1.5, mode="nearest")
    return np.maximum(levels, _MIN_NOISE_HU).astype(np.float32)


def slice_noise_hu(image_hu: np.ndarray) -> float:
    """Noise level of one slice, (height, width) float32 in HU, before `smooth_noise_levels`."""
    smooth = ndimage.uniform_filter(image_hu, 5, mode="nearest")
    detail = np.abs(image_hu - smooth)
    # Tissue is selected on the smoothed image: selecting on the noisy one would truncate the noise.
    for lower, upper in _NOISE_TISSUE_HU:
        mask = (smooth > lower) & (smooth < upper)
        mask = ndimage.binary_erosion(mask, iterations=3)
        if mask.sum() >= _ENOUGH_PIXELS:
            return float(1.4826 * np.median(detail[mask]))
    return float(1.4826 * np.median(detail))


def noise_level_hu(volume_hu: torch.Tensor) -> torch.Tensor:
    """`estimate_noise_hu` in torch, on the device of the volume: for low doses made while training.

    Args:
        volume_hu: (depth, height, width) in HU.

    Returns:
        (depth,) float32 in HU, at least 1, on the same device.
    """
    if volume_hu.ndim != 3:
        raise ValueError(f"`volume_hu` must be (depth, height, width), got shape {tuple(volume_hu.shape)}.")
    image = volume_hu.float()[:, None]
    smooth = functional.avg_pool2d(functional.pad(image, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    detail, smooth = (image - smooth).abs()[:, 0], smooth[:, 0]
    masks = [_eroded((smooth > low) & (smooth < high)) for low, high in _NOISE_TISSUE_HU]
    levels = []
    for k in range(len(image)):
        mask = next((m[k] for m in masks if m[k].sum() >= _ENOUGH_PIXELS), None)
        values = detail[k].flatten() if mask is None else detail[k][mask]
        levels.append(1.4826 * values.quantile(0.5) if len(values) < 2**24 else 1.4826 * values.median())
    level = torch.stack(levels)
    if len(level) > 1:
        reach = int(4.0 * 1.5 + 0.5)
        weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=level.device) / 1.5) ** 2)
        padded = functional.pad(level[None, None], (reach, reach), mode="replicate")
        level = functional.conv1d(padded, (weights / weights.sum())[None, None])[0, 0]
    return level.clip(min=_MIN_NOISE_HU)


def _eroded(mask: torch.Tensor) -> torch.Tensor:
    """Three erosions by the cross of four neighbours; outside counts as empty."""
    for _ in range(3):
        wide = functional.pad(mask, (1, 1, 1, 1))
        mask = mask & wide[:, :-2, 1:-1] & wide[:, 2:, 1:-1] & wide[:, 1:-1, :-2] & wide[:, 1:-1, 2:]
    return mask


def encode_condition(low_hu: torch.Tensor, noise_hu: torch.Tensor) -> torch.Tensor:
    """Image condition of the network.

    Args:
        low_hu: (batch, 1, depth, height, width) in HU.
        noise_hu: (batch, depth) from `estimate_noise_hu`.

    Returns:
        (batch, CONDITION_CHANNELS, depth, height, width) float32 in [-1, 1].
    """
    low_hu = low_hu.float()
    scale = _per_slice(noise_hu, low_hu) * NOISE_WINDOW_HALF_WIDTH
    channels = [hu_to_unit(low_hu, name) for name in CONDITION_WINDOWS]
    channels += [((low_hu - centre) / scale).clip(-1.0, 1.0) for centre in NOISE_WINDOW_CENTRES_HU]
    return torch.cat(channels, dim=1)


def encode_residual(full_hu: torch.Tensor, low_hu: torch.Tensor, noise_hu: torch.Tensor) -> torch.Tensor:
    """r = (full - low) / s, (batch, 1, depth, height, width) float32."""
    return (full_hu.float() - low_hu.float()) / _per_slice(noise_hu, low_hu)


def decode_residual(residual: torch.Tensor, low_hu: torch.Tensor, noise_hu: torch.Tensor) -> torch.Tensor:
    """HU = low + s r, float32; the inverse of `encode_residual`."""
    return low_hu.float() + residual.float() * _per_slice(noise_hu, low_hu)


def scan_vector(noise_hu: torch.Tensor, spacing_mm: torch.Tensor) -> torch.Tensor:
    """What every scan tells of itself, about zero mean and unit spread: noise level, in-plane and slice spacing.

    Args:
        noise_hu: (batch, depth) in HU.
        spacing_mm: (batch, 3) as (z, y, x).

    Returns:
        (batch, SCAN_VECTOR_DIM) float32.
    """
    noise = torch.log2(noise_hu.float().mean(dim=1) / 20.0)
    in_plane = torch.log2(spacing_mm[:, 1].float() / 0.75)
    between = torch.log2(spacing_mm[:, 0].float() / 2.0)
    return torch.stack([noise, in_plane, between], dim=1)


def _per_slice(noise_hu: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if noise_hu.shape != (like.shape[0], like.shape[2]):
        raise ValueError(
            f"`noise_hu` must be (batch, depth) = ({like.shape[0]}, {like.shape[2]}), got {tuple(noise_hu.shape)}."
        )
    return noise_hu.to(like.device, torch.float32)[:, None, :, None, None]
