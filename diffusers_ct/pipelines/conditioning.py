"""From `ScanConditions` to what network and classifier are told; refusals come before any sampling."""

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..conditions import ConditionError, ConditionVocabulary, Fields, ScanConditions, collate_conditions
from ..guidance import LogProbability, check_scale, guidance_weights
from ..models import encode_text
from ..schedulers import network_timesteps
from .tiling import Size

# promise of the contract -> the condition that is checked against it
_PROMISED = {
    "dose_fraction": "dose_fraction",
    "slice_thickness_mm": "slice_thickness_mm",
    "kernels": "kernel",
    "body_parts": "body_part",
}
_NUMBERS = ("age_years", "dose_fraction", "kvp", "tube_current_mas", "slice_thickness_mm")


def encode_conditions(
    pipe: Any,
    conditions: Sequence[ScanConditions],
    spacing_mm: tuple[float, float, float],
    *,
    strict: bool,
    elsewhere: Collection[str] = (),
) -> tuple[Fields | None, list[str]]:
    """Fields of the pipeline's condition encoder, one row for each of `conditions`, and what had to be left out.

    Args:
        pipe: the pipeline.
        conditions: of each sample.
        spacing_mm: (z, y, x).
        strict: refuse what the checkpoint does not know (the user asked for it) rather than take it as unknown (a
            header says it).
        elsewhere: conditions that something else reads, so that the network need not take them.

    Raises:
        ConditionError: for a condition the checkpoint was not trained with, or a value outside its vocabulary.
    """
    encoder = pipe.condition_encoder
    taken = () if encoder is None else encoder.config.conditions
    conditions = [_without(c, [name for name in elsewhere if name not in taken]) for c in conditions]
    if encoder is None:
        given = sorted({name for c in conditions for name in _given(c)})
        if given and strict:
            raise ConditionError(
                f"This checkpoint takes no conditions, but {', '.join(given)} were given: leave them out, or use a "
                "conditional checkpoint."
            )
        return None, []
    texts = [c.text for c in conditions]
    reads = "text" in taken and pipe.text_encoder is not None
    unread = not reads and any(text is not None for text in texts)
    problem = "This checkpoint was not trained with `text`, or came without its text encoder."
    if unread and strict:
        raise ConditionError(f"{problem} Leave it out, or use a checkpoint with one.")
    fields, left_out = collate_conditions(
        [replace(c, text=None) for c in conditions],
        ConditionVocabulary.from_config(encoder.config),
        spacing_mm=[spacing_mm] * len(conditions) if "spacing_mm" in taken else None,
        strict=strict,
    )
    if unread:
        left_out.append(f"{problem} It was left out.")
    device = pipe._execution_device
    if reads:
        fields |= encode_text(texts, pipe.text_encoder, pipe.tokenizer, device)
    return {name: values.to(device) for name, values in fields.items()}, left_out


def read_elsewhere(pipe: Any, terms: Sequence["ClassifierTerm"], *, describing: bool) -> set[str]:
    """Conditions that are not for the network alone.

    Args:
        pipe: the pipeline.
        terms: classifiers in use: what they judge is asked of them.
        describing: whether the conditions describe a scan that is there, so that contract and noise schedule read them
            too, rather than ask for one, which only network and classifiers follow.
    """
    names = {head for term in terms for head in term.heads}
    if describing:
        names |= set(pipe.scheduler.config.get("shift_conditions", ())) & set(_NUMBERS)
        if pipe.contract is not None:
            names |= {name for promise, name in _PROMISED.items() if getattr(pipe.contract, promise)}
    return names


def numbers_of(conditions: Sequence[ScanConditions], spacing_mm: tuple[float, float, float]) -> dict[str, torch.Tensor]:
    """Conditions that are numbers, (samples,) each, NaN where unknown, and "spacing_mm" (samples, 3).

    A noise schedule reads their logarithm: 0, which headers hold for "not known", is unknown.
    """
    numbers = {name: torch.tensor([getattr(c, name) or math.nan for c in conditions]) for name in _NUMBERS}
    return {**numbers, "spacing_mm": torch.tensor([spacing_mm] * len(conditions), dtype=torch.float32)}


def guided_names(
    pipe: Any, fields: Fields | None, images: Mapping[str, np.ndarray], scale: float | Mapping[str, float]
) -> tuple[str, ...]:
    """Names that guidance may null: conditions and images that the checkpoint takes and the request gives.

    Args:
        pipe: the pipeline.
        fields: of `encode_conditions`: a value that the checkpoint does not know is not given.
        images: image conditions by kind, NaN where unknown.
        scale: of classifier-free guidance.

    Raises:
        ValueError: for guidance of a checkpoint, or by a condition, that has nothing to be guided by.
    """
    encoder = pipe.condition_encoder
    taken = tuple(encoder.config.conditions) if encoder is not None else ()
    kinds = tuple(kind for kind in pipe.image_kinds if kind != "context")
    scales = scale if isinstance(scale, Mapping) else {"all": scale}
    if any(value != 1.0 for value in scales.values()) and not (*taken, *kinds):
        raise ValueError(
            "`guidance_scale` was given, but this checkpoint is unconditional: it was trained with no condition that "
            "could be nulled. Leave it at 1."
        )
    told = {} if fields is None else fields
    # Every scan has a spacing: one number is not meant for it, though it may be guided by name.
    by_name = isinstance(scale, Mapping) and "spacing_mm" in scale
    names = (
        *(name for name in taken if _known(told, name) and (name != "spacing_mm" or by_name)),
        *(kind for kind in kinds if kind in images and np.isfinite(images[kind]).any()),
    )
    guidance_weights(scale, names)
    return names


@dataclass(frozen=True)
class ClassifierTerm:
    """Some heads of a classifier with one scale.

    Attributes:
        classifier: the network.
        heads: evaluated together.
        targets: fields, one row a sample, or one for all.
        scale: of their summed log probability.
        scheduler: whose steps it is asked at.
    """

    classifier: Any
    heads: tuple[str, ...]
    targets: Fields
    scale: float
    scheduler: Any

    def of_rows(self, rows: slice) -> tuple[LogProbability, float]:
        """(log probability, scale) for a batch of some of the samples."""

        def log_probability(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            targets = {}
            for name, values in self.targets.items():
                targets[name] = values.expand(len(x_t), *values.shape[1:]) if len(values) == 1 else values[rows]
            told = network_timesteps(self.scheduler, timestep)
            return self.classifier.log_probability(x_t.to(self.classifier.dtype), told, targets, heads=self.heads)

        return log_probability, self.scale


def classifier_terms(
    pipe: Any, conditions: Sequence[ScanConditions], scale: float | Mapping[str, float], *, num_inference_steps: int
) -> list[ClassifierTerm]:
    """The asked conditions under the pipeline's classifier, with their scales.

    Heads of one scale share an evaluation of the network. With one number the heads that the conditions say something of are used.

    Raises:
        ValueError: without a classifier, for a head that it has not, for one whose condition is not given, or for a
            single step, at which no classifier has a say.
    """
    if not isinstance(scale, Mapping) and scale == 0.0:
        return []
    classifier = pipe.classifier
    if classifier is None:
        raise ValueError(
            "`classifier_scale` was given, but this pipeline has no classifier: leave it at 0, or load one."
        )
    check_steps_of_classifiers(num_inference_steps)
    heads = classifier.heads
    # A sample that says nothing of a head is not guided by it: an unknown target adds 0.
    given = [head for head in heads if any(says(c, head) for c in conditions)]
    if isinstance(scale, Mapping):
        for head in scale:
            if head not in heads:
                nearest = difflib.get_close_matches(head, heads, n=len(heads), cutoff=0.0)
                raise ValueError(f"The classifier has no head {head!r}. It has, nearest first: {', '.join(nearest)}.")
            if head not in given:
                raise ValueError(f"Guidance towards `{head}` needs `conditions` that say it: set it, or leave it out.")
        scales = dict(scale)
    else:
        if not given:
            raise ValueError(
                f"`conditions` say nothing of what the classifier judges: set {' or '.join(heads)}, or leave "
                "`classifier_scale` at 0."
            )
        scales = dict.fromkeys(given, scale)
    for head, value in scales.items():
        check_scale(f"the classifier's head {head!r}", value)
    known = {"body_part": classifier.config.body_parts, "findings": classifier.config.findings}
    vocabulary = ConditionVocabulary(tuple(scales), **{k: tuple(v) for k, v in known.items() if k in scales})
    asked = [_only(c, tuple(scales)) for c in conditions]
    targets, _ = collate_conditions(asked, vocabulary, strict=True)
    targets = {name: values.to(classifier.device) for name, values in targets.items()}
    return [
        ClassifierTerm(
            classifier, tuple(head for head, v in scales.items() if v == value), targets, value, pipe.scheduler
        )
        for value in sorted({v for v in scales.values() if v > 0.0})
    ]


def check_steps_of_classifiers(num_inference_steps: int) -> None:
    """Refuses classifier guidance that would silently do nothing.

    Raises:
        ValueError: for a single step.
    """
    if num_inference_steps == 1:
        raise ValueError(
            "Classifier guidance has no effect with one step, which sees pure noise: set `num_inference_steps` to 10 or "
            "more, or leave the classifier out."
        )


def size_factor(pipe: Any, terms: Sequence[ClassifierTerm]) -> Size:
    """What the sizes (z, y, x) must be multiples of, for the network and for the classifiers in use."""
    factors = [pipe.unet.size_factor, *(term.classifier.size_factor for term in terms)]
    depth, height, width = (math.lcm(*axis) for axis in zip(*factors))
    return depth, height, width


def _known(fields: Fields, name: str) -> bool:
    """Whether a sample says something of the condition."""
    values = fields.get("text_mask" if name == "text" else name)
    if values is None:
        return False
    if values.dtype == torch.bool:
        return bool(values.any())
    return bool((values >= 0).any())  # unknown is -1 for what is counted and NaN for what is measured


def says(conditions: ScanConditions, name: str) -> bool:
    """Whether a condition is known."""
    if name == "findings":
        return bool(conditions.findings or conditions.findings_absent)
    return getattr(conditions, name) is not None


def _given(conditions: ScanConditions) -> list[str]:
    return [
        name
        for name in (*(n for n in conditions.to_dict() if not n.startswith("findings")), "findings")
        if says(conditions, name)
    ]


def _without(conditions: ScanConditions, names: Sequence[str]) -> ScanConditions:
    unknown: dict[str, Any] = {name: () if name == "findings" else None for name in names}
    if "findings" in names:
        unknown["findings_absent"] = ()
    return replace(conditions, **unknown)


def _only(conditions: ScanConditions, names: Sequence[str]) -> ScanConditions:
    kept = {name: getattr(conditions, name) for name in names}
    if "findings" in names:
        kept["findings_absent"] = conditions.findings_absent
    return ScanConditions(**kept)
