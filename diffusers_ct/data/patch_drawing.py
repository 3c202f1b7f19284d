"""Drawing a patch from a scan: a place with enough of the patient in it, an orientation, a dose."""

from dataclasses import dataclass

import numpy as np
import torch

from . import transforms

BODY_HU = -900.0  # lung lies above, air around the patient below
BODY_FRACTION = 0.25
BODY_STRIDE = 4
TRIES = 12


@dataclass(frozen=True)
class PatchScan:
    """A pair to draw from.

    Attributes:
        low: (depth, height, width) int16 in HU.
        full: the same.
        noise_hu: (depth,) float32, noise level of `low`.
        spacing_mm: (3,) float32, (z, y, x).
        dose_fraction: of `low`.
        shared: fraction of the low dose's noise variance that the full dose has too.
    """

    low: np.ndarray
    full: np.ndarray
    noise_hu: np.ndarray
    spacing_mm: np.ndarray
    dose_fraction: float
    shared: float


@dataclass(frozen=True)
class PatchDrawer:
    """How patches are drawn; the arguments of `PatchDataset` and `StreamingPatches` of the same names.

    Raises:
        ValueError: for a size or a noise gain that means nothing.
    """

    patch_size: tuple[int, int, int]
    augment: bool
    noise_gain: tuple[float, float] | None

    def __post_init__(self) -> None:
        if min(self.patch_size) < 1:
            raise ValueError(f"`patch_size` must be positive, got {self.patch_size}.")
        if self.noise_gain is not None and not 0.0 < self.noise_gain[0] <= self.noise_gain[1]:
            raise ValueError(f"`noise_gain` must be (smallest, largest), both positive, got {self.noise_gain}.")

    def draw(self, rng: np.random.Generator, scan: PatchScan) -> dict[str, torch.Tensor]:
        """One patch of a scan that is no smaller; `PatchDataset` tells what is in it."""
        start = self._start(rng, scan.full)
        box = tuple(slice(a, a + n) for a, n in zip(start, self.patch_size))
        orientation = transforms.Orientation()
        if self.augment:
            orientation = transforms.draw(rng, square=self.patch_size[1] == self.patch_size[2])
        noise_hu = transforms.apply_to_slices(scan.noise_hu[box[0]], orientation)
        low, full = (transforms.apply(image[box], orientation) for image in (scan.low, scan.full))
        if self.noise_gain is not None:
            gain = transforms.draw_gain(rng, *self.noise_gain)
            low = transforms.apply_gain(low, full, gain)
            noise_hu = noise_hu * np.float32(transforms.noise_level_factor(gain, scan.shared))
        return {
            "low_hu": torch.from_numpy(low)[None],
            "full_hu": torch.from_numpy(full)[None],
            "noise_hu": torch.from_numpy(noise_hu),
            "spacing_mm": torch.from_numpy(transforms.apply_to_spacing(scan.spacing_mm, orientation)),
            "dose_fraction": torch.tensor(scan.dose_fraction, dtype=torch.float32),
        }

    def _start(self, rng: np.random.Generator, full: np.ndarray) -> tuple[int, int, int]:
        """The first place of a few with enough of the patient in it, else the best of them."""
        best, best_fraction = (0, 0, 0), -1.0
        for _ in range(TRIES):
            z, y, x = (int(rng.integers(0, n - size + 1)) for n, size in zip(full.shape, self.patch_size))
            depth, height, width = self.patch_size
            sample = full[z : z + depth : 2, y : y + height : BODY_STRIDE, x : x + width : BODY_STRIDE]
            fraction = float((sample > BODY_HU).mean())
            if fraction > best_fraction:
                best, best_fraction = (z, y, x), fraction
            if fraction >= BODY_FRACTION:
                break
        return best
