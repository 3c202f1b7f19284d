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
        kind: of `LESION_KINDS`.
        organ: name in `ORGAN_LABELS` of the tissue that holds it.
        centre_mm: (x, y, z) in LPS, before the anatomy's smooth warp (at most some mm).
        radius_mm: mean radius; the edge is lobulated by some 10 %.
        hu: value inside; of an infarct, what it takes from the tissue in which it lies.
    """

    kind: str
    organ: str
    centre_mm: tuple[float, float, float]
    radius_mm: float
    hu: float


@dataclass(frozen=True)
class LesionRange:
    """Where a kind of lesion grows and between what limits it is drawn.

    Attributes:
        organ: name in `ORGAN_LABELS` of the tissue that holds it.
        radius_mm: (smallest, largest) mean radius.
        hu: (lowest, highest) value inside; with `relative_to`, the difference from that tissue.
        relative_to: tissue of the patient; None for absolute HU.
        adds: the HU is added to whatever tissue lies there.
        stretch: half axes (z, y, x) relative to the mean radius; their product is about 1.
        also: further tissues that it takes in.
    """

    organ: str
    radius_mm: tuple[float, float]
    hu: tuple[float, float]
    relative_to: str | None = None
    adds: bool = False
    stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)
    also: tuple[str, ...] = ()

    @property
    def labels(self) -> list[int]:
        """Of the tissues that a lesion may replace."""
        return [ORGAN_LABELS[name] for name in (self.organ, *self.also)]


_BRAIN = ("grey_matter",)
# Indices of kinds are labels and weights elsewhere: new kinds are appended.
LESION_RANGES: dict[str, LesionRange] = {
    "cyst": LesionRange("liver", (2.5, 12.0), (0.0, 12.0)),
    "ground_glass_nodule": LesionRange("lung", (4.0, 10.0), (-700.0, -520.0)),
    "lytic": LesionRange("trabecular_bone", (3.0, 7.0), (30.0, 70.0)),
    "metastasis": LesionRange("liver", (3.0, 14.0), (-45.0, -15.0), relative_to="liver"),
    "solid_nodule": LesionRange("lung", (2.0, 9.0), (10.0, 60.0)),
    "haemorrhage": LesionRange("white_matter", (4.0, 16.0), (50.0, 75.0), also=(*_BRAIN, "csf")),
    "infarct": LesionRange(
        "white_matter", (8.0, 20.0), (-15.0, -8.0), adds=True, stretch=(1.1, 1.35, 0.67), also=_BRAIN
    ),
}
_BY_REGION = {
    "thorax": ("solid_nodule", "solid_nodule", "ground_glass_nodule", "lytic"),
    "abdomen": ("metastasis", "metastasis", "cyst", "lytic"),
    "pelvis": ("lytic",),
    "shoulder": ("solid_nodule", "lytic", "lytic"),
    "head": ("haemorrhage", "infarct"),
}
LESION_KINDS = tuple(LESION_RANGES)
LESION_KINDS_OF_REGION = {region: tuple(sorted(set(kinds))) for region, kinds in _BY_REGION.items()}
# How many lesions a patient has whose findings are not asked for.
_COUNTS = {"thorax": (8, 14), "abdomen": (8, 14), "pelvis": (3, 8), "shoulder": (6, 12), "head": (0, 3)}

# A kind with fewer voxels of mask in the whole volume is not a finding that a reader could be held to.
MIN_FINDING_VOXELS = 4
_TRIES = 200
_MOST_OF_A_KIND = 3


def plan_lesions(
    rng: np.random.Generator, region: str, patient: Patient, radius_mm: tuple[float, float] | None = None
) -> list[Lesion]:
    """Draws lesions over the length of the region; some may fall outside the volume or their organ."""
    lesions = []
    fewest, most = _COUNTS[region]
    for _ in range(int(rng.integers(fewest, most + 1))):
        kind = str(rng.choice(_BY_REGION[region]))
        radius, hu = _draw_size_and_hu(rng, kind, patient, radius_mm)
        organ = LESION_RANGES[kind].organ
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
        organ = LESION_RANGES[kind].organ
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
        cover = cover * np.isin(canvas.labels[box], LESION_RANGES[lesion.kind].labels)
        points = canvas.points
        value = lesion.hu + patient.texture_hu[lesion.kind] * patient.fine_texture(
            (points[0][box], points[1][box], points[2][box])
        )
        canvas.hu[box] += cover * (value if LESION_RANGES[lesion.kind].adds else value - canvas.hu[box])
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
    limits = LESION_RANGES[kind]
    radius = float(np.exp(rng.uniform(*np.log(radius_mm or limits.radius_mm))))
    hu = float(rng.uniform(*limits.hu)) + (patient.hu[limits.relative_to] if limits.relative_to else 0.0)
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
        in_organ = np.isin(canvas.labels[box], LESION_RANGES[lesion.kind].labels)
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
    stretch = LESION_RANGES[lesion.kind].stretch
    reach = 1.3 * lesion.radius_mm * np.array(stretch)

    def distance(points: Points) -> np.ndarray:
        away = np.sqrt(sum(((p - c) / s) ** 2 for p, c, s in zip(points, (z, y, x), stretch)))
        return away - lesion.radius_mm * (1.0 + 0.1 * patient.coarse_texture(points))

    return canvas.coverage(Solid(distance, tuple((centre - reach).tolist()), tuple((centre + reach).tolist())))
