"""What a prepared folder remembers of how it was asked for, so that it is only gone on with by the same request."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..physics import PHANTOM_VERSION, SIMULATOR_VERSION
from .folders import refuse_file
from .manifest import SALT_FILE, SETTINGS_NAME, hashed_key, write_atomically
from .paired_ct import PairedCTConfig
from .shards import PlannedShard, finished_rows
from .unpaired_ct import UnpairedCTConfig

_LOCK = ".lock"
_WORDS = {
    "kind": "pairs against single scans",
    "salt_check": "`salt`",
    "simulator_version": "version of the simulator",
    "phantom_version": "version of the phantoms",
}
FROM_SCAN = "from each scan"
SOURCE_FOLDERS = ("pairs", "normal_dose", "low_dose")


def check_folder(folder: Path) -> None:
    """Refuses a folder with something else in it.

    Raises:
        ValueError: if it is not empty and no prepared dataset.
        NotADirectoryError: if it is a file.
    """
    refuse_file(folder)
    if not folder.is_dir() or (folder / SETTINGS_NAME).exists() or (folder / SALT_FILE).exists():
        return
    if any(path.name != _LOCK and not path.name.endswith(".part") for path in folder.iterdir()):
        raise ValueError(f"{folder} is not empty and not a prepared dataset: choose a new folder.")


def check_settings(folder: Path, config: PairedCTConfig | UnpairedCTConfig, part: tuple[int, int] | None) -> None:
    """Refuses to go on with a folder that was begun otherwise, unless no row was made in it.

    Raises:
        ValueError: naming what differs.
    """
    path = folder / SETTINGS_NAME
    if not path.exists():
        return
    before, now = {"kind": "paired", "assume_hu": False, **json.loads(path.read_text())}, settings_of(config, part)
    different = [name for name in now if before.get(name) != now[name]]
    if different and finished_rows(folder, clean=False):
        raise ValueError(
            f"{folder} was prepared with other settings ({listed_settings(different)}): give the same, or choose a new folder."
        )


def listed_settings(settings: Sequence[str]) -> str:
    """Names of settings for a message."""
    if "kind" in settings:  # then all the others differ too
        settings = ["kind"]
    return ", ".join(_WORDS.get(name, f"`{name}`") for name in settings)


def keep_settings(
    folder: Path,
    config: PairedCTConfig | UnpairedCTConfig,
    part: tuple[int, int] | None,
    shards: Sequence[PlannedShard],
) -> None:
    """Writes the settings, and the salt where there are patients; a part also remembers the plan of the whole.

    Raises:
        ValueError: if the plan of the whole, of which this is a part, has changed since.
    """
    check_settings(folder, config, part)  # once more, now that no other run can write
    settings = settings_of(config, part)
    if part is not None:
        plan = json.dumps([[shard.name, shard.rows] for shard in shards])
        settings["plan_check"] = hashlib.sha256(plan.encode()).hexdigest()[:16]
        path = folder / SETTINGS_NAME
        if path.exists() and json.loads(path.read_text()).get("plan_check") != settings["plan_check"]:
            raise ValueError(
                f"The scans, or the size of the shards, differ from those that {folder} was begun with: every part needs "
                "the same. Restore them, or begin all parts anew."
            )
    if getattr(config, "phantoms", None) is None:
        write_atomically(folder / SALT_FILE, f"{config.salt}\n", mode=0o600)
    write_atomically(folder / SETTINGS_NAME, json.dumps(settings, indent=2) + "\n")


def kept_salt(folder: Path) -> str | None:
    """The salt of an earlier run in this folder."""
    path = folder / SALT_FILE
    return path.read_text().strip() if path.is_file() else None


def settings_of(config: PairedCTConfig | UnpairedCTConfig, part: tuple[int, int] | None) -> dict[str, Any]:
    """The settings in a form that names no path and no patient: both stand there as keyed hashes."""
    salt = str(config.salt)
    settings = asdict(config)
    for name in ("name", "version", "data_dir", "data_files", "description", "salt", "matrix"):
        settings.pop(name, None)
    for name in SOURCE_FOLDERS:
        if settings.get(name) is not None:
            settings[name] = hashed_key(salt, str(Path(settings[name]).resolve()))
    if settings["patient_from_name"] is not None:
        settings["patient_from_name"] = hashed_key(salt, "rule", settings["patient_from_name"])
    phantoms = settings.get("phantoms") is not None
    if settings.get("normal_dose") is not None:  # nothing would be the same as in a folder that knew no other way
        settings |= {name: FROM_SCAN for name in ("i0", "kernel") if name in settings and settings[name] is None}
    settings |= {
        "kind": "paired" if isinstance(config, PairedCTConfig) else "unpaired",
        "split_by_patient": {hashed_key(salt, patient): split for patient, split in config.split_by_patient.items()},
        "simulator_version": SIMULATOR_VERSION,
        "phantom_version": PHANTOM_VERSION,
        "salt_check": "" if phantoms else hashlib.sha256(f"check {salt}".encode()).hexdigest()[:8],
        "part": None if part is None else list(part),
    }
    return json.loads(json.dumps(settings))


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keeps two runs from writing into one folder; a killed run holds nothing.

    Raises:
        ValueError: if another run is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"Another run is preparing {folder}: wait for it, or choose another folder.") from None
    try:
        yield
    finally:
        lock.release()
        (folder / _LOCK).unlink(missing_ok=True)
