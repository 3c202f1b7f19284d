"""I0 of a simulation from measured noise: of a pair of scans, or of a scan alone."""

import numpy as np

from .dose import SourceNoise, simulate_low_dose
from .dose_settings import DoseSettings
from .geometry import FanBeam, ParallelBeam
from .scan_noise import BLOCK_MM, block_sd, uniform_soft_tissue

_BLOCKS_NEEDED = 20
_SLICES_USED = 12
_CLOSE = 0.01  # of SD against SD; the step that has just been taken makes good for most of it
_MOST_PHOTONS = 1e8  # hundreds of times those of published settings


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


def calibrate_i0_from_scan(
    volume_hu: np.ndarray,
    *,
    spacing_mm: tuple[float, float, float],
    settings: DoseSettings | None = None,
    geometry: ParallelBeam | FanBeam | None = None,
    slice_thickness_mm: float | None = None,
    seed: int = 0,
) -> float:
    """I0 at which a simulation of the scan's own dose is as noisy as the scan is in its uniform soft tissue.

    No pair is needed: the noise is measured as `noise_of_scan` does, in the scan and in the simulated noise, block by
    block, so that what the measurement leaves out and where it is taken cancel. As exact as the kernel: give the
    scan's own, from `match_kernel`, where it is known. Texture of tissue counts as noise, and noise that the scanner
    has removed (iterative reconstruction) makes I0 larger than the photons were.

    Args:
        volume_hu: (depth, height, width) in HU, with its own noise. At most 12 slices of it are used.
        spacing_mm: (z, y, x).
        settings: the other settings; its `i0` is the start.
        geometry: as in `simulate_low_dose`.
        slice_thickness_mm: as in `simulate_low_dose`.
        seed: of the trial noise.

    Raises:
        ValueError: if there is no uniform soft tissue, no noise in it, or so little that no scanner made it.
    """
    settings = settings or DoseSettings()
    keep = np.unique(np.linspace(0, len(volume_hu) - 1, min(len(volume_hu), _SLICES_USED)).round().astype(int))
    some_hu = np.asarray(volume_hu, dtype=np.float32)[keep]
    tissue = uniform_soft_tissue(some_hu, spacing_mm)
    measured = block_sd(some_hu, tissue, spacing_mm[2])
    if len(measured) < _BLOCKS_NEEDED:
        raise ValueError(
            f"The scan has {len(measured)} blocks of uniform soft tissue ({BLOCK_MM:.0f} mm, -20 to 120 HU), too few to "
            f"measure its noise ({_BLOCKS_NEEDED} are needed): choose slices with more of it, or give `i0`."
        )
    if not np.median(measured) > 0:
        raise ValueError("The scan has no noise in its uniform soft tissue, from which I0 could be told: give `i0`.")
    for trial in range(3):
        one, other = (
            simulate_low_dose(
                some_hu,
                spacing_mm=spacing_mm,
                dose_fraction=1.0,
                seed=seed + 2 * trial + k,
                source_noise="noise_free",
                settings=settings,
                geometry=geometry,
                slice_thickness_mm=slice_thickness_mm,
            )
            - some_hu
            for k in range(2)
        )
        sd, other_sd = (block_sd(noise, tissue, spacing_mm[2]) for noise in (one, other))
        # Anatomy can only raise the SD of a block. So the lower quartile is compared, with that of noise against noise.
        ratio = np.quantile(measured / sd, 0.25) / np.quantile(other_sd / sd, 0.25)
        settings = DoseSettings.from_dict({**settings.to_dict(), "i0": settings.i0 / float(ratio) ** 2})
        if abs(float(ratio) - 1.0) < _CLOSE:
            break
    if settings.i0 > _MOST_PHOTONS:
        raise ValueError(
            f"The noise of the scan (pixels of {spacing_mm[2]:.3g} mm) is that of {settings.i0:.2g} photons a ray, which no "
            "scanner has: it was smoothed, or resampled to coarse pixels. Give `i0`."
        )
    return settings.i0
