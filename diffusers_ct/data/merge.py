"""Joining the parts of a dataset that several machines have prepared."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .folders import existing_folder, refuse_file
from .manifest import (
    REPORT_NAME,
    SALT_FILE,
    SETTINGS_NAME,
    SHARD_FOLDER,
    read_manifest,
    write_atomically,
    write_manifest,
)
from .prepare import PrepareReport, empty_splits
from .prepare_settings import SOURCE_FOLDERS, listed_settings, only_run_in


def merge_prepared(output_dir: str | Path, parts: Sequence[str | Path]) -> PrepareReport:
    """Joins folders made with `part=(1, n)` to `part=(n, n)` into the one that a single machine would have made.

    Files are linked where the disk allows it, else copied; the parts stay as they are and may be deleted afterwards. A
    killed merge is simply run again.

    Args:
        output_dir: new folder.
        parts: the n folders, in any order.

    Raises:
        FileNotFoundError: if a part is not there or not finished.
        ValueError: if a part is missing or doubled, the parts were prepared with other settings, another salt or from
            other scans, or the folder holds something else.
        NotADirectoryError: if a file is named.
    """
    folder = Path(output_dir)
    folders = [Path(part) for part in parts]
    settings = [_settings(part) for part in folders]
    merged = _check_one_whole(folders, settings)
    text = json.dumps(merged, indent=2) + "\n"
    entries = [entry for part in folders for entry in read_manifest(part)]
    refuse_file(folder)
    begun = (folder / SETTINGS_NAME).is_file() and (folder / SETTINGS_NAME).read_text() == text
    if folder.is_dir() and any(folder.iterdir()) and not begun:
        raise ValueError(f"{folder} is not empty: name a new folder for the whole.")
    report = PrepareReport()
    with only_run_in(folder):
        write_atomically(folder / SETTINGS_NAME, text)
        if (folders[0] / SALT_FILE).is_file():
            write_atomically(folder / SALT_FILE, (folders[0] / SALT_FILE).read_text(), mode=0o600)
        (folder / SHARD_FOLDER).mkdir(exist_ok=True)
        for part in folders:
            for file in sorted({entry.file for entry in read_manifest(part)}):
                _take(part / file, folder / file)
        lines = {line for part in folders for line in (part / REPORT_NAME).read_text().splitlines()}
        write_atomically(folder / REPORT_NAME, "".join(f"{line}\n" for line in sorted(lines)))
        write_manifest(folder, entries)
    for entry in entries:
        report.rows[entry.split] += 1
    report.reused = len(entries)
    fractions = (merged["validation_fraction"], merged["test_fraction"])
    report.empty = empty_splits(*fractions, {entry.split for entry in entries})
    return report


def _settings(part: Path) -> dict[str, Any]:
    path = existing_folder(part) / SETTINGS_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{part} is not a prepared dataset ({SETTINGS_NAME} is missing).")
    settings = json.loads(path.read_text())
    if not settings.get("part"):
        raise ValueError(f"{part} is no part: only folders made with --shard i/n are merged.")
    return settings


def _check_one_whole(folders: Sequence[Path], settings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The settings that the whole would have."""
    if not folders:
        raise ValueError("Name the folders of all parts.")
    first = settings[0]
    for part, other in zip(folders, settings):
        # Machines may find the same scans under other paths; `plan_check` tells whether they are the same.
        names = [name for name in first if name not in ("part", *SOURCE_FOLDERS) and other.get(name) != first[name]]
        if names == ["plan_check"]:
            raise ValueError(f"{part} was made from other scans, or with other shard sizes, than {folders[0]}.")
        if names:
            raise ValueError(
                f"{part} and {folders[0]} were prepared with different settings ({listed_settings(names)})."
            )
    count = first["part"][1]
    numbers = [tuple(other["part"]) for other in settings]
    missing = sorted({(number, count) for number in range(1, count + 1)} - set(numbers))
    if missing or len(numbers) != count:
        listed = ", ".join(f"{i}/{n}" for i, n in sorted(numbers))
        lacks = f"; missing: {', '.join(f'{i}/{n}' for i, n in missing)}" if missing else ""
        raise ValueError(f"A whole needs each of its {count} parts once, got {listed}{lacks}.")
    return {name: value for name, value in first.items() if name != "plan_check"} | {"part": None}


def _take(source: Path, target: Path) -> None:
    if target.exists():
        return
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        try:
            os.link(source, part)
        except OSError:  # another disk, or one without links
            shutil.copyfile(source, part)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
