"""Restoration that is told more than the low-dose scan: conditions of the scan, and images beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..image_conditions import encode_images
from ..residual import encode_condition, scan_vector
from .batch_conditions import check_dropping, dropped_fields, dropped_images
from .objectives import ResidualDiffusionObjective


class ConditionalResidualObjective(ResidualDiffusionObjective):
    """`ResidualDiffusionObjective` for a `ConditionalDenoiser`, with any subset of conditions and images known.

    The batch holds besides: fields of `collate_conditions`, and "image_<kind>" (batch, 1, depth, height, width) from
    `normalise_image`, NaN where not known. Each condition and each image is dropped on its own, so that any may be
    missing, or guided by, in sampling.

    Args:
        model: a `ConditionalDenoiser`, whose vector is `residual.scan_vector`.
        noise_scheduler: as in `ResidualDiffusionObjective`, and `terminal_fraction` too.
        terminal_fraction: see there.
        image_kinds: of the images, in the order of the network's channels.
        drop_each: probability that a condition, or an image, is dropped on its own.
        drop_all: probability that all conditions and images of an item are dropped together.
        mask_classes: labels of the image kind "mask".

    References:
        Ho and Salimans 2022, arXiv:2207.12598 (dropped conditions).
    """

    def __init__(
        self,
        model: nn.Module,
        noise_scheduler: Any,
        *,
        terminal_fraction: float,
        image_kinds: Sequence[str] = (),
        drop_each: float = 0.1,
        drop_all: float = 0.1,
        mask_classes: int = 0,
    ) -> None:
        super().__init__(model, noise_scheduler, terminal_fraction=terminal_fraction)
        check_dropping(drop_each=drop_each, drop_all=drop_all)
        self.image_kinds = tuple(image_kinds)
        self.drop_each, self.drop_all = drop_each, drop_all
        self.mask_classes = mask_classes

    def predict(
        self, x_t: torch.Tensor, told: torch.Tensor, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor
    ) -> torch.Tensor:
        noise_hu, spacing_mm = batch["noise_hu"], batch["spacing_mm"]
        fields = dropped_fields(batch, seeds, each=self.drop_each, all_=self.drop_all)
        images = dropped_images(batch, self.image_kinds, seeds, each=self.drop_each, all_=self.drop_all)
        channels = [x_t, encode_condition(batch["low_hu"].float(), noise_hu)]
        if self.image_kinds:
            channels.append(encode_images(images, self.image_kinds, like=x_t, mask_classes=self.mask_classes))
        vector = scan_vector(noise_hu, spacing_mm)
        return self.model(torch.cat(channels, dim=1), told, fields=fields, vector=vector, spacing_mm=spacing_mm).sample
