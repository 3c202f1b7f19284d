"""Low-dose CT from a normal-dose or noise-free image, through the projections.

Poisson counts and electronic noise on simulated projections, reconstructed as a noise image that is added to the
source: the source keeps its own resolution.

References:
    Zeng et al. 2015, "A simple low-dose X-ray CT simulation from high-dose scan", IEEE Trans. Nucl. Sci. 62(5), 2226.
    Žabić et al. 2013, "A low dose simulation tool for CT systems with energy integrating detectors", Med. Phys. 40(3).
"""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Literal, TypeVar, get_args

import numpy as np
import torch

from ..hounsfield import MU_WATER_PER_MM, hu_to_mu_per_mm
from .counts import poisson_counts
from .dose_settings import DoseSettings
from .geometry import FanBeam, ParallelBeam
from .projector import Engine, Projector

Array = TypeVar("Array", np.ndarray, torch.Tensor)

SIMULATOR_VERSION = "3"
SourceNoise = Literal["noise_free", "normal_dose"]
_SLICES_AT_ONCE = 4


def simulate_low_dose(
    volume_hu: np.ndarray,
    *,
    spacing_mm: tuple[float, float, float],
    dose_fraction: float,
    seed: int,
    source_noise: SourceNoise,
    settings: DoseSettings | None = None,
    geometry: ParallelBeam | FanBeam | None = None,
    slice_thickness_mm: float | None = None,
) -> np.ndarray:
    """Adds the noise of a lower dose to a scan.

    Groups of slices go to as many threads as torch has (`torch.set_num_threads`); the result does not depend on it.

    Not exact about: beam hardening, scatter and the scanner's own processing; helical acquisition; objects outside
    the image, which the rays do not see.

    Args:
        volume_hu: (depth, height, width) in HU.
        spacing_mm: (z, y, x); y and x must be equal.
        dose_fraction: of the dose that `settings.i0` stands for (and that a "normal_dose" source was made with).
        seed: noise of slice k depends on (seed, k) alone.
        source_noise: "noise_free" (a phantom): all of the dose's noise is added. "normal_dose" (a clinical scan): only
            what the lower dose adds, by counts at a' = a / (1 - a) with electronic variance s2 (1 + a) / (1 - a),
            whose noise and the source's own add up to that of dose a; a = 1 returns the image unchanged.
        settings: of the scanner; None for the defaults of `DoseSettings`.
        geometry: rays; None for `ParallelBeam.for_image`.
        slice_thickness_mm: where it is larger than the slice spacing, slices overlap and their noise is correlated
            along z; None for slices as thick as their spacing.

    Returns:
        (depth, height, width) float32 in HU.

    Raises:
        ValueError: for a wrong shape, dose, spacing or choice.
    """
    settings = settings or DoseSettings()
    volume_hu = np.asarray(volume_hu, dtype=np.float32)
    if volume_hu.ndim != 3:
        raise ValueError(f"`volume_hu` must be (depth, height, width), got shape {volume_hu.shape}.")
    thickness_mm = slice_thickness_mm or spacing_mm[0]
    exposure = photons_and_variance(settings, float(dose_fraction), source_noise, thickness_mm)
    if exposure is None:
        return volume_hu.copy()
    projector = projector_of(geometry or image_geometry(volume_hu.shape[1:], spacing_mm), "finufft")
    noise_hu = np.empty_like(volume_hu)

    def fill(start: int) -> None:
        part = volume_hu[start : start + _SLICES_AT_ONCE]
        generators = [np.random.default_rng([seed, start + k]) for k in range(len(part))]
        noise_hu[start : start + len(part)] = _noise_hu(part, projector, settings, exposure, generators)

    starts = range(0, len(volume_hu), _SLICES_AT_ONCE)
    workers = min(torch.get_num_threads(), len(starts))
    if workers > 1:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(fill, starts))
    else:
        for start in starts:
            fill(start)
    return volume_hu + correlate_slices(noise_hu, spacing_mm[0], thickness_mm)


def photons_and_variance(
    settings: DoseSettings, dose_fraction: float, source_noise: SourceNoise, thickness_mm: float
) -> tuple[float, float] | None:
    """Photons per open ray and electronic variance of the noise to be added; None where there is none to add.

    Raises:
        ValueError: for a wrong dose or choice.
    """
    if not 0.0 < dose_fraction <= 1.0:
        raise ValueError(f"`dose_fraction` must be in (0, 1], got {dose_fraction}.")
    if source_noise not in get_args(SourceNoise):
        raise ValueError(f"`source_noise` must be 'noise_free' or 'normal_dose', got {source_noise!r}.")
    photons, variance = dose_fraction * settings.i0, settings.electronic_variance
    if source_noise == "normal_dose":
        if dose_fraction == 1.0:
            return None
        photons /= 1.0 - dose_fraction
        variance *= (1.0 + dose_fraction) / (1.0 - dose_fraction)
    if settings.i0_thickness_mm:
        photons *= thickness_mm / settings.i0_thickness_mm
    return photons, variance


def _noise_hu(
    slices_hu: np.ndarray,
    projector: Projector,
    settings: DoseSettings,
    exposure: tuple[float, float],
    generators: list[np.random.Generator],
) -> np.ndarray:
    """Noise images of slices: FBP of (noisy - clean) line integrals, so that the image's own resolution stays."""
    clean = projector.forward(torch.from_numpy(hu_to_mu_per_mm(slices_hu))).numpy()
    bowtie = bowtie_transmission(projector.geometry, settings.bowtie_half_width_rad)
    photons, variance = exposure
    difference = np.empty_like(clean)
    for k, rng in enumerate(generators):
        rate = (photons * bowtie * _modulation(clean[k], bowtie, settings.modulation_alpha)).astype(np.float32)
        expected = rate * np.exp(-clean[k])
        counts = poisson_counts(expected, rng.standard_normal(expected.shape, dtype=np.float32))
        if variance > 0:
            counts += rng.standard_normal(expected.shape, dtype=np.float32) * np.float32(np.sqrt(variance))
        # -ln(n / open counts *of this dose*) - p: without the dose here every ray would shift by |ln a|.
        difference[k] = -np.log(np.maximum(counts, np.float32(settings.count_floor)) / expected)
    return projector.fbp(torch.from_numpy(difference), settings.window).numpy() * np.float32(1000.0 / MU_WATER_PER_MM)


def _modulation(line_integrals: np.ndarray, bowtie: np.ndarray, alpha: float) -> np.ndarray:
    """Relative tube current of each view, (views, 1), mean 1."""
    if alpha == 0.0:
        return np.ones((len(line_integrals), 1))
    current = np.exp(alpha * (line_integrals - np.log(bowtie)).max(axis=-1, keepdims=True))
    return current / current.mean()


def bowtie_transmission(geometry: ParallelBeam | FanBeam, half_width_rad: float | None) -> np.ndarray:
    """Transmission of the bowtie over the bins, (bins,), 1 at the centre."""
    if half_width_rad is None:
        return np.ones(geometry.bins)
    if isinstance(geometry, FanBeam):
        gamma = geometry.fan_angles
    else:
        gamma = np.arcsin(np.clip(geometry.positions_mm / 595.0, -1.0, 1.0))  # source-isocentre of the reference
    return 0.115 + 0.885 / (1.0 + (np.abs(gamma) / half_width_rad) ** 4.6)


def correlate_slices(noise_hu: np.ndarray, increment_mm: float, thickness_mm: float) -> np.ndarray:
    """Correlates independent noise slices, (depth, ...), as box slice profiles do; see `slice_mixing`."""
    mixing = slice_mixing(len(noise_hu), increment_mm, thickness_mm)
    return noise_hu if mixing is None else np.tensordot(mixing, noise_hu, axes=1).astype(np.float32)


def slice_mixing(depth: int, increment_mm: float, thickness_mm: float) -> np.ndarray | None:
    """Matrix (depth, depth) float32 that correlates independent slices, each keeping its variance; None for no change.

    Two slices of thickness T at a distance d share the fraction 1 - d / T of their photons; the filter is the one
    with that autocorrelation (the root of its spectrum). Slices beyond the ends are left out, not wrapped around.
    """
    width = thickness_mm / increment_mm
    if width <= 1.0 or depth == 1:
        return None
    period = 16 * int(np.ceil(width))
    lag = np.minimum(np.arange(period), period - np.arange(period))
    spectrum = np.fft.rfft(np.clip(1.0 - lag / width, 0.0, None)).real.clip(0.0)
    taps = np.fft.irfft(np.sqrt(spectrum), period)
    distance = np.abs(np.subtract.outer(np.arange(depth), np.arange(depth)))
    mixing = np.where(distance <= period // 2, taps[np.minimum(distance, period // 2)], 0.0)
    mixing /= np.sqrt((mixing**2).sum(axis=1, keepdims=True))
    return mixing.astype(np.float32)


def image_geometry(image_shape: tuple[int, ...], spacing_mm: tuple[float, float, float]) -> ParallelBeam:
    """The default rays of an image.

    Raises:
        ValueError: for pixels that are not square.
    """
    _, y, x = spacing_mm
    if abs(y - x) > 1e-3 * x:
        raise ValueError(f"The simulation needs square pixels, got {y} x {x} mm: resample the scan first.")
    return ParallelBeam.for_image((image_shape[0], image_shape[1]), float(x))


@lru_cache(maxsize=8)
def projector_of(geometry: ParallelBeam | FanBeam, engine: Engine) -> Projector:
    """The projector of the simulation: its error is far below the noise."""
    return Projector(geometry, eps=1e-4, batch=_SLICES_AT_ONCE, engine=engine, threads=1)
