"""Sampling of a distilled network: its timesteps, its noise, and what it refuses."""

import pytest
import torch

from diffusers_ct import CTConsistencyScheduler
from diffusers_ct.schedulers import NOISE_SCHEDULES, alpha_sigma, last_noisy_timestep, make_noise_scheduler, x0_to_v

CONFIG = make_noise_scheduler().config


def scheduler(timesteps=(998, 499)) -> CTConsistencyScheduler:
    return CTConsistencyScheduler.from_config(CONFIG, distilled_timesteps=timesteps)


def test_a_step_ends_at_the_sample_and_noises_it_for_the_next():
    made = scheduler()
    made.set_timesteps(2)
    assert made.timesteps.tolist() == [998, 499]
    x0, eps = torch.randn(2, 3, 1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for timestep, following in ((998, 499), (499, None)):
        alpha, sigma = alpha_sigma(made, torch.tensor([timestep]))
        generators = [torch.Generator().manual_seed(k) for k in range(3)]
        out = made.step(x0_to_v(x0, eps, alpha, sigma), timestep, alpha * x0 + sigma * eps, generator=generators)
        torch.testing.assert_close(out.pred_original_sample, x0)
        noised = x0
        if following is not None:
            alpha, sigma = alpha_sigma(made, torch.tensor([following]))
            noise = torch.stack([torch.randn(1, 1, 4, 4, generator=g.manual_seed(k)) for k, g in enumerate(generators)])
            noised = alpha * x0 + sigma * noise
        torch.testing.assert_close(out.prev_sample, noised)


def test_one_step_is_the_first_of_the_timesteps_and_no_more_are_given_than_there_are():
    made = scheduler()
    made.set_timesteps(1)
    assert made.timesteps.tolist() == [998]
    with pytest.raises(ValueError, match="distilled for 1 to 2 steps, got `num_inference_steps` = 3"):
        made.set_timesteps(3)
    with pytest.raises(ValueError, match="distilled for 1 step, got"):
        scheduler((998,)).set_timesteps(2)


@pytest.mark.parametrize("wrong", [(), (499, 998), (998, 998), (1000,), (3, -1)])
def test_timesteps_that_do_not_fall_are_refused(wrong):
    with pytest.raises(ValueError, match="`distilled_timesteps` must fall from below 1000"):
        scheduler(wrong)


def test_a_process_that_no_network_was_distilled_in_is_refused():
    for change in ({"prediction_type": "sample"}, {"clip_sample": True}, {"thresholding": True}):
        with pytest.raises(ValueError, match="predict v, and nothing is clipped"):
            CTConsistencyScheduler.from_config(CONFIG, distilled_timesteps=(998,), **change)


@pytest.mark.parametrize("name", NOISE_SCHEDULES)
def test_the_last_noisy_timestep_is_almost_pure_noise_but_shown(name):
    process = make_noise_scheduler(name)
    last = last_noisy_timestep(process)
    alpha, _ = alpha_sigma(process, torch.tensor([last, last + 1]), 1)
    assert 5e-4 <= alpha[0] < 0.002 and alpha[1] < 5e-4
