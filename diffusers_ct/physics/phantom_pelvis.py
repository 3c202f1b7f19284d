"""The pelvis: hip bones, sacrum, femora, bladder, rectum, prostate or uterus, muscles, iliac vessels, bowel.

z = 0 lies at the second sacral segment, some 40 mm above the centres of the femoral heads.
"""

from typing import Any

import numpy as np

from .phantom_abdomen import draw_bowel
from .phantom_anatomy import Patient, draw_plaques, plan_plaques
from .phantom_canvas import Canvas
from .phantom_solids import Points, Solid, capsule, ellipsoid, half_space, plate, rod, union
from .phantom_trunk import back_muscles, draw_spine, draw_table

_SIDES = (("right", -1.0), ("left", 1.0))
HIP_MM = (-40.0, 4.0, 86.0)  # centre of a femoral head: z, y, distance from the midline
_SACRUM_TOP_MM = 78.0


def plan(patient: Patient, rng: np.random.Generator) -> None:
    """Draws what differs between patients."""
    wide, deep = patient.size["inner_x"], patient.size["inner_y"]
    woman, age = patient.sex == "F", patient.age_years
    # A woman's pelvis is wider in the inlet although she is smaller.
    patient.details["breadth"] = (1.0 if woman else 0.97) * (0.96 + 0.04 * (wide - 121.0) / 21.0)
    head = 24.0 * patient.size["bone"] * rng.uniform(0.97, 1.03)
    patient.details["head_mm"] = head
    for name, side in _SIDES:
        patient.keep(f"femoral_head_{name}", _hip(patient, side), (head, head, head))
    patient.keep("sacrum", (40.0, deep * 0.62, 0.0), (40.0, 18.0, 34.0))
    patient.keep("vertebra", (0.0, deep * 0.34, 0.0), (110.0, 17.0, 23.0))
    fill = rng.uniform(0.0, 1.0)
    bladder = (20.0 + 22.0 * fill, 22.0 + 14.0 * fill, 28.0 + 18.0 * fill)
    patient.keep("bladder", (-48.0 + bladder[0], -deep * 0.30, rng.normal(0.0, 3.0)), bladder)
    growth = 1.0 + 0.011 * max(age - 40.0, 0.0)
    gland = np.array([16.0, 13.0, 20.0]) * rng.uniform(0.9, 1.1) * growth
    womb = np.array([34.0, 21.0, 26.0]) * rng.uniform(0.9, 1.15) * (1.0 - 0.018 * min(max(age - 50.0, 0.0), 20.0))
    tilt = rng.uniform(-6.0, 6.0)
    if woman:
        patient.keep("uterus", (-8.0 + 0.5 * bladder[0], deep * 0.14, tilt), womb)
    else:
        patient.keep("prostate", (-50.0 - 0.5 * gland[0], -deep * 0.06, 0.0), gland)
    patient.details["holders"] = {"trabecular_bone": ["femoral_head_right", "femoral_head_left", "sacrum", "sacrum"]}
    patient.details["bowel"] = _plan_bowel(rng, wide, deep)
    patient.details["rectum_level_mm"] = deep * 0.50 + rng.uniform(-6.0, 4.0)
    for side in (-1.0, 1.0):
        course = _artery(patient, side)
        plan_plaques(patient, rng, course[0], course[1], 6.0, 7)
        plan_plaques(patient, rng, course[1], course[2], 5.0, 7)


def _plan_bowel(rng: np.random.Generator, wide: float, deep: float) -> list[dict[str, Any]]:
    """Loops of small bowel above the bladder, the caecum, the descending and the sigmoid colon."""
    loops: list[dict[str, Any]] = []
    low, high = np.array([15.0, -0.72 * deep, -0.52 * wide]), np.array([180.0, 0.10 * deep, 0.50 * wide])
    for _ in range(16):
        place, heading = rng.uniform(low, high), rng.normal(size=3)
        course = [place]
        for _ in range(4):
            heading = heading / np.linalg.norm(heading) + 0.7 * rng.normal(size=3)
            place = np.clip(place + 20.0 * heading / np.linalg.norm(heading), low, high)
            course.append(place)
        loops.append({"course": course, "radius": rng.uniform(8.5, 13.0), "fold_mm": 1.6, "period_mm": 6.0})
    caecum = [(40.0, -0.35 * deep, -0.62 * wide), (200.0, -0.10 * deep, -0.78 * wide)]
    descending = [
        (200.0, 0.15 * deep, 0.80 * wide),
        (70.0, -0.20 * deep, 0.66 * wide),
        (38.0, -0.35 * deep, 0.45 * wide),
    ]
    sigmoid = [(38.0, -0.35 * deep, 0.45 * wide), (30.0, -0.1 * deep, 0.16 * wide), (48.0, 0.2 * deep, -0.10 * wide),
               (50.0, 0.38 * deep, 0.04 * wide)]  # fmt: skip
    for colon, narrow in ((caecum, 1.0), (descending, 0.75), (sigmoid, 0.7)):
        radius = narrow * rng.uniform(19.0, 24.0)
        loops.append({"course": np.array(colon), "radius": radius, "fold_mm": 4.0, "period_mm": 22.0})
    for loop in loops:
        top = min(point[1] for point in loop["course"])
        gas = rng.random() < 0.45
        loop["level_mm"] = float(top + rng.uniform(-0.6, 0.8) * loop["radius"]) if gas else None
        loop["content_hu"] = rng.uniform(-15.0, 60.0)
    return loops


def _hip(patient: Patient, side: float) -> tuple[float, float, float]:
    z, y, x = HIP_MM
    return z, y, side * x * float(patient.details["breadth"])


def _artery(patient: Patient, side: float) -> list[tuple[float, float, float]]:
    """Common and external iliac and femoral artery; the aorta parts at the fourth lumbar vertebra."""
    deep = patient.size["inner_y"]
    return [(112.0, -0.04 * deep, side * 4.0), (62.0, 0.10 * deep, side * 36.0), (0.0, -0.34 * deep, side * 58.0),
            (-42.0, -0.74 * deep, side * 56.0), (-110.0, -0.60 * deep, side * 66.0), (-240.0, -0.30 * deep, side * 70.0)]  # fmt: skip


def outline(patient: Patient) -> Solid:
    """The body below the skin: the trunk, parted into the thighs below the groins."""
    wide, deep, muscle, fat = (patient.size[name] for name in ("inner_x", "inner_y", "muscle", "fat"))
    trunk = ellipsoid((0.0, -0.2 * fat, 0.0), (np.inf, deep + muscle + fat, wide + muscle + fat), 2.5)
    trunk = trunk & half_space(0, -72.0, above=True)
    half = 0.5 * (wide + muscle + fat)
    thighs = [
        ellipsoid((0.0, -0.1 * fat, side * (half + 2.0)), (np.inf, 0.82 * (deep + muscle + fat), half - 4.0), 2.2)
        & half_space(0, -55.0, above=False)
        for side in (-1.0, 1.0)
    ]
    return union([trunk, *thighs], blend_mm=30.0)


def draw(canvas: Canvas, patient: Patient) -> None:
    """Paints the pelvis."""
    deep, muscle, fat = (patient.size[name] for name in ("inner_y", "muscle", "fat"))
    draw_table(canvas, deep + muscle + 0.6 * fat + 2.0)
    body = canvas.measure(outline(patient).grown(2.0))
    patient.paint(canvas, body, "skin")
    patient.paint(canvas, body, "fat", inset_mm=2.0)
    _draw_muscles(canvas, patient)
    for loop in patient.details["bowel"]:
        draw_bowel(canvas, patient, loop)
    _draw_organs(canvas, patient)
    _draw_vessels(canvas, patient)
    draw_plaques(canvas, patient)
    draw_spine(canvas, patient, within=(86.0, 400.0))
    for name, side in _SIDES:
        _draw_hip_bone(canvas, patient, side)
        _draw_femur(canvas, patient, name, side)
    _draw_sacrum(canvas, patient)


def _draw_muscles(canvas: Canvas, patient: Patient) -> None:
    wide, deep, muscle = (patient.size[name] for name in ("inner_x", "inner_y", "muscle"))
    slim, b = muscle / 12.0, float(patient.details["breadth"])
    wall = ellipsoid((0.0, 0.0, 0.0), (np.inf, deep + muscle, wide + muscle), 2.5)

    def layer(points: Points) -> np.ndarray:
        """The abdominal wall, which ends on the iliac crests behind and thins out towards the groins in front."""
        z, y, _ = points
        share = np.clip((z - 35.0) / 40.0, 0.0, 1.0)
        share = share * np.clip(np.maximum((z - 88.0) / 25.0, (25.0 - y) / 20.0), 0.0, 1.0)
        distance = wall.distance(points)
        return np.where(share > 0.02, np.maximum(distance, -distance - muscle * share), 50.0)

    patient.paint(canvas, Solid(layer, (30.0, *wall.lower[1:]), wall.upper), "muscle")
    for column in back_muscles(patient, deep * 0.82, 30.0, 400.0):
        patient.paint(canvas, column, "muscle")
    for side in (-1.0, 1.0):
        front = -(deep + 0.4 * muscle)
        parts: list[Solid] = [
            capsule((-60.0, front + 8.0, side * 14.0), (-20.0, front, side * 24.0), 6.0),  # rectus abdominis
            ellipsoid((60.0, front, side * 32.0), (110.0, 6.0 * slim, 27.0)),
            # gluteus maximus, medius and minimus, and their fat between
            ellipsoid((-28.0, deep * 0.96, side * 72.0 * b), (105.0, 30.0 * slim, 58.0), 2.3),
            plate((112.0, 12.0, side * 120.0 * b), (60.0, -40.0, side * 128.0 * b), (-48.0, 14.0, side * 128.0 * b), 26.0 * slim),
            plate((112.0, 12.0, side * 120.0 * b), (60.0, 70.0, side * 66.0 * b), (-48.0, 14.0, side * 128.0 * b), 30.0 * slim),
            ellipsoid((10.0, -deep * 0.62, side * 124.0 * b), (120.0, 22.0 * slim, 14.0)),  # tensor, sartorius
            # iliacus and psoas to the lesser trochanter
            plate((95.0, 8.0, side * 96.0 * b), (50.0, -34.0, side * 100.0 * b), (-15.0, -18.0, side * 82.0 * b), 18.0 * slim),
            rod([(220.0, 0.44 * deep, side * 40.0), (100.0, 0.30 * deep, side * 48.0), (30.0, -0.14 * deep, side * 72.0),
                 (-40.0, -0.42 * deep, side * 86.0), (-92.0, 0.12 * deep, side * 98.0 * b)],
                [19.0 * slim, 21.0 * slim, 17.0 * slim, 16.0 * slim, 8.0]),
            # obturator internus, piriformis, levator ani
            plate((-25.0, 30.0, side * 66.0 * b), (-80.0, 20.0, side * 50.0 * b), (-48.0, -30.0, side * 48.0 * b), 17.0 * slim),
            rod([(12.0, 0.62 * deep, side * 28.0), (-22.0, 0.62 * deep, side * 78.0), (-40.0, 30.0, side * 118.0 * b)], [13.0, 13.0, 6.0]),
            plate((-50.0, 0.66 * deep, 0.0), (-95.0, 0.45 * deep, side * 14.0), (-55.0, 0.2 * deep, side * 42.0), 5.0),
            # the thigh: pectineus and adductors, quadriceps, hamstrings
            rod([(-58.0, -34.0, side * 30.0), (-110.0, -18.0, side * 60.0), (-300.0, 10.0, side * 66.0)], [15.0, 30.0, 40.0]),
            rod([(-25.0, -0.62 * deep, side * 106.0 * b), (-110.0, -0.5 * deep, side * 104.0 * b), (-300.0, -20.0, side * 95.0)], [10.0, 27.0, 42.0]),
            rod([(-90.0, 42.0, side * 58.0 * b), (-140.0, 48.0, side * 72.0 * b), (-300.0, 48.0, side * 78.0)], [12.0, 24.0, 34.0]),
            rod([(-60.0, 20.0, side * 128.0 * b), (-120.0, 0.0, side * 122.0 * b), (-300.0, 0.0, side * 110.0)], [10.0, 22.0, 32.0]),
        ]  # fmt: skip
        inner = outline(patient).grown(-4.0)
        for part in parts:
            found = canvas.measure(part)
            if found is None:
                continue
            box, distance = found
            limit = inner.distance((canvas.points[0][box], canvas.points[1][box], canvas.points[2][box]))
            patient.paint(canvas, (box, np.maximum(distance, limit)), "muscle")
        for where, radii in (  # the fat that parts the gluteal muscles, and that of the ischiorectal fossa
            ((-10.0, deep * 0.74, side * 92.0 * b), (75.0, 3.5, 40.0)),
            ((-85.0, 0.42 * deep, side * 32.0), (24.0, 17.0, 13.0)),
        ):
            patient.paint(canvas, ellipsoid(where, radii), "fat", only_on=("muscle",))


def _draw_organs(canvas: Canvas, patient: Patient) -> None:
    deep = patient.size["inner_y"]
    rectum = [(52.0, 0.40 * deep, 4.0), (20.0, 0.50 * deep, 2.0), (-20.0, 0.50 * deep, -2.0), (-62.0, 0.38 * deep, 0.0)]
    patient.paint(canvas, rod(rectum, [24.0, 26.0, 27.0, 22.0]), "fat", only_on=("bowel", "muscle"))  # mesorectum
    patient.paint(canvas, rod(rectum, [14.0, 15.0, 19.0, 13.0]), "wall")
    lumen = canvas.measure(rod(rectum, [10.5, 11.5, 15.5, 8.0]).rippled(3.0, 26.0, (1.0, 0.2, 0.0)))
    patient.paint(canvas, lumen, "bowel", shift_hu=15.0)
    patient.paint(canvas, lumen, "gas", above_mm=patient.details["rectum_level_mm"], labelled=False)
    anus = capsule((-62.0, 0.38 * deep, 0.0), (-105.0, 0.55 * deep, 0.0), 11.0)
    patient.paint(canvas, anus, "muscle")
    if patient.sex == "F":
        centre, radii = patient.solids["uterus"]
        patient.paint(canvas, capsule((-40.0, 0.14 * deep, 0.0), (-92.0, 0.02 * deep, 0.0), 8.5), "muscle")
        patient.paint(canvas, capsule(centre, (-42.0, 0.16 * deep, 0.0), 0.6 * float(radii[1]), 12.0), "uterus")
        womb = ellipsoid(centre, radii)
        patient.paint(canvas, womb, "uterus")
        patient.paint(canvas, ellipsoid(centre, radii * np.array([0.55, 0.2, 0.45])), "uterus", shift_hu=-25.0)
        for side in (-1.0, 1.0):  # ovaries
            ovary = ellipsoid((centre[0] - 4.0, 0.16 * deep, side * 46.0), 0.42 * radii)
            patient.paint(canvas, ovary, "uterus", shift_hu=-18.0)
    else:
        centre, radii = patient.solids["prostate"]
        patient.paint(canvas, ellipsoid(centre, radii + 4.0), "fat")
        patient.paint(canvas, ellipsoid(centre, radii), "prostate")
        for side in (-1.0, 1.0):  # seminal vesicles
            vesicle = capsule((-36.0, 0.12 * deep, side * 8.0), (-28.0, 0.20 * deep, side * 34.0), 6.5, 4.0)
            patient.paint(canvas, vesicle, "muscle", shift_hu=-20.0)
            cord = rod([(-40.0, -1.0 * deep, side * 34.0), (-75.0, -1.04 * deep, side * 22.0)], 5.0)
            patient.paint(canvas, cord, "muscle", shift_hu=-30.0, only_on=("fat",))
    bladder = canvas.measure(ellipsoid(*patient.solids["bladder"], 2.3).grown(3.2))
    patient.paint(canvas, bladder, "muscle", shift_hu=-15.0)
    patient.paint(canvas, bladder, "bladder", inset_mm=3.2)


def _draw_vessels(canvas: Canvas, patient: Patient) -> None:
    deep = patient.size["inner_y"]
    aorta = 9.5 + 0.05 * max(patient.age_years - 40.0, 0.0)
    patient.paint(canvas, capsule((400.0, 0.02 * deep, 4.0), (112.0, -0.02 * deep, 3.0), aorta), "blood")
    patient.paint(canvas, capsule((400.0, 0.06 * deep, -20.0), (100.0, 0.10 * deep, -14.0), 11.0), "vein")
    wider = 0.025 * max(patient.age_years - 40.0, 0.0)
    for side in (-1.0, 1.0):
        artery = _artery(patient, side)
        beside = np.array([0.0, 11.0, -side * 4.0])
        medial = [np.asarray(p) + (beside if p[0] > -30.0 else np.array([0.0, 3.0, -side * 12.0])) for p in artery]
        medial[0] = np.array([100.0, 0.10 * deep, -14.0])
        patient.paint(canvas, rod(medial, [9.0, 8.5, 7.5, 7.0, 5.5, 5.0]), "vein")
        inner = [(62.0, 0.16 * deep, side * 36.0), (25.0, 0.45 * deep, side * 44.0), (-20.0, 0.40 * deep, side * 50.0)]
        patient.paint(canvas, rod([np.add(p, (0.0, 6.0, 0.0)) for p in inner], [6.0, 5.0, 3.0]), "vein")
        patient.paint(canvas, rod(inner, [4.2, 3.5, 2.2]), "blood")
        radii = [6.2 + wider, 5.6 + wider, 4.8 + wider, 4.6, 4.2, 3.6]
        patient.paint(canvas, rod(artery, radii), "blood")


def _draw_hip_bone(canvas: Canvas, patient: Patient, side: float) -> None:
    """Ilium as plates with a thick crest, the acetabulum as a cup, pubis and ischium as rods."""
    deep, bone = patient.size["inner_y"], patient.size["bone"]
    b, head = float(patient.details["breadth"]), float(patient.details["head_mm"])

    def at(z: float, y: float, x: float) -> tuple[float, float, float]:
        return z, y, side * x * b

    front, crest, back = at(52.0, -46.0, 116.0), at(112.0, 8.0, 112.0), at(64.0, 0.86 * deep, 46.0)
    roof, notch = at(-8.0, 6.0, 86.0), at(4.0, 0.60 * deep, 58.0)
    wing = union(
        [
            plate(front, crest, roof, 6.5 * bone), plate(crest, back, roof, 7.0 * bone), plate(back, notch, roof, 12.0 * bone),
            rod([front, crest, back, notch], [6.0 * bone, 5.5 * bone, 8.5 * bone, 7.0 * bone]),
        ],
        blend_mm=6.0,
    )  # fmt: skip
    centre = _hip(patient, side)
    cup = ellipsoid(centre, (head + 11.0,) * 3) & half_space(2, side * (abs(centre[2]) - 3.0), above=side < 0)
    symphysis = at(-62.0, -0.58 * deep, 7.0)
    rods = [
        rod([roof, at(-32.0, -26.0, 70.0), at(-50.0, -0.50 * deep, 30.0), symphysis], [13.0, 11.0, 7.5, 8.5]),
        rod([notch, at(-40.0, 32.0, 66.0), at(-86.0, 36.0, 56.0)], [9.0, 12.0, 13.0]),
        rod([at(-86.0, 34.0, 54.0), at(-84.0, -6.0, 36.0), symphysis], [9.0, 5.5, 8.0]),
    ]
    whole = union([wing, cup, *rods], blend_mm=8.0)
    found = canvas.measure(whole)
    if found is not None:
        patient.paint(canvas, found, "cortical_bone")
        patient.paint(canvas, found, "trabecular_bone", inset_mm=1.9)
    patient.paint(
        canvas, ellipsoid(centre, (head + 2.8,) * 3), "cartilage", only_on=("cortical_bone", "trabecular_bone")
    )
    gap = ellipsoid((-62.0, -0.56 * deep, 0.0), (20.0, 9.0, 2.6))
    patient.paint(canvas, gap, "cartilage")


def _draw_femur(canvas: Canvas, patient: Patient, name: str, side: float) -> None:
    b = float(patient.details["breadth"])
    centre, radii = patient.solids[f"femoral_head_{name}"]
    thick = patient.size["bone"]
    trochanter = (-62.0, 20.0, side * 132.0 * b)
    shaft = [(-78.0, 14.0, side * 124.0 * b), (-130.0, 6.0, side * 116.0 * b), (-320.0, -6.0, side * 100.0)]
    upper = union(
        [
            ellipsoid(centre, radii),
            capsule(centre, (-66.0, 14.0, side * 122.0 * b), 14.5 * thick, 17.0 * thick),
            capsule(trochanter, shaft[0], 15.0 * thick),
            capsule((-100.0, 22.0, side * 104.0 * b), shaft[0], 8.0),  # lesser trochanter
        ],
        blend_mm=6.0,
    )
    patient.paint_bone(
        canvas, union([upper, rod(shaft, [16.0 * thick, 14.0 * thick, 13.5 * thick])], blend_mm=8.0), 1.8
    )
    below = half_space(0, -112.0, above=False)
    patient.paint(canvas, rod(shaft, [15.0 * thick, 14.0 * thick, 13.5 * thick]) & below, "dense_bone")
    patient.paint(canvas, rod(shaft, [9.0 * thick, 8.0 * thick, 7.5 * thick]) & below, "marrow")


def _draw_sacrum(canvas: Canvas, patient: Patient) -> None:
    deep, b = patient.size["inner_y"], float(patient.details["breadth"])
    y = deep * 0.34
    disc = ellipsoid((_SACRUM_TOP_MM + 4.0, y + 3.0, 0.0), (5.0, 15.0, 21.0), 4.0)
    body = rod(
        [(64.0, y + 6.0, 0.0), (40.0, 0.60 * deep, 0.0), (0.0, 0.76 * deep, 0.0), (-30.0, 0.74 * deep, 0.0), (-52.0, 0.58 * deep, 0.0)],
        [15.0, 13.0, 10.0, 7.0, 4.0],
    )  # fmt: skip
    alae = [
        plate(
            (64.0, 0.56 * deep, side * 38.0 * b), (62.0, y + 12.0, side * 12.0), (-18.0, 0.76 * deep, side * 8.0), 22.0
        )
        for side in (-1.0, 1.0)
    ]
    whole = union([body, *alae], blend_mm=8.0) & half_space(0, _SACRUM_TOP_MM, above=False)
    found = canvas.measure(whole.grown(2.2))
    patient.paint(canvas, found, "cartilage", only_on=("cortical_bone", "trabecular_bone"))  # the sacroiliac joints
    patient.paint(canvas, found, "cortical_bone", inset_mm=2.2)
    patient.paint(canvas, found, "trabecular_bone", inset_mm=4.0)
    patient.paint(canvas, disc, "disc")
    canal = rod(
        [(90.0, y + 28.0, 0.0), (60.0, 0.74 * deep, 0.0), (30.0, 0.86 * deep, 0.0), (0.0, 0.90 * deep, 0.0)],
        [8.0, 8.0, 6.0, 4.0],
    )
    patient.paint(canvas, canal.grown(3.0), "cortical_bone", shift_hu=-0.4 * patient.hu["cortical_bone"])
    patient.paint(canvas, canal, "csf")
    for z, depth, apart in ((46.0, 0.64, 20.0), (22.0, 0.74, 18.0), (0.0, 0.80, 15.0)):
        for side in (-1.0, 1.0):  # the foramina with their nerves
            hole = capsule((z, (depth - 0.16) * deep, side * apart), (z - 4.0, depth * deep, side * apart), 4.0)
            patient.paint(canvas, hole, "fat")
            patient.paint(canvas, hole.grown(-2.0), "muscle", shift_hu=-25.0)
