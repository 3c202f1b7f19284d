"""The conditional DDPM that most of the field uses: the image is diffused, and its noise predicted.

Ho et al. 2020, arXiv:2006.11239: 1000 steps, betas linear from 1e-4 to 0.02, simple loss (eq. 14), ancestral sampling with
the posterior's variance; conditioned by concatenation as Saharia et al. 2022 (SR3), arXiv:2104.07636. The image lies in
[-1, 1] by the fixed full range, -1024 to 3071 HU. Left out of SR3: its own network and its continuous noise levels; the
backbone is that of the comparison and is told the timestep. The sampler takes `num_steps` of the 1000 timesteps, and
the image predicted at each is clipped to [-1, 1], which the papers' formulas do not say: at the first of them a small
error of epsilon is 160 times as large in the image.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import nn

from ...hounsfield import hu_to_unit, unit_to_hu
from ...schedulers import alpha_sigma
from ...training.draws import draw_timesteps_and_noise
from ...volume import CTVolume
from .backbone import BackboneBaseline, PaddedScan, call_backbone

TRAIN_TIMESTEPS = 1000


def ddpm_scheduler() -> Any:
    """Linear betas, epsilon prediction, clipped to [-1, 1]; sampling begins at the last timestep."""
    return DDPMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="epsilon",
        variance_type="fixed_small",
        clip_sample=True,
        timestep_spacing="trailing",
    )


class EpsilonObjective:
    """mean (network(x_t, low, t) - eps)^2, x_t = alpha_t y + sigma_t eps, y the full dose in [-1, 1].

    Args:
        network: called as `UNet3DCTModel`.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.noise_scheduler = ddpm_scheduler()

    def __call__(self, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor) -> dict[str, Any]:
        """One step's loss; timestep and noise of an item depend on its seed alone."""
        low_hu, noise_hu = batch["low_hu"].float(), batch["noise_hu"]
        y = hu_to_unit(batch["full_hu"].float(), "full")
        timesteps, eps = draw_timesteps_and_noise(seeds, y, TRAIN_TIMESTEPS)
        alpha, sigma = alpha_sigma(self.noise_scheduler, timesteps)
        prediction = call_backbone(
            self.network, alpha * y + sigma * eps, low_hu, timesteps, noise_hu=noise_hu, spacing_mm=batch["spacing_mm"]
        )
        return {"loss": (prediction - eps).square().mean()}


class EpsilonDDPM(BackboneBaseline):
    """DDPM on the backbone, with as many parameters; a restoration is one sample.

    On this scale CT noise is small: where the posterior's spread is 10 HU, the samples of a perfect network have 11 % of
    it with 100 steps and 43 % with 1000 (by recursion, in the tests). The sample lies nearer to the mean than it should.

    Args:
        backbone: arguments of `UNet3DCTModel`.
        num_steps: of the sampler, 1 to 1000; each is an evaluation of the network.
    """

    name = "epsilon-ddpm"
    source = "Ho et al. 2020, arXiv:2006.11239; Saharia et al. 2022, arXiv:2104.07636"

    def __init__(self, backbone: Mapping[str, Any], num_steps: int = 100) -> None:
        if not 1 <= num_steps <= TRAIN_TIMESTEPS:
            raise ValueError(f"`num_steps` must be in 1..{TRAIN_TIMESTEPS}, got {num_steps}.")
        super().__init__(backbone)
        self.num_steps = num_steps

    @property
    def config(self) -> dict[str, Any]:
        return {**super().config, "num_steps": self.num_steps}

    def make_objective(self, network: nn.Module) -> EpsilonObjective:
        return EpsilonObjective(network)

    @torch.no_grad()
    def restore(self, volume: CTVolume, *, seed: int = 0) -> np.ndarray:
        self.network.eval()
        scan = PaddedScan(volume, self.network, self.device)
        generator = torch.Generator().manual_seed(seed)  # on the CPU: the same noise on every device
        scheduler = ddpm_scheduler()
        scheduler.set_timesteps(self.num_steps)
        y = torch.randn(scan.low_hu.shape, generator=generator).to(self.device)
        for timestep in scheduler.timesteps:
            eps = scan.predict(y, scan.low_hu, float(timestep))
            y = scheduler.step(eps, timestep, y, generator=generator, return_dict=False)[0]
        return scan.crop(unit_to_hu(y, "full"))
