"""Volumes with their conditions, for synthesis and for classifiers: from a prepared dataset or from phantoms."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..conditions import ConditionVocabulary, ScanConditions, collate_conditions
from ..image_conditions import normalise_image
from ..physics import CONTRAST_PHASES, LESION_KINDS, LESION_KINDS_OF_REGION, PHANTOM_VERSION, make_phantom
from .manifest import to_int16_hu
from .patches import volume_view

# What synthesis and its judges know; phantoms have more regions and kinds.
REGIONS = ("thorax", "abdomen")
FINDINGS = tuple(kind for kind in LESION_KINDS if any(kind in LESION_KINDS_OF_REGION[region] for region in REGIONS))


@dataclass(frozen=True, eq=False)
class ConditionedVolume:
    """One scan as training data.

    Attributes:
        hu: (depth, height, width) int16 in HU.
        spacing_mm: (z, y, x).
        conditions: what is known of it.
        lesions: (depth, height, width) uint8, 0 or 1 + the index of the lesion's kind in `LESION_KINDS`; None where the
            truth is not known, or was not asked for.
        images: image conditions by kind ("mri", "pet", ...) on the grid of the scan, in their own units; NaN where not
            known.
    """

    hu: np.ndarray
    spacing_mm: tuple[float, float, float]
    conditions: ScanConditions
    lesions: np.ndarray | None = None
    images: Mapping[str, np.ndarray] = field(default_factory=dict)


class ConditionedVolumes(torch.utils.data.Dataset):
    """Map-style slabs with conditions: item i depends on (seed, epoch, i) only.

    A scan is drawn evenly, then a place in it. Nothing is flipped: left and right, head and feet are anatomy.
    `findings` are facts of the whole scan: take slabs as deep as the scans where a finding must be seen in each slab.

    Items: `{"hu": float32 (1, D, H, W) in HU, "spacing_mm": float32 (3,), ...fields of `collate_conditions`}`, and
    "image_<kind>" (1, D, H, W) in network units for each image that some scan has, NaN where it is not known; and
    "lesions" uint8 (1, D, H, W) if the truth of every scan is known.

    Args:
        volumes: the scans.
        vocabulary: which conditions, and their known values; what it does not know is unknown.
        size: (depth, height, width) of a slab in voxels.
        items_per_epoch: length of the dataset.
        seed: of the drawing.

    Raises:
        ValueError: if there is no scan, or one is smaller than the slab.
    """

    def __init__(
        self,
        volumes: Sequence[ConditionedVolume],
        vocabulary: ConditionVocabulary,
        size: tuple[int, int, int],
        items_per_epoch: int,
        *,
        seed: int,
    ) -> None:
        if not volumes:
            raise ValueError("There is no scan to draw from.")
        if min(*size, items_per_epoch) < 1:
            raise ValueError(f"`size` and `items_per_epoch` must be positive, got {size} and {items_per_epoch}.")
        for volume in volumes:
            if any(n < wanted for n, wanted in zip(volume.hu.shape, size)):
                raise ValueError(
                    f"A slab of {tuple(size)} voxels does not fit into a scan of {volume.hu.shape}: use a smaller slab, "
                    "or leave small scans out."
                )
        self.volumes = list(volumes)
        self.vocabulary = vocabulary
        self.size = tuple(size)
        self.items_per_epoch = items_per_epoch
        self.seed = seed
        self.epoch = 0
        self.image_kinds = sorted({kind for volume in volumes for kind in volume.images})
        self.lesions_known = all(volume.lesions is not None for volume in volumes)
        # Scaled over the whole volume, before slabs are cut.
        self.images = [{kind: normalise_image(kind, image) for kind, image in v.images.items()} for v in volumes]
        self.fields, _ = collate_conditions(
            [v.conditions for v in volumes], vocabulary, spacing_mm=[v.spacing_mm for v in volumes], strict=False
        )

    def set_epoch(self, epoch: int) -> None:
        """Changes every draw: call it before each epoch, with its number."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return self.items_per_epoch

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self.items_per_epoch:
            raise IndexError(f"Item {index} of {self.items_per_epoch}.")
        rng = np.random.default_rng([self.seed, self.epoch, index])
        scan = int(rng.integers(len(self.volumes)))
        volume = self.volumes[scan]
        start = [int(rng.integers(0, n - wanted + 1)) for n, wanted in zip(volume.hu.shape, self.size)]
        z, y, x = (slice(a, a + n) for a, n in zip(start, self.size))
        hu = torch.from_numpy(volume.hu[z, y, x].astype(np.float32))[None]
        spacing = torch.tensor(volume.spacing_mm, dtype=torch.float32)
        images = {}
        for kind in self.image_kinds:
            image = self.images[scan].get(kind)
            cut = np.full(self.size, np.nan, np.float32) if image is None else image[z, y, x]
            images[f"image_{kind}"] = torch.from_numpy(np.ascontiguousarray(cut))[None]
        if self.lesions_known and volume.lesions is not None:
            images["lesions"] = torch.from_numpy(np.ascontiguousarray(volume.lesions[z, y, x]))[None]
        return {
            **images,
            "hu": hu,
            "spacing_mm": spacing,
            **{name: values[scan] for name, values in self.fields.items()},
        }


def volumes_from_rows(rows: Dataset) -> list[ConditionedVolume]:
    """The full-dose volumes of a prepared dataset, each scan once; the voxels stay in the Arrow buffers.

    A row's conditions are those of its low-dose image: here `dose_fraction` is 1, and the mAs of a measured pair, which
    is that of the low-dose header, is unknown.
    """
    light = rows.select_columns(["patient_key", "spacing_mm", "conditions", "target"]).with_format(None)[:]
    found: dict[tuple, ConditionedVolume] = {}
    for index, (patient, spacing, text, target) in enumerate(
        zip(light["patient_key"], light["spacing_mm"], light["conditions"], light["target"])
    ):
        hu = volume_view(rows, index, "full")
        key = (patient, hu.shape, hashlib.sha256(hu.data).digest())
        if key not in found:  # several doses of one scan share their full-dose volume
            conditions = replace(ScanConditions(**json.loads(text)), dose_fraction=1.0)
            if target == "same_scan":
                conditions = replace(conditions, tube_current_mas=None)
            z, y, x = spacing
            found[key] = ConditionedVolume(hu, (z, y, x), conditions)
    return list(found.values())


def phantom_volumes(
    count: int,
    *,
    first_seed: int,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    lesion_radius_mm: tuple[float, float],
    cache: Path | None = None,
    with_lesions: bool = False,
    processes: int = 2,
) -> list[ConditionedVolume]:
    """Phantoms whose conditions are balanced and independent: region, contrast phase, each kind of lesion.

    Every kind of the region is present with probability 0.4. Phantom `first_seed + i` is the same in every call.

    Args:
        count: how many.
        first_seed: of the first; keep the seeds of training and test apart.
        shape: (depth, height, width).
        spacing_mm: (z, y, x).
        lesion_radius_mm: (smallest, largest).
        cache: .npz file to keep them in; one made with other arguments is refused.
        with_lesions: keep the lesions' truth too.
        processes: that draw phantoms.

    Raises:
        ValueError: for a cache of another set.
    """
    wanted = {
        "count": count,
        "first_seed": first_seed,
        "shape": list(shape),
        "spacing_mm": list(spacing_mm),
        "lesion_radius_mm": list(lesion_radius_mm),
        "phantom_version": PHANTOM_VERSION,
        **({"with_lesions": True} if with_lesions else {}),
    }
    if cache is not None and cache.exists():
        with np.load(cache, allow_pickle=False) as held:
            made = json.loads(str(held["made_with"]))
            if made != wanted:
                raise ValueError(f"{cache} holds another set of phantoms ({made}): delete it, or name another file.")
            conditions = [ScanConditions(**c) for c in json.loads(str(held["conditions"]))]
            truths = held["lesions"] if with_lesions else [None] * count
            return [ConditionedVolume(hu, spacing_mm, c, t) for hu, c, t in zip(held["hu"], conditions, truths)]
    plans = [
        (seed, shape, spacing_mm, lesion_radius_mm, with_lesions) for seed in range(first_seed, first_seed + count)
    ]
    if processes > 1:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            volumes = list(pool.map(_one_phantom, plans, chunksize=8))
    else:
        volumes = [_one_phantom(plan) for plan in plans]
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_name(f".{cache.stem}.partial.npz")
        held_arrays: dict[str, Any] = {
            "hu": np.stack([v.hu for v in volumes]),
            "conditions": json.dumps([v.conditions.to_dict() for v in volumes]),
            "made_with": json.dumps(wanted),
        }
        if with_lesions:
            held_arrays["lesions"] = np.stack([v.lesions for v in volumes if v.lesions is not None])
        np.savez(partial, **held_arrays)
        partial.replace(cache)
    return volumes


def _one_phantom(
    plan: tuple[int, tuple[int, int, int], tuple[float, float, float], tuple[float, float], bool],
) -> ConditionedVolume:
    seed, shape, spacing_mm, lesion_radius_mm, with_lesions = plan
    # The draw of the conditions is independent of the phantom's own: no anatomy goes with a finding by chance.
    rng = np.random.default_rng([seed, 4711])
    region = str(rng.choice(REGIONS))
    phase = str(rng.choice(CONTRAST_PHASES))
    findings = [kind for kind in LESION_KINDS_OF_REGION[region] if rng.random() < 0.4]
    phantom = make_phantom(
        seed,
        region,  # type: ignore[arg-type]
        shape=shape,
        spacing_mm=spacing_mm,
        contrast_phase=phase,
        findings=findings,
        lesion_radius_mm=lesion_radius_mm,
    )
    lesions = None
    if with_lesions:
        kinds = [0, *(1 + LESION_KINDS.index(lesion.kind) for lesion in phantom.lesions)]
        lesions = np.array(kinds, dtype=np.uint8)[phantom.lesion_mask]
    conditions = phantom.volume.conditions
    absent = tuple(kind for kind in conditions.findings_absent if kind in FINDINGS)
    conditions = replace(conditions, findings_absent=absent)
    return ConditionedVolume(to_int16_hu(phantom.volume.hu), spacing_mm, conditions, lesions)
