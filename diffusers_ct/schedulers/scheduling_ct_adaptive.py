"""`CTAdaptiveDDIMScheduler`: DDIM whose noise schedule follows the dose, resolution and slice thickness of each sample."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..registration import register
from .log_snr_shift import (
    LogSNRShift,
    equal_snr_timesteps,
    has_condition,
    hat_functions,
    log_condition,
    one_hidden_layer,
)

register()


class CTAdaptiveDDIMScheduler(DDIMScheduler, SchedulerMixin):  # the mixin by name: diffusers looks for it in the file
    """DDIM with a log-SNR that is shifted, and optionally scaled, by the conditions of each sample.

    logSNR'(t | c) = exp(w(c)) logSNR(t) + s(c), with s and w sums over conditions of a piecewise linear table in the
    logarithm of the condition (or s of a small network). An unknown condition (NaN) adds nothing; where nothing is
    added, every method is the parent's, bit for bit. Any shift is only a change of time: with the exact denoiser and
    many steps the samples have the same law, with few steps those of the schedule that fits are closer to it.

    After `set_timesteps(n, conditions=...)` the schedules of that batch are in force: `step`, `add_noise`,
    `get_velocity` and `alpha_sigma` use them until `set_timesteps` is called again.

    **What the network is told.** Step t means another noise level for every condition, so t alone would be ambiguous,
    all the more where the network does not know the condition (or has it dropped for guidance). Give the network
    `network_timesteps(t)`: the time, a fraction of a step, at which the *parent's* schedule has the same SNR. A
    network is then told the noise of its input and nothing about the schedule: a trained one can be sampled with
    another table, with none, or with any other scheduler.

    Args:
        num_train_timesteps: as in `DDIMScheduler`, and so for every argument up to `rescale_betas_zero_snr`.
        shift_conditions: names of the conditions, positive scalars ("dose_fraction", "slice_thickness_mm", ...;
            "slice_spacing_mm" and "pixel_spacing_mm" are read from "spacing_mm").
        shift_knot_counts: knots of each condition's table.
        shift_knots: values of the conditions at the knots, rising for each condition; one condition after the other.
        shift_values: s at the knots, in units of log-SNR; positive is less noise at the same step.
        shift_log_scales: w at the knots; empty scales nothing.
        shift_network: instead of a table: for each condition the weights of `one_hidden_layer`, one after the other.

    Raises:
        ValueError: if the lists do not fit each other.

    References:
        Song et al. 2021, arXiv:2010.02502 (DDIM); Kingma et al. 2021, arXiv:2107.00630, section 3.2 (log-SNR);
        Hoogeboom et al. 2023, arXiv:2301.11093, section 3.1 (shifted schedule); Nichol and Dhariwal 2021,
        arXiv:2102.09672 (cosine). The shift by conditions of the sample is ours; `log_snr_fit` says how it is chosen.
    """

    alphas_cumprod: torch.Tensor
    final_alpha_cumprod: torch.Tensor

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
        shift_conditions: Sequence[str] = (),
        shift_knot_counts: Sequence[int] = (),
        shift_knots: Sequence[float] = (),
        shift_values: Sequence[float] = (),
        shift_log_scales: Sequence[float] = (),
        shift_network: Sequence[float] = (),
    ) -> None:
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            trained_betas=trained_betas,
            clip_sample=clip_sample,
            set_alpha_to_one=set_alpha_to_one,
            steps_offset=steps_offset,
            prediction_type=prediction_type,
            thresholding=thresholding,
            dynamic_thresholding_ratio=dynamic_thresholding_ratio,
            clip_sample_range=clip_sample_range,
            sample_max_value=sample_max_value,
            timestep_spacing=timestep_spacing,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )
        _check_shift_config(
            shift_conditions, shift_knot_counts, shift_knots, shift_values, shift_log_scales, shift_network
        )
        self._shift: LogSNRShift | None = None
        self._batch_table = torch.empty(0)

    def log_snr_shift(self, conditions: Mapping[str, torch.Tensor]) -> LogSNRShift | None:
        """What the conditions do to the schedule of each sample; None where they change nothing.

        Args:
            conditions: (batch,) tensors by name (and "spacing_mm" (batch, 3)), NaN where unknown; others are ignored.

        Raises:
            ValueError: if none of `shift_conditions` is there, or a value is not positive.
        """
        config = self.config
        names = list(config.shift_conditions)
        known = [name for name in names if has_condition(conditions, name)]
        if not names:
            return None
        if not known:
            raise ValueError(
                f"This scheduler adapts to {names}, and got {sorted(conditions)}: give at least one of them, as NaN where "
                "it is unknown."
            )
        logs = {name: log_condition(conditions, name) for name in known}
        shift = torch.zeros(len(logs[known[0]]), dtype=torch.float64)
        log_scale = torch.zeros_like(shift) if config.shift_log_scales else None
        if config.shift_network:
            rows = torch.tensor(config.shift_network, dtype=torch.float64).reshape(len(names), -1)
            for name, weights in zip(names, rows):
                if name in known:
                    shift = shift + one_hidden_layer(logs[name], weights)
        start = 0
        for name, count in zip(names, config.shift_knot_counts):
            part, start = slice(start, start + count), start + count
            if name in known:
                basis = hat_functions(logs[name], config.shift_knots[part])
                shift = shift + basis @ torch.tensor(config.shift_values[part], dtype=torch.float64)
                if log_scale is not None:
                    log_scale = log_scale + basis @ torch.tensor(config.shift_log_scales[part], dtype=torch.float64)
        found = LogSNRShift(shift, log_scale)
        return None if found.is_zero else found

    @property
    def shift_in_force(self) -> LogSNRShift | None:
        """Of the batch of the last `set_timesteps`; None is the parent's schedule."""
        return self._shift

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        conditions: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Timesteps of a batch and the schedules that its samples take them on.

        Args:
            num_inference_steps: steps; the integer timesteps are the parent's and shared by the batch.
            device: of the timesteps.
            conditions: see `log_snr_shift`; of one sample for a batch of any size, or of every sample. None is the
                parent's schedule.
        """
        super().set_timesteps(num_inference_steps, device)
        self._shift = None if conditions is None else self.log_snr_shift(conditions)
        if self._shift is not None:
            self._batch_table = self._shift.alphas_cumprod(self.alphas_cumprod[:, None]).float()

    def network_timesteps(self, timesteps: torch.Tensor, log_snr_shift: LogSNRShift | None = None) -> torch.Tensor:
        """What the network is told: the time at which the parent's schedule has the SNR that each sample has.

        Args:
            timesteps: integers, () shared by the batch, or (batch,).
            log_snr_shift: None is the one in force.

        Returns:
            (batch,) float32 in [-1, num_train_timesteps - 1]; `timesteps` itself where no schedule is shifted.
        """
        shift = self._shift if log_snr_shift is None else log_snr_shift
        if shift is None:
            return timesteps
        table = self.alphas_cumprod.cpu()
        found = equal_snr_timesteps(shift.alphas_cumprod(table[timesteps.cpu().long()]), table)
        return found.to(timesteps.device)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The parent's step, every sample on its own schedule; arguments as there.

        Raises:
            ValueError: if the batch is not the one that `set_timesteps` got conditions of.
        """
        if self._shift is None:
            return super().step(
                model_output, timestep, sample, eta, use_clipped_model_output, generator, variance_noise, return_dict
            )
        _check_batch(self._shift, len(sample))
        # The parent multiplies by scalars, which leave the sample's type alone; one alpha a sample would not.
        dtype = sample.dtype
        shape = (-1,) + (1,) * (sample.ndim - 1)
        table = self._batch_table.to(sample.device)
        final = self._shift.alphas_cumprod(self.final_alpha_cumprod).float().to(sample.device)
        if variance_noise is not None:
            variance_noise = variance_noise.float()
        with self._schedule(table.reshape(len(table), *shape), final.reshape(shape)):
            previous, original = super().step(
                model_output.float(), timestep, sample.float(), eta, use_clipped_model_output, generator,
                variance_noise, return_dict=False,
            )  # fmt: skip
        previous, original = previous.to(dtype), original.to(dtype)
        return DDIMSchedulerOutput(previous, original) if return_dict else (previous, original)

    def add_noise(
        self,
        original_samples: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        conditions: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """x_t = alpha' x0 + sigma' eps, every sample on its own schedule.

        Args:
            original_samples: (batch, ...).
            noise: of the same shape.
            timesteps: (batch,) integers.
            conditions: see `log_snr_shift`; None takes the schedules in force.
        """
        return self._forward(super().add_noise, original_samples, noise, timesteps, conditions)

    def get_velocity(
        self,
        sample: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        conditions: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """v = alpha' eps - sigma' x0, every sample on its own schedule; arguments as of `add_noise`."""
        return self._forward(super().get_velocity, sample, noise, timesteps, conditions)

    def _forward(
        self,
        parents: Any,
        sample: torch.Tensor,
        noise: torch.Tensor,
        timesteps: torch.Tensor,
        conditions: Mapping[str, torch.Tensor] | None,
    ) -> torch.Tensor:
        shift = self._shift if conditions is None else self.log_snr_shift(conditions)
        if shift is None:
            return parents(sample, noise, timesteps)
        _check_batch(shift, len(sample))
        alphas_cumprod = shift.alphas_cumprod(self.alphas_cumprod.cpu()[timesteps.cpu()]).float()
        # The parent reads row i of a table that holds one alpha for each sample.
        with self._schedule(alphas_cumprod.expand(len(sample)), self.final_alpha_cumprod):
            return parents(sample, noise, torch.arange(len(sample)))

    @contextmanager
    def _schedule(self, alphas_cumprod: torch.Tensor, final_alpha_cumprod: torch.Tensor) -> Iterator[None]:
        """The parent's methods on another table."""
        own = self.alphas_cumprod, self.final_alpha_cumprod
        self.alphas_cumprod, self.final_alpha_cumprod = alphas_cumprod, final_alpha_cumprod
        try:
            yield
        finally:
            self.alphas_cumprod, self.final_alpha_cumprod = own


def _check_batch(shift: LogSNRShift, batch: int) -> None:
    if len(shift) not in (1, batch):
        raise ValueError(f"The conditions are of {len(shift)} samples, the batch has {batch}: give one value a sample.")


def _check_shift_config(
    names: Sequence[str],
    counts: Sequence[int],
    knots: Sequence[float],
    values: Sequence[float],
    log_scales: Sequence[float],
    network: Sequence[float],
) -> None:
    if not names:
        if counts or knots or values or log_scales or network:
            raise ValueError("A shift needs `shift_conditions`: the names of what it depends on.")
        return
    if bool(knots) == bool(network):
        raise ValueError("`shift_conditions` needs either a table (`shift_knots`, ...) or a `shift_network`.")
    if network:
        if counts or values or log_scales:
            raise ValueError("`shift_network` stands in place of the table: leave the table's lists empty.")
        if len(network) % len(names) or (len(network) // len(names) - 1) % 3 or len(network) == len(names):
            raise ValueError(
                f"`shift_network` must hold 1 + 3 x hidden numbers for each of {len(names)} conditions, got {len(network)}."
            )
        return
    if len(counts) != len(names) or sum(counts) != len(knots) or len(values) != len(knots):
        raise ValueError(
            f"`shift_knot_counts` must have one number for each of {len(names)} conditions, and their sum must be the "
            f"length of `shift_knots` and `shift_values`; got {list(counts)}, {len(knots)} and {len(values)}."
        )
    if log_scales and len(log_scales) != len(knots):
        raise ValueError(f"`shift_log_scales` must be empty or have {len(knots)} numbers, got {len(log_scales)}.")
    start = 0
    for name, count in zip(names, counts):
        own = knots[start : start + count]
        start += count
        if count < 1 or min(own) <= 0.0 or any(b <= a for a, b in pairwise(own)):
            raise ValueError(f"The knots of {name!r} must be positive and rising, got {list(own)}.")
