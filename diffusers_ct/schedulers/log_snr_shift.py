"""A log-SNR schedule moved by the conditions of each sample, and the functions of the conditions that move it.

    logSNR'(t | c) = exp(w(c)) logSNR(t) + s(c),    alpha'^2 = sigmoid(logSNR')

The scale acts about SNR 1, so that s keeps its meaning whatever w is: the log-SNR at the time where the parent's
schedule has as much signal as noise. exp(w) is positive, so time never runs backwards, and both s and w are sums over
conditions. Zero and infinite SNR stay what they are.

References:
    Kingma et al. 2021, "Variational diffusion models", arXiv:2107.00630, section 3.2 (a schedule is its log-SNR).
    Hoogeboom et al. 2023, "Simple diffusion", arXiv:2301.11093, section 3.1 (one shift for a resolution).
    Shifts that differ between the samples of a batch, and the scale, are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

LARGEST_SHIFT = 40.0  # beyond it float32 has no noise, or no signal, at any step
# Scalars that are read off (batch, 3) "spacing_mm" as (z, y, x).
_SPACING_AXIS = {"slice_spacing_mm": 0, "pixel_spacing_mm": 1}


@dataclass(frozen=True)
class LogSNRShift:
    """The change of the schedule of each sample of a batch.

    Attributes:
        shift: (batch,) s, added to the log-SNR; positive is less noise at the same time.
        log_scale: (batch,) w; None scales nothing.

    Raises:
        ValueError: for values that are not finite or too large to leave a schedule.
    """

    shift: torch.Tensor
    log_scale: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for name, values in (("shift", self.shift), ("log_scale", self.log_scale)):
            if values is not None and (values.ndim != 1 or values.shape != self.shift.shape):
                raise ValueError(f"`{name}` must be (batch,), got {tuple(values.shape)}.")
            if values is not None and not (values.abs() <= LARGEST_SHIFT).all():
                raise ValueError(f"`{name}` must be finite and within ±{LARGEST_SHIFT:g}, got {values.tolist()}.")

    def __len__(self) -> int:
        return len(self.shift)

    @property
    def is_zero(self) -> bool:
        """Whether every sample keeps the parent's schedule."""
        return not self.shift.any() and (self.log_scale is None or not self.log_scale.any())

    def alphas_cumprod(self, base: torch.Tensor) -> torch.Tensor:
        """alpha'^2 = sigmoid(exp(w) logit(alpha^2) + s).

        Args:
            base: alpha^2 in [0, 1], of a shape that broadcasts with (batch,).

        Returns:
            float64 on the CPU, the same numbers on every device. 0 stays 0 and 1 stays 1; where s = w = 0 a float32
            `base` comes back exactly when rounded to float32.
        """
        # In odds rather than logits: no infinity at alpha = 0, so no NaN at zero terminal SNR.
        signal = base.detach().cpu().double()
        noise = 1.0 - signal
        if self.log_scale is not None:
            power = self.log_scale.detach().cpu().double().exp()
            signal, noise = signal**power, noise**power
        return signal / (signal + noise * torch.exp(-self.shift.detach().cpu().double()))


def equal_snr_timesteps(alphas_cumprod: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The time, as a fraction of a step, at which a schedule has the given alpha^2.

    Linear in the angle arctan(sigma / alpha) between the steps of the table, because the angle is finite at both ends:
    pi / 2 at zero SNR, and 0 without noise, which is diffusers' step -1.

    Args:
        alphas_cumprod: (...) alpha^2 to look up.
        table: (num_train_timesteps,) alpha^2 of the schedule, falling.

    Returns:
        float32, shape of `alphas_cumprod`, in [-1, num_train_timesteps - 1]; exactly k for alpha^2 = table[k].
    """
    angles = np.concatenate([[0.0], _angle(table)])
    found = np.interp(_angle(alphas_cumprod), angles, np.arange(-1.0, len(table)))
    return torch.from_numpy(np.asarray(found)).float().to(alphas_cumprod.device)


def _angle(alphas_cumprod: torch.Tensor) -> np.ndarray:
    signal = alphas_cumprod.detach().cpu().double().numpy()
    return np.arctan2(np.sqrt(1.0 - signal), np.sqrt(signal))


def log_condition(conditions: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    """Natural logarithm of a condition, (batch,) float64 on the CPU; NaN where it is unknown.

    Args:
        conditions: tensors by name, batch first.
        name: of a positive scalar; "slice_spacing_mm" and "pixel_spacing_mm" are taken from "spacing_mm" (batch, 3).

    Raises:
        ValueError: for a wrong shape or values that are not positive.
    """
    if name in _SPACING_AXIS and name not in conditions:
        values = conditions["spacing_mm"][:, _SPACING_AXIS[name]]
    else:
        values = conditions[name]
    values = values.detach().cpu().double()
    if values.ndim != 1:
        raise ValueError(f"The condition {name!r} must be (batch,), got {tuple(values.shape)}.")
    if (values <= 0.0).any() or values.isinf().any():
        raise ValueError(f"The condition {name!r} must be positive, or NaN where it is unknown, got {values.tolist()}.")
    return values.log()


def has_condition(conditions: Mapping[str, torch.Tensor], name: str) -> bool:
    """Whether `log_condition` finds the condition."""
    return name in conditions or (name in _SPACING_AXIS and "spacing_mm" in conditions)


def hat_functions(log_value: torch.Tensor, knots: Sequence[float]) -> torch.Tensor:
    """Piecewise linear basis over the logarithms of `knots`, constant beyond them.

    Args:
        log_value: (batch,), NaN where unknown.
        knots: values of the condition, positive and rising.

    Returns:
        (batch, knots) float64; a row sums to 1, or is 0 where the value is unknown.
    """
    at = np.nan_to_num(log_value.numpy())
    logs = np.log(np.asarray(knots, dtype=np.float64))
    columns = [np.interp(at, logs, unit) for unit in np.eye(len(logs))]
    return torch.from_numpy(np.stack(columns, axis=1)) * ~log_value.isnan()[:, None]


def one_hidden_layer(log_value: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """b + sum_j w_j tanh(u_j log c + a_j); 0 where c is unknown. Constant far outside the range it was fitted on.

    Args:
        log_value: (batch,), NaN where unknown.
        weights: (1 + 3 hidden,) as b, then u, a and w.

    Returns:
        (batch,) float64.
    """
    u, a, w = weights[1:].reshape(3, -1)
    out = weights[0] + torch.tanh(log_value.nan_to_num()[:, None] * u + a) @ w
    return torch.where(log_value.isnan(), torch.zeros_like(out), out)
