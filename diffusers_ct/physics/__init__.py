"""Projection, reconstruction, dose and phantoms."""

from .dose import (
    PUBLISHED_SETTINGS,
    SIMULATOR_VERSION,
    DoseSettings,
    calibrate_i0,
    correlate_slices,
    simulate_low_dose,
)
from .geometry import FanBeam, ParallelBeam
from .kernels import KERNELS, ReconstructionKernel
from .projector import Projector

__all__ = [
    "KERNELS",
    "PUBLISHED_SETTINGS",
    "SIMULATOR_VERSION",
    "DoseSettings",
    "FanBeam",
    "ParallelBeam",
    "Projector",
    "ReconstructionKernel",
    "calibrate_i0",
    "correlate_slices",
    "simulate_low_dose",
]
