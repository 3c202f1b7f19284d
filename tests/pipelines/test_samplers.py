"""Every scheduler of diffusers by `pipe.scheduler = X.from_config(...)`: it samples the Gaussian posterior, or is refused."""

import diffusers.schedulers
import numpy as np
import pytest
from diffusers import DDIMScheduler

from diffusers_ct import CTDiffusionPipeline
from diffusers_ct.pipelines.samplers import SAMPLERS, check_sampler
from diffusers_ct.schedulers import make_noise_scheduler
from tests.pipelines.test_pipeline_ct_diffusion import (
    MEAN,
    SPREAD,
    GaussianPosterior,
    in_noise_levels,
    scan,
    seeded,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of diffusers' own NumPy

# Relative error of the posterior's standard deviation with 50 steps; that of its mean is below 0.02 of it, of which 0.01
# is of the 8192 voxels drawn. Second-order samplers are an order of magnitude closer than those of first order.
SPREAD_ERRORS = {
    "DDIMScheduler": 0.04, "DDIMParallelScheduler": 0.04, "EulerDiscreteScheduler": 0.04,
    "DDPMScheduler": 0.08, "DDPMParallelScheduler": 0.08, "EulerAncestralDiscreteScheduler": 0.08,
    "DPMSolverMultistepScheduler": 0.01, "DPMSolverSinglestepScheduler": 0.02, "UniPCMultistepScheduler": 0.01,
    "DEISMultistepScheduler": 0.01, "LMSDiscreteScheduler": 0.01,
}  # fmt: skip
OTHERS = sorted({name for name in dir(diffusers.schedulers) if name.endswith("Scheduler")} - set(SPREAD_ERRORS))
# These rely on `rescale_betas_zero_snr`, which they do not take, being hardly needed: it is, with the cosine schedule.
WITHOUT_ZERO_SNR = ("DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "LMSDiscreteScheduler")


def pipeline_with(name: str, noise_schedule: str = "cosine", **settings) -> CTDiffusionPipeline:
    """As a user writes it, on a network whose posterior is known."""
    network = GaussianPosterior()
    network.process = make_noise_scheduler(noise_schedule)
    pipe = CTDiffusionPipeline(network, DDIMScheduler.from_config(network.process.config))
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = getattr(diffusers.schedulers, name).from_config(pipe.scheduler.config, **settings)
    return pipe


def posterior(pipe: CTDiffusionPipeline, steps: int) -> np.ndarray:
    low = scan((2, 64, 64))
    return in_noise_levels(pipe(low, num_inference_steps=steps, generator=seeded(), output_type="np").volumes, low)


def test_each_accepted_sampler_is_judged():
    assert {sampler.__name__ for sampler in SAMPLERS} == set(SPREAD_ERRORS) and len(OTHERS) > 30


@pytest.mark.parametrize("name", SPREAD_ERRORS)
def test_an_accepted_sampler_reaches_the_posterior_and_its_mean_in_one_step(name):
    pipe = pipeline_with(name)
    assert np.abs(posterior(pipe, 1) - MEAN).max() < 0.01  # float32, from noise levels of 4096 or 20000
    samples = posterior(pipe, 50)
    assert samples.mean() == pytest.approx(MEAN, abs=0.02 * SPREAD)
    assert samples.std() == pytest.approx(SPREAD, rel=SPREAD_ERRORS[name])


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_scheduler_of_diffusers_is_refused_before_any_work(name):
    try:
        pipe = pipeline_with(name)
    except (TypeError, ImportError, ValueError, NotImplementedError):
        return  # diffusers itself does not make one of this config
    with pytest.raises(ValueError, match=f"{name} is not known to sample the posterior.*use one of DDIMScheduler"):
        pipe(scan())


@pytest.mark.parametrize("noise_schedule", ["linear", "scaled_linear"])
@pytest.mark.parametrize("name", SPREAD_ERRORS)
def test_a_sampler_that_cannot_follow_the_noise_schedule_is_refused(name, noise_schedule):
    pipe = pipeline_with(name, noise_schedule)
    if name in WITHOUT_ZERO_SNR:
        with pytest.raises(ValueError, match=f"{name} does not follow the checkpoint's noise schedule.*DDIMScheduler"):
            pipe(scan())
    else:
        assert np.abs(posterior(pipe, 1) - MEAN).max() < 0.01


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}),
        ("DEISMultistepScheduler", {"use_exponential_sigmas": True}),
        ("LMSDiscreteScheduler", {"use_beta_sigmas": True}),
        ("DDIMScheduler", {"set_alpha_to_one": False}),
        ("DDPMScheduler", {"variance_type": "fixed_large"}),
        ("DDPMScheduler", {"variance_type": "learned_range"}),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}),
        ("UniPCMultistepScheduler", {"predict_x0": False}),
        ("UniPCMultistepScheduler", {"lower_order_final": False}),
        ("UniPCMultistepScheduler", {"use_dynamic_shifting": True}),
        ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction"}),
        ("EulerDiscreteScheduler", {"interpolation_type": "log_linear"}),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}),
    ],
)
def test_settings_that_are_wrong_at_zero_terminal_snr_are_refused(name, setting):
    with pytest.raises(ValueError, match=f"`{next(iter(setting))}="):
        pipeline_with(name, **setting)(scan())


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
        ("DPMSolverMultistepScheduler", {"euler_at_final": True}),
        ("DPMSolverSinglestepScheduler", {"solver_type": "heun"}),
        ("UniPCMultistepScheduler", {"solver_order": 3}),
        ("UniPCMultistepScheduler", {"disable_corrector": [0]}),
        ("DEISMultistepScheduler", {"solver_order": 3}),
    ],
)
def test_settings_that_are_taken_reach_the_posterior(name, setting):
    samples = posterior(pipeline_with(name, **setting), 50)
    assert samples.mean() == pytest.approx(MEAN, abs=0.02 * SPREAD)
    assert samples.std() == pytest.approx(SPREAD, rel=0.02)


def test_settings_of_one_sampler_do_not_bind_another():
    ddpm = make_noise_scheduler()
    ddpm.register_to_config(variance_type="fixed_large")
    check_sampler(diffusers.schedulers.DPMSolverMultistepScheduler.from_config(ddpm.config), 0.0)
