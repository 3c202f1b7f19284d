"""The transformer block of `UNet3DCTModel`."""

import torch
from diffusers.models.attention import FeedForward
from torch import nn

from .attention import CTAttention
from .blocks import NormType, zero_module


class CTTransformerBlock(nn.Module):
    """Windowed self-attention, cross-attention (with `context_dim`) and feed-forward, each on normalised tokens.

    Each is added to its input and begins at zero. The norms are over a token's own channels: unlike a group norm they
    do not depend on the tile. The time has entered in the residual blocks before.

    References:
        Vaswani et al. 2017, arXiv:1706.03762; Xiong et al. 2020, arXiv:2002.04745 (norm first);
        Shazeer 2020, arXiv:2002.05202 (GEGLU).
    """

    def __init__(
        self, channels: int, head_dim: int, window_depth: int, context_dim: int = 0, norm_type: NormType = "group"
    ) -> None:
        super().__init__()
        norm = nn.RMSNorm if norm_type == "rms" else nn.LayerNorm
        self.window_depth = window_depth
        self.norm1 = norm(channels, eps=1e-5)
        self.attn1 = CTAttention(channels, head_dim)
        self.norm2 = norm(channels, eps=1e-5) if context_dim else None
        self.attn2 = CTAttention(channels, head_dim, context_dim) if context_dim else None
        self.norm3 = norm(channels, eps=1e-5)
        self.ff = FeedForward(channels, activation_fn="geglu")
        zero_module(self.ff.net[-1])

    def forward(
        self,
        tokens: torch.Tensor,
        cos: torch.Tensor | None = None,
        sin: torch.Tensor | None = None,
        context: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(batch, depth, tokens of a slice, channels) -> the same.

        Args:
            tokens: of a level's grid.
            cos: with `sin`, of `rotary_table` for the first min(depth, window_depth) slices; None for no positions.
            sin: see `cos`.
            context: (batch, length, context_dim).
            context_mask: (batch, length) bool, True where it may be seen.
        """
        tokens = tokens + self._attend_in_windows(self.norm1(tokens), cos, sin)
        if self.norm2 is not None and self.attn2 is not None:
            seen = self.attn2(self.norm2(tokens).flatten(1, 2), context, context_mask)
            tokens = tokens + seen.unflatten(1, tokens.shape[1:3])
        return tokens + self.ff(self.norm3(tokens))

    def _attend_in_windows(
        self, tokens: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None
    ) -> torch.Tensor:
        """Windows are cut from the first slice on; equal ones become a batch, the last one may be thinner."""
        batch, depth, per_slice, channels = tokens.shape
        whole = depth - depth % self.window_depth
        parts = []
        for part, thickness in ((tokens[:, :whole], self.window_depth), (tokens[:, whole:], depth - whole)):
            count = part.shape[1] // thickness if thickness else 0
            if not count:
                continue
            length = thickness * per_slice
            # Positions count from a window's own start: only distances matter.
            tables = [None if t is None else t[:, :length].repeat_interleave(count, dim=0) for t in (cos, sin)]
            windows = part.reshape(batch * count, length, channels)
            parts.append(self.attn1(windows, None, None, *tables).reshape(part.shape))
        return torch.cat(parts, dim=1)
