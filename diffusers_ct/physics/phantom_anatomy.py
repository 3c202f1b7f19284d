"""The phantom's patient: tissues and their HU, build, age and sex, and how a tissue is painted.

Sizes and HU follow textbook CT anatomy of adults (HU: Hofer, CT Teaching Manual; Kalender, Computed Tomography) with
random habitus, organ shape and contrast phase. Positions are (z, y, x) in mm: z to the head from the region's middle,
y to the back, x to the patient's left.

References:
    Jang et al., Opportunistic osteoporosis screening at CT: normative L1 trabecular attenuation values in more than
        20 000 adults, 2019, https://doi.org/10.1148/radiol.2019181648 (trabecular bone loses about 2.5 HU a year)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .phantom_canvas import Box, Canvas, NoiseLattice
from .phantom_solids import Segment, Solid, capsule, thin_share

# Labels are forever: new ones are appended.
ORGAN_LABELS: dict[str, int] = {
    "fat": 1, "muscle": 2, "lung": 3, "blood": 4, "heart": 5, "airway": 6, "cortical_bone": 7, "trabecular_bone": 8,
    "liver": 9, "spleen": 10, "kidney": 11, "bowel": 12, "gas": 13, "gall_bladder": 14, "pancreas": 15, "skin": 16,
    "disc": 17, "cartilage": 18, "spinal_cord": 19, "csf": 20, "grey_matter": 21, "white_matter": 22, "dura": 23,
    "eye": 24, "bladder": 25, "prostate": 26, "uterus": 27, "breast": 28, "thyroid": 29, "calcification": 30,
}  # fmt: skip
# Mean HU of the tissues that contrast agent does not change; each patient's own is within 3 % of it unless age says
# more; trabecular bone is that of a patient of 30 and varies by 15 %, the lung by 15 HU more.
BASE_HU = {
    "fat": -100.0, "muscle": 55.0, "lung": -852.0, "skin": 30.0, "disc": 85.0, "trabecular_bone": 240.0,
    "cortical_bone": 800.0, "bowel": 25.0, "gas": -990.0, "gall_bladder": 8.0, "cartilage": 105.0, "csf": 7.0,
    "spinal_cord": 38.0, "grey_matter": 38.0, "white_matter": 28.0, "dura": 58.0, "eye": 12.0, "lens": 75.0,
    "bladder": 5.0, "breast": 35.0, "calcification": 550.0, "airway": -985.0, "marrow": -45.0, "fissure": -640.0,
    "dense_bone": 1250.0,
}  # fmt: skip
CONTRAST_PHASES = ("none", "arterial", "portal")
# Mean HU of perfused tissue in these phases; each patient's own is within 10 % of it.
PERFUSED_HU = {
    "blood": (42.0, 280.0, 160.0), "vein": (42.0, 90.0, 165.0), "heart": (45.0, 180.0, 140.0),
    "liver": (58.0, 75.0, 112.0), "spleen": (48.0, 110.0, 122.0), "cortex": (34.0, 170.0, 175.0),
    "medulla": (32.0, 70.0, 150.0), "pancreas": (42.0, 95.0, 95.0), "wall": (45.0, 75.0, 90.0),
    "prostate": (42.0, 62.0, 78.0), "uterus": (50.0, 85.0, 112.0), "thyroid": (98.0, 175.0, 150.0),
    "lung_vessel": (45.0, 130.0, 110.0),
}  # fmt: skip
BLOOD_HU = dict(zip(CONTRAST_PHASES, PERFUSED_HU["blood"]))
TEXTURE_HU = {
    "fat": 7.0, "muscle": 8.0, "lung": 30.0, "liver": 6.0, "spleen": 5.0, "cortex": 7.0, "heart": 5.0,
    "trabecular_bone": 75.0, "bowel": 14.0, "pancreas": 12.0, "solid_nodule": 8.0, "ground_glass_nodule": 35.0,
    "metastasis": 6.0, "cyst": 2.0, "lytic": 15.0, "haemorrhage": 4.0, "infarct": 2.5, "grey_matter": 2.5,
    "white_matter": 2.0, "csf": 1.5, "breast": 14.0, "prostate": 5.0, "uterus": 7.0, "thyroid": 10.0, "marrow": 20.0,
    "cartilage": 12.0, "dense_bone": 90.0,
}  # fmt: skip
# Tissues that have no label of their own; the rest are labelled by their name.
LABEL_OF = {
    "vein": "blood", "cortex": "kidney", "medulla": "kidney", "wall": "bowel", "lens": "eye", "marrow": "fat",
    "lung_vessel": "lung", "fissure": "lung", "dense_bone": "cortical_bone",
}  # fmt: skip
AGE_RANGE_YEARS = (18.0, 90.0)
SEXES = ("F", "M")
# What age and sex do to a patient of one seed, by the regions that show it.
AGE_EFFECTS: dict[str, tuple[str, ...]] = {
    "every region": (
        "trabecular bone loses about 2.3 HU a year after 30 and more in women after 50, cortical bone a little",
        "muscle gets fattier by 0.2 HU a year after 40",
    ),
    "thorax": (
        "muscle gets thinner; most subcutaneous fat in middle age; discs get lower",
        "the lung loses 0.3 HU a year; costal cartilage calcifies",
        "the aorta widens by 0.05 mm a year after 40 in radius, and its walls calcify",
        "the glandular share of the breast falls after 35",
    ),
    "abdomen": (
        "muscle gets thinner; most subcutaneous fat in middle age; discs get lower",
        "costal cartilage calcifies",
        "the aorta widens by 0.05 mm a year after 40 in radius, and its walls calcify",
    ),
    "pelvis": (
        "muscle gets thinner; most subcutaneous fat in middle age; discs get lower",
        "the prostate grows after 40 by 1.1 % a year in each diameter; the uterus and ovaries shrink after 50",
        "the iliac arteries widen after 40, and their walls calcify",
    ),
    "shoulder": (
        "muscle gets thinner; most subcutaneous fat in middle age; discs get lower",
        "the lung loses 0.3 HU a year; costal and laryngeal cartilage calcify",
        "the aortic arch widens after 40; the arch and the carotid arteries calcify",
    ),
    "head": (
        "the ventricles widen by 1.1 % a year after 20 in each diameter",
        "sulci widen after 30 and the gap below the skull after 40, as the brain shrinks",
        "pineal gland and choroid plexus calcify",
    ),
}
SEX_EFFECTS: dict[str, tuple[str, ...]] = {
    "every region": ("women: smaller body and bones",),
    "thorax": ("women: thinner muscle, more subcutaneous fat, narrower trachea, breasts; plaques 8 years later",),
    "abdomen": ("women: thinner muscle, more subcutaneous fat; plaques 8 years later",),
    "pelvis": (
        "women: uterus, ovaries and vagina; men: prostate, seminal vesicles and spermatic cords",
        "women: thinner muscle, more subcutaneous fat, a pelvis wider beside the trunk; plaques 8 years later",
    ),
    "shoulder": (
        "women: narrower shoulders, thinner muscle, more subcutaneous fat, narrower trachea and larynx, a thyroid 5 % "
        "larger in each diameter; plaques 8 years later",
    ),
    "head": ("women: a head 5 % smaller in each diameter",),
}


@dataclass
class Patient:
    """What is drawn once per patient: build, HU, organ positions, trees."""

    region: str
    phase: str
    age_years: float
    sex: str
    hu: dict[str, float]
    texture_hu: dict[str, float]
    size: dict[str, float]
    fine_texture: NoiseLattice
    coarse_texture: NoiseLattice
    solids: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    trees: dict[str, list[Segment]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        region: str,
        contrast_phase: str | None = None,
        *,
        age_years: float | None = None,
        sex: str | None = None,
    ) -> "Patient":
        """Draws a patient; a given phase, age or sex replaces the drawn one, and every other draw stays what it is."""
        drawn_phase = str(rng.choice(CONTRAST_PHASES, p=[0.35, 0.25, 0.4]))
        phase = contrast_phase or drawn_phase
        drawn_age, drawn_sex = float(rng.integers(20, 90)), str(rng.choice(SEXES))
        age, sex = drawn_age if age_years is None else float(age_years), sex or drawn_sex
        index = CONTRAST_PHASES.index(phase)
        hu = {k: v * rng.uniform(0.97, 1.03) for k, v in BASE_HU.items()}
        hu |= {k: v[index] * rng.uniform(0.9, 1.1) for k, v in PERFUSED_HU.items()}
        woman, old = sex == "F", max(age - 30.0, 0.0)
        hu["lung"] += rng.uniform(-15.0, 15.0) - 0.3 * (age - 50.0)
        lost = 2.3 * old + (0.8 * max(age - 50.0, 0.0) if woman else 0.0)
        hu["trabecular_bone"] = max(BASE_HU["trabecular_bone"] * rng.uniform(0.85, 1.15) - lost, 45.0)
        hu["cortical_bone"] *= 1.0 - 0.002 * old
        hu["muscle"] -= 0.2 * max(age - 40.0, 0.0)
        texture = {k: v * rng.uniform(0.7, 1.3) for k, v in TEXTURE_HU.items()}
        texture["trabecular_bone"] *= 0.5 + 0.5 * hu["trabecular_bone"] / BASE_HU["trabecular_bone"]
        plump = rng.uniform(7.0, 30.0) * (1.1 if woman else 0.9) * (0.8 + 0.25 * np.exp(-(((age - 58.0) / 22.0) ** 2)))
        wide, deep = rng.uniform(0.0, 1.0), rng.uniform(0.0, 1.0)
        muscle = rng.uniform(9.0, 14.5) * (0.9 if woman else 1.08) * (1.0 - 0.005 * max(age - 40.0, 0.0))
        size = {
            "fat": float(min(plump, 30.0)),
            "inner_x": (121.0 if woman else 129.0) + 13.0 * wide,
            "inner_y": (83.0 if woman else 88.0) + 10.0 * deep,
            "muscle": float(muscle),
            "bone": (0.92 if woman else 1.0) * rng.uniform(0.97, 1.03),
            "disc_mm": 8.0 - 0.04 * old,
        }
        textures = NoiseLattice(rng, 1.7, 48, 0.5), NoiseLattice(rng, 7.0, 48)
        return cls(region, phase, age, sex, hu, texture, size, *textures)

    def place_in(self, rng: np.random.Generator, organ: str, margin_mm: float) -> tuple[float, float, float]:
        """A random place (z, y, x) well inside an organ's solid."""
        centre, radii = self.solids[str(rng.choice(self.details["holders"][organ]))]
        room = np.maximum(np.asarray(radii) - margin_mm, 0.25 * np.asarray(radii))
        direction = rng.normal(size=3)
        direction *= rng.uniform(0.0, 0.9) ** (1 / 3) / np.linalg.norm(direction)
        z, y, x = np.asarray(centre) + direction * room
        return float(z), float(y), float(x)

    def keep(self, name: str, centre: Sequence[float] | np.ndarray, radii: Sequence[float] | np.ndarray) -> None:
        """Remembers the ellipsoid of an organ."""
        self.solids[name] = (np.asarray(centre, dtype=float), np.asarray(radii, dtype=float))

    def paint(
        self,
        canvas: Canvas,
        solid: Solid | tuple[Box, np.ndarray] | None,
        tissue: str,
        *,
        shift_hu: float = 0.0,
        labelled: bool = True,
        only_on: Sequence[str] = (),
        **options: Any,
    ) -> None:
        """Paints a solid as a tissue, with its HU, texture and label; options of `Canvas.paint`."""
        label = ORGAN_LABELS[LABEL_OF.get(tissue, tissue)] if labelled else None
        canvas.paint(
            solid,
            self.hu[tissue] + shift_hu,
            texture_hu=self.texture_hu.get(tissue, 0.0),
            label=label,
            only_on=[ORGAN_LABELS[name] for name in only_on],
            **options,
        )

    def paint_bone(
        self, canvas: Canvas, solid: Solid, cortex_mm: float = 1.6, *, inside: str = "trabecular_bone"
    ) -> None:
        """Paints a bone: cortical shell around trabecular bone or marrow."""
        found = canvas.measure(solid)
        if found is not None:
            self.paint(canvas, found, "cortical_bone")
            self.paint(canvas, found, inside, inset_mm=cortex_mm)

    def paint_tree(self, canvas: Canvas, tree: list[Segment], tissue: str, *, only_on: Sequence[str]) -> None:
        """Paints the segments of a vessel tree that the grid meets."""
        starts, ends, radii = (np.array([segment[i] for segment in tree]) for i in range(3))
        reach = radii[:, None]
        near = canvas.near(np.minimum(starts, ends) - reach, np.maximum(starts, ends) + reach)
        for index in np.flatnonzero(near):
            start, end, radius, end_radius = tree[index]
            share = thin_share(0.5 * (radius + end_radius), canvas.pixel_mm)
            solid = capsule(start, end, radius, end_radius)
            self.paint(canvas, solid, tissue, labelled=False, only_on=only_on, share=share)


def plan_plaques(
    patient: Patient, rng: np.random.Generator, start: Sequence[float], end: Sequence[float], radius: float, count: int
) -> None:
    """Calcified plaques on the wall of an artery; each has the age at which it appears, in men some years earlier."""
    found = patient.details.setdefault("plaques", [])
    early = 8.0 if patient.sex == "M" else 0.0
    for _ in range(count):
        along, angle, onset = rng.uniform(0.05, 0.95), rng.uniform(0.0, 2.0 * np.pi), rng.uniform(48.0, 118.0) - early
        size = rng.uniform(0.9, 1.5)
        place = np.asarray(start) + along * (np.asarray(end, dtype=float) - np.asarray(start))
        place = place + np.array([0.0, np.cos(angle), np.sin(angle)]) * (radius - 0.3)
        if patient.age_years > onset:
            found.append((place, size + 0.02 * (patient.age_years - onset)))


def draw_plaques(canvas: Canvas, patient: Patient) -> None:
    """The plaques that `plan_plaques` kept."""
    for place, size in patient.details.get("plaques", ()):
        end = place + np.array([3.0 * size, 0.0, 0.0])
        share = thin_share(size, canvas.pixel_mm)
        patient.paint(canvas, capsule(place, end, size), "calcification", share=share)
