"""Log probabilities of targets of which some are unknown: one law for each kind of head of `NoiseAwareClassifier`.

An unknown target (NaN, or class -1) adds 0 and has no gradient.
"""

from collections.abc import Sequence
from math import log, pi

import torch
import torch.nn.functional as F


def bernoulli_log_probability(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Sum over known findings of log p, (batch,): independent Bernoulli variables of logits (batch, n)."""
    known = target.isfinite()
    signs = torch.where(known, 2.0 * target - 1.0, 0.0)
    return torch.where(known, F.logsigmoid(signs * logits), 0.0).sum(dim=1)


def categorical_log_probability(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """log softmax at the target class, (batch,); 0 where the target is -1."""
    if target.max() >= logits.shape[1] or target.min() < -1:
        raise ValueError(f"Classes must lie in -1..{logits.shape[1] - 1} (-1 unknown), got {target.tolist()}.")
    log_p = logits.log_softmax(dim=1).gather(1, target.clamp(min=0)[:, None])[:, 0]
    return torch.where(target >= 0, log_p, 0.0)


def ordinal_log_probability(logits: torch.Tensor, target: torch.Tensor, thresholds: Sequence[float]) -> torch.Tensor:
    """log p of the class between two thresholds in which a value lies, (batch,); 0 where it is NaN.

    Args:
        logits: (batch, n) of "above threshold k", falling.
        target: (batch,) values; class c holds those above c thresholds. A value on a threshold is below it.
        thresholds: n rising values.

    With a > b the logits on both sides of a class, sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)):
    no difference of nearly equal numbers.
    """
    edges = torch.tensor(list(thresholds), device=target.device, dtype=target.dtype)
    known = target.isfinite()
    index = torch.bucketize(torch.where(known, target, edges[0]), edges)[:, None]
    count = logits.shape[1]
    left = logits.gather(1, (index - 1).clamp(min=0))  # logit of being above the lower edge of the class
    right = logits.gather(1, index.clamp(max=count - 1))  # and above its upper edge
    above = torch.where(index > 0, F.logsigmoid(left), 0.0)
    below = torch.where(index < count, F.logsigmoid(-right), 0.0)
    inner = (index > 0) & (index < count)
    gap = torch.where(inner, left - right, 1.0)
    log_p = above + below + torch.where(inner, torch.log(-torch.expm1(-gap)), 0.0)
    return torch.where(known, log_p[:, 0], 0.0)


def gaussian_log_probability(mean_log_variance: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """log N(target; mean, variance), (batch,), of (batch, 2) mean and log variance; 0 where the target is NaN."""
    mean, log_variance = mean_log_variance.unbind(dim=1)
    known = target.isfinite()
    error = torch.where(known, target, mean.detach()) - mean
    log_p = -0.5 * (error.square() * torch.exp(-log_variance) + log_variance + log(2.0 * pi))
    return torch.where(known, log_p, 0.0)
