"""The network as a denoiser of x + sigma eps: the closed form at any sigma, and a prior that plug-and-play can use."""

import numpy as np
import pytest
import torch

from diffusers_ct import CTAdaptiveDDIMScheduler, UNet3DCTModel
from diffusers_ct.guidance import denoiser_at_sigma
from diffusers_ct.schedulers import make_noise_scheduler, x0_to_prediction

from .gaussian import Gaussian

PRIOR = Gaussian(np.array([0.3, -0.4]), np.array([[0.5, 0.2], [0.2, 0.4]]))


def exact_network(law: Gaussian, scheduler):
    """Predicts for the time that it is told, also between steps, where the angle arctan(sigma / alpha) is linear."""
    table = scheduler.alphas_cumprod.double().numpy()
    angles = np.concatenate([[0.0], np.arctan2(np.sqrt(1.0 - table), np.sqrt(table))])
    mean, covariance = torch.tensor(law.mean), torch.tensor(law.covariance)

    def predict(x_t, timestep):
        out = []
        for x, t in zip(x_t.double(), timestep.tolist(), strict=True):
            angle = torch.tensor(np.interp(t, np.arange(-1.0, len(table)), angles))
            alpha, sigma = angle.cos(), angle.sin()
            gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(2))
            x0 = mean + (x - alpha * mean) @ gain.T
            out.append(x0_to_prediction(x0, x, alpha, sigma, scheduler.config.prediction_type))
        return torch.stack(out).to(x_t.dtype)

    return predict


def exact_denoiser(prediction_type: str = "v_prediction"):
    scheduler = make_noise_scheduler(prediction_type=prediction_type)
    return denoiser_at_sigma(scheduler, exact_network(PRIOR, scheduler))


def closed_form(x: torch.Tensor, sigma: float) -> np.ndarray:
    """E[x0 | x0 + sigma eps = x] = mu + V (V + sigma^2)^-1 (x - mu)."""
    gain = PRIOR.covariance @ np.linalg.inv(PRIOR.covariance + sigma**2 * np.eye(2))
    return PRIOR.mean + (x.double().numpy() - PRIOR.mean) @ gain.T


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
@pytest.mark.parametrize("sigma", [0.003, 0.02, 0.1, 0.7, 3.0, 20.0])
def test_it_is_the_closed_form_at_any_sigma(prediction_type, sigma):
    denoiser = exact_denoiser(prediction_type)
    x = (
        sigma * torch.randn(5, 1, 1, 1, 2, generator=torch.Generator().manual_seed(0))
        + torch.tensor(PRIOR.mean).float()
    )
    np.testing.assert_allclose(denoiser(x, sigma).numpy(), closed_form(x, sigma), atol=1e-4)


def test_each_sample_may_have_its_own_sigma():
    denoiser, x = exact_denoiser(), torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    sigmas = torch.tensor([0.05, 0.5, 2.0])
    together = denoiser(x, sigmas)
    for number, sigma in enumerate(sigmas.tolist()):
        np.testing.assert_allclose(together[number].numpy(), closed_form(x[number], sigma), atol=1e-4)
    assert torch.equal(denoiser(x, torch.tensor(0.5)), denoiser(x, 0.5))
    assert torch.equal(denoiser(x, sigmas[:, None]), together)  # deepinv's form


def test_without_noise_nothing_is_changed():
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(denoiser_at_sigma(make_noise_scheduler(), lambda x_t, _: torch.ones_like(x_t))(x, 0.0), x)


def test_regularisation_by_denoising_reaches_the_posterior_of_the_smoothed_prior():
    """(x - D(x)) / sigma^2 is the score of N(mu, V + sigma^2), so gradient descent ends at that prior's posterior mean."""
    denoiser, sigma = exact_denoiser(), 0.3
    matrix, value, noise = torch.tensor([1.0, 0.2]), 0.9, 0.2
    x = torch.zeros(1, 2)
    for _ in range(400):
        data = matrix * (x @ matrix - value)[:, None] / noise
        x = x - 0.05 * (data + (x - denoiser(x, sigma)) / sigma**2)
    smoothed = Gaussian(PRIOR.mean, PRIOR.covariance + sigma**2 * np.eye(2))
    np.testing.assert_allclose(x[0].numpy(), smoothed.given(matrix.double().numpy(), value, noise).mean, atol=1e-3)
    assert np.abs(smoothed.mean - x[0].numpy()).max() > 0.1


def test_a_network_of_the_package_is_called_with_whole_times_where_the_schedule_has_them():
    torch.manual_seed(0)
    unet = UNet3DCTModel(
        in_channels=1, block_out_channels=(8, 16), layers_per_block=1, downsample_strides=(1, 2, 2), refine_channels=4,
        norm_num_groups=4, pooled_dim=0,
    )  # fmt: skip
    torch.nn.init.normal_(unet.refine_out.weight, std=0.1)
    scheduler, told = make_noise_scheduler(), []

    def predict(x_t, timestep):
        told.append(timestep)
        return unet(x_t, timestep).sample

    alphas_cumprod = scheduler.alphas_cumprod[400]
    sigma = ((1.0 - alphas_cumprod) / alphas_cumprod).sqrt()
    x = torch.randn(2, 1, 2, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = denoiser_at_sigma(scheduler, predict)(x, sigma)
    found.square().sum().backward()
    assert found.shape == x.shape and x.grad.isfinite().all() and x.grad.abs().max() > 0
    assert told[0].tolist() == pytest.approx([400.0, 400.0], abs=1e-3)
    expected = unet(alphas_cumprod.sqrt() * x, 400).sample
    x0 = alphas_cumprod.sqrt() ** 2 * x - (1.0 - alphas_cumprod).sqrt() * expected
    torch.testing.assert_close(found, x0, rtol=1e-3, atol=1e-4)


def test_the_adaptive_schedule_has_the_same_denoiser():
    scheduler = CTAdaptiveDDIMScheduler.from_config(make_noise_scheduler().config)
    x = torch.randn(2, 2, generator=torch.Generator().manual_seed(0))
    denoiser = denoiser_at_sigma(scheduler, exact_network(PRIOR, scheduler))
    np.testing.assert_allclose(denoiser(x, 0.4).numpy(), closed_form(x, 0.4), atol=1e-4)


@pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf"), torch.tensor([0.1, 0.2])])
def test_sigmas_that_mean_nothing_are_refused(sigma):
    with pytest.raises(ValueError, match="`sigma` must be"):
        exact_denoiser()(torch.zeros(3, 2), sigma)


def test_a_sigma_beyond_the_schedule_is_refused():
    scheduler = make_noise_scheduler("linear", prediction_type="epsilon")  # ends at sigma = 157
    with pytest.raises(ValueError, match=r"in \[0, 157"):
        denoiser_at_sigma(scheduler, exact_network(PRIOR, scheduler))(torch.zeros(3, 2), 200.0)
