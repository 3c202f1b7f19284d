"""One row a scan pair: its schema, its keys, its split, its checksum, and the list of a prepared folder's rows."""

import hashlib
import hmac
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Array3D, Features, List, Value

from ..conditions import ScanConditions
from ..hounsfield import HU_MAX, HU_MIN
from ..residual import estimate_noise_hu

SPLITS = ("train", "validation", "test")
TARGETS = ("noise_free", "same_scan", "normal_dose")
MANIFEST_NAME = "manifest.jsonl"
SETTINGS_NAME = "settings.json"
SHARD_FOLDER = "shards"
STAGING_FOLDER = "staging"
SALT_FILE = Path("private") / "salt"
# In the provenance of a row that holds nothing but volumes, keyed hashes and `ScanConditions`.
DEIDENTIFICATION = "diffusers-ct allow-list 1"
REPORT_NAME = "left_out.jsonl"

# Successive multiples of the golden ratio fill [0, 1) evenly: phantoms 0..n-1 meet the wanted split sizes at every n.
_GOLDEN_RATIO = 0.6180339887498949


def features(matrix: tuple[int, int]) -> Features:
    """Schema of a row; `matrix` is (height, width), which Arrow's volume type fixes for a whole dataset."""
    volume = Array3D((None, *matrix), "int16")
    return Features(
        {
            "scan_key": Value("string"),
            "patient_key": Value("string"),
            "split": Value("string"),
            "dose_fraction": Value("float32"),
            "low": volume,
            "full": volume,
            "noise_hu": List(Value("float32")),
            "spacing_mm": List(Value("float32")),
            "affine_lps": List(Value("float64")),
            "target": Value("string"),
            "conditions": Value("string"),
            "provenance": Value("string"),
            "checksum": Value("string"),
        }
    )


def hashed_key(salt: str, *parts: object) -> str:
    """Keyed hash (HMAC-SHA256, 80 bits as hex) of `parts`: without the salt it cannot be traced back by trial."""
    message = json.dumps([str(part) for part in parts]).encode()
    return hmac.new(salt.encode(), message, hashlib.sha256).hexdigest()[:20]


@dataclass(frozen=True)
class SplitRule:
    """Which patient goes where: the same patient always to the same split.

    Attributes:
        validation: fraction of patients for validation.
        test: fraction of patients for testing; the rest trains.
        overrides: patient identifier -> split, which comes before the fractions.
    """

    validation: float = 0.1
    test: float = 0.1
    overrides: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if min(self.validation, self.test) < 0 or self.validation + self.test > 1:
            raise ValueError(
                "`validation_fraction` and `test_fraction` of the patients must not be negative and sum to at most 1, "
                f"got {self.validation} and {self.test}."
            )
        if not set((self.overrides or {}).values()) <= set(SPLITS):
            # What was given may be the name of a patient, the wrong way round.
            raise ValueError(f"`split_by_patient` names a split that there is not: choose one of {', '.join(SPLITS)}.")

    def of_patient(self, patient: str, patient_key: str) -> str:
        """Split by the patient's hashed key: about the wanted fractions, and stable when patients are added."""
        if self.overrides and patient in self.overrides:
            return self.overrides[patient]
        return self._at(int(patient_key[:12], 16) / 16**12)

    def of_phantom(self, seed: int) -> str:
        """Split of a phantom by its seed: close to the wanted fractions for any run of seeds from 0."""
        if self.overrides and f"phantom-{seed}" in self.overrides:
            return self.overrides[f"phantom-{seed}"]
        return self._at((seed * _GOLDEN_RATIO) % 1.0)

    def _at(self, position: float) -> str:
        if position >= 1.0 - self.test:
            return "test"
        return "validation" if position >= 1.0 - self.test - self.validation else "train"


def to_int16_hu(volume_hu: np.ndarray) -> np.ndarray:
    """Rounds HU to int16 and clips to the 12-bit range [-1024, 3071]; the copy is C-contiguous."""
    if not np.isfinite(volume_hu).all():
        raise ValueError("The volume holds values that are not finite.")
    return np.ascontiguousarray(np.clip(np.rint(volume_hu), HU_MIN, HU_MAX).astype(np.int16))


def volume_checksum(*volumes: np.ndarray) -> str:
    """SHA-256 of the little-endian int16 bytes of the volumes, one after the other (of a pair: `low`, then `full`)."""
    digest = hashlib.sha256()
    for volume in volumes:
        digest.update(np.ascontiguousarray(volume, dtype="<i2").data)
    return digest.hexdigest()


def verify_checksum(row: Mapping[str, Any]) -> None:
    """Refuses a row whose volumes are not the ones that were written.

    Raises:
        ValueError: if the checksum differs.
    """
    names = ("low", "full") if "low" in row else ("volume",)
    found = volume_checksum(*(np.asarray(row[name]) for name in names))
    if found != row["checksum"]:
        raise ValueError(
            f"Row {row['scan_key']} is damaged: checksum {found[:12]}..., written {row['checksum'][:12]}..."
        )


def make_row(
    low_hu: np.ndarray,
    full_hu: np.ndarray,
    *,
    scan_key: str,
    patient_key: str,
    split: str,
    dose_fraction: float,
    spacing_mm: Iterable[float],
    affine_lps: np.ndarray,
    target: str,
    conditions: ScanConditions,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Builds one row of `features` from two (depth, height, width) volumes in HU.

    The text of the conditions, which may name the patient, does not get into the row.

    Raises:
        ValueError: if the shapes differ or `dose_fraction`, `split` or `target` is out of its range.
    """
    if low_hu.shape != full_hu.shape or low_hu.ndim != 3:
        raise ValueError(f"A pair needs two (depth, height, width) volumes alike, got {low_hu.shape}, {full_hu.shape}.")
    check_dose_fraction(dose_fraction)
    if split not in SPLITS or target not in TARGETS:
        raise ValueError(f"Unknown split {split!r} or target {target!r}: choose of {SPLITS} and {TARGETS}.")
    low, full = to_int16_hu(low_hu), to_int16_hu(full_hu)
    return {
        "scan_key": scan_key,
        "patient_key": patient_key,
        "split": split,
        "dose_fraction": float(dose_fraction),
        "low": low,
        "full": full,
        "noise_hu": estimate_noise_hu(low.astype(np.float32)).tolist(),
        "spacing_mm": [float(s) for s in spacing_mm],
        "affine_lps": np.asarray(affine_lps, dtype=np.float64).ravel().tolist(),
        "target": target,
        "conditions": json.dumps(replace(conditions, text=None).to_dict(), sort_keys=True),
        "provenance": json.dumps(
            {"package_version": package_version(), "deidentification": DEIDENTIFICATION, **provenance}, sort_keys=True
        ),
        "checksum": volume_checksum(low, full),
    }


def check_dose_fraction(dose_fraction: float) -> float:
    """Returns the fraction of the routine dose as a float.

    Raises:
        ValueError: if it is not in (0, 1).
    """
    value = float(dose_fraction)
    if not 0.0 < value < 1.0:
        raise ValueError(f"`dose_fraction` of the low-dose image must be in (0, 1), got {dose_fraction}.")
    return value


@dataclass(frozen=True)
class ManifestEntry:
    """What the manifest says of one row: where it lies and what is needed to choose it; nothing that identifies.

    Attributes:
        scan_key: of the row.
        patient_key: keyed hash.
        split: "train", "validation" or "test".
        file: relative to the folder.
        depth: slices.
        height: rows of the matrix.
        width: columns of the matrix.
        dose_fraction: of the low-dose image; None for unpaired scans whose dose is not known.
        target: of a pair; None for unpaired scans.
        checksum: of the volumes.
        row: number of the row in its file.
        dose: "normal" or "low" for unpaired scans; None for pairs.
    """

    scan_key: str
    patient_key: str
    split: str
    file: str
    depth: int
    height: int
    width: int
    dose_fraction: float | None
    target: str | None
    checksum: str
    row: int = 0
    dose: str | None = None


def write_manifest(folder: Path, entries: Iterable[ManifestEntry]) -> None:
    """Writes the manifest at once or not at all, and refuses a patient who stands in two splits."""
    entries = sorted(entries, key=lambda entry: entry.scan_key)
    check_patients_apart(entries)
    write_atomically(folder / MANIFEST_NAME, "".join(json.dumps(asdict(entry)) + "\n" for entry in entries))


def read_manifest(folder: Path) -> list[ManifestEntry]:
    """Reads the manifest of a prepared folder.

    Raises:
        FileNotFoundError: if the folder holds none: it is no prepared dataset, or its preparation has not finished.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        if (folder / SHARD_FOLDER).is_dir():
            raise FileNotFoundError(
                f"The preparation of {folder} has not finished: run the same `diffusers-ct prepare` again; it goes on "
                "where it stopped. What is ready by now opens with `unfinished=True`."
            )
        raise FileNotFoundError(f"{folder} is not a prepared dataset ({MANIFEST_NAME} is missing).")
    entries = [ManifestEntry(**json.loads(line)) for line in path.read_text().splitlines()]
    check_patients_apart(entries)
    return entries


def check_patients_apart(entries: Iterable[ManifestEntry]) -> None:
    """Refuses a patient who stands in two splits, and a row that stands there twice.

    Raises:
        ValueError: naming the first such patient or row.
    """
    split_of: dict[str, str] = {}
    seen: set[str] = set()
    for entry in entries:
        if split_of.setdefault(entry.patient_key, entry.split) != entry.split:
            raise ValueError(f"Patient {entry.patient_key} stands in the splits {split_of[entry.patient_key]} and "
                             f"{entry.split}: a model would be tested on a patient it was trained on.")  # fmt: skip
        if entry.scan_key in seen:
            raise ValueError(f"Row {entry.scan_key} stands in the manifest twice.")
        seen.add(entry.scan_key)


def write_atomically(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Writes a text file so that a crash leaves the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + f".{os.getpid()}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def package_version() -> str:
    """Version of this package, for provenance."""
    try:
        return version("diffusers-ct")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0+unknown"
