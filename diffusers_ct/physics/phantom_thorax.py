"""The thorax: lungs with lobes, airways and vessels, heart, great vessels, breasts, ribs, sternum, domes of the diaphragm."""

import numpy as np

from .phantom_anatomy import Patient, draw_plaques, plan_plaques
from .phantom_canvas import Canvas
from .phantom_solids import Segment, Solid, capsule, ellipsoid, grow_tree, plane, rod
from .phantom_trunk import back_muscles, draw_ribs, draw_spine, draw_trunk, plan_breasts

CARINA_Z_MM = 32.0
_MAIN_BRONCHUS_END = {"lung_right": (6.0, 6.0, -36.0), "lung_left": (0.0, 8.0, 40.0)}
_SMALLEST_BRONCHUS_MM = 1.2  # radius of the artery that a drawn bronchus goes along with
_BESIDE_ARTERY_MM = (1.0, 4.0, 0.0)
_HEADINGS = ((1.1, -0.5), (1.0, 0.5), (0.4, -1.0), (0.3, 0.2), (0.1, 1.1), (-0.5, -0.8), (-0.7, 0.3), (-1.1, 0.9),
             (-1.4, -0.1))  # fmt: skip


def plan(patient: Patient, rng: np.random.Generator) -> None:
    """Draws what differs between patients."""
    wide, deep = patient.size["inner_x"], patient.size["inner_y"]
    for name, side in (("lung_right", -1.0), ("lung_left", 1.0)):
        radius_x = wide * rng.uniform(0.40, 0.44)
        centre = (10.0, rng.uniform(-4, 4), side * (wide - radius_x - 6.0))
        patient.keep(name, centre, (150.0, deep * 0.88, radius_x))
    patient.keep("heart", (-45.0, -deep * 0.33, 22.0), (70.0, rng.uniform(36, 44), rng.uniform(46, 56)))
    patient.keep("vertebra", (0.0, deep * 0.66, 0.0), (110.0, 14.0, 17.0))
    patient.keep("liver", (-150.0, 0.0, -wide * 0.42), (85.0, deep * 0.80, wide * 0.50))
    patient.keep("spleen", (-165.0, deep * 0.25, wide * 0.55), (75.0, deep * 0.60, wide * 0.36))
    for name, side in (("lung_right", -1.0), ("lung_left", 1.0)):
        arteries: list[Segment] = []
        for up, back in _HEADINGS:
            heading = (up + rng.normal(0, 0.12), back + rng.normal(0, 0.15), side)
            root = (12.0 + 8.0 * up, 4.0 + 4.0 * back, side * 34.0)
            arteries += grow_tree(rng, root, heading, rng.uniform(2.9, 4.0), rng.uniform(23.0, 29.0), 6)
        patient.trees[name] = arteries
    patient.details["holders"] = {"lung": ["lung_right", "lung_left"], "trabecular_bone": ["vertebra"]}
    patient.details["oblique"] = {
        name: (rng.uniform(-6.0, 10.0), -rng.uniform(0.9, 1.25), rng.uniform(-0.12, 0.12))
        for name in ("lung_right", "lung_left")
    }
    patient.details["horizontal"] = (rng.uniform(6.0, 18.0), rng.uniform(-0.08, 0.12))
    patient.details["rib_offset_mm"] = rng.uniform(0.0, 28.0)
    patient.details["aorta_mm"] = 12.0 + rng.uniform(-0.6, 0.6) + 0.05 * max(patient.age_years - 40.0, 0.0)
    plan_breasts(patient, rng)
    plan_plaques(patient, rng, (-180.0, deep * 0.42, 22.0), (60.0, deep * 0.36, 18.0), 12.0, 22)
    plan_plaques(patient, rng, (60.0, -deep * 0.15, -10.0), (62.0, deep * 0.30, 16.0), 12.0, 10)


def fissures(patient: Patient, name: str) -> list[Solid]:
    """The planes that part a lung into lobes; the right lung's horizontal one lies before the oblique one."""
    height, slope_y, slope_x = patient.details["oblique"][name]
    oblique = plane(height, slope_y, slope_x)
    if name == "lung_left":
        return [oblique]
    flat_height, flat_slope = patient.details["horizontal"]
    return [oblique, plane(flat_height, 0.0, flat_slope)]


def bronchi(patient: Patient, name: str) -> list[tuple[Segment, float]]:
    """Airways beyond the main bronchus, each with the thickness of its wall in mm, beside the arteries of the lung."""
    hilum = np.asarray(_MAIN_BRONCHUS_END[name])
    found: list[tuple[Segment, float]] = []
    shift = np.asarray(_BESIDE_ARTERY_MM)
    heart = ellipsoid(*patient.solids["heart"]).grown(8.0)
    left_out: set[tuple[float, ...]] = set()  # ends of branches that would run into the heart, and of their branches
    for start, end, radius, end_radius in patient.trees[name]:
        at_the_heart = any(float(heart(tuple(point + shift))) < 0.0 for point in (start, end))
        if at_the_heart or tuple(start) in left_out:
            left_out.add(tuple(end))
            continue
        if radius < _SMALLEST_BRONCHUS_MM:
            continue
        if radius >= 2.9:  # the first of a tree, which no child reaches: comes from the main bronchus
            found.append(((hilum, start + shift, 4.6, 0.9 * radius), 1.2))
        found.append(((start + shift, end + shift, 0.9 * radius, 0.9 * end_radius), 0.35 + 0.18 * radius))
    return found


def draw(canvas: Canvas, patient: Patient) -> None:
    """Paints the thorax."""
    draw_trunk(canvas, patient)
    wide, deep = patient.size["inner_x"], patient.size["inner_y"]
    for column in back_muscles(patient, deep * 0.98, -400.0, 400.0):
        patient.paint(canvas, column, "muscle", only_on=("fat",))
    patient.paint(canvas, ellipsoid((0.0, 4.0, 0.0), (np.inf, deep * 0.78, 32.0)), "fat")
    lungs = {name: ellipsoid(*patient.solids[name], 2.5) for name in ("lung_right", "lung_left")}
    for name, lung in lungs.items():
        patient.paint(canvas, lung, "lung")
        oblique, *horizontal = fissures(patient, name)
        patient.paint(canvas, _on_the_surface_of(oblique, lung), "fissure", thickness_mm=1.3, only_on=("lung",))
        for flat in horizontal:
            in_front = _before(oblique, flat)
            patient.paint(canvas, in_front & _bounds(lung), "fissure", only_on=("lung",))
    _draw_heart(canvas, patient)
    _draw_great_vessels(canvas, patient, deep)
    for name in lungs:
        patient.paint_tree(canvas, patient.trees[name], "lung_vessel", only_on=("lung",))
    draw_airways(canvas, patient)
    _draw_diaphragm(canvas, patient)
    draw_plaques(canvas, patient)
    draw_spine(canvas, patient)
    draw_ribs(canvas, patient, wide, deep)
    front = -(deep + 1.0)
    sternum = ellipsoid((40.0, front, 0.0), (100.0, 6.5, 17.0), 3.0)
    patient.paint_bone(canvas, sternum, 1.5)
    for side in (-1.0, 1.0):  # scapulae: a blade with its thick outer border
        blade = rod([(30.0, deep * 0.98, side * wide * 0.72), (150.0, deep * 0.80, side * wide * 0.98)], 4.0)
        patient.paint_bone(canvas, blade, 1.4)
        border = rod([(30.0, deep * 0.98, side * wide * 0.72), (150.0, deep * 0.55, side * wide * 1.06)], 5.0)
        patient.paint_bone(canvas, border, 1.4)


def draw_airways(canvas: Canvas, patient: Patient) -> None:
    """Trachea, main bronchi and bronchi down to some 1 mm: all walls first, then one connected lumen."""
    carina = (CARINA_Z_MM, 0.0, 0.0)
    trachea = 9.0 * patient.size["bone"]
    tubes: list[tuple[Segment, float]] = [((np.array(carina), np.array([190.0, -8.0, 0.0]), trachea, trachea), 1.6)]
    for name, radius in (("lung_right", 7.0), ("lung_left", 6.2)):
        tubes.append(((np.array(carina), np.array(_MAIN_BRONCHUS_END[name]), radius, radius - 0.8), 1.5))
        tubes += bronchi(patient, name)
    solids = [(capsule(*segment), wall) for segment, wall in tubes]
    for solid, wall in solids:
        patient.paint(canvas, solid.grown(wall), "muscle", labelled=wall >= 1.2, shift_hu=-20.0)
    for solid, _ in solids:
        patient.paint(canvas, solid, "airway")


def _bounds(solid: Solid) -> Solid:
    """A solid without limits of its own in the box of another."""
    return Solid(lambda points: np.full(points[0].shape, -1e3, dtype=np.float32), solid.lower, solid.upper)


def _on_the_surface_of(surface: Solid, within: Solid) -> Solid:
    return Solid(surface.distance, within.lower, within.upper)


def _before(oblique: Solid, flat: Solid) -> Solid:
    """The sheet of the horizontal fissure above the oblique one."""
    return Solid(lambda points: np.maximum(np.abs(flat.distance(points)) - 0.65, -oblique.distance(points)))


def _draw_heart(canvas: Canvas, patient: Patient) -> None:
    centre, radii = patient.solids["heart"]
    found = canvas.measure(ellipsoid(centre, radii + 4.5))
    patient.paint(canvas, found, "muscle")  # pericardium
    patient.paint(canvas, found, "fat", inset_mm=1.3)
    wall_hu = 0.45 * (patient.hu["heart"] - patient.hu["muscle"])
    patient.paint(canvas, ellipsoid(centre, radii), "muscle", shift_hu=wall_hu, labelled=False)
    heart = ellipsoid(centre, radii)
    patient.paint(canvas, heart, "heart", shift_hu=wall_hu - patient.hu["heart"] + patient.hu["muscle"])
    chambers = (
        ((-14, 6, 20), (0.55, 0.50, 0.42), 0.0), ((-10, -12, -16), (0.58, 0.42, 0.50), -10.0),
        ((30, 20, 0), (0.34, 0.42, 0.52), 5.0), ((18, -2, -36), (0.42, 0.48, 0.34), -10.0),
    )  # fmt: skip
    for shift, scale, hu in chambers:
        chamber = ellipsoid(centre + np.array(shift, dtype=float), radii * np.array(scale))
        contrast = hu if patient.phase != "none" else 0.0
        patient.paint(canvas, chamber & heart.grown(-3.0), "heart", shift_hu=contrast)


def _draw_great_vessels(canvas: Canvas, patient: Patient, deep: float) -> None:
    aorta = patient.details["aorta_mm"]
    front, back = -deep * 0.22, deep * 0.36
    arch = [(62.0, front, -14.0), (74.0, front + 12.0, -9.0), (80.0, 0.5 * (front + back), 3.0),
            (74.0, back - 10.0, 14.0), (60.0, back, 18.0)]  # fmt: skip
    vessels: tuple[tuple[list, float, str], ...] = (
        ([(-200.0, deep * 0.42, 22.0), (60.0, back, 18.0)], aorta, "blood"),
        ([(0.0, -deep * 0.28, -12.0), (62.0, front, -14.0)], aorta + 3.5, "blood"),
        (arch, aorta + 1.0, "blood"),
        ([(84.0, front + 10.0, -9.0), (180.0, -14.0, -24.0)], 6.0, "blood"),
        ([(84.0, -4.0, 4.0), (180.0, -4.0, 24.0)], 4.5, "blood"),
        ([(82.0, back - 10.0, 13.0), (180.0, 4.0, 36.0)], 5.0, "blood"),
        ([(5.0, -deep * 0.24, -34.0), (95.0, -deep * 0.22, -32.0), (180.0, -deep * 0.26, -40.0)], 8.5, "vein"),
        ([(92.0, -deep * 0.24, -30.0), (106.0, -deep * 0.34, 4.0), (130.0, -deep * 0.30, 34.0)], 6.5, "vein"),
        ([(2.0, -deep * 0.30, 14.0), (20.0, -deep * 0.20, 18.0)], 13.0, "vein"),
        ([(20.0, -deep * 0.20, 16.0), (18.0, -2.0, -34.0)], 10.0, "vein"),
        ([(20.0, -deep * 0.20, 16.0), (26.0, 6.0, 34.0)], 10.0, "vein"),
        ([(-200.0, deep * 0.34, 4.0), (150.0, deep * 0.30, 4.0)], 6.5, "muscle"),  # oesophagus
        ([(-140.0, deep * 0.10, -26.0), (-70.0, -deep * 0.05, -22.0)], 12.0, "vein"),
    )
    for course, radius, tissue in vessels:
        patient.paint(canvas, rod(course, radius), tissue)
    for z in (40.0, 55.0, 20.0):  # a bubble of air in the oesophagus here and there
        patient.paint(canvas, capsule((z, deep * 0.315, 4.0), (z + 9.0, deep * 0.315, 4.0), 1.8), "gas", labelled=False)


def _draw_diaphragm(canvas: Canvas, patient: Patient) -> None:
    over = ("lung", "fat", "muscle", "heart", "blood", "airway")
    for name in ("liver", "spleen"):
        dome = ellipsoid(*patient.solids[name], 2.2)
        above = tuple(n for n in over if n in ("lung", "airway", "fat"))
        patient.paint(canvas, dome.grown(3.0), "muscle", only_on=above)
        patient.paint(canvas, dome.grown(0.5), "fat", only_on=("muscle",), thickness_mm=None)
        patient.paint(canvas, dome, name, only_on=("muscle", "fat"))
