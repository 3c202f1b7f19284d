"""The noun that guidance works on: a denoiser, x0 = E[clean sample | x_t], made from a network and turned back into one.

x_t is always variance preserving, x_t = alpha_t x0 + sigma_t eps with alpha_t^2 + sigma_t^2 = 1. Schedulers that keep
another sample (Euler: x0 + sigma eps) give it by `scheduler.scale_model_input`. The score of x_t and the denoiser are
affine in each other (Tweedie: score = (alpha_t x0 - x_t) / sigma_t^2; Efron 2011, doi:10.1198/jasa.2011.tm11181), so a
combination of scores whose weights sum to 1 is the same combination of denoisers.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from ..schedulers import alpha_sigma, prediction_to_x0, x0_to_prediction

# (x_t (batch, ...), timestep () or (batch,)) -> x0 of the shape of x_t
Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def denoiser_from_prediction(scheduler: Any, predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Denoiser:
    """The denoiser of a network that predicts what the scheduler's `prediction_type` says.

    Args:
        scheduler: of diffusers' DDPM family, with `alphas_cumprod`; its timesteps are whole numbers.
        predict: (x_t, timestep) -> network output of the shape of x_t.
    """

    def denoise(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        alpha, sigma = noise_level(scheduler, timestep, x_t)
        prediction = predict(x_t, timestep)
        return prediction_to_x0(prediction, x_t, alpha, sigma, scheduler.config.prediction_type)

    return denoise


def prediction_from_x0(scheduler: Any, x0: torch.Tensor, x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """The network output that `scheduler.step` reads as this clean sample; undoes `denoiser_from_prediction`.

    Args:
        scheduler: as above.
        x0: clean sample, of the shape of x_t.
        x_t: (batch, ...) what the denoiser was given.
        timestep: () or (batch,).
    """
    alpha, sigma = noise_level(scheduler, timestep, x_t)
    return x0_to_prediction(x0, x_t, alpha, sigma, scheduler.config.prediction_type)


def check_scale(name: str, scale: Any) -> float:
    """A guidance scale as a float.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is negative or not finite.
    """
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise TypeError(f"The guidance scale of {name} must be a number, got {scale!r}.")
    if not (math.isfinite(scale) and scale >= 0.0):
        raise ValueError(f"The guidance scale of {name} must be finite and not negative, got {scale}.")
    return float(scale)


def check_interval(interval: tuple[float, float]) -> tuple[float, float]:
    """A guidance interval (first, last) as fractions of the noise process: 0 is clean, 1 is pure noise.

    Raises:
        ValueError: if nothing lies in it, or it leaves [0, 1].
    """
    low, high = (float(bound) for bound in interval)
    if not 0.0 <= low < high <= 1.0:
        raise ValueError(
            f"A guidance interval needs 0 <= first < last <= 1 (fractions of the timesteps, 1 is pure noise), "
            f"got {tuple(interval)}."
        )
    return low, high


def in_interval(timestep: torch.Tensor, interval: tuple[float, float], num_train_timesteps: int) -> torch.Tensor:
    """Whether t / (T - 1) lies in the closed interval: bool, () or (batch,)."""
    fraction = timestep.double() / max(num_train_timesteps - 1, 1)
    return (fraction >= interval[0]) & (fraction <= interval[1])


def per_sample(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """() or (batch,) as (1 or batch, 1, ...) that broadcasts against `like`."""
    return values.reshape((-1,) + (1,) * (like.ndim - 1))


def noise_level(scheduler: Any, timestep: torch.Tensor, x_t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha_t and sigma_t that broadcast against x_t; Euler's timesteps are whole numbers in floating point."""
    return alpha_sigma(scheduler, timestep.to(x_t.device).reshape(-1).round(), x_t.ndim)
