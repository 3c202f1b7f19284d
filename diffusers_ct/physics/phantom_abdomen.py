"""The abdomen: liver, spleen, kidneys, stomach, bowel with folds and gas-fluid levels, pancreas, vessels, psoas."""

from itertools import pairwise
from typing import Any

import numpy as np

from .phantom_anatomy import Patient, draw_plaques, plan_plaques
from .phantom_canvas import Canvas
from .phantom_solids import Segment, Solid, capsule, ellipsoid, grow_tree, rod
from .phantom_trunk import back_muscles, draw_ribs, draw_spine, draw_trunk

_INSIDE = ("fat", "bowel", "pancreas", "gas", "liver")


def plan(patient: Patient, rng: np.random.Generator) -> None:
    """Draws what differs between patients."""
    wide, deep = patient.size["inner_x"], patient.size["inner_y"]
    patient.keep("liver", (25.0, -8.0, -wide * 0.40), (rng.uniform(95, 120), deep * 0.74, wide * 0.50))
    patient.keep("liver_left", (35.0, -deep * 0.42, -wide * 0.02), (rng.uniform(55, 75), deep * 0.36, wide * 0.42))
    patient.keep("spleen", (35.0, deep * 0.36, wide * 0.72), (rng.uniform(42, 60), deep * 0.36, 26.0))
    patient.keep("stomach", (30.0, -deep * 0.36, wide * 0.46), (60.0, deep * 0.32, wide * 0.28))
    for name, side in (("kidney_right", -1.0), ("kidney_left", 1.0)):
        centre = (-35.0 + 8 * side + rng.normal(0, 5), deep * 0.42, side * wide * 0.47)
        patient.keep(name, centre, (rng.uniform(48, 58), rng.uniform(25, 30), rng.uniform(24, 29)))
    patient.keep("vertebra", (0.0, deep * 0.50, 0.0), (110.0, 16.0, 21.0))
    patient.keep("gall_bladder", (-15.0, -deep * 0.30, -wide * 0.27), (28.0, 15.0, 13.0))
    tree: list[Segment] = []
    for heading in ((0.2, -0.1, -1.0), (0.8, 0.3, -0.7), (-0.6, 0.3, -0.8), (0.3, -0.9, 0.2)):
        tree += grow_tree(rng, (20.0, 4.0, -wide * 0.12), heading, rng.uniform(4.0, 5.5), rng.uniform(26, 34), 5)
    patient.trees["liver"] = tree
    patient.details["holders"] = {"liver": ["liver"], "trabecular_bone": ["vertebra"]}
    patient.details["bowel"] = _plan_bowel(rng, wide, deep)
    patient.details["stomach_level_mm"] = -deep * 0.36 + rng.uniform(-12.0, 4.0)
    patient.details["rib_offset_mm"] = rng.uniform(0.0, 28.0)
    plan_plaques(patient, rng, (-160.0, deep * 0.22, 8.0), (160.0, deep * 0.26, 10.0), 11.0, 24)


def _plan_bowel(rng: np.random.Generator, wide: float, deep: float) -> list[dict[str, Any]]:
    """Loops of small bowel as smooth walks of a few segments, and the colon around them."""
    low, high = np.array([-170.0, -0.66 * deep, -0.66 * wide]), np.array([0.0, 0.06 * deep, 0.7 * wide])
    loops: list[dict[str, Any]] = []
    for _ in range(18):
        place, heading = rng.uniform(low, high), rng.normal(size=3)
        course = [place]
        for _ in range(4):
            heading = heading / np.linalg.norm(heading) + 0.7 * rng.normal(size=3)
            place = np.clip(place + 22.0 * heading / np.linalg.norm(heading), low, high)
            course.append(place)
        loops.append({"course": course, "radius": rng.uniform(9.0, 14.0), "fold_mm": 1.6, "period_mm": 6.0})
    ascending = [(-170.0, 0.18 * deep, -0.80 * wide), (-60.0, 0.10 * deep, -0.80 * wide)]
    descending = [(-170.0, 0.26 * deep, 0.84 * wide), (0.0, 0.30 * deep, 0.82 * wide)]
    across = [(-60.0, 0.0, -0.76 * wide), (-80.0, -0.62 * deep, -0.3 * wide), (-80.0, -0.64 * deep, 0.3 * wide),
              (-20.0, -0.2 * deep, 0.78 * wide)]  # fmt: skip
    for colon in (ascending, across, descending):
        radius = rng.uniform(15.0, 20.0)
        loops.append({"course": np.array(colon), "radius": radius, "fold_mm": 5.0, "period_mm": 24.0})
    for loop in loops:
        top = min(point[1] for point in loop["course"])
        gas = rng.random() < 0.5
        loop["level_mm"] = float(top + rng.uniform(-0.6, 0.8) * loop["radius"]) if gas else None
        loop["content_hu"] = rng.uniform(-15.0, 60.0)
    return loops


def draw(canvas: Canvas, patient: Patient) -> None:
    """Paints the abdomen."""
    draw_trunk(canvas, patient)
    wide, deep = patient.size["inner_x"], patient.size["inner_y"]
    for side in (-1.0, 1.0):
        psoas = capsule((-140.0, deep * 0.52, side * 48.0), (60.0, deep * 0.55, side * 28.0), 20.0, 8.0)
        patient.paint(canvas, psoas, "muscle")
    for column in back_muscles(patient, deep * 0.86, -400.0, 400.0):
        patient.paint(canvas, column, "muscle")
    for loop in patient.details["bowel"]:
        draw_bowel(canvas, patient, loop)
    _draw_stomach(canvas, patient)
    patient.paint(canvas, rod([(-5, -4, -22), (0, -14, 10), (14, 8, 62)], [12.0, 10.0, 9.0]), "pancreas")
    for name, power in (("liver", 2.6), ("liver_left", 2.2), ("spleen", 2.2)):
        tissue = "spleen" if name == "spleen" else "liver"
        patient.paint(canvas, ellipsoid(*patient.solids[name], power), tissue, only_on=_INSIDE)
    patient.paint_tree(canvas, patient.trees["liver"], "vein", only_on=("liver",))
    patient.paint(canvas, ellipsoid(*patient.solids["gall_bladder"]), "gall_bladder")
    for name in ("kidney_right", "kidney_left"):
        _draw_kidney(canvas, patient, name)
    aorta = 11.0 + 0.05 * max(patient.age_years - 40.0, 0.0)
    patient.paint(canvas, capsule((-160.0, deep * 0.22, 8.0), (160.0, deep * 0.26, 10.0), aorta), "blood")
    patient.paint(canvas, capsule((-160.0, deep * 0.22, -18.0), (160.0, deep * 0.10, -22.0), 12.0), "vein")
    draw_plaques(canvas, patient)
    draw_spine(canvas, patient)
    draw_ribs(canvas, patient, wide, deep, floating_below_mm=10.0, none_below_mm=-45.0)


def draw_bowel(canvas: Canvas, patient: Patient, loop: dict[str, Any]) -> None:
    """A loop of bowel: wall, folds, content and the gas above its level."""
    course, radius = loop["course"], loop["radius"]
    patient.paint(canvas, rod(course, radius), "wall")
    segments = [
        capsule(start, end, radius - 2.2).rippled(loop["fold_mm"], loop["period_mm"], np.subtract(end, start))
        for start, end in pairwise(course)
    ]
    for lumen in segments:
        _fill(canvas, patient, lumen, loop["content_hu"], loop["level_mm"])


def _fill(canvas: Canvas, patient: Patient, lumen: Solid, content_hu: float, level_mm: float | None) -> None:
    """Content with gas above it; both keep the label of the bowel."""
    found = canvas.measure(lumen)
    patient.paint(canvas, found, "bowel", shift_hu=content_hu)
    if level_mm is not None:
        patient.paint(canvas, found, "gas", above_mm=level_mm, labelled=False)


def _draw_stomach(canvas: Canvas, patient: Patient) -> None:
    centre, radii = patient.solids["stomach"]
    patient.paint(canvas, ellipsoid(centre, radii, 2.2), "wall")
    lumen = ellipsoid(centre, radii - 4.0, 2.2).rippled(2.5, 9.0, (0.3, 0.2, 1.0))
    _fill(canvas, patient, lumen, 0.0, patient.details["stomach_level_mm"])


def _draw_kidney(canvas: Canvas, patient: Patient, name: str) -> None:
    centre, radii = patient.solids[name]
    patient.paint(canvas, ellipsoid(centre, radii + 7.0), "fat")
    patient.paint(canvas, ellipsoid(centre, radii), "cortex")
    side = np.sign(centre[2])
    for k in np.linspace(-0.6, 0.6, 5):
        place = centre + np.array([k * radii[0], 0.0, side * 2.0])
        patient.paint(canvas, ellipsoid(place, (7.0, 11.0, 9.0)), "medulla")
    sinus = centre - np.array([0.0, 0.0, side * 0.62 * radii[2]])
    patient.paint(canvas, ellipsoid(sinus, radii * np.array([0.42, 0.45, 0.5])), "fat")
