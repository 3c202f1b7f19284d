"""The same-backbone twin trained on the mean squared error: the control for diffusion itself.

Network, inputs, scale and data are those of the residual diffusion; there is no noise, no timestep and no v. Its optimum
is the posterior mean E[full | low], the same as that of one step of the diffusion.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ...residual import decode_residual, encode_residual
from ...volume import CTVolume
from .backbone import BackboneBaseline, PaddedScan, call_backbone


class ResidualMSEObjective:
    """mean (network(0, low) - r)^2 with r = (full - low) / s, the residual that the diffusion learns.

    Args:
        network: called as `UNet3DCTModel`; zeros stand in place of the noisy channel and of the timestep.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __call__(self, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor) -> dict[str, Any]:
        """One step's loss; `seeds` have no effect."""
        low_hu, noise_hu = batch["low_hu"].float(), batch["noise_hu"]
        residual = encode_residual(batch["full_hu"], low_hu, noise_hu)
        timesteps = torch.zeros(len(low_hu), device=low_hu.device)
        prediction = call_backbone(
            self.network, torch.zeros_like(low_hu), low_hu, timesteps, noise_hu=noise_hu, spacing_mm=batch["spacing_mm"]
        )
        return {"loss": (prediction - residual).square().mean()}


class MSETwin(BackboneBaseline):
    """The backbone as a regression, one evaluation a scan; as many parameters as the backbone."""

    name = "mse-twin"
    source = "mean squared error on the backbone of the diffusion"

    def make_objective(self, network: nn.Module) -> ResidualMSEObjective:
        return ResidualMSEObjective(network)

    @torch.no_grad()
    def restore(self, volume: CTVolume, *, seed: int = 0) -> np.ndarray:
        self.network.eval()
        scan = PaddedScan(volume, self.network, self.device)
        residual = scan.predict(torch.zeros_like(scan.low_hu), scan.low_hu, 0.0)
        return scan.crop(decode_residual(residual, scan.low_hu, scan.noise_hu))
