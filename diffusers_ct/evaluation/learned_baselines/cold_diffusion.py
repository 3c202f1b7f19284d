"""Cold diffusion between full and low dose, in the manner of CoreDiff.

Degradation that keeps the mean, x_t = a_t x_0 + (1 - a_t) x_T with x_0 the full and x_T the low dose, t = 0..10 (Gao et
al. 2024, IEEE TMI 43(2):745, arXiv:2304.01814), and the improved sampling of Bansal et al. 2022, arXiv:2208.09392,
algorithm 2. The network sees x_t and its neighbouring slices, and never x_T beside it: from both, x_0 could be solved
for without learning anything.

Of CoreDiff are left out: the error-modulated module and the second loss term that trains it, the neighbours taken from
x_T rather than x_t, one-shot adaptation to a new dose, and its own network: the backbone is that of the comparison.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ...residual import decode_residual, encode_residual
from ...training.draws import uniform
from ...volume import CTVolume
from .backbone import BackboneBaseline, PaddedScan, call_backbone

T = 10


def kept_share(t: torch.Tensor | float) -> Any:
    """a_t = 1 - t / T: the share of the full dose in x_t, 1 at t = 0 and 0 at t = T."""
    return 1.0 - t / T


def degrade(full_hu: torch.Tensor, low_hu: torch.Tensor, t: torch.Tensor | float) -> torch.Tensor:
    """x_t = a_t x_0 + (1 - a_t) x_T in HU; `t` is a number, or (batch, 1, 1, 1, 1)."""
    a_t = kept_share(t)
    return a_t * full_hu + (1.0 - a_t) * low_hu


def network_timestep(t: Any) -> Any:
    """1..T as the backbone is told it: over the range of its time embedding."""
    return t * (1000.0 / T) - 1.0


class ColdDiffusionObjective:
    """mean ((x_t + s network(x_t, t) - x_0) / s)^2 with t drawn evenly from 1..T.

    Args:
        network: called as `UNet3DCTModel`; zeros stand in place of the noisy channel.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __call__(self, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor) -> dict[str, Any]:
        """One step's loss; t of an item depends on its seed alone."""
        low_hu, full_hu, noise_hu = batch["low_hu"].float(), batch["full_hu"].float(), batch["noise_hu"]
        t = 1.0 + (T * uniform(seeds, 1, stream="cold diffusion")[:, 0]).floor().to(low_hu.device)
        x_t = degrade(full_hu, low_hu, t[:, None, None, None, None])
        prediction = call_backbone(
            self.network, torch.zeros_like(x_t), x_t, network_timestep(t),
            noise_hu=noise_hu, spacing_mm=batch["spacing_mm"],
        )  # fmt: skip
        return {"loss": (prediction - encode_residual(full_hu, x_t, noise_hu)).square().mean()}


class ColdDiffusion(BackboneBaseline):
    """Cold diffusion on the backbone, with as many parameters; deterministic.

    Args:
        backbone: arguments of `UNet3DCTModel`.
        num_steps: of the restoration, 1 to T; a divisor of T.
    """

    name = "cold-diffusion"
    source = "Bansal et al. 2022, arXiv:2208.09392; Gao et al. 2024, arXiv:2304.01814 (in its manner)"

    def __init__(self, backbone: Mapping[str, Any], num_steps: int = T) -> None:
        if num_steps < 1 or T % num_steps:
            raise ValueError(f"`num_steps` must divide {T}, got {num_steps}.")
        super().__init__(backbone)
        self.num_steps = num_steps

    @property
    def config(self) -> dict[str, Any]:
        return {**super().config, "num_steps": self.num_steps}

    def make_objective(self, network: nn.Module) -> ColdDiffusionObjective:
        return ColdDiffusionObjective(network)

    @torch.no_grad()
    def restore(self, volume: CTVolume, *, seed: int = 0) -> np.ndarray:
        self.network.eval()
        scan = PaddedScan(volume, self.network, self.device)
        x_t, stride = scan.low_hu, T // self.num_steps
        for t in range(T, 0, -stride):
            residual = scan.predict(torch.zeros_like(x_t), x_t, network_timestep(t))
            x_0 = decode_residual(residual, x_t, scan.noise_hu)
            # D(x_0, t - stride) - D(x_0, t), of which the parts of x_0 and x_T are written as one difference
            x_t = x_t + (kept_share(t - stride) - kept_share(t)) * (x_0 - scan.low_hu)
        return scan.crop(x_t)
