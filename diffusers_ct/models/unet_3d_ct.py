"""`UNet3DCTModel`: a volumetric diffusion U-Net for CT."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.utils import BaseOutput
from torch import nn

from .attention import CTSelfAttention
from .blocks import CTResBlock, check_layout, conv_nd, convolve, modulate, norm_nd, silu_, zero_module
from .rotary import MIN_HEAD_DIM, rotary_table
from .saved_model import SavedModel
from .transformer import CTTransformerBlock


@dataclass
class UNet3DCTOutput(BaseOutput):
    """Output of `UNet3DCTModel`.

    Attributes:
        sample: (batch, out_channels, depth, height, width), what the scheduler's prediction type says it is.
    """

    sample: torch.Tensor


class UNet3DCTModel(SavedModel, AttentionMixin, PeftAdapterMixin, CacheMixin):
    """A true 3-D U-Net: patch stem, residual blocks, transformer blocks, full-resolution refinement.

    One class is the whole family (see `presets`): 3-D and 2.5-D convolutions, without or with transformer blocks after
    a level's residual blocks, which know positions in mm and may read a context by cross-attention. A space-to-depth
    stem (`patch_size`) moves the work to a coarse, wide grid; with `refine_channels` a thin branch at full resolution
    meets the unpatched output and keeps fine detail. Works on any depth from 1 on (with patch and strides of 1 along
    z). A new model outputs zeros: for residual restoration it begins as the identity.

    Args:
        in_channels: noisy sample plus image condition channels.
        out_channels: channels of the prediction.
        block_out_channels: width of each level, finest first.
        layers_per_block: residual blocks per level, in the encoder and again in the decoder.
        conv_mode: "3d" (3 x 3 x 3) or "2.5d" (1 x 3 x 3 in the plane, one 3 x 1 x 1 fusion per block).
        patch_size: (z, y, x) voxels per patch of the stem.
        refine_channels: width of the full-resolution branch; 0 for none.
        refine_merge: how the unpatched output meets the features of the input at full resolution, "concat" or, with half
            the memory and operations there, "add".
        attention_levels: indices of the levels with one self-attention without positions (0 is the finest).
        downsample_strides: flat list of (z, y, x) strides between levels, 3 numbers for each step down.
        norm_type: "group", or "rms" over the channels of each voxel, whose output does not depend on the tile.
        norm_num_groups: groups of the group norm, reduced where they do not divide the channels.
        pooled_dim: length of the pooled condition vector; 0 for none.
        attention_head_dim: channels per attention head.
        window_depth: slices (on the level's grid) that attend to each other; windows start at the first slice.
        transformer_depth: transformer blocks of each level, behind its residual blocks; those of the last level come
            again in the middle. Empty for none.
        cross_attention_dim: length of a token of `encoder_hidden_states`; 0 for no cross-attention.
        position_encoding: of the transformer blocks, "rotary" (in mm, see `rotary`) or "none".

    Group offloading: "leaf_level", or "block_level" with `num_blocks_per_group=1` (the decoder runs its lists from the
    end). Layerwise casting: load the model in the compute type first; norms and embeddings keep it.

    Raises:
        ValueError: if the arguments do not fit each other.

    References:
        Ho et al. 2020, arXiv:2006.11239; Dhariwal and Nichol 2021, arXiv:2105.05233 (adaptive norm, attention);
        Hoogeboom et al. 2023, arXiv:2301.11093 (patching, transformer blocks at low resolution);
        Rombach et al. 2022, arXiv:2112.10752, section 3.3 (cross-attention); Su et al. 2021, arXiv:2104.09864 (rotary).
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["CTResBlock", "CTSelfAttention", "CTTransformerBlock"]  # noqa: RUF012 (diffusers' own form)
    _repeated_blocks = ["CTResBlock", "CTTransformerBlock"]  # noqa: RUF012
    # Lists of lists: the inner ones hold what is called.
    _group_offload_block_modules = ["down_blocks", "up_blocks", "down_transformers", "up_transformers"]  # noqa: RUF012
    _skip_layerwise_casting_patterns = ["norm", "embedding", "stem", "head", "refine"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        in_channels: int = 6,
        out_channels: int = 1,
        block_out_channels: Sequence[int] = (64, 128, 192),
        layers_per_block: int = 2,
        conv_mode: str = "3d",
        patch_size: Sequence[int] = (1, 2, 2),
        refine_channels: int = 16,
        attention_levels: Sequence[int] = (),
        downsample_strides: Sequence[int] = (1, 2, 2, 1, 2, 2),
        norm_type: str = "group",
        norm_num_groups: int = 8,
        pooled_dim: int = 3,
        attention_head_dim: int = 64,
        window_depth: int = 4,
        transformer_depth: Sequence[int] = (),
        cross_attention_dim: int = 0,
        position_encoding: str = "rotary",
        refine_merge: str = "concat",
    ) -> None:
        super().__init__()
        levels = len(block_out_channels)
        check_layout(conv_mode, norm_type, patch_size, downsample_strides, levels)
        if any(not 0 <= i < levels for i in attention_levels):
            raise ValueError(f"`attention_levels` must lie in 0..{levels - 1}, got {list(attention_levels)}.")
        _check_transformer(transformer_depth, cross_attention_dim, position_encoding, attention_head_dim, levels)
        if refine_merge not in ("concat", "add"):
            raise ValueError(f"`refine_merge` must be 'concat' or 'add', got {refine_merge!r}.")
        mode: Any = conv_mode
        norm: Any = norm_type
        strides: Any = [tuple(downsample_strides[3 * i : 3 * i + 3]) for i in range(levels - 1)]
        # Voxels of the sample from one token of a level to the next, (z, y, x).
        self.token_steps: list[Any] = [
            tuple(p * prod(s[axis] for s in strides[:i]) for axis, p in enumerate(patch_size)) for i in range(levels)
        ]
        self.size_factor: tuple[int, int, int] = self.token_steps[-1]
        widths = list(block_out_channels)
        embedding_dim = 4 * widths[0]
        block_args: tuple[Any, ...] = (embedding_dim, mode, norm, norm_num_groups)

        # 1. embeddings
        self.time_proj = Timesteps(widths[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(widths[0], embedding_dim)
        self.pooled_embedding = TimestepEmbedding(pooled_dim, embedding_dim) if pooled_dim else None

        # 2. stem
        self.stem = conv_nd(in_channels * prod(patch_size), widths[0], mode)

        # 3. encoder, middle, decoder
        def level(i: int, first_in: int) -> nn.ModuleList:
            blocks = [
                CTResBlock(first_in if j == 0 else widths[i], widths[i], *block_args) for j in range(layers_per_block)
            ]
            return nn.ModuleList(blocks)

        def attention(i: int) -> nn.Module | None:
            if i not in attention_levels:
                return None
            return CTSelfAttention(widths[i], attention_head_dim, window_depth, norm, norm_num_groups)

        def transformers(i: int) -> nn.ModuleList:
            args: Any = (widths[i], attention_head_dim, window_depth, cross_attention_dim, norm)
            return nn.ModuleList(
                CTTransformerBlock(*args) for _ in range(transformer_depth[i] if transformer_depth else 0)
            )

        self.down_blocks = nn.ModuleList(level(i, widths[i]) for i in range(levels))
        self.down_attentions = nn.ModuleList(attention(i) or nn.Identity() for i in range(levels))
        self.down_transformers = nn.ModuleList(transformers(i) for i in range(levels))
        self.downsamplers = nn.ModuleList(
            nn.Conv3d(widths[i], widths[i + 1], kernel_size=stride, stride=stride) for i, stride in enumerate(strides)
        )
        self.mid_block = CTResBlock(widths[-1], widths[-1], *block_args)
        self.mid_transformers = transformers(levels - 1)
        self.upsamplers = nn.ModuleList(nn.Conv3d(widths[i + 1], widths[i], 1) for i in range(levels - 1))
        self.up_blocks = nn.ModuleList(level(i, 2 * widths[i]) for i in range(levels - 1))
        self.up_attentions = nn.ModuleList(attention(i) or nn.Identity() for i in range(levels - 1))
        self.up_transformers = nn.ModuleList(transformers(i) for i in range(levels - 1))

        # 4. head and full-resolution refinement
        self.norm_out = norm_nd(widths[0], norm, norm_num_groups)
        head_channels = refine_channels or out_channels
        self.head = nn.Conv3d(widths[0], head_channels * prod(patch_size), 1)
        if refine_channels:
            self.refine_in = conv_nd(in_channels, refine_channels, mode, fuse_z=False)
            self.refine_modulation = nn.Linear(embedding_dim, 2 * refine_channels)
            merged = refine_channels if refine_merge == "add" else 2 * refine_channels
            self.refine_mid = conv_nd(merged, refine_channels, mode)
            self.refine_out = zero_module(conv_nd(refine_channels, out_channels, mode, fuse_z=False))
        else:
            zero_module(self.head)
        self.gradient_checkpointing = False

    @property
    def needs_spacing(self) -> bool:
        """Whether `forward` must be given `spacing_mm`."""
        return any(self.config["transformer_depth"]) and self.config["position_encoding"] == "rotary"

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor | None = None,
        pooled: torch.Tensor | None = None,
        spacing_mm: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet3DCTOutput | tuple[torch.Tensor]:
        """Predicts for a noisy sample.

        Args:
            sample: (batch, in_channels, depth, height, width); the size divisible by `size_factor`.
            timestep: a number, or (batch,).
            encoder_hidden_states: (batch, length, cross_attention_dim) context tokens; None without cross-attention.
            pooled: (batch, pooled_dim) condition vector.
            spacing_mm: (batch, 3) of the sample's voxels, (z, y, x), float32; required where `needs_spacing`, else
                without effect.
            encoder_attention_mask: (batch, length) bool, True where the context may be seen; None for everywhere. A
                sample that may see nothing gets nothing from it.
            return_dict: return `UNet3DCTOutput` rather than a tuple.

        Raises:
            ValueError: if a shape does not fit the configuration.
        """
        self._check_input(sample, encoder_hidden_states, pooled, spacing_mm, encoder_attention_mask)

        # 1. time and pooled condition
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(sample.shape[0])
        embedding = self.time_embedding(self.time_proj(timesteps).to(sample.dtype))
        if self.pooled_embedding is not None and pooled is not None:
            embedding = embedding + self.pooled_embedding(pooled.to(sample.dtype))
        embedding = F.silu(embedding)

        context = None if encoder_hidden_states is None else encoder_hidden_states.to(sample.dtype)
        given = (spacing_mm, context, encoder_attention_mask)

        # 2. stem
        patch = self.config["patch_size"]
        h = convolve(self.stem, lambda sample: self._in_layout(space_to_depth(sample, patch)), sample)

        # 3. encoder
        skips = []
        for i, blocks in enumerate(self.down_blocks):
            if i:
                h = self.downsamplers[i - 1](h)
            h = self._level(h, embedding, blocks, self.down_attentions[i])
            h = self._transform(h, self.down_transformers[i], i, *given)
            skips.append(h)
        h = self._run(self.mid_block, skips.pop(), embedding)
        h = self._transform(h, self.mid_transformers, len(skips), *given)

        # 4. decoder
        for i in reversed(range(len(self.up_blocks))):
            h = self.upsamplers[i](h)
            h = self._level(h, embedding, self.up_blocks[i], self.up_attentions[i], skips[i])
            h = self._transform(h, self.up_transformers[i], i, *given)

        # 5. head
        out = depth_to_space(convolve(self.head, lambda h: silu_(self.norm_out(h)), h), patch)
        if self.config["refine_channels"]:
            out, fine = self._in_layout(out), self.refine_in(sample)
            fine = out + fine if self.config["refine_merge"] == "add" else torch.cat([out, fine], dim=1)
            fine = convolve(self.refine_mid, silu_, fine)
            modulation = self.refine_modulation(embedding)
            out = convolve(self.refine_out, lambda fine, m: silu_(modulate(fine, m)), fine, modulation)
        return UNet3DCTOutput(sample=out) if return_dict else (out,)

    def _in_layout(self, x: torch.Tensor) -> torch.Tensor:
        """`x` with its channels last where the weights have them so, for convolutions and what stands between them."""
        weight = next(self.stem.parameters())
        if weight.is_contiguous() or not weight.is_contiguous(memory_format=torch.channels_last_3d):
            return x
        if len(x) == 1 and x.shape[1] > 16:
            # One transposition, which on a CPU is five times as fast as torch's change of layout of many channels.
            return x[0].flatten(1).t().contiguous().t().unflatten(1, x.shape[2:])[None]
        return x.contiguous(memory_format=torch.channels_last_3d)

    def _level(
        self,
        h: torch.Tensor,
        embedding: torch.Tensor,
        blocks: Any,
        attention: nn.Module,
        skip: torch.Tensor | None = None,
    ) -> torch.Tensor:
        for block in blocks:
            h = self._run(block, h, embedding, skip)
            skip = None  # which the first has taken in
        return self._run(attention, h)

    def _transform(
        self,
        h: torch.Tensor,
        blocks: Any,
        level: int,
        spacing_mm: torch.Tensor | None,
        context: torch.Tensor | None,
        context_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        if not len(blocks):
            return h
        depth, height, width = h.shape[2:]
        cos = sin = None
        if self.config["position_encoding"] == "rotary" and spacing_mm is not None:
            axes = spacing_mm.float().unbind(dim=1)
            token_spacing_mm = torch.stack([mm * step for mm, step in zip(axes, self.token_steps[level])], dim=1)
            window = (min(depth, self.config["window_depth"]), height, width)
            cos, sin = rotary_table(window, token_spacing_mm, self.config["attention_head_dim"])
        tokens = h.flatten(3).permute(0, 2, 3, 1)
        for block in blocks:
            tokens = self._run(block, tokens, cos, sin, context, context_mask)
        out = tokens.permute(0, 3, 1, 2).unflatten(3, (height, width))
        # Tokens have their channels last; without this, all layers behind would run in that layout.
        return out.contiguous() if h.is_contiguous() else out

    def _run(self, block: nn.Module, *args: torch.Tensor | None) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)

    def _check_input(
        self,
        sample: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None,
        pooled: torch.Tensor | None,
        spacing_mm: torch.Tensor | None,
        encoder_attention_mask: torch.Tensor | None,
    ) -> None:
        if sample.ndim != 5 or sample.shape[1] != self.config["in_channels"]:
            raise ValueError(
                f"`sample` must be (batch, {self.config['in_channels']}, depth, height, width), "
                f"got {tuple(sample.shape)}."
            )
        if any(size % factor for size, factor in zip(sample.shape[2:], self.size_factor)):
            raise ValueError(
                f"The size {tuple(sample.shape[2:])} must be divisible by {self.size_factor}; `CTDiffusionPipeline` "
                "pads and crops for you."
            )
        batch = sample.shape[0]
        pooled_dim = self.config["pooled_dim"]
        if pooled_dim and (pooled is None or tuple(pooled.shape) != (batch, pooled_dim)):
            raise ValueError(f"`pooled` must be ({batch}, {pooled_dim}), got {_shape(pooled)}.")
        if not pooled_dim and pooled is not None:
            raise ValueError("This model takes no pooled vector (`pooled_dim` = 0), but one was given.")
        if self.needs_spacing and (spacing_mm is None or tuple(spacing_mm.shape) != (batch, 3)):
            raise ValueError(
                "This model knows positions in mm: give the voxels' `spacing_mm` as a tensor "
                f"({batch}, 3) of (z, y, x), got {_shape(spacing_mm)}."
            )
        self._check_context(batch, encoder_hidden_states, encoder_attention_mask)

    def _check_context(self, batch: int, states: torch.Tensor | None, mask: torch.Tensor | None) -> None:
        dim = self.config["cross_attention_dim"]
        if not dim:
            if states is not None or mask is not None:
                raise ValueError(
                    "This model has no cross-attention: `encoder_hidden_states` and `encoder_attention_mask` must be None."
                )
            return
        if states is None or states.ndim != 3 or (states.shape[0], states.shape[2]) != (batch, dim):
            raise ValueError(f"`encoder_hidden_states` must be ({batch}, length, {dim}), got {_shape(states)}.")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != states.shape[:2]):
            raise ValueError(
                f"`encoder_attention_mask` must be bool {tuple(states.shape[:2])}, got {mask.dtype} {_shape(mask)}."
            )


def _shape(given: torch.Tensor | None) -> tuple[int, ...] | None:
    return None if given is None else tuple(given.shape)


def space_to_depth(x: torch.Tensor, patch: Sequence[int]) -> torch.Tensor:
    """(B, C, D, H, W) -> (B, C pz py px, D/pz, H/py, W/px); the inverse of `depth_to_space`."""
    b, c, d, h, w = x.shape
    pz, py, px = patch
    x = x.reshape(b, c, d // pz, pz, h // py, py, w // px, px)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, c * pz * py * px, d // pz, h // py, w // px)


def depth_to_space(x: torch.Tensor, patch: Sequence[int]) -> torch.Tensor:
    """(B, C pz py px, d, h, w) -> (B, C, d pz, h py, w px)."""
    b, channels, d, h, w = x.shape
    pz, py, px = patch
    c = channels // (pz * py * px)
    x = x.reshape(b, c, pz, py, px, d, h, w)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, c, d * pz, h * py, w * px)


def _check_transformer(
    depth: Sequence[int], cross_attention_dim: int, position_encoding: str, head_dim: int, levels: int
) -> None:
    if position_encoding not in ("rotary", "none"):
        raise ValueError(f"`position_encoding` must be 'rotary' or 'none', got {position_encoding!r}.")
    if len(depth) not in (0, levels) or any(n < 0 for n in depth):
        raise ValueError(
            f"`transformer_depth` must be empty or give a number of blocks for each of the {levels} levels, "
            f"got {list(depth)}."
        )
    if cross_attention_dim < 0 or (cross_attention_dim and not any(depth)):
        raise ValueError(
            f"`cross_attention_dim` = {cross_attention_dim} needs a level with transformer blocks: set `transformer_depth`."
        )
    if any(depth) and position_encoding == "rotary" and head_dim < MIN_HEAD_DIM:
        raise ValueError(
            f"`attention_head_dim` = {head_dim} must be at least {MIN_HEAD_DIM} for rotary positions in three axes."
        )
