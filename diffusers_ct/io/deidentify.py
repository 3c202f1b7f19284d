"""What of a source's header may enter a written object: an allow-list, so that an unknown tag never slips through.

After the Basic Application Level Confidentiality Profile (DICOM PS3.15 annex E) with the options to retain device
identity and what describes dose and geometry; dates are removed, not shifted.
"""

from typing import Literal

import pydicom
from pydicom.uid import generate_uid

Deidentify = Literal["basic", "keep_patient"]
DEIDENTIFY_CHOICES: tuple[Deidentify, ...] = ("basic", "keep_patient")

# How the scan was made: nothing here tells who was scanned, where or when.
_TECHNIQUE = (
    "Manufacturer", "ManufacturerModelName", "BodyPartExamined", "ScanOptions", "SliceThickness", "KVP",
    "SpacingBetweenSlices", "DataCollectionDiameter", "ReconstructionDiameter", "DistanceSourceToDetector",
    "DistanceSourceToPatient", "GantryDetectorTilt", "TableHeight", "RotationDirection", "ExposureTime",
    "XRayTubeCurrent", "Exposure", "FilterType", "GeneratorPower", "FocalSpots", "ConvolutionKernel", "PatientPosition",
    "RevolutionTime", "SingleCollimationWidth", "TotalCollimationWidth", "TableSpeed", "TableFeedPerRotation",
    "SpiralPitchFactor", "ExposureModulationType", "CTDIvol", "Laterality", "PositionReferenceIndicator",
)  # fmt: skip
# Who, where and when: only for an object that stays with its patient.
_PATIENT = (
    "SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "PatientAge", "PatientSize", "PatientWeight", "StudyDate", "StudyTime", "StudyID", "StudyDescription",
    "AccessionNumber", "ReferringPhysicianName", "InstitutionName", "AcquisitionDate", "AcquisitionTime",
    "ContrastBolusAgent",
)  # fmt: skip


class UidMap:
    """New UIDs for old ones, the same for the same; from the secret `key` nothing can be traced back."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, uid: str) -> str:
        return str(generate_uid(entropy_srcs=[self.key, str(uid)]))


def allowed_elements(header: pydicom.Dataset, mode: Deidentify) -> pydicom.Dataset:
    """The part of a source header that may be written; private tags, sequences and free text never are.

    Raises:
        ValueError: for an unknown mode.
    """
    if mode not in DEIDENTIFY_CHOICES:
        raise ValueError(f"`deidentify` must be one of {DEIDENTIFY_CHOICES}, got {mode!r}.")
    kept = pydicom.Dataset()
    for name in _TECHNIQUE + (_PATIENT if mode == "keep_patient" else ()):
        if name in header and header.get(name) not in (None, ""):
            kept[name] = header[name]
    if mode == "basic":
        # Type 2: present and empty (PS3.3 C.7.1.1, C.7.2.1).
        for name in (
            "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
            "AccessionNumber", "ReferringPhysicianName",
        ):  # fmt: skip
            setattr(kept, name, "")
        kept.PatientIdentityRemoved = "YES"
        kept.DeidentificationMethod = "diffusers-ct: allow-list after PS3.15 annex E basic profile"
    return kept
