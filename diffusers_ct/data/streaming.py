"""Patches from a stream of scans, so that training can begin before a dataset on the Hub has been downloaded."""

import hashlib
import json
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import torch
from datasets import IterableDataset

from ..conditions import ConditionVocabulary, ScanConditions, collate_conditions
from .patch_drawing import PatchDrawer, PatchScan
from .patches import volume_of

_COLUMNS = ["scan_key", "low", "full", "noise_hu", "spacing_mm", "dose_fraction", "target", "conditions"]


class StreamingPatches(torch.utils.data.IterableDataset):
    """Iterable counterpart of `PatchDataset` for rows that come one after the other; items are the same dicts.

    Every scan gives about `patches_per_slice` patches a slice, which depend on (seed, epoch, scan) alone: the patches of
    an epoch are the same for any number of workers, and only their order differs. The scans' files come in another
    order in each epoch; patches of different scans are mixed in a buffer. A worker has one scan in memory, and files are
    dealt out to the workers, so more workers than files leave some idle. For several training processes split the
    rows first (`datasets.distributed.split_dataset_by_node`).

    Args:
        dataset: rows of `load_paired_ct(..., streaming=True)`.
        patch_size: (depth, height, width) in voxels.
        patches_per_slice: patches drawn from a scan, for each of its slices; may be less than 1.
        seed: of the drawing.
        augment: whether to flip and turn.
        noise_gain: as in `PatchDataset`.
        vocabulary: as in `PatchDataset`.
        mixed: patches in the buffer of each worker; 1 gives those of a scan one after the other.

    Raises:
        ValueError: for settings that mean nothing; while iterating, if a scan is smaller than the patch.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        patch_size: tuple[int, int, int],
        *,
        patches_per_slice: float,
        seed: int,
        augment: bool = True,
        noise_gain: tuple[float, float] | None = None,
        vocabulary: ConditionVocabulary | None = None,
        mixed: int = 256,
    ) -> None:
        if not isinstance(dataset, IterableDataset):
            raise ValueError("`dataset` must be opened with `streaming=True`; for other datasets use `PatchDataset`.")
        depth, height, width = (int(n) for n in patch_size)
        self.drawer = PatchDrawer((depth, height, width), augment, noise_gain)
        if not patches_per_slice > 0 or mixed < 1:
            raise ValueError(f"`patches_per_slice` and `mixed` must be positive, got {patches_per_slice} and {mixed}.")
        if noise_gain is not None and vocabulary is not None and "dose_fraction" in vocabulary.names:
            raise ValueError("`noise_gain` varies the dose, so the condition dose_fraction would lie: use one of them.")
        self.dataset = (
            dataset.select_columns(_COLUMNS)
            .with_format("arrow")
            .shuffle(
                seed=seed,
                buffer_size=1,
                max_buffer_input_shards=1,  # the order of the files; one scan in memory
            )
        )
        self.patches_per_slice = patches_per_slice
        self.seed = seed
        self.vocabulary = vocabulary
        self.mixed = mixed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that persist see it change

    def set_epoch(self, epoch: int) -> None:
        """Changes every draw: call it before each epoch, with its number."""
        self._epoch.fill_(int(epoch))
        self.dataset.set_epoch(int(epoch))

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        epoch, worker = int(self._epoch), torch.utils.data.get_worker_info()
        self.dataset.set_epoch(epoch)
        rng = np.random.default_rng([self.seed, epoch, worker.id if worker else 0])
        buffer: list[dict[str, torch.Tensor]] = []
        for row in self.dataset:
            for patch in self._patches(row, epoch):
                if len(buffer) < self.mixed:
                    buffer.append(patch)
                    continue
                place = int(rng.integers(self.mixed))
                buffer[place], patch = patch, buffer[place]
                yield patch
        for place in rng.permutation(len(buffer)):
            yield buffer[place]

    def _patches(self, row: pa.Table, epoch: int) -> Iterator[dict[str, torch.Tensor]]:
        light = row.drop_columns(["low", "full"]).to_pylist()[0]
        key = int.from_bytes(hashlib.sha256(light["scan_key"].encode()).digest()[:8], "big")
        rng = np.random.default_rng([self.seed, epoch, key])
        dose = float(light["dose_fraction"])
        scan = PatchScan(
            low=volume_of(row, "low"),
            full=volume_of(row, "full"),
            noise_hu=np.array(light["noise_hu"], dtype=np.float32),
            spacing_mm=np.array(light["spacing_mm"], dtype=np.float32),
            dose_fraction=dose,
            shared=0.0 if light["target"] == "noise_free" else dose,
        )
        if any(n < size for n, size in zip(scan.full.shape, self.drawer.patch_size)):
            raise ValueError(
                f"A patch of {self.drawer.patch_size} voxels does not fit into the {scan.full.shape} of scan "
                f"{light['scan_key']}: use smaller patches, or leave such scans out with "
                "`dataset.filter(lambda noise: len(noise) >= depth, input_columns='noise_hu')`."
            )
        fields = {}
        if self.vocabulary is not None:
            conditions = [ScanConditions(**json.loads(light["conditions"]))]
            spacing_mm = [tuple(light["spacing_mm"])]
            batch, _ = collate_conditions(conditions, self.vocabulary, spacing_mm=spacing_mm, strict=False)
            fields = {name: values[0] for name, values in batch.items()}
        for _ in range(int(self.patches_per_slice * len(scan.full) + rng.random())):
            drawn = self.drawer.draw(rng, scan)
            if self.vocabulary is not None and "dose_fraction" not in self.vocabulary.names:
                del drawn["dose_fraction"]
            yield {**fields, **drawn}
