"""The student's optimum for a Gaussian posterior is the end of the exact trajectory; wrong objectives miss it."""

import numpy as np
import pytest
import torch
from torch import nn

from diffusers_ct.models import UNet3DCTOutput
from diffusers_ct.schedulers import CTAdaptiveDDIMScheduler, alpha_sigma, make_noise_scheduler, x0_to_prediction
from diffusers_ct.training import ResidualDiffusionObjective, TrajectoryDistillationObjective
from diffusers_ct.training.draws import draw_timesteps_and_noise
from tests.guidance.gaussian import Gaussian
from tests.schedulers.adaptive_settings import TABLE

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers' own NumPy

PROCESS = make_noise_scheduler()
# Of the three voxels of a row of the residual, given any low dose.
LAW = Gaussian(np.array([0.3, -0.5, 0.1]), np.array([[0.50, 0.20, 0.05], [0.20, 0.30, 0.10], [0.05, 0.10, 0.40]]))
ROWS = 400
TEACHER_STEPS = 20


class Teacher(nn.Module):
    """The exact v."""

    def forward(self, sample, timestep, pooled=None, spacing_mm=None):
        x_t = sample[:, :1]
        x0 = LAW.denoiser(PROCESS)(x_t, timestep[:1])
        alpha, sigma = alpha_sigma(PROCESS, timestep)
        if (alpha < 5e-4).all():
            return UNet3DCTOutput(sample=-x0)
        return UNet3DCTOutput(sample=x0_to_prediction(x0, x_t, alpha, sigma, "v_prediction"))


class AffineStudent(nn.Module):
    """v = b_t + M_t x_t, free at each timestep."""

    def __init__(self, timesteps) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({str(t): nn.Linear(3, 3).double() for t in timesteps})

    def forward(self, sample, timestep, pooled=None, spacing_mm=None):
        assert (timestep == timestep[0]).all()
        return UNet3DCTOutput(sample=self.maps[str(int(timestep[0]))](sample[:, :1].double()))


def batch(size: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "low_hu": 40.0 + 20.0 * torch.randn(size, 1, 1, ROWS, 3, generator=generator), "noise_hu": torch.full((size, 1), 20.0),
        "spacing_mm": torch.ones(size, 3),
    }  # fmt: skip


def root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(values) @ vectors.T


def exact_end(timestep: int) -> tuple[np.ndarray, np.ndarray]:
    """(A, b) of x_0 = A x_t + b: the trajectory keeps (x_t - alpha mu) in units of its own spread."""
    alpha, sigma = (float(c) for c in alpha_sigma(PROCESS, torch.tensor([timestep]), 1))
    matrix = root(LAW.covariance) @ np.linalg.inv(root(alpha**2 * LAW.covariance + sigma**2 * np.eye(3)))
    return matrix, LAW.mean - alpha * matrix @ LAW.mean


def objective(student: nn.Module, student_steps: int = 2, teacher_steps: int = TEACHER_STEPS):
    of = [ResidualDiffusionObjective(model, PROCESS, terminal_fraction=0.5) for model in (student, Teacher())]
    return TrajectoryDistillationObjective(*of, teacher_steps=teacher_steps, student_steps=student_steps)


def fitted(loss_of, student: AffineStudent) -> float:
    """The loss at the student's optimum: it is quadratic in the weights."""
    optimizer = torch.optim.LBFGS(student.parameters(), max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(loss_of().detach())


def learnt_end(student: AffineStudent, timestep: int) -> tuple[np.ndarray, np.ndarray]:
    alpha, sigma = (float(c) for c in alpha_sigma(PROCESS, torch.tensor([timestep]), 1))
    layer = student.maps[str(timestep)]
    return alpha * np.eye(3) - sigma * layer.weight.detach().numpy(), -sigma * layer.bias.detach().numpy()


@pytest.fixture(scope="module")
def trained():
    student = AffineStudent([999, 998, 499])
    goal = objective(student)
    assert goal.timesteps == (998, 499)
    eps = draw_timesteps_and_noise(torch.arange(4), batch()["low_hu"], 1000)[1]
    ends = goal.trajectory(eps, batch(), torch.arange(4))
    goal.trajectory = lambda *_: ends  # the same at every evaluation of the loss
    left = fitted(lambda: goal(batch(), torch.arange(4))["loss"], student)
    return student, left


def test_the_optimum_is_the_end_of_the_exact_trajectory_at_every_step(trained):
    student, left = trained
    assert left < 1e-5  # the noise decides the sample: no part of it is averaged away
    for timestep in (998, 499):
        for found, wanted in zip(learnt_end(student, timestep), exact_end(timestep)):
            np.testing.assert_allclose(found, wanted, atol=0.01)


def test_one_and_two_steps_have_the_posteriors_law(trained):
    student, _ = trained
    (a1, b1), (a2, b2) = (learnt_end(student, t) for t in (998, 499))
    np.testing.assert_allclose(a1 @ a1.T, LAW.covariance, atol=0.01)
    np.testing.assert_allclose(b1, LAW.mean, atol=0.01)
    alpha, sigma = (float(c) for c in alpha_sigma(PROCESS, torch.tensor([499]), 1))
    np.testing.assert_allclose(a2 @ (alpha**2 * a1 @ a1.T + sigma**2 * np.eye(3)) @ a2.T, LAW.covariance, atol=0.015)
    np.testing.assert_allclose(alpha * a2 @ b1 + b2, LAW.mean, atol=0.01)


def test_the_estimate_is_kept(trained):
    student, _ = trained
    layer = student.maps["999"]  # shown zeros: v = -E[r], and nothing is asked of its matrix
    np.testing.assert_allclose(-layer.bias.detach().numpy(), LAW.mean, atol=1e-3)


def test_regressions_on_images_or_on_samples_of_other_noise_draw_none():
    """The two wrong objectives that look right: both have the mean as their optimum."""
    student = AffineStudent([998])
    goal = objective(student, 1)
    data, seeds = batch(), torch.arange(4)
    residual = torch.from_numpy(np.random.default_rng(0).multivariate_normal(LAW.mean, LAW.covariance, (4, ROWS)))
    _, _, other = goal.trajectory(
        torch.randn(4, 1, 1, ROWS, 3, generator=torch.Generator().manual_seed(9)), data, seeds
    )
    eps = torch.randn(4, 1, 1, ROWS, 3, generator=torch.Generator().manual_seed(1))
    for end in (residual.reshape(4, 1, 1, ROWS, 3), other):
        alpha, sigma = alpha_sigma(PROCESS, torch.tensor([998]))
        target = (alpha * eps - end) / sigma  # v at nearly pure noise

        def loss(target: torch.Tensor = target) -> torch.Tensor:
            return (goal.student.predict(eps, torch.full((4,), 998), data, seeds) - target).square().mean()

        assert fitted(loss, student) > 0.3  # what is averaged away: the variance of the posterior, 0.4 a voxel
        matrix, offset = learnt_end(student, 998)
        assert np.abs(matrix).max() < 0.1 and np.abs(offset - LAW.mean).max() < 0.1


def test_noise_is_that_of_the_items_and_only_the_student_is_trained():
    student = AffineStudent([999, 998])
    frozen = nn.Module()
    teacher = Teacher()
    teacher.weight = nn.Parameter(torch.ones(()))
    frozen.forward = lambda *args, **kwargs: UNet3DCTOutput(sample=teacher.weight * teacher(*args, **kwargs).sample)
    of = [ResidualDiffusionObjective(model, PROCESS, terminal_fraction=0.5) for model in (student, frozen)]
    goal = TrajectoryDistillationObjective(*of, teacher_steps=3, student_steps=1)
    seeds = torch.tensor([5, 6, 7, 8])
    whole = goal(batch(), seeds)
    loss = float(whole["loss"].detach())
    halves = [goal({k: v[rows] for k, v in batch().items()}, seeds[rows]) for rows in (slice(0, 2), slice(2, 4))]
    assert loss == pytest.approx(np.mean([float(half["loss"].detach()) for half in halves]), rel=1e-6)
    assert loss == pytest.approx(float(whole["loss_estimate"] + whole["loss_step_1"]) / 2)
    assert float(goal(batch(), torch.arange(4))["loss"].detach()) != loss
    whole["loss"].backward()
    assert teacher.weight.grad is None and all(p.grad is not None for p in student.maps["998"].parameters())


def test_steps_are_shares_of_the_trajectory_and_wrong_ones_are_refused():
    assert objective(nn.Module(), 4, 8).timesteps == (998, 749, 499, 249)
    assert objective(nn.Module(), 1, 8).timesteps == (998,)
    for steps in (0, 8):
        with pytest.raises(ValueError, match="`student_steps` must be from 1 to below `teacher_steps` = 8"):
            objective(nn.Module(), steps, 8)
    adaptive = CTAdaptiveDDIMScheduler.from_config(PROCESS.config, **TABLE)
    of = ResidualDiffusionObjective(nn.Module(), adaptive, terminal_fraction=0.5)
    with pytest.raises(ValueError, match="schedule that changes with the scan is not distilled"):
        TrajectoryDistillationObjective(of, of, teacher_steps=8, student_steps=2)
