"""What is known of how a scan was made: the conditions a model may be told."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ScanConditions:
    """Acquisition and patient facts of one scan; None means unknown. Nothing here identifies a patient.

    Attributes:
        body_part: DICOM BodyPartExamined (0018,0015) as written, upper case.
        age_years: whole years; ages above 89 are stored as 90 (HIPAA safe harbour).
        sex: "M", "F" or "O".
        dose_fraction: of this scan's routine dose, in (0, 1].
        kvp: tube voltage in kV.
        tube_current_mas: exposure in mAs *as the header says*: Mayo quarter-dose headers carry the full-dose value.
        kernel: reconstruction kernel; several values joined by a backslash.
        manufacturer: as written in the header.
        slice_thickness_mm: nominal thickness, which may differ from the slice increment.
        contrast_agent: whether a contrast agent is recorded.
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

    def __post_init__(self) -> None:
        if self.dose_fraction is not None and not 0.0 < self.dose_fraction <= 1.0:
            raise ValueError(f"`dose_fraction` must be in (0, 1], got {self.dose_fraction}.")
        if self.sex not in (None, "M", "F", "O"):
            raise ValueError(f"`sex` must be 'M', 'F', 'O' or None, got {self.sex!r}.")
        for name in ("age_years", "kvp", "tube_current_mas", "slice_thickness_mm"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"`{name}` must not be negative, got {value}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain dict of all fields, unknown ones as None."""
        return asdict(self)
