"""Lesions of the phantom: planned once per patient in mm, drawn with a lobulated edge, masked by their organ."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from .phantom_anatomy import ORGAN_LABELS, Patient
from .phantom_canvas import Box, Canvas
from .phantom_solids import Points, Solid


@dataclass(frozen=True)
class Lesion:
    """One lesion.

    Attributes:
        kind: "solid_nodule", "ground_glass_nodule", "metastasis", "cyst" or "lytic".
        organ: name in `ORGAN_LABELS` of the tissue that holds it.
        centre_mm: (x, y, z) in LPS, before the anatomy's smooth warp (at most some mm).
        radius_mm: mean radius; the edge is lobulated by some 10 %.
        hu: value inside.
    """

    kind: str
    organ: str
    centre_mm: tuple[float, float, float]
    radius_mm: float
    hu: float


# kind -> organ, range of the radius in mm, range of the HU inside
_KINDS: dict[str, tuple[str, tuple[float, float], tuple[float, float]]] = {
    "solid_nodule": ("lung", (2.0, 9.0), (10.0, 60.0)),
    "ground_glass_nodule": ("lung", (4.0, 10.0), (-700.0, -520.0)),
    "metastasis": ("liver", (3.0, 14.0), (-45.0, -15.0)),  # relative to the liver
    "cyst": ("liver", (2.5, 12.0), (0.0, 12.0)),
    "lytic": ("trabecular_bone", (3.0, 7.0), (30.0, 70.0)),
}
_BY_REGION = {
    "thorax": ("solid_nodule", "solid_nodule", "ground_glass_nodule", "lytic"),
    "abdomen": ("metastasis", "metastasis", "cyst", "lytic"),
}
LESION_KINDS = tuple(sorted(_KINDS))
LESION_KINDS_OF_REGION = {region: tuple(sorted(set(kinds))) for region, kinds in _BY_REGION.items()}

# A kind with fewer voxels of mask in the whole volume is not a finding that a reader could be held to.
MIN_FINDING_VOXELS = 4
_TRIES = 200
_MOST_OF_A_KIND = 3


def plan_lesions(
    rng: np.random.Generator, region: str, patient: Patient, radius_mm: tuple[float, float] | None = None
) -> list[Lesion]:
    """Draws 8 to 14 lesions over the length of the region; some may fall outside the volume or their organ."""
    lesions = []
    for _ in range(int(rng.integers(8, 15))):
        kind = str(rng.choice(_BY_REGION[region]))
        radius, hu = _draw_size_and_hu(rng, kind, patient, radius_mm)
        organ = _KINDS[kind][0]
        z, y, x = patient.place_in(rng, organ, radius)
        lesions.append(Lesion(kind, organ, (x, y, z), radius, hu))
    return lesions


def place_lesions(
    rng: np.random.Generator,
    canvases: Sequence[Canvas],
    patient: Patient,
    kinds: Collection[str],
    radius_mm: tuple[float, float] | None = None,
) -> list[Lesion] | None:
    """Draws 1 to 3 lesions of each of `kinds` so that they show in the anatomy painted on `canvases`.

    A lesion's centre lies in a voxel of its organ, at least `MIN_FINDING_VOXELS` voxels show and the organ holds half
    of it or more, and no two touch; radii too small for that on this grid are drawn anew.

    Returns:
        The lesions, sorted by kind; None if one of the kinds found no place.
    """
    lesions: list[Lesion] = []
    taken = [np.zeros(canvas.size, dtype=bool) for canvas in canvases]
    for kind in sorted(kinds):
        organ = _KINDS[kind][0]
        wanted, placed = int(rng.integers(1, _MOST_OF_A_KIND + 1)), 0
        inside = [np.flatnonzero(canvas.labels == ORGAN_LABELS[organ]) for canvas in canvases]
        ends = np.cumsum([len(voxels) for voxels in inside])
        for _ in range(_TRIES if ends[-1] else 0):
            radius, hu = _draw_size_and_hu(rng, kind, patient, radius_mm)
            drawn = int(rng.integers(ends[-1]))
            number = int(np.searchsorted(ends, drawn, side="right"))
            voxel = inside[number][drawn - ends[number]]
            z, y, x = (float(p.flat[voxel]) for p in canvases[number].points)
            lesion = Lesion(kind, organ, (x, y, z), radius, hu)
            if _claim(canvases, patient, lesion, taken):
                lesions.append(lesion)
                placed += 1
                if placed == wanted:
                    break
        if not placed:
            return None
    return lesions


def draw_lesions(canvas: Canvas, patient: Patient, lesions: list[Lesion]) -> np.ndarray:
    """Paints the lesions onto their organs; returns the mask, 1 + index of the lesion."""
    mask = np.zeros(canvas.size, dtype=np.uint8)
    for number, lesion in enumerate(lesions, start=1):
        found = _coverage(canvas, patient, lesion)
        if found is None:
            continue
        box, cover = found
        cover = cover * (canvas.labels[box] == ORGAN_LABELS[lesion.organ])
        points = canvas.points
        value = lesion.hu + patient.texture_hu[lesion.kind] * patient.fine_texture(
            (points[0][box], points[1][box], points[2][box])
        )
        canvas.hu[box] += cover * (value - canvas.hu[box])
        mask[box][cover > 0.5] = number
    return mask


def findings_of(mask: np.ndarray, lesions: Sequence[Lesion]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Kinds with at least `MIN_FINDING_VOXELS` voxels in a mask of `draw_lesions`, and kinds with none, of all kinds."""
    voxels = dict.fromkeys(LESION_KINDS, 0)
    for lesion, count in zip(lesions, np.bincount(mask.ravel(), minlength=len(lesions) + 1)[1:]):
        voxels[lesion.kind] += int(count)
    present = tuple(kind for kind, count in voxels.items() if count >= MIN_FINDING_VOXELS)
    return present, tuple(kind for kind, count in voxels.items() if count == 0)


def _draw_size_and_hu(
    rng: np.random.Generator, kind: str, patient: Patient, radius_mm: tuple[float, float] | None
) -> tuple[float, float]:
    _, radii, values = _KINDS[kind]
    radius = float(np.exp(rng.uniform(*np.log(radius_mm or radii))))
    hu = float(rng.uniform(*values)) + (patient.hu["liver"] if kind == "metastasis" else 0.0)
    return radius, hu


def _claim(canvases: Sequence[Canvas], patient: Patient, lesion: Lesion, taken: Sequence[np.ndarray]) -> bool:
    """Marks the voxels of a lesion as taken if it shows well enough on the canvases and touches no other."""
    voxels, shown, whole = 0, 0.0, 0.0
    claims: list[tuple[np.ndarray, np.ndarray]] = []
    for canvas, others in zip(canvases, taken):
        found = _coverage(canvas, patient, lesion)
        if found is None:
            continue
        box, cover = found
        if (others[box] & (cover > 0)).any():
            return False
        in_organ = canvas.labels[box] == ORGAN_LABELS[lesion.organ]
        voxels += int((in_organ & (cover > 0.5)).sum())
        shown, whole = shown + float(cover[in_organ].sum()), whole + float(cover.sum())
        claims.append((others[box], cover > 0))
    if voxels < MIN_FINDING_VOXELS or shown < 0.5 * whole:
        return False
    for others, claimed in claims:
        others |= claimed
    return True


def _coverage(canvas: Canvas, patient: Patient, lesion: Lesion) -> tuple[Box, np.ndarray] | None:
    """Box of a lesion and its coverage in [0, 1] there, as if its organ had no end."""
    x, y, z = lesion.centre_mm
    centre = np.array([z, y, x])
    reach = 1.3 * lesion.radius_mm

    def distance(points: Points) -> np.ndarray:
        away = np.sqrt(sum((p - c) ** 2 for p, c in zip(points, (z, y, x))))
        return away - lesion.radius_mm * (1.0 + 0.1 * patient.coarse_texture(points))

    return canvas.coverage(Solid(distance, tuple((centre - reach).tolist()), tuple((centre + reach).tolist())))
