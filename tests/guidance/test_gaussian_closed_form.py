"""Guidance reaches the guided mean and covariance known in closed form, through diffusers' own schedulers."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LMSDiscreteScheduler,
    UniPCMultistepScheduler,
)

from diffusers_ct.guidance import ClassifierFreeGuidance, ClassifierGuidance, denoiser_from_prediction
from diffusers_ct.schedulers import alpha_sigma, make_noise_scheduler, x0_to_prediction

from .gaussian import Gaussian, distance, reached, truth, truth_1d

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of diffusers' own NumPy

# Steps, and the tolerance: of the mean in standard deviations, of the covariance relative. Measured errors are about
# half of it; those of the first-order samplers fall as 1 / steps.
SAMPLERS = {
    "ddpm": (DDPMScheduler, 1000, 0.005, 0.025),
    "ddim": (DDIMScheduler, 1000, 0.005, 0.01),
    "euler": (EulerDiscreteScheduler, 1000, 0.005, 0.01),
    "dpm++": (DPMSolverMultistepScheduler, 200, 0.005, 0.003),
    "unipc": (UniPCMultistepScheduler, 200, 0.005, 0.003),
    "deis": (DEISMultistepScheduler, 200, 0.005, 0.003),
    "lms": (LMSDiscreteScheduler, 200, 0.005, 0.003),
}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)
three_samplers = pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm++"])

# Two measurements that see overlapping parts of x: given x_t they are not independent, and no two covariances commute.
PRIOR = Gaussian(np.array([0.3, -0.4]), np.array([[0.5, 0.2], [0.2, 0.4]]))
A1, A2 = (np.array([1.0, 0.2]), 0.9, 0.2), (np.array([0.8, 0.9]), 0.2, 0.3)  # (matrix, value, noise variance)
GIVEN_1, GIVEN_2 = PRIOR.given(*A1), PRIOR.given(*A2)
GIVEN_BOTH = GIVEN_1.given(*A2)


def make_scheduler(name: str, **settings):
    return SAMPLERS[name][0].from_config(make_noise_scheduler(**settings).config)


def evaluate_with(scheduler, laws: dict[str, Gaussian]):
    """`evaluate` of classifier-free guidance; laws by the names of what is nulled, "" for nothing."""
    denoisers = {frozenset(names): law.denoiser(scheduler) for names, law in laws.items()}
    return lambda x_t, timestep, nulled: [denoisers[names](x_t, timestep) for names in nulled]


TWO = {"": GIVEN_BOTH, "1": GIVEN_2, "2": GIVEN_1, "12": PRIOR}


def assert_reached(name: str, scheduler, denoiser, wanted: Gaussian, slack: float = 1.0) -> None:
    _, steps, mean_tolerance, covariance_tolerance = SAMPLERS[name]
    mean, covariance = distance(reached(scheduler, denoiser, len(wanted.mean), steps), wanted)
    assert mean < slack * mean_tolerance and covariance < slack * covariance_tolerance, (mean, covariance)


def test_the_truth_is_the_law_itself_without_guidance_and_the_closed_form_with_it():
    for stochastic in (False, True):
        assert distance(truth([(1.0, GIVEN_1)], stochastic=stochastic), GIVEN_1) < (1e-6, 1e-6)
        numbers = [(3.0, 1.2, 0.25), (-1.5, -0.3, 1.5), (-0.5, 0.4, 0.8)]
        integrated = truth(
            [(w, Gaussian(np.array([m]), np.array([[v]]))) for w, m, v in numbers], stochastic=stochastic
        )
        mean, variance = truth_1d(numbers, stochastic=stochastic)
        assert integrated.mean[0] == pytest.approx(mean, abs=1e-6)
        assert integrated.covariance[0, 0] == pytest.approx(variance, rel=1e-6)


@every_sampler
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_classifier_free_with_one_scale(name, scale):
    scheduler = make_scheduler(name)
    guided = ClassifierFreeGuidance(evaluate_with(scheduler, TWO), scale, known=["1", "2"], num_train_timesteps=1000)
    wanted = truth([(scale, GIVEN_BOTH), (1.0 - scale, PRIOR)], stochastic=name == "ddpm")
    assert_reached(name, scheduler, guided, wanted)


SCALES = {"1": 2.5, "2": 1.5}
GUIDED_EACH = [(1.0 + 1.5 + 0.5, GIVEN_BOTH), (-1.5, GIVEN_2), (-0.5, GIVEN_1)]


@every_sampler
def test_classifier_free_with_a_scale_for_each_condition(name):
    scheduler = make_scheduler(name)
    guided = ClassifierFreeGuidance(evaluate_with(scheduler, TWO), SCALES, known=["1", "2"], num_train_timesteps=1000)
    assert_reached(name, scheduler, guided, truth(GUIDED_EACH, stochastic=name == "ddpm"))


def wrong_all_nulled(scheduler):
    """Each condition guided against the network that knows none."""
    full, null = GIVEN_BOTH.denoiser(scheduler), PRIOR.denoiser(scheduler)
    share = sum(s - 1.0 for s in SCALES.values())
    return lambda x, t: full(x, t) + share * (full(x, t) - null(x, t))


def wrong_each_alone(scheduler):
    """sum_i s_i (x0 given i alone - x0 given none): right only for conditions that are independent given x_t."""
    null = PRIOR.denoiser(scheduler)
    alone = [(SCALES["1"], GIVEN_1.denoiser(scheduler)), (SCALES["2"], GIVEN_2.denoiser(scheduler))]
    return lambda x, t: null(x, t) + sum(s * (d(x, t) - null(x, t)) for s, d in alone)


@three_samplers
@pytest.mark.parametrize("wrong", [wrong_all_nulled, wrong_each_alone])
def test_a_wrong_composition_misses_by_far(name, wrong):
    scheduler = make_scheduler(name)
    with pytest.raises(AssertionError):
        assert_reached(name, scheduler, wrong(scheduler), truth(GUIDED_EACH, stochastic=name == "ddpm"), slack=10.0)


def test_two_measurements_of_one_quantity_reach_the_quadrature():
    prior = Gaussian(np.array([0.2]), np.array([[0.8]]))
    first, second = ([1.0], 1.1, 0.3), ([1.0], 0.4, 0.5)
    laws = {"": prior.given(*first).given(*second), "1": prior.given(*second), "2": prior.given(*first), "12": prior}
    weights = {"": 3.0, "1": -1.5, "2": -0.5}
    numbers = [(w, laws[k].mean[0], laws[k].covariance[0, 0]) for k, w in weights.items()]
    for name in ("ddpm", "ddim", "dpm++"):
        scheduler = make_scheduler(name)
        guided = ClassifierFreeGuidance(
            evaluate_with(scheduler, laws), SCALES, known=["1", "2"], num_train_timesteps=1000
        )
        mean, variance = truth_1d(numbers, stochastic=name == "ddpm")
        assert_reached(name, scheduler, guided, Gaussian(np.array([mean]), np.array([[variance]])))


@pytest.mark.parametrize(
    ("name", "steps", "factor"), [("ddpm", (100, 400), 3.0), ("ddim", (50, 200), 3.5), ("dpm++", (25, 100), 4.0)]
)
def test_the_error_falls_with_the_number_of_steps(name, steps, factor):
    errors = []
    for count in steps:
        scheduler = make_scheduler(name)
        guided = ClassifierFreeGuidance(
            evaluate_with(scheduler, TWO), SCALES, known=["1", "2"], num_train_timesteps=1000
        )
        found = reached(scheduler, guided, 2, count)
        errors.append(sum(distance(found, truth(GUIDED_EACH, stochastic=name == "ddpm"))))
    assert errors[0] > factor * errors[1]


@three_samplers
def test_epsilon_prediction_on_a_schedule_that_keeps_some_signal(name):
    # alpha_T = 0.006 rather than 0: sampling starts from pure noise all the same, a bias of that order.
    scheduler = make_scheduler(name, noise_schedule="linear", prediction_type="epsilon")
    guided = ClassifierFreeGuidance(evaluate_with(scheduler, TWO), SCALES, known=["1", "2"], num_train_timesteps=1000)
    assert_reached(name, scheduler, guided, truth(GUIDED_EACH, stochastic=name == "ddpm"), slack=4.0)
    guided = ClassifierGuidance(PRIOR.denoiser(scheduler), [(PRIOR.log_probability(*A1, scheduler), 1.0)], scheduler)
    assert_reached(name, scheduler, guided, GIVEN_1, slack=4.0)


@every_sampler
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_classifier_guidance_reaches_the_posterior_and_beyond(name, scale):
    scheduler = make_scheduler(name)
    guided = ClassifierGuidance(PRIOR.denoiser(scheduler), [(PRIOR.log_probability(*A1, scheduler), scale)], scheduler)
    # x0 + s (x0 given y - x0): the classifier's gradient is the difference of the two scores
    wanted = truth([(scale, GIVEN_1), (1.0 - scale, PRIOR)], stochastic=name == "ddpm")
    assert_reached(name, scheduler, guided, GIVEN_1 if scale == 1.0 else wanted)


@three_samplers
def test_two_classifiers(name):
    scheduler = make_scheduler(name)
    classifiers = [(PRIOR.log_probability(*A1, scheduler), 1.5), (PRIOR.log_probability(*A2, scheduler), 0.5)]
    guided = ClassifierGuidance(PRIOR.denoiser(scheduler), classifiers, scheduler)
    wanted = truth([(1.5, GIVEN_1), (0.5, GIVEN_2), (-1.0, PRIOR)], stochastic=name == "ddpm")
    assert_reached(name, scheduler, guided, wanted)


def test_two_classifiers_that_are_independent_given_x_t_reach_the_joint_posterior():
    prior = Gaussian(np.array([0.3, -0.4]), np.diag([0.5, 0.3]))
    first, second = (np.array([1.0, 0.0]), 0.9, 0.2), (np.array([0.0, 1.0]), 0.2, 0.3)
    scheduler = make_scheduler("dpm++")
    classifiers = [(prior.log_probability(*y, scheduler), 1.0) for y in (first, second)]
    guided = ClassifierGuidance(prior.denoiser(scheduler), classifiers, scheduler)
    assert_reached("dpm++", scheduler, guided, prior.given(*first).given(*second))


@three_samplers
def test_classifier_guidance_stacks_on_classifier_free(name):
    scheduler = make_scheduler(name)
    free = ClassifierFreeGuidance(
        evaluate_with(scheduler, {"": GIVEN_1, "1": PRIOR}), 2.0, known=["1"], num_train_timesteps=1000
    )
    # what is left to be said by y2 once y1 is known: scale 1 and no guidance of the other would be the exact posterior
    guided = ClassifierGuidance(free, [(GIVEN_1.log_probability(*A2, scheduler), 1.5)], scheduler)
    wanted = truth([(2.0 - 1.5, GIVEN_1), (-1.0, PRIOR), (1.5, GIVEN_BOTH)], stochastic=name == "ddpm")
    assert_reached(name, scheduler, guided, wanted)


def test_what_the_first_step_at_zero_snr_costs():
    # The first step aims at E[x] instead of E[x | y]. In x_t / alpha that is an offset of their difference, which the
    # flow then shrinks by sqrt(v / (v + rho^2)), with rho of the second timestep: about alpha there, pi / (2 steps).
    prior = Gaussian(np.array([0.2]), np.array([[0.8]]))
    y = ([1.0], 1.4, 0.3)
    posterior = prior.given(*y)
    costs = []
    for steps in (20, 50, 200):
        scheduler = make_scheduler("ddim")
        guided = ClassifierGuidance(prior.denoiser(scheduler), [(prior.log_probability(*y, scheduler), 1.0)], scheduler)
        told = reached(scheduler, posterior.denoiser(scheduler), 1, steps)
        found = reached(scheduler, guided, 1, steps)
        alpha, sigma = (float(c) for c in alpha_sigma(scheduler, scheduler.timesteps[1:2], 1))
        v = posterior.covariance[0, 0]
        predicted = (posterior.mean[0] - prior.mean[0]) * np.sqrt(v / (v + (sigma / alpha) ** 2))
        cost = told.mean[0] - found.mean[0]
        assert cost == pytest.approx(predicted, rel=0.1)
        assert found.covariance[0, 0] == pytest.approx(told.covariance[0, 0], rel=1e-3)
        costs.append(steps * cost)
    assert costs[0] == pytest.approx(costs[2], rel=0.15)
    # Fresh noise makes DDPM forget it: the cost falls as the square.
    scheduler = make_scheduler("ddpm")
    guided = ClassifierGuidance(prior.denoiser(scheduler), [(prior.log_probability(*y, scheduler), 1.0)], scheduler)
    told = reached(scheduler, posterior.denoiser(scheduler), 1, 50)
    assert abs(told.mean[0] - reached(scheduler, guided, 1, 50).mean[0]) < 0.1 * costs[1] / 50


@pytest.mark.parametrize("kind", ["classifier-free", "classifier"])
def test_an_interval_guides_there_alone(kind):
    interval = (0.3, 0.8)
    scheduler = make_scheduler("ddim")
    if kind == "classifier-free":
        evaluate = evaluate_with(scheduler, {"": GIVEN_1, "1": PRIOR})
        guided = ClassifierFreeGuidance(evaluate, 3.0, known=["1"], num_train_timesteps=1000, interval=interval)
        plain, inside = [(1.0, GIVEN_1)], [(3.0, GIVEN_1), (-2.0, PRIOR)]
    else:
        classifiers = [(PRIOR.log_probability(*A1, scheduler), 2.0)]
        guided = ClassifierGuidance(PRIOR.denoiser(scheduler), classifiers, scheduler, interval=interval)
        plain, inside = [(1.0, PRIOR)], [(2.0, GIVEN_1), (-1.0, PRIOR)]
    alpha, sigma = alpha_sigma(scheduler, torch.tensor([799, 299]), 1)
    bounds = tuple((sigma / alpha).tolist())
    wanted = truth(plain, inside, plain, stochastic=False, bounds=bounds)
    assert_reached("ddim", scheduler, guided, wanted)
    assert min(max(distance(truth(w, stochastic=False), wanted)) for w in (plain, inside)) > 0.05


@every_sampler
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample", "epsilon"])
def test_a_network_becomes_a_denoiser_and_back(name, prediction_type):
    settings = {"noise_schedule": "linear"} if prediction_type == "epsilon" else {}
    scheduler = make_scheduler(name, prediction_type=prediction_type, **settings)
    exact = GIVEN_1.denoiser(scheduler)

    def network(x_t, timestep):
        alpha, sigma = alpha_sigma(scheduler, timestep.reshape(-1).long())
        return x0_to_prediction(exact(x_t, timestep), x_t, alpha, sigma, prediction_type)

    denoiser = denoiser_from_prediction(scheduler, network)
    x_t, timestep = torch.randn(4, 1, 1, 1, 2, generator=torch.Generator().manual_seed(0)), torch.tensor(500)
    torch.testing.assert_close(denoiser(x_t, timestep), exact(x_t, timestep), atol=1e-5, rtol=1e-4)
    assert_reached(name, scheduler, denoiser, GIVEN_1, slack=4.0 if prediction_type == "epsilon" else 1.0)


def test_eulers_scaled_sample_is_the_variance_preserving_one():
    scheduler = make_scheduler("euler")
    scheduler.set_timesteps(10)
    for timestep, rho in zip(scheduler.timesteps, scheduler.sigmas):
        scheduler.set_timesteps(10)  # Euler finds its place at the first call
        alpha, sigma = alpha_sigma(scheduler, timestep.reshape(1), 1)
        x0, eps = torch.tensor([[0.7]]), torch.tensor([[-1.1]])
        scaled = scheduler.scale_model_input(x0 + rho * eps, timestep)
        torch.testing.assert_close(scaled, (alpha * x0 + sigma * eps).float(), atol=1e-6, rtol=1e-6)
