"""The contract of a checkpoint: which scans it was made for, written into the pipeline's config and checked in use."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..conditions import ScanConditions


class ContractError(ValueError):
    """A scan lies outside what a checkpoint was trained on.

    Attributes:
        outside: name of each broken promise -> what the scan has and what is accepted, in words.
    """

    def __init__(self, message: str, outside: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.outside = dict(outside or {})


Range = tuple[float, float]
# Names that scanners write for one body part (DICOM PS3.16 annex L has CHEST and THORAX; ABD is of some vendors).
_SAME_BODY_PART = {"THORAX": "CHEST", "ABD": "ABDOMEN"}
TARGETS = ("residual", "image")


@dataclass(frozen=True)
class CheckpointContract:
    """What a checkpoint may be used on; None or an empty list where nothing is promised.

    Attributes:
        training_data: what it was trained on, in words.
        training_data_licence: licence of that data.
        hu_range: HU that the training data held, (lower, upper).
        target: "residual" (low-dose restoration) or "image" (synthesis).
        slice_spacing_mm: range of the distance of slices.
        pixel_spacing_mm: range of the in-plane spacing.
        slice_thickness_mm: range of the nominal thickness.
        noise_level_hu: range of the measured noise level of the low-dose input (`residual.estimate_noise_hu`).
        dose_fraction: range of the dose of the input.
        kernels: reconstruction kernels by name.
        body_parts: by DICOM name; CHEST and THORAX are one, and so are ABD and ABDOMEN.
        package_version: that wrote the checkpoint.
        volume_shape: (depth, height, width) of the training slabs of a synthesis model; a longer volume is made in
            overlapping slabs of this depth.
    """

    training_data: str
    training_data_licence: str
    hu_range: Range = (-1024.0, 3071.0)
    target: str = "residual"
    slice_spacing_mm: Range | None = None
    pixel_spacing_mm: Range | None = None
    slice_thickness_mm: Range | None = None
    noise_level_hu: Range | None = None
    dose_fraction: Range | None = None
    kernels: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    package_version: str | None = None
    volume_shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"`target` must be one of {TARGETS}, got {self.target!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: tuples as lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, contract: Mapping[str, Any]) -> "CheckpointContract":
        """Inverse of `to_dict`; entries of later versions are left out."""
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in contract.items() if k in known}
        return cls(**values)

    @classmethod
    def from_scans(
        cls,
        spacings_mm: Iterable[tuple[float, float, float]],
        noise_levels_hu: Iterable[float],
        dose_fractions: Iterable[float],
        conditions: Iterable[ScanConditions],
        *,
        training_data: str,
        training_data_licence: str,
        package_version: str,
        tolerance: float = 0.1,
        target: str = "residual",
        volume_shape: tuple[int, int, int] | None = None,
    ) -> "CheckpointContract":
        """The contract that a training set implies: the ranges it covers, widened by a relative tolerance."""
        spacings, conditions = list(spacings_mm), list(conditions)

        def span(values: Iterable[float | None]) -> Range | None:
            known = [float(v) for v in values if v is not None]
            return (min(known) * (1 - tolerance), max(known) * (1 + tolerance)) if known else None

        return cls(
            training_data,
            training_data_licence,
            slice_spacing_mm=span(s[0] for s in spacings),
            pixel_spacing_mm=span(s[1] for s in spacings),
            slice_thickness_mm=span(c.slice_thickness_mm for c in conditions),
            noise_level_hu=span(noise_levels_hu),
            dose_fraction=span(dose_fractions),
            kernels=tuple(sorted({c.kernel for c in conditions if c.kernel})),
            body_parts=tuple(sorted({c.body_part for c in conditions if c.body_part})),
            package_version=package_version,
            target=target,
            volume_shape=volume_shape,
        )

    def check(
        self,
        *,
        spacing_mm: tuple[float, float, float],
        noise_level_hu: Range | None,
        conditions: ScanConditions,
        ignore: Iterable[str] = (),
    ) -> list[str]:
        """Checks a scan; returns the names of promises that could not be checked because the scan does not say.

        Raises:
            ContractError: naming all that lies outside, what is accepted, and how to go on all the same.
            ValueError: if a name in `ignore` is not one of the contract's.
        """
        ignored = {ignore} if isinstance(ignore, str) else set(ignore)
        if unknown := ignored - set(self.checkable()):
            raise ValueError(f"`ignore_contract` names {sorted(unknown)}; it can name {', '.join(self.checkable())}.")
        found: dict[str, Any] = {
            "slice_spacing_mm": spacing_mm[0],
            "pixel_spacing_mm": (min(spacing_mm[1:]), max(spacing_mm[1:])),
            "slice_thickness_mm": conditions.slice_thickness_mm,
            "noise_level_hu": noise_level_hu,
            "dose_fraction": conditions.dose_fraction,
            "kernels": conditions.kernel,
            "body_parts": conditions.body_part,
        }
        outside, unchecked = [], []
        for name, value in found.items():
            accepted = getattr(self, name)
            if not accepted or name in ignored:
                continue
            if value is None:
                unchecked.append(name)
            elif isinstance(value, str):
                if _plain(name, value) not in {_plain(name, one) for one in accepted}:
                    outside.append((name, f"is {value!r}, accepted are {', '.join(accepted)}"))
            else:
                low, high = value if isinstance(value, tuple) else (value, value)
                if low < accepted[0] or high > accepted[1]:
                    shown = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
                    outside.append((name, f"is {shown}, accepted is {accepted[0]:.3g} to {accepted[1]:.3g}"))
        if outside:
            lines = "; ".join(f"{name} {text}" for name, text in outside)
            names = ", ".join(repr(name) for name, _ in outside)
            raise ContractError(
                f"This scan lies outside what the checkpoint was trained on: {lines}. Use a checkpoint made for such "
                f"scans, or, knowing that the result is not validated, pass ignore_contract=[{names}] "
                "(--ignore-contract on the command line).",
                dict(outside),
            )
        return unchecked

    @staticmethod
    def checkable() -> tuple[str, ...]:
        """Names that `ignore_contract` may hold."""
        return (
            "slice_spacing_mm", "pixel_spacing_mm", "slice_thickness_mm", "noise_level_hu", "dose_fraction", "kernels",
            "body_parts", "volume_shape",
        )  # fmt: skip


def _plain(name: str, value: str) -> str:
    """One spelling for the values of a promise that mean the same."""
    return _SAME_BODY_PART.get(value, value) if name == "body_parts" else value
