"""Lesions of the phantom: planned once per patient in mm, drawn with a lobulated edge, masked by their organ."""

from dataclasses import dataclass

import numpy as np

from .phantom_anatomy import ORGAN_LABELS, Patient
from .phantom_canvas import Canvas, Points


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


def plan_lesions(rng: np.random.Generator, region: str, patient: Patient) -> list[Lesion]:
    """Draws 8 to 14 lesions over the length of the region; some may fall outside the volume or their organ."""
    lesions = []
    for _ in range(int(rng.integers(8, 15))):
        kind = str(rng.choice(_BY_REGION[region]))
        organ, radii, values = _KINDS[kind]
        radius = float(np.exp(rng.uniform(*np.log(radii))))
        hu = float(rng.uniform(*values)) + (patient.hu["liver"] if kind == "metastasis" else 0.0)
        z, y, x = patient.place_in(rng, organ, radius)
        lesions.append(Lesion(kind, organ, (x, y, z), radius, hu))
    return lesions


def draw_lesions(canvas: Canvas, patient: Patient, lesions: list[Lesion]) -> np.ndarray:
    """Paints the lesions onto their organs; returns the mask, 1 + index of the lesion."""
    mask = np.zeros(canvas.size, dtype=np.uint8)
    for number, lesion in enumerate(lesions, start=1):
        x, y, z = lesion.centre_mm
        centre = np.array([z, y, x])
        reach = 1.3 * lesion.radius_mm

        def distance(points: Points, lesion: Lesion = lesion, centre: np.ndarray = centre) -> np.ndarray:
            away = np.sqrt(sum((p - c) ** 2 for p, c in zip(points, centre)))
            return away - lesion.radius_mm * (1.0 + 0.1 * patient.coarse_texture(points))

        found = canvas.coverage(distance, (centre - reach, centre + reach))
        if found is None:
            continue
        box, cover = found
        points = canvas.points
        cover = cover * (canvas.labels[box] == ORGAN_LABELS[lesion.organ])
        value = lesion.hu + patient.texture_hu[lesion.kind] * patient.fine_texture(
            (points[0][box], points[1][box], points[2][box])
        )
        canvas.hu[box] += cover * (value - canvas.hu[box])
        mask[box][cover > 0.5] = number
    return mask
