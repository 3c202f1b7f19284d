"""Sampling of a distilled network: its one or few steps each go to the end, with new noise in between."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from ..registration import register

register()


class CTConsistencyScheduler(DDPMScheduler, SchedulerMixin):  # the mixin by name: diffusers looks for it in the file
    """Multistep consistency sampling at the timesteps that a network was distilled for.

    At each of them the network goes from noise to a sample in one evaluation; further ones noise that sample again and
    go from there. The first lies just before the last of the schedule: at the last a restoring network is shown zeros in
    place of the noise, and one step is the estimate of least mean square error, not a sample. A distilled network still
    gives that estimate, by `DDIMScheduler.from_config(scheduler.config)` and one step; at any other timestep it predicts
    nothing of use.

    Args:
        num_train_timesteps: as in `DDPMScheduler`, and so for every argument up to `rescale_betas_zero_snr`.
        distilled_timesteps: falling; the first n are the steps of sampling with n steps.

    Raises:
        ValueError: for no distilled timesteps, or ones that do not fall or lie outside the schedule.

    References:
        Song et al. 2023, arXiv:2303.01469, algorithm 1.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        variance_type: str = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        distilled_timesteps: Sequence[int] = (),
    ) -> None:
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            trained_betas=trained_betas,
            variance_type=variance_type,
            clip_sample=clip_sample,
            prediction_type=prediction_type,
            thresholding=thresholding,
            dynamic_thresholding_ratio=dynamic_thresholding_ratio,
            clip_sample_range=clip_sample_range,
            sample_max_value=sample_max_value,
            timestep_spacing=timestep_spacing,
            steps_offset=steps_offset,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )
        falling = [num_train_timesteps, *distilled_timesteps]
        if not distilled_timesteps or any(b >= a for a, b in pairwise(falling)) or falling[-1] < 0:
            raise ValueError(
                f"`distilled_timesteps` must fall from below {num_train_timesteps} to 0 at the least, got "
                f"{list(distilled_timesteps)}: they come with a distilled checkpoint; any other is sampled by DDIMScheduler."
            )
        if prediction_type != "v_prediction" or clip_sample or thresholding:
            raise ValueError("Distilled networks predict v, and nothing is clipped: take `scheduler.config` of one.")

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """The first `num_inference_steps` of the distilled timesteps.

        Raises:
            ValueError: for more of them than there are.
        """
        check_distilled_steps(self.config.distilled_timesteps, num_inference_steps)
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor(self.config.distilled_timesteps[:num_inference_steps], device=device)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """To the end, and with new noise to the next of the timesteps if there is one.

        Args:
            model_output: the network's v, (batch, ...).
            timestep: one of `timesteps`.
            sample: x_t.
            generator: of the new noise.
            return_dict: return an output rather than (next sample, sample at the end).
        """
        steps = self.timesteps.tolist()
        later = steps.index(int(timestep)) + 1
        # By square roots of the table in float64: its last entries are tiny.
        alphas = self.alphas_cumprod.double().sqrt()
        alpha = float(alphas[steps[later - 1]])
        end = alpha * sample - (1.0 - alpha**2) ** 0.5 * model_output
        following = end
        if later < len(steps):
            alpha = float(alphas[steps[later]])
            noise = randn_tensor(end.shape, generator=generator, device=end.device, dtype=end.dtype)
            following = alpha * end + (1.0 - alpha**2) ** 0.5 * noise
        return DDPMSchedulerOutput(following, end) if return_dict else (following, end)


def check_distilled_steps(distilled_timesteps: Sequence[int], num_inference_steps: int) -> None:
    """Refuses more steps than a network was distilled for.

    Raises:
        ValueError: naming the number.
    """
    most = len(distilled_timesteps)
    if not 1 <= num_inference_steps <= most:
        raise ValueError(
            f"This checkpoint was distilled for {'1 step' if most == 1 else f'1 to {most} steps'}, got "
            f"`num_inference_steps` = {num_inference_steps}: more steps are its teacher's."
        )
