"""What is known of a scan: the conditions a model may be told, their vocabularies, and how they become tensors."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any

import torch

CONDITION_NAMES = (
    "body_part",
    "age_years",
    "sex",
    "dose_fraction",
    "kvp",
    "tube_current_mas",
    "kernel",
    "manufacturer",
    "slice_thickness_mm",
    "spacing_mm",
    "contrast_agent",
    "contrast_phase",
    "findings",
    "text",
)
SEXES = ("M", "F", "O")  # DICOM PS3.3 C.7.1.1, PatientSex
NO_CONTRAST = "none"  # of `contrast_phase`

_LISTED = ("body_part", "kernel", "manufacturer", "contrast_phase", "findings")
_CATEGORICAL = ("body_part", "sex", "kernel", "manufacturer", "contrast_agent", "contrast_phase")
_POSITIVE = ("dose_fraction", "kvp", "tube_current_mas", "slice_thickness_mm")
_NUMERIC = ("age_years", *_POSITIVE)

# What a `ConditionEncoder` eats; every entry has the batch first.
#   body_part, sex, kernel, manufacturer, contrast_agent, contrast_phase: int64 (B,), index in the vocabulary, -1 unknown
#   age_years, dose_fraction, kvp, tube_current_mas, slice_thickness_mm: float32 (B,), NaN unknown
#   spacing_mm: float32 (B, 3) as (z, y, x), NaN unknown
#   findings: float32 (B, F), 1 present, 0 absent, NaN unknown
#   text: "text_states" float32 (B, L, E) and "text_mask" bool (B, L), all False unknown (see `models.encode_text`)
Fields = dict[str, torch.Tensor]


class ConditionError(ValueError):
    """A condition that the model was not trained with; the text says what it knows and what to do."""


@dataclass(frozen=True)
class ScanConditions:
    """Facts of one scan, its patient and what is seen in it; None means unknown.

    No field but `text` identifies a patient. A report may: it is not shown by `repr`, not written into prepared
    datasets and not pushed.

    Attributes:
        body_part: DICOM BodyPartExamined (0018,0015) as written, upper case.
        age_years: completed years; ages above 89 are stored as 90 (HIPAA safe harbour).
        sex: "M", "F" or "O".
        dose_fraction: of this scan's routine dose, in (0, 1].
        kvp: tube voltage in kV.
        tube_current_mas: exposure in mAs *as the header says*: Mayo quarter-dose headers carry the full-dose value.
        kernel: reconstruction kernel; several values joined by a backslash.
        manufacturer: as written in the header.
        slice_thickness_mm: nominal thickness, which may differ from the slice increment.
        contrast_agent: whether a contrast agent is recorded.
        contrast_phase: "none", "arterial", "portal" and the like, lower case.
        findings: names of findings known to be present.
        findings_absent: names of findings known to be absent; one in neither list is unknown.
        text: free text such as a radiology report.

    Raises:
        ValueError: if a value is out of its range or two of them contradict each other.
    """

    body_part: str | None = None
    age_years: float | None = None
    sex: str | None = None
    dose_fraction: float | None = None
    kvp: float | None = None
    tube_current_mas: float | None = None
    kernel: str | None = None
    manufacturer: str | None = None
    slice_thickness_mm: float | None = None
    contrast_agent: bool | None = None
    contrast_phase: str | None = None
    findings: tuple[str, ...] = ()
    findings_absent: tuple[str, ...] = ()
    text: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.dose_fraction is not None and not 0.0 < self.dose_fraction <= 1.0:
            raise ValueError(f"`dose_fraction` must be in (0, 1], got {self.dose_fraction}.")
        if self.sex is not None and self.sex not in SEXES:
            raise ValueError(f"`sex` must be 'M', 'F', 'O' or None, got {self.sex!r}.")
        for name in ("age_years", "kvp", "tube_current_mas", "slice_thickness_mm"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"`{name}` must be finite and not negative, got {value}.")
        for name in ("findings", "findings_absent"):
            object.__setattr__(self, name, _checked_findings(name, getattr(self, name)))
        if both := sorted(set(self.findings) & set(self.findings_absent)):
            raise ValueError(f"{', '.join(map(repr, both))} stands in both `findings` and `findings_absent`.")
        phase = self.contrast_phase
        if phase is not None and (not phase or phase != phase.strip().lower()):
            raise ValueError(f"`contrast_phase` must be a lower-case name or None, got {phase!r}.")
        if phase is not None and self.contrast_agent is not None and self.contrast_agent == (phase == NO_CONTRAST):
            raise ValueError(f"`contrast_phase` {phase!r} contradicts `contrast_agent` {self.contrast_agent}.")
        if self.text is not None and not self.text.strip():
            raise ValueError("`text` must not be blank: None says that there is none.")

    def to_dict(self) -> dict[str, Any]:
        """Plain dict of all fields, unknown ones as None; `ScanConditions(**...)` of it, or of its JSON, is equal."""
        return asdict(self)


def _checked_findings(name: str, value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise TypeError(f"`{name}` must be a list of names, got the string {value!r}: write ({value!r},).")
    findings = tuple(value)
    if any(not isinstance(finding, str) or not finding.strip() for finding in findings):
        raise ValueError(f"`{name}` must hold names, got {findings!r}.")
    if len(set(findings)) != len(findings):
        raise ValueError(f"`{name}` holds a finding twice: {findings!r}.")
    return findings


@dataclass(frozen=True)
class ConditionVocabulary:
    """Which conditions a model knows, and the values of those that are names.

    Attributes:
        names: of `CONDITION_NAMES`, in the order of the model's tokens.
        body_part: known values; likewise `kernel`, `manufacturer`, `contrast_phase`. Their order is that of the model.
        findings: known findings.

    Raises:
        ValueError: if a name is no condition, a value stands twice, or a list is empty that is needed.
    """

    names: tuple[str, ...]
    body_part: tuple[str, ...] = ()
    kernel: tuple[str, ...] = ()
    manufacturer: tuple[str, ...] = ()
    contrast_phase: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("names", *_LISTED):
            values = tuple(getattr(self, name))
            if len(set(values)) != len(values):
                raise ValueError(f"`{name}` of the vocabulary holds a value twice: {values!r}.")
            object.__setattr__(self, name, values)
        check_condition_names(self.names)
        for name in _LISTED:
            if name in self.names and not getattr(self, name):
                raise ValueError(f"`{name}` is among the `names` of the vocabulary, which lists no value of it.")

    @classmethod
    def from_scans(cls, conditions: Iterable[ScanConditions], names: Sequence[str]) -> "ConditionVocabulary":
        """The vocabulary of a training set: all values that occur, sorted.

        A finding belongs to it if some scan has it: a model never shown one cannot draw it.

        Raises:
            ValueError: if a name is no condition, or no scan says anything of one. (The spacing and the text are not
                part of a prepared scan's conditions and are taken on trust.)
        """
        check_condition_names(names)
        scans = list(conditions)
        seen = {name: {v for scan in scans for v in _known_values(scan, name)} for name in names}
        if silent := [name for name in names if name not in ("spacing_mm", "text") and not seen[name]]:
            raise ValueError(
                f"None of the {len(scans)} scans says anything of {', '.join(f'`{name}`' for name in silent)}: a model "
                "cannot learn from that. Leave it out of the conditions."
            )
        return cls(tuple(names), **{name: tuple(sorted(seen[name])) for name in _LISTED if name in names})

    def values_of(self, name: str) -> tuple[Any, ...]:
        """Known values of a condition that is one of several, in the order of their index."""
        fixed: dict[str, tuple[Any, ...]] = {"sex": SEXES, "contrast_agent": (False, True)}
        return fixed[name] if name in fixed else getattr(self, name)

    def to_config(self) -> dict[str, list[str]]:
        """Arguments of `ConditionEncoder` that say what it knows: `ConditionEncoder(**vocabulary.to_config())`."""
        return {argument: list(getattr(self, name)) for name, argument in _CONFIG.items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ConditionVocabulary":
        """What an encoder knows, from its `config`; the inverse of `to_config`."""
        return cls(**{name: tuple(config[argument]) for name, argument in _CONFIG.items()})


# name here -> argument of ConditionEncoder
_CONFIG = {
    "names": "conditions",
    "body_part": "body_parts",
    "kernel": "kernels",
    "manufacturer": "manufacturers",
    "contrast_phase": "contrast_phases",
    "findings": "findings",
}


def _known_values(scan: ScanConditions, name: str) -> tuple[Any, ...]:
    if name in ("spacing_mm", "text"):
        return ()
    value = getattr(scan, name)
    return value if name == "findings" else () if value is None else (value,)


def check_condition_names(names: Collection[str]) -> None:
    """Refuses names that are no condition.

    Raises:
        ValueError: naming the first one and what there is, nearest first.
    """
    for name in names:
        if name not in CONDITION_NAMES:
            raise ValueError(f"{name!r} is no condition: choose of {', '.join(nearest_first(name, CONDITION_NAMES))}.")


def nearest_first(value: object, known: Collection[str]) -> list[str]:
    """`known` with what reads most like `value` first, and the rest in its own order; case does not matter."""
    close = get_close_matches(str(value).lower(), [str(k).lower() for k in known], n=max(len(known), 1))
    return sorted(known, key=lambda k: close.index(str(k).lower()) if str(k).lower() in close else len(close))


def collate_conditions(
    conditions: Sequence[ScanConditions],
    vocabulary: ConditionVocabulary,
    *,
    spacing_mm: Sequence[Sequence[float]] | None = None,
    strict: bool = True,
) -> tuple[Fields, list[str]]:
    """Turns the conditions of a batch into tensors.

    Args:
        conditions: one a scan.
        vocabulary: of the model.
        spacing_mm: (z, y, x) of each scan; taken where the vocabulary has it, unknown if None.
        strict: refuse what the model does not know (conditions that someone asks for) rather than leave it out
            (what a header or a training row happens to say).

    Returns:
        `Fields` with an entry for every name of the vocabulary except "text", whose states come from a text encoder;
        and a sentence on each thing that was left out, none if `strict`.

    Raises:
        ConditionError: if `strict` and a value or a condition is unknown to the model.
        ValueError: if the batch is empty or the spacings do not fit it.
    """
    if not conditions:
        raise ValueError("A batch of conditions needs at least one scan.")
    left_out: dict[str, None] = {}

    def refuse(problem: str, remedy: str) -> None:
        if strict:
            raise ConditionError(f"{problem} {remedy}")
        left_out[f"{problem} It was left out."] = None

    for scan in conditions:
        _check_only_known(scan, vocabulary, refuse)
    fields: Fields = {}
    for name in vocabulary.names:
        if name in _CATEGORICAL:
            indices = [_index_of(getattr(scan, name), name, vocabulary, refuse) for scan in conditions]
            fields[name] = torch.tensor(indices, dtype=torch.int64)
        elif name in _NUMERIC:
            values = [_number_of(getattr(scan, name), name, refuse) for scan in conditions]
            fields[name] = torch.tensor(values, dtype=torch.float32)
        elif name == "findings":
            fields[name] = torch.tensor([_findings_of(scan, vocabulary, refuse) for scan in conditions])
        elif name == "spacing_mm":
            fields[name] = _spacings(spacing_mm, len(conditions))
    return fields, list(left_out)


def _check_only_known(scan: ScanConditions, vocabulary: ConditionVocabulary, refuse: Any) -> None:
    for name, value in vars(scan).items():
        condition = "findings" if name == "findings_absent" else name
        if condition in vocabulary.names or value is None or value == ():
            continue
        given = "" if name == "text" else f" (it is {value!r})"
        known = ", ".join(nearest_first(condition, vocabulary.names)) or "no condition"
        refuse(
            f"This checkpoint was not trained with `{condition}`{given}: it knows {known}.",
            f"Set `{name}` to {'()' if condition == 'findings' else None}, or use a checkpoint trained with it.",
        )


def _index_of(value: Any, name: str, vocabulary: ConditionVocabulary, refuse: Any) -> int:
    known = vocabulary.values_of(name)
    if value is None:
        return -1
    if value in known:
        return known.index(value)
    refuse(_unknown_value(name, value, known), f"Choose one of these, set `{name}` to None, or use another checkpoint.")
    return -1


def _number_of(value: float | None, name: str, refuse: Any) -> float:
    if value is None:
        return math.nan
    if value == 0 and name in _POSITIVE:
        refuse(f"`{name}` is 0, which a model cannot be told.", "Give a positive number, or None for unknown.")
        return math.nan
    return float(value)


def _findings_of(scan: ScanConditions, vocabulary: ConditionVocabulary, refuse: Any) -> list[float]:
    state = dict.fromkeys(vocabulary.findings, math.nan)
    for name, value in (("findings", 1.0), ("findings_absent", 0.0)):
        for finding in getattr(scan, name):
            if finding in state:
                state[finding] = value
            else:
                refuse(
                    _unknown_value(name, finding, vocabulary.findings),
                    f"Choose of these, leave it out of `{name}`, or use another checkpoint.",
                )
    return list(state.values())


def _unknown_value(name: str, value: object, known: Collection[str]) -> str:
    listed = ", ".join(map(repr, nearest_first(value, known)))
    return f"`{name}` {value!r} is not known to this checkpoint, which knows {listed}."


def _spacings(spacing_mm: Sequence[Sequence[float]] | None, count: int) -> torch.Tensor:
    if spacing_mm is None:
        return torch.full((count, 3), math.nan)
    spacings = torch.tensor([[float(s) for s in spacing] for spacing in spacing_mm], dtype=torch.float32)
    if spacings.shape != (count, 3) or not (spacings > 0).all():
        raise ValueError(f"`spacing_mm` must be {count} x (z, y, x) in mm, all positive, got {spacing_mm}.")
    return spacings
