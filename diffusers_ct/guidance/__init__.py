"""Guidance: a denoiser in, a denoiser out, so that one stacks on another whatever the scheduler and prediction type."""

from .classifier import ClassifierGuidance, LogProbability
from .classifier_free import (
    ClassifierFreeGuidance,
    Evaluate,
    GuidanceScale,
    compose,
    guidance_weights,
    rescale_to,
)
from .denoiser import (
    Denoiser,
    check_interval,
    check_scale,
    denoiser_from_prediction,
    in_interval,
    prediction_from_x0,
)
from .sigma_denoiser import SigmaDenoiser, denoiser_at_sigma

__all__ = [
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "Denoiser",
    "Evaluate",
    "GuidanceScale",
    "LogProbability",
    "SigmaDenoiser",
    "check_interval",
    "check_scale",
    "compose",
    "denoiser_at_sigma",
    "denoiser_from_prediction",
    "guidance_weights",
    "in_interval",
    "prediction_from_x0",
    "rescale_to",
]
