"""Scans without a partner: at normal dose, at low dose, or some of each; and `load_unpaired_ct`, which opens them."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Array3D, Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, List, Value

from ..residual import estimate_noise_hu
from .dicom_trees import Problem
from .folders import existing_folder
from .manifest import (
    DEIDENTIFICATION,
    SPLITS,
    SplitRule,
    check_dose_fraction,
    hashed_key,
    package_version,
    to_int16_hu,
    volume_checksum,
)
from .opening import open_rows
from .scans import Scan, check_patient_rule, find_scans
from .sources import ScanTask, check_overrides
from .workers import Workers

Dose = Literal["normal", "low"]
DOSES: tuple[Dose, ...] = ("normal", "low")


@dataclass(eq=False)
class UnpairedCTConfig:
    """Which scans to prepare; at least one of `normal_dose` and `low_dose` is given.

    Attributes:
        normal_dose: folder with scans at normal dose (DICOM series, NIfTI or MetaImage files).
        low_dose: folder with scans at low dose.
        low_dose_fraction: of the routine dose, in (0, 1), where it is known for all scans of `low_dose`.
        validation_fraction: of the patients.
        test_fraction: of the patients.
        split_by_patient: patient -> split.
        patient_from_name: whose a NIfTI or MetaImage file is: a regular expression with one group, for its path.
        assume_hu: take the values of such a file as HU though no air is among them.
        salt: of the patient keys; keep it secret.
    """

    normal_dose: str | None = None
    low_dose: str | None = None
    low_dose_fraction: float | None = None
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    split_by_patient: Mapping[str, str] = field(default_factory=dict)
    patient_from_name: str | None = None
    assume_hu: bool = False
    salt: str | None = None

    def check(self) -> None:
        """Refuses a combination that means nothing.

        Raises:
            ValueError: naming what to change.
        """
        if self.normal_dose is None and self.low_dose is None:
            raise ValueError("Give `normal_dose`, `low_dose` or both: folders with scans.")
        if self.low_dose_fraction is not None:
            check_dose_fraction(self.low_dose_fraction)
            if self.low_dose is None:
                raise ValueError("`low_dose_fraction` is the dose of scans in `low_dose`, which is not given.")
        check_patient_rule(self.patient_from_name)
        if self.salt is None:
            raise ValueError("`salt` must be given for scans of patients: a secret text that protects their keys.")

    def plan(self, workers: Workers | None = None) -> tuple[list[ScanTask], list[Problem]]:
        """Lists the scans to be made into rows, and what could not be used and why.

        Raises:
            ValueError: if a folder holds scans whose name tells the other dose.
        """
        self.check()
        rule = SplitRule(self.validation_fraction, self.test_fraction, dict(self.split_by_patient))
        tasks: list[ScanTask] = []
        problems: list[Problem] = []
        patients: set[str] = set()
        for dose, root, other in (("normal", self.normal_dose, "low"), ("low", self.low_dose, "full")):
            if root is None:
                continue
            scans, wrong = find_scans(Path(root), self.patient_from_name, workers, assume_hu=self.assume_hu)
            problems += wrong
            misplaced = [scan for scan in scans if scan.dose == other]
            if misplaced:
                raise ValueError(
                    f"{root} is to hold scans at {dose} dose, and a name says {other} dose ({misplaced[0].label}): give a "
                    "folder of one dose."
                )
            for scan in scans:
                patients.add(scan.patient)
                key = hashed_key(str(self.salt), "patient", scan.patient)
                tasks.append(
                    UnpairedTask(
                        scan=scan,
                        dose=dose,  # type: ignore[arg-type]
                        dose_fraction=self.low_dose_fraction if dose == "low" else None,
                        scan_key=hashed_key(str(self.salt), "unpaired", dose, *scan.identity),
                        patient_key=key,
                        split=rule.of_patient(scan.patient, key),
                    )
                )
        check_overrides(rule, patients)
        return tasks, problems


@dataclass(frozen=True)
class UnpairedTask:
    """One scan from files, as it is."""

    scan: Scan
    dose: Dose
    dose_fraction: float | None
    scan_key: str
    patient_key: str
    split: str

    @property
    def label(self) -> str:
        return self.scan.label

    @property
    def row_keys(self) -> tuple[str, ...]:
        return (self.scan_key,)

    @property
    def matrix(self) -> tuple[int, int]:
        return self.scan.shape[1:]

    @property
    def row_bytes(self) -> int:
        depth, height, width = self.scan.shape
        return 2 * depth * height * width

    @property
    def schema(self) -> Features:
        return unpaired_features(self.matrix)

    def rows(self, wanted: Collection[str]) -> Iterator[dict[str, Any]]:
        if self.scan_key not in wanted:
            return
        scan = self.scan.read()
        volume = to_int16_hu(scan.hu)
        conditions = replace(scan.conditions, text=None, dose_fraction=self.dose_fraction)
        yield {
            "scan_key": self.scan_key,
            "patient_key": self.patient_key,
            "split": self.split,
            "dose": self.dose,
            "dose_fraction": self.dose_fraction,
            "volume": volume,
            "noise_hu": estimate_noise_hu(volume.astype(np.float32)).tolist(),
            "spacing_mm": [float(s) for s in scan.spacing_mm],
            "affine_lps": scan.affine_lps.ravel().tolist(),
            "conditions": json.dumps(conditions.to_dict(), sort_keys=True),
            "provenance": json.dumps(
                {"package_version": package_version(), "deidentification": DEIDENTIFICATION, "source": "unpaired"},
                sort_keys=True,
            ),
            "checksum": volume_checksum(volume),
        }


def unpaired_features(matrix: tuple[int, int]) -> Features:
    """Schema of a row of one volume; `matrix` is (height, width)."""
    return Features(
        {
            "scan_key": Value("string"),
            "patient_key": Value("string"),
            "split": Value("string"),
            "dose": Value("string"),
            "dose_fraction": Value("float32"),
            "volume": Array3D((None, *matrix), "int16"),
            "noise_hu": List(Value("float32")),
            "spacing_mm": List(Value("float32")),
            "affine_lps": List(Value("float64")),
            "conditions": Value("string"),
            "provenance": Value("string"),
            "checksum": Value("string"),
        }
    )


def load_unpaired_ct(
    path: str | Path,
    split: str | None = None,
    *,
    dose: Dose | None = None,
    matrix: tuple[int, int] | None = None,
    streaming: bool = False,
    unfinished: bool = False,
) -> Dataset | DatasetDict | IterableDataset | IterableDatasetDict:
    """Opens a folder made by `prepare_unpaired_ct`, memory-mapped; `volume` of a row is (depth, height, width) int16 HU.

    Args:
        path: the folder.
        split: "train", "validation" or "test"; without it all splits as a dict.
        dose: "normal" or "low" takes only those scans; None takes all, and the column `dose` tells them apart.
        matrix: (height, width), needed when the folder holds scans of several matrix sizes.
        streaming: gives iterable datasets, which read row after row.
        unfinished: opens what is ready of a run that has not ended.

    Raises:
        FileNotFoundError: if the folder is not there or not finished.
        NotADirectoryError: if the path is a file.
        ValueError: if the folder holds pairs, the split is empty or unknown, or `matrix` is needed and not given.
    """
    if dose is not None and dose not in DOSES:
        raise ValueError(f"Unknown dose {dose!r}: choose one of {', '.join(DOSES)}.")
    if split is not None and split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}: choose one of {', '.join(SPLITS)}.")
    folder = existing_folder(path, advice="make it with `diffusers-ct prepare --unpaired`, or check its name.")
    return open_rows(
        folder, split, kind="unpaired", dose=dose, matrix=matrix, streaming=streaming, unfinished=unfinished
    )
