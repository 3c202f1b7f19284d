"""Patches for training, cut from the Arrow buffers of a prepared dataset without decoding the volumes."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from ..conditions import ConditionVocabulary, Fields, ScanConditions, collate_conditions
from .patch_drawing import PatchDrawer, PatchScan


def volume_view(dataset: Dataset, index: int, column: str) -> np.ndarray:
    """A read-only (depth, height, width) int16 view of a volume: shares memory with the Arrow buffer, copies nothing.

    Args:
        dataset: rows as `load_paired_ct` gives them; for a file on disk only the pages that are touched are read.
        index: row.
        column: "low" or "full", or "volume" of unpaired scans.
    """
    # The "arrow" format hands out slices of the table, so selections and shuffles of the dataset are respected.
    return volume_of(dataset.select_columns(column).with_format("arrow")[index], column)


def volume_of(table: pa.Table, column: str) -> np.ndarray:
    """The same view of the only row of an Arrow table."""
    array = next(chunk for chunk in table[column].chunks if len(chunk))  # `combine_chunks` would copy
    if array.type.value_type != "int16":
        raise ValueError(f"Column {column!r} must hold int16 volumes, got {array.type.value_type}.")
    _, height, width = array.type.shape
    values = array.storage
    for _ in range(array.type.ndims):
        values = values.flatten()
    return values.to_numpy(zero_copy_only=True).reshape(-1, height, width)


def check_patch_size(patch_size: Sequence[int], size_factor: Sequence[int]) -> None:
    """Refuses patches that a network cannot be shown.

    Raises:
        ValueError: if a size is not a multiple of the network's `size_factor`.
    """
    if any(size % factor for size, factor in zip(patch_size, size_factor)):
        raise ValueError(f"`patch_size` must be divisible by {list(size_factor)}, got {list(patch_size)}.")


class PatchDataset(torch.utils.data.Dataset):
    """Map-style patches: item i depends on (seed, epoch, i) only, so workers, order and resuming do not change it.

    A scan is drawn in proportion to its slices; then a place, rejecting those that are nearly all air around the
    patient; then, with `augment`, flips and quarter turns, the same for both images.

    Items: `{"low_hu", "full_hu": int16 (1, D, H, W) in HU, "noise_hu": float32 (D,) in HU, "spacing_mm": float32 (3,)
    as (z, y, x), "dose_fraction": float32 ()}` and the fields of `vocabulary`; the default collation stacks them.
    With a vocabulary, "dose_fraction" is there only if it is one of its conditions: a model is told nothing else.

    Args:
        dataset: rows of `load_paired_ct`; a list of them joins datasets of different matrix sizes.
        patch_size: (depth, height, width) in voxels.
        patches_per_epoch: length of the dataset.
        seed: of the drawing.
        augment: whether to flip and turn.
        noise_gain: (smallest, largest) factor, drawn evenly in its logarithm, on the difference between low and full
            dose: other doses of the same scan. None leaves the dose as it is; `dose_fraction` stays that of the scan.
        vocabulary: conditions that each item is to tell, as fields of `collate_conditions`; None for none. The dose
            is that of the scan, so it cannot be told together with `noise_gain`.

    Raises:
        ValueError: if a scan is smaller than the patch, or there is no scan.
    """

    def __init__(
        self,
        dataset: Dataset | Sequence[Dataset],
        patch_size: tuple[int, int, int],
        patches_per_epoch: int,
        *,
        seed: int,
        augment: bool = True,
        noise_gain: tuple[float, float] | None = None,
        vocabulary: ConditionVocabulary | None = None,
    ) -> None:
        self.datasets = [dataset] if isinstance(dataset, Dataset) else list(dataset)
        depth, height, width = (int(n) for n in patch_size)
        if patches_per_epoch < 1:
            raise ValueError(f"`patches_per_epoch` must be positive, got {patches_per_epoch}.")
        self.drawer = PatchDrawer((depth, height, width), augment, noise_gain)
        if noise_gain is not None and vocabulary is not None and "dose_fraction" in vocabulary.names:
            raise ValueError("`noise_gain` varies the dose, so the condition dose_fraction would lie: use one of them.")
        self._tells_dose = vocabulary is None or "dose_fraction" in vocabulary.names
        self.patch_size = (depth, height, width)
        self.patches_per_epoch = patches_per_epoch
        self.seed = seed
        self.epoch = 0
        self._rows: list[tuple[int, int]] = []
        self._noise_hu: list[np.ndarray] = []
        self._spacing_mm: list[np.ndarray] = []
        self._dose_fraction: list[float] = []
        self._shared: list[float] = []  # fraction of the low dose's noise variance that the full dose has too
        for number, rows in enumerate(self.datasets):
            light = rows.select_columns(["noise_hu", "spacing_mm", "dose_fraction", "target"]).with_format(None)[:]
            self._rows += [(number, index) for index in range(len(rows))]
            self._noise_hu += [np.array(noise, dtype=np.float32) for noise in light["noise_hu"]]
            self._spacing_mm += [np.array(spacing, dtype=np.float32) for spacing in light["spacing_mm"]]
            self._dose_fraction += light["dose_fraction"]
            self._shared += [
                0.0 if target == "noise_free" else dose for target, dose in zip(light["target"], light["dose_fraction"])
            ]
        self._fields: Fields = {}
        if vocabulary is not None and self._rows:
            texts = [text for rows in self.datasets for text in rows["conditions"]]
            conditions = [ScanConditions(**json.loads(text)) for text in texts]
            self._fields, _ = collate_conditions(
                conditions, vocabulary, spacing_mm=[tuple(s.tolist()) for s in self._spacing_mm], strict=False
            )
        if not self._rows:
            raise ValueError("There is no scan to draw patches from: the split is empty.")
        self._views: dict[tuple[int, str], np.ndarray] = {}
        depths = np.array([len(noise) for noise in self._noise_hu])
        self._check_size(depths)
        self._chance = np.cumsum(depths / depths.sum())

    def _check_size(self, depths: np.ndarray) -> None:
        depth, height, width = self.patch_size
        if depths.min() < depth:
            raise ValueError(
                f"A patch of {depth} slices does not fit: the thinnest scan has {depths.min()}, and "
                f"{(depths < depth).sum()} of {len(depths)} have fewer than {depth}. Use a `patch_size` with a "
                f"depth of at most {depths.min()}, or leave thin scans out: "
                f"`dataset.filter(lambda noise: len(noise) >= {depth}, input_columns='noise_hu')`."
            )
        for rows in self.datasets:
            _, rows_high, columns_wide = rows.features["full"].shape
            if rows_high < height or columns_wide < width:
                raise ValueError(
                    f"A patch of {height} x {width} voxels (`patch_size`) does not fit into the matrix of {rows_high} x "
                    f"{columns_wide}."
                )

    def set_epoch(self, epoch: int) -> None:
        """Changes every draw: call it before each epoch, with its number."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return self.patches_per_epoch

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self.patches_per_epoch:
            raise IndexError(f"Patch {index} of {self.patches_per_epoch}.")
        rng = np.random.default_rng([self.seed, self.epoch, index])
        scan = min(int(np.searchsorted(self._chance, rng.random(), side="right")), len(self._rows) - 1)
        pair = PatchScan(
            self._view(scan, "low"),
            self._view(scan, "full"),
            self._noise_hu[scan],
            self._spacing_mm[scan],
            self._dose_fraction[scan],
            self._shared[scan],
        )
        drawn = self.drawer.draw(rng, pair)
        if not self._tells_dose:
            del drawn["dose_fraction"]
        return {**{name: values[scan] for name, values in self._fields.items()}, **drawn}

    def _view(self, scan: int, column: str) -> np.ndarray:
        # A view holds offsets into the memory map, not the volume: keeping all of them costs nothing.
        if (scan, column) not in self._views:
            number, index = self._rows[scan]
            self._views[scan, column] = volume_view(self.datasets[number], index, column)
        return self._views[scan, column]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_views": {}}  # a pickled view would be a copy of the volume
