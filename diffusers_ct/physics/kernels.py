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


@dataclass(frozen=True)
class TabulatedKernel:
    """A window given by its values, such as one measured from a scan's noise by `match_kernel`.

    Attributes:
        frequency_per_mm: increasing frequencies in cycles/mm.
        amplitude: of the window there; linear in between, 0 beyond the last.
    """

    frequency_per_mm: tuple[float, ...]
    amplitude: tuple[float, ...]

    def __post_init__(self) -> None:
        steps = np.diff(self.frequency_per_mm)
        if len(self.frequency_per_mm) != len(self.amplitude) or len(steps) < 1 or not (steps > 0).all():
            raise ValueError("A tabulated kernel needs increasing frequencies and as many amplitudes, two at least.")

    def __call__(self, frequency_per_mm: np.ndarray) -> np.ndarray:
        return np.interp(frequency_per_mm, self.frequency_per_mm, self.amplitude, right=0.0)


def match_kernel(noise_hu: np.ndarray, pixel_mm: float, *, bins: int = 32) -> TabulatedKernel:
    """The window that gives noise of the measured spectrum: FBP noise has the power f W(f)^2 (Kak and Slaney, 5.2).

    Args:
        noise_hu: (slices, height, width) of noise alone: low minus full dose, or a uniform phantom.
        pixel_mm: of the image.
        bins: rings from 0 to the image's Nyquist frequency.

    Returns:
        A window with mean 1 below a quarter of the Nyquist frequency: its scale goes into I0.
    """
    _, height, width = noise_hu.shape
    side = min(height, width) // 2
    top, left = (height - side) // 2, (width - side) // 2
    roi = noise_hu[:, top : top + side, left : left + side].astype(np.float64)
    power = (np.abs(np.fft.fft2(roi - roi.mean(axis=(1, 2), keepdims=True))) ** 2).mean(axis=0)
    mean_frequency, (radial,), _ = radial_spectrum(power[None], pixel_mm, bins)
    window = np.sqrt(radial / mean_frequency)
    # The lowest frequencies hold what differs between places (streaks, bowtie), not the kernel: a kernel is flat there.
    window[: bins // 8] = window[bins // 8]
    window /= window[: bins // 4].mean()
    corner = float(np.sqrt(0.5)) / pixel_mm  # beyond the rings, up to the corner of the spectrum, it goes on
    return TabulatedKernel(
        (0.0, *mean_frequency.tolist(), corner), (float(window[0]), *window.tolist(), float(window[-1]))
    )


def radial_spectrum(power: np.ndarray, pixel_mm: float, bins: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of 2-D power spectra over rings from 0 to the image's Nyquist frequency, without the innermost ring.

    Args:
        power: (spectra, side, side), frequencies as `np.fft.fftfreq` has them.
        pixel_mm: of the image.
        bins: rings.

    Returns:
        Mean frequency of each ring in cycles/mm, (bins - 1,); mean power, (spectra, bins - 1); values in each ring.
    """
    axis = np.fft.fftfreq(power.shape[-1], pixel_mm)
    frequency = np.hypot(*np.meshgrid(axis, axis))
    ring = np.digitize(frequency.ravel(), np.linspace(0.0, 0.5 / pixel_mm, bins + 1)) - 1
    count = np.maximum(np.bincount(ring, minlength=bins + 2)[1:bins], 1)
    means = np.stack([np.bincount(ring, spectrum.ravel(), bins + 2)[1:bins] for spectrum in power]) / count
    return np.bincount(ring, frequency.ravel(), bins + 2)[1:bins] / count, means, count


# Cutoffs are fractions of the Nyquist frequency of the reference detector (736 bins on 500 mm: 0.736 cycles/mm).
KERNELS: dict[str, ReconstructionKernel] = {
    "smooth": ReconstructionKernel(0.5 * 0.736),
    "soft": ReconstructionKernel(0.8 * 0.736),
    "sharp": ReconstructionKernel(1.0 * 0.736, boost=4.0),
}
