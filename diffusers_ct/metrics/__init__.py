"""Metrics in HU. Each takes (predicted, reference, *, convention); none has a default convention."""

from .image import (
    CONVENTIONS,
    Convention,
    bias,
    body_mask,
    convention_of,
    mae,
    psnr_pooled,
    psnr_slice_mean,
    rmse,
    ssim,
)

__all__ = [
    "CONVENTIONS",
    "Convention",
    "bias",
    "body_mask",
    "convention_of",
    "mae",
    "psnr_pooled",
    "psnr_slice_mean",
    "rmse",
    "ssim",
]
