"""The fit of the adaptive schedule, and what it is for: sampling a Gaussian, whose denoiser is known exactly."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from scipy import optimize

from diffusers_ct import CTAdaptiveDDIMScheduler
from diffusers_ct.schedulers import (
    LogSNRShift,
    alpha_sigma,
    denoising_errors,
    fit_shift_network,
    fit_shift_table,
    log_snr_at_error,
    make_noise_scheduler,
    matching_shift,
)
from tests.schedulers.adaptive_settings import BASE, NAN, SCALED, dose

# --- sampling a Gaussian, whose denoiser is known ---------------------------------------------------------------------


def sample_gaussian(scheduler, mean, variance, steps, conditions=None) -> tuple[float, float]:
    """Exact mean and SD of the samples: DDIM with a linear denoiser is linear in its starting noise."""
    scheduler.set_timesteps(steps, **({} if conditions is None else {"conditions": conditions}))
    x = torch.tensor([0.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1, 1)
    for t in scheduler.timesteps:
        alpha, sigma = (v.double() for v in alpha_sigma(scheduler, t.expand(2)))
        x0 = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)
        v = (alpha * x - x0) / sigma
        x = scheduler.step(v, t, x).prev_sample
    at_zero, at_one = x.flatten().tolist()
    return at_zero, at_one - at_zero


@pytest.mark.parametrize("variance", [0.01, 0.2, 30.0])
def test_the_shift_that_fits_a_gaussian_samples_it_as_well_as_a_unit_gaussian(variance):
    fitted = {
        "shift_conditions": ["dose_fraction"], "shift_knot_counts": [1], "shift_knots": [1.0],
        "shift_values": [-math.log(variance)],
    }  # fmt: skip
    adaptive, parent = CTAdaptiveDDIMScheduler(**BASE, **fitted), DDIMScheduler(**BASE)
    mean, sd = 0.7, math.sqrt(variance)
    for steps in (1, 4, 10):
        found_mean, found_sd = sample_gaussian(adaptive, mean, variance, steps, dose(1.0))
        # For unit variance each step turns by an angle and keeps its cosine.
        angles = torch.cat(
            [torch.arccos(adaptive.alphas_cumprod[adaptive.timesteps].double().sqrt()), torch.zeros(1).double()]
        )
        cosines = torch.cos(angles[:-1] - angles[1:]).prod().item()
        assert found_sd == pytest.approx(sd * cosines, rel=2e-4, abs=1e-6)
        assert found_mean == pytest.approx(mean, abs=5e-4 * max(sd, 1.0))
        # One step ends at the estimate of least mean square error, whatever the shift: the mean, without spread.
        assert steps > 1 or (abs(found_sd) < 1e-6 and found_mean == pytest.approx(mean, abs=1e-6))
    fixed_sd = sample_gaussian(parent, mean, variance, 4)[1]
    adaptive_sd = sample_gaussian(adaptive, mean, variance, 4, dose(1.0))[1]
    assert abs(math.log(adaptive_sd / sd)) < 0.75 * abs(math.log(fixed_sd / sd))


@pytest.mark.parametrize("value", [0.05, 0.25, 1.0])
def test_any_shift_reaches_the_same_law_with_many_steps(value):
    scheduler = CTAdaptiveDDIMScheduler(**BASE, **SCALED)
    mean, sd = sample_gaussian(scheduler, -0.4, 0.3, 500, dose(value))
    assert mean == pytest.approx(-0.4, abs=2e-3) and sd == pytest.approx(math.sqrt(0.3), rel=0.02)


def test_stochastic_steps_reach_the_same_law(generator):
    scheduler = CTAdaptiveDDIMScheduler(**BASE, **SCALED)
    scheduler.set_timesteps(500, conditions=dose(0.05, 1.0))
    x, mean, variance = torch.randn(2, 1, 1, 100, 100, generator=generator), -0.4, 0.3
    for t in scheduler.timesteps:
        alpha, sigma = alpha_sigma(scheduler, t.expand(2))
        x0 = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)
        x = scheduler.step((alpha * x - x0) / sigma, t, x, eta=0.9, generator=generator).prev_sample
    assert x.flatten(1).mean(dim=1).tolist() == pytest.approx([mean] * 2, abs=0.02)
    assert x.flatten(1).var(dim=1).tolist() == pytest.approx([variance] * 2, rel=0.06)


# --- the fit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [0.03, 1.0, 8.0])
def test_half_of_the_error_of_a_gaussian_is_at_minus_log_variance(variance):
    at = np.linspace(-12.0, 12.0, 2401)
    error = variance / (1.0 + np.exp(at) * variance)
    assert log_snr_at_error(at, error, variance) == pytest.approx(-math.log(variance), abs=1e-4)
    assert log_snr_at_error(at[::-1], error[::-1], variance, 0.2) == pytest.approx(math.log(4.0 / variance), abs=1e-4)
    shift, log_scale = matching_shift(at, error, variance)
    assert shift == pytest.approx(-math.log(variance), abs=1e-4) and log_scale == pytest.approx(0.0, abs=1e-4)


def test_curve_of_a_spectrum_is_matched_at_its_half_and_is_flatter():
    variances = np.array([0.01, 0.1, 1.0, 10.0])
    at = np.linspace(-12.0, 12.0, 4801)

    def error(log_snr):
        return (variances[:, None] / (1.0 + np.exp(log_snr) * variances[:, None])).mean(axis=0)

    def root(fraction):
        return optimize.brentq(lambda x: error(x)[0] - fraction * variances.mean(), -12.0, 12.0)

    shift, log_scale = matching_shift(at, error(at), variances.mean())
    assert shift == pytest.approx(root(0.5), abs=1e-4)
    assert math.exp(log_scale) == pytest.approx((root(0.25) - root(0.75)) / (2.0 * math.log(3.0)), abs=1e-4)
    assert log_scale > 0.05


def test_measured_curve_of_the_exact_denoiser_gives_the_half(generator):
    scheduler, variance = make_noise_scheduler(), 0.1
    x0 = math.sqrt(variance) * torch.randn(8, 1, 1, 64, 64, generator=generator)

    def exact(x_t, t):
        alpha, sigma = alpha_sigma(scheduler, t)
        return alpha * variance / (alpha**2 * variance + sigma**2) * x_t

    steps = [999, *range(50, 950, 25)]
    at, errors = denoising_errors(exact, x0, scheduler, steps, generator)
    assert at[0] == -math.inf and errors.shape == (37, 8)
    assert errors[0].mean() == pytest.approx(variance, rel=0.02)
    assert log_snr_at_error(at[1:], errors[1:].mean(axis=1), errors[0].mean()) == pytest.approx(
        -math.log(variance), abs=0.05
    )


def test_table_fit_returns_the_wanted_shifts_and_adds_up_conditions():
    # Noise variance falls with dose and slice thickness: s = log(dose) + log(thickness), linear in the logarithms.
    d = torch.tensor([0.05, 0.05, 0.25, 0.25, 1.0, 0.1])
    thickness = torch.tensor([1.0, 5.0, 1.0, 5.0, 2.0, 3.0])
    conditions = {"dose_fraction": d, "slice_thickness_mm": thickness}
    wanted = LogSNRShift(d.log() + thickness.log(), 0.1 * d.log())
    fitted = fit_shift_table(conditions, wanted, {"dose_fraction": [0.05, 0.25, 1.0], "slice_thickness_mm": [1.0, 5.0]})
    scheduler = CTAdaptiveDDIMScheduler(**BASE, **fitted)
    found = scheduler.log_snr_shift(conditions)
    torch.testing.assert_close(found.shift, wanted.shift.double(), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(found.log_scale, wanted.log_scale.double(), rtol=0.0, atol=1e-6)
    single = fit_shift_table(dose(0.1, 0.5), LogSNRShift(torch.tensor([-2.0, -0.3])), {"dose_fraction": [0.1, 0.5]})
    assert single["shift_values"] == pytest.approx([-2.0, -0.3]) and "shift_log_scales" not in single


def test_network_fit_follows_scattered_scans_and_leaves_out_the_unknown():
    d = torch.logspace(-1.3, 0.0, 60)
    thickness = torch.linspace(0.6, 5.0, 60).roll(17)
    wanted = 1.5 * torch.tanh(d.log() + 1.0) + 0.5 * thickness.log()
    fitted = fit_shift_network({"dose_fraction": d, "slice_thickness_mm": thickness}, wanted)
    scheduler = CTAdaptiveDDIMScheduler(**BASE, **fitted)
    found = scheduler.log_snr_shift({"dose_fraction": d, "slice_thickness_mm": thickness}).shift
    assert (found - wanted).abs().max() < 0.05
    nothing = torch.full((60,), NAN)
    alone = scheduler.log_snr_shift({"dose_fraction": d, "slice_thickness_mm": nothing}).shift
    other = scheduler.log_snr_shift({"dose_fraction": nothing, "slice_thickness_mm": thickness}).shift
    torch.testing.assert_close(alone + other, found)
    assert scheduler.log_snr_shift({"dose_fraction": nothing}) is None
    assert fitted == fit_shift_network({"dose_fraction": d, "slice_thickness_mm": thickness}, wanted)
