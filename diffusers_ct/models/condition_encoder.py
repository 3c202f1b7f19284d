"""`ConditionEncoder`: each condition of a scan becomes a token and a share of the pooled vector.

The pooled vector is a plain sum of the shares, so that nulling one condition moves it by an amount that does not depend
on the others: a scale for each condition then means what it says.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import nn

from .saved_model import SavedModel

Fields = dict[str, torch.Tensor]

# Conditions that are one of several: the argument that lists the values, or their number where it is fixed.
CATEGORICAL: dict[str, str | int] = {
    "body_part": "body_parts",
    "sex": 3,
    "kernel": "kernels",
    "manufacturer": "manufacturers",
    "contrast_agent": 2,
    "contrast_phase": "contrast_phases",
}
# Quantities: x = log(value / centre) / spread for positive ones, (value - centre) / spread for age (newborns are 0);
# centre and spread bring what occurs in practice to about [-2, 2].
POSITIVE: dict[str, tuple[tuple[float, ...], float]] = {
    "dose_fraction": ((0.25,), 0.7),
    "kvp": ((110.0,), 0.15),
    "tube_current_mas": ((100.0,), 1.0),
    "slice_thickness_mm": ((2.0,), 0.6),
    "spacing_mm": ((2.0, 0.75, 0.75), 0.6),
}
AGE_CENTRE_YEARS, AGE_SPREAD_YEARS = 50.0, 25.0
NAMES = (*CATEGORICAL, "age_years", *POSITIVE, "findings", "text")

# From the whole range (a quarter turn over 2 pi) to steps of a few per cent.
_FREQUENCIES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_DROP_STREAM = 0x0C0D  # keeps the draws of `drop_fields_at_random` apart from others made with the same seeds


@dataclass
class ConditionEncoderOutput(BaseOutput):
    """Output of `ConditionEncoder`.

    Attributes:
        tokens: (batch, length, token_dim), in the order of `conditions`.
        mask: (batch, length) bool; False where a token pads a shorter text.
        pooled: (batch, pooled_dim).
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    pooled: torch.Tensor


class ConditionEncoder(SavedModel):
    """One token for each condition (one for each finding, and the words of the text) and a share of a pooled vector.

    Every condition has its own learned "unknown", for the token and the share; a missing field is unknown. A quantity
    enters as itself (positive ones by their logarithm) with sines and cosines of it, through a small network. The
    share of a text is the mean over its words.

    Args:
        conditions: names of the conditions it knows; see `NAMES`.
        body_parts: values of `body_part` in the order of their index; likewise the next three.
        kernels: of `kernel`.
        manufacturers: of `manufacturer`.
        contrast_phases: of `contrast_phase`.
        findings: names of the findings.
        token_dim: length of a token.
        pooled_dim: length of the pooled vector.
        text_dim: length of the text encoder's states; 0 where "text" is not among the conditions.

    Raises:
        ValueError: if the arguments do not fit each other.

    References:
        Tancik et al. 2020, arXiv:2006.10739 (sinusoidal features of quantities); Ho and Salimans 2022,
        arXiv:2207.12598 (a learned "unknown" in the place of a condition).
    """

    _supports_gradient_checkpointing = False
    _skip_layerwise_casting_patterns = ["norm", "unknown"]  # noqa: RUF012 (diffusers' own form)

    @register_to_config
    def __init__(
        self,
        conditions: Sequence[str],
        body_parts: Sequence[str] = (),
        kernels: Sequence[str] = (),
        manufacturers: Sequence[str] = (),
        contrast_phases: Sequence[str] = (),
        findings: Sequence[str] = (),
        token_dim: int = 64,
        pooled_dim: int = 64,
        text_dim: int = 0,
    ) -> None:
        super().__init__()
        listed = {
            "body_part": body_parts,
            "kernel": kernels,
            "manufacturer": manufacturers,
            "contrast_phase": contrast_phases,
            "findings": findings,
            "text": range(text_dim),
        }
        _check_config(conditions, listed, token_dim, pooled_dim)
        # Each module gives entries of token_dim + pooled_dim numbers: the token and the share.
        dims = (token_dim, pooled_dim)
        share_std = (len(conditions) - ("findings" in conditions) + len(findings)) ** -0.5
        encoders: dict[str, nn.Module] = {}
        for name in conditions:
            if name in CATEGORICAL:
                count = CATEGORICAL[name]
                encoders[name] = _Categories(count if isinstance(count, int) else len(listed[name]), *dims, share_std)
            elif name == "findings":
                encoders[name] = _Findings(len(findings), *dims, share_std)
            elif name == "text":
                encoders[name] = _Text(text_dim, *dims, share_std)
            else:
                encoders[name] = _Quantity(name, *dims, share_std)
        self.encoders = nn.ModuleDict(encoders)

    def forward(
        self, fields: Fields, batch_size: int | None = None, return_dict: bool = True
    ) -> ConditionEncoderOutput | tuple[torch.Tensor, ...]:
        """Encodes the conditions of a batch.

        Args:
            fields: see `diffusers_ct.conditions.Fields`; an entry that is missing is unknown. The spacing, which comes
                with every scan, may be there where it is not among the conditions, and is not used then.
            batch_size: needed only where `fields` is empty.
            return_dict: return `ConditionEncoderOutput` rather than a tuple.

        Raises:
            ValueError: if an entry is not one of this encoder's, or its shape does not fit.
        """
        if "spacing_mm" not in self.encoders:
            fields = {name: value for name, value in fields.items() if name != "spacing_mm"}
        batch = self._check(fields, batch_size)
        entries, masks, shares = [], [], []
        token_dim = self.config["token_dim"]
        for name, encoder in self.encoders.items():
            entry, mask, share = encoder(fields, name, batch, self.device, self.dtype)
            entries.append(entry[..., :token_dim])
            masks.append(mask)
            shares.append(share[..., token_dim:])
        output = (torch.cat(entries, dim=1), torch.cat(masks, dim=1), torch.stack(shares).sum(dim=0))
        return ConditionEncoderOutput(*output) if return_dict else output

    def _check(self, fields: Fields, batch_size: int | None) -> int:
        """Batch size of well-formed fields."""
        shapes: dict[str, tuple[int | None, ...]] = {}
        for name, encoder in self.encoders.items():
            shapes |= encoder.shapes(name)  # type: ignore[operator]
        if extra := sorted(set(fields) - set(shapes)):
            raise ValueError(f"This encoder knows {', '.join(shapes)}; it was given {', '.join(extra)}.")
        if len({"text_states", "text_mask"} & set(fields)) == 1:
            raise ValueError("A text needs both `text_states` and `text_mask`.")
        if not fields and batch_size is None:
            raise ValueError("`fields` is empty, so `batch_size` must be given.")
        batch = next(iter(fields.values())).shape[0] if batch_size is None else batch_size
        for key, value in fields.items():
            wanted = (batch, *shapes[key])
            if value.ndim != len(wanted) or any(w not in (None, n) for n, w in zip(value.shape, wanted)):
                shown = ", ".join("length" if w is None else str(w) for w in wanted)
                raise ValueError(f"`{key}` must be ({shown}), got {tuple(value.shape)}.")
        if "text_mask" in fields:
            states, mask = fields["text_states"], fields["text_mask"]
            if mask.shape[1] == 0 or mask.shape[1] != states.shape[1]:
                raise ValueError(
                    f"`text_mask` must be ({batch}, {max(states.shape[1], 1)}) like `text_states`, got {tuple(mask.shape)}."
                )
        return batch


Encoded = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # entries (B, n, T + P), mask (B, n), their sum (B, T + P)


class _Categories(nn.Module):
    """A row for each value; row 0 is "unknown"."""

    def __init__(self, count: int, token_dim: int, pooled_dim: int, share_std: float) -> None:
        super().__init__()
        self.table = nn.Embedding(count + 1, token_dim + pooled_dim)
        _init_entries(self.table.weight, token_dim, share_std)

    def shapes(self, name: str) -> dict[str, tuple[int | None, ...]]:
        return {name: ()}

    def forward(self, fields: Fields, name: str, batch: int, device: Any, dtype: Any) -> Encoded:
        index = fields[name].to(device) if name in fields else torch.full((batch,), -1, device=device)
        entry = self.table(index + 1)
        return entry[:, None], torch.ones(batch, 1, dtype=torch.bool, device=device), entry


class _Findings(nn.Module):
    """Three rows for each finding: unknown, absent, present."""

    def __init__(self, count: int, token_dim: int, pooled_dim: int, share_std: float) -> None:
        super().__init__()
        self.count = count
        self.table = nn.Embedding(3 * count, token_dim + pooled_dim)
        _init_entries(self.table.weight, token_dim, share_std)

    def shapes(self, name: str) -> dict[str, tuple[int | None, ...]]:
        return {name: (self.count,)}

    def forward(self, fields: Fields, name: str, batch: int, device: Any, dtype: Any) -> Encoded:
        if name in fields:
            value = fields[name].to(device)
            state = torch.where(value.isnan(), 0, 1 + (value > 0.5).long())
        else:
            state = torch.zeros(batch, self.count, dtype=torch.long, device=device)
        entries = self.table(3 * torch.arange(self.count, device=device) + state)
        return entries, torch.ones(batch, self.count, dtype=torch.bool, device=device), entries.sum(dim=1)


class _Quantity(nn.Module):
    """Features of a quantity through a small network; unknown if any of its numbers is NaN."""

    def __init__(self, name: str, token_dim: int, pooled_dim: int, share_std: float) -> None:
        super().__init__()
        self.size = len(POSITIVE[name][0]) if name in POSITIVE else 1
        width = token_dim + pooled_dim
        self.network = nn.Sequential(
            nn.Linear(self.size * (1 + 2 * len(_FREQUENCIES)), width), nn.SiLU(), nn.Linear(width, width)
        )
        self.unknown = nn.Parameter(torch.empty(width))
        _init_entries(self.unknown, token_dim, share_std)

    def shapes(self, name: str) -> dict[str, tuple[int | None, ...]]:
        return {name: () if self.size == 1 else (self.size,)}

    def forward(self, fields: Fields, name: str, batch: int, device: Any, dtype: Any) -> Encoded:
        mask = torch.ones(batch, 1, dtype=torch.bool, device=device)
        if name not in fields:
            entry = self.unknown.to(dtype).expand(batch, -1)
            return entry[:, None], mask, entry
        value = fields[name].to(device, torch.float32).reshape(batch, self.size)
        features = quantity_features(name, value)
        known = features.isfinite().all(dim=1, keepdim=True)
        entry = self.network(torch.where(known, features, 0.0).to(dtype))
        entry = torch.where(known, entry, self.unknown.to(entry.dtype))
        return entry[:, None], mask, entry


class _Text(nn.Module):
    """A linear map of the states of a text encoder; one learned token in the place of an unknown text."""

    def __init__(self, text_dim: int, token_dim: int, pooled_dim: int, share_std: float) -> None:
        super().__init__()
        self.text_dim = text_dim
        self.norm = nn.LayerNorm(text_dim)
        self.project = nn.Linear(text_dim, token_dim + pooled_dim)
        self.unknown = nn.Parameter(torch.empty(token_dim + pooled_dim))
        _init_entries(self.unknown, token_dim, share_std)

    def shapes(self, name: str) -> dict[str, tuple[int | None, ...]]:
        return {"text_states": (None, self.text_dim), "text_mask": (None,)}

    def forward(self, fields: Fields, name: str, batch: int, device: Any, dtype: Any) -> Encoded:
        if "text_mask" not in fields:
            entry = self.unknown.to(dtype).expand(batch, -1)
            return entry[:, None], torch.ones(batch, 1, dtype=torch.bool, device=device), entry
        mask = fields["text_mask"].to(device, torch.bool)
        states = torch.where(mask[..., None], fields["text_states"].to(device, dtype), 0.0)
        entries = self.project(self.norm(states))
        # The first place of an unknown text holds the learned token.
        first = torch.zeros_like(mask)
        first[:, 0] = ~mask.any(dim=1)
        entries = torch.where(first[..., None], self.unknown.to(entries.dtype), entries)
        mask = mask | first
        weights = mask / mask.sum(dim=1, keepdim=True)
        return entries, mask, (weights[..., None].to(entries.dtype) * entries).sum(dim=1)


def quantity_features(name: str, value: torch.Tensor) -> torch.Tensor:
    """x, sin(f x) and cos(f x) of a quantity brought to about [-2, 2]; positive quantities by their logarithm.

    Args:
        name: "age_years" or a key of `POSITIVE`.
        value: (batch, n) in the unit of the name; n is 3 for the spacing, else 1.

    Returns:
        (batch, 13 n) float32; NaN where the value is.
    """
    if name in POSITIVE:
        centre, spread = POSITIVE[name]
        x = (value.log() - torch.tensor([log(c) for c in centre], device=value.device)) / spread
    else:
        x = (value - AGE_CENTRE_YEARS) / AGE_SPREAD_YEARS
    angles = (x[..., None] * torch.tensor(_FREQUENCIES, device=value.device)).flatten(1)
    return torch.cat([x, angles.sin(), angles.cos()], dim=1)


def null_fields(fields: Fields, names: Collection[str], rows: torch.Tensor | None = None) -> Fields:
    """The same fields with the named conditions unknown; nothing is changed in place.

    Args:
        fields: see `diffusers_ct.conditions.Fields`.
        names: conditions; one that has no entry is unknown already.
        rows: (batch,) bool, where to null them; None is everywhere.

    Raises:
        ValueError: if a name is no condition.
    """
    if wrong := [name for name in names if name not in NAMES]:
        raise ValueError(f"{', '.join(map(repr, wrong))} is no condition: choose of {', '.join(NAMES)}.")
    nulled = dict(fields)
    for name in names:
        key = "text_mask" if name == "text" else name
        if key not in fields:
            continue
        value = fields[key]
        unknown: Any = False if name == "text" else -1 if name in CATEGORICAL else float("nan")
        if rows is None:
            nulled[key] = torch.full_like(value, unknown)
        else:
            where = rows.to(value.device).reshape(-1, *[1] * (value.ndim - 1))
            nulled[key] = value.masked_fill(where, unknown)
    return nulled


def drop_fields_at_random(fields: Fields, seeds: torch.Tensor, *, each: float, all_: float) -> Fields:
    """Makes conditions unknown at random, so that a model learns to do with any part of them.

    Each condition is dropped on its own with probability `each`, all together with `all_`. Findings kept are, again
    with probability `each`, known in part: each then drops with a probability drawn uniformly, so that asking for one
    finding and leaving the others open is not new to the model. What happens to an item depends on its seed alone,
    and what happens to one condition not on which others there are.

    Args:
        fields: see `diffusers_ct.conditions.Fields`.
        seeds: (batch,) int64, one an item.
        each: probability, in [0, 1].
        all_: probability, in [0, 1].

    Raises:
        ValueError: if a probability is out of its range.

    References:
        Ho and Salimans 2022, arXiv:2207.12598, algorithm 1; Huang et al. 2023 (Composer), arXiv:2302.09778, section 2.2
        (each on its own and all at once).
    """
    for name, probability in (("each", each), ("all_", all_)):
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"`{name}` is a probability and must be in [0, 1], got {probability}.")
    streams = [np.random.default_rng([_DROP_STREAM, int(seed) % 2**64]) for seed in seeds]
    draws = np.stack([stream.random(len(NAMES) + 3) for stream in streams])
    everything = draws[:, 0] < all_
    dropped = dict(fields)
    if "findings" in fields:
        rate = np.where(draws[:, 1] < each, draws[:, 2], 0.0)
        part = np.stack([stream.random(fields["findings"].shape[1]) for stream in streams]) < rate[:, None]
        dropped["findings"] = fields["findings"].masked_fill(
            torch.from_numpy(part).to(fields["findings"].device), float("nan")
        )
    for name, draw in zip(NAMES, draws.T[3:]):
        dropped = null_fields(dropped, [name], torch.from_numpy(everything | (draw < each)))
    return dropped


def dropped_together(seeds: torch.Tensor, all_: float) -> torch.Tensor:
    """The items of which `drop_fields_at_random` with these seeds leaves no condition: (batch,) bool."""
    first = [np.random.default_rng([_DROP_STREAM, int(seed) % 2**64]).random() for seed in seeds]
    return torch.tensor([draw < all_ for draw in first])


def _init_entries(weight: torch.Tensor, token_dim: int, share_std: float) -> None:
    """Unit spread for tokens; for shares one that gives their sum unit spread."""
    with torch.no_grad():
        weight[..., :token_dim].normal_(std=1.0)
        weight[..., token_dim:].normal_(std=share_std)


def _check_config(conditions: Sequence[str], listed: dict[str, Any], token_dim: int, pooled_dim: int) -> None:
    if not conditions or len(set(conditions)) != len(conditions):
        raise ValueError(f"`conditions` must be names without repetition, at least one, got {list(conditions)}.")
    if wrong := [name for name in conditions if name not in NAMES]:
        raise ValueError(f"Unknown conditions {', '.join(map(repr, wrong))}: choose of {', '.join(NAMES)}.")
    for name, values in listed.items():
        argument = {"findings": "findings", "text": "text_dim"}.get(name) or CATEGORICAL[name]
        if (name in conditions) != bool(len(values)):
            need = "needs" if name in conditions else "is not among `conditions`, so it must not have"
            raise ValueError(f"The condition {name!r} {need} `{argument}`.")
        if name != "text" and len(set(values)) != len(values):
            raise ValueError(f"`{argument}` holds a value twice: {list(values)}.")
    if token_dim < 1 or pooled_dim < 1:
        raise ValueError(f"`token_dim` and `pooled_dim` must be positive, got {token_dim} and {pooled_dim}.")
