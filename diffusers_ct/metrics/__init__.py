"""Metrics in HU. Each takes (predicted, reference, *, convention); none has a default convention."""

from .channels import channel_outputs, dense_dog_channels, gabor_channels, laguerre_gauss_channels, regions_around
from .contrast import contrast_hu, contrast_recovery, contrast_to_noise
from .detectability import Detectability, channelised_hotelling, dose_at, dose_equivalence, exact_d_prime
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
from .insertion import (
    Density,
    Insertion,
    InsertionCase,
    Rate,
    binomial_rate,
    false_lesion_density,
    insertion_test,
    matched_filter,
    with_lesions,
)
from .lesion import Lesion, ball_lesion, rod_lesion
from .roc import Interval, auc, auc_difference, auc_interval, auc_of_d_prime, d_prime_of_auc
from .transfer import TaskTransfer, disc_center, task_transfer

__all__ = [
    "CONVENTIONS",
    "Convention",
    "Density",
    "Detectability",
    "Insertion",
    "InsertionCase",
    "Interval",
    "Lesion",
    "Rate",
    "TaskTransfer",
    "auc",
    "auc_difference",
    "auc_interval",
    "auc_of_d_prime",
    "ball_lesion",
    "bias",
    "binomial_rate",
    "body_mask",
    "channel_outputs",
    "channelised_hotelling",
    "contrast_hu",
    "contrast_recovery",
    "contrast_to_noise",
    "convention_of",
    "d_prime_of_auc",
    "dense_dog_channels",
    "disc_center",
    "dose_at",
    "dose_equivalence",
    "exact_d_prime",
    "false_lesion_density",
    "gabor_channels",
    "insertion_test",
    "laguerre_gauss_channels",
    "mae",
    "matched_filter",
    "psnr_pooled",
    "psnr_slice_mean",
    "regions_around",
    "rmse",
    "rod_lesion",
    "ssim",
    "task_transfer",
    "with_lesions",
]
