"""What a synthesis step minimises: v-prediction of a volume, given any subset of its conditions."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..hounsfield import hu_to_companded
from ..image_conditions import encode_images
from ..schedulers import alpha_sigma, check_scheduler_config, network_timesteps, sample_shift, x0_to_v
from .batch_conditions import check_dropping, dropped_fields, dropped_images
from .draws import draw_timesteps_and_noise, uniform


class SynthesisObjective:
    """v-prediction of the companded volume x0, given conditions of which each is dropped on its own.

    x_t = alpha_t x0 + sigma_t eps, loss = mean (model(x_t, t, conditions) - v)^2. With the image kind "context" a part
    of the items shows the model some of its own first or last slices, so that it learns to continue a volume.

    Args:
        model: a `ConditionalDenoiser`.
        noise_scheduler: v-prediction, from `make_noise_scheduler`; a `CTAdaptiveDDIMScheduler` takes the conditions that
            it adapts to from the batch, also those that are dropped for the network.
        image_kinds: image conditions of the model, in the order of its channels.
        drop_each: probability that a condition, or an image, is dropped on its own.
        drop_all: probability that all conditions and images of an item are dropped together.
        context_probability: share of the items that see some slices already there; needs "context" in `image_kinds`.
        mask_classes: labels of the image kind "mask".
        lesion_weight: of the error in a voxel of a lesion ("lesions" of the batch), 1 elsewhere; one number, or one for
            each label 1, 2, ... of "lesions", as faint kinds need more. A lesion fills a few per
            mille of a volume, so that findings are learned late or never at 1. Above 1 the optimum is no longer the
            posterior mean: a place that shows a lesion with probability p is drawn as if with
            w p / (1 + (w - 1) p), so lesions are overstated, and all the more the higher the weight: end a training with weight 1.

    Raises:
        ValueError: for settings that do not fit each other.

    References:
        Salimans and Ho 2022, arXiv:2202.00512 (v); Ho and Salimans 2022, arXiv:2207.12598 (dropped conditions);
        Liu et al. 2022, arXiv:2206.01714 (composition, which needs each condition dropped on its own).
    """

    def __init__(
        self,
        model: nn.Module,
        noise_scheduler: Any,
        *,
        image_kinds: Sequence[str] = (),
        drop_each: float = 0.1,
        drop_all: float = 0.1,
        context_probability: float = 0.0,
        mask_classes: int = 0,
        lesion_weight: float | Sequence[float] = 1.0,
    ) -> None:
        check_scheduler_config(noise_scheduler.config)
        if noise_scheduler.config.prediction_type != "v_prediction":
            raise ValueError("The synthesis objective predicts v: use `prediction_type='v_prediction'`.")
        check_dropping(drop_each=drop_each, drop_all=drop_all, context_probability=context_probability)
        if (context_probability > 0) != ("context" in image_kinds):
            raise ValueError(
                "`context_probability` must be positive where `image_kinds` has 'context', and 0 where it has not: got "
                f"{context_probability} with {list(image_kinds)}."
            )
        self.model = model
        self.noise_scheduler = noise_scheduler
        self.image_kinds = tuple(image_kinds)
        self.drop_each, self.drop_all = drop_each, drop_all
        self.context_probability = context_probability
        self.mask_classes = mask_classes
        weights = [lesion_weight] if isinstance(lesion_weight, int | float) else list(lesion_weight)
        if not weights or not all(weight >= 1.0 for weight in weights):
            raise ValueError(f"`lesion_weight` must be 1 or more, got {lesion_weight}.")
        self.lesion_weights = tuple(weights)

    def __call__(self, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor) -> dict[str, Any]:
        """One step's loss.

        Args:
            batch: "hu" (batch, 1, depth, height, width) in HU, "spacing_mm" (batch, 3), fields of
                `collate_conditions`, and "image_<kind>" (batch, 1, depth, height, width) from `normalise_image`;
                "lesions" (batch, 1, depth, height, width), 0 where there is none, for a `lesion_weight` above 1.
            seeds: (batch,) integers, from which all randomness of an item comes.
        """
        hu = batch["hu"].float()
        x0 = hu_to_companded(hu)
        timesteps, eps = draw_timesteps_and_noise(seeds, x0, self.noise_scheduler.config.num_train_timesteps)
        shift = sample_shift(self.noise_scheduler, batch)
        alpha, sigma = alpha_sigma(self.noise_scheduler, timesteps, log_snr_shift=shift)
        x_t = alpha * x0 + sigma * eps

        fields = dropped_fields(batch, seeds, each=self.drop_each, all_=self.drop_all)
        images = dropped_images(batch, self.image_kinds, seeds, each=self.drop_each, all_=self.drop_all)
        if self.context_probability:
            images["context"] = draw_context(hu, seeds, self.context_probability)
        channels = encode_images(images, self.image_kinds, like=x_t, mask_classes=self.mask_classes)

        sample = torch.cat([x_t, channels], dim=1)
        told = network_timesteps(self.noise_scheduler, timesteps, shift)
        prediction = self.model(sample, told, fields=fields, spacing_mm=batch["spacing_mm"]).sample
        errors = (prediction.float() - x0_to_v(x0, eps, alpha, sigma)).square()
        if set(self.lesion_weights) == {1.0}:
            return {"loss": errors.mean()}
        labels = batch["lesions"].long()
        if len(self.lesion_weights) == 1:
            labels = labels.clip(max=1)
        weights = errors.new_tensor([1.0, *self.lesion_weights])[labels]
        return {"loss": (weights * errors).mean(), "loss_unweighted": errors.mean().detach()}


def draw_context(hu: torch.Tensor, seeds: torch.Tensor, probability: float) -> torch.Tensor:
    """HU of a random number of first or last slices, NaN elsewhere; all NaN with 1 - `probability`.

    Args:
        hu: (batch, 1, depth, height, width).
        seeds: (batch,).
        probability: that an item has context.
    """
    depth = hu.shape[2]
    context = torch.full_like(hu, torch.nan)
    for row, (has, share, end) in enumerate(uniform(seeds, 3, stream="context").tolist()):
        count = 1 + int(share * (depth - 1))  # 1 to depth - 1: something is left to make
        if has < probability and count < depth:
            known = slice(0, count) if end < 0.5 else slice(depth - count, depth)
            context[row, :, known] = hu[row, :, known]
    return context
