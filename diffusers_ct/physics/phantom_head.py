"""The head: skull with diploe, scalp, brain, orbits with eyes, sinuses and nose, jaws, upper neck.

z = 0 lies at the roof of the third ventricle, the vertex of the brain some 75 mm above, the base of the skull at
-30 mm in front and -80 mm behind.
"""

import numpy as np

from .phantom_anatomy import Patient, draw_plaques
from .phantom_brain import FOLD_CELL_MM, FOLD_SMOOTH, draw_brain, draw_brain_vessels, draw_deep_brain, draw_hindbrain
from .phantom_canvas import Canvas, NoiseLattice
from .phantom_solids import Segment, Solid, capsule, ellipsoid, grow_tree, half_space, rod, union
from .phantom_trunk import draw_spine

SKULL_MM, SCALP_MM = 6.5, 5.5


def plan(patient: Patient, rng: np.random.Generator) -> None:
    """Draws what differs between patients."""
    woman, age = patient.sex == "F", patient.age_years
    size = (0.97 if woman else 1.02) * np.array(
        [rng.uniform(0.97, 1.03), rng.uniform(0.97, 1.03), rng.uniform(0.97, 1.03)]
    )
    patient.details["head"] = size  # factors of z, y, x
    # Cerebrospinal fluid takes the room that the brain gives up.
    patient.details["ventricles"] = rng.uniform(0.8, 1.2) * (1.0 + 0.011 * max(age - 20.0, 0.0))
    patient.details["sulcus_mm"] = rng.uniform(0.35, 0.6) + 0.016 * max(age - 30.0, 0.0)
    patient.details["gap_mm"] = rng.uniform(0.6, 1.2) + 0.022 * max(age - 40.0, 0.0)
    patient.details["folds"] = NoiseLattice(rng, FOLD_CELL_MM, 80, FOLD_SMOOTH)
    patient.details["skull_mm"] = SKULL_MM * rng.uniform(0.9, 1.15)
    tree: list[Segment] = []
    for side in (-1.0, 1.0):
        for heading in ((0.5, -0.3, 1.0), (0.2, 0.4, 1.0), (0.9, 0.1, 0.8)):
            tree += grow_tree(rng, (-22.0, -6.0, side * 32.0), np.multiply(heading, (1, 1, side)), 1.3, 14.0, 3)
    patient.trees["arteries"] = tree
    vertebra = (0.0, 34.0, 0.0), (110.0, 8.5, 12.0)
    patient.keep("vertebra", *vertebra)
    for name, side in (("right", -1.0), ("left", 1.0)):
        patient.keep(
            f"brain_{name}",
            (np.array([22.0, 0.0, side * 34.0]) * size).tolist(),
            (np.array([42.0, 62.0, 26.0]) * size).tolist(),
        )
    patient.details["holders"] = {"white_matter": ["brain_right", "brain_left"]}
    calcified = []
    for place, onset in (((0.0, 27.0, 0.0), 22.0), ((14.0, 33.0, -23.0), 35.0), ((14.0, 33.0, 23.0), 35.0)):
        late, radius = rng.uniform(-5.0, 30.0), rng.uniform(1.0, 2.2)
        if age > onset + late:  # pineal gland and choroid plexus
            calcified.append((np.array(place) * size, radius))
    patient.details["plaques"] = calcified


def cavity(patient: Patient) -> Solid:
    """The inside of the skull: the vault over the frontal and temporal fossae and that of the cerebellum."""
    z, y, x = patient.details["head"]
    vault = ellipsoid((0.0, 0.0, 0.0), (77.0 * z, 86.0 * y, 67.0 * x), 2.2)
    floor = Solid(lambda p: _floor_mm(p[1], p[2]) - p[0], *_bounds(vault))
    behind = ellipsoid((-38.0, 44.0, 0.0), (42.0 * z, 39.0 * y, 54.0 * x))
    temporal = [ellipsoid((-30.0, -16.0, side * 43.0 * x), (23.0, 32.0 * y, 21.0)) for side in (-1.0, 1.0)]
    brainstem = ellipsoid((-52.0, 22.0, 0.0), (40.0, 17.0, 18.0))
    return union([vault & floor, behind, brainstem, *temporal], blend_mm=9.0)


def _floor_mm(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Height of the floor: the roofs of the orbits bulge upwards beside the midline in front."""
    bulge = np.exp(-(((np.abs(x) - 31.0) / 17.0) ** 2) - ((y + 52.0) / 24.0) ** 2)
    return -33.0 + 13.0 * bulge


def _bounds(solid: Solid) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return solid.lower, solid.upper


def draw(canvas: Canvas, patient: Patient) -> None:
    """Paints the head."""
    thick = float(patient.details["skull_mm"])
    _draw_rest(canvas)
    reach = thick + SCALP_MM + 1.5
    head = canvas.measure(cavity(patient).grown(reach))
    _draw_soft_tissue(canvas, patient, reach)
    patient.paint(canvas, head, "muscle", inset_mm=reach - thick - 1.6)
    _draw_muscles(canvas, patient)
    _draw_neck(canvas, patient)
    # The vault: two tables with diploe between, then dura.
    patient.paint(canvas, head, "dense_bone", inset_mm=reach - thick)
    patient.paint(canvas, head, "trabecular_bone", inset_mm=reach - 0.68 * thick, shift_hu=220.0)
    patient.paint(canvas, head, "dense_bone", inset_mm=reach - 0.32 * thick)
    _draw_base(canvas, patient)
    patient.paint(canvas, head, "dura", inset_mm=reach)
    patient.paint(canvas, head, "csf", inset_mm=reach + 0.7)
    if head is not None:
        box, distance = head
        head = box, distance + reach
        draw_brain(canvas, patient, *head)
    draw_deep_brain(canvas, patient)
    draw_hindbrain(canvas, patient, head)
    draw_brain_vessels(canvas, patient)
    draw_plaques(canvas, patient)


def _draw_rest(canvas: Canvas) -> None:
    """A cradle of foam and carbon fibre under the head."""
    lower = half_space(1, 72.0, above=True)
    cradle = ellipsoid((0.0, 2.0, 0.0), (np.inf, 120.0, 116.0))
    for inset, hu in ((0.0, -640.0), (2.0, -900.0), (10.0, -640.0), (12.0, -1000.0)):
        canvas.paint(cradle.grown(-inset) & lower, hu, warped=False)


def _draw_base(canvas: Canvas, patient: Patient) -> None:
    """Petrous bones with mastoid cells, clivus and sphenoid, orbits, sinuses, nose, jaws."""
    gas = "gas"
    clivus = rod([(-34.0, -8.0, 0.0), (-72.0, 8.0, 0.0)], [10.0, 7.0])
    sphenoid = ellipsoid((-40.0, -24.0, 0.0), (14.0, 18.0, 19.0)) | clivus
    patient.paint_bone(canvas, sphenoid, 1.8)
    patient.paint(canvas, ellipsoid((-42.0, -25.0, 0.0), (9.5, 12.0, 13.0)), gas)
    patient.paint_bone(canvas, ellipsoid((-28.0, -48.0, 0.0), (3.0, 34.0, 46.0), 2.5), 1.2)
    for side in (-1.0, 1.0):
        petrous = rod(
            [(-38.0, 2.0, side * 16.0), (-40.0, 22.0, side * 42.0), (-46.0, 30.0, side * 62.0)], [8.0, 10.0, 14.0]
        )
        found = canvas.measure(petrous)
        patient.paint(canvas, found, "dense_bone")
        cells = Solid(
            lambda p: 4.2 * (np.abs(np.sin(p[0] / 2.6)) + np.abs(np.sin(p[1] / 2.9)) + np.abs(np.sin(p[2] / 2.4))) - 8.2
        )
        mastoid = ellipsoid((-48.0, 31.0, side * 60.0), (18.0, 13.0, 10.0)).grown(-1.5)
        patient.paint(canvas, mastoid & Solid(cells.distance, *_bounds(mastoid)), gas, labelled=False, shift_hu=120.0)
        patient.paint(
            canvas, rod([(-44.0, 16.0, side * 46.0), (-46.0, 12.0, side * 74.0)], [3.5, 4.0]), gas
        )  # ear canal
        _draw_orbit(canvas, patient, side)
        zygoma = rod(
            [(-62.0, -52.0, side * 42.0), (-58.0, -40.0, side * 58.0), (-52.0, -6.0, side * 68.0)], [8.0, 6.0, 3.4]
        )
        patient.paint_bone(canvas, zygoma, 1.6)
        antrum = ellipsoid((-76.0, -46.0, side * 27.0), (18.0, 17.0, 14.5), 2.4)
        patient.paint(canvas, antrum.grown(2.0), "cortical_bone")
        patient.paint(canvas, antrum, gas)
        jaw = rod(
            [
                (-62.0, 2.0, side * 52.0),
                (-105.0, -6.0, side * 47.0),
                (-124.0, -52.0, side * 26.0),
                (-124.0, -68.0, side * 4.0),
            ],
            [6.0, 7.5, 8.0, 8.0],
        )
        patient.paint_bone(canvas, jaw, 2.4)
        teeth = rod([(-104.0, -32.0, side * 28.0), (-106.0, -58.0, side * 20.0), (-106.0, -72.0, side * 4.0)], 5.5)
        patient.paint(canvas, teeth, "dense_bone", shift_hu=400.0)
    nose = union([ellipsoid((-72.0, -48.0, side * 8.0), (22.0, 34.0, 6.5), 2.4) for side in (-1.0, 1.0)])
    patient.paint(canvas, nose.grown(1.6), "cortical_bone", shift_hu=-250.0)
    patient.paint(canvas, nose, gas)
    for side in (-1.0, 1.0):
        patient.paint(canvas, capsule((-80.0, -70.0, side * 9.0), (-80.0, -30.0, side * 9.0), 3.6), "muscle")  # conchae
    ethmoid = ellipsoid((-44.0, -54.0, 0.0), (11.0, 18.0, 12.0), 2.5)
    patient.paint(canvas, ethmoid.grown(1.2), "cortical_bone", shift_hu=-200.0)
    septa = Solid(lambda p: 1.0 - 4.0 * np.abs(np.sin(p[1] / 3.2)) * np.abs(np.sin(p[2] / 2.6)), *_bounds(ethmoid))
    patient.paint(canvas, ethmoid & septa, gas)
    frontal = ellipsoid((-20.0, -82.0, 7.0), (12.0, 4.5, 15.0)) | ellipsoid((-20.0, -82.0, -9.0), (10.0, 4.5, 13.0))
    patient.paint(canvas, frontal.grown(2.0), "dense_bone")
    patient.paint(canvas, frontal, gas)
    patient.paint(canvas, rod([(-72.0, -14.0, 0.0), (-130.0, -6.0, 0.0)], [9.0, 8.0]), "airway")


def _draw_orbit(canvas: Canvas, patient: Patient, side: float) -> None:
    """Bony cone with fat, globe with lens, muscles and optic nerve."""
    apex, rim = (-36.0, -24.0, side * 14.0), (-43.0, -62.0, side * 33.0)
    cone = capsule(apex, rim, 6.0, 19.0) & half_space(1, -72.0, above=True)
    patient.paint(
        canvas,
        cone.grown(2.4),
        "cortical_bone",
        only_on=("fat", "muscle", "skin", "cortical_bone", "trabecular_bone", "gas"),
    )
    patient.paint(canvas, cone, "fat")
    globe = np.array([-43.0, -67.0, side * 33.0])
    for up, out in ((9.0, 0.0), (-9.0, 0.0), (0.0, 9.5), (0.0, -9.5)):
        patient.paint(
            canvas, rod([apex, globe + np.array([1.15 * up, 8.0, 1.15 * out])], [1.2, 2.3]), "muscle", only_on=("fat",)
        )
    patient.paint(canvas, rod([apex, globe + np.array([0.0, 10.0, 0.0])], 2.3), "white_matter", labelled=False)
    eye = ellipsoid(globe, (12.0, 12.0, 12.0))
    patient.paint(canvas, eye, "eye", shift_hu=35.0)
    patient.paint(canvas, eye.grown(-1.2), "eye")
    patient.paint(canvas, ellipsoid(globe - np.array([0.0, 8.0, 0.0]), (4.6, 2.2, 4.6)), "lens")


def _draw_soft_tissue(canvas: Canvas, patient: Patient, reach_mm: float) -> None:
    """Skin, fat and muscle of scalp, face and neck as one body, and the ears."""
    body = union(
        [
            cavity(patient).grown(reach_mm),
            ellipsoid((-78.0, -28.0, 0.0), (70.0, 62.0, 68.0), 2.4), capsule((-76.0, -84.0, 0.0), (-50.0, -80.0, 0.0), 13.0, 6.0),
            ellipsoid((-120.0, -40.0, 0.0), (30.0, 46.0, 46.0), 2.4),
            rod([(-42.0, -62.0, -48.0), (-42.0, -69.0, -30.0), (-42.0, -72.0, 0.0), (-42.0, -69.0, 30.0), (-42.0, -62.0, 48.0)], 13.5),
            ellipsoid((0.0, 26.0, 0.0), (np.inf, 57.0, 57.0), 2.2) & half_space(0, -62.0, above=False),
        ],
        blend_mm=10.0,
    )  # fmt: skip
    found = canvas.measure(body)
    patient.paint(canvas, found, "skin")
    patient.paint(canvas, found, "fat", inset_mm=1.8)
    patient.paint(canvas, found, "muscle", inset_mm=SCALP_MM + 3.5)
    for side in (-1.0, 1.0):
        ear = union(
            [
                ellipsoid((-30.0, 15.0, side * 79.0), (16.0, 12.0, 5.0)),
                ellipsoid((-52.0, 11.0, side * 72.0), (16.0, 9.0, 6.0)),
            ],
            blend_mm=5.0,
        )
        patient.paint(canvas, ear, "skin")
        patient.paint(canvas, ear.grown(-2.0), "cartilage")


def _draw_muscles(canvas: Canvas, patient: Patient) -> None:
    """Temporal muscles, masseters, pterygoids."""
    x = float(patient.details["head"][2])
    for side in (-1.0, 1.0):
        temporal = ellipsoid((-22.0, -24.0, side * 69.0 * x), (42.0, 30.0, 9.0))
        patient.paint(canvas, temporal, "muscle", only_on=("fat",))
        for course, radius in (
            ([(-58.0, -22.0, side * 58.0), (-110.0, -10.0, side * 55.0)], 8.5),
            ([(-52.0, -18.0, side * 24.0), (-90.0, -4.0, side * 40.0)], 9.0),
        ):
            patient.paint(canvas, rod(course, radius), "muscle")
        patient.paint(
            canvas, ellipsoid((-80.0, -8.0, side * 58.0), (26.0, 18.0, 7.0)), "muscle", shift_hu=-55.0
        )  # parotid


def _draw_neck(canvas: Canvas, patient: Patient) -> None:
    """Vessels in their sheaths and the upper cervical spine."""
    for side in (-1.0, 1.0):
        patient.paint(
            canvas, capsule((-56.0, 6.0, side * 32.0), (-200.0, 8.0, side * 32.0), 13.0), "fat", only_on=("muscle",)
        )
        patient.paint(canvas, capsule((-50.0, 4.0, side * 26.0), (-200.0, 4.0, side * 28.0), 3.0), "blood")
        patient.paint(canvas, capsule((-56.0, 12.0, side * 32.0), (-200.0, 14.0, side * 32.0), 5.5), "vein")
    draw_spine(canvas, patient, within=(-400.0, -96.0), scale=0.6)
