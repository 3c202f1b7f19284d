"""Building blocks of `UNet3DCTModel`: convolutions, norms and the residual block.

All take and return (batch, channels, depth, height, width).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

ConvMode = Literal["3d", "2.5d"]
NormType = Literal["group", "rms"]


def conv_nd(in_channels: int, out_channels: int, mode: ConvMode, *, fuse_z: bool = True) -> nn.Module:
    """A size-preserving convolution: 3 x 3 x 3, or 1 x 3 x 3 in the plane followed by 3 x 1 x 1 along z.

    `fuse_z=False` leaves the second step of the "2.5d" mode out, so that a block can mix along z once.
    """
    if mode == "3d":
        return ThinConv3d(in_channels, out_channels, 3, padding=1)
    in_plane = nn.Conv3d(in_channels, out_channels, (1, 3, 3), padding=(0, 1, 1))
    if not fuse_z:
        return in_plane
    along_z = ThinConv3d(out_channels, out_channels, (3, 1, 1), padding=(1, 0, 0))
    with torch.no_grad():  # begins as the identity along z: neighbouring slices enter as they prove useful
        along_z.weight.zero_()
        along_z.weight[:, :, 1, 0, 0] = torch.eye(out_channels)
        if along_z.bias is not None:
            along_z.bias.zero_()
    return nn.Sequential(in_plane, along_z)


class ThinConv3d(nn.Conv3d):
    """A convolution over three slices whose weights learn on a grid of two slices, too.

    There torch's bfloat16 convolution of the CPU (oneDNN, seen with torch 2.13) returns a gradient of the weights that
    was never written: other numbers each time, now and then infinite. It is right where the zeros beyond the first and last
    slice are part of the input.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and input.device.type == "cpu" and input.shape[2] == 2:
            kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
            if kind is torch.bfloat16:
                padded = F.pad(input, (0, 0, 0, 0, self.padding[0], self.padding[0]))  # type: ignore[arg-type]
                return F.conv3d(padded, self.weight, self.bias, self.stride, (0, *self.padding[1:]))
        return super().forward(input)


class VoxelRMSNorm(nn.Module):
    """Root-mean-square norm over the channels of each voxel (Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4).

    It has no statistics over space, so a tile is normalised exactly as the same voxels of the whole scan.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: torch.Tensor, scale_shift: torch.Tensor | None = None) -> torch.Tensor:
        """With (batch, 2 channels) of scale and shift: norm(x) (1 + scale) + shift."""
        one_over_rms = torch.rsqrt(x.float().square().mean(dim=1, keepdim=True) + self.eps)
        normed = x * one_over_rms.to(x.dtype)
        weight = self.weight.to(x.dtype)
        if scale_shift is None:
            return normed * weight[:, None, None, None]
        scale, shift = scale_shift.chunk(2, dim=1)
        return normed * _everywhere(weight * (1.0 + scale)) + _everywhere(shift)


class AdaptiveGroupNorm(nn.GroupNorm):
    """Group norm (Wu and He 2018, arXiv:1803.08494) that takes a scale and shift of each sample, where it is given them."""

    def forward(self, x: torch.Tensor, scale_shift: torch.Tensor | None = None) -> torch.Tensor:
        """With (batch, 2 channels) of scale and shift: norm(x) (1 + scale) + shift."""
        if scale_shift is None:
            return super().forward(x)
        batch = len(x)
        if batch > 1 and not x.is_contiguous():
            return modulate(super().forward(x), scale_shift)
        # In one pass over the voxels: with the samples' groups side by side, as if of one sample, its weights are theirs.
        scale, shift = scale_shift.chunk(2, dim=1)
        weight = (self.weight * (1.0 + scale)).flatten()
        bias = (self.bias * (1.0 + scale) + shift).flatten()
        side_by_side = x if batch == 1 else x.flatten(0, 1)[None]
        return F.group_norm(side_by_side, batch * self.num_groups, weight, bias, self.eps).view_as(x)


def norm_nd(channels: int, kind: NormType, groups: int) -> VoxelRMSNorm | AdaptiveGroupNorm:
    """Group norm with at most `groups` groups, or `VoxelRMSNorm`."""
    if kind == "rms":
        return VoxelRMSNorm(channels)
    return AdaptiveGroupNorm(next(g for g in range(min(groups, channels), 0, -1) if channels % g == 0), channels)


class CTResBlock(nn.Module):
    """norm, SiLU, conv, adaptive norm (scale and shift from the embedding), SiLU, zero-initialised conv, plus input.

    The adaptive norm, norm(h) (1 + scale) + shift, is that of Dhariwal and Nichol 2021, arXiv:2105.05233, section 3.
    """

    def __init__(
        self, in_channels: int, out_channels: int, embedding_dim: int, mode: ConvMode, norm_type: NormType, groups: int
    ) -> None:
        super().__init__()
        self.norm1 = norm_nd(in_channels, norm_type, groups)
        self.conv1 = conv_nd(in_channels, out_channels, mode, fuse_z=False)
        self.modulation = nn.Linear(embedding_dim, 2 * out_channels)
        self.norm2 = norm_nd(out_channels, norm_type, groups)
        self.conv2 = conv_nd(out_channels, out_channels, mode)
        self.shortcut = nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        zero_module(self.conv2[-1] if isinstance(self.conv2, nn.Sequential) else self.conv2)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, in_channels, ...) -> (batch, out_channels, ...).

        Args:
            x: input; with `skip` its first channels, on a grid that may be coarser.
            embedding: (batch, embedding_dim).
            skip: the other channels. Where a backward pass is to come, the two are kept and not what they make together.
        """
        given = (x,) if skip is None else (x, skip)
        if not torch.is_grad_enabled():
            given = (_joined(*given),)
        h = convolve(self.conv1, lambda *parts: silu_(self.norm1(_joined(*parts))), *given)
        out = convolve(self.conv2, lambda h, m: silu_(self.norm2(h, m)), h, self.modulation(embedding))
        past = self.shortcut(*given) if len(given) == 1 else convolve(self.shortcut, _joined, *given)
        if torch.is_grad_enabled() or out.dtype != past.dtype:  # under autocast the sum is float32
            return past + out
        return out.add_(past)


def _joined(x: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
    if skip is None:
        return x
    return torch.cat([F.interpolate(x, size=skip.shape[2:], mode="nearest"), skip], dim=1)


def convolve(conv: nn.Module, prepare: Callable[..., torch.Tensor], *given: torch.Tensor) -> torch.Tensor:
    """conv(prepare(*given)), which keeps only `given` for the backward pass and prepares again there.

    Norms and activations are cheap, but their results are most of what a backward pass would need to find. The
    convolution itself is not done twice: it stores its input before it runs, and preparing ends with the last tensor
    that was stored (Chen et al. 2016, arXiv:1604.06174, section 4.1: drop the results of cheap operations).

    Args:
        conv: as `conv_nd` makes it.
        prepare: of norms, activations and the like.
        *given: what it is called with.
    """
    # A compiler chooses by itself what it keeps.
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return conv(prepare(*given))
    first, *others = conv if isinstance(conv, nn.Sequential) else (conv,)
    h = checkpoint(lambda *tensors: first(prepare(*tensors)), *given, use_reentrant=False)
    for other in others:
        h = other(h)
    return h


def silu_(h: torch.Tensor) -> torch.Tensor:
    """SiLU of what nothing else needs: in its place where no backward pass is to come."""
    return F.silu(h, inplace=not torch.is_grad_enabled())


def modulate(h: torch.Tensor, scale_shift: torch.Tensor) -> torch.Tensor:
    """h (1 + scale) + shift, with (batch, 2 channels) of scale and shift."""
    scale, shift = scale_shift.chunk(2, dim=1)
    if len(h) > 1 or torch.is_grad_enabled() or h.device.type != "cpu" or torch.compiler.is_compiling():
        return h * _everywhere(1.0 + scale) + _everywhere(shift)
    # A CPU broadcasts over channels that are last three times as slowly as it does this, with the same result.
    kind = torch.promote_types(h.dtype, torch.float32)
    nought, one = torch.zeros(h.shape[1], dtype=kind), torch.ones(h.shape[1], dtype=kind)
    return F.batch_norm(h, nought, one, 1.0 + scale[0].to(kind), shift[0].to(kind), eps=0.0)


def _everywhere(values: torch.Tensor) -> torch.Tensor:
    return values[:, :, None, None, None]


def check_layout(
    conv_mode: str, norm_type: str, patch_size: Sequence[int], downsample_strides: Sequence[int], levels: int
) -> None:
    """Refuses a layout of levels that cannot be built.

    Raises:
        ValueError: naming the argument.
    """
    if conv_mode not in ("3d", "2.5d"):
        raise ValueError(f"`conv_mode` must be '3d' or '2.5d', got {conv_mode!r}.")
    if norm_type not in ("group", "rms"):
        raise ValueError(f"`norm_type` must be 'group' or 'rms', got {norm_type!r}.")
    if len(patch_size) != 3 or any(p < 1 for p in patch_size):
        raise ValueError(f"`patch_size` must be three positive numbers (z, y, x), got {patch_size}.")
    if len(downsample_strides) != 3 * (levels - 1) or any(s < 1 for s in downsample_strides):
        raise ValueError(
            f"`downsample_strides` needs (z, y, x) for each of the {levels - 1} steps between {levels} levels, "
            f"{3 * (levels - 1)} positive numbers in all, got {list(downsample_strides)}."
        )


def zero_module(module: Any) -> Any:
    """Sets a module's parameters to zero, so that its branch begins as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
