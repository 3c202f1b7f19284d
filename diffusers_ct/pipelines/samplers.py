"""Which of diffusers' schedulers sample the posterior, with which settings: the others are refused with a sentence.

All below reach a Gaussian posterior known in closed form (`tests/pipelines/test_samplers.py` states each one's error).
"""

from typing import Any

from diffusers import (
    DDIMParallelScheduler,
    DDIMScheduler,
    DDPMParallelScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LMSDiscreteScheduler,
    UniPCMultistepScheduler,
)

from ..schedulers import CTConsistencyScheduler, check_distilled_steps, check_scheduler_config

_DDIM = (DDIMScheduler, DDIMParallelScheduler)
_DDPM = (DDPMScheduler, DDPMParallelScheduler)
_UNIPC = (UniPCMultistepScheduler,)
_EULER = (EulerDiscreteScheduler,)
# Others run and are wrong at zero terminal SNR: with 20 steps the spread of Heun's samples is 2.2 times that of the
# posterior, IPNDM's mean is off by 1.3 of its standard deviations, LCM's spread is a third too small (it is made for distilled models).
# KDPM2 asks the network about times between the steps, where guidance does not know the noise level.
SAMPLERS = (
    *_DDIM, *_DDPM, *_UNIPC, *_EULER, EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler, DEISMultistepScheduler, LMSDiscreteScheduler,
)  # fmt: skip

# (samplers, setting, right values, what any other does)
_SETTINGS: tuple[tuple[tuple[type, ...], str, tuple[Any, ...], str], ...] = (
    (SAMPLERS, "timestep_spacing", ("trailing",), "does not start from pure noise, so that the result is biased"),
    (SAMPLERS, "clip_sample", (False, None), "cuts the residual's noise at 1"),
    (SAMPLERS, "use_karras_sigmas", (False, None), "is not right at zero terminal SNR"),
    (SAMPLERS, "use_exponential_sigmas", (False, None), "is not right at zero terminal SNR"),
    (SAMPLERS, "use_beta_sigmas", (False, None), "is not right at zero terminal SNR"),
    (SAMPLERS, "use_flow_sigmas", (False, None), "is the noise process of another kind of model"),
    (SAMPLERS, "final_sigmas_type", ("zero",), "leaves noise in the result"),
    (_DDIM, "set_alpha_to_one", (True,), "leaves noise in the result"),
    (_DDPM, "variance_type", ("fixed_small", "fixed_small_log"), "adds noise in the last step, or cannot be computed"),
    (_UNIPC, "solver_type", ("bh2",), "is not a number at zero terminal SNR"),
    (_UNIPC, "predict_x0", (True,), "is not a number at zero terminal SNR"),
    (_UNIPC, "lower_order_final", (True,), "is not a number in the last step"),
    (_UNIPC, "use_dynamic_shifting", (False, None), "moves the noise levels away from those of the checkpoint"),
    (_EULER, "interpolation_type", ("linear",), "is not right at zero terminal SNR"),
    (_EULER, "timestep_type", ("discrete",), "tells the network another time than it was trained with"),
)
# What makes the noise process, in the config of any of them.
_PROCESS = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
)  # fmt: skip
# Of alpha_t. UniPC and DPM-Solver++ put 2.4e-4 in place of zero at the last step, which changes the estimate of one step
# by 0.001 noise levels; a schedule that misses zero by 0.006 changes it by 0.02.
_ALPHA_TOLERANCE = 5e-4


def check_steps_of_distilled(scheduler: Any, num_inference_steps: int) -> None:
    """Refuses to sample a distilled network in another way than it was distilled for; one step of DDIM stays its estimate.

    Raises:
        ValueError: for other steps.
    """
    distilled = scheduler.config.get("distilled_timesteps")  # kept by `from_config` of any scheduler
    if isinstance(scheduler, CTConsistencyScheduler):
        check_distilled_steps(distilled, num_inference_steps)
    elif distilled and num_inference_steps != 1:
        raise ValueError(
            f"This checkpoint was distilled: {type(scheduler).__name__} gives its estimate of least mean square error with "
            "`num_inference_steps` = 1 and nothing of use with more. Sample it by "
            "CTConsistencyScheduler.from_config(pipe.scheduler.config), or load its teacher."
        )


def few_step_scheduler(scheduler: Any) -> Any:
    """UniPC in place of plain DDIM, whose samples of few steps are too narrow; any other scheduler as it is.

    Of a Gaussian posterior of 0.3, 0.6 and 1 noise levels, 10 steps of UniPC keep 87, 98 and 100 % of the spread and 10 of
    DDIM 79, 87 and 88 %; 25 steps keep 98 to 100 % and 91 to 95 %.
    """
    plain = type(scheduler) is DDIMScheduler and not scheduler.config.get("distilled_timesteps")
    return UniPCMultistepScheduler.from_config(scheduler.config) if plain else scheduler


def check_sampler(scheduler: Any, eta: float) -> None:
    """Refuses a sampler, or settings of it, that would bias the result.

    Raises:
        ValueError: naming the setting.
    """
    name = type(scheduler).__name__
    if not isinstance(scheduler, SAMPLERS):
        raise ValueError(
            f"{name} is not known to sample the posterior at zero terminal SNR: use one of "
            f"{', '.join(sampler.__name__ for sampler in SAMPLERS)}, made with from_config(pipe.scheduler.config)."
        )
    config = scheduler.config
    check_scheduler_config(config)
    if not 0.0 <= eta < 1.0:
        # diffusers takes the root of 1 - alpha - sigma^2, which rounds below zero at the first step.
        raise ValueError(f"`eta` must be in [0, 1), got {eta}: for eta = 1 use DDPMScheduler, the same sampler.")
    for samplers, setting, right, wrong in _SETTINGS:
        value = config.get(setting, right[0])
        if isinstance(scheduler, samplers) and value not in right:
            raise ValueError(
                f"`{setting}={value!r}` {wrong}: make the scheduler with "
                f"{name}.from_config(pipe.scheduler.config, {setting}={right[0]!r})."
            )
    # Some leave out `rescale_betas_zero_snr`, which only the cosine schedule hardly needs, and would sample another process.
    process = DDPMScheduler(**{key: config[key] for key in _PROCESS if key in config})
    if (scheduler.alphas_cumprod.sqrt() - process.alphas_cumprod.sqrt()).abs().max() > _ALPHA_TOLERANCE:
        raise ValueError(
            f"{name} does not follow the checkpoint's noise schedule ({config['beta_schedule']!r} with zero terminal SNR), "
            "so that the result would be biased: use DDIMScheduler, DPMSolverMultistepScheduler or UniPCMultistepScheduler."
        )
