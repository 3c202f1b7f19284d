"""The network with its conditions and its guidance, as one function of (noisy field, timestep).

Guidance acts on denoisers (x_t, t) -> x0 (see `diffusers_ct.guidance`), whatever the network predicts; without any, the
network's own prediction is passed on untouched.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..conditions import Fields
from ..guidance import (
    ClassifierFreeGuidance,
    ClassifierGuidance,
    Denoiser,
    LogProbability,
    check_interval,
    check_scale,
    denoiser_from_prediction,
    prediction_from_x0,
)
from ..models import null_fields
from ..schedulers import alpha_sigma, network_timesteps, without_pure_noise
from .tiling import Size, evaluate_tiled

Box = tuple[slice, slice, slice]
NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True)
class GuidanceSettings:
    """How strongly sampling follows the conditions; the defaults are no guidance.

    Attributes:
        scale: classifier-free, one number for all conditions together or one by condition; 1 is none.
        rescale: share of the guided estimate that gets the spread of the unguided one.
        interval: fractions of the noise schedule between which guidance acts.
        classifiers: log probabilities of what is asked for, with their scales.

    Raises:
        TypeError: for a scale of a classifier that is not a number.
        ValueError: for one that is negative, a share outside [0, 1], or an empty interval.
    """

    scale: float | Mapping[str, float] = 1.0
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    classifiers: Sequence[tuple[LogProbability, float]] = ()

    def __post_init__(self) -> None:
        if not 0.0 <= self.rescale <= 1.0:
            raise ValueError(f"`guidance_rescale` must be in [0, 1], got {self.rescale}.")
        check_interval(self.interval)
        for number, (_, scale) in enumerate(self.classifiers):
            check_scale(f"classifier {number}", scale)

    def with_classifiers(self, more: Sequence[tuple[LogProbability, float]]) -> "GuidanceSettings":
        """These settings with further classifiers."""
        return replace(self, classifiers=(*self.classifiers, *more))

    @property
    def classifier_free(self) -> bool:
        scales = self.scale.values() if isinstance(self.scale, Mapping) else [self.scale]
        return any(scale != 1.0 for scale in scales)

    @property
    def acts(self) -> bool:
        """Whether anything is guided."""
        return self.classifier_free or bool(self.classifiers)


@dataclass
class GuidedNetwork:
    """What a sampling loop calls.

    Attributes:
        unet: the network.
        scheduler: whose prediction type and noise schedule hold.
        condition_encoder: None for a network without conditions.
        fields: of `collate_conditions`, one row a sample; None without conditions.
        encode_images: f(box, nulled names) -> (1 or batch, channels, *box), all that is concatenated to the sample.
        vector: (1 or batch, n) of numbers that are never nulled; None for none.
        spacing_mm: (1, 3) as (z, y, x).
        known: names that guidance may null, of conditions and images.
        numbers: conditions as numbers, (1 or batch,) each, for an adaptive noise schedule.
        guidance: how strongly.
        tile: (depth, height, width) of a tile.
        overlap: of tiles.
        blind_at_zero_snr: whether the network was trained with zeros in place of pure noise (`without_pure_noise`).
    """

    unet: Any
    scheduler: Any
    condition_encoder: Any
    fields: Fields | None
    encode_images: Callable[[Box, frozenset[str]], torch.Tensor | None]
    vector: torch.Tensor | None
    spacing_mm: torch.Tensor
    known: Sequence[str]
    numbers: Mapping[str, torch.Tensor]
    guidance: GuidanceSettings
    tile: Size
    overlap: Size
    blind_at_zero_snr: bool
    _encoded: dict[tuple[frozenset[str], int], Any] = field(default_factory=dict)

    def predict(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """What `scheduler.step` takes as the model's output, float32, for latents (batch, 1, D, H, W)."""
        x_t = self.scheduler.scale_model_input(latents, timestep)
        if not self.guidance.acts:
            return self._evaluate(x_t, timestep, [NOTHING])[0]
        return prediction_from_x0(self.scheduler, self._denoiser()(x_t, timestep), x_t, timestep)

    def predict_scaled(self, x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The network's own prediction, unguided, for latents that the scheduler has scaled already."""
        return self._evaluate(x_t, timestep, [NOTHING])[0]

    def _denoiser(self) -> Denoiser:
        guidance = self.guidance

        denoiser: Denoiser = denoiser_from_prediction(
            self.scheduler, lambda x_t, timestep: self._evaluate(x_t, timestep, [NOTHING])[0]
        )
        if guidance.classifier_free:
            denoiser = ClassifierFreeGuidance(
                self._denoise,
                guidance.scale,
                known=self.known,
                rescale=guidance.rescale,
                interval=guidance.interval,
                num_train_timesteps=self.scheduler.config.num_train_timesteps,
            )
        if guidance.classifiers:
            denoiser = ClassifierGuidance(denoiser, guidance.classifiers, self.scheduler, interval=guidance.interval)
        return denoiser

    def _denoise(
        self, x_t: torch.Tensor, timestep: torch.Tensor, nulled: Sequence[frozenset[str]]
    ) -> list[torch.Tensor]:
        predictions = self._evaluate(x_t, timestep, nulled)
        return [denoiser_from_prediction(self.scheduler, lambda *_, p=p: p)(x_t, timestep) for p in predictions]

    def _evaluate(
        self, x_t: torch.Tensor, timestep: torch.Tensor, nulled: Sequence[frozenset[str]]
    ) -> list[torch.Tensor]:
        """The network's predictions with each set of conditions nulled, all in one batch, blended over tiles."""
        if self.blind_at_zero_snr:
            x_t = without_pure_noise(x_t, alpha_sigma(self.scheduler, timestep.reshape(-1), ndim=x_t.ndim)[0])
        batch, dtype = len(x_t), self.unet.dtype
        arguments: dict[str, torch.Tensor] = {}
        encoded = [self._encode(names, batch) for names in nulled]
        pooled = [e.pooled for e in encoded if e is not None]
        parts = [self.vector.expand(batch, -1).repeat(len(nulled), 1)] if self.vector is not None else []
        if pooled:
            parts.append(torch.cat(pooled))
        if parts:
            arguments["pooled"] = torch.cat(parts, dim=1).to(dtype)
        if pooled and self.unet.config.get("cross_attention_dim"):
            arguments["encoder_hidden_states"] = torch.cat([e.tokens for e in encoded]).to(dtype)
            arguments["encoder_attention_mask"] = torch.cat([e.mask for e in encoded])
        if self.unet.needs_spacing:
            arguments["spacing_mm"] = self.spacing_mm.expand(batch * len(nulled), -1)

        def evaluate(box: Box) -> torch.Tensor:
            cut = x_t[:, :, *box]
            samples = []
            for names in nulled:
                channels = self.encode_images(box, names)
                shown = [cut] if channels is None else [cut, channels.expand(batch, -1, -1, -1, -1)]
                samples.append(torch.cat(shown, dim=1))
            return self.unet(torch.cat(samples).to(dtype), told, **arguments, return_dict=False)[0]

        told = network_timesteps(self.scheduler, timestep)
        if told.ndim:
            told = told.expand(batch).repeat(len(nulled))
        size: Size = (x_t.shape[2], x_t.shape[3], x_t.shape[4])
        out = evaluate_tiled(evaluate, batch * len(nulled), size, self.tile, self.overlap, self.unet.size_factor)
        return list(out.chunk(len(nulled)))

    def _encode(self, names: frozenset[str], batch: int) -> Any:
        """Conditions do not change with the timestep: each set of nulled ones is encoded once."""
        if self.condition_encoder is None or self.fields is None:
            return None
        key = (names, batch)
        if key not in self._encoded:
            fields = {name: _rows(values, batch) for name, values in self.fields.items()}
            inside = [name for name in names if name in self.condition_encoder.config.conditions]
            self._encoded[key] = self.condition_encoder(null_fields(fields, inside), batch_size=batch)
        return self._encoded[key]


def _rows(values: torch.Tensor, batch: int) -> torch.Tensor:
    return values.expand(batch, *values.shape[1:]) if len(values) == 1 else values
