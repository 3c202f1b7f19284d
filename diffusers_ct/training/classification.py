"""What a step of classifier training minimises: the log probability of known facts, seen through noise."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..models.noise_classifier import HEADS
from ..schedulers import alpha_sigma, network_timesteps, sample_shift
from .draws import draw_timesteps_and_noise


class ClassificationObjective:
    """Minus the log probability of what is known of each item, given x_t = alpha_t x0 + sigma_t eps, over all t.

    The loss is the sum over the heads of the mean over the batch, where an unknown label adds 0: so it does not depend
    on how items are spread over processes and accumulated batches. What is logged for a head is the mean over the items
    of which it is known.

    Args:
        model: a `NoiseAwareClassifier`, bare or wrapped.
        noise_scheduler: of the diffusion model that is to be guided.
        first_timestep: timesteps are drawn evenly from here to the last one.

    Raises:
        ValueError: for a `first_timestep` outside the schedule.

    References:
        Dhariwal and Nichol 2021, arXiv:2105.05233, section 4.
    """

    def __init__(self, model: nn.Module, noise_scheduler: Any, *, first_timestep: int = 0) -> None:
        count = noise_scheduler.config.num_train_timesteps
        if not 0 <= first_timestep < count:
            raise ValueError(f"`first_timestep` must lie in 0..{count - 1}, got {first_timestep}.")
        self.model = model
        self.noise_scheduler = noise_scheduler
        self.first_timestep = first_timestep

    def __call__(self, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor) -> dict[str, Any]:
        """One step's loss.

        Args:
            batch: "x0" (batch, channels, depth, height, width) in network units, and fields of `collate_conditions`, of
                which those with a head are targets.
            seeds: (batch,) integers: timestep and noise of an item depend on its seed alone.
        """
        x0 = batch["x0"].float()
        count = self.noise_scheduler.config.num_train_timesteps
        timesteps, eps = draw_timesteps_and_noise(seeds, x0, count)
        timesteps = self.first_timestep + timesteps * (count - self.first_timestep) // count
        shift = sample_shift(self.noise_scheduler, batch)
        alpha, sigma = alpha_sigma(self.noise_scheduler, timesteps, log_snr_shift=shift)
        told = network_timesteps(self.noise_scheduler, timesteps, shift)
        targets = {name: batch[name] for name in HEADS if name in batch}
        # Inside forward, so that data-parallel wrappers see all of it.
        found = self.model(alpha * x0 + sigma * eps, told, targets=targets).log_probabilities
        if not found:
            raise ValueError(
                f"The batch says nothing that the classifier judges: it has {sorted(targets) or 'no labels'}."
            )
        logs = {"loss": -torch.stack(list(found.values())).sum(dim=0).mean()}
        for name, log_p in found.items():
            known = _known(targets[name])
            if known.any():
                logs[f"loss_{name}"] = -log_p[known].detach().mean()
        return logs


def _known(target: torch.Tensor) -> torch.Tensor:
    """(batch,) whether anything is known: not NaN, not class -1, at least one of several findings."""
    known = target.isfinite() if target.is_floating_point() else target >= 0
    return known.reshape(len(known), -1).any(dim=1)
