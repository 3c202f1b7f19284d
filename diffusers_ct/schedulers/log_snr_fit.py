"""How the shift of the schedule is chosen: every condition passes the same difficulty at the same step.

The difficulty at a noise level is the error E|x0 - E[x0 | x_t, c]|^2 of the denoiser as a fraction of its error without
any signal (zero SNR, where only the conditions speak). The schedule of a condition is moved so that *half* of that error
is left where the parent's schedule has SNR 1, the middle of its angle. For a Gaussian of variance v the fraction is
1 / (1 + v SNR), and the half lies at log-SNR = -log v: the shift is that of data divided by their standard deviation.
Where the curve is flatter than a Gaussian's (a spectrum of variances), the distance between its quartiles, 2 log 3 for
a Gaussian, gives the scale.

The information that x_t holds of x0 grows by SNR x error / 2 for each unit of log-SNR, which for a Gaussian is at half
of its largest value at the same place (Guo, Shamai and Verdu 2005, IEEE Trans. Inf. Theory 51(4), 1261, eq. 1).
The criterion is ours; it stands beside the schedule that Kingma et al. 2021, arXiv:2107.00630, learn for the variance of
the loss.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .log_snr_shift import LARGEST_SHIFT, LogSNRShift, hat_functions, log_condition, one_hidden_layer

_GAUSSIAN_QUARTILES = 2.0 * math.log(3.0)


def denoising_errors(
    denoiser: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x0: torch.Tensor,
    scheduler: Any,
    timesteps: Sequence[int],
    generator: torch.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The error of a denoiser at some steps of a schedule.

    Args:
        denoiser: (x_t, t) -> x0, with t (batch,) integers.
        x0: (batch, ...) clean samples.
        scheduler: whose schedule is meant, as it is without conditions.
        timesteps: at which to measure.
        generator: of the noise, on the CPU.

    Returns:
        Log-SNR (timesteps,), -inf at zero SNR, and the mean squared error of each sample (timesteps, batch).
    """
    log_snr, errors = [], []
    for timestep in timesteps:
        t = torch.full((len(x0),), timestep, device=x0.device)
        signal = float(scheduler.alphas_cumprod[timestep])
        eps = torch.randn(x0.shape, generator=generator).to(x0.device)
        x_t = math.sqrt(signal) * x0 + math.sqrt(1.0 - signal) * eps
        error = (denoiser(x_t, t) - x0).square().flatten(1).mean(dim=1)
        log_snr.append(math.log(signal / (1.0 - signal)) if signal > 0.0 else -math.inf)
        errors.append(error.cpu().double().numpy())
    return np.array(log_snr), np.stack(errors)


def log_snr_at_error(log_snr: np.ndarray, error: np.ndarray, prior_error: float, fraction: float = 0.5) -> float:
    """The log-SNR at which a fraction of the error without signal is left, linear between the points of the curve.

    Args:
        log_snr: (points,), finite, in any order.
        error: (points,) mean squared errors.
        prior_error: at zero SNR.
        fraction: in (0, 1).

    Raises:
        ValueError: if the curve does not pass the fraction: measure at more noise levels.
    """
    order = np.argsort(log_snr)
    at = np.asarray(log_snr, dtype=np.float64)[order]
    # A measured curve is noisy: the best that was seen at no more signal makes it fall.
    left = np.minimum.accumulate(np.asarray(error, dtype=np.float64)[order]) / prior_error
    if not 0.0 < fraction < 1.0 or not np.isfinite(at).all():
        raise ValueError(f"`fraction` must be in (0, 1) and `log_snr` finite, got {fraction} and {at.tolist()}.")
    if left[0] < fraction or left[-1] > fraction:
        raise ValueError(
            f"The error goes from {left[0]:.3g} to {left[-1]:.3g} of the error without signal over log-SNR {at[0]:.3g} to "
            f"{at[-1]:.3g} and does not pass {fraction}: measure at more noise levels, or train the denoiser longer."
        )
    after = max(int(np.argmax(left <= fraction)), 1)
    share = (left[after - 1] - fraction) / (left[after - 1] - left[after])
    return float(at[after - 1] + share * (at[after] - at[after - 1]))


def matching_shift(log_snr: np.ndarray, error: np.ndarray, prior_error: float) -> tuple[float, float]:
    """Shift and log scale that give the parent's schedule the curve's half at SNR 1 and a Gaussian's quartiles.

    Arguments as of `log_snr_at_error`. Leave the scale out where the curve is too coarse for its quartiles.
    """
    easy, half, hard = (log_snr_at_error(log_snr, error, prior_error, f) for f in (0.25, 0.5, 0.75))
    return half, math.log((easy - hard) / _GAUSSIAN_QUARTILES)


def fit_shift_table(
    conditions: Mapping[str, torch.Tensor],
    shift: LogSNRShift,
    knots: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """A table for `CTAdaptiveDDIMScheduler`: least squares of the wanted shifts over the summed tables.

    With one condition and its values as knots the table holds the shifts themselves. A constant that the tables of
    several conditions share is spread over them evenly, so that an unknown condition leaves the others' part.

    Args:
        conditions: (scans,) by name, NaN where unknown.
        shift: wanted for each scan, from `matching_shift`.
        knots: of each condition that the table is to have, positive and rising.

    Returns:
        Arguments of the scheduler, numbers in flat lists.
    """
    basis = torch.cat([hat_functions(log_condition(conditions, name), own) for name, own in knots.items()], dim=1)
    found: dict[str, Any] = {
        "shift_conditions": list(knots),
        "shift_knot_counts": [len(own) for own in knots.values()],
        "shift_knots": [float(k) for own in knots.values() for k in own],
        "shift_values": _least_squares(basis, shift.shift),
    }
    if shift.log_scale is not None:
        found["shift_log_scales"] = _least_squares(basis, shift.log_scale)
    return found


def _least_squares(basis: torch.Tensor, wanted: torch.Tensor) -> list[float]:
    # Of least norm, where knots without data or the shared constant leave a choice.
    return torch.linalg.lstsq(basis, wanted.double()[:, None], driver="gelsd").solution[:, 0].tolist()


def fit_shift_network(
    conditions: Mapping[str, torch.Tensor], shift: torch.Tensor, *, hidden: int = 4, ridge: float = 1e-6
) -> dict[str, Any]:
    """One hidden layer for each condition, for many scans with scattered conditions; least squares by L-BFGS.

    There is no randomness: the units begin evenly spread over the range of the data.

    Args:
        conditions: (scans,) by name, NaN where unknown; all of them are used.
        shift: (scans,) wanted.
        hidden: units for each condition.
        ridge: weight of the squared output weights.

    Returns:
        Arguments of the scheduler, numbers in flat lists.
    """
    logs = {name: log_condition(conditions, name) for name in conditions}
    wanted = shift.detach().cpu().double()
    if not (wanted.abs() <= LARGEST_SHIFT).all():
        raise ValueError(f"`shift` must be finite and within ±{LARGEST_SHIFT:g}, got {wanted.tolist()}.")
    middle = {name: float(np.nanmean(log)) for name, log in logs.items()}
    width = {name: float(np.nanstd(log)) or 1.0 for name, log in logs.items()}
    centres = torch.linspace(-1.5, 1.5, hidden, dtype=torch.float64)
    start = torch.cat([torch.zeros(1), torch.ones(hidden), -centres, torch.zeros(hidden)]).double()
    rows = start.repeat(len(logs), 1).requires_grad_()

    def loss() -> torch.Tensor:
        parts = [one_hidden_layer((log - middle[n]) / width[n], row) for (n, log), row in zip(logs.items(), rows)]
        weights = rows[:, -hidden:]
        return (torch.stack(parts).sum(0) - wanted).square().mean() + ridge * weights.square().mean()

    optimizer = torch.optim.LBFGS([rows], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value.item()

    with torch.enable_grad():
        optimizer.step(closure)
    flat = []
    for name, row in zip(logs, rows.detach()):
        u, a, w = row[1:].reshape(3, -1)
        # Of the logarithm itself, so that the config needs no statistics of the data.
        flat += torch.cat([row[:1], u / width[name], a - u * middle[name] / width[name], w]).tolist()
    return {"shift_conditions": list(logs), "shift_network": flat}
