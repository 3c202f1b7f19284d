"""Tiny DICOM series written by pydicom, so that every layout can be tested without real data."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

MATRIX = (24, 32)


@pytest.fixture
def write_series() -> Callable[..., list[Path]]:
    return _write_series


def _write_series(
    folder: Path,
    positions_mm,
    *,
    patient: str = "P1",
    name: str = "Meier^Anna",
    kernel: str = "B30f",
    thickness_mm: float = 2.0,
    noise_hu: float = 10.0,
    seed: int = 0,
    file_name: str = "{:04d}.IMA",
    description: str = "",
    matrix: tuple[int, int] = MATRIX,
    tilt_mm: float = 0.0,
) -> list[Path]:
    """Axial slices with the patient's own anatomy (by its name) and noise by `seed`; stored value = HU + 1024."""
    folder.mkdir(parents=True, exist_ok=True)
    study, series = generate_uid(), generate_uid()
    rng = np.random.default_rng(seed)
    paths = []
    for number, z in enumerate(positions_mm):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / file_name.format(number)
        ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
        ds.FrameOfReferenceUID = generate_uid()
        ds.Modality, ds.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.PatientID, ds.PatientName, ds.PatientAge, ds.PatientSex = patient, name, "061Y", "F"
        ds.PatientBirthDate, ds.AccessionNumber, ds.InstitutionName = "19610203", "ACC778899", "Klinikum Nord"
        ds.SeriesDescription, ds.BodyPartExamined, ds.Manufacturer = description, "ABDOMEN", "SIEMENS"
        ds.StudyDate = "20150102"
        ds.ConvolutionKernel, ds.SliceThickness, ds.KVP, ds.Exposure = kernel, thickness_mm, 120, 200
        ds.InstanceNumber = number + 1
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.ImagePositionPatient = [-12.0, -10.0 + tilt_mm * number, float(z)]
        ds.PixelSpacing = [0.8, 0.8]
        ds.Rows, ds.Columns = matrix
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1024, "HU"
        hu = 40.0 + z + rng.normal(0.0, noise_hu, matrix)
        ds.PixelData = (np.rint(hu) + 1024).clip(0, 4095).astype("<u2").tobytes()
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths
