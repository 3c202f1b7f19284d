"""Volumes a model may be shown beside the noisy one: low dose, prior scan, neighbouring slices, MRI, PET, labels.

Any subset may be missing. NaN means "not known here": presence is a channel of its own and known for each voxel, so that
a missing image is one that is NaN everywhere, and a half of a scan is as good a condition as a whole one.
`normalise_image` is what needs the whole volume; everything in `encode_images` is pointwise, so that the encoding of a
patch is the patch of the encoding.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from .hounsfield import hu_to_companded, hu_to_unit
from .residual import CONDITION_WINDOWS

IMAGE_KINDS = ("low_dose", "prior", "context", "mri", "pet", "mask")

# Brightest positive voxels are left out of the scale of an MRI: vessels and voxels near a surface coil.
MRI_PERCENTILE = 99.0
# SUV that maps to 1; the bladder and the most avid lesions reach it, the liver (about 2) lies at -0.44.
PET_MAX_SUV = 50.0
_DROP_STREAM = 0x1A6E  # keeps the draws of `drop_images_at_random` apart from others made with the same seeds


def normalise_image(kind: str, volume: np.ndarray) -> np.ndarray:
    """Brings a whole volume into the unit `encode_images` expects; do it before patches are cut.

    HU (low_dose, prior, context), SUV in g/ml (pet) and labels (mask) are units already and only checked; an MRI,
    whose unit is arbitrary, is divided by the 99th percentile of its positive values.

    Args:
        kind: of `IMAGE_KINDS`.
        volume: (depth, height, width), NaN where it is not known.

    Returns:
        float32 of the same shape, NaN kept.

    Raises:
        ValueError: if the kind is unknown, the volume has another number of axes, an MRI has no positive value, or a
            label is not a whole number from 0 on.
    """
    _check_kinds([kind])
    if np.ndim(volume) != 3:
        raise ValueError(f"The {kind} volume must be (depth, height, width), got shape {np.shape(volume)}.")
    image = np.array(volume, dtype=np.float32)
    known = image[np.isfinite(image)]
    if kind == "mri" and known.size:
        positive = known[known > 0]
        if not positive.size:
            raise ValueError("The mri volume has no positive value: a missing one is left out or all NaN.")
        image /= np.percentile(positive, MRI_PERCENTILE).astype(np.float32)
    if kind == "mask" and ((known < 0) | (known != np.rint(known))).any():
        raise ValueError("The mask volume must hold whole numbers from 0 on (or NaN).")
    return image


def image_channels(kinds: Sequence[str], *, mask_classes: int = 0) -> int:
    """Number of channels of `encode_images`.

    Raises:
        ValueError: if a kind is unknown or stands twice, or `mask_classes` does not fit them.
    """
    _check_kinds(kinds, mask_classes)
    values = {"low_dose": len(CONDITION_WINDOWS), "prior": len(CONDITION_WINDOWS), "mask": mask_classes}
    return sum(values.get(kind, 1) + 1 for kind in kinds)


def encode_images(
    images: Mapping[str, torch.Tensor], kinds: Sequence[str], *, like: torch.Tensor, mask_classes: int = 0
) -> torch.Tensor:
    """Channels of the network for the images at hand.

    For each kind, in the order of `kinds`, its values in [-1, 1] and one channel of presence (1 where the voxel is
    finite, else 0); where a voxel is not present its values are 0. Values: low_dose and prior in three windows
    (full, soft tissue, lung); context on the companded scale; mri with 0 at -1 and its 99th percentile at 1; pet
    2 log(1 + SUV) / log(1 + 50) - 1; mask one-hot, 0 or 1.

    Args:
        images: kind -> (batch, 1, depth, height, width), out of `normalise_image`; an absent kind is missing.
        kinds: that the model knows.
        like: (batch, any, depth, height, width), whose size and device the result has.
        mask_classes: number of labels; 0 where no mask is among the kinds.

    Returns:
        (batch, image_channels(kinds), depth, height, width) float32.

    Raises:
        ValueError: if an image is not among the kinds or has another shape, or a label is not below `mask_classes`.
    """
    _check_kinds(kinds, mask_classes)
    if unknown := [name for name in images if name not in kinds]:
        raise ValueError(
            f"This model was not trained with the image {', '.join(map(repr, unknown))}: it takes "
            f"{', '.join(kinds) or 'none'}."
        )
    shape = (like.shape[0], 1, *like.shape[2:])
    channels = []
    for kind in kinds:
        image = images.get(kind)
        if image is None:
            image = torch.full(shape, math.nan)
        if tuple(image.shape) != shape:
            raise ValueError(
                f"The image {kind!r} must be (batch, 1, depth, height, width) = {shape} on the grid of the scan, got "
                f"{tuple(image.shape)}: resample it first."
            )
        image = image.to(like.device, torch.float32)
        present = image.isfinite()
        values = _encode(kind, torch.where(present, image, 0.0), mask_classes)
        channels += [torch.where(present, values, 0.0), present.float()]
    if not channels:
        return torch.zeros(like.shape[0], 0, *like.shape[2:], device=like.device)
    return torch.cat(channels, dim=1)


def _encode(kind: str, image: torch.Tensor, mask_classes: int) -> torch.Tensor:
    if kind in ("low_dose", "prior"):
        return torch.cat([hu_to_unit(image, window) for window in CONDITION_WINDOWS], dim=1)
    if kind == "context":
        return hu_to_companded(image)
    if kind == "mri":
        return (2.0 * image - 1.0).clip(-1.0, 1.0)
    if kind == "pet":
        return 2.0 * image.clip(0.0, PET_MAX_SUV).log1p() / math.log1p(PET_MAX_SUV) - 1.0
    labels = torch.arange(mask_classes, device=image.device).reshape(1, -1, 1, 1, 1)
    one_hot = (image == labels).float()
    if not one_hot.any(dim=1).all():
        raise ValueError(f"The mask must hold whole numbers from 0 to {mask_classes - 1} (or NaN).")
    return one_hot


def drop_images_at_random(
    images: Mapping[str, torch.Tensor], kinds: Sequence[str], seeds: torch.Tensor, *, each: float
) -> dict[str, torch.Tensor]:
    """Makes whole images of single items missing (NaN), so that a model learns to do with any subset.

    What happens to an item depends on its seed alone, and what happens to one kind not on which others there are.

    Args:
        images: kind -> (batch, 1, depth, height, width); nothing is changed in place.
        kinds: that may be dropped.
        seeds: (batch,) int64, one an item.
        each: probability for each kind on its own, in [0, 1].

    Raises:
        ValueError: if a kind is unknown or the probability out of its range.
    """
    _check_kinds(kinds)
    if not 0.0 <= each <= 1.0:
        raise ValueError(f"`each` is a probability and must be in [0, 1], got {each}.")
    draws = np.stack(
        [np.random.default_rng([_DROP_STREAM, int(seed) % 2**64]).random(len(IMAGE_KINDS)) for seed in seeds]
    )
    dropped = dict(images)
    for kind, draw in zip(IMAGE_KINDS, draws.T):
        if kind in kinds and kind in images:
            rows = torch.from_numpy(draw < each).to(images[kind].device).reshape(-1, 1, 1, 1, 1)
            dropped[kind] = images[kind].masked_fill(rows, math.nan)
    return dropped


def _check_kinds(kinds: Sequence[str], mask_classes: int | None = None) -> None:
    if unknown := [kind for kind in kinds if kind not in IMAGE_KINDS]:
        raise ValueError(
            f"Unknown image conditions {', '.join(map(repr, unknown))}: choose of {', '.join(IMAGE_KINDS)}."
        )
    if len(set(kinds)) != len(kinds):
        raise ValueError(f"An image condition stands twice in {list(kinds)}.")
    if mask_classes is not None and (mask_classes < 2 if "mask" in kinds else mask_classes != 0):
        need = "at least 2 for a mask" if "mask" in kinds else "0 without a mask among the image conditions"
        raise ValueError(f"`mask_classes` must be {need}, got {mask_classes}.")
