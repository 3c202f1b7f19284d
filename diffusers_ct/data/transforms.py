"""Augmentation of patches: drawing the parameters apart from applying them, so that both images get the same."""

from dataclasses import dataclass

import numpy as np


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
