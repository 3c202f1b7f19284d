"""Two-dimensional networks that correct each slice by itself: what RED-CNN and DnCNN have in common."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from ...volume import CTVolume
from .baseline import LearnedBaseline

# Water is 0, so that noise is not lost beside the offset of air: in units of 1024 HU from -2048 on, RED-CNN stays at the
# identity for its first steps.
INPUT_SCALE_HU = 256.0
# The last layer answers in units of this: the functions that the network can be are the same, and its steps at the
# learning rate that all methods share are of the size of the noise.
OUTPUT_SCALE_HU = 32.0


class SliceObjective:
    """mean ((restored - full) / `OUTPUT_SCALE_HU`)^2 over voxels: the mean squared error in HU, as the papers minimise.

    Args:
        network: (slices, 1, height, width) in HU -> the same, restored.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __call__(self, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor) -> dict[str, Any]:
        """One step's loss; the slices of a patch are taken one by one, `seeds` have no effect."""
        restored_hu = self.network(as_slices(batch["low_hu"]))
        return {"loss": ((restored_hu - as_slices(batch["full_hu"])) / OUTPUT_SCALE_HU).square().mean()}


class SliceBaseline(LearnedBaseline):
    """A learned baseline whose network restores slices in HU."""

    smallest_slice = 1  # rows and columns that the network needs

    def make_objective(self, network: nn.Module) -> SliceObjective:
        return SliceObjective(network)

    @torch.no_grad()
    def restore(self, volume: CTVolume, *, seed: int = 0) -> np.ndarray:
        self.network.eval()
        height, width = volume.shape[1:]
        # A slice that is smaller than the network's reach is continued by its edge.
        missing = [max(0, self.smallest_slice - n) for n in (height, width)]
        restored = np.empty(volume.shape, dtype=np.float32)
        for k, image in enumerate(volume.hu):
            wide = np.pad(image, [(0, n) for n in missing], mode="edge")
            out = self.network(torch.from_numpy(wide)[None, None].to(self.device))
            restored[k] = out[0, 0, :height, :width].float().cpu().numpy()
        return restored


def as_slices(volumes_hu: torch.Tensor) -> torch.Tensor:
    """(batch, 1, depth, height, width) -> (batch x depth, 1, height, width) float32."""
    return volumes_hu.float().transpose(1, 2).flatten(0, 1)
