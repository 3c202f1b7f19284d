"""A network as the denoiser that plug-and-play methods take: (x + sigma eps, sigma) -> x0, for any sigma.

It is what deepinv, RED and half-quadratic splitting call a denoiser; none of them is needed here.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from ..schedulers import prediction_to_x0
from ..schedulers.log_snr_shift import equal_snr_timesteps
from .denoiser import per_sample

SigmaDenoiser = Callable[[torch.Tensor, float | torch.Tensor], torch.Tensor]


def denoiser_at_sigma(scheduler: Any, predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> SigmaDenoiser:
    """E[x0 | x0 + sigma eps] of a network that predicts what the scheduler's `prediction_type` says.

        denoiser = denoiser_at_sigma(pipe.scheduler, lambda x_t, t: pipe.unet(x_t, t, pooled=vector).sample)
        x0 = denoiser(x, 0.1)

    x and sigma are in the network's units, in which images span [-1, 1]: for a method that works on [0, 1], call
    `(denoiser(2 x - 1, 2 sigma) + 1) / 2`. Gradients flow through it, where the network's do. Between two steps of the
    schedule the network is told a time in between (see `equal_snr_timesteps`), which it was not trained on, and below the
    first one a time between -1 and 0.

    Args:
        scheduler: of diffusers' DDPM family, with `alphas_cumprod`.
        predict: (x_t (batch, ...), timestep (batch,) float32) -> network output of the shape of x_t, which preserves the
            variance: x_t = alpha (x0 + sigma eps) with alpha = (1 + sigma^2)^(-1/2).

    Returns:
        f(x (batch, ...), sigma: a number, or a tensor of one or of batch numbers) -> x0 of the shape of x. It raises
        ValueError for a sigma that is negative, not finite, or beyond the schedule.

    References:
        Karras et al. 2022, arXiv:2206.00364, table 1 (the two forms of one process); Romano et al. 2017,
        arXiv:1611.02862 (a denoiser as a prior).
    """
    table = scheduler.alphas_cumprod.detach().cpu().double()
    largest = math.sqrt(1.0 / float(table[-1]) - 1.0) if table[-1] > 0 else math.inf

    def denoise(x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        given = torch.as_tensor(sigma).detach().double().cpu().reshape(-1)
        if len(given) not in (1, len(x)):
            raise ValueError(f"`sigma` must be one number or {len(x)}, one for each sample, got {len(given)}.")
        if not (given.isfinite() & (given >= 0.0) & (given <= largest)).all():
            raise ValueError(f"`sigma` must be finite and in [0, {largest:.4g}], got {given.tolist()}.")
        alphas_cumprod = 1.0 / (1.0 + given.square())
        timesteps = equal_snr_timesteps(alphas_cumprod, table).to(x.device).expand(len(x))
        alpha = per_sample(alphas_cumprod.sqrt().to(x.device, x.dtype), x)
        sigma_t = per_sample((1.0 - alphas_cumprod).sqrt().to(x.device, x.dtype), x)
        x_t = alpha * x
        return prediction_to_x0(predict(x_t, timesteps), x_t, alpha, sigma_t, scheduler.config.prediction_type)

    return denoise
