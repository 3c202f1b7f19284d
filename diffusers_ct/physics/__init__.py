"""Projection, reconstruction, dose and phantoms."""

from .calibration import calibrate_i0
from .dose import SIMULATOR_VERSION, correlate_slices, simulate_low_dose
from .dose_batch import simulate_low_dose_batch
from .dose_settings import PUBLISHED_SETTINGS, DoseSettings
from .geometry import FanBeam, ParallelBeam
from .kernels import KERNELS, ReconstructionKernel, TabulatedKernel, match_kernel
from .phantom import (
    BLOOD_HU,
    CONTRAST_PHASES,
    LESION_KINDS,
    LESION_KINDS_OF_REGION,
    MIN_FINDING_VOXELS,
    ORGAN_LABELS,
    PHANTOM_VERSION,
    Lesion,
    Phantom,
    make_phantom,
)
from .phantom_modalities import pseudo_mri, pseudo_pet
from .projector import Projector

__all__ = [
    "BLOOD_HU",
    "CONTRAST_PHASES",
    "KERNELS",
    "LESION_KINDS",
    "LESION_KINDS_OF_REGION",
    "MIN_FINDING_VOXELS",
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
    "pseudo_mri",
    "pseudo_pet",
    "simulate_low_dose",
    "simulate_low_dose_batch",
]
