"""The networks that `benchmark_speed.py` compares: ours and its peers, of one size, behind one interface.

A peer has three levels with two residual blocks each and attention at the coarsest one, as its own examples for volumes
have; its widths are chosen so that it has as many parameters as ours, within 5 %. Peers that are not installed are
skipped. Nothing of them is needed by the package.
"""

import math
import sys
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest.mock import MagicMock

import torch
from diffusers import UNet3DConditionModel
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from diffusers_ct.models import UNet3DCTOutput, make_model

CHANNELS = 6  # of the input, as for restoration; the output has one
TOLERANCE = 0.05  # of the number of parameters


@dataclass(frozen=True)
class Contender:
    """A network to be measured.

    Attributes:
        name: in the tables.
        build: makes it, on torch's default device.
        only_default: measured as it comes, in float32, and in no other setting.
    """

    name: str
    build: Callable[[], nn.Module]
    only_default: bool = False


class Peer(ModelMixin, ConfigMixin):
    """A peer's network in the place of ours, in a pipeline or a training. Of all that ours are told it hears the time."""

    def __init__(self, network: nn.Module, call: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.register_to_config(in_channels=CHANNELS)
        self.network = network
        self.call = call
        self.size_factor = (4, 4, 4)
        self.needs_spacing = False

    def forward(
        self,
        sample: torch.Tensor,
        timestep: Any,
        pooled: torch.Tensor | None = None,
        spacing_mm: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet3DCTOutput | tuple[torch.Tensor]:
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        out = self.call(self.network, sample, timesteps)
        return UNet3DCTOutput(sample=out) if return_dict else (out,)


def ours(preset: str) -> list[Contender]:
    """The preset, and beside it the fast one of its size, or beside that the plain one."""
    size = preset[-1]
    other = f"ct-unet3d-{size}" if "-fast-" in preset else f"ct-unet25d-fast-{size}"
    return [Contender(name, lambda name=name: make_model(name)) for name in (preset, other)]


def peers(parameters: int, names: Sequence[str]) -> tuple[list[Contender], dict[str, str]]:
    """Those of `PEERS` that are installed, of about so many parameters; and why others are left out, by name."""
    found: list[Contender] = []
    skipped: dict[str, str] = {}
    for name in names:
        try:
            found += PEERS[name](parameters)
        except ImportError as error:
            skipped[name] = str(error)
    return found, skipped


def count(build: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build().parameters())


def matched_widths(name: str, build: Callable[[Sequence[int]], nn.Module], parameters: int) -> tuple[int, int, int]:
    """Widths (w, 2 w, about 4 w), multiples of 8, that give so many parameters within the tolerance."""

    @cache
    def size(widths: tuple[int, int, int]) -> int:
        return count(lambda: build(widths))

    close = math.sqrt(parameters / size((32, 64, 128))) * 32 / 8  # parameters grow with the square of the width
    for finest in sorted({max(8, 8 * math.floor(close)), 8 * math.ceil(close)}, key=lambda w: abs(w - 8 * close)):
        coarsest = range(2 * finest, 8 * finest + 1, 8)
        at = bisect_left(coarsest, parameters, key=lambda c, w=finest: size((w, 2 * w, c)))
        matched = [(finest, 2 * finest, c) for c in coarsest[max(at - 1, 0) : at + 1]]
        matched.sort(key=lambda widths: abs(size(widths) - parameters))
        if abs(size(matched[0]) / parameters - 1) <= TOLERANCE:
            return matched[0]
    raise SystemExit(f"No widths of {name} give {parameters:,} parameters within {TOLERANCE:.0%}.")


def head_dim(channels: int) -> int:
    """The largest divisor up to 64: the same attention in fewer, wider heads is faster."""
    return max(n for n in range(1, 65) if channels % n == 0)


def of_monai(parameters: int) -> list[Contender]:
    """MONAI's `DiffusionModelUNet`, with its flash attention and with its default attention in heads of 8 channels."""
    from monai.networks.nets import DiffusionModelUNet

    def build(widths: Sequence[int], flash: bool = True) -> Peer:
        network = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=CHANNELS,
            out_channels=1,
            channels=tuple(widths),
            attention_levels=(False, False, True),
            num_res_blocks=2,
            norm_num_groups=8,
            num_head_channels=head_dim(widths[-1]) if flash else 8,
            use_flash_attention=flash,
        )
        return Peer(network, lambda network, sample, timesteps: network(sample, timesteps))

    widths = matched_widths("MONAI", build, parameters)
    return [
        Contender("MONAI DiffusionModelUNet, flash", lambda: build(widths)),
        Contender("MONAI DiffusionModelUNet, default", lambda: build(widths, flash=False), only_default=True),
    ]


def of_diffusers(parameters: int) -> list[Contender]:
    """diffusers' `UNet3DConditionModel`; its cross-attention, which it cannot do without, sees one token."""

    def build(widths: Sequence[int]) -> Peer:
        network = UNet3DConditionModel(
            in_channels=CHANNELS,
            out_channels=1,
            down_block_types=("DownBlock3D", "DownBlock3D", "CrossAttnDownBlock3D"),
            up_block_types=("CrossAttnUpBlock3D", "UpBlock3D", "UpBlock3D"),
            block_out_channels=tuple(widths),
            norm_num_groups=8,
            cross_attention_dim=32,
            attention_head_dim=8,  # its first layer attends with 8 heads of this size at full resolution
        )

        def call(network: nn.Module, sample: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            return network(sample, timesteps, sample.new_zeros(len(sample), 1, 32), return_dict=False)[0]

        return Peer(network, call)

    widths = matched_widths("diffusers", build, parameters)
    return [Contender("diffusers UNet3DConditionModel", lambda: build(widths))]


def of_lucidrains(parameters: int) -> list[Contender]:
    """`Unet3D` of video-diffusion-pytorch; its widths are (w, 2 w, 4 w), so the number of heads makes the rest."""
    unet_3d = import_unet_3d()

    def build(width: int, heads: int) -> Peer:
        network = unet_3d(dim=width, dim_mults=(1, 2, 4), channels=CHANNELS, out_dim=1, attn_heads=heads)
        # Its embedding of the time is float32 always, which its layers in bfloat16 do not take.
        network.time_mlp[0].register_forward_hook(lambda *given: given[2].to(network.time_mlp[1].weight.dtype))

        def call(network: nn.Module, sample: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            # What it makes itself where this is None. It only looks whether any is set, so the CPU is the place for it.
            nowhere = torch.zeros(len(sample), dtype=torch.bool, device="cpu")
            return network(sample, timesteps, focus_present_mask=nowhere)

        return Peer(network, call)

    close = 32 * math.sqrt(parameters / count(lambda: build(32, 8)))
    sizes = [(w, h) for w in (max(8, 8 * math.floor(close / 8)), 8 * math.ceil(close / 8)) for h in range(2, 17)]
    matched = [
        size for size in sizes if abs(count(lambda size=size: build(*size)) / parameters - 1) <= TOLERANCE
    ]  # fmt: skip
    if not matched:
        raise SystemExit(f"No width of lucidrains' Unet3D gives {parameters:,} parameters within {TOLERANCE:.0%}.")
    width, heads = min(matched, key=lambda size: abs(size[1] - 8))
    return [Contender("lucidrains Unet3D", lambda: build(width, heads))]


def import_unet_3d() -> Any:
    """The class, also without torchvision, which its package imports for its data loading alone."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        sys.modules["torchvision"] = MagicMock()
    try:
        from video_diffusion_pytorch import Unet3D
    finally:
        if isinstance(sys.modules["torchvision"], MagicMock):
            del sys.modules["torchvision"]
    return Unet3D


PEERS = {"MONAI": of_monai, "diffusers": of_diffusers, "lucidrains": of_lucidrains}
