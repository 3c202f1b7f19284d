"""Anatomy of the phantom: a patient's random build, and the organs of trunk, thorax and abdomen, back to front.

Sizes and HU follow textbook CT anatomy of adults (HU: Hofer, CT Teaching Manual; Kalender, Computed Tomography) with
random habitus, organ shape and contrast phase. Positions are (z, y, x) in mm: z to the head from the region's middle,
y to the back, x to the patient's left.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .phantom_canvas import (
    Canvas,
    NoiseLattice,
    Points,
    capsule,
    capsule_bounds,
    ellipsoid,
    ellipsoid_bounds,
    grow_tree,
)

ORGAN_LABELS: dict[str, int] = {
    "fat": 1, "muscle": 2, "lung": 3, "blood": 4, "heart": 5, "airway": 6, "cortical_bone": 7, "trabecular_bone": 8,
    "liver": 9, "spleen": 10, "kidney": 11, "bowel": 12, "gas": 13, "gall_bladder": 14, "pancreas": 15, "skin": 16,
    "disc": 17,
}  # fmt: skip
_L = ORGAN_LABELS
_BASE_HU = {
    "fat": -100.0, "muscle": 55.0, "lung": -860.0, "skin": 30.0, "disc": 85.0, "trabecular_bone": 190.0,
    "cortical_bone": 800.0, "bowel": 25.0, "gas": -990.0, "gall_bladder": 8.0, "wall": 60.0,
}  # fmt: skip
CONTRAST_PHASES = ("none", "arterial", "portal")
# HU of perfused tissue in these phases.
_PERFUSED_HU = {
    "blood": (42.0, 280.0, 160.0), "vein": (42.0, 90.0, 165.0), "heart": (45.0, 180.0, 140.0),
    "liver": (58.0, 75.0, 112.0), "spleen": (48.0, 110.0, 122.0), "cortex": (34.0, 170.0, 175.0),
    "medulla": (32.0, 70.0, 150.0), "pancreas": (42.0, 95.0, 95.0),
}  # fmt: skip
BLOOD_HU = dict(zip(CONTRAST_PHASES, _PERFUSED_HU["blood"]))  # nominal; each patient's own is within 10 % of it
_TEXTURE_HU = {
    "fat": 7.0, "muscle": 8.0, "lung": 30.0, "liver": 6.0, "spleen": 5.0, "cortex": 7.0, "heart": 5.0,
    "trabecular_bone": 75.0, "bowel": 14.0, "pancreas": 12.0, "solid_nodule": 8.0, "ground_glass_nodule": 35.0,
    "metastasis": 6.0, "cyst": 2.0, "lytic": 15.0,
}  # fmt: skip
Segment = tuple[np.ndarray, np.ndarray, float, float]


@dataclass
class Patient:
    """What is drawn once per patient: build, HU, organ positions, trees, textures."""

    phase: str
    hu: dict[str, float]
    texture_hu: dict[str, float]
    size: dict[str, float]
    solids: dict[str, tuple[np.ndarray, np.ndarray]]
    trees: dict[str, list[Segment]]
    fine_texture: NoiseLattice
    coarse_texture: NoiseLattice
    details: dict[str, Any]

    @classmethod
    def draw(cls, rng: np.random.Generator, region: str, contrast_phase: str | None = None) -> "Patient":
        """Draws a patient; a given phase of `CONTRAST_PHASES` replaces the drawn one and changes nothing else."""
        drawn_phase = str(rng.choice(CONTRAST_PHASES, p=[0.35, 0.25, 0.4]))
        phase = contrast_phase or drawn_phase
        index = CONTRAST_PHASES.index(phase)
        hu = {k: v * rng.uniform(0.97, 1.03) for k, v in _BASE_HU.items()}
        hu |= {k: v[index] * rng.uniform(0.9, 1.1) for k, v in _PERFUSED_HU.items()}
        hu["lung"] = rng.uniform(-885.0, -820.0)
        hu["trabecular_bone"] = rng.uniform(120.0, 260.0)
        texture = {k: v * rng.uniform(0.7, 1.3) for k, v in _TEXTURE_HU.items()}
        fat = rng.uniform(7.0, 30.0)
        inner_x, inner_y = rng.uniform(126.0, 142.0), rng.uniform(86.0, 98.0)
        size = {"fat": fat, "inner_x": inner_x, "inner_y": inner_y, "muscle": rng.uniform(9.0, 15.0)}
        patient = cls(phase, hu, texture, size, {}, {}, NoiseLattice(rng, 1.7, 48, 0.5), NoiseLattice(rng, 7.0, 48), {})
        (patient._plan_thorax if region == "thorax" else patient._plan_abdomen)(rng)
        return patient

    def place_in(self, rng: np.random.Generator, organ: str, margin_mm: float) -> tuple[float, float, float]:
        """A random place (z, y, x) well inside an organ's solid."""
        names = {"trabecular_bone": ["vertebra"], "lung": ["lung_right", "lung_left"]}.get(organ, [organ])
        centre, radii = self.solids[str(rng.choice(names))]
        room = np.maximum(np.asarray(radii) - margin_mm, 0.25 * np.asarray(radii))
        direction = rng.normal(size=3)
        direction *= rng.uniform(0.0, 0.9) ** (1 / 3) / np.linalg.norm(direction)
        z, y, x = np.asarray(centre) + direction * room
        return float(z), float(y), float(x)

    def tissue(self, canvas: Canvas, name: str, texture: str | None = None) -> np.ndarray:
        """HU field of a tissue with its texture, on the whole grid."""
        amplitude = self.texture_hu.get(texture or name, 0.0)
        return self.hu[name] + amplitude * canvas.mixed_texture(self.fine_texture, self.coarse_texture)

    def _solid(self, name: str, centre: tuple[float, ...], radii: tuple[float, ...]) -> None:
        self.solids[name] = (np.asarray(centre), np.asarray(radii))

    def _plan_thorax(self, rng: np.random.Generator) -> None:
        wide, deep = self.size["inner_x"], self.size["inner_y"]
        for name, side in (("lung_right", -1.0), ("lung_left", 1.0)):
            radius_x = wide * rng.uniform(0.40, 0.44)
            self._solid(
                name, (10.0, rng.uniform(-4, 4), side * (wide - radius_x - 6.0)), (150.0, deep * 0.86, radius_x)
            )
        self._solid("heart", (-45.0, -deep * 0.33, 22.0), (70.0, rng.uniform(36, 44), rng.uniform(46, 56)))
        self._solid("vertebra", (0.0, deep * 0.66, 0.0), (110.0, 14.0, 17.0))
        for side in (-1.0, 1.0):
            trees: list[Segment] = []
            for heading_z in (0.9, 0.4, -0.1, -0.6, -1.1):
                heading = (heading_z + rng.normal(0, 0.1), rng.normal(0.15, 0.4), side)
                root = (10.0 + 10 * heading_z, -4.0, side * 26.0)
                trees += grow_tree(rng, root, heading, rng.uniform(4.0, 5.5), rng.uniform(24.0, 32.0), 7)
            self.trees[f"lung_{'right' if side < 0 else 'left'}"] = trees
        self.details["fissure"] = (rng.uniform(-0.75, -0.45), rng.uniform(-15.0, 15.0))
        self.details["rib_offset_mm"] = rng.uniform(0.0, 28.0)

    def _plan_abdomen(self, rng: np.random.Generator) -> None:
        wide, deep = self.size["inner_x"], self.size["inner_y"]
        self._solid("liver", (25.0, -8.0, -wide * 0.40), (rng.uniform(95, 120), deep * 0.74, wide * 0.50))
        self._solid("liver_left", (35.0, -deep * 0.42, -wide * 0.02), (rng.uniform(55, 75), deep * 0.36, wide * 0.42))
        self._solid("spleen", (35.0, deep * 0.36, wide * 0.72), (rng.uniform(42, 60), deep * 0.36, 26.0))
        self._solid("stomach", (30.0, -deep * 0.36, wide * 0.46), (60.0, deep * 0.32, wide * 0.28))
        for name, side in (("kidney_right", -1.0), ("kidney_left", 1.0)):
            centre = (-35.0 + 8 * side + rng.normal(0, 5), deep * 0.42, side * wide * 0.47)
            self._solid(name, centre, (rng.uniform(48, 58), rng.uniform(25, 30), rng.uniform(24, 29)))
        self._solid("vertebra", (0.0, deep * 0.50, 0.0), (110.0, 16.0, 21.0))
        self._solid("gall_bladder", (-15.0, -deep * 0.30, -wide * 0.27), (28.0, 15.0, 13.0))
        tree: list[Segment] = []
        for heading in ((0.2, -0.1, -1.0), (0.8, 0.3, -0.7), (-0.6, 0.3, -0.8), (0.3, -0.9, 0.2)):
            tree += grow_tree(rng, (20.0, 4.0, -wide * 0.12), heading, rng.uniform(4.0, 5.5), rng.uniform(26, 34), 5)
        self.trees["liver"] = tree
        self.details["bowel"] = _bowel_loops(rng, wide, deep)
        self.details["stomach_level_mm"] = -deep * 0.36 + rng.uniform(-12.0, 4.0)
        self.details["rib_offset_mm"] = rng.uniform(0.0, 28.0)


def draw_trunk(canvas: Canvas, patient: Patient) -> None:
    """Table, skin, subcutaneous fat, muscle wall, fat inside."""
    wide, deep = patient.size["inner_x"], patient.size["inner_y"]
    muscle, fat = patient.size["muscle"], patient.size["fat"]
    back = deep + muscle + 0.6 * fat + 2.0
    for thickness, hu in ((24.0, -650.0), (20.0, -900.0)):  # carbon-fibre shell over foam
        table = ellipsoid((0.0, back + 16.0, 0.0), (np.inf, thickness / 2, 190.0), 6.0)
        canvas.paint(table, hu, warped=False)
    infinite = np.inf

    def trunk(outside: float, fat_share: float) -> Any:
        front = deep + outside + fat_share * fat
        return ellipsoid((0.0, -0.2 * fat_share * fat, 0.0), (infinite, front, wide + outside + fat_share * fat), 2.5)

    canvas.paint(trunk(muscle + 2.0, 1.0), patient.hu["skin"], label=_L["skin"])
    canvas.paint(trunk(muscle, 1.0), patient.tissue(canvas, "fat"), label=_L["fat"])
    canvas.paint(trunk(muscle, 0.0), patient.tissue(canvas, "muscle"), label=_L["muscle"])
    canvas.paint(trunk(0.0, 0.0), patient.tissue(canvas, "fat"), label=_L["fat"])


def draw_thorax(canvas: Canvas, patient: Patient) -> None:
    """Lungs with vessels and fissures, heart, great vessels, airways, ribs, spine, sternum."""
    wide, deep = patient.size["inner_x"], patient.size["inner_y"]
    mediastinum = ellipsoid((0.0, -2.0, 0.0), (np.inf, deep * 0.8, 34.0))
    canvas.paint(mediastinum, patient.tissue(canvas, "muscle"), label=_L["muscle"])
    canvas.paint(
        ellipsoid((0.0, -deep * 0.6, 0.0), (np.inf, 22.0, 26.0)), patient.tissue(canvas, "fat"), label=_L["fat"]
    )
    for name in ("lung_right", "lung_left"):
        centre, radii = patient.solids[name]
        solid, bounds = ellipsoid(centre, radii, 2.3), ellipsoid_bounds(centre, radii)
        canvas.paint(solid, patient.tissue(canvas, "lung"), label=_L["lung"], bounds=bounds)
        slope, offset = patient.details["fissure"]

        def fissure(points: Points, slope: float = slope, offset: float = offset) -> np.ndarray:
            return np.abs(points[0] - offset - slope * points[1]) / np.sqrt(1 + slope**2) - 0.7

        canvas.paint(fissure, -650.0, only_on=(_L["lung"],))
    _draw_heart(canvas, patient)
    _draw_great_vessels(canvas, patient, deep)
    for name in ("lung_right", "lung_left"):
        _draw_tree(canvas, patient.trees[name], 45.0 if patient.phase == "none" else 110.0, only_on=(_L["lung"],))
    _draw_airways(canvas)
    _draw_spine(canvas, patient)
    _draw_ribs(canvas, patient, wide, deep)
    front = -(deep + 1.0)
    _draw_bone(canvas, patient, (-60.0, front, 0.0), (140.0, front, 0.0), 9.0)
    for side in (-1.0, 1.0):  # scapulae
        _draw_bone(
            canvas, patient, (40.0, deep * 0.86, side * wide * 0.80), (140.0, deep * 0.72, side * wide * 1.0), 6.0
        )


def draw_abdomen(canvas: Canvas, patient: Patient) -> None:
    """Liver, spleen, kidneys, stomach, bowel, pancreas, vessels, psoas, spine, ribs."""
    wide, deep = patient.size["inner_x"], patient.size["inner_y"]
    for side in (-1.0, 1.0):
        start, end = (-140.0, deep * 0.52, side * 50.0), (60.0, deep * 0.55, side * 26.0)
        canvas.paint(capsule(start, end, 24.0, 9.0), patient.tissue(canvas, "muscle"), label=_L["muscle"])
        back = ellipsoid((0.0, deep * 0.86, side * 36.0), (np.inf, 20.0, 30.0))
        canvas.paint(back, patient.tissue(canvas, "muscle"), label=_L["muscle"])
    for start, end, radius, content, level_mm in patient.details["bowel"]:
        bounds = capsule_bounds(start, end, radius)
        canvas.paint(capsule(start, end, radius), patient.hu["wall"], label=_L["bowel"], bounds=bounds)
        lumen = capsule(start, end, radius - 2.5)
        filling = patient.tissue(canvas, "bowel") + content
        filling = np.where(canvas.points[1] < level_mm, np.float32(patient.hu["gas"]), filling)
        canvas.paint(lumen, filling, bounds=bounds)
    _draw_stomach(canvas, patient)
    pancreas = ((-5.0, -4.0, -22.0), (0.0, -14.0, 10.0), (14.0, 8.0, 62.0))
    for start, end in pairwise(pancreas):
        canvas.paint(
            capsule(start, end, 12.0, 9.0), patient.tissue(canvas, "pancreas"), label=_L["pancreas"],
            bounds=capsule_bounds(start, end, 12.0),
        )  # fmt: skip
    for name, power in (("liver", 2.6), ("liver_left", 2.2), ("spleen", 2.2)):
        centre, radii = patient.solids[name]
        tissue = "spleen" if name == "spleen" else "liver"
        inside = (_L["fat"], _L["bowel"], _L["pancreas"], _L["gas"])
        canvas.paint(
            ellipsoid(centre, radii, power), patient.tissue(canvas, tissue), label=_L[tissue],
            bounds=ellipsoid_bounds(centre, radii), only_on=(*inside, _L["liver"]),
        )  # fmt: skip
    _draw_tree(canvas, patient.trees["liver"], patient.hu["vein"], only_on=(_L["liver"],))
    centre, radii = patient.solids["gall_bladder"]
    bounds = ellipsoid_bounds(centre, radii)
    canvas.paint(ellipsoid(centre, radii), patient.hu["gall_bladder"], label=_L["gall_bladder"], bounds=bounds)
    for name in ("kidney_right", "kidney_left"):
        _draw_kidney(canvas, patient, name)
    for start, end, radius, name in (
        ((-160.0, deep * 0.22, 8.0), (160.0, deep * 0.26, 10.0), 11.0, "blood"),
        ((-160.0, deep * 0.22, -18.0), (160.0, deep * 0.10, -22.0), 12.0, "vein"),
    ):
        canvas.paint(capsule(start, end, radius), patient.hu[name], label=_L["blood"])
    _draw_spine(canvas, patient)
    _draw_ribs(canvas, patient, wide, deep)


def _bowel_loops(rng: np.random.Generator, wide: float, deep: float) -> list[tuple]:
    loops = []
    for _ in range(26):
        start = np.array([rng.uniform(-160, 10), rng.uniform(-0.7, 0.05) * deep, rng.uniform(-0.7, 0.8) * wide])
        end = start + rng.normal(0.0, 26.0, 3)
        end[1:] = np.clip(end[1:], (-0.68 * deep, -0.72 * wide), (0.15 * deep, 0.8 * wide))
        radius = rng.uniform(9.0, 17.0)
        gas = rng.random() < 0.45
        level = float(min(start[1], end[1]) + rng.uniform(-0.6, 0.7) * radius) if gas else -1e3
        loops.append((start, end, radius, rng.uniform(-15.0, 60.0), level))
    return loops


def _draw_heart(canvas: Canvas, patient: Patient) -> None:
    centre, radii = patient.solids["heart"]
    bounds = ellipsoid_bounds(centre, radii + 4.0)
    canvas.paint(ellipsoid(centre, radii + 3.0), patient.tissue(canvas, "fat"), label=_L["fat"], bounds=bounds)
    canvas.paint(ellipsoid(centre, radii), patient.tissue(canvas, "muscle", "heart"), label=_L["heart"], bounds=bounds)
    for shift, scale in (((0, 4, 16), 0.52), ((0, -6, -18), 0.48), ((36, 14, -4), 0.42)):
        place = centre + np.asarray(shift, dtype=float)
        canvas.paint(
            ellipsoid(place, radii * scale), patient.tissue(canvas, "heart"), label=_L["heart"],
            bounds=ellipsoid_bounds(place, radii * scale),
        )  # fmt: skip


def _draw_great_vessels(canvas: Canvas, patient: Patient, deep: float) -> None:
    vessels = (
        ((-200.0, deep * 0.42, 22.0), (60.0, deep * 0.36, 18.0), 12.5, "blood"),  # descending aorta
        ((0.0, -deep * 0.28, -12.0), (62.0, -deep * 0.22, -14.0), 16.0, "blood"),  # ascending aorta
        ((62.0, -deep * 0.22, -14.0), (62.0, deep * 0.34, 18.0), 14.0, "blood"),  # arch
        ((5.0, -deep * 0.24, -34.0), (140.0, -deep * 0.16, -30.0), 9.0, "vein"),  # superior vena cava
        ((18.0, -deep * 0.20, 16.0), (22.0, -2.0, -30.0), 11.0, "vein"),  # right pulmonary artery
        ((18.0, -deep * 0.22, 14.0), (28.0, 4.0, 32.0), 11.0, "vein"),  # left pulmonary artery
        ((-200.0, deep * 0.34, 4.0), (150.0, deep * 0.30, 4.0), 7.0, "muscle"),  # oesophagus
    )
    for start, end, radius, name in vessels:
        label = _L["muscle"] if name == "muscle" else _L["blood"]
        canvas.paint(
            capsule(start, end, radius), patient.hu[name], label=label, bounds=capsule_bounds(start, end, radius)
        )


def _draw_airways(canvas: Canvas) -> None:
    branches = (
        ((32.0, 0.0, 0.0), (170.0, -8.0, 0.0), 9.5),
        ((32.0, 0.0, 0.0), (6.0, 6.0, -36.0), 7.0),
        ((32.0, 0.0, 0.0), (0.0, 8.0, 40.0), 6.5),
        ((6.0, 6.0, -36.0), (-40.0, 18.0, -58.0), 4.0),
        ((0.0, 8.0, 40.0), (-44.0, 20.0, 60.0), 4.0),
        ((6.0, 6.0, -36.0), (30.0, -12.0, -62.0), 3.2),
        ((0.0, 8.0, 40.0), (24.0, -14.0, 64.0), 3.2),
    )
    for start, end, radius in branches:
        bounds = capsule_bounds(start, end, radius + 2.0)
        canvas.paint(capsule(start, end, radius + 1.6), 30.0, label=_L["muscle"], bounds=bounds)
    for start, end, radius in branches:
        bounds = capsule_bounds(start, end, radius + 2.0)
        canvas.paint(capsule(start, end, radius), -985.0, label=_L["airway"], bounds=bounds)


def _draw_tree(canvas: Canvas, tree: list[Segment], hu: float, *, only_on: tuple[int, ...]) -> None:
    starts, ends, radii = (np.array([segment[i] for segment in tree]) for i in range(3))
    reach = radii[:, None]
    near = canvas.near(np.minimum(starts, ends) - reach, np.maximum(starts, ends) + reach)
    for index in np.flatnonzero(near):
        start, end, radius, end_radius = tree[index]
        canvas.paint(
            capsule(start, end, radius, end_radius), hu, bounds=capsule_bounds(start, end, radius), only_on=only_on
        )


def _draw_stomach(canvas: Canvas, patient: Patient) -> None:
    centre, radii = patient.solids["stomach"]
    bounds = ellipsoid_bounds(centre, radii)
    canvas.paint(ellipsoid(centre, radii, 2.2), patient.hu["wall"], label=_L["bowel"], bounds=bounds)
    filling = patient.tissue(canvas, "bowel")
    filling = np.where(canvas.points[1] < patient.details["stomach_level_mm"], np.float32(patient.hu["gas"]), filling)
    canvas.paint(ellipsoid(centre, radii - 5.0, 2.2), filling, bounds=bounds)


def _draw_kidney(canvas: Canvas, patient: Patient, name: str) -> None:
    centre, radii = patient.solids[name]
    bounds = ellipsoid_bounds(centre, radii + 8.0)
    canvas.paint(ellipsoid(centre, radii + 7.0), patient.tissue(canvas, "fat"), label=_L["fat"], bounds=bounds)
    canvas.paint(ellipsoid(centre, radii), patient.tissue(canvas, "cortex"), label=_L["kidney"], bounds=bounds)
    side = np.sign(centre[2])
    for k in np.linspace(-0.6, 0.6, 5):
        place = centre + np.array([k * radii[0], 0.0, side * 2.0])
        pyramid = np.array([7.0, 11.0, 9.0])
        canvas.paint(
            ellipsoid(place, pyramid),
            patient.tissue(canvas, "medulla", "cortex"),
            bounds=ellipsoid_bounds(place, pyramid),
        )
    sinus = centre - np.array([0.0, 0.0, side * 0.62 * radii[2]])
    hollow = radii * np.array([0.42, 0.45, 0.5])
    canvas.paint(
        ellipsoid(sinus, hollow), patient.tissue(canvas, "fat"), label=_L["fat"], bounds=ellipsoid_bounds(sinus, hollow)
    )


def _draw_spine(canvas: Canvas, patient: Patient) -> None:
    """Vertebral bodies of 26 mm with discs of 6 mm, canal, arch and processes."""
    centre, radii = patient.solids["vertebra"]
    _, y, x = centre
    _, ry, rx = radii
    bodies, discs = [], []
    for z in np.arange(-192.0, 200.0, 32.0):
        bodies.append(((z, y, x), (13.5, ry, rx)))
        discs.append(((z + 16.0, y, x), (4.0, ry - 1.5, rx - 1.5)))
    for place, size in discs:
        canvas.paint(
            ellipsoid(place, size, 4.0), patient.hu["disc"], label=_L["disc"], bounds=ellipsoid_bounds(place, size)
        )
    for place, size in bodies:
        bounds = ellipsoid_bounds(place, size)
        canvas.paint(
            ellipsoid(place, size, 4.0), patient.hu["cortical_bone"] * 0.6, label=_L["cortical_bone"], bounds=bounds
        )
        inner = tuple(s - 1.8 for s in size)
        canvas.paint(
            ellipsoid(place, inner, 4.0), patient.tissue(canvas, "trabecular_bone"), label=_L["trabecular_bone"],
            bounds=bounds,
        )  # fmt: skip
    canal = y + ry + 9.0
    arch = ellipsoid((0.0, canal, x), (np.inf, 13.0, 15.0))
    canvas.paint(arch, patient.hu["cortical_bone"] * 0.55, label=_L["cortical_bone"])
    canvas.paint(ellipsoid((0.0, canal, x), (np.inf, 8.5, 10.0)), 25.0, label=_L["muscle"])
    for z in np.arange(-192.0, 200.0, 32.0):
        _draw_bone(canvas, patient, (z, canal + 12.0, x), (z - 14.0, canal + 32.0, x), 4.0)
        for side in (-1.0, 1.0):
            _draw_bone(canvas, patient, (z, canal - 2.0, x + side * 13.0), (z, canal + 8.0, x + side * 38.0), 4.5)


def _draw_ribs(canvas: Canvas, patient: Patient, wide: float, deep: float) -> None:
    """Twelve pairs on the inside of the muscle wall, falling towards the front."""
    angles = np.linspace(0.16 * np.pi, 0.86 * np.pi, 15)
    outward = patient.size["muscle"] * 0.35
    for z in np.arange(-180.0, 200.0, 28.0) + patient.details["rib_offset_mm"] - 14.0:
        for side in (-1.0, 1.0):
            course = [
                (
                    z - 45.0 * (a / np.pi - 0.16),
                    (deep + outward) * np.sign(np.cos(a)) * np.abs(np.cos(a)) ** 0.8,
                    side * (wide + outward) * np.sin(a) ** 0.8,
                )
                for a in angles
            ]
            for start, end in pairwise(course):
                _draw_bone(canvas, patient, start, end, 5.2)


def _draw_bone(canvas: Canvas, patient: Patient, start: Any, end: Any, radius: float) -> None:
    bounds = capsule_bounds(start, end, radius)
    if canvas.box(*bounds) is None:
        return
    canvas.paint(capsule(start, end, radius), patient.hu["cortical_bone"], label=_L["cortical_bone"], bounds=bounds)
    canvas.paint(
        capsule(start, end, radius - 1.6), patient.tissue(canvas, "trabecular_bone"), label=_L["trabecular_bone"],
        bounds=bounds,
    )  # fmt: skip
