"""`NoiseAwareClassifier`: p(y | x_t, t), what a noisy volume shows, as log probabilities that guide sampling."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log, prod
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.utils import BaseOutput
from torch import nn

from .blocks import CTResBlock, check_layout, conv_nd, norm_nd
from .condition_encoder import AGE_CENTRE_YEARS, AGE_SPREAD_YEARS, Fields
from .log_probabilities import (
    bernoulli_log_probability,
    categorical_log_probability,
    gaussian_log_probability,
    ordinal_log_probability,
)
from .saved_model import SavedModel
from .unet_3d_ct import space_to_depth

HEADS = ("findings", "body_part", "dose_fraction", "age_years")
_LOG_VARIANCE_RANGE = 8.0  # of age in units of its spread: from half a year to a thousand years, smoothly bounded
_SHARPNESS = 4.0  # of the pooling when training begins; its features have a variance near 1
_SMALLEST_GAP = 1e-3  # between ordinal thresholds, in logits


@dataclass
class NoiseClassifierOutput(BaseOutput):
    """Output of `NoiseAwareClassifier`; None for heads that it has not.

    Attributes:
        findings: (batch, findings) logits of presence.
        body_part: (batch, body parts) logits.
        dose_fraction: (batch, thresholds) logits of "the dose fraction is above the threshold", falling.
        age_years: (batch, 2), mean in years and log variance in log years^2.
        log_probabilities: by head, (batch,) in nats, if targets were given; 0 for an unknown target.
    """

    findings: torch.Tensor | None = None
    body_part: torch.Tensor | None = None
    dose_fraction: torch.Tensor | None = None
    age_years: torch.Tensor | None = None
    log_probabilities: dict[str, torch.Tensor] | None = None


class NoiseAwareClassifier(SavedModel):
    """The encoder half of `UNet3DCTModel` with a head for each thing that it judges.

    Each channel is pooled over the volume twice: by its mean, and with weights of its own that the network chooses, so
    that a small lesion is not averaged away (attention pooling). A target is encoded as by `collate_conditions`.

    Args:
        in_channels: of the noisy sample.
        findings: names of the findings; empty for no such head.
        body_parts: names of the body parts; empty for no such head.
        dose_thresholds: rising dose fractions between the classes of the dose head; empty for no such head.
        age: whether there is an age head.
        target: what its noisy samples are made of, as a pipeline's: "image" (companded HU) or "residual".
        block_out_channels: width of each level, finest first.
        layers_per_block: residual blocks per level.
        conv_mode: "3d" or "2.5d", see `UNet3DCTModel`.
        patch_size: (z, y, x) voxels per patch of the stem.
        downsample_strides: flat list of (z, y, x) strides between levels, 3 numbers for each step down.
        norm_type: "group" or "rms".
        norm_num_groups: groups of the group norm, reduced where they do not divide the channels.

    Raises:
        ValueError: if the arguments do not fit each other.

    References:
        Dhariwal and Nichol 2021, arXiv:2105.05233, section 4 (classifiers of noisy samples); Ilse et al. 2018,
        arXiv:1802.04712, eq. 8 (attention pooling); McCullagh 1980, doi:10.1111/j.2517-6161.1980.tb01109.x
        (cumulative logits); Nix and Weigend 1994, doi:10.1109/ICNN.1994.374138 (mean and variance regression).
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["CTResBlock"]  # noqa: RUF012 (diffusers' own form)
    _repeated_blocks = ["CTResBlock"]  # noqa: RUF012
    _skip_layerwise_casting_patterns = ["norm", "embedding", "stem", "head"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        findings: Sequence[str] = (),
        body_parts: Sequence[str] = (),
        dose_thresholds: Sequence[float] = (),
        age: bool = False,
        target: str = "image",
        block_out_channels: Sequence[int] = (32, 64, 128),
        layers_per_block: int = 1,
        conv_mode: str = "3d",
        patch_size: Sequence[int] = (1, 2, 2),
        downsample_strides: Sequence[int] = (1, 2, 2, 2, 2, 2),
        norm_type: str = "group",
        norm_num_groups: int = 8,
    ) -> None:
        super().__init__()
        levels = len(block_out_channels)
        _check_heads(findings, body_parts, dose_thresholds, age)
        check_layout(conv_mode, norm_type, patch_size, downsample_strides, levels)
        mode: Any = conv_mode
        norm: Any = norm_type
        strides: Any = [tuple(downsample_strides[3 * i : 3 * i + 3]) for i in range(levels - 1)]
        self.size_factor: tuple[int, int, int] = tuple(
            p * prod(s[axis] for s in strides) for axis, p in enumerate(patch_size)
        )
        widths = list(block_out_channels)
        embedding_dim = 4 * widths[0]

        # 1. encoder
        self.time_proj = Timesteps(widths[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(widths[0], embedding_dim)
        self.stem = conv_nd(in_channels * prod(patch_size), widths[0], mode)
        self.down_blocks = nn.ModuleList(
            nn.ModuleList(
                CTResBlock(width, width, embedding_dim, mode, norm, norm_num_groups) for _ in range(layers_per_block)
            )
            for width in widths
        )
        self.downsamplers = nn.ModuleList(
            nn.Conv3d(widths[i], widths[i + 1], kernel_size=stride, stride=stride) for i, stride in enumerate(strides)
        )

        # 2. pooling
        self.norm_out = norm_nd(widths[-1], norm, norm_num_groups)
        # A bias would not change a softmax over voxels. It begins as a smooth maximum of each channel: begun as the mean,
        # a spot moves the features by less than the anatomy does, and is not learned.
        self.attention_weights = nn.Conv3d(widths[-1], widths[-1], 1, bias=False)
        with torch.no_grad():
            self.attention_weights.weight.copy_(_SHARPNESS * torch.eye(widths[-1])[:, :, None, None, None])

        # 3. heads
        features = 2 * widths[-1]
        self.findings_head = nn.Linear(features, len(findings)) if len(findings) else None
        self.body_part_head = nn.Linear(features, len(body_parts)) if len(body_parts) else None
        self.dose_head = OrdinalHead(features, len(dose_thresholds)) if len(dose_thresholds) else None
        self.age_head = nn.Linear(features, 2) if age else None
        self.gradient_checkpointing = False

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the conditions that it judges, as in `HEADS`."""
        modules = (self.findings_head, self.body_part_head, self.dose_head, self.age_head)
        return tuple(name for name, module in zip(HEADS, modules) if module is not None)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        targets: Mapping[str, torch.Tensor] | None = None,
        return_dict: bool = True,
    ) -> NoiseClassifierOutput | tuple[Any, ...]:
        """Judges a noisy sample.

        Args:
            sample: (batch, in_channels, depth, height, width) x_t; the size divisible by `size_factor`.
            timestep: a number, or (batch,).
            targets: if given, the output also holds the log probability of each head's target (see
                `log_probability`); keys that are no heads are passed over.
            return_dict: return `NoiseClassifierOutput` rather than a tuple of its fields that are not None.

        Raises:
            ValueError: if a shape does not fit the configuration.
        """
        self._check_input(sample)
        timesteps = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(sample.shape[0])
        embedding = F.silu(self.time_embedding(self.time_proj(timesteps).to(sample.dtype)))

        h = self.stem(space_to_depth(sample, self.config["patch_size"]))
        for i, blocks in enumerate(self.down_blocks):
            if i:
                h = self.downsamplers[i - 1](h)
            for block in blocks:  # type: ignore[attr-defined]
                h = self._run(block, h, embedding)
        h = F.silu(self.norm_out(h))
        weights = self.attention_weights(h).flatten(2).float().softmax(dim=2).to(h.dtype)
        features = torch.cat([h.mean(dim=(2, 3, 4)), (weights * h.flatten(2)).sum(dim=2)], dim=1)

        laws: dict[str, torch.Tensor] = {}
        if self.findings_head is not None:
            laws["findings"] = self.findings_head(features).float()
        if self.body_part_head is not None:
            laws["body_part"] = self.body_part_head(features).float()
        if self.dose_head is not None:
            laws["dose_fraction"] = self.dose_head(features)
        if self.age_head is not None:
            laws["age_years"] = _age(self.age_head(features).float())
        found = self._log_probabilities(laws, targets) if targets is not None else None
        output = NoiseClassifierOutput(**laws, log_probabilities=found)
        return output if return_dict else output.to_tuple()

    def log_probability(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        targets: Fields,
        heads: Sequence[str] | None = None,
    ) -> torch.Tensor:
        """log p(targets | x_t) = the sum over the heads, (batch,) in nats; differentiable in `sample`.

        Args:
            sample: (batch, in_channels, depth, height, width).
            timestep: a number, or (batch,).
            targets: "findings" float (batch, findings), 1 present, 0 absent, NaN unknown; "body_part" int64 (batch,),
                -1 unknown; "dose_fraction" and "age_years" float (batch,), NaN unknown. What is unknown adds 0.
            heads: which to add; None for all that have targets.

        Raises:
            ValueError: for heads that the classifier has not or that have no targets, or targets that do not fit.
        """
        if heads is None:
            heads = [name for name in self.heads if name in targets]
        for name in heads:
            if name not in self.heads:
                nearest = sorted(self.heads, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())
                raise ValueError(f"The classifier has no head {name!r}. It has, nearest first: {', '.join(nearest)}.")
            if name not in targets:
                raise ValueError(f"`targets` say nothing of {name!r}: give it, or leave it out of `heads`.")
        if not heads:
            raise ValueError(f"`targets` say nothing that the classifier judges: it has {', '.join(self.heads)}.")
        found = self(sample, timestep, targets={name: targets[name] for name in heads}).log_probabilities
        return torch.stack([found[name] for name in heads]).sum(dim=0)

    def _log_probabilities(
        self, laws: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        found = {}
        for name, predicted in laws.items():
            if name not in targets:
                continue
            target = targets[name].to(predicted.device)
            shape = tuple(predicted.shape) if name == "findings" else tuple(predicted.shape[:1])
            if tuple(target.shape) != shape:
                raise ValueError(f"The target {name!r} must have the shape {shape}, got {tuple(target.shape)}.")
            if name == "findings":
                found[name] = bernoulli_log_probability(predicted, target)
            elif name == "body_part":
                found[name] = categorical_log_probability(predicted, target)
            elif name == "dose_fraction":
                found[name] = ordinal_log_probability(predicted, target, self.config["dose_thresholds"])
            else:
                found[name] = gaussian_log_probability(predicted, target)
        return found

    def _run(self, block: nn.Module, *args: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)

    def _check_input(self, sample: torch.Tensor) -> None:
        if sample.ndim != 5 or sample.shape[1] != self.config["in_channels"]:
            raise ValueError(
                f"`sample` must be (batch, {self.config['in_channels']}, depth, height, width), "
                f"got {tuple(sample.shape)}."
            )
        if any(size % factor for size, factor in zip(sample.shape[2:], self.size_factor)):
            raise ValueError(f"The size {tuple(sample.shape[2:])} must be divisible by {self.size_factor}.")


class OrdinalHead(nn.Module):
    """Cumulative logits of ordered classes: logit P(class > k) = score - threshold_k, with rising thresholds."""

    def __init__(self, features: int, thresholds: int) -> None:
        super().__init__()
        self.score = nn.Linear(features, 1, bias=False)  # the first threshold is the bias
        self.first = nn.Parameter(torch.zeros(()))
        self.gaps = nn.Parameter(torch.zeros(thresholds - 1)) if thresholds > 1 else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(batch, features) -> (batch, thresholds) logits, falling along the second axis."""
        thresholds = self.first.reshape(1)
        if self.gaps is not None:
            steps = (F.softplus(self.gaps.float()) + _SMALLEST_GAP).cumsum(0)
            thresholds = torch.cat([thresholds.float(), self.first.float() + steps])
        return self.score(features).float() - thresholds.float()


def _age(raw: torch.Tensor) -> torch.Tensor:
    """(batch, 2) of a linear layer -> mean in years, log variance in log years^2."""
    mean = AGE_CENTRE_YEARS + AGE_SPREAD_YEARS * raw[:, 0]
    bounded = _LOG_VARIANCE_RANGE * torch.tanh(raw[:, 1] / _LOG_VARIANCE_RANGE)
    return torch.stack([mean, bounded + 2.0 * log(AGE_SPREAD_YEARS)], dim=1)


def _check_heads(
    findings: Sequence[str], body_parts: Sequence[str], dose_thresholds: Sequence[float], age: bool
) -> None:
    if not (len(findings) or len(body_parts) or len(dose_thresholds) or age):
        raise ValueError("A classifier needs a head: give `findings`, `body_parts`, `dose_thresholds` or `age=True`.")
    for name, values in (("findings", findings), ("body_parts", body_parts)):
        if len(set(values)) != len(values):
            raise ValueError(f"`{name}` must not repeat a name, got {list(values)}.")
    if len(body_parts) == 1:
        raise ValueError(f"`body_parts` needs at least two names to tell apart, got {list(body_parts)}.")
    rising = all(a < b for a, b in pairwise(dose_thresholds))
    if not rising or any(not 0.0 < value < 1.0 for value in dose_thresholds):
        raise ValueError(f"`dose_thresholds` must rise and lie in (0, 1), got {list(dose_thresholds)}.")
