"""Doses and scanners drawn at random, so that a model trains on more than one scanner."""

from dataclasses import dataclass

import numpy as np

from .dose_settings import DoseSettings
from .kernels import KERNELS, ReconstructionKernel, TabulatedKernel

Kernel = str | ReconstructionKernel | TabulatedKernel


@dataclass(frozen=True)
class DoseDraws:
    """What a training example's dose and scanner are drawn from; calling it draws.

    Attributes:
        dose_fraction: (least, largest), log-uniform, in (0, 1].
        i0: (least, largest) photons per ray at full dose, log-uniform.
        electronic_variance: (least, largest), uniform, in counts squared.
        modulation_alphas: one of them each time.
        bowtie_half_widths_rad: one of them each time; None is no bowtie.
        kernels: one of them each time; None for windows all along from smooth over soft to sharp.
    """

    dose_fraction: tuple[float, float] = (0.03, 0.5)
    i0: tuple[float, float] = (2e5, 1e6)
    electronic_variance: tuple[float, float] = (5.0, 30.0)
    modulation_alphas: tuple[float, ...] = (0.0, 0.5)
    bowtie_half_widths_rad: tuple[float | None, ...] = (None, 0.19)
    kernels: tuple[Kernel, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("dose_fraction", "i0", "electronic_variance"):
            least, largest = getattr(self, name)
            if not least <= largest:
                raise ValueError(f"`{name}` must be (least, largest), got {(least, largest)}.")
        if not self.dose_fraction[0] > 0.0 or self.dose_fraction[1] > 1.0:
            raise ValueError(f"`dose_fraction` must lie in (0, 1], got {self.dose_fraction}.")
        if not self.i0[0] > 0 or self.electronic_variance[0] < 0:
            raise ValueError("`i0` must be positive and `electronic_variance` not negative.")
        if not self.modulation_alphas or not self.bowtie_half_widths_rad or self.kernels == ():
            raise ValueError("Give at least one modulation, one bowtie (None is a choice) and one kernel to draw from.")

    def __call__(self, rng: np.random.Generator) -> tuple[float, DoseSettings]:
        """A dose fraction and the scanner's settings; the same for the same state of `rng`."""
        dose = _log_uniform(rng, self.dose_fraction)
        i0 = _log_uniform(rng, self.i0)
        variance = float(rng.uniform(*self.electronic_variance))
        alpha = self.modulation_alphas[int(rng.integers(len(self.modulation_alphas)))]
        bowtie = self.bowtie_half_widths_rad[int(rng.integers(len(self.bowtie_half_widths_rad)))]
        sharpness = float(rng.uniform())
        if self.kernels is None:
            kernel: Kernel = kernel_of_sharpness(sharpness)
        else:
            kernel = self.kernels[min(int(sharpness * len(self.kernels)), len(self.kernels) - 1)]
        settings = DoseSettings(
            i0=i0, electronic_variance=variance, modulation_alpha=alpha, bowtie_half_width_rad=bowtie, kernel=kernel
        )
        return dose, settings


def draw_dose_settings(rng: np.random.Generator, draws: DoseDraws | None = None) -> tuple[float, DoseSettings]:
    """A dose fraction and a scanner from `draws`, or from the default ranges of `DoseDraws`."""
    return (draws or DoseDraws())(rng)


def kernel_of_sharpness(sharpness: float) -> ReconstructionKernel:
    """A window between the named kernels: 0 is "smooth", 0.6 "soft" and 1 "sharp"."""
    smooth, sharp = KERNELS["smooth"], KERNELS["sharp"]
    cutoff = smooth.cutoff_per_mm + sharpness * (sharp.cutoff_per_mm - smooth.cutoff_per_mm)
    return ReconstructionKernel(cutoff, boost=sharp.boost * max(0.0, (sharpness - 0.6) / 0.4))


def _log_uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    low, high = bounds
    return float(np.clip(np.exp(rng.uniform(np.log(low), np.log(high))), low, high))  # exp(log(x)) may round beyond x
