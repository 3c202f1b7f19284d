"""Projection, reconstruction, dose and phantoms."""

from .calibration import calibrate_i0, calibrate_i0_from_scan
from .dose import SIMULATOR_VERSION, correlate_slices, simulate_low_dose
from .dose_batch import simulate_low_dose_batch
from .dose_draws import DoseDraws, draw_dose_settings
from .dose_settings import DOSE_PRESETS, PUBLISHED_SETTINGS, DosePreset, DoseSettings
from .geometry import FanBeam, ParallelBeam
from .kernels import KERNELS, ReconstructionKernel, TabulatedKernel, match_kernel
from .low_contrast_phantom import LOW_CONTRAST_RODS, TRANSFER_RODS, Rod, RodPhantom
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
from .scan_noise import match_kernel_from_scan, noise_of_scan, uniform_soft_tissue
from .scan_simulation import ScanSimulation, simulate_scan
from .truncation import body_reach_mm, complete_body

__all__ = [
    "BLOOD_HU",
    "CONTRAST_PHASES",
    "DOSE_PRESETS",
    "KERNELS",
    "LESION_KINDS",
    "LESION_KINDS_OF_REGION",
    "LOW_CONTRAST_RODS",
    "MIN_FINDING_VOXELS",
    "ORGAN_LABELS",
    "PHANTOM_VERSION",
    "PUBLISHED_SETTINGS",
    "SIMULATOR_VERSION",
    "TRANSFER_RODS",
    "DoseDraws",
    "DosePreset",
    "DoseSettings",
    "FanBeam",
    "Lesion",
    "ParallelBeam",
    "Phantom",
    "Projector",
    "ReconstructionKernel",
    "Rod",
    "RodPhantom",
    "ScanSimulation",
    "TabulatedKernel",
    "body_reach_mm",
    "calibrate_i0",
    "calibrate_i0_from_scan",
    "complete_body",
    "correlate_slices",
    "draw_dose_settings",
    "make_phantom",
    "match_kernel",
    "match_kernel_from_scan",
    "noise_of_scan",
    "pseudo_mri",
    "pseudo_pet",
    "simulate_low_dose",
    "simulate_low_dose_batch",
    "simulate_scan",
    "uniform_soft_tissue",
]
