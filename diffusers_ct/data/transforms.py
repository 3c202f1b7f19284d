"""Augmentation of patches: drawing the parameters apart from applying them, so that both images get the same."""

from dataclasses import dataclass

import numpy as np

from ..hounsfield import HU_MAX, HU_MIN


@dataclass(frozen=True)
class Orientation:
    """One of the 16 flips and in-plane quarter turns of a patch; the default leaves it as it is.

    Attributes:
        flip_z: reverse the slices.
        flip_x: mirror the columns (done before turning).
        quarter_turns: turns by 90 degrees in the (y, x) plane, 0 to 3.
    """

    flip_z: bool = False
    flip_x: bool = False
    quarter_turns: int = 0


def draw(rng: np.random.Generator, *, square: bool) -> Orientation:
    """Draws an orientation with equal chances; only half turns unless the patch is square."""
    flip_z, flip_x = (bool(bit) for bit in rng.integers(0, 2, size=2))
    turns = int(rng.integers(0, 4)) if square else 2 * int(rng.integers(0, 2))
    return Orientation(flip_z, flip_x, turns)


def apply(volume: np.ndarray, orientation: Orientation) -> np.ndarray:
    """Turns a (depth, height, width) array of any dtype; values are moved, never changed. Returns a new array."""
    if orientation.flip_z:
        volume = volume[::-1]
    if orientation.flip_x:
        volume = volume[:, :, ::-1]
    return np.rot90(volume, orientation.quarter_turns, axes=(1, 2)).copy()


def apply_to_slices(values: np.ndarray, orientation: Orientation) -> np.ndarray:
    """The same for one number a slice, (depth,). Returns a new array."""
    return (values[::-1] if orientation.flip_z else values).copy()


def apply_to_spacing(spacing_mm: np.ndarray, orientation: Orientation) -> np.ndarray:
    """The same for the voxel spacing (z, y, x) in mm. Returns a new array."""
    return spacing_mm[[0, 2, 1]] if orientation.quarter_turns % 2 else spacing_mm.copy()


def draw_gain(rng: np.random.Generator, smallest: float, largest: float) -> float:
    """Draws a noise gain, even in its logarithm."""
    return float(np.exp(rng.uniform(np.log(smallest), np.log(largest))))


def apply_gain(low_hu: np.ndarray, full_hu: np.ndarray, gain: float) -> np.ndarray:
    """full + gain (low - full), int16 within the 12-bit range: the scan at a dose whose added noise is `gain` times."""
    full = full_hu.astype(np.float32)
    return np.clip(np.rint(full + gain * (low_hu - full)), HU_MIN, HU_MAX).astype(np.int16)


def noise_level_factor(gain: float, shared: float) -> float:
    """Change of the low-dose noise level under a gain, where the fraction `shared` of its variance is in both images."""
    return float(np.sqrt(shared + (1.0 - shared) * gain**2))
