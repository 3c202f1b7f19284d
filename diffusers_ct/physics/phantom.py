"""Anatomical CT phantoms with known truth: thorax and abdomen, every patient different, lesions with masks.

Implicit solids, drawn once per (seed, region) in patient coordinates and evaluated at any grid. They are drawings, not
patients: organs have plausible shapes, sizes, HU and texture, and nothing may be concluded about disease from them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ..conditions import ScanConditions
from ..hounsfield import AIR_HU
from ..volume import CTVolume
from .phantom_anatomy import ORGAN_LABELS, Patient, draw_abdomen, draw_thorax, draw_trunk
from .phantom_canvas import Canvas, NoiseLattice
from .phantom_lesions import Lesion, draw_lesions, plan_lesions

PHANTOM_VERSION = "1"
Region = Literal["thorax", "abdomen"]
_SLICES_AT_ONCE = 8
_DRAW: dict[str, Callable[[Canvas, Patient], None]] = {"thorax": draw_thorax, "abdomen": draw_abdomen}

__all__ = ["ORGAN_LABELS", "PHANTOM_VERSION", "Lesion", "Phantom", "Region", "make_phantom"]


@dataclass(frozen=True)
class Phantom:
    """A noise-free scan and its truth.

    Attributes:
        volume: (depth, height, width) in HU.
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
) -> Phantom:
    """Draws the phantom patient of a seed.

    Args:
        seed: patient; the same seed and region is the same anatomy at every shape and spacing.
        region: "thorax" or "abdomen".
        shape: (depth, height, width). A field of view of 380 mm or more holds the whole body.
        spacing_mm: (z, y, x).
        z_centre_mm: middle of the volume, in [-100, 100] from the region's middle; None draws one from the seed.

    Raises:
        ValueError: for an unknown region or impossible sizes.
    """
    if region not in get_args(Region):
        raise ValueError(f"Unknown region {region!r}: choose one of {', '.join(get_args(Region))}.")
    if len(shape) != 3 or min(shape) < 1 or len(spacing_mm) != 3 or not min(spacing_mm) > 0:
        raise ValueError(f"`shape` and `spacing_mm` must be three positive numbers, got {shape} and {spacing_mm}.")
    if z_centre_mm is not None and abs(z_centre_mm) > 100.0:
        raise ValueError(f"`z_centre_mm` must be in [-100, 100], got {z_centre_mm}.")
    rng = np.random.default_rng([seed, get_args(Region).index(region)])
    patient = Patient.draw(rng, region)
    coarse = tuple(NoiseLattice(rng, 60.0, 16) for _ in range(3))
    fine = tuple(NoiseLattice(rng, 15.0, 48) for _ in range(3))
    planned = plan_lesions(rng, region, patient)
    drawn_centre_mm = float(rng.uniform(-45.0, 45.0))
    centre_mm = drawn_centre_mm if z_centre_mm is None else float(z_centre_mm)

    depth, height, width = shape
    z_mm = centre_mm + (np.arange(depth) - (depth - 1) / 2) * spacing_mm[0]
    hu = np.empty(shape, dtype=np.float32)
    organs, lesion_mask = np.empty(shape, dtype=np.uint8), np.zeros(shape, dtype=np.uint8)
    for start in range(0, depth, _SLICES_AT_ONCE):
        part = slice(start, min(start + _SLICES_AT_ONCE, depth))
        warp = ((coarse, 3.0), (fine, 0.65))
        canvas = Canvas(z_mm[part], (height, width), (spacing_mm[1], spacing_mm[2]), warp, AIR_HU)
        draw_trunk(canvas, patient)
        _DRAW[region](canvas, patient)
        lesion_mask[part] = draw_lesions(canvas, patient, planned)
        hu[part], organs[part] = canvas.hu, canvas.labels

    present = [i for i in range(len(planned)) if (lesion_mask == i + 1).any()]
    renumbered = np.zeros(len(planned) + 1, dtype=np.uint8)
    renumbered[[i + 1 for i in present]] = np.arange(1, len(present) + 1)
    conditions = ScanConditions(
        body_part=region.upper(), kvp=120.0, slice_thickness_mm=spacing_mm[0], contrast_agent=patient.phase != "none"
    )
    volume = CTVolume.from_array(hu, spacing_mm, conditions)
    affine = volume.affine_lps.copy()
    affine[2, 3] = z_mm[0]
    volume = CTVolume(hu, spacing_mm, affine, conditions)
    return Phantom(volume, organs, renumbered[lesion_mask], [planned[i] for i in present])
