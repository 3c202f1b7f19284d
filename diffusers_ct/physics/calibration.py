"""I0 of a simulation from measured noise: of a pair of scans, or of a scan alone."""

import numpy as np

from .dose import SourceNoise, simulate_low_dose
from .dose_settings import DoseSettings
from .geometry import FanBeam, ParallelBeam


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
