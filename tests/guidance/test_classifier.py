"""Rules of classifier guidance; that it reaches the posterior is in test_gaussian_closed_form.py."""

import pytest
import torch
from diffusers import DDIMScheduler

from diffusers_ct.guidance import ClassifierGuidance
from diffusers_ct.schedulers import alpha_sigma, make_noise_scheduler

SCHEDULER = DDIMScheduler.from_config(make_noise_scheduler().config)
X = torch.randn(3, 1, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def plain(x_t, timestep):
    return torch.zeros_like(x_t)


def quadratic(x_t, timestep):
    return -0.5 * (x_t - 1.0).square().flatten(1).sum(1)


def test_the_step_is_sigma_squared_over_alpha_times_the_gradient():
    timestep = torch.tensor([100, 500, 900])
    alpha, sigma = alpha_sigma(SCHEDULER, timestep)
    with torch.no_grad():  # as in a pipeline
        out = ClassifierGuidance(plain, [(quadratic, 2.0), (quadratic, 0.5)], SCHEDULER)(X, timestep)
    torch.testing.assert_close(out, 2.5 * sigma**2 / alpha * (1.0 - X))
    assert not out.requires_grad


def test_nothing_is_added_at_zero_snr_outside_the_interval_or_with_scale_zero():
    def never(x_t, timestep):
        raise AssertionError("not needed")

    for settings, timestep, scale in (({}, 999, 1.0), ({"interval": (0.0, 0.5)}, 600, 1.0), ({}, 500, 0.0)):
        guided = ClassifierGuidance(plain, [(never, scale)], SCHEDULER, **settings)
        assert torch.equal(guided(X, torch.tensor(timestep)), torch.zeros_like(X))
    mixed = ClassifierGuidance(plain, [(quadratic, 1.0)], SCHEDULER)(X, torch.tensor([999, 500, 999]))
    assert not mixed[0].any() and mixed[1].any() and not mixed[2].any()


def test_the_sample_is_left_alone():
    x = X.clone()
    ClassifierGuidance(plain, [(quadratic, 1.0)], SCHEDULER)(x, torch.tensor(500))
    assert torch.equal(x, X) and not x.requires_grad and x.grad is None


def test_refusals():
    with pytest.raises(ValueError, match="at least one"):
        ClassifierGuidance(plain, [], SCHEDULER)
    with pytest.raises(ValueError, match="classifier 1 must be finite and not negative"):
        ClassifierGuidance(plain, [(quadratic, 1.0), (quadratic, -1.0)], SCHEDULER)
    with pytest.raises(ValueError, match="interval"):
        ClassifierGuidance(plain, [(quadratic, 1.0)], SCHEDULER, interval=(0.5, 0.5))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        ClassifierGuidance(plain, [(lambda x, t: x.sum(), 1.0)], SCHEDULER)(X, torch.tensor(500))
