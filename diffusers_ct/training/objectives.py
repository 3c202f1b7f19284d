"""What a training step minimises."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

from ..residual import encode_condition, encode_residual, scan_vector
from ..schedulers import alpha_sigma, check_scheduler_config, x0_to_v


class Objective(Protocol):
    """`objective(batch, seeds)` -> {"loss": scalar tensor, ...numbers to log}."""

    def __call__(self, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor) -> dict[str, Any]: ...


class ResidualDiffusionObjective:
    """v-prediction of the residual between full and low dose, given the low dose.

    r = (full - low) / s, x_t = alpha_t r + sigma_t eps, loss = mean (model(x_t, t, low) - v)^2 without weights. A
    fraction of the samples stands at the last step, where the signal-to-noise ratio is zero and v = -r: there the
    optimum is -E[r | low], the minimum-mean-square-error estimate that one sampling step returns. Against a target
    that shares its noise with the low dose, the optimum keeps the shared part.

    Args:
        model: takes (sample, timestep, pooled=...) and returns an output with `.sample`.
        noise_scheduler: v-prediction with zero terminal SNR, from `make_noise_scheduler`.
        terminal_fraction: of the samples, in [0.2, 1], at the last timestep.

    References:
        Salimans and Ho 2022, arXiv:2202.00512 (v); Lin et al. 2024, arXiv:2305.08891 (zero terminal SNR).
    """

    def __init__(self, model: nn.Module, noise_scheduler: Any, *, terminal_fraction: float) -> None:
        if not 0.2 <= terminal_fraction <= 1.0:
            raise ValueError(
                f"`terminal_fraction` must be in [0.2, 1], got {terminal_fraction}: with fewer samples at the last "
                "step the one-step estimate is not learned."
            )
        check_scheduler_config(noise_scheduler.config)
        if noise_scheduler.config.prediction_type != "v_prediction":
            raise ValueError("The residual objective predicts v: use `prediction_type='v_prediction'`.")
        if not noise_scheduler.config.rescale_betas_zero_snr:
            raise ValueError("The residual objective needs `rescale_betas_zero_snr=True`: see `make_noise_scheduler`.")
        self.model = model
        self.noise_scheduler = noise_scheduler
        self.terminal_fraction = terminal_fraction

    def __call__(self, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor) -> dict[str, Any]:
        """One step's loss.

        Args:
            batch: "low_hu", "full_hu" (batch, 1, depth, height, width), "noise_hu" (batch, depth), "spacing_mm"
                (batch, 3).
            seeds: (batch,) integers: timestep and noise of a sample depend on its seed alone, so that neither the
                number of processes nor of accumulation steps changes a run.
        """
        low_hu, noise_hu = batch["low_hu"].float(), batch["noise_hu"]
        residual = encode_residual(batch["full_hu"], low_hu, noise_hu)
        timesteps, eps = self._draw(seeds, residual)
        alpha, sigma = alpha_sigma(self.noise_scheduler, timesteps)
        x_t = alpha * residual + sigma * eps
        target = x0_to_v(residual, eps, alpha, sigma)
        sample = torch.cat([x_t, encode_condition(low_hu, noise_hu)], dim=1)
        prediction = self.model(sample, timesteps, pooled=scan_vector(noise_hu, batch["spacing_mm"])).sample
        errors = (prediction.float() - target).square().mean(dim=(1, 2, 3, 4))
        terminal = timesteps == self.noise_scheduler.config.num_train_timesteps - 1
        logs = {"loss": errors.mean()}
        if terminal.any():
            logs["loss_terminal"] = errors[terminal].mean().detach()
        return logs

    def _draw(self, seeds: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        last = self.noise_scheduler.config.num_train_timesteps - 1
        timesteps, noise = [], []
        for seed in seeds.tolist():
            # Drawn on the CPU: the same numbers on every device.
            generator = torch.Generator().manual_seed(seed)
            at_end = torch.rand((), generator=generator).item() < self.terminal_fraction
            drawn = torch.randint(0, last + 1, (), generator=generator).item()
            timesteps.append(last if at_end else drawn)
            noise.append(torch.randn(like.shape[1:], generator=generator))
        return torch.tensor(timesteps, device=like.device), torch.stack(noise).to(like.device)
