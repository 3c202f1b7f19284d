"""A U-Net together with the encoder of its conditions: what is trained, averaged and wrapped as one module."""

import torch
from torch import nn

from .condition_encoder import ConditionEncoder, Fields
from .unet_3d_ct import UNet3DCTModel, UNet3DCTOutput


class ConditionalDenoiser(nn.Module):
    """Calls the encoder, then the U-Net with its tokens and pooled vector.

    The two stay components of their own (`unet`, `condition_encoder`), which is how a pipeline saves them.

    Args:
        unet: whose `pooled_dim` is the length of `vector` and the encoder's pooled vector together.
        condition_encoder: None for a model without conditions.

    Raises:
        ValueError: if the lengths of tokens or pooled vectors do not fit.
    """

    def __init__(self, unet: UNet3DCTModel, condition_encoder: ConditionEncoder | None = None) -> None:
        super().__init__()
        self.unet = unet
        self.condition_encoder = condition_encoder
        self.takes_tokens = unet.config["cross_attention_dim"] > 0
        if condition_encoder is None:
            if self.takes_tokens:
                raise ValueError(
                    "A U-Net with cross-attention needs a `condition_encoder`, whose tokens it attends to."
                )
            return
        token_dim, pooled_dim = condition_encoder.config["token_dim"], condition_encoder.config["pooled_dim"]
        if self.takes_tokens and token_dim != unet.config["cross_attention_dim"]:
            raise ValueError(
                f"The encoder's `token_dim` = {token_dim} must equal the U-Net's `cross_attention_dim` = "
                f"{unet.config['cross_attention_dim']}."
            )
        if unet.config["pooled_dim"] < pooled_dim:
            raise ValueError(
                f"The U-Net's `pooled_dim` = {unet.config['pooled_dim']} must be at least the encoder's = {pooled_dim}, "
                "by the length of the `vector` it is called with."
            )

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        *,
        fields: Fields | None = None,
        vector: torch.Tensor | None = None,
        spacing_mm: torch.Tensor | None = None,
    ) -> UNet3DCTOutput:
        """Predicts for a noisy sample under conditions.

        Args:
            sample: (batch, in_channels, depth, height, width).
            timestep: a number, or (batch,).
            fields: of the condition encoder; None is all unknown.
            vector: (batch, n), put before the encoder's pooled vector (`residual.scan_vector` for restoration).
            spacing_mm: (batch, 3) as (z, y, x), for a U-Net that needs it.

        Raises:
            ValueError: if fields are given without an encoder, or a shape does not fit.
        """
        pooled = [] if vector is None else [vector]
        tokens = mask = None
        if self.condition_encoder is not None:
            encoded = self.condition_encoder({} if fields is None else fields, batch_size=sample.shape[0])
            pooled.append(encoded.pooled)
            if self.takes_tokens:
                tokens, mask = encoded.tokens, encoded.mask
        elif fields and set(fields) != {"spacing_mm"}:  # which comes with every scan
            raise ValueError(
                "Conditions were given, but this model was trained without: it has no `condition_encoder`."
            )
        return self.unet(
            sample,
            timestep,
            encoder_hidden_states=tokens,
            pooled=torch.cat([p.to(sample.device, sample.dtype) for p in pooled], dim=1) if pooled else None,
            spacing_mm=spacing_mm,
            encoder_attention_mask=mask,
        )

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes the U-Net's blocks in the backward pass instead of storing them."""
        self.unet.enable_gradient_checkpointing()
