"""Distillation of a sampler into one step or few that keep the texture of its samples."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler

from ..schedulers import CTAdaptiveDDIMScheduler, alpha_sigma, last_noisy_timestep, without_pure_noise, x0_to_v
from .draws import draw_timesteps_and_noise
from .objectives import ResidualDiffusionObjective


class TrajectoryDistillationObjective:
    """Mean square distance of the student's one step to the end of the teacher's deterministic trajectory.

    The probability-flow equation takes every noise field to one sample. A network of the noise and the low dose that is
    regressed on these pairs has no mean to fall back to, as a regression on images has: its optimum is the sample itself,
    texture and all. What training leaves of the distance is missing texture: one too short draws smooth samples.

    One trajectory of the teacher teaches all of the student's steps. From its noise: the first step, told
    `last_noisy_timestep`. From the fields at `timesteps[1:]`, which the student meets when its own samples are noised
    again: the others. And the first evaluation of the teacher, at the last timestep: the estimate of least mean square
    error, so that the student keeps it. Full-dose images are not needed, low-dose ones of any scan are enough.

    Not exact about: the samples are no better than the teacher's with `teacher_steps` of UniPC.

    Args:
        student: the objective that the teacher was trained by, of the network to train, which starts as a copy of the
            teacher's.
        teacher: the same of the frozen network.
        teacher_steps: of its trajectory.
        student_steps: that sampling may take at most.

    Attributes:
        timesteps: `distilled_timesteps` of the `CTConsistencyScheduler` that samples the student.

    Raises:
        ValueError: for more steps than the teacher takes, or a schedule that changes with the scan.

    References:
        Luhman and Luhman 2021, arXiv:2101.02388, section 3 (regression on the ends of trajectories); Song et al. 2023,
        arXiv:2303.01469, algorithm 1 (several steps); Zhao et al. 2023, arXiv:2302.04867 (UniPC).
    """

    def __init__(
        self,
        student: ResidualDiffusionObjective,
        teacher: ResidualDiffusionObjective,
        *,
        teacher_steps: int,
        student_steps: int,
    ) -> None:
        if not 1 <= student_steps < teacher_steps:
            raise ValueError(
                f"`student_steps` must be from 1 to below `teacher_steps` = {teacher_steps}, got {student_steps}."
            )
        self.noise_scheduler = teacher.noise_scheduler
        if isinstance(self.noise_scheduler, CTAdaptiveDDIMScheduler):
            raise ValueError(
                "A schedule that changes with the scan is not distilled: sample its network by DDIMScheduler."
            )
        self.student, self.teacher = student, teacher
        self.teacher_steps = teacher_steps
        # Where the student's steps after the first begin: a share of the trajectory's steps each.
        self._starts = [round(k * teacher_steps / student_steps) for k in range(1, student_steps)]
        grid = self._solver().timesteps.tolist()
        self.timesteps = (last_noisy_timestep(self.noise_scheduler), *(grid[k] for k in self._starts))

    def __call__(self, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor) -> dict[str, Any]:
        """One step's loss: the mean over the student's steps and the estimate.

        Args:
            batch: "low_hu" (batch, 1, depth, height, width), "noise_hu" (batch, depth), "spacing_mm" (batch, 3), and what
                the objectives take besides.
            seeds: (batch,) integers: the noise of a sample depends on its seed alone.
        """
        _, eps = draw_timesteps_and_noise(seeds, batch["low_hu"], self.noise_scheduler.config.num_train_timesteps)
        estimate, fields, end = self.trajectory(eps, batch, seeds)
        last = self.noise_scheduler.config.num_train_timesteps - 1
        losses = {
            "loss_estimate": (self._student_v(torch.zeros_like(eps), last, batch, seeds) - estimate).square().mean()
        }
        for number, (timestep, x_t) in enumerate(zip(self.timesteps, [eps, *fields]), start=1):
            alpha, sigma = self._alpha_sigma(timestep, x_t)
            target = x0_to_v(end, (x_t - alpha * end) / sigma, alpha, sigma)
            losses[f"loss_step_{number}"] = (self._student_v(x_t, timestep, batch, seeds) - target).square().mean()
        return {"loss": torch.stack(list(losses.values())).mean(), **{k: v.detach() for k, v in losses.items()}}

    @torch.no_grad()
    def trajectory(
        self, eps: torch.Tensor, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """Where the teacher goes from noise (batch, 1, depth, height, width).

        Returns:
            Its v at the last timestep; its noisy fields at `timesteps[1:]`; its sample. All of the shape of the noise.
        """
        solver = self._solver()
        x_t, fields, estimate = eps, [], None
        for number, timestep in enumerate(solver.timesteps.tolist()):
            if number in self._starts:
                fields.append(x_t)
            alpha, _ = self._alpha_sigma(timestep, x_t)
            told = torch.full((len(x_t),), timestep, device=x_t.device)
            v = self.teacher.predict(without_pure_noise(x_t, alpha), told, batch, seeds).float()
            estimate = v if estimate is None else estimate
            x_t = solver.step(v, timestep, x_t, return_dict=False)[0]
        assert estimate is not None
        return estimate, fields, x_t

    def _student_v(
        self, x_t: torch.Tensor, timestep: int, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor
    ) -> torch.Tensor:
        told = torch.full((len(x_t),), timestep, device=x_t.device)
        return self.student.predict(x_t, told, batch, seeds).float()

    def _alpha_sigma(self, timestep: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return alpha_sigma(self.noise_scheduler, torch.tensor([timestep], device=like.device))

    def _solver(self) -> UniPCMultistepScheduler:
        """A new one: it remembers the steps that it has taken."""
        solver = UniPCMultistepScheduler.from_config(self.noise_scheduler.config)
        solver.set_timesteps(self.teacher_steps)
        return solver
