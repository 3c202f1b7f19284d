"""Opening the shards of a prepared folder as datasets, whatever their rows are."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from .manifest import MANIFEST_NAME, SPLITS, ManifestEntry, check_patients_apart, read_manifest
from .shards import finished_rows, read_entries

_STREAMS = 256


def open_rows(
    folder: Path,
    split: str | None,
    *,
    kind: Literal["paired", "unpaired"],
    dose: str | None = None,
    matrix: tuple[int, int] | None,
    streaming: bool,
    unfinished: bool,
) -> Dataset | DatasetDict | IterableDataset | IterableDatasetDict:
    """The rows of a folder; see `load_paired_ct` and `load_unpaired_ct`."""
    entries = _ready(folder) if unfinished and not (folder / MANIFEST_NAME).is_file() else read_manifest(folder)
    there = "unpaired" if any(entry.dose is not None for entry in entries) else "paired"
    if entries and there != kind:
        raise ValueError(f"{folder} holds {there} scans: open it with `load_{there}_ct`.")
    if dose is not None:
        entries = [entry for entry in entries if entry.dose == dose]
        if not entries:
            raise ValueError(f"{folder} holds no scan at {dose} dose.")
    sizes = sorted({(entry.height, entry.width) for entry in entries})
    if matrix is not None and tuple(matrix) not in sizes:
        raise ValueError(f"{folder} holds no scan with a matrix of {tuple(matrix)}, but {sizes}.")
    if matrix is None and len(sizes) > 1:
        raise ValueError(
            f"{folder} holds scans with the matrices {sizes}; a dataset has one. Give one of them as `matrix`; "
            "`PatchDataset` takes a list of datasets, one for each matrix."
        )
    wanted = tuple(matrix) if matrix is not None else sizes[0] if sizes else None
    opened: dict[str, Any] = {}
    for name in SPLITS if split is None else (split,):
        here = [entry for entry in entries if entry.split == name and (entry.height, entry.width) == wanted]
        if here:
            rows = _joined(folder, here)
            opened[name] = rows.to_iterable_dataset(num_shards=min(len(rows), _STREAMS)) if streaming else rows
    if split is None:
        return IterableDatasetDict(opened) if streaming else DatasetDict(opened)
    if split not in opened:
        counts = {name: sum(entry.split == name for entry in entries) for name in SPLITS}
        raise ValueError(
            f"The split {split!r} of {folder} is empty (rows: {counts}). Prepare a new folder with "
            "more patients, other fractions (--validation-fraction, --test-fraction) or --split-by-patient."
        )
    return opened[split]


def _ready(folder: Path) -> list[ManifestEntry]:
    entries = read_entries(folder, finished_rows(folder, clean=False).values())
    if not entries:
        raise FileNotFoundError(f"{folder} holds no finished row.")
    check_patients_apart(entries)
    return entries


def _joined(folder: Path, entries: Sequence[ManifestEntry]) -> Dataset:
    numbers: dict[str, list[int]] = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: (entry.file, entry.row)):
        numbers[entry.file].append(entry.row)
    shards = []
    for file, rows in numbers.items():
        shard = Dataset.from_file(str(folder / file))
        if rows[-1] >= len(shard):
            raise ValueError(
                f"{folder / file} is damaged: it has {len(shard)} rows, the manifest names row {rows[-1]}."
            )
        shards.append(shard if rows == list(range(len(shard))) else shard.select(rows))
    return datasets.concatenate_datasets(shards) if len(shards) > 1 else shards[0]
