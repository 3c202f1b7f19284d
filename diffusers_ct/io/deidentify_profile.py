"""What may be written of a source: the attributes of the Basic Application Level Confidentiality Profile and its options.

An allow-list (DICOM PS3.15 annex E lists what to remove; here is what is kept, so that a tag nobody thought of never slips
through). `tests/io/table_e_1_1.txt` holds the standard's table, against which every name here is tested.
"""

from dataclasses import dataclass
from typing import Literal

# How the scan was made, how its dose was, where its voxels lie. None of it stands in Table E.1-1.
TECHNIQUE = (
    "Manufacturer", "ManufacturerModelName", "SoftwareVersions", "BodyPartExamined", "ScanOptions", "SliceThickness", "KVP",
    "SpacingBetweenSlices", "DataCollectionDiameter", "ReconstructionDiameter", "DistanceSourceToDetector",
    "DistanceSourceToPatient", "GantryDetectorTilt", "TableHeight", "RotationDirection", "ExposureTime",
    "XRayTubeCurrent", "Exposure", "ExposureInuAs", "FilterType", "FilterMaterial", "GeneratorPower", "FocalSpots",
    "ConvolutionKernel", "PatientPosition", "RevolutionTime", "SingleCollimationWidth", "TotalCollimationWidth",
    "TableSpeed", "TableFeedPerRotation", "SpiralPitchFactor", "ExposureModulationType", "EstimatedDoseSaving", "CTDIvol",
    "Laterality", "PositionReferenceIndicator", "DataCollectionCenterPatient", "ReconstructionTargetCenterPatient",
    "SpatialResolution", "ScanArc", "AcquisitionType", "WaterEquivalentDiameter",
)  # fmt: skip

# Of the images of a copied series: PS3.3 C.7.6.2, C.7.6.3, C.8.2.1, C.11.1, C.11.2.
IMAGE = (
    "ImageType", "Modality", "SOPClassUID", "SeriesNumber", "AcquisitionNumber", "InstanceNumber", "ImagePositionPatient",
    "ImageOrientationPatient", "SliceLocation", "PixelSpacing", "SamplesPerPixel", "PhotometricInterpretation", "Rows",
    "Columns", "NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SmallestImagePixelValue",
    "LargestImagePixelValue", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept",
    "RescaleType", "WindowCenter", "WindowWidth", "LossyImageCompression", "LossyImageCompressionRatio",
    "LossyImageCompressionMethod", "BurnedInAnnotation", "RecognizableVisualFeatures", "SyntheticData",
    "PresentationLUTShape", "TemporalPositionIdentifier", "NumberOfTemporalPositions",
)  # fmt: skip

# Without these nobody can tell what the pixels are: an image in which one is garbled is damaged.
NEEDED = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SamplesPerPixel", "PhotometricInterpretation", "Rows",
    "Columns", "NumberOfFrames", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "RescaleSlope",
    "RescaleIntercept", "RescaleType",
)  # fmt: skip

# Of enhanced CT (PS3.3 A.38, C.7.6.16, C.8.15): sequences are built anew of the attributes allowed here.
ENHANCED = (
    "ContentQualification", "VolumetricProperties", "VolumeBasedCalculationTechnique", "FrameType", "DimensionIndexValues",
    "DimensionIndexPointer", "FunctionalGroupPointer", "DimensionOrganizationType", "StackID", "InStackPositionNumber",
    "FrameAcquisitionNumber", "FrameAcquisitionDuration", "TemporalPositionIndex", "InConcatenationNumber",
    "InConcatenationTotalNumber", "ConcatenationFrameOffsetNumber", "TubeAngle", "ConstantVolumeFlag",
    "FluoroscopyFlag", "ReconstructionAlgorithm", "ConvolutionKernelGroup", "ReconstructionFieldOfView",
    "ReconstructionPixelSpacing", "ReconstructionAngle", "ImageFilter", "ExposureTimeInms", "XRayTubeCurrentInmA",
    "ExposureInmAs", "CalciumScoringMassFactorPatient", "CalciumScoringMassFactorDevice", "EnergyWeightingFactor",
    "FrameLaterality", "TablePosition", "ContrastBolusAgentAdministered", "ContrastBolusAgentDetected",
    "ContrastBolusAgentPhase", "ContrastBolusAgentNumber", "AcquisitionDuration", "MultienergyCTAcquisition",
)  # fmt: skip
SEQUENCES = (
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PixelMeasuresSequence", "PlanePositionSequence",
    "PlaneOrientationSequence", "FrameContentSequence", "PixelValueTransformationSequence", "FrameVOILUTSequence",
    "CTImageFrameTypeSequence", "CTAcquisitionTypeSequence", "CTAcquisitionDetailsSequence", "CTTableDynamicsSequence",
    "CTPositionSequence", "CTGeometrySequence", "CTReconstructionSequence", "CTExposureSequence", "CTXRayDetailsSequence",
    "CTAdditionalXRaySourceSequence", "ContrastBolusUsageSequence", "IrradiationEventIdentificationSequence",
    "DimensionOrganizationSequence", "DimensionIndexSequence", "TemporalPositionSequence", "FrameAnatomySequence",
)  # fmt: skip
# Only items whose code stands in CODE_MEANINGS.
CODES = ("CTDIPhantomTypeCodeSequence", "AnatomicRegionSequence")
# References between objects: only the class and the mapped UID of each item (Table E.1-1: X/Z/U*).
REFERENCES = ("ReferencedImageSequence", "SourceImageSequence")

# Retain Device Identity Option (E.3.8).
DEVICE = ("StationName", "DeviceSerialNumber", "GantryID", "GeneratorID", "DetectorID")
# Retain Patient Characteristics Option (E.3.7), only where asked for.
CHARACTERISTICS = ("PatientSex", "PatientAge", "PatientSize", "PatientWeight")
# Retain Longitudinal Temporal Information With Modified Dates Option (E.3.6): (date, time).
DATES = (
    ("StudyDate", "StudyTime"), ("SeriesDate", "SeriesTime"), ("AcquisitionDate", "AcquisitionTime"),
    ("ContentDate", "ContentTime"),
)  # fmt: skip
DATETIMES = ("AcquisitionDateTime", "FrameAcquisitionDateTime", "FrameReferenceDateTime")
# U of Table E.1-1: replaced by UIDs that are the same for the same.
UIDS = (
    "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SynchronizationFrameOfReferenceUID",
    "IrradiationEventUID", "AcquisitionUID", "ConcatenationUID", "SOPInstanceUIDOfConcatenationSource",
    "DimensionOrganizationUID", "ReferencedSOPInstanceUID",
)  # fmt: skip
# Z of Table E.1-1 and of Type 2 (PS3.3 C.7.1.1, C.7.2.1): present and empty.
EMPTY = (
    "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    "ReferringPhysicianName",
)  # fmt: skip

# Type 2 of a classic CT image (PS3.3 A.3): present and empty where the source's value is, or must not be kept.
EMPTY_IF_UNKNOWN = (
    "SeriesNumber", "AcquisitionNumber", "InstanceNumber", "Manufacturer", "PositionReferenceIndicator", "SliceThickness",
    "KVP",
)  # fmt: skip

# Who, where and when, as it stands: only for a derived object that stays with its patient.
PATIENT = (
    "SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "PatientAge", "PatientSize", "PatientWeight", "StudyDate", "StudyTime", "StudyID", "StudyDescription",
    "AccessionNumber", "ReferringPhysicianName", "InstitutionName", "AcquisitionDate", "AcquisitionTime",
    "ContrastBolusAgent",
)  # fmt: skip

# Retain Safe Private Option (E.3.10): the part of Table E.3.10-1 that concerns CT, by group and private creator. Siemens
# has no attribute of CT in it ("SIEMENS CT VA0  COAD" and the CSA headers are not there). Text is held to the form given,
# all else to be a number.
NUMBER = ""
SAFE_PRIVATE: dict[tuple[int, str], dict[int, str]] = {
    (0x0019, "GEMS_ACQU_01"): {0x23: NUMBER, 0x24: NUMBER, 0x27: NUMBER},  # table speed, mid scan time, gantry period
    (0x0025, "GEMS_SERS_01"): {0x07: NUMBER},  # images in series
    (0x0043, "GEMS_PARM_01"): {0x27: r"\d{1,2}(\.\d+)?:1"},  # scan pitch ratio
    (0x0045, "GEMS_HELIOS_01"): {0x01: NUMBER, 0x02: NUMBER},  # macro rows of the detector, their width at isocentre
    (0x00E1, "ELSCINT1"): {0x21: NUMBER, 0x50: NUMBER},  # dose length product, acquisition duration
    (0x01E1, "ELSCINT1"): {0x26: r"HEAD|BODY"},  # phantom type
    (0x01F1, "ELSCINT1"): {0x07: NUMBER, 0x26: NUMBER, 0x27: NUMBER},  # table velocity, pitch, rotation time
}

# Codes whose meaning is known here: phantoms of dose (PS3.16 CID 4052), body parts (annex L; SRT and its older name, and
# SNOMED CT). A meaning written in a file is free text.
CODE_MEANINGS = {
    ("113682", "DCM"): "ACR Accreditation Phantom - CT",
    ("113690", "DCM"): "IEC Head Dosimetry Phantom",
    ("113691", "DCM"): "IEC Body Dosimetry Phantom",
    ("113692", "DCM"): "NEMA XR21-2000 Phantom",
    **{(code, scheme): meaning for code, meaning in {
        "T-A0100": "Brain", "T-D1100": "Head", "T-D1600": "Neck", "T-D3000": "Chest", "T-28000": "Lung",
        "T-D4000": "Abdomen", "T-D6000": "Pelvis",
    }.items() for scheme in ("SRT", "SNM3")},
    **{(code, "SCT"): meaning for code, meaning in {
        "12738006": "Brain", "69536005": "Head", "45048000": "Neck", "51185008": "Chest", "39607008": "Lung",
        "113345001": "Abdomen", "818981001": "Abdomen", "12921003": "Pelvis", "816092008": "Pelvis",
    }.items()},
}  # fmt: skip

# PS3.16 CID 7050.
_BASIC_PROFILE = ("113100", "Basic Application Confidentiality Profile")
_MODIFIED_DATES = ("113107", "Retain Longitudinal Temporal Information Modified Dates Option")
_PATIENT_CHARACTERISTICS = ("113108", "Retain Patient Characteristics Option")
_DEVICE_IDENTITY = ("113109", "Retain Device Identity Option")
SAFE_PRIVATE_OPTION = ("113111", "Retain Safe Private Option")
METHODS = (_BASIC_PROFILE, _MODIFIED_DATES, _PATIENT_CHARACTERISTICS, _DEVICE_IDENTITY, SAFE_PRIVATE_OPTION)


@dataclass(frozen=True)
class DeidentificationOptions:
    """Options of the profile (DICOM PS3.15 E.3); that of safe private attributes (E.3.10) always holds
    and is coded where it kept some.

    Attributes:
        dates: "shift" (E.3.6) moves every date by the key's number of days for this patient, so that intervals between studies
            stay, and counts times from the study's start, which is put at noon: the time of day tells with the site almost
            who it was, the time since the injection does not. "remove" leaves dates and times out.
        device_identity: keep station name and serial numbers (E.3.8). HIPAA's safe harbour counts them as identifiers.
        patient_characteristics: keep sex, age (at most 90), height and weight (E.3.7).
    """

    dates: Literal["shift", "remove"] = "shift"
    device_identity: bool = True
    patient_characteristics: bool = False

    def __post_init__(self) -> None:
        if self.dates not in ("shift", "remove"):
            raise ValueError(f"`dates` must be 'shift' or 'remove', got {self.dates!r}.")

    def methods(self, *, safe_private: bool) -> list[tuple[str, str]]:
        """Code value and meaning of the profile and of each option used (PS3.16 CID 7050).

        Args:
            safe_private: whether the object holds private attributes.
        """
        used = (True, self.dates == "shift", self.patient_characteristics, self.device_identity, safe_private)
        return [method for method, is_used in zip(METHODS, used) if is_used]
