"""Linear-Gaussian truth for guidance: exact denoisers, classifiers, and the law that guided sampling must reach.

With x = x_t / alpha and u = rho^2 = (sigma / alpha)^2, a guided score sum_i w_i grad log p_i (sum w_i = 1) of Gaussians
N(mu_i, V_i) makes, with S(u) = sum_i w_i (V_i + u)^-1, from u = inf (pure noise) down to 0,

    ODE (DDIM, DPM-Solver++)   dm/du = 1/2 sum_i w_i (V_i + u)^-1 (m - mu_i),   dP/du = 1/2 (S P + P S)
    SDE (DDPM)                 dm/du =     sum_i w_i (V_i + u)^-1 (m - mu_i),   dP/du =      S P + P S - 1

In one dimension, with H(u) = prod_i (v_i + u)^w_i, they are solved by
    ODE   P(0) = H(0),                        m(0) = 1/2 H(0)^(1/2) int_0^inf H^(-1/2) sum_i w_i mu_i / (v_i + u) du
    SDE   P(0) = H(0)^2 int_0^inf H^-2 du,    m(0) =     H(0)       int_0^inf H^-1     sum_i w_i mu_i / (v_i + u) du
"""

from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
from diffusers import DDPMScheduler
from scipy.integrate import quad, solve_ivp

from diffusers_ct.guidance import Denoiser, prediction_from_x0
from diffusers_ct.schedulers import alpha_sigma

Weighted = list[tuple[float, "Gaussian"]]


@dataclass(frozen=True)
class Gaussian:
    """N(mean (n,), covariance (n, n))."""

    mean: np.ndarray
    covariance: np.ndarray

    def given(self, matrix, value, noise) -> "Gaussian":
        """Posterior after y = A x + N(0, R)."""
        a, r = np.atleast_2d(matrix), np.atleast_2d(noise)
        gain = self.covariance @ a.T @ np.linalg.inv(a @ self.covariance @ a.T + r)
        return Gaussian(
            self.mean + gain @ (np.atleast_1d(value) - a @ self.mean), self.covariance - gain @ a @ self.covariance
        )

    def denoiser(self, scheduler):
        """E[x | x_t] of (batch, 1, 1, 1, n) fields: mu + alpha V (alpha^2 V + sigma^2)^-1 (x_t - alpha mu)."""
        mean = torch.tensor(self.mean)
        values, vectors = (torch.tensor(part) for part in np.linalg.eigh(self.covariance))

        def denoise(x_t, timestep):
            alpha, sigma = (c.double() for c in alpha_sigma(scheduler, timestep.reshape(-1)))
            gain = alpha * values / (alpha**2 * values + sigma**2)
            return (mean + ((x_t.double() - alpha * mean) @ vectors * gain) @ vectors.T).to(x_t.dtype)

        return denoise

    def log_probability(self, matrix, value, noise, scheduler):
        """log p(y | x_t) = log N(y; A E[x | x_t], A Cov[x | x_t] A^T + R), at one timestep for all samples."""
        a, y, r = (torch.tensor(np.atleast_1d(v), dtype=torch.float64) for v in (matrix, value, noise))
        a, r = a.reshape(len(y), -1), r.reshape(len(y), len(y))
        prior, denoise = torch.tensor(self.covariance), self.denoiser(scheduler)

        def log_p(x_t, timestep):
            alpha, sigma = (c.double().reshape(-1) for c in alpha_sigma(scheduler, timestep.reshape(-1)))
            noisy = torch.linalg.inv(alpha**2 * prior + sigma**2 * torch.eye(len(prior)))
            spread = a @ (prior - alpha**2 * prior @ noisy @ prior) @ a.T + r
            law = torch.distributions.MultivariateNormal(y, spread, validate_args=False)
            return law.log_prob(denoise(x_t, timestep).double().flatten(1) @ a.T)

        return log_p


def truth(*phases: Weighted, stochastic: bool, bounds: tuple[float, ...] = ()) -> Gaussian:
    """The law that exact sampling reaches, in any dimension, by integrating the moments.

    `phases` follow each other from noise to data and change where rho = sigma / alpha passes the `bounds`.
    """
    n = len(phases[0][0][1].mean)
    start = 1e4  # rho; what is neglected beyond it is of the order 1 / start^2
    state = np.concatenate([sum(w * law.mean for w, law in phases[0]), (start**2 * np.eye(n)).ravel()])
    edges = [start, *bounds, 1e-4]
    for weighted, begin, end in zip(phases, edges[:-1], edges[1:], strict=True):

        def slope(log_rho, state, weighted=weighted):
            u = np.exp(2.0 * log_rho)
            m, p = state[:n], state[n:].reshape(n, n)
            dm, s = np.zeros(n), np.zeros((n, n))
            for w, law in weighted:
                inverse = np.linalg.inv(law.covariance + u * np.eye(n))
                s += w * inverse
                dm += w * inverse @ (m - law.mean)
            dp = s @ p + p @ s - (np.eye(n) if stochastic else 0.0)
            return (2.0 if stochastic else 1.0) * u * np.concatenate([dm, dp.ravel()])  # d/d log rho = 2 u d/du

        state = solve_ivp(slope, np.log([begin, end]), state, method="DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
    return Gaussian(state[:n], state[n:].reshape(n, n))


def truth_1d(weighted: list[tuple[float, float, float]], *, stochastic: bool) -> tuple[float, float]:
    """Mean and variance from (w, mu, v), by the closed forms and one quadrature each."""
    power = 1.0 if stochastic else 0.5

    def h(u, exponent):
        return np.prod([(v + u) ** (w * exponent) for w, _, v in weighted])

    drift = quad(lambda u: h(u, -power) * sum(w * m / (v + u) for w, m, v in weighted), 0, np.inf, epsabs=1e-11)[0]
    mean = power * h(0.0, power) * drift
    if not stochastic:
        return mean, h(0.0, 1.0)
    return mean, h(0.0, 2.0) * quad(lambda u: h(u, -2.0), 0, np.inf, epsabs=1e-11)[0]


def reached(scheduler, denoiser: Denoiser, n: int, steps: int) -> Gaussian:
    """The law that the scheduler's own steps reach with an affine denoiser: exact, without drawing a sample.

    Deterministic steps are run on the origin and the unit vectors; DDPM's, once without and once with unit noise.
    """
    scheduler.set_timesteps(steps)
    points = torch.cat([torch.zeros(1, n), torch.eye(n)]).reshape(n + 1, 1, 1, 1, n) * float(scheduler.init_noise_sigma)

    def predict(x, timestep):
        x_t = scheduler.scale_model_input(x, timestep)
        return prediction_from_x0(scheduler, denoiser(x_t, timestep), x_t, timestep)

    def step(prediction, x, timestep, noise=0.0):
        constant = lambda shape, **_: torch.full(tuple(shape), noise)  # noqa: E731
        with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", constant):
            return scheduler.step(prediction, timestep, x).prev_sample

    def affine(x):
        x = x.double().reshape(n + 1, n).numpy()
        return (x[1:] - x[0]).T, x[0]

    if not isinstance(scheduler, DDPMScheduler):
        x = points
        for timestep in scheduler.timesteps:
            x = step(predict(x, timestep), x, timestep)
        matrix, offset = affine(x)
        return Gaussian(offset, matrix @ matrix.T)
    mean, covariance = np.zeros(n), np.eye(n)
    for timestep in scheduler.timesteps:
        prediction = predict(points, timestep)
        plain = step(prediction, points, timestep)
        spread = float((step(prediction, points, timestep, 1.0) - plain).flatten()[0])
        matrix, offset = affine(plain)
        mean, covariance = matrix @ mean + offset, matrix @ covariance @ matrix.T + spread**2 * np.eye(n)
    return Gaussian(mean, covariance)


def distance(found: Gaussian, wanted: Gaussian) -> tuple[float, float]:
    """Error of the mean in root-mean-square standard deviations, relative error of the covariance (Frobenius)."""
    spread = np.sqrt(np.trace(wanted.covariance) / len(wanted.mean))
    covariance = np.linalg.norm(found.covariance - wanted.covariance) / np.linalg.norm(wanted.covariance)
    return float(np.abs(found.mean - wanted.mean).max() / spread), float(covariance)
