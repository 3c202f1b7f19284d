"""What a training step minimises."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from ..residual import encode_condition, encode_residual, scan_vector
from ..schedulers import (
    alpha_sigma,
    check_scheduler_config,
    network_timesteps,
    sample_shift,
    without_pure_noise,
    x0_to_v,
)
from .draws import draw_timesteps_and_noise


class Objective(Protocol):
    """`objective(batch, seeds)` -> {"loss": scalar tensor, ...numbers to log}."""

    def __call__(self, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor) -> dict[str, Any]: ...


Prepare = Callable[[Mapping[str, torch.Tensor], torch.Tensor], tuple[Mapping[str, torch.Tensor], torch.Tensor]]


class PreparedObjective:
    """An objective whose batch is made on the training device, from what the dataset gives.

    Args:
        prepare: gets the dataset's batch and the items' seeds, returns a batch and a seed for each of its items, such as
            `diffusers_ct.data.OnlineSimulation`.
        objective: of what it returns.
    """

    def __init__(self, prepare: Prepare, objective: Objective) -> None:
        self.prepare = prepare
        self.objective = objective

    def __call__(self, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor) -> dict[str, Any]:
        return self.objective(*self.prepare(batch, seeds))


class ResidualDiffusionObjective:
    """v-prediction of the residual between full and low dose, given the low dose.

    r = (full - low) / s, x_t = alpha_t r + sigma_t eps, loss = mean (model(x_t, t, low) - v)^2 without weights. A
    fraction of the samples stands at the last step, where the signal-to-noise ratio is zero and v = -r: there the
    optimum is -E[r | low], the minimum-mean-square-error estimate that one sampling step returns, and the network is shown
    zeros in place of the noise (`without_pure_noise`). Against a target
    that shares its noise with the low dose, the optimum keeps the shared part.

    Args:
        model: takes (sample, timestep, pooled=..., spacing_mm=...) and returns an output with `.sample`.
        noise_scheduler: v-prediction with zero terminal SNR, from `make_noise_scheduler`; a `CTAdaptiveDDIMScheduler`
            takes the conditions that it adapts to from the batch, by name.
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
        count = self.noise_scheduler.config.num_train_timesteps
        timesteps, eps = draw_timesteps_and_noise(seeds, residual, count, terminal_fraction=self.terminal_fraction)
        shift = sample_shift(self.noise_scheduler, batch)
        alpha, sigma = alpha_sigma(self.noise_scheduler, timesteps, log_snr_shift=shift)
        x_t = alpha * residual + sigma * eps
        target = x0_to_v(residual, eps, alpha, sigma)
        told = network_timesteps(self.noise_scheduler, timesteps, shift)
        prediction = self.predict(without_pure_noise(x_t, alpha), told, batch, seeds)
        errors = (prediction.float() - target).square().mean(dim=(1, 2, 3, 4))
        terminal = timesteps == count - 1
        logs = {"loss": errors.mean()}
        if terminal.any():
            logs["loss_terminal"] = errors[terminal].mean().detach()
        return logs

    def predict(
        self, x_t: torch.Tensor, told: torch.Tensor, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor
    ) -> torch.Tensor:
        """The model's v for noisy residuals (batch, 1, depth, height, width), at the times `told` to it."""
        noise_hu, spacing_mm = batch["noise_hu"], batch["spacing_mm"]
        sample = torch.cat([x_t, encode_condition(batch["low_hu"].float(), noise_hu)], dim=1)
        return self.model(sample, told, pooled=scan_vector(noise_hu, spacing_mm), spacing_mm=spacing_mm).sample
