"""Noise schedules and the algebra of their predictions."""

from .parameterization import (
    NOISE_SCHEDULES,
    alpha_sigma,
    check_scheduler_config,
    eps_to_score,
    eps_to_x0,
    make_noise_scheduler,
    prediction_to_x0,
    score_to_eps,
    signal_to_noise,
    v_to_eps,
    v_to_x0,
    x0_to_eps,
    x0_to_prediction,
    x0_to_v,
)

__all__ = [
    "NOISE_SCHEDULES",
    "alpha_sigma",
    "check_scheduler_config",
    "eps_to_score",
    "eps_to_x0",
    "make_noise_scheduler",
    "prediction_to_x0",
    "score_to_eps",
    "signal_to_noise",
    "v_to_eps",
    "v_to_x0",
    "x0_to_eps",
    "x0_to_prediction",
    "x0_to_v",
]
