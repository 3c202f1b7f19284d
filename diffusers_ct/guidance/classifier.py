"""Classifier guidance on the denoiser, for any scheduler and prediction type.

Dhariwal and Nichol 2021, arXiv:2105.05233, section 4: score' = score + sum_k s_k grad log p_k(y_k | x_t). With Tweedie's
score = (alpha x0 - x_t) / sigma^2 this is x0' = x0 + (sigma^2 / alpha) sum_k s_k grad log p_k(y_k | x_t).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .denoiser import Denoiser, check_interval, check_scale, in_interval, noise_level, per_sample

# (x_t (batch, ...), timestep () or (batch,)) -> log p(y | x_t), (batch,), differentiable in x_t
LogProbability = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# diffusers' Euler family writes this for an alpha of 0 (alphas_cumprod 2^-24), which it could not divide by.
_ALPHA_OF_PURE_NOISE = 2.0**-12


class ClassifierGuidance:
    """A denoiser guided by classifiers of noisy samples.

    Scale 1 samples the posterior p(x | y) where denoiser and classifier are exact. Several classifiers multiply, which
    is their joint posterior only where the y_k are independent given x_t.

    At zero terminal SNR x_t says nothing of y, the gradient is 0 and alpha is 0: nothing is added at that step, although
    the limit of (sigma^2 / alpha) grad log p is E[x0 | y] - E[x0]. The sampler's first step then aims at the unguided
    mean. A deterministic sampler (DDIM) keeps a trace of it that falls as 1 / steps.

    Args:
        denoiser: what is guided; may itself be guided.
        classifiers: (log probability, scale) of each.
        scheduler: of diffusers' DDPM family, with `alphas_cumprod`.
        interval: where to guide, as fractions of the timesteps (0 clean, 1 pure noise), ends included. A learned
            classifier's gradient is multiplied by sigma^2 / alpha, so its error at high noise is too.

    Raises:
        TypeError: for a scale that is not a number.
        ValueError: for no classifiers, a scale that is negative or not finite, or an empty interval.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        classifiers: Sequence[tuple[LogProbability, float]],
        scheduler: Any,
        *,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        if not classifiers:
            raise ValueError("`classifiers` is empty: give at least one (log probability, scale).")
        self.denoiser = denoiser
        self.classifiers = [(log_p, check_scale(f"classifier {k}", s)) for k, (log_p, s) in enumerate(classifiers)]
        self.scheduler = scheduler
        self.interval = check_interval(interval)

    def __call__(self, x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The guided x0, of the shape of x_t."""
        x0 = self.denoiser(x_t, timestep)
        alpha, sigma = noise_level(self.scheduler, timestep, x_t)
        inside = in_interval(timestep, self.interval, self.scheduler.config.num_train_timesteps).to(x_t.device)
        active = per_sample(inside, x_t) & (alpha > _ALPHA_OF_PURE_NOISE)
        classifiers = [(log_p, s) for log_p, s in self.classifiers if s > 0.0]
        if not classifiers or not active.any():
            return x0
        gradient = self._gradient(classifiers, x_t, timestep)
        per_gradient = torch.where(active, sigma**2 / alpha.clamp(min=_ALPHA_OF_PURE_NOISE), 0.0)
        return x0 + (per_gradient * gradient.float()).to(x0.dtype)

    def _gradient(
        self, classifiers: Sequence[tuple[LogProbability, float]], x_t: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """grad of sum_k s_k log p_k; samples do not see each other, so the sum over the batch keeps them apart."""
        with torch.enable_grad():  # the pipeline samples without gradients
            x = x_t.detach().requires_grad_()
            total = torch.zeros((), device=x.device)
            for log_p, scale in classifiers:
                value = log_p(x, timestep)
                if value.shape != x.shape[:1]:
                    raise ValueError(
                        f"A classifier must return log p of shape ({x.shape[0]},), one a sample; got "
                        f"{tuple(value.shape)}."
                    )
                total = total + scale * value.sum()
            return torch.autograd.grad(total, x)[0]
