"""Features of many volumes, slice by slice in one plane (2.5-D): what distances between distributions compare."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from .feature_extractors import FeatureExtractor

Plane = Literal["axial", "coronal", "sagittal"]
_AXES = {"axial": 0, "coronal": 1, "sagittal": 2}


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of the slices of many volumes.

    Attributes:
        features: (slices, features) float64.
        patients: (slices,) whose slice it is, any integers or strings that tell patients apart; for generated volumes,
            one a volume. They appear in no result and no `repr`.
        extractor: what made the features, with plane and pixel size.
    """

    features: np.ndarray
    patients: np.ndarray = field(repr=False)
    extractor: str

    def __post_init__(self) -> None:
        features, patients = np.asarray(self.features, dtype=np.float64), np.asarray(self.patients)
        if features.ndim != 2 or patients.shape != features.shape[:1] or not features.size:
            raise ValueError(
                f"Features (slices, features) and one patient a slice are needed, got shapes {features.shape} and "
                f"{patients.shape}."
            )
        if not np.isfinite(features).all():
            raise ValueError("The features hold values that are not finite.")
        order = np.argsort(patients, kind="stable")
        object.__setattr__(self, "features", features[order])
        object.__setattr__(self, "patients", patients[order])

    @property
    def n_patients(self) -> int:
        return len(np.unique(self.patients))

    def of_patients(self, patients: Sequence | np.ndarray) -> "FeatureSet":
        """The slices of some of the patients."""
        chosen = np.isin(self.patients, np.asarray(patients))
        return FeatureSet(self.features[chosen], self.patients[chosen], self.extractor)


def extract_features(
    volumes: Iterable[tuple[np.ndarray, tuple[float, float, float]]],
    *,
    patients: Sequence,
    extractor: FeatureExtractor,
    plane: Plane,
    pixel_mm: float,
    slices_per_volume: int,
) -> FeatureSet:
    """Features of evenly spaced slices of each volume, all resampled to one pixel size.

    Args:
        volumes: (depth, height, width) in HU and spacing (z, y, x) in mm of each; read one at a time.
        patients: whose each volume is, as many as volumes.
        extractor: such as `FilterBankExtractor()`.
        plane: "axial", "coronal" or "sagittal".
        pixel_mm: of the resampled slices; the larger of in-plane and slice spacing invents no detail.
        slices_per_volume: at most, 16 at most: more of one patient say little new.

    Raises:
        ValueError: for other shapes, or if there are not as many patients as volumes.
    """
    found: list[np.ndarray] = []
    owners: list = []
    for number, (volume_hu, spacing_mm) in enumerate(volumes):
        if number >= len(patients):
            raise ValueError(f"There are more volumes than the {len(patients)} patients named.")
        slices = plane_slices(volume_hu, spacing_mm, plane=plane, pixel_mm=pixel_mm, slices=slices_per_volume)
        found.append(extractor(slices))
        owners += [patients[number]] * len(slices)
    if not found or number + 1 != len(patients):
        raise ValueError(f"{len(patients)} patients were named for {len(found)} volumes.")
    return FeatureSet(np.concatenate(found), np.array(owners), f"{extractor.name}, {plane}, {pixel_mm:g} mm")


def plane_slices(
    volume_hu: np.ndarray, spacing_mm: tuple[float, float, float], *, plane: Plane, pixel_mm: float, slices: int
) -> np.ndarray:
    """(slices, height, width) in HU: evenly spaced slices of a plane, bilinearly resampled (antialiased) to square pixels.

    The positions depend on the volume's shape alone, never on its content. Pixels are square to within half a pixel
    over the whole slice.

    Raises:
        ValueError: for a shape, plane or size that is none.
    """
    volume = np.asarray(volume_hu, dtype=np.float32)
    if volume.ndim != 3 or not volume.size or not np.isfinite(volume).all():
        raise ValueError(f"`volume_hu` must be finite and (depth, height, width), got shape {volume.shape}.")
    if plane not in _AXES:
        raise ValueError(f"`plane` must be one of {', '.join(_AXES)}, got {plane!r}.")
    if not 1 <= slices <= 16 or not pixel_mm > 0 or len(spacing_mm) != 3 or not min(spacing_mm) > 0:
        raise ValueError(
            f"1 to 16 slices, a positive pixel and spacing (z, y, x) are needed, got {slices}, {pixel_mm} and {spacing_mm}."
        )
    axis = _AXES[plane]
    length = volume.shape[axis]
    wanted = min(slices, length)
    chosen = np.take(volume, ((np.arange(wanted) + 0.5) * length / wanted).astype(int), axis=axis)
    images = np.moveaxis(chosen, axis, 0)
    in_plane = [s for k, s in enumerate(spacing_mm) if k != axis]
    size = [max(1, round(n * s / pixel_mm)) for n, s in zip(images.shape[1:], in_plane)]
    tensor = torch.from_numpy(np.ascontiguousarray(images))[:, None]
    resized = torch.nn.functional.interpolate(tensor, size=size, mode="bilinear", antialias=True, align_corners=False)
    return resized[:, 0].numpy()
