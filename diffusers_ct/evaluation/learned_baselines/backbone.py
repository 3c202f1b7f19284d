"""The backbone of the package's own models, called by the learned baselines in the same way, with the same facts.

Every one of them gives it the same channels, so that all have the same number of parameters: one beside the image
(noisy in diffusion, zeros where there is none) and the image itself as `encode_condition` shows it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...models import UNet3DCTModel
from ...pipelines.sampling import choose_tile, pad_volume, padded_size
from ...pipelines.tiling import evaluate_tiled
from ...residual import encode_condition, estimate_noise_hu, scan_vector
from ...volume import CTVolume
from .baseline import LearnedBaseline

TILE_OVERLAP = (6, 64, 64)  # as in `CTDiffusionPipeline`


def call_backbone(
    network: nn.Module,
    beside: torch.Tensor,
    image_hu: torch.Tensor,
    timesteps: torch.Tensor,
    *,
    noise_hu: torch.Tensor,
    spacing_mm: torch.Tensor,
    vector: torch.Tensor | None = None,
) -> torch.Tensor:
    """The network's answer, (batch, 1, depth, height, width) float32.

    Args:
        network: called as `UNet3DCTModel`.
        beside: (batch, 1, depth, height, width), in network units.
        image_hu: the same shape, in HU.
        timesteps: (batch,).
        noise_hu: (batch, depth) in HU, of the low-dose scan.
        spacing_mm: (batch, 3) as (z, y, x).
        vector: (batch, `SCAN_VECTOR_DIM`) of the whole scan where `image_hu` is a part; None where it is all there is.
    """
    sample = torch.cat([beside, encode_condition(image_hu, noise_hu)], dim=1)
    vector = scan_vector(noise_hu, spacing_mm) if vector is None else vector
    return network(sample, timesteps, pooled=vector, spacing_mm=spacing_mm).sample.float()


class BackboneBaseline(LearnedBaseline):
    """A learned baseline on `UNet3DCTModel`.

    Args:
        backbone: arguments of `UNet3DCTModel`, such as `preset_config("ct-unet25d-s")`: those of the model that it is
            compared with.
    """

    def __init__(self, backbone: Mapping[str, Any]) -> None:
        # plain lists, as config.json will give them back
        self.backbone = {k: list(v) if isinstance(v, tuple) else v for k, v in backbone.items()}
        self.network: Any = UNet3DCTModel(**self.backbone)

    @property
    def config(self) -> dict[str, Any]:
        return {"backbone": self.backbone}


class PaddedScan:
    """A scan on the network's grid: edges repeated to a size that the network takes, large scans tile by tile.

    Attributes:
        low_hu: (1, 1, depth, height, width), padded.
        noise_hu: (1, depth) of the low dose.
    """

    def __init__(self, volume: CTVolume, network: Any, device: torch.device) -> None:
        self.shape = volume.shape
        self.factor = tuple(network.size_factor)
        size = padded_size(volume.shape, self.factor)
        levels = torch.from_numpy(estimate_noise_hu(volume.hu))
        levels = torch.cat([levels, levels[-1:].expand(size[0] - len(levels))])
        self.network = network
        self.low_hu = pad_volume(volume.hu, size).to(device)
        self.noise_hu = levels[None].to(device)
        self.spacing_mm = torch.tensor([volume.spacing_mm], dtype=torch.float32, device=device)
        self.vector = scan_vector(self.noise_hu, self.spacing_mm)
        self.tile = choose_tile(size, None, TILE_OVERLAP, self.factor)

    def predict(self, beside: torch.Tensor, image_hu: torch.Tensor, timestep: float) -> torch.Tensor:
        """`call_backbone` on the whole padded field, (1, 1, depth, height, width)."""
        size: Any = tuple(self.low_hu.shape[2:])
        timesteps = torch.tensor([timestep], device=self.low_hu.device)

        def evaluate(box: tuple[slice, slice, slice]) -> torch.Tensor:
            return call_backbone(
                self.network, beside[:, :, *box], image_hu[:, :, *box], timesteps,
                noise_hu=self.noise_hu[:, box[0]], spacing_mm=self.spacing_mm, vector=self.vector,
            )  # fmt: skip

        return evaluate_tiled(evaluate, 1, size, self.tile, TILE_OVERLAP, self.factor)

    def crop(self, volume_hu: torch.Tensor) -> Any:
        """The part that is the scan, (depth, height, width) float32 NumPy."""
        depth, height, width = self.shape
        return volume_hu[0, 0, :depth, :height, :width].float().cpu().numpy()
