"""Studies of any restoration method by tasks: noise, sharpness, detectability, lesions, materials, calibration.

Each takes methods by name and gives rows of plain values.
"""

from .calibration import SampledCase, calibration_study
from .detectability import detectability_study
from .few_steps import FewStepSampler, few_steps_study, few_steps_texture
from .insertion import insertion_study
from .materials import MATERIALS_HU, material_biases, materials_rows, materials_study
from .methods import FULL_DOSE, LOW_DOSE, Method, dose_group
from .noise import noise_study
from .scans import RestorationCase, TrueScan, phantom_scans
from .sizes import STUDY_SIZES, StudySize
from .suite import phantom_studies
from .transfer import transfer_study

__all__ = [
    "FULL_DOSE",
    "LOW_DOSE",
    "MATERIALS_HU",
    "STUDY_SIZES",
    "FewStepSampler",
    "Method",
    "RestorationCase",
    "SampledCase",
    "StudySize",
    "TrueScan",
    "calibration_study",
    "detectability_study",
    "dose_group",
    "few_steps_study",
    "few_steps_texture",
    "insertion_study",
    "material_biases",
    "materials_rows",
    "materials_study",
    "noise_study",
    "phantom_scans",
    "phantom_studies",
    "transfer_study",
]
