"""Slabs of whole slices at full dose: what low doses are simulated from while a model trains."""

import json
from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset

from .patches import volume_view

_OF_THE_LOW_DOSE = ("seed", "simulator", "simulator_from", "simulator_version")  # of a row's provenance


class FullDoseSlabs(torch.utils.data.Dataset):
    """Map-style slabs of whole slices: item i depends on (seed, epoch, i) only. A scan is drawn in proportion to its slices.

    Items: `{"full_hu": int16 (1, D, H, W) in HU, "spacing_mm": float32 (3,) as (z, y, x), "slice_thickness_mm": float32
    (), "noise_free": bool ()}`; `OnlineSimulation` makes training pairs of a batch of them. All scans have one matrix.

    Args:
        dataset: rows of `load_unpaired_ct` at normal dose, or of `load_paired_ct`, whose "full" is taken.
        depth: slices of a slab.
        slabs_per_epoch: length of the dataset.
        seed: of the drawing.

    Raises:
        ValueError: if there is no scan, one is thinner than a slab, has pixels that are not square, or is of low dose.
    """

    def __init__(self, dataset: Dataset, depth: int, slabs_per_epoch: int, *, seed: int) -> None:
        if min(depth, slabs_per_epoch) < 1:
            raise ValueError(f"`depth` and `slabs_per_epoch` must be positive, got {depth} and {slabs_per_epoch}.")
        self.dataset = dataset
        self.depth = depth
        self.slabs_per_epoch = slabs_per_epoch
        self.seed = seed
        self.epoch = 0
        self.column = "full" if "full" in dataset.column_names else "volume"
        if "dose" in dataset.column_names and (low := sum(dose != "normal" for dose in dataset["dose"])):
            raise ValueError(
                f"{low} of {len(dataset)} scans are of low dose: take the others, "
                "`dataset.filter(lambda dose: dose == 'normal', input_columns='dose')`."
            )
        targets = dataset["target"] if "target" in dataset.column_names else ["normal_dose"] * len(dataset)
        # The full dose of a measured pair is a clinical image as any other.
        self._noise_free = [target == "noise_free" for target in targets]
        # Several low doses of one scan share their full dose: each scan once, or it would be drawn more often.
        self._rows = _distinct(dataset)
        light = dataset.select_columns(["noise_hu", "spacing_mm", "conditions"]).with_format(None)[:]
        self._depths = [len(light["noise_hu"][row]) for row in self._rows]
        self._spacing_mm = light["spacing_mm"]
        self._thickness_mm = [json.loads(text).get("slice_thickness_mm") for text in light["conditions"]]
        self._check()
        self._chance = np.cumsum(np.array(self._depths) / np.sum(self._depths))
        self._views: dict[int, np.ndarray] = {}

    def _check(self) -> None:
        if not self._rows:
            raise ValueError("There is no scan to draw slabs from: the split is empty.")
        if min(self._depths) < self.depth:
            raise ValueError(
                f"A slab of {self.depth} slices does not fit: the thinnest scan has {min(self._depths)}. Use a smaller "
                "`depth`, or leave thin scans out."
            )
        for row in self._rows:
            _, y, x = self._spacing_mm[row]
            if abs(y - x) > 1e-3 * x:
                raise ValueError(f"The simulation needs square pixels, scan {row} has {y} x {x} mm: resample it first.")

    def set_epoch(self, epoch: int) -> None:
        """Changes every draw: call it before each epoch, with its number."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return self.slabs_per_epoch

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self.slabs_per_epoch:
            raise IndexError(f"Slab {index} of {self.slabs_per_epoch}.")
        rng = np.random.default_rng([self.seed, self.epoch, index])
        scan = min(int(np.searchsorted(self._chance, rng.random(), side="right")), len(self._rows) - 1)
        row = self._rows[scan]
        if row not in self._views:
            self._views[row] = volume_view(self.dataset, row, self.column)
        start = int(rng.integers(0, self._depths[scan] - self.depth + 1))
        spacing = self._spacing_mm[row]
        return {
            "full_hu": torch.from_numpy(self._views[row][start : start + self.depth].copy())[None],
            "spacing_mm": torch.tensor(spacing, dtype=torch.float32),
            "slice_thickness_mm": torch.tensor(self._thickness_mm[row] or spacing[0], dtype=torch.float32),
            "noise_free": torch.tensor(self._noise_free[row]),
        }


def _distinct(dataset: Dataset) -> list[int]:
    """The first row of each scan: rows of a prepared dataset with the same source, patient and place."""
    if "full" not in dataset.column_names:
        return list(range(len(dataset)))
    light = dataset.select_columns(["patient_key", "affine_lps", "noise_hu", "provenance"]).with_format(None)[:]
    found: dict[tuple, int] = {}
    columns: Sequence = [light[name] for name in ("patient_key", "affine_lps", "noise_hu", "provenance")]
    for row, (patient, affine, noise, text) in enumerate(zip(*columns)):
        facts = {k: v for k, v in json.loads(text).items() if k not in _OF_THE_LOW_DOSE}
        key = (patient, tuple(affine), len(noise), json.dumps(facts, sort_keys=True))
        found.setdefault(key, row)
    return list(found.values())
