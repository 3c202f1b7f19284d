"""One forward process, four ways to write its prediction; and the noise schedules they are used with.

x_t = alpha_t x0 + sigma_t eps, alpha_t^2 + sigma_t^2 = 1 (Ho et al. 2020, arXiv:2006.11239, eq. 4);
v = alpha_t eps - sigma_t x0 (Salimans and Ho 2022, arXiv:2202.00512, appendix D).
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDPMScheduler

from .log_snr_shift import LogSNRShift
from .scheduling_ct_adaptive import CTAdaptiveDDIMScheduler

NOISE_SCHEDULES: dict[str, str] = {
    "cosine": "squaredcos_cap_v2",  # Nichol and Dhariwal 2021, arXiv:2102.09672
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "sigmoid": "sigmoid",
}
# Below it x_t tells nothing (SNR under 3e-7). Schedulers that divide by alpha keep 2^-12 in place of the last 0.
_ZERO_SNR_ALPHA = 5e-4
PREDICTION_TYPES = ("v_prediction", "epsilon", "sample")


def alpha_sigma(
    scheduler: Any, timesteps: torch.Tensor, ndim: int = 5, log_snr_shift: LogSNRShift | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha_t and sigma_t of each sample.

    Args:
        scheduler: any with `alphas_cumprod`.
        timesteps: (batch,) integers.
        ndim: axes of the result.
        log_snr_shift: (batch,) changes of the schedule; None takes those in force of a `CTAdaptiveDDIMScheduler`, and
            the schedule as it is of any other.

    Returns:
        Two float32 tensors, (batch, 1, ...).
    """
    alphas_cumprod = scheduler.alphas_cumprod.to(timesteps.device, torch.float32)[timesteps.long()]
    if log_snr_shift is None and isinstance(scheduler, CTAdaptiveDDIMScheduler):
        log_snr_shift = scheduler.shift_in_force
    if log_snr_shift is not None:
        alphas_cumprod = log_snr_shift.alphas_cumprod(alphas_cumprod).float().to(timesteps.device)
    shape = (-1,) + (1,) * (ndim - 1)
    return alphas_cumprod.sqrt().reshape(shape), (1.0 - alphas_cumprod).sqrt().reshape(shape)


def without_pure_noise(x_t: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """x_t as a restoring network is shown it: zeros where the signal-to-noise ratio is zero.

    There x_t is noise alone and tells nothing. A network that sees it must learn to ignore it, which costs training and
    leaves some of the noise in the one-step estimate; with zeros, one step is a regression, and the same for every seed.

    Args:
        x_t: (batch, ...).
        alpha: of each sample, of as many axes.
    """
    return torch.where(alpha < _ZERO_SNR_ALPHA, torch.zeros_like(x_t), x_t)


def last_noisy_timestep(scheduler: Any) -> int:
    """The last timestep at which a restoring network is shown the noise: see `without_pure_noise`.

    What it tells there is so little that sampling may start at it from pure noise: alpha is below 0.002 in the schedules
    of `NOISE_SCHEDULES`.
    """
    return int((scheduler.alphas_cumprod.sqrt() >= _ZERO_SNR_ALPHA).nonzero()[-1])


def sample_shift(scheduler: Any, conditions: Mapping[str, torch.Tensor]) -> LogSNRShift | None:
    """How the conditions move the schedule of each sample: see `CTAdaptiveDDIMScheduler.log_snr_shift`.

    None for any other scheduler. In training these are *all* known conditions, also those that are dropped for the
    network: it is told the noise level itself, by `network_timesteps`.
    """
    if not isinstance(scheduler, CTAdaptiveDDIMScheduler):
        return None
    shift = scheduler.log_snr_shift(conditions)
    # A zero, not None, which would stand for the schedules in force: those of the last sampling.
    return LogSNRShift(torch.zeros(1)) if shift is None else shift


def network_timesteps(
    scheduler: Any, timesteps: torch.Tensor, log_snr_shift: LogSNRShift | None = None
) -> torch.Tensor:
    """What the network is told of the noise level: see `CTAdaptiveDDIMScheduler.network_timesteps`.

    `timesteps` themselves for any other scheduler.
    """
    if isinstance(scheduler, CTAdaptiveDDIMScheduler):
        return scheduler.network_timesteps(timesteps, log_snr_shift)
    return timesteps


def signal_to_noise(scheduler: Any, timesteps: torch.Tensor) -> torch.Tensor:
    """SNR = alpha_t^2 / sigma_t^2, (batch,); 0 at the last step of a zero-terminal-SNR schedule."""
    alpha, sigma = alpha_sigma(scheduler, timesteps, 1)
    return (alpha / sigma) ** 2


def x0_to_v(x0: torch.Tensor, eps: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """v = alpha eps - sigma x0."""
    return alpha * eps - sigma * x0


def v_to_x0(v: torch.Tensor, x_t: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """x0 = alpha x_t - sigma v; at zero SNR x0 = -v, whatever x_t is."""
    return alpha * x_t - sigma * v


def v_to_eps(v: torch.Tensor, x_t: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """eps = sigma x_t + alpha v."""
    return sigma * x_t + alpha * v


def eps_to_x0(eps: torch.Tensor, x_t: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """x0 = (x_t - sigma eps) / alpha; not defined at zero SNR."""
    return (x_t - sigma * eps) / alpha


def x0_to_eps(x0: torch.Tensor, x_t: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """eps = (x_t - alpha x0) / sigma; not defined without noise."""
    return (x_t - alpha * x0) / sigma


def eps_to_score(eps: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """score = -eps / sigma (Song et al. 2021, arXiv:2011.13456, section 3)."""
    return -eps / sigma


def score_to_eps(score: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """eps = -sigma score."""
    return -sigma * score


def prediction_to_x0(
    prediction: torch.Tensor, x_t: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, prediction_type: str
) -> torch.Tensor:
    """Clean sample from a network output of diffusers' `prediction_type`.

    Raises:
        ValueError: for an unknown type.
    """
    if prediction_type == "v_prediction":
        return v_to_x0(prediction, x_t, alpha, sigma)
    if prediction_type == "epsilon":
        return eps_to_x0(prediction, x_t, alpha, sigma)
    if prediction_type == "sample":
        return prediction
    raise ValueError(f"Unknown `prediction_type` {prediction_type!r}: use 'v_prediction', 'epsilon' or 'sample'.")


def x0_to_prediction(
    x0: torch.Tensor, x_t: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, prediction_type: str
) -> torch.Tensor:
    """The network output that stands for a clean sample; the inverse of `prediction_to_x0`."""
    if prediction_type == "sample":
        return x0
    eps = x0_to_eps(x0, x_t, alpha, sigma)
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "v_prediction":
        return x0_to_v(x0, eps, alpha, sigma)
    raise ValueError(f"Unknown `prediction_type` {prediction_type!r}: use 'v_prediction', 'epsilon' or 'sample'.")


def check_scheduler_config(config: Any) -> None:
    """Refuses combinations that are not a number or that bias the result.

    Raises:
        ValueError: epsilon prediction with zero terminal SNR divides by zero; dynamic thresholding fails on volumes; a
            prediction type is unknown.
    """
    if config.get("rescale_betas_zero_snr") and config.get("prediction_type", "epsilon") == "epsilon":
        raise ValueError(
            "`prediction_type='epsilon'` with `rescale_betas_zero_snr=True` divides by zero at the first step: "
            "use 'v_prediction'."
        )
    if (kind := config.get("prediction_type", "epsilon")) not in PREDICTION_TYPES:
        raise ValueError(
            f"`prediction_type={kind!r}` is not one of {PREDICTION_TYPES}: this package has no such models."
        )
    if config.get("thresholding"):
        raise ValueError(
            "`thresholding=True` fails above 2^24 voxels and has no meaning for residuals: set it to False."
        )


def make_noise_scheduler(
    noise_schedule: str = "cosine", *, prediction_type: str = "v_prediction", num_train_timesteps: int = 1000
) -> DDPMScheduler:
    """Forward process for training, with what sampling needs written into its config.

    v- and sample prediction get zero terminal SNR (Lin et al. 2024, arXiv:2305.08891), so that the first step of
    sampling starts from pure noise; "trailing" steps start there; nothing is clipped.

    Raises:
        ValueError: for an unknown schedule or prediction type.
    """
    if prediction_type not in ("v_prediction", "epsilon", "sample"):
        raise ValueError(f"Unknown `prediction_type` {prediction_type!r}: use 'v_prediction', 'epsilon' or 'sample'.")
    if noise_schedule not in NOISE_SCHEDULES:
        raise ValueError(f"Unknown noise schedule {noise_schedule!r}: choose one of {sorted(NOISE_SCHEDULES)}.")
    return DDPMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_schedule=NOISE_SCHEDULES[noise_schedule],
        prediction_type=prediction_type,
        rescale_betas_zero_snr=prediction_type != "epsilon",
        timestep_spacing="trailing",
        clip_sample=False,
    )
