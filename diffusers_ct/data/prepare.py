"""Writing a dataset of pairs to a folder, scan by scan, so that a killed run goes on where it stopped.

Layout of the folder: `shards/<scan_key>.arrow` (one row each), `manifest.jsonl` (written last), `settings.json`
(what was asked for, without paths or names) and `private/salt` (readable by the owner alone; never to be published).
"""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets.arrow_writer import ArrowWriter

from ..io import CTReadError
from ..physics import PHANTOM_VERSION, SIMULATOR_VERSION
from .dicom_trees import Problem
from .manifest import (
    MANIFEST_NAME,
    SALT_FILE,
    SETTINGS_NAME,
    SHARD_FOLDER,
    SPLITS,
    ManifestEntry,
    features,
    hashed_key,
    write_atomically,
    write_manifest,
)
from .paired_ct import PairedCTConfig
from .sources import ScanTask


@dataclass
class PrepareReport:
    """What a run of `prepare_paired_ct` did.

    Attributes:
        written: rows made in this run.
        reused: rows found finished from an earlier run.
        rows: rows in the dataset for each split.
        problems: what was left out and why; holds paths of the user, for the user's eyes only.
    """

    written: int = 0
    reused: int = 0
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    problems: list[Problem] = field(default_factory=list)


def prepare_paired_ct(
    output_dir: str | Path,
    *,
    progress: Callable[[int, int, str], None] | None = None,
    **source: Any,
) -> PrepareReport:
    """Makes a folder that `load_paired_ct` opens, from one of the three sources.

    Can be killed at any time and run again: finished rows are kept, half-written ones are not taken for finished, and
    the manifest appears only when every scan has been tried. A damaged scan is reported and left out.

    Args:
        output_dir: new folder, or the one of an unfinished run with the same settings.
        progress: called with (scans done, scans in all, label of the next scan; the label may name a folder).
        **source: the fields of `PairedCTConfig`. Without `salt` one is drawn and kept in the folder.

    Raises:
        ValueError: if the settings mean nothing, no scan is usable, or the folder was prepared with other settings.
        FileNotFoundError: if the source is not there.
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SETTINGS_NAME).exists() \
            and not (folder / SALT_FILE).exists():  # fmt: skip
        raise ValueError(f"{folder} is not empty and not a prepared dataset: choose a new folder.")
    # Phantoms have no patient to protect: a fixed salt lets a rerun compare its settings without keeping a secret.
    new_salt = "phantom" if source.get("phantoms") is not None else secrets.token_hex(16)
    config = PairedCTConfig(**{**source, "salt": source.get("salt") or _kept_salt(folder) or new_salt})
    config.check()
    _check_settings(folder, config)
    tasks, problems = config.plan()
    report = PrepareReport(problems=list(problems))
    if not tasks:
        raise ValueError("\n".join(["No scan can be used.", *map(str, problems)]))
    _keep_settings(folder, config)
    shards = folder / SHARD_FOLDER
    shards.mkdir(parents=True, exist_ok=True)
    for stale in shards.glob("*.part"):  # left by a killed run
        stale.unlink()
    entries = []
    for number, task in enumerate(tasks):
        if progress:
            progress(number, len(tasks), task.label)
        missing = [key for key in task.row_keys if not (shards / f"{key}.arrow").exists()]
        if missing:
            try:
                for row in task.rows(missing):
                    _write_shard(shards, row, task.matrix)
                    report.written += 1
            except (CTReadError, ValueError) as error:
                report.problems.append(Problem(task.label, f"{error} Left out."))
        finished = [key for key in task.row_keys if (shards / f"{key}.arrow").exists()]
        report.reused += len(set(finished) - set(missing))
        entries += [_entry(folder, key, task) for key in finished]
    if progress:
        progress(len(tasks), len(tasks), "")
    if not entries:
        raise ValueError("\n".join(["No scan could be read.", *map(str, report.problems)]))
    write_manifest(folder, entries)
    for entry in entries:
        report.rows[entry.split] += 1
    return report


def _write_shard(shards: Path, row: dict[str, Any], matrix: tuple[int, int]) -> None:
    """One row as an Arrow stream file: under a temporary name first, so that a file that is there is whole."""
    part = shards / f"{row['scan_key']}.{os.getpid()}.part"
    with ArrowWriter(features=features(matrix), path=str(part), writer_batch_size=1) as writer:
        writer.write(row)
        writer.finalize()
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(shards / f"{row['scan_key']}.arrow")


def _entry(folder: Path, key: str, task: ScanTask) -> ManifestEntry:
    file = f"{SHARD_FOLDER}/{key}.arrow"
    light = ["scan_key", "patient_key", "split", "noise_hu", "dose_fraction", "target", "checksum"]
    row = Dataset.from_file(str(folder / file)).select_columns(light)[0]
    if row["scan_key"] != key or row["split"] != task.split:
        raise ValueError(f"{folder / file} is not the row it is named after: delete it and run again.")
    height, width = task.matrix
    return ManifestEntry(
        scan_key=key,
        patient_key=row["patient_key"],
        split=row["split"],
        file=file,
        depth=len(row["noise_hu"]),
        height=height,
        width=width,
        dose_fraction=row["dose_fraction"],
        target=row["target"],
        checksum=row["checksum"],
    )


def _kept_salt(folder: Path) -> str | None:
    path = folder / SALT_FILE
    return path.read_text().strip() if path.is_file() else None


def _settings(config: PairedCTConfig) -> dict[str, Any]:
    """The settings in a form that names no path and no patient: both stand there as keyed hashes."""
    salt = str(config.salt)
    settings = asdict(config)
    for name in ("name", "version", "data_dir", "data_files", "description", "salt", "matrix"):
        settings.pop(name, None)
    for name in ("pairs", "normal_dose"):
        if settings[name] is not None:
            settings[name] = hashed_key(salt, str(Path(settings[name]).resolve()))
    overrides = {hashed_key(salt, patient): split for patient, split in config.split_by_patient.items()}
    settings |= {
        "split_by_patient": overrides,
        "simulator_version": SIMULATOR_VERSION,
        "phantom_version": PHANTOM_VERSION,
        "salt_check": hashlib.sha256(f"check {salt}".encode()).hexdigest()[:8] if config.phantoms is None else "",
    }
    return json.loads(json.dumps(settings))


def _check_settings(folder: Path, config: PairedCTConfig) -> None:
    path = folder / SETTINGS_NAME
    if not path.exists():
        return
    before, now = json.loads(path.read_text()), _settings(config)
    different = [name for name in now if before.get(name) != now[name]]
    if different:
        raise ValueError(
            f"{folder} was prepared with another {', '.join(different)}: choose a new folder, or delete this one."
        )


def _keep_settings(folder: Path, config: PairedCTConfig) -> None:
    if config.phantoms is None:
        write_atomically(folder / SALT_FILE, f"{config.salt}\n", mode=0o600)
    write_atomically(folder / SETTINGS_NAME, json.dumps(_settings(config), indent=2) + "\n")


def describe(report: PrepareReport) -> Iterable[str]:
    """The report as lines for a person."""
    counts = ", ".join(f"{split} {count}" for split, count in report.rows.items())
    yield f"{sum(report.rows.values())} rows ({counts}): {report.written} made now, {report.reused} from before."
    if report.problems:
        yield f"{len(report.problems)} problems:"
        yield from (f"  {problem}" for problem in report.problems)


__all__ = ["MANIFEST_NAME", "PrepareReport", "describe", "prepare_paired_ct"]
