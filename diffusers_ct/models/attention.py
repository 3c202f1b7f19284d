"""Attention over the voxels of a CT volume, through diffusers' own dispatch."""

from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import nn

from .blocks import NormType, norm_nd, zero_module
from .rotary import rotate


class CTAttentionProcessor:
    """Calls diffusers' attention dispatch, so that `set_attention_backend` and fused projections work."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: Any,
        tokens: torch.Tensor,
        context: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        cos: torch.Tensor | None = None,
        sin: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if attn.is_cross_attention:
            query = attn.to_q(tokens)
            key, value = (
                attn.to_kv(context).chunk(2, dim=-1)
                if attn.fused_projections
                else (attn.to_k(context), attn.to_v(context))
            )
        elif attn.fused_projections:
            query, key, value = attn.to_qkv(tokens).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(tokens), attn.to_k(tokens), attn.to_v(tokens)
        query, key, value = (t.unflatten(-1, (attn.heads, -1)) for t in (query, key, value))
        if cos is not None and sin is not None:
            query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        out = dispatch_attention_fn(query, key, value, attn_mask=mask, backend=self._attention_backend)
        project: Any = attn.to_out[0]
        return project(out.flatten(-2).to(tokens.dtype))


class CTAttention(nn.Module, AttentionModuleMixin):
    """Multi-head attention of tokens to each other or, with `context_dim`, to a context; its output begins at zero."""

    _default_processor_cls = CTAttentionProcessor
    _available_processors = [CTAttentionProcessor]  # noqa: RUF012 (diffusers' own form)

    def __init__(self, channels: int, head_dim: int, context_dim: int = 0) -> None:
        super().__init__()
        self._make_projections(channels, head_dim, context_dim)

    def _make_projections(self, channels: int, head_dim: int, context_dim: int) -> None:
        if channels % head_dim:
            raise ValueError(f"`attention_head_dim` = {head_dim} must divide the level's {channels} channels.")
        self.processor: Any = None  # set below, by the mixin
        self.heads = channels // head_dim
        self.is_cross_attention = context_dim > 0
        self.use_bias = True
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(context_dim or channels, channels)
        self.to_v = nn.Linear(context_dim or channels, channels)
        self.to_out = nn.ModuleList([zero_module(nn.Linear(channels, channels)), nn.Dropout(0.0)])
        self.set_processor(CTAttentionProcessor())  # type: ignore[operator]

    def forward(
        self,
        tokens: torch.Tensor,
        context: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
        cos: torch.Tensor | None = None,
        sin: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(batch, length, channels) -> the same.

        Args:
            tokens: (batch, length, channels).
            context: (batch, context length, context_dim), for cross-attention.
            context_mask: (batch, context length) bool, True where the context may be seen. Tokens of a sample that
                may see nothing get exactly zero.
            cos: with `sin`, of `rotary_table`; turns queries and keys.
            sin: see `cos`.
        """
        if context_mask is None:
            return self.processor(self, tokens, context, None, cos, sin)
        known = context_mask.any(dim=1)
        # A softmax over nothing is NaN: such a row sees all, and its result is then dropped.
        mask = (context_mask | ~known[:, None])[:, None, None, :]
        return self.processor(self, tokens, context, mask, cos, sin) * known[:, None, None]


class CTSelfAttention(CTAttention):
    """Residual self-attention among the voxels of `window_depth` neighbouring slices, without positions.

    The slices are cut into windows from the first on, the last one may be thinner; cost is linear in depth.
    """

    def __init__(
        self, channels: int, head_dim: int, window_depth: int, norm_type: NormType = "group", groups: int = 8
    ) -> None:
        nn.Module.__init__(self)
        self.window_depth = window_depth
        # Before the projections: the optimizer's state in a checkpoint goes by the order of the parameters.
        self.norm = norm_nd(channels, norm_type, groups)
        self._make_projections(channels, head_dim, context_dim=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        h = self.norm(x)
        windows = [self._attend(window) for window in h.split(self.window_depth, dim=2)]
        return x + torch.cat(windows, dim=2)

    def _attend(self, h: torch.Tensor) -> torch.Tensor:
        tokens = h.flatten(2).transpose(1, 2)
        return self.processor(self, tokens).transpose(1, 2).unflatten(2, h.shape[2:])
