"""What can be set on a network so that it samples faster on the device at hand, and what of it was set."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .host_memory import keep_freed_memory


@dataclass(frozen=True)
class FastInference:
    """What is set on a network, as found on it.

    Attributes:
        device: that it runs on.
        dtype: of its weights and of what is computed between them.
        channels_last: whether its convolutions keep the channels last in memory.
        compiled: whether its blocks are compiled, which happens when they first run.
        multiplies_bfloat16: whether the device has instructions for products of bfloat16.
        keeps_memory: whether this process keeps what it frees (see `keep_freed_memory`).
    """

    device: torch.device
    dtype: torch.dtype
    channels_last: bool
    compiled: bool
    multiplies_bfloat16: bool
    keeps_memory: bool

    def __str__(self) -> str:
        has = "multiplies" if self.multiplies_bfloat16 else "has no instructions for"
        parts = [
            f"network on {self.device}, which {has} bfloat16",
            f"computes in {str(self.dtype).removeprefix('torch.')}",
            "channels last" if self.channels_last else "channels first",
            "blocks compiled when they first run" if self.compiled else "not compiled",
            "noise, steps and HU stay in float32",
        ]
        if self.keeps_memory:
            parts.append("the process keeps the memory that it frees")
        return "; ".join(parts)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 run in hardware: AVX-512 BF16 or AMX on a CPU, tensor cores from Ampere on in CUDA."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return False


def set_fast_inference(unet: Any, device: torch.device, *, compile_blocks: bool) -> FastInference:
    """Casts a float32 network to bfloat16 with channels last where the device multiplies bfloat16, else leaves it.

    On a CPU freed memory is kept as well, of the whole process: see `keep_freed_memory`.

    Args:
        unet: the network; one that is not float32 was given its type on purpose and keeps it.
        device: that it runs on.
        compile_blocks: compile its repeated blocks.
    """
    fast = multiplies_bfloat16(device)
    # By torch's own `to`: that of diffusers warns of every cast of a model that was not loaded.
    if fast and unet.dtype == torch.float32:
        nn.Module.to(unet, torch.bfloat16)
    if fast:
        nn.Module.to(unet, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    if compile_blocks:
        unet.compile_repeated_blocks()
    keeps = device.type == "cpu" and keep_freed_memory()
    return FastInference(device, unet.dtype, _channels_last(unet), _compiled(unet), fast, keeps)


def _channels_last(unet: nn.Module) -> bool:
    weights = [m.weight for m in unet.modules() if isinstance(m, nn.Conv3d)]
    # One of a single voxel or a single channel is the same in both layouts and tells nothing.
    weights = [w for w in weights if w.shape[1] > 1 and w[0, 0].numel() > 1]
    return bool(weights) and all(w.is_contiguous(memory_format=torch.channels_last_3d) for w in weights)


def _compiled(unet: Any) -> bool:
    blocks = [m for m in unet.modules() if type(m).__name__ in unet._repeated_blocks]
    return bool(blocks) and all(block._compiled_call_impl is not None for block in blocks)
