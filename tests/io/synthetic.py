"""Small DICOM CT series made on the spot, with an invented patient whose name must never come out."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

SECRETS = {
    "PatientName": "Quixote^Alonso", "PatientID": "HIDALGO-1605", "PatientBirthDate": "15470929",
    "ReferringPhysicianName": "Cervantes^Miguel", "InstitutionName": "La Mancha General", "AccessionNumber": "ROCINANTE7",
    "StudyDate": "16050116", "RequestingPhysician": "Panza^Sancho", "StudyDescription": "windmill injury",
    "PatientComments": "lives in El Toboso", "OperatorsName": "Dulcinea^D",
}  # fmt: skip


def hu_of(shape=(4, 32, 24), seed: int = 0) -> np.ndarray:
    """Whole HU with air at the border."""
    hu = np.random.default_rng(seed).integers(-200, 300, shape).astype(np.float32)
    hu[:, :4] = -1000.0
    return hu


def write_series(
    folder: Path,
    hu: np.ndarray,
    *,
    positions=None,
    orientation=(1, 0, 0, 0, 1, 0),
    origin=(-50.0, -40.0, 100.0),
    pixel_mm=(0.7, 0.6),
    increment_mm: float = 2.5,
    series_uid: str | None = None,
    description: str = "axial",
    slope: float = 1.0,
    intercept: float = -1024.0,
    shuffle: bool = True,
    **tags,
) -> list[Path]:
    """Writes one file a slice, in shuffled names; `positions` are (x, y, z) of the slices, else along the normal."""
    folder.mkdir(parents=True, exist_ok=True)
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    normal = np.cross(row, column)
    if positions is None:
        positions = [np.array(origin) + k * increment_mm * normal for k in range(len(hu))]
    series_uid = series_uid or generate_uid()
    study_uid, frame_uid = generate_uid(), generate_uid()
    names = list(range(len(hu)))
    if shuffle:
        np.random.default_rng(1).shuffle(names)
    paths = []
    for k, image in enumerate(hu):
        d = pydicom.Dataset()
        for name, value in SECRETS.items():
            setattr(d, name, value)
        d.SOPClassUID, d.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", generate_uid()
        d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = study_uid, series_uid, frame_uid
        d.Modality, d.SeriesDescription, d.Manufacturer = "CT", description, "ACME"
        d.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        d.KVP, d.Exposure, d.ConvolutionKernel, d.BodyPartExamined = "120", "150", "B30f", "CHEST"
        d.PatientAge, d.PatientSex, d.SliceThickness = "093Y", "F", "3.0"
        d.ImagePositionPatient = [f"{v:.6f}" for v in positions[k]]
        d.ImageOrientationPatient = [f"{v:.10f}"[:16] for v in orientation]
        d.PixelSpacing = [str(pixel_mm[0]), str(pixel_mm[1])]
        d.Rows, d.Columns = image.shape
        d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 1
        d.RescaleSlope, d.RescaleIntercept = str(slope), str(intercept)
        d.PixelData = np.rint((image - intercept) / slope).astype("<i2").tobytes()
        d["PixelData"].VR = "OW"
        block = d.private_block(0x0029, "ACME SECRET", create=True)
        block.add_new(0x01, "LO", SECRETS["PatientName"])
        for name, value in tags.items():
            if value is None:
                if name in d:
                    delattr(d, name)
            else:
                setattr(d, name, value[k] if isinstance(value, list) and len(value) == len(hu) else value)
        d.file_meta = FileMetaDataset()
        d.file_meta.MediaStorageSOPClassUID, d.file_meta.MediaStorageSOPInstanceUID = d.SOPClassUID, d.SOPInstanceUID
        d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"IM{names[k]:03d}.dcm"
        d.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def write_multiframe(
    path: Path, stacks: dict[str, np.ndarray], *, increment_mm: float = 2.5, seed: int = 3, **tags
) -> Path:
    """Writes one Enhanced CT object whose frames, of several stacks by StackID, come in shuffled order.

    Stack number s begins at x = 1000 s mm; slopes and intercepts differ from frame to frame.
    """
    d = pydicom.Dataset()
    for name, value in SECRETS.items():
        setattr(d, name, value)
    d.SOPClassUID, d.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2.1", generate_uid()
    d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = generate_uid(), "1.2.3.77", generate_uid()
    d.Modality, d.Manufacturer, d.BodyPartExamined = "CT", "ACME", "CHEST"
    d.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 1

    def item(**values) -> pydicom.Dataset:
        one = pydicom.Dataset()
        for name, value in values.items():
            setattr(one, name, value)
        return one

    shared = pydicom.Dataset()
    shared.PixelMeasuresSequence = [item(PixelSpacing=["0.7", "0.6"], SliceThickness="3.0")]
    shared.PlaneOrientationSequence = [item(ImageOrientationPatient=["1", "0", "0", "0", "1", "0"])]
    shared.CTImageFrameTypeSequence = [item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])]
    shared.CTXRayDetailsSequence = [item(KVP=120.0)]
    shared.CTExposureSequence = [item(ExposureInmAs=43.5)]
    shared.CTReconstructionSequence = [item(ConvolutionKernel="B30f")]
    frames = [(name, s, k, image) for s, (name, hu) in enumerate(stacks.items()) for k, image in enumerate(hu)]
    order = np.random.default_rng(seed).permutation(len(frames))
    groups, stored = [], []
    for n in order:
        name, s, k, image = frames[n]
        intercept = -1024.0 + k
        frame = pydicom.Dataset()
        frame.FrameContentSequence = [
            item(
                StackID=name, InStackPositionNumber=k + 1, FrameAcquisitionNumber=1, DimensionIndexValues=[s + 1, k + 1]
            )
        ]
        position = [str(1000.0 * s - 50), "-40", str(100 + increment_mm * k)]
        frame.PlanePositionSequence = [item(ImagePositionPatient=position)]
        frame.PixelValueTransformationSequence = [
            item(RescaleSlope="2", RescaleIntercept=str(intercept), RescaleType="HU")
        ]
        groups.append(frame)
        stored.append(np.rint((image - intercept) / 2).astype("<i2"))
    d.Rows, d.Columns = stored[0].shape
    d.NumberOfFrames = str(len(stored))
    d.SharedFunctionalGroupsSequence, d.PerFrameFunctionalGroupsSequence = [shared], groups
    d.PixelData = np.stack(stored).tobytes()
    d["PixelData"].VR = "OW"
    for name, value in tags.items():
        setattr(d, name, value)
    d.file_meta = FileMetaDataset()
    d.file_meta.MediaStorageSOPClassUID, d.file_meta.MediaStorageSOPInstanceUID = d.SOPClassUID, d.SOPInstanceUID
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    d.save_as(path, enforce_file_format=True)
    return path
