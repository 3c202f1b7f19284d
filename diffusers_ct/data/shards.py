"""Rows on disk: staged one by one, then packed into shards whose rows are planned before any work.

What a shard holds follows from the scans alone, so its bytes do not depend on order, number of workers or kills.
"""

import errno
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
from datasets import Dataset, Features
from datasets.arrow_writer import ArrowWriter

from .manifest import SHARD_FOLDER, STAGING_FOLDER, ManifestEntry

_LIGHT = ("scan_key", "patient_key", "split", "noise_hu", "dose_fraction", "dose", "target", "checksum")
Place = tuple[Path, int]  # file and number of the record batch in it; one row a batch


class DiskFullError(OSError):
    """The disk or the quota is used up; says what is ready and how to go on."""

    def __str__(self) -> str:
        return str(self.strerror)


class PlannedRows(Protocol):
    """What planning needs of a scan: the keys of its rows, and how large each is."""

    @property
    def split(self) -> str: ...
    @property
    def matrix(self) -> tuple[int, int]: ...
    @property
    def row_keys(self) -> tuple[str, ...]: ...
    @property
    def row_bytes(self) -> int: ...


@dataclass(frozen=True)
class PlannedShard:
    """Rows that belong into one file, in their order.

    Attributes:
        name: split, matrix and number; the file's name has a digest of the rows that are really in it besides.
        rows: scan keys.
        tasks: numbers of the scans that they come from.
    """

    name: str
    rows: tuple[str, ...]
    tasks: tuple[int, ...]

    def file_name(self, rows: Iterable[str]) -> str:
        """Name of the file with `rows` in it: other rows, other name, so a file never changes what it holds."""
        return f"{self.name}-{hashlib.sha256(' '.join(rows).encode()).hexdigest()[:12]}.arrow"


def plan_shards(tasks: Sequence[PlannedRows], limit_bytes: int) -> list[PlannedShard]:
    """Packs rows into shards of at most `limit_bytes` (or one row); each holds one split and one matrix.

    Scans are taken in the order of their keys, which says nothing of where they lay; a scan's rows stay together.
    """
    groups: dict[tuple[str, tuple[int, int]], list[int]] = defaultdict(list)
    for number, task in enumerate(tasks):
        groups[task.split, task.matrix].append(number)
    shards = []
    for (split, (height, width)), members in sorted(groups.items()):
        packs: list[list[tuple[str, int]]] = []
        filled = limit_bytes
        for number in sorted(members, key=lambda n: tasks[n].row_keys[0]):
            size = tasks[number].row_bytes
            for key in tasks[number].row_keys:
                if filled + size > limit_bytes:
                    packs.append([])
                    filled = 0
                packs[-1].append((key, number))
                filled += size
        for position, pack in enumerate(packs):
            numbers = tuple(dict.fromkeys(number for _, number in pack))
            name = f"{split}-{height}x{width}-{position:05d}"
            shards.append(PlannedShard(name, tuple(key for key, _ in pack), numbers))
    return shards


def stage_row(folder: Path, row: Mapping[str, Any], schema: Features) -> None:
    """Writes one row under its key: under a temporary name first, so that a file that is there is whole."""
    target = folder / STAGING_FOLDER / f"{row['scan_key']}.arrow"
    part = target.with_name(f"{row['scan_key']}.{os.getpid()}.part")
    try:
        with ArrowWriter(features=schema, path=str(part), writer_batch_size=1) as writer:
            writer.write(dict(row))
            writer.finalize()
        _to_disk(part)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def pack(places: Sequence[Place], target: Path) -> None:
    """Writes a shard from finished rows, one row in memory at a time; it appears whole or not at all."""
    if len(places) == 1 and places[0][0].parent.name == STAGING_FOLDER:
        places[0][0].replace(target)  # a staged row is a shard of one
        return
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with pa.OSFile(str(part), "wb") as sink:
            writer = None
            for path, number in places:
                with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
                    batch = next(batch for position, batch in enumerate(reader) if position == number)
                    writer = writer or pa.ipc.new_stream(sink, reader.schema)
                    writer.write_batch(batch)
                    del batch
            assert writer is not None
            writer.close()
        _to_disk(part)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def finished_rows(folder: Path, *, clean: bool) -> dict[str, Place]:
    """Every whole row of a folder, staged or in a shard.

    Args:
        folder: of the dataset; it need not exist.
        clean: whether to remove damaged files and parts of killed runs; nobody else may be writing.
    """
    rows: dict[str, Place] = {}
    if clean:
        remove_parts(folder)
    for name in (STAGING_FOLDER, SHARD_FOLDER):
        for path in sorted((folder / name).glob("*.arrow")):
            try:
                rows |= {key: (path, number) for number, key in enumerate(keys_in(path))}
            except (pa.ArrowInvalid, KeyError, EOFError, FileNotFoundError):
                if clean:
                    path.unlink(missing_ok=True)
    return rows


def keys_in(path: Path) -> list[str]:
    """Scan keys of the rows of an Arrow stream file, whose volumes are not read."""
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
        keys = [key for batch in reader for key in batch.column("scan_key").to_pylist()]
        source.seek(source.tell() - 8)
        if source.read(8) != b"\xff\xff\xff\xff\0\0\0\0":  # a cut at the end of a batch reads as a whole stream
            raise EOFError(f"{path.name} has no end.")
    return keys


def read_entries(folder: Path, places: Iterable[Place]) -> list[ManifestEntry]:
    """What the manifest says of rows, from the rows themselves; volumes are not read."""
    wanted: dict[Path, list[int]] = defaultdict(list)
    for path, number in places:
        wanted[path].append(number)
    entries = []
    for path, numbers in wanted.items():
        table = Dataset.from_file(str(path))
        volume = table.features["low" if "low" in table.features else "volume"]
        light = table.select_columns([name for name in _LIGHT if name in table.features])
        for number in numbers:
            row = light[number]
            entries.append(
                ManifestEntry(
                    scan_key=row["scan_key"],
                    patient_key=row["patient_key"],
                    split=row["split"],
                    file=path.relative_to(folder).as_posix(),
                    depth=len(row["noise_hu"]),
                    height=volume.shape[1],
                    width=volume.shape[2],
                    dose_fraction=row.get("dose_fraction"),
                    target=row.get("target"),
                    checksum=row["checksum"],
                    row=number,
                    dose=row.get("dose"),
                )
            )
    return entries


def remove_parts(folder: Path) -> None:
    """Removes half-written files; nobody else may be writing."""
    for name in (STAGING_FOLDER, SHARD_FOLDER):
        for path in (folder / name).glob("*.part"):
            path.unlink(missing_ok=True)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk or the quota is used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
