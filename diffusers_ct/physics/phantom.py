"""Anatomical CT phantoms with known truth: five regions, every patient different, lesions with masks.

Implicit solids, drawn once per (seed, region) in patient coordinates and evaluated at any grid. They are drawings, not
patients: organs have plausible shapes, sizes, HU and texture, and nothing may be concluded about disease from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ..conditions import ScanConditions
from ..hounsfield import AIR_HU
from ..volume import CTVolume
from . import phantom_abdomen, phantom_head, phantom_pelvis, phantom_shoulder, phantom_thorax
from .phantom_anatomy import AGE_RANGE_YEARS, BLOOD_HU, CONTRAST_PHASES, ORGAN_LABELS, SEXES, Patient
from .phantom_canvas import Canvas, NoiseLattice, Warp
from .phantom_lesions import (
    LESION_KINDS,
    LESION_KINDS_OF_REGION,
    MIN_FINDING_VOXELS,
    Lesion,
    draw_lesions,
    findings_of,
    place_lesions,
    plan_lesions,
)

PHANTOM_VERSION = "3"
Region = Literal["thorax", "abdomen", "pelvis", "shoulder", "head"]  # indices go into the seed: append
_SLICES_AT_ONCE = 8
_CENTRE_RANGE_MM = 45.0
_PLACES = 8  # centres tried, if the caller fixes none, until the asked findings have room
REGION_MODULES = {
    "thorax": phantom_thorax, "abdomen": phantom_abdomen, "pelvis": phantom_pelvis, "shoulder": phantom_shoulder,
    "head": phantom_head,
}  # fmt: skip

__all__ = [
    "BLOOD_HU",
    "CONTRAST_PHASES",
    "LESION_KINDS",
    "LESION_KINDS_OF_REGION",
    "MIN_FINDING_VOXELS",
    "ORGAN_LABELS",
    "PHANTOM_VERSION",
    "Lesion",
    "Phantom",
    "Region",
    "make_phantom",
]


@dataclass(frozen=True)
class Phantom:
    """A noise-free scan and its truth.

    Attributes:
        volume: (depth, height, width) in HU. Its conditions name the contrast phase; the findings, which are the kinds
            of lesion with at least `MIN_FINDING_VOXELS` voxels of mask; and the absent findings, which are the kinds
            with none. A kind in between is in neither.
        organs: uint8 labels of `ORGAN_LABELS`, 0 outside the body.
        lesion_mask: uint8, 0 or 1 + the index in `lesions`; the truth, where the plan and the mask differ.
        lesions: those with at least one voxel in the volume.
    """

    volume: CTVolume
    organs: np.ndarray
    lesion_mask: np.ndarray
    lesions: list[Lesion]


def make_phantom(
    seed: int,
    region: Region,
    *,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    z_centre_mm: float | None = None,
    contrast_phase: str | None = None,
    findings: Sequence[str] | None = None,
    lesion_radius_mm: tuple[float, float] | None = None,
    age_years: float | None = None,
    sex: str | None = None,
) -> Phantom:
    """Draws the phantom patient of a seed.

    Without `findings` the patient has lesions over the length of the region, wherever the volume lies. With them, 1 to
    3 lesions of each asked kind, and no others, are placed where they show in this volume; so they depend on its
    grid, which the anatomy does not.

    Args:
        seed: patient; the same seed and region is the same anatomy at every shape and spacing.
        region: "thorax", "abdomen", "pelvis", "shoulder" or "head".
        shape: (depth, height, width). A field of view of 380 mm holds the whole trunk, one of 460 mm the shoulders with
            the arms at the sides, one of 230 mm the head.
        spacing_mm: (z, y, x).
        z_centre_mm: middle of the volume, in [-100, 100] from the region's middle; None draws one from the seed.
        contrast_phase: of `CONTRAST_PHASES`; None draws one from the seed.
        findings: kinds of lesion that show, of `LESION_KINDS_OF_REGION`; None draws lesions from the seed.
        lesion_radius_mm: (smallest, largest) radius of the lesions, instead of each kind's own range.
        age_years: in `AGE_RANGE_YEARS`; None draws one from the seed. What it changes: `AGE_EFFECTS`.
        sex: "F" or "M"; None draws one from the seed. What it changes: `SEX_EFFECTS`.

    Raises:
        ValueError: for an unknown region, phase, finding or sex, for an age out of range, for impossible sizes, or if a finding has no room in the
            volume.
    """
    if region not in get_args(Region):
        raise ValueError(f"Unknown region {region!r}: choose one of {', '.join(get_args(Region))}.")
    if len(shape) != 3 or min(shape) < 1 or len(spacing_mm) != 3 or not min(spacing_mm) > 0:
        raise ValueError(f"`shape` and `spacing_mm` must be three positive numbers, got {shape} and {spacing_mm}.")
    if z_centre_mm is not None and abs(z_centre_mm) > 100.0:
        raise ValueError(f"`z_centre_mm` must be in [-100, 100], got {z_centre_mm}.")
    if age_years is not None and not AGE_RANGE_YEARS[0] <= age_years <= AGE_RANGE_YEARS[1]:
        raise ValueError(f"`age_years` must be in {list(AGE_RANGE_YEARS)}: phantoms are adults; got {age_years}.")
    if sex is not None and sex not in SEXES:
        raise ValueError(f"`sex` must be one of {', '.join(SEXES)}, or None to draw one, got {sex!r}.")
    _check_choices(region, contrast_phase, findings, lesion_radius_mm)
    identity = [seed, get_args(Region).index(region)]
    rng = np.random.default_rng(identity)
    patient = Patient.draw(rng, region, contrast_phase, age_years=age_years, sex=sex)
    REGION_MODULES[region].plan(patient, rng)
    coarse = tuple(NoiseLattice(rng, 60.0, 16) for _ in range(3))
    fine = tuple(NoiseLattice(rng, 15.0, 48) for _ in range(3))
    planned = plan_lesions(rng, region, patient, lesion_radius_mm)
    drawn_centre_mm = float(rng.uniform(-_CENTRE_RANGE_MM, _CENTRE_RANGE_MM))
    centre_mm = drawn_centre_mm if z_centre_mm is None else float(z_centre_mm)

    def anatomy_at(centre_mm: float) -> tuple[np.ndarray, list[Canvas]]:
        z_mm = centre_mm + (np.arange(shape[0]) - (shape[0] - 1) / 2) * spacing_mm[0]
        parts = (z_mm[start : start + _SLICES_AT_ONCE] for start in range(0, len(z_mm), _SLICES_AT_ONCE))
        warp = ((coarse, 3.0), (fine, 0.65))
        return z_mm, [_draw_anatomy(region, patient, part, shape[1:], spacing_mm[1:], warp) for part in parts]

    z_mm, canvases = anatomy_at(centre_mm)
    if findings is not None:
        extra = np.random.default_rng([*identity, 1])  # drawing findings must not move what the seed draws without
        others = extra.uniform(-_CENTRE_RANGE_MM, _CENTRE_RANGE_MM, _PLACES - 1).tolist() if z_centre_mm is None else []
        while (placed := place_lesions(extra, canvases, patient, findings, lesion_radius_mm)) is None:
            if not others:
                raise ValueError(
                    f"No room for the findings {sorted(findings)} in {shape[0]} slices of {spacing_mm[0]} mm at z = "
                    f"{centre_mm:.0f} mm with pixels of {max(spacing_mm[1:])} mm: ask for a larger `lesion_radius_mm`, "
                    "more slices, smaller pixels or another `z_centre_mm`."
                )
            centre_mm = others.pop(0)
            z_mm, canvases = anatomy_at(centre_mm)
        planned = placed

    hu = np.empty(shape, dtype=np.float32)
    organs, lesion_mask = np.empty(shape, dtype=np.uint8), np.zeros(shape, dtype=np.uint8)
    start = 0
    for canvas in canvases:
        part = slice(start, start + canvas.size[0])
        lesion_mask[part] = draw_lesions(canvas, patient, planned)
        hu[part], organs[part] = canvas.hu, canvas.labels
        start = part.stop

    present = [i for i in range(len(planned)) if (lesion_mask == i + 1).any()]
    renumbered = np.zeros(len(planned) + 1, dtype=np.uint8)
    renumbered[[i + 1 for i in present]] = np.arange(1, len(present) + 1)
    seen, absent = findings_of(lesion_mask, planned)
    conditions = ScanConditions(
        body_part=region.upper(),
        age_years=patient.age_years,
        sex=patient.sex,
        kvp=120.0,
        slice_thickness_mm=spacing_mm[0],
        contrast_agent=patient.phase != "none",
        contrast_phase=patient.phase,
        findings=seen,
        findings_absent=absent,
    )
    volume = CTVolume.from_array(hu, spacing_mm, conditions)
    affine = volume.affine_lps.copy()
    affine[2, 3] = z_mm[0]
    volume = CTVolume(hu, spacing_mm, affine, conditions)
    return Phantom(volume, organs, renumbered[lesion_mask], [planned[i] for i in present])


def _draw_anatomy(
    region: str,
    patient: Patient,
    z_mm: np.ndarray,
    shape: tuple[int, int],
    pixel_mm: tuple[float, float],
    warp: Warp,
) -> Canvas:
    """Some slices of the healthy patient."""
    textures = ((patient.fine_texture, 0.75), (patient.coarse_texture, 0.66))
    canvas = Canvas(z_mm, shape, pixel_mm, warp, textures, AIR_HU)
    REGION_MODULES[region].draw(canvas, patient)
    canvas.forget_texture()
    return canvas


def _check_choices(
    region: str,
    contrast_phase: str | None,
    findings: Sequence[str] | None,
    lesion_radius_mm: tuple[float, float] | None,
) -> None:
    if contrast_phase is not None and contrast_phase not in CONTRAST_PHASES:
        raise ValueError(f"Unknown contrast phase {contrast_phase!r}: choose one of {', '.join(CONTRAST_PHASES)}.")
    kinds = LESION_KINDS_OF_REGION[region]
    if isinstance(findings, str) or any(finding not in kinds for finding in findings or ()):
        raise ValueError(f"`findings` of the {region} is a list of some of {', '.join(kinds)}, got {findings!r}.")
    if lesion_radius_mm is not None and not 0.0 < lesion_radius_mm[0] <= lesion_radius_mm[1] <= 40.0:
        raise ValueError(
            f"`lesion_radius_mm` must be (smallest, largest) with 0 < smallest <= largest <= 40, got {lesion_radius_mm}."
        )
