"""The shoulder girdle and lower neck: humeri, scapulae, clavicles, thyroid, trachea, lung apices, neck vessels.

z = 0 lies at the middle of the glenoids, some 30 mm below the tips of the lungs. The arms lie at the sides, so that the
body is wider than a trunk: a field of view of 460 mm holds it.
"""

import numpy as np

from .phantom_anatomy import Patient, draw_plaques, plan_plaques
from .phantom_canvas import Canvas
from .phantom_solids import Segment, Solid, capsule, ellipsoid, grow_tree, half_space, plate, rod, union
from .phantom_trunk import draw_spine, draw_table

_SPINE_Y_MM = 30.0
_RIB_STEP_MM = 24.0
_LUNGS = (("lung_right", -1.0), ("lung_left", 1.0))


def plan(patient: Patient, rng: np.random.Generator) -> None:
    """Draws what differs between patients."""
    wide, woman = patient.size["inner_x"], patient.sex == "F"
    breadth = (0.93 if woman else 1.03) * (0.97 + 0.06 * (wide - 121.0) / 21.0)
    patient.details["breadth"] = breadth
    head = 23.5 * patient.size["bone"] * rng.uniform(0.97, 1.03)
    for name, side in (("right", -1.0), ("left", 1.0)):
        patient.keep(f"humeral_head_{name}", (6.0 + rng.normal(0, 2), 12.0, side * 148.0 * breadth), (head,) * 3)
    patient.keep("vertebra", (0.0, _SPINE_Y_MM, 0.0), (110.0, 11.5, 15.5))
    for name, side in _LUNGS:
        top = rng.uniform(26.0, 36.0)
        patient.keep(name, (-110.0, 12.0, side * 50.0), (110.0 + top, 62.0, 44.0))
        arteries: list[Segment] = []
        for heading in ((1.0, -0.7, 0.3), (1.0, 0.4, 0.2), (1.0, 0.0, 0.8), (0.6, -0.9, 0.7)):
            turned = (heading[0], heading[1] + rng.normal(0, 0.1), side * heading[2])
            arteries += grow_tree(
                rng, (-105.0, 6.0, side * 34.0), turned, rng.uniform(2.6, 3.6), rng.uniform(24, 30), 5
            )
        patient.trees[name] = arteries
    patient.details["thyroid"] = rng.uniform(0.85, 1.2) * (1.05 if woman else 1.0)
    patient.details["holders"] = {
        "lung": ["lung_right", "lung_left"],
        "trabecular_bone": ["humeral_head_right", "humeral_head_left", "vertebra"],
    }
    for side in (-1.0, 1.0):
        plan_plaques(patient, rng, (-55.0, -16.0, side * 16.0), (70.0, -6.0, side * 26.0), 4.2, 8)
    plan_plaques(patient, rng, (-82.0, -24.0, -12.0), (-82.0, 10.0, 14.0), 12.0, 12)


def outline(patient: Patient) -> Solid:
    """The body below the skin: neck, chest, the slopes of the trapezius, shoulders and arms."""
    wide, deep, muscle, fat = (patient.size[name] for name in ("inner_x", "inner_y", "muscle", "fat"))
    b, soft = float(patient.details["breadth"]), 4.0 + 0.55 * fat
    chest = ellipsoid((-160.0, 2.0, 0.0), (205.0, 0.92 * deep + muscle + 0.5 * fat, wide + 0.4 * fat), 2.5)
    neck = ellipsoid((0.0, 10.0, 0.0), (np.inf, 56.0 + soft, 52.0 + soft), 2.2) & half_space(0, -10.0, above=True)
    parts = [chest, neck]
    for side in (-1.0, 1.0):
        slope = rod(
            [(84.0, 34.0, side * 34.0), (44.0, 36.0, side * 76.0), (26.0, 18.0, side * 132.0 * b)], [26.0, 27.0, 31.0]
        )
        arm = capsule((4.0, 12.0, side * 148.0 * b), (-260.0, 22.0, side * 168.0 * b), 37.0 * muscle / 12.0, 36.0)
        parts += [
            slope.grown(0.5 * soft),
            arm.grown(0.5 * soft - 3.0),
            _clavicle(patient, side).grown(3.0 + 0.5 * soft),
        ]
    return union(parts, blend_mm=34.0)


def draw(canvas: Canvas, patient: Patient) -> None:
    """Paints the shoulder girdle."""
    deep, muscle, fat = (patient.size[name] for name in ("inner_y", "muscle", "fat"))
    draw_table(canvas, 0.92 * deep + muscle + 0.5 * fat + 6.0)
    body = canvas.measure(outline(patient).grown(2.0))
    patient.paint(canvas, body, "skin")
    patient.paint(canvas, body, "fat", inset_mm=2.0)
    patient.paint(canvas, body, "muscle", inset_mm=4.0 + 0.45 * fat)
    _draw_fat_planes(canvas, patient)
    _draw_chest(canvas, patient)
    _draw_neck(canvas, patient)
    _draw_vessels(canvas, patient)
    draw_plaques(canvas, patient)
    draw_spine(canvas, patient, scale=0.72)
    _draw_ribs(canvas, patient)
    for name, side in (("right", -1.0), ("left", 1.0)):
        _draw_girdle(canvas, patient, name, side)


def _draw_fat_planes(canvas: Canvas, patient: Patient) -> None:
    """The fat that parts the muscles: armpits, beneath deltoid and trapezius, triangles of the neck."""
    b, deep = float(patient.details["breadth"]), patient.size["inner_y"]
    over = ("muscle",)
    for side in (-1.0, 1.0):
        head = patient.solids["humeral_head_right" if side < 0 else "humeral_head_left"][0]
        patient.paint(canvas, ellipsoid((-46.0, -4.0, side * 112.0 * b), (50.0, 24.0, 19.0)), "fat", only_on=over)
        patient.paint(
            canvas,
            rod([(-20.0, -0.3 * deep, side * 104.0 * b), (-74.0, 0.3 * deep, side * 114.0 * b)], [9.0, 4.0]),
            "fat",
            only_on=over,
        )
        deltoid = ellipsoid(head - np.array([14.0, 0.0, side * 2.0]), (52.0, 40.0, 35.0))
        patient.paint(canvas, deltoid, "fat", thickness_mm=2.4, only_on=over)
        pectoral = plate(
            (-20.0, -0.80 * deep, side * 40.0),
            (10.0, -0.36 * deep, side * 124.0 * b),
            (-110.0, -0.78 * deep, side * 96.0),
            2.5,
        )
        patient.paint(canvas, pectoral, "fat", only_on=over)
        trapezius = plate(
            (76.0, 62.0, side * 14.0), (34.0, 22.0, side * 120.0 * b), (-110.0, 0.84 * deep, side * 14.0), 2.5
        )
        patient.paint(canvas, trapezius, "fat", only_on=over)
        rhomboid = plate(
            (60.0, 50.0, side * 12.0), (10.0, 0.72 * deep, side * 80.0), (-120.0, 0.80 * deep, side * 80.0), 2.0
        )
        patient.paint(canvas, rhomboid, "fat", only_on=over)
        # Posterior triangle, above the clavicle.
        patient.paint(canvas, ellipsoid((32.0, -6.0, side * 62.0), (26.0, 24.0, 26.0)), "fat", only_on=over)
        patient.paint(
            canvas, rod([(150.0, 4.0, side * 46.0), (40.0, -4.0, side * 52.0)], [6.0, 14.0]), "fat", only_on=over
        )
        patient.paint(
            canvas, rod([(150.0, -6.0, side * 34.0), (30.0, -14.0, side * 28.0)], 15.0), "fat", only_on=over
        )  # carotid sheath
        for course, radius in (
            (
                [(170.0, -2.0, side * 48.0), (70.0, -30.0, side * 32.0), (-4.0, -48.0, side * 16.0)],
                8.0,
            ),  # sternomastoid
            ([(90.0, 12.0, side * 22.0), (30.0, 4.0, side * 40.0), (20.0, 2.0, side * 48.0)], 6.5),  # scalenes
        ):
            patient.paint(canvas, rod(course, radius), "muscle", only_on=("fat",))


def _draw_chest(canvas: Canvas, patient: Patient) -> None:
    deep = patient.size["inner_y"]
    cavity = ellipsoid((-120.0, 4.0, 0.0), (150.0, 0.74 * deep, 52.0))
    patient.paint(canvas, cavity, "fat")
    for name, _ in _LUNGS:
        lung = ellipsoid(*patient.solids[name], 2.3)
        patient.paint(canvas, lung.grown(2.0), "muscle", labelled=False, shift_hu=-40.0)
        patient.paint(canvas, lung, "lung")
        patient.paint_tree(canvas, patient.trees[name], "lung_vessel", only_on=("lung",))


def _draw_neck(canvas: Canvas, patient: Patient) -> None:
    """Trachea with cartilage, larynx above, thyroid, oesophagus."""
    bone = patient.size["bone"]
    patient.paint(
        canvas, rod([(-250.0, 10.0, 4.0), (-60.0, 8.0, 7.0), (60.0, 2.0, 6.0), (200.0, 8.0, 0.0)], 7.5), "muscle"
    )
    course = [(-250.0, 0.0, 2.0), (-60.0, -8.0, 2.0), (20.0, -18.0, 0.0), (84.0, -24.0, 0.0)]
    size = float(patient.details["thyroid"])
    for side in (-1.0, 1.0):
        lobe = ellipsoid((58.0, -20.0, side * 18.5), np.array([25.0, 11.0, 8.5]) * size)
        patient.paint(canvas, lobe, "thyroid")
    isthmus = rod([(46.0, -34.0, -13.0), (46.0, -36.5, 0.0), (46.0, -34.0, 13.0)], 4.2 * size)
    patient.paint(canvas, isthmus, "thyroid")
    tube = rod(course, 9.0 * bone)
    patient.paint(canvas, tube.grown(2.2), "cartilage", shift_hu=-45.0)
    larynx = capsule((90.0, -26.0, 0.0), (124.0, -28.0, 0.0), 15.0 * bone)
    patient.paint(canvas, larynx, "muscle")
    hard = 3.0 * max(patient.age_years - 30.0, 0.0)
    for side in (-1.0, 1.0):
        shield = plate((92.0, -44.0 * bone, 0.0), (120.0, -46.0 * bone, 0.0), (106.0, -18.0, side * 19.0 * bone), 3.0)
        patient.paint(canvas, shield, "cartilage", shift_hu=hard)
    patient.paint(canvas, ellipsoid((90.0, -24.0, 0.0), (8.0, 13.0, 13.0)).shell(3.5), "cartilage", shift_hu=hard)
    patient.paint(canvas, tube, "airway")
    patient.paint(canvas, ellipsoid((130.0, -24.0, 0.0), (50.0, 12.0, 7.0)), "airway")


def _draw_vessels(canvas: Canvas, patient: Patient) -> None:
    b = float(patient.details["breadth"])
    aorta = 12.0 + 0.05 * max(patient.age_years - 40.0, 0.0)
    arch = [(-240.0, -22.0, -20.0), (-96.0, -30.0, -16.0), (-82.0, -18.0, -6.0), (-84.0, 4.0, 12.0), (-104.0, 18.0, 18.0),
            (-250.0, 26.0, 20.0)]  # fmt: skip
    vessels: list[tuple[list, float | list[float], str]] = [
        ([(-250.0, -20.0, -28.0), (-66.0, -28.0, -24.0)], 8.5, "vein"),
        ([(-66.0, -28.0, -24.0), (-20.0, -30.0, -24.0), (4.0, -30.0, -30.0)], 7.0, "vein"),
        ([(-60.0, -30.0, -22.0), (-46.0, -38.0, 6.0), (2.0, -32.0, 30.0)], 6.5, "vein"),
        (arch, aorta, "blood"),
        ([(-78.0, -24.0, -10.0), (-20.0, -18.0, -18.0)], 6.0, "blood"),  # brachiocephalic trunk
        ([(-76.0, -8.0, 4.0), (0.0, -14.0, 20.0), (70.0, -6.0, 26.0)], 3.8, "blood"),
        ([(-78.0, 4.0, 14.0), (0.0, 0.0, 28.0)], 4.8, "blood"),
        ([(-20.0, -18.0, -18.0), (70.0, -6.0, -26.0)], 3.8, "blood"),
        ([(-20.0, -18.0, -18.0), (4.0, -4.0, -30.0)], 4.5, "blood"),
    ]
    for side in (-1.0, 1.0):
        vessels += [
            ([(4.0, -2.0, side * 29.0), (34.0, -8.0, side * 50.0), (14.0, -12.0, side * 88.0), (-24.0, -4.0, side * 116.0 * b),
              (-90.0, 8.0, side * 142.0 * b), (-260.0, 14.0, side * 150.0 * b)], [4.6, 4.4, 4.0, 3.6, 3.0, 2.4], "blood"),
            ([(2.0, -31.0, side * 30.0), (16.0, -26.0, side * 56.0), (4.0, -22.0, side * 88.0), (-34.0, -10.0, side * 112.0 * b),
              (-90.0, 4.0, side * 136.0 * b)], [7.0, 6.0, 5.5, 5.0, 3.5], "vein"),
            ([(4.0, -30.0, side * 30.0), (60.0, -14.0, side * 36.0), (170.0, 0.0, side * 34.0)], 6.4, "vein"),
            ([(70.0, -6.0, side * 26.0), (170.0, 2.0, side * 26.0)], 3.7, "blood"),
            ([(10.0, 4.0, side * 26.0), (60.0, 22.0, side * 20.0), (200.0, 22.0, side * 20.0)], 1.9, "blood"),  # vertebral
        ]  # fmt: skip
    for course, radius, tissue in vessels:
        patient.paint(canvas, rod(course, radius), tissue)


def _draw_ribs(canvas: Canvas, patient: Patient) -> None:
    """Ribs around the lung apices, wider from one to the next, and the manubrium."""
    thick = patient.size["bone"]
    angles = np.linspace(0.10 * np.pi, 0.93 * np.pi, 13)
    for number in range(9):
        z = 36.0 - _RIB_STEP_MM * number
        across = 54.0 + 46.0 * (1.0 - np.exp(-0.42 * number))
        back, front = 50.0 + 18.0 * (1.0 - np.exp(-0.6 * number)), 46.0 + 22.0 * (1.0 - np.exp(-0.5 * number))
        fall = 26.0 + 4.0 * number
        for side in (-1.0, 1.0):
            course = [
                (
                    z - fall * (a / np.pi - 0.1),
                    8.0 + (back if np.cos(a) > 0 else front) * np.cos(a),
                    side * across * np.sin(a),
                )
                for a in angles
            ]
            patient.paint_bone(canvas, rod(course[:11], 4.8 * thick), 1.4)
            patient.paint(
                canvas, rod(course[10:], 4.8 * thick), "cartilage", shift_hu=1.6 * max(patient.age_years - 40.0, 0.0)
            )
    manubrium = ellipsoid((-42.0, -60.0, 0.0), (26.0, 6.5, 24.0), 3.0) | ellipsoid(
        (-150.0, -70.0, 0.0), (84.0, 6.0, 16.0), 3.0
    )
    patient.paint_bone(canvas, manubrium, 1.5)


def _draw_girdle(canvas: Canvas, patient: Patient, name: str, side: float) -> None:
    """Humerus, scapula and clavicle of a side."""
    b, thick = float(patient.details["breadth"]), patient.size["bone"]
    centre, radii = patient.solids[f"humeral_head_{name}"]
    head = float(radii[0])
    z, y, x = centre.tolist()

    def at(up: float, back: float, out: float) -> tuple[float, float, float]:
        return up, back, side * out * b

    glenoid = (z - 4.0, y + 8.0, x - side * (head + 9.0))
    spine_root, acromion = at(14.0, 66.0, 72.0), at(40.0, 24.0, 146.0)
    low, upper = at(-118.0, 70.0, 84.0), at(38.0, 44.0, 66.0)
    blade = union(
        [
            plate(upper, low, glenoid, 3.6), rod([upper, spine_root, low], 3.4 * thick), rod([low, glenoid], [5.0 * thick, 6.5 * thick]),
            plate(spine_root, acromion, at(16.0, 34.0, 122.0), 4.0), rod([spine_root, at(30.0, 52.0, 112.0), acromion], [3.6, 5.6 * thick, 6.6 * thick]),
            rod([acromion, at(44.0, 2.0, 148.0)], 6.0 * thick),
            rod([glenoid, at(26.0, 2.0, 112.0), at(18.0, -22.0, 122.0)], [8.0 * thick, 6.5 * thick, 5.5 * thick]),
            ellipsoid(glenoid, (18.0 * thick, 13.0 * thick, 7.0)),
        ],
        blend_mm=5.0,
    )  # fmt: skip
    joint = ellipsoid(centre, (head + 2.6,) * 3)
    patient.paint_bone(canvas, blade - joint, 1.5)
    shaft = [(z - 26.0, y + 2.0, x + side * 5.0), (-110.0, 16.0, side * 160.0 * b), (-300.0, 24.0, side * 168.0 * b)]
    humerus = union(
        [
            ellipsoid(centre, radii),
            capsule(centre, (z + 4.0, y - 6.0, x + side * 15.0), 12.0, 11.0 * thick),
            capsule(centre, shaft[0], head - 3.0, 15.0 * thick),
            rod(shaft, [15.0 * thick, 11.5 * thick, 11.0 * thick]),
        ],
        blend_mm=6.0,
    )
    patient.paint(canvas, joint, "cartilage", shift_hu=-40.0, only_on=("muscle", "fat"))
    patient.paint_bone(canvas, humerus, 1.6)
    below = half_space(0, -42.0, above=False)
    patient.paint(canvas, rod(shaft, [15.0 * thick, 11.5 * thick, 11.0 * thick]) & below, "dense_bone")
    patient.paint(canvas, rod(shaft, [10.5 * thick, 7.1 * thick, 6.6 * thick]) & below, "marrow")
    patient.paint_bone(canvas, _clavicle(patient, side), 2.0)


def _clavicle(patient: Patient, side: float) -> Solid:
    b, thick = float(patient.details["breadth"]), patient.size["bone"]
    course = ((-14.0, -54.0, 18.0), (4.0, -57.0, 48.0), (24.0, -40.0, 84.0), (40.0, -12.0, 116.0), (44.0, 2.0, 136.0))
    radii = [9.0 * thick, 6.6 * thick, 5.8 * thick, 5.8 * thick, 6.4 * thick]
    return rod([(z, y, side * x * b) for z, y, x in course], radii)
