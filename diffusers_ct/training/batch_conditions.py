"""The conditions in a training batch, with some of them dropped."""

from collections.abc import Mapping, Sequence

import torch

from ..conditions import CONDITION_NAMES
from ..image_conditions import drop_images_at_random
from ..models import drop_fields_at_random, dropped_together

_FIELDS = (*CONDITION_NAMES, "text_states", "text_mask")


def check_dropping(**probabilities: float) -> None:
    """Refuses what is no probability.

    Raises:
        ValueError: naming it.
    """
    for name, value in probabilities.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"`{name}` is a probability, got {value}.")


def dropped_fields(
    batch: Mapping[str, torch.Tensor], seeds: torch.Tensor, *, each: float, all_: float
) -> dict[str, torch.Tensor]:
    """The batch's fields of `collate_conditions`, each unknown with probability `each`, all with `all_`."""
    fields = {name: batch[name] for name in _FIELDS if name in batch}
    return drop_fields_at_random(fields, seeds, each=each, all_=all_)


def dropped_images(
    batch: Mapping[str, torch.Tensor], kinds: Sequence[str], seeds: torch.Tensor, *, each: float, all_: float
) -> dict[str, torch.Tensor]:
    """The batch's "image_<kind>", each missing with probability `each`, and all with an item's conditions.

    Guidance by one number nulls conditions and images together, so they must be missing together in training.
    """
    images = {kind: batch[f"image_{kind}"].float() for kind in kinds if f"image_{kind}" in batch}
    images = drop_images_at_random(images, kinds, seeds, each=each)
    gone = dropped_together(seeds, all_)[:, None, None, None, None]
    return {kind: image.masked_fill(gone.to(image.device), torch.nan) for kind, image in images.items()}
