"""Low-dose CT from a normal-dose or noise-free image, through the projections.

Poisson counts and electronic noise on simulated projections, reconstructed as a noise image that is added to the
source: the source keeps its own resolution.

References:
    Zeng et al. 2015, "A simple low-dose X-ray CT simulation from high-dose scan", IEEE Trans. Nucl. Sci. 62(5), 2226.
    Žabić et al. 2013, "A low dose simulation tool for CT systems with energy integrating detectors", Med. Phys. 40(3).
    Leuschner et al. 2021, LoDoPaB-CT, Sci. Data 8, 109 (its I0).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from scipy import special

from ..hounsfield import MU_WATER_PER_MM, hu_to_mu_per_mm
from .geometry import FanBeam, ParallelBeam
from .kernels import KERNELS, ReconstructionKernel, TabulatedKernel
from .projector import Projector

SIMULATOR_VERSION = "2"
SourceNoise = Literal["noise_free", "normal_dose"]
_SLICES_AT_ONCE = 8


@dataclass(frozen=True)
class DoseSettings:
    """The scanner of the simulation.

    Attributes:
        i0: photons per ray at full dose without object, for slices of `i0_thickness_mm`, or of any thickness if None.
        electronic_variance: of the detector's read-out, in counts squared.
        modulation_alpha: tube-current modulation: the current follows exp(alpha x largest line integral of the view);
            0 is constant, 0.5 the square root of the attenuation.
        bowtie_half_width_rad: half width of the bowtie filter's profile over the fan angle (0.19 body, 0.14 head);
            None for no bowtie.
        kernel: name in `KERNELS`, or a window of one's own.
        i0_thickness_mm: slice thickness that `i0` is stated for; photons scale with the thickness.
        count_floor: counts below it are raised to it before the logarithm (photon starvation).
    """

    i0: float = 5e5
    electronic_variance: float = 10.0
    modulation_alpha: float = 0.0
    bowtie_half_width_rad: float | None = None
    kernel: str | ReconstructionKernel | TabulatedKernel = "soft"
    i0_thickness_mm: float | None = None
    count_floor: float = 1.0

    def __post_init__(self) -> None:
        if not self.i0 > 0 or self.electronic_variance < 0 or not self.count_floor > 0:
            raise ValueError("`i0` and `count_floor` must be positive and `electronic_variance` not negative.")
        if isinstance(self.kernel, str) and self.kernel not in KERNELS:
            raise ValueError(f"Unknown kernel {self.kernel!r}: choose one of {sorted(KERNELS)} or give a window.")

    @property
    def window(self) -> ReconstructionKernel | TabulatedKernel:
        return KERNELS[self.kernel] if isinstance(self.kernel, str) else self.kernel

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, for provenance; `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "DoseSettings":
        kernel = settings.get("kernel", "soft")
        if isinstance(kernel, Mapping):
            kernel = TabulatedKernel(**kernel) if "amplitude" in kernel else ReconstructionKernel(**kernel)
        return cls(**{**settings, "kernel": kernel})


# I0 per ray at full dose as the papers state it; what they leave out is ours.
PUBLISHED_SETTINGS: dict[str, DoseSettings] = {
    "corediff": DoseSettings(i0=1.5e5),
    "need": DoseSettings(i0=2.5e5),
    "lodopab": DoseSettings(i0=4096.0, electronic_variance=0.0, count_floor=0.1),
    "zeng2015": DoseSettings(electronic_variance=11.0),
}


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
    if not 0.0 < dose_fraction <= 1.0:
        raise ValueError(f"`dose_fraction` must be in (0, 1], got {dose_fraction}.")
    if source_noise not in ("noise_free", "normal_dose"):
        raise ValueError(f"`source_noise` must be 'noise_free' or 'normal_dose', got {source_noise!r}.")
    dose, electronic_variance = float(dose_fraction), settings.electronic_variance
    if source_noise == "normal_dose":
        if dose == 1.0:
            return volume_hu.copy()
        electronic_variance *= (1.0 + dose) / (1.0 - dose)
        dose /= 1.0 - dose
    thickness_mm = slice_thickness_mm or spacing_mm[0]
    if settings.i0_thickness_mm:
        dose *= thickness_mm / settings.i0_thickness_mm
    projector = _projector(geometry or _geometry(volume_hu.shape[1:], spacing_mm))
    noise_hu = np.empty_like(volume_hu)
    for start in range(0, len(volume_hu), _SLICES_AT_ONCE):
        part = volume_hu[start : start + _SLICES_AT_ONCE]
        generators = [np.random.default_rng([seed, start + k]) for k in range(len(part))]
        noise_hu[start : start + len(part)] = _noise_hu(
            part, projector, settings, dose, electronic_variance, generators
        )
    return volume_hu + correlate_slices(noise_hu, spacing_mm[0], thickness_mm)


def _noise_hu(
    slices_hu: np.ndarray,
    projector: Projector,
    settings: DoseSettings,
    dose: float,
    electronic_variance: float,
    generators: list[np.random.Generator],
) -> np.ndarray:
    """Noise images of slices at a dose: FBP of (noisy - clean) line integrals, so that the image's own resolution stays."""
    clean = projector.forward(torch.from_numpy(hu_to_mu_per_mm(slices_hu))).numpy().astype(np.float64)
    bowtie = _bowtie(projector.geometry, settings.bowtie_half_width_rad)
    noisy = np.empty_like(clean)
    for k, rng in enumerate(generators):
        open_counts = dose * settings.i0 * bowtie * _modulation(clean[k], bowtie, settings.modulation_alpha)
        counts = _poisson_counts(open_counts * np.exp(-clean[k]), rng)
        if electronic_variance > 0:
            counts += rng.normal(0.0, np.sqrt(electronic_variance), counts.shape)
        # Dividing by the open counts *of this dose*: without the dose here every ray would shift by |ln a|.
        noisy[k] = -np.log(np.maximum(counts, settings.count_floor) / open_counts)
    difference = torch.from_numpy((noisy - clean).astype(np.float32))
    return projector.fbp(difference, settings.window).numpy() * (1000.0 / MU_WATER_PER_MM)


def _poisson_counts(expected: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Poisson counts by inverting the distribution at one uniform number a ray.

    NumPy's own sampler rejects, and so takes more or fewer numbers from the stream when an expectation changes in its
    last bit, as it does with the number of threads: every later ray would be another draw. Above 100 counts the
    Cornish-Fisher expansion of the quantile (to third order) is exact to some hundredths of a count.
    """
    z = rng.standard_normal(expected.shape)
    root = np.sqrt(expected)
    counts = expected + root * z + (z**2 - 1.0) / 6.0 + (z - z**3) / (72.0 * root)
    few = expected < 100.0
    if few.any():
        counts[few] = _poisson_quantile(special.ndtr(z[few]), expected[few])
    return np.maximum(np.rint(counts), 0.0)


def _poisson_quantile(probability: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Smallest count k with P(n <= k) >= probability."""
    count = np.ceil(np.maximum(special.pdtrik(probability, expected), 0.0))
    below = np.maximum(count - 1.0, 0.0)  # `pdtrik` is continuous in k: check the neighbour
    count = np.where(special.pdtr(below, expected) >= probability, below, count)
    return np.nan_to_num(count)  # below P(n = 0) there is no root: 0


def _modulation(line_integrals: np.ndarray, bowtie: np.ndarray, alpha: float) -> np.ndarray:
    """Relative tube current of each view, (views, 1), mean 1."""
    current = np.exp(alpha * (line_integrals - np.log(bowtie)).max(axis=-1, keepdims=True))
    return current / current.mean()


def _bowtie(geometry: ParallelBeam | FanBeam, half_width_rad: float | None) -> np.ndarray:
    """Transmission of the bowtie over the bins, (bins,), 1 at the centre."""
    if half_width_rad is None:
        return np.ones(geometry.bins)
    if isinstance(geometry, FanBeam):
        gamma = geometry.fan_angles
    else:
        gamma = np.arcsin(np.clip(geometry.positions_mm / 595.0, -1.0, 1.0))  # source-isocentre of the reference
    return 0.115 + 0.885 / (1.0 + (np.abs(gamma) / half_width_rad) ** 4.6)


def correlate_slices(noise_hu: np.ndarray, increment_mm: float, thickness_mm: float) -> np.ndarray:
    """Correlates independent noise slices as box slice profiles do, each slice keeping its variance.

    Two slices of thickness T at a distance d share the fraction 1 - d / T of their photons; the filter is the one
    with that autocorrelation (the root of its spectrum). Slices beyond the ends are left out, not wrapped around.
    """
    width = thickness_mm / increment_mm
    if width <= 1.0 or len(noise_hu) == 1:
        return noise_hu
    period = 16 * int(np.ceil(width))
    lag = np.minimum(np.arange(period), period - np.arange(period))
    spectrum = np.fft.rfft(np.clip(1.0 - lag / width, 0.0, None)).real.clip(0.0)
    taps = np.fft.irfft(np.sqrt(spectrum), period)
    distance = np.abs(np.subtract.outer(np.arange(len(noise_hu)), np.arange(len(noise_hu))))
    mixing = np.where(distance <= period // 2, taps[np.minimum(distance, period // 2)], 0.0)
    mixing /= np.sqrt((mixing**2).sum(axis=1, keepdims=True))
    return np.tensordot(mixing.astype(np.float32), noise_hu, axes=1).astype(np.float32)


def calibrate_i0(
    volume_hu: np.ndarray,
    region: np.ndarray,
    *,
    measured_sd_hu: float,
    spacing_mm: tuple[float, float, float],
    dose_fraction: float,
    source_noise: SourceNoise,
    seed: int = 0,
    settings: DoseSettings | None = None,
    geometry: ParallelBeam | FanBeam | None = None,
) -> float:
    """I0 at which the simulated noise has the SD that was measured: I0 = I_ref (SD_sim(I_ref) / SD_measured)^2.

    Holds where quantum noise prevails; two rounds take up what electronic noise adds.

    Args:
        volume_hu: (depth, height, width) in HU.
        region: boolean, the same shape: uniform tissue in which the SD was measured.
        measured_sd_hu: SD of what the simulation adds: for "normal_dose" that of low minus full.
        spacing_mm: (z, y, x).
        dose_fraction: of the low dose.
        source_noise: as in `simulate_low_dose`.
        seed: of the trial noise.
        settings: the other settings; its `i0` is the start.
        geometry: as in `simulate_low_dose`.

    Raises:
        ValueError: if the region is empty or the SD is not positive.
    """
    settings = settings or DoseSettings()
    if region.shape != volume_hu.shape or not region.any():
        raise ValueError("`region` must be a mask of the volume's shape with at least one voxel.")
    if not measured_sd_hu > 0:
        raise ValueError(f"`measured_sd_hu` must be positive, got {measured_sd_hu}.")
    for _ in range(2):
        low = simulate_low_dose(
            volume_hu,
            spacing_mm=spacing_mm,
            dose_fraction=dose_fraction,
            seed=seed,
            source_noise=source_noise,
            settings=settings,
            geometry=geometry,
        )
        simulated_sd_hu = float((low - volume_hu)[region].std())
        i0 = settings.i0 * (simulated_sd_hu / measured_sd_hu) ** 2
        settings = DoseSettings.from_dict({**settings.to_dict(), "i0": i0})
    return settings.i0


def _geometry(image_shape: tuple[int, ...], spacing_mm: tuple[float, float, float]) -> ParallelBeam:
    _, y, x = spacing_mm
    if abs(y - x) > 1e-3 * x:
        raise ValueError(f"The simulation needs square pixels, got {y} x {x} mm: resample the scan first.")
    return ParallelBeam.for_image((image_shape[0], image_shape[1]), float(x))


@lru_cache(maxsize=4)
def _projector(geometry: ParallelBeam | FanBeam) -> Projector:
    return Projector(geometry, eps=1e-4, batch=_SLICES_AT_ONCE)
