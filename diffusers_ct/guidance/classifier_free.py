"""Classifier-free guidance with a scale for each condition.

Ho and Salimans 2022, arXiv:2207.12598, eq. 6, written for the denoiser. Several conditions: each is guided by the
implicit classifier p(c_i | x_t, c_others) = p(x_t | c) / p(x_t | c without c_i), so the guided density is

    p(x_t | c) prod_i [p(x_t | c) / p(x_t | c without c_i)]^(s_i - 1)

and every condition is nulled alone while the others stay. (Guiding by each condition alone, as in Liu et al. 2022,
arXiv:2206.01714, is right only where the conditions are independent given x_t; two measurements of one organ are not.)
"""

import difflib
from collections.abc import Callable, Mapping, Sequence

import torch

from .denoiser import check_interval, check_scale, in_interval, per_sample

GuidanceScale = float | Mapping[str, float]
# (x_t, timestep, nulled) -> one x0 for each entry of nulled, whose conditions are unknown in it
Evaluate = Callable[[torch.Tensor, torch.Tensor, Sequence[frozenset[str]]], list[torch.Tensor]]


def guidance_weights(scale: GuidanceScale, known: Sequence[str]) -> float | dict[str, float]:
    """Checks guidance scales before any work.

    Args:
        scale: one for all conditions together, or one for each by name; conditions not named have 1.
        known: names that can be guided: the conditions that the model has and the request sets.

    Returns:
        A float, or a dict in the order of `known`.

    Raises:
        TypeError: for a scale that is not a number.
        ValueError: for a name not in `known` (which are listed nearest first), a scale that is negative or not finite,
            or guidance without any condition.
    """
    if not isinstance(scale, Mapping):
        checked = check_scale("all conditions", scale)
        if checked != 1.0 and not known:
            raise ValueError("`guidance_scale` guides by conditions, but none is given: set one, or use 1.0.")
        return checked
    for name in scale:
        if name not in known:
            nearest = sorted(known, key=lambda other: -difflib.SequenceMatcher(None, str(name), other).ratio())
            raise ValueError(
                f"`guidance_scale` names {name!r}, which is not among the conditions that are given. "
                f"Can be guided, nearest first: {', '.join(nearest) or 'none'}."
            )
    weights = {name: check_scale(repr(name), value) for name, value in scale.items()}
    return {name: weights[name] for name in known if name in weights}


def compose(
    full: torch.Tensor, nulled: torch.Tensor | Mapping[str, torch.Tensor], scale: GuidanceScale
) -> torch.Tensor:
    """The guided x0.

    One scale s for all: x0_null + s (x0_full - x0_null). A scale for each: x0_full + sum_i (s_i - 1) (x0_full -
    x0_without_i). Equal where there is one condition; for several, s for all is not s for each.

    Args:
        full: x0 given every condition.
        nulled: x0 given none; or by name, x0 without that condition but with all the others.
        scale: a float for the first, a mapping for the second; every name needs its `nulled`.
    """
    if isinstance(scale, Mapping):
        if not isinstance(nulled, Mapping):
            raise TypeError("Scales by name need `nulled` by name: each condition is nulled alone.")
        guided = full
        for name, s in scale.items():
            if s != 1.0:
                guided = guided + (s - 1.0) * (full - nulled[name])
        return guided
    if isinstance(nulled, Mapping):
        raise TypeError("One scale for all conditions needs one `nulled`: x0 without any of them.")
    return nulled + scale * (full - nulled)


def rescale_to(guided: torch.Tensor, full: torch.Tensor, share: float) -> torch.Tensor:
    """Brings the contrast of each guided sample back towards that of the unguided one.

    Args:
        guided: (batch, ...) x0 after guidance.
        full: x0 given every condition, of the same shape.
        share: 0 changes nothing, 1 makes the standard deviation over a sample that of `full`.

    The mean of a sample is kept: the paper scales about 0, near the mean of its images, but the mean of a CT volume in
    network units is far from 0 and stands for HU.

    References:
        Lin et al. 2024, arXiv:2305.08891, eq. 14-16.
    """
    axes = tuple(range(1, guided.ndim))
    std_guided = guided.std(dim=axes, keepdim=True)
    std_full = full.std(dim=axes, keepdim=True)
    mean = guided.mean(dim=axes, keepdim=True)
    tiny = torch.finfo(guided.dtype).tiny  # a sample without any contrast stays as it is
    ratio = std_full / std_guided.clamp(min=tiny)
    return mean + (share * ratio + (1.0 - share)) * (guided - mean)


class ClassifierFreeGuidance:
    """A denoiser guided by the difference that conditions make.

    Args:
        evaluate: gives x0 for several sets of nulled conditions at once; called once a step.
        scale: see `guidance_weights`. 1 does not guide and costs nothing, 0 forgets the condition.
        known: names of the conditions that are set; all of them are nulled for a single scale.
        rescale: share of `rescale_to`, in [0, 1].
        interval: where to guide, as fractions of the timesteps (0 clean, 1 pure noise), ends included; elsewhere only
            the full condition is evaluated.
        num_train_timesteps: of the scheduler.

    Raises:
        TypeError, ValueError: as `guidance_weights`; for `rescale` outside [0, 1] or an empty interval.

    References:
        Ho and Salimans 2022, arXiv:2207.12598; Kynkaanniemi et al. 2024, arXiv:2404.07724 (interval).
    """

    def __init__(
        self,
        evaluate: Evaluate,
        scale: GuidanceScale,
        *,
        known: Sequence[str],
        num_train_timesteps: int,
        rescale: float = 0.0,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        if not 0.0 <= rescale <= 1.0:
            raise ValueError(f"`rescale` must be in [0, 1], got {rescale}.")
        self.evaluate = evaluate
        self.scale = guidance_weights(scale, known)
        self.rescale = rescale
        self.interval = check_interval(interval)
        self.num_train_timesteps = num_train_timesteps
        if isinstance(self.scale, dict):
            self.nulled = [frozenset({name}) for name, s in self.scale.items() if s != 1.0]
        else:
            self.nulled = [frozenset(known)] if self.scale != 1.0 else []

    @property
    def evaluations(self) -> int:
        """Network evaluations of one step inside the interval."""
        return 1 + len(self.nulled)

    def __call__(self, x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The guided x0, of the shape of x_t."""
        inside = in_interval(timestep, self.interval, self.num_train_timesteps).to(x_t.device)
        if not self.nulled or not inside.any():
            return self.evaluate(x_t, timestep, [frozenset()])[0]
        full, *without = self.evaluate(x_t, timestep, [frozenset(), *self.nulled])
        if isinstance(self.scale, dict):
            by_name = {name: x0 for names, x0 in zip(self.nulled, without) for name in names}
            guided = compose(full, by_name, self.scale)
        else:
            guided = compose(full, without[0], self.scale)
        if self.rescale:
            guided = rescale_to(guided, full, self.rescale)
        return torch.where(per_sample(inside, x_t), guided, full)
