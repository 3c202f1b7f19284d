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
from .kernels import KERNELS, ReconstructionKernel, TabulatedKernel, match_kernel
from .phantom import ORGAN_LABELS, PHANTOM_VERSION, Lesion, Phantom, make_phantom
from .projector import Projector

__all__ = [
    "KERNELS",
    "ORGAN_LABELS",
    "PHANTOM_VERSION",
    "PUBLISHED_SETTINGS",
    "SIMULATOR_VERSION",
    "DoseSettings",
    "FanBeam",
    "Lesion",
    "ParallelBeam",
    "Phantom",
    "Projector",
    "ReconstructionKernel",
    "TabulatedKernel",
    "calibrate_i0",
    "correlate_slices",
    "make_phantom",
    "match_kernel",
    "simulate_low_dose",
]
