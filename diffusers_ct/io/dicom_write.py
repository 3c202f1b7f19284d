"""Writing a result as a new DERIVED series of classic CT images (DICOM PS3.3 A.3, C.7.6.1.1.2, C.12.4)."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from ..conditions import ScanConditions
from ..volume import ScanSlices
from .burned_in import burned_in_reasons
from .deidentify import Deidentify, allowed_elements
from .deidentify_key import DeidentificationKey, is_of_the_standard
from .deidentify_profile import DeidentificationOptions
from .dicom_files import CT_IMAGE_STORAGE
from .dicom_read import DicomSource

RESEARCH_ONLY = "For research use. Not a medical device."
_LONGEST_TEXT = 1024  # of an ST (PS3.5 section 6.2)
_FINE_SLOPES = (0.01, 0.1)  # HU


@dataclass(frozen=True)
class Derivation:
    """How a volume was made, for DerivationDescription (0008,2111).

    Attributes:
        method: in words, such as "low-dose restoration by residual diffusion".
        package_version: of diffusers-ct.
        model_id: folder or repository of the checkpoint.
        model_revision: commit or hash of it.
        num_inference_steps: network evaluations.
        num_samples: posterior samples averaged.
        seed: of the noise.
        synthetic: whether no patient was scanned: the file says so in its own elements.
        guidance: how sampling followed the conditions.
        conditions: what was asked for, as JSON.

    Raises:
        ValueError: if it does not fit into DerivationDescription, rather than lose what makes the image again.
    """

    method: str
    package_version: str
    model_id: str | None = None
    model_revision: str | None = None
    num_inference_steps: int | None = None
    num_samples: int | None = None
    seed: int | None = None
    synthetic: bool = False
    guidance: str | None = None
    conditions: str | None = None

    def __post_init__(self) -> None:
        if len(str(self)) > _LONGEST_TEXT:
            raise ValueError(
                f"The derivation takes {len(str(self))} characters, DICOM holds {_LONGEST_TEXT}: shorten the conditions' text."
            )

    @classmethod
    def from_provenance(
        cls,
        provenance: Mapping[str, Any],
        *,
        package_version: str,
        model_id: str | None = None,
        model_revision: str | None = None,
    ) -> "Derivation":
        """Of a synthesised volume, from the `provenance` that `CTDiffusionPipeline` returns beside it."""
        guided = {name: provenance[name] for name in ("guidance_scale", "classifier_scale")}
        return cls(
            method="synthesis by conditional diffusion",
            package_version=package_version,
            model_id=model_id,
            model_revision=model_revision,
            num_inference_steps=provenance["num_inference_steps"],
            seed=provenance["seed"],
            synthetic=True,
            guidance=json.dumps(guided, sort_keys=True),
            conditions=json.dumps(provenance["conditions"], sort_keys=True),
        )

    def to_dict(self) -> dict[str, Any]:
        """What is known of it, as JSON values."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        parts = [f"{self.method} (diffusers-ct {self.package_version})"]
        if self.synthetic:
            parts.insert(0, "SYNTHETIC, no patient")
        for name in (
            "model_id", "model_revision", "num_inference_steps", "num_samples", "seed", "guidance", "conditions",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None:
                parts.append(f"{name}={value}")
        return f"{'; '.join(parts)}. {RESEARCH_ONLY}"


@dataclass(frozen=True)
class _Identity:
    """What becomes of the patient in the new object."""

    mode: Deidentify
    key: DeidentificationKey
    options: DeidentificationOptions | None

    def elements(self, header: pydicom.Dataset) -> pydicom.Dataset:
        return allowed_elements(header, self.mode, self.key, self.options)

    def uid(self, uid: str) -> str:
        return self.key.uid(uid) if self.mode == "basic" else str(uid)


class DicomSeries:
    """A new series, image by image.

    Args:
        like: grid, conditions and source of the scan; its voxels are not read.
        derivation: see `write_volume`, and so are the others.
        deidentify: what becomes of the patient.
        series_description: of the new series.
        rescale_slope: HU per stored unit; None takes for every slice the finest of 0.01, 0.1 and 1 that holds it.
        key: of "basic".
        options: of "basic".

    Raises:
        ValueError: if the scan cannot be a series, does not fit its source, or may show the patient's name.
    """

    def __init__(
        self,
        like: ScanSlices,
        derivation: Derivation | None,
        deidentify: Deidentify,
        series_description: str,
        rescale_slope: float | None,
        key: DeidentificationKey | None,
        options: DeidentificationOptions | None,
    ) -> None:
        if rescale_slope is not None and not rescale_slope > 0:
            raise ValueError(f"`rescale_slope` must be positive, got {rescale_slope}.")
        self._columns = like.affine_lps[:3, :3] / np.linalg.norm(like.affine_lps[:3, :3], axis=0)
        if np.abs(self._columns.T @ self._columns - np.eye(3)).max() > 1e-3:
            raise ValueError("The volume's axes are not orthogonal (sheared): straighten it before writing DICOM.")
        source: DicomSource | None = like.source
        headers = source.headers if source is not None else ()
        self._one_to_one = source is not None and not source.resampled
        if self._one_to_one and len(headers) != like.shape[0]:
            raise ValueError(
                f"`source` has {len(headers)} slices, the volume {like.shape[0]}: give the scan it came from."
            )
        if deidentify == "basic" and (reasons := [r for header in headers for r in burned_in_reasons(header)]):
            raise ValueError(
                f"The source's pixels may carry text that names the patient ({reasons[0]}): no result of it is written as "
                'de-identified. Pass deidentify="keep_patient" and keep it with the patient.'
            )
        identity = _Identity(deidentify, key or DeidentificationKey.random(), options)
        base = identity.elements(headers[0] if headers else pydicom.Dataset())
        if not headers:
            _add_conditions(base, like.conditions)
        known_study = bool(headers) and "StudyInstanceUID" in headers[0]
        frame = headers[0].get("FrameOfReferenceUID") if headers else None
        self._study_uid = identity.uid(headers[0].StudyInstanceUID) if known_study else generate_uid()
        self._frame_uid = identity.uid(frame) if frame else generate_uid()
        self._series_uid = generate_uid()
        self._no_text = bool(headers) and all(h.get("BurnedInAnnotation") == "NO" for h in headers)
        self._like, self._headers, self._base, self._identity = like, headers, base, identity
        self._derivation, self._description, self._slope = derivation, series_description, rescale_slope

    def image(self, k: int, image_hu: np.ndarray) -> pydicom.Dataset:
        """Slice number `k` (from 0) with the voxels (height, width) in HU.

        Raises:
            ValueError: if they do not fit into 16 bits.
        """
        stored, slope = _stored(image_hu, self._slope)
        header = self._headers[k] if self._one_to_one else None
        derivation = self._derivation
        dataset = pydicom.Dataset()
        dataset.update(self._base if header is None else self._identity.elements(header))
        dataset.SOPClassUID = CT_IMAGE_STORAGE
        dataset.SOPInstanceUID = generate_uid()
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = self._study_uid, self._series_uid
        dataset.FrameOfReferenceUID = self._frame_uid
        if "SpecificCharacterSet" not in dataset:
            dataset.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: names of models and conditions are anyone's
        dataset.Modality = "CT"
        dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        dataset.SeriesDescription = self._description[:64]
        dataset.SeriesNumber = str(9000 + int(header.get("SeriesNumber") or 0 if header is not None else 0) % 1000)
        dataset.InstanceNumber = str(k + 1)
        dataset.AcquisitionNumber = ""
        if self._no_text or (derivation is not None and derivation.synthetic):
            dataset.BurnedInAnnotation = "NO"
        dataset.ImageComments = RESEARCH_ONLY
        if derivation is not None:
            dataset.DerivationDescription = str(derivation)
            if derivation.synthetic:
                _mark_synthetic(dataset, derivation)
        references = [header] if header is not None else self._headers
        items = [item for h in references if (item := _reference(h, self._identity)) is not None]
        if items:
            dataset.SourceImageSequence = pydicom.Sequence(items)
        _add_geometry(dataset, self._like, k, self._columns)
        _add_pixels(dataset, stored, slope)
        return dataset


def _stored(image_hu: np.ndarray, slope: float | None) -> tuple[np.ndarray, float]:
    """int16 values of HU / slope, and the slope."""
    if not np.isfinite(image_hu).all():
        raise ValueError("The volume holds values that are not finite.")
    if slope is None:
        largest = float(np.abs(image_hu).max())
        slope = next((step for step in _FINE_SLOPES if largest < 32767 * step), 1.0)
    scaled = np.rint(image_hu / np.float32(slope))
    if scaled.min() < -32768 or scaled.max() > 32767:
        raise ValueError(
            f"Values from {image_hu.min():.0f} to {image_hu.max():.0f} HU do not fit into 16 bits at `rescale_slope` = {slope}."
        )
    return scaled.astype("<i2"), slope


def _mark_synthetic(dataset: pydicom.Dataset, derivation: Derivation) -> None:
    """Says in the elements that viewers show that this is no patient (Synthetic Data: PS3.3 C.12.1.1)."""
    dataset.SyntheticData = "YES"
    dataset.PatientName = "SYNTHETIC"
    dataset.PatientID = "SYNTHETIC" if derivation.seed is None else f"SYNTHETIC-{derivation.seed}"
    dataset.SeriesDescription = f"SYNTHETIC {dataset.SeriesDescription}"[:64]


def _reference(header: pydicom.Dataset, identity: _Identity) -> pydicom.Dataset | None:
    """A reference to a source image (X/Z/U* of PS3.15 Table E.1-1); None if it has no UID, or a class of anybody's."""
    kind = str(header.get("SOPClassUID", "") or CT_IMAGE_STORAGE)
    if not header.get("SOPInstanceUID") or (identity.mode == "basic" and not is_of_the_standard(kind)):
        return None
    item = pydicom.Dataset()
    item.ReferencedSOPClassUID = kind
    item.ReferencedSOPInstanceUID = identity.uid(header.SOPInstanceUID)
    return item


def _add_conditions(dataset: pydicom.Dataset, conditions: ScanConditions) -> None:
    if conditions.kvp is not None:
        dataset.KVP = _decimal(conditions.kvp)
    if conditions.kernel is not None:
        dataset.ConvolutionKernel = conditions.kernel.split("\\")
    if conditions.body_part is not None:
        dataset.BodyPartExamined = conditions.body_part
    if conditions.manufacturer is not None:
        dataset.Manufacturer = conditions.manufacturer
    if conditions.age_years is not None:
        dataset.PatientAge = f"{int(conditions.age_years):03d}Y"
    if conditions.sex is not None:
        dataset.PatientSex = conditions.sex


def _add_geometry(dataset: pydicom.Dataset, volume: ScanSlices, k: int, columns: np.ndarray) -> None:
    position = volume.affine_lps @ np.array([0.0, 0.0, k, 1.0])
    z, y, x = volume.spacing_mm
    dataset.ImagePositionPatient = [_decimal(v) for v in position[:3]]
    dataset.ImageOrientationPatient = [_decimal(v) for v in (*columns[:, 0], *columns[:, 1])]
    dataset.PixelSpacing = [_decimal(y), _decimal(x)]
    dataset.SpacingBetweenSlices = _decimal(z)
    if "SliceThickness" not in dataset:
        dataset.SliceThickness = _decimal(volume.conditions.slice_thickness_mm or z)
    dataset.SliceLocation = _decimal(float(position[:3] @ columns[:, 2]))


def _add_pixels(dataset: pydicom.Dataset, image: np.ndarray, slope: float) -> None:
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = image.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = _decimal(slope), "0", "HU"
    dataset.WindowCenter, dataset.WindowWidth = "40", "400"
    dataset.PixelData = image.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian


def _decimal(value: float) -> str:
    """A decimal string of at most 16 characters (PS3.5 section 6.2)."""
    for digits in range(16, 0, -1):
        text = f"{float(value):.{digits}g}"
        if len(text) <= 16:
            return text
    raise ValueError(f"{value} cannot be written as a decimal string.")
