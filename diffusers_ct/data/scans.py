"""Single scans found under a folder: evenly spaced runs of DICOM slices, and volumes in NIfTI or MetaImage files.

NIfTI and MetaImage say nothing of the patient, and often lie about the values: the user says whose a file is by a rule
for its name, and values that cannot be HU are refused.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk

from ..hounsfield import AIR_HU
from ..io import CTReadError, GeometryError, NotCTError, read_volume
from ..io.dicom_conditions import positive_number
from ..io.quiet import quiet_pydicom
from ..volume import CTVolume
from .dicom_trees import (
    VOLUME_SUFFIXES,
    Problem,
    SliceHeader,
    named_dose,
    read_headers,
    walk,
)
from .slice_matching import find_runs, read_run, run_label
from .workers import WorkerDied, Workers

_ADVICE = (
    "Give `patient_from_name`, a regular expression with one group that finds the patient in the "
    "path below the folder, such as '^([^/]+)/' for one folder a patient or '(valid_[0-9]+)_' for CT-RATE: without it "
    "scans of one patient would land in training and test."
)
_AIR_HU = (-1100.0, -800.0)
_LEAST_AIR = 1e-4
_FILES_AT_ONCE = 64


class Scan(Protocol):
    """One scan that has been found but not read. Small and picklable."""

    @property
    def label(self) -> str: ...
    @property
    def patient(self) -> str: ...
    @property
    def dose(self) -> str | None: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def identity(self) -> tuple: ...
    @property
    def field_mm(self) -> float | None: ...
    def read(self) -> CTVolume: ...


@dataclass(frozen=True)
class DicomScan:
    """Evenly spaced slices of a DICOM series."""

    run: tuple[SliceHeader, ...]

    @property
    def label(self) -> str:
        return run_label(self.run)

    @property
    def patient(self) -> str:
        return self.run[0].patient

    @property
    def dose(self) -> str | None:
        return self.run[0].dose

    @property
    def shape(self) -> tuple[int, int, int]:
        return (len(self.run), *self.run[0].matrix)

    @property
    def identity(self) -> tuple:
        first = self.run[0]
        place = (f"{first.along_normal_mm:.2f}", len(self.run))
        return (first.patient, first.study, first.series, first.kernel, first.geometry, *place)

    @property
    def field_mm(self) -> float | None:
        """Diameter of the measured field, DataCollectionDiameter (0018,0090), where the first slice tells it."""
        name = "DataCollectionDiameter"
        with quiet_pydicom():
            header = pydicom.dcmread(self.run[0].path, stop_before_pixels=True, specific_tags=[name])
            return positive_number(header, name)

    def read(self) -> CTVolume:
        """The volume in HU.

        Raises:
            CTReadError: if a file is damaged or no CT image in HU.
        """
        return read_run(self.run)


@dataclass(frozen=True)
class FileScan:
    """A volume in a NIfTI or MetaImage file.

    Attributes:
        path: of the file.
        place: its path below the folder that was searched.
        patient: whose it is.
        dose: "full" or "low" where a name tells it.
        shape: (depth, height, width).
        assume_hu: whether values without air among them are taken as HU.
    """

    path: Path
    place: str
    patient: str
    dose: str | None
    shape: tuple[int, int, int]
    assume_hu: bool = False

    @property
    def label(self) -> str:
        return str(self.path)

    @property
    def identity(self) -> tuple:
        return ("file", self.patient, self.place)

    @property
    def field_mm(self) -> None:
        """Such files do not tell it."""
        return None

    def read(self) -> CTVolume:
        """The volume in HU.

        Raises:
            CTReadError: if the file is damaged, its slices are not axial, or its values are not HU.
        """
        volume = read_volume(self.path, assume_hu=self.assume_hu)
        if volume.shape != self.shape:
            raise CTReadError(f"{self.path}: the file has changed since it was found.")
        normal = volume.affine_lps[:3, 2] / np.linalg.norm(volume.affine_lps[:3, 2])
        if abs(normal[2]) < 0.9:
            raise GeometryError(f"{self.path}: the slices are not axial: reorient the volume first.")
        # Padding has become exactly air, so that says nothing; in lung, at the skin and in noise there are other values.
        hu = volume.hu
        air = float(((hu >= _AIR_HU[0]) & (hu <= _AIR_HU[1]) & (hu != AIR_HU)).mean())
        if air < _LEAST_AIR and not self.assume_hu:
            raise NotCTError(
                f"{self.path}: only {air:.3%} of the voxels lie between {_AIR_HU[0]:g} and {_AIR_HU[1]:g}, where air and "
                "lung are: these are no HU. Apply RescaleSlope and RescaleIntercept of the scan's metadata first "
                "(examples/data_recipes.md shows how); if they are HU all the same, pass assume_hu=True."
            )
        return volume


def check_patient_rule(rule: str | None) -> None:
    """Refuses a rule that cannot name a patient.

    Raises:
        ValueError: if it is no regular expression with one group.
    """
    if rule is None:
        return
    try:
        groups = re.compile(rule).groups
    except re.error as error:
        raise ValueError(f"`patient_from_name` is no regular expression ({error}): {rule!r}.") from None
    if groups != 1:
        raise ValueError(f"`patient_from_name` needs exactly one group (...), which is the patient; got {rule!r}.")


def find_scans(
    root: Path, patient_from_name: str | None, workers: Workers | None = None, *, assume_hu: bool = False
) -> tuple[list[Scan], list[Problem]]:
    """Finds every scan under a folder, of whatever format.

    Args:
        root: folder.
        patient_from_name: rule for the path of a NIfTI or MetaImage file below `root` (with "/"); its group is the
            patient. Not used for DICOM, which tells by itself.
        workers: that read headers; None for this process.
        assume_hu: take the values of a NIfTI or MetaImage file as HU though no air is among them.

    Raises:
        FileNotFoundError: if there is no folder `root`.
        NotADirectoryError: if it is a file.
        ValueError: if there is no scan, or only files whose patient nothing tells.
    """
    check_patient_rule(patient_from_name)
    files = [Path(path) for path in walk(root, volumes=True)]
    if files and patient_from_name is not None:
        scans, problems = _file_scans(root, files, patient_from_name, workers or Workers(0), assume_hu)
    else:
        scans, problems = [], []
    try:
        slices, wrong = read_headers(root, workers)
    except ValueError as error:
        if files and patient_from_name is None:
            raise ValueError(f"{root} holds {len(files)} NIfTI or MetaImage files. {_ADVICE}") from None
        if not scans:
            raise ValueError("\n".join([str(error), *map(str, problems)])) from None
    else:
        runs, unusable = find_runs(slices)
        scans += [DicomScan(tuple(run)) for run in runs]
        problems += wrong + unusable
        if files and patient_from_name is None:
            text = f"{len(files)} NIfTI or MetaImage files beside the DICOM series were left out. {_ADVICE}"
            problems.append(Problem(str(root), text, "patient_not_named"))
    return scans, problems


def _file_scans(
    root: Path, files: list[Path], rule: str, workers: Workers, assume_hu: bool
) -> tuple[list[Scan], list[Problem]]:
    scans: list[Scan] = []
    problems: list[Problem] = []
    parts = [files[n : n + _FILES_AT_ONCE] for n in range(0, len(files), _FILES_AT_ONCE)]
    for part, shapes in zip(parts, workers.in_order(_shapes, parts)):
        if isinstance(shapes, WorkerDied):
            raise ValueError(f"A process that read headers under {root} was killed: is the memory used up?")
        for path, shape in zip(part, shapes):
            place = path.relative_to(root).as_posix()
            found = re.search(rule, place)
            if isinstance(shape, str):
                problems.append(Problem(str(path), shape, "unusable_header"))
            elif found is None or not found.group(1):
                problems.append(
                    Problem(str(path), f"the rule {rule!r} finds no patient in it; left out.", "no_patient")
                )
            else:
                dose = named_dose([path.name, *reversed(path.parent.relative_to(root).parts), root.name])
                scans.append(FileScan(path, place, found.group(1), dose, shape, assume_hu))
    return scans, problems


def _shapes(paths: Iterable[Path]) -> list[tuple[int, int, int] | str]:
    """(depth, height, width) of volume files from their headers, or what is wrong with one."""
    found: list[tuple[int, int, int] | str] = []
    for path in paths:
        try:
            size = _size(path)
        except Exception as error:  # the header of a damaged file can fail in any way
            found.append(f"has an unusable header ({type(error).__name__}).")
            continue
        if len(size) == 4 and size[3] == 1:
            size = size[:3]
        good = len(size) == 3 and min(size) > 0
        found.append((size[2], size[1], size[0]) if good else f"a CT volume has three axes, this has the size {size}.")
    return found


def _size(path: Path) -> tuple[int, ...]:
    """Voxels along columns, rows and slices."""
    if path.name.lower().endswith(VOLUME_SUFFIXES[:2]):
        image: nib.spatialimages.SpatialImage = nib.load(path)  # type: ignore[assignment]
        return tuple(int(n) for n in image.shape)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return tuple(reader.GetSize())
