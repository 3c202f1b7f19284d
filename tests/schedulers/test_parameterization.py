"""The algebra of predictions against a Gaussian, whose score and posterior mean are known."""

import pytest
import torch
from diffusers import DDIMScheduler

from diffusers_ct.schedulers import (
    NOISE_SCHEDULES,
    alpha_sigma,
    check_scheduler_config,
    eps_to_score,
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

T = torch.tensor([0, 10, 500, 900])


@pytest.fixture
def process():
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 4, 1, 2, 3, 3, generator=g)
    alpha, sigma = alpha_sigma(make_noise_scheduler("cosine"), T)
    return x0, eps, alpha, sigma, alpha * x0 + sigma * eps


def test_v_gives_back_both_parts(process):
    x0, eps, alpha, sigma, x_t = process
    v = x0_to_v(x0, eps, alpha, sigma)
    torch.testing.assert_close(v_to_x0(v, x_t, alpha, sigma), x0)
    torch.testing.assert_close(v_to_eps(v, x_t, alpha, sigma), eps)
    torch.testing.assert_close(x0_to_eps(x0, x_t, alpha, sigma), eps, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "sample"])
def test_every_prediction_type_round_trips(process, kind):
    x0, _, alpha, sigma, x_t = process
    prediction = x0_to_prediction(x0, x_t, alpha, sigma, kind)
    torch.testing.assert_close(prediction_to_x0(prediction, x_t, alpha, sigma, kind), x0, rtol=1e-3, atol=2e-3)


def test_score_of_a_standard_gaussian_is_minus_x(process):
    # x0 ~ N(0, 1) makes x_t ~ N(0, 1), score -x_t, and E[eps | x_t] = sigma x_t.
    _, _, _, sigma, x_t = process
    torch.testing.assert_close(eps_to_score(sigma * x_t, sigma), -x_t)
    torch.testing.assert_close(score_to_eps(-x_t, sigma), sigma * x_t)


def test_velocity_and_noising_agree_with_diffusers(process):
    x0, eps, alpha, sigma, x_t = process
    scheduler = make_noise_scheduler("cosine")
    torch.testing.assert_close(scheduler.add_noise(x0, eps, T), x_t)
    torch.testing.assert_close(scheduler.get_velocity(x0, eps, T), x0_to_v(x0, eps, alpha, sigma))


@pytest.mark.parametrize("name", NOISE_SCHEDULES)
def test_last_step_has_no_signal_and_snr_falls(name):
    scheduler = make_noise_scheduler(name)
    snr = signal_to_noise(scheduler, torch.arange(1000))
    assert snr[-1] == 0.0
    assert (snr[1:] < snr[:-1]).all()
    v, x_t = torch.randn(2, 1, 1, 1, 4, 4)
    alpha, sigma = alpha_sigma(scheduler, torch.tensor([999]))
    torch.testing.assert_close(v_to_x0(v, x_t, alpha, sigma), -v)


def test_config_is_one_that_sampling_can_use():
    config = make_noise_scheduler().config
    assert (config.timestep_spacing, config.clip_sample, config.prediction_type) == ("trailing", False, "v_prediction")
    sampler = DDIMScheduler.from_config(config)
    sampler.set_timesteps(1)
    assert sampler.timesteps.tolist() == [999]


def test_refusals():
    with pytest.raises(ValueError, match="divides by zero"):
        check_scheduler_config({"rescale_betas_zero_snr": True, "prediction_type": "epsilon"})
    with pytest.raises(ValueError, match="thresholding"):
        check_scheduler_config({"thresholding": True})
    with pytest.raises(ValueError, match="Unknown noise schedule"):
        make_noise_scheduler("quadratic")
    with pytest.raises(ValueError, match="prediction_type"):
        make_noise_scheduler(prediction_type="flow")
    with pytest.raises(ValueError, match="prediction_type"):
        prediction_to_x0(torch.zeros(1), torch.zeros(1), torch.ones(1), torch.ones(1), "flow")
    assert not make_noise_scheduler(prediction_type="epsilon").config.rescale_betas_zero_snr
