"""Poisson counts as a smooth function of one normal number a ray, on NumPy arrays and torch tensors alike.

Samplers that reject take more or fewer numbers from the stream when an expectation changes in its last bit, as it
does with the number of threads or images of a batch: every later ray would be another draw. Inverting the
distribution at one number a ray changes that ray alone, and by one count at most.

References:
    Giles 2016, "Algorithm 955: approximation of the inverse Poisson cumulative distribution function", ACM Trans.
    Math. Softw. 42(1) 7, section 2.2.
"""

from typing import TypeVar

import numpy as np
import torch
from scipy import special

Array = TypeVar("Array", np.ndarray, torch.Tensor)

_FEW = 10.0  # below, the distribution is summed up
_MOST_OF_FEW = 40  # P(n > 40) < 1e-12 at an expectation of 10


def poisson_counts(expected: Array, z: Array) -> Array:
    """Counts of which a standard normal `z` is the quantile: Poisson(expected) when z is N(0, 1).

    Exact below 10 counts; above, the asymptotic expansion of the quantile in 1 / sqrt(expected), whose error is below
    0.01 counts for |z| < 3.

    Args:
        expected: expectations, any shape, at least 0.
        z: the same shape and kind.
    """
    root = expected**0.5 + 1e-12
    square = z * z
    counts = expected + root * z + (1.0 / 3.0 + square / 6.0) - z * (2.0 + square) / (72.0 * root)
    counts += (square * square / 270.0 + square * (7.0 / 810.0) - 8.0 / 405.0) / (root * root)
    counts = np.floor(counts) if isinstance(counts, np.ndarray) else counts.floor()
    few = expected < _FEW
    if few.any():
        counts[few] = _quantile(_normal_cdf(z[few]), expected[few])
    return counts.clip(0.0)


def _quantile(probability: Array, expected: Array) -> Array:
    """Smallest count k with P(n <= k) >= probability: the number of k whose P(n <= k) is below it."""
    mass = np.exp(-expected) if isinstance(expected, np.ndarray) else torch.exp(-expected)
    below, count = mass, 0.0 * expected
    for k in range(1, _MOST_OF_FEW + 1):
        count += below < probability
        mass = mass * expected / k
        below = below + mass
    return count


def _normal_cdf(z: Array) -> Array:
    return special.ndtr(z) if isinstance(z, np.ndarray) else torch.special.ndtr(z)
