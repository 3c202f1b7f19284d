"""Reconstruction kernels: windows on the ramp, in absolute spatial frequency."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ReconstructionKernel:
    """Amplitude of the window W(f) that multiplies the ramp |f|.

    W(f) = (1 + boost (f / cutoff)^2) (1 + cos(pi f / cutoff)) / 2 below the cutoff, else 0: a Hann window, with an
    edge enhancement for sharp kernels.

    Attributes:
        cutoff_per_mm: frequency in cycles/mm beyond which nothing passes.
        boost: edge enhancement; 0 for none.
    """

    cutoff_per_mm: float
    boost: float = 0.0

    def __post_init__(self) -> None:
        if not self.cutoff_per_mm > 0 or self.boost < 0:
            raise ValueError(f"A kernel needs a positive cutoff and no negative boost, got {self}.")

    def __call__(self, frequency_per_mm: np.ndarray) -> np.ndarray:
        relative = np.asarray(frequency_per_mm) / self.cutoff_per_mm
        hann = 0.5 * (1.0 + np.cos(np.pi * np.minimum(relative, 1.0)))
        return hann * (1.0 + self.boost * relative**2)


# Cutoffs are fractions of the Nyquist frequency of the reference detector (736 bins on 500 mm: 0.736 cycles/mm).
KERNELS: dict[str, ReconstructionKernel] = {
    "smooth": ReconstructionKernel(0.5 * 0.736),
    "soft": ReconstructionKernel(0.8 * 0.736),
    "sharp": ReconstructionKernel(1.0 * 0.736, boost=4.0),
}
