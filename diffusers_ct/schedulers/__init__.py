"""Noise schedules and the algebra of their predictions."""

from .log_snr_fit import denoising_errors, fit_shift_network, fit_shift_table, log_snr_at_error, matching_shift
from .log_snr_shift import LogSNRShift
from .parameterization import (
    NOISE_SCHEDULES,
    alpha_sigma,
    check_scheduler_config,
    eps_to_score,
    eps_to_x0,
    last_noisy_timestep,
    make_noise_scheduler,
    network_timesteps,
    prediction_to_x0,
    sample_shift,
    score_to_eps,
    signal_to_noise,
    v_to_eps,
    v_to_x0,
    without_pure_noise,
    x0_to_eps,
    x0_to_prediction,
    x0_to_v,
)
from .scheduling_ct_adaptive import CTAdaptiveDDIMScheduler
from .scheduling_ct_consistency import CTConsistencyScheduler, check_distilled_steps

__all__ = [
    "NOISE_SCHEDULES",
    "CTAdaptiveDDIMScheduler",
    "CTConsistencyScheduler",
    "LogSNRShift",
    "alpha_sigma",
    "check_distilled_steps",
    "check_scheduler_config",
    "denoising_errors",
    "eps_to_score",
    "eps_to_x0",
    "fit_shift_network",
    "fit_shift_table",
    "last_noisy_timestep",
    "log_snr_at_error",
    "make_noise_scheduler",
    "matching_shift",
    "network_timesteps",
    "prediction_to_x0",
    "sample_shift",
    "score_to_eps",
    "signal_to_noise",
    "v_to_eps",
    "v_to_x0",
    "without_pure_noise",
    "x0_to_eps",
    "x0_to_prediction",
    "x0_to_v",
]
