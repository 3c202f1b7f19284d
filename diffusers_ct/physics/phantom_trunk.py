"""What the regions of the trunk share: outline, table, breasts, spine and ribs."""

from itertools import pairwise

import numpy as np

from .phantom_anatomy import Patient
from .phantom_canvas import Canvas
from .phantom_solids import Solid, capsule, ellipsoid, half_space

_VERTEBRA_STEP_MM = 32.0
_SPINE_REACH_MM = 192.0  # of the centres of vertebrae and ribs from the region's middle


def draw_table(canvas: Canvas, back_mm: float) -> None:
    """A carbon-fibre shell over foam, under the patient's back."""
    for thickness, hu in ((24.0, -650.0), (20.0, -900.0)):
        table = ellipsoid((0.0, back_mm + 16.0, 0.0), (np.inf, thickness / 2, 190.0), 6.0)
        canvas.paint(table, hu, warped=False)


def draw_trunk(canvas: Canvas, patient: Patient) -> None:
    """Table, skin, subcutaneous fat, muscle wall, fat inside; the breasts of a woman's thorax."""
    wide, deep = patient.size["inner_x"], patient.size["inner_y"]
    muscle, fat = patient.size["muscle"], patient.size["fat"]
    draw_table(canvas, deep + muscle + 0.6 * fat + 2.0)
    outside = ellipsoid((0.0, -0.2 * fat, 0.0), (np.inf, deep + muscle + fat, wide + muscle + fat), 2.5)
    inside = ellipsoid((0.0, 0.0, 0.0), (np.inf, deep + muscle, wide + muscle), 2.5)
    skin = outside.grown(2.0)
    for breast in patient.details.get("breasts", ()):
        skin = skin | breast.grown(2.0)
    patient.paint(canvas, skin, "skin")
    patient.paint(canvas, outside, "fat")
    for breast in patient.details.get("breasts", ()):
        patient.paint(canvas, breast, "fat")
    share = patient.details.get("gland_share", 0.0)
    for gland in patient.details.get("glands", ()):
        patient.paint(canvas, gland, "breast", share=share)
    found = canvas.measure(inside)
    patient.paint(canvas, found, "muscle")
    patient.paint(canvas, found, "fat", inset_mm=muscle)


def plan_breasts(patient: Patient, rng: np.random.Generator) -> None:
    """Breasts of a supine woman, flattened towards the sides; glandular share falls with age."""
    wide, deep, fat = patient.size["inner_x"], patient.size["inner_y"], patient.size["fat"]
    bulge, width = rng.uniform(10.0, 24.0), rng.uniform(42.0, 52.0)
    share = float(np.clip(rng.uniform(0.7, 1.0) - 0.012 * max(patient.age_years - 35.0, 0.0), 0.15, 1.0))
    if patient.sex != "F":
        return
    front = -(deep + patient.size["muscle"] + 0.35 * fat - 8.0)
    patient.details["gland_share"] = share
    patient.details["breasts"], patient.details["glands"] = [], []
    for side in (-1.0, 1.0):
        centre = (-20.0, front, side * 0.56 * wide)
        patient.details["breasts"].append(ellipsoid(centre, (62.0, 0.5 * fat + 6.0 + bulge, width)))
        # Branching cords of gland towards the nipple.
        nipple = np.array([-25.0, front - 0.3 * fat - bulge, side * 0.62 * wide])
        for angle in np.linspace(0.0, 2.0 * np.pi, 7)[:-1]:
            lobe = np.array(centre) + np.array([30.0 * np.sin(angle), -4.0, 26.0 * np.cos(angle)])
            patient.details["glands"].append(capsule(nipple + np.array([0.0, 6.0, 0.0]), lobe, 3.0, 6.5))


def draw_spine(
    canvas: Canvas, patient: Patient, *, within: tuple[float, float] = (-400.0, 400.0), scale: float = 1.0
) -> None:
    """Vertebral bodies with discs between, canal with cord, arches and processes; `within` a range of z in mm.

    `scale` is the length of the processes: shorter in the neck.
    """
    centre, radii = patient.solids["vertebra"]
    (_, y, x), (_, ry, rx) = centre.tolist(), radii.tolist()
    low, high = within
    length = half_space(0, low, above=True) & half_space(0, high, above=False)
    levels = [
        z for z in np.arange(-_SPINE_REACH_MM, _SPINE_REACH_MM + 8.0, _VERTEBRA_STEP_MM) if low - 8 < z < high + 8
    ]
    half_disc = 0.5 * patient.size["disc_mm"]
    for z in levels:
        patient.paint(canvas, ellipsoid((z + 16.0, y, x), (half_disc, ry - 1.5, rx - 1.5), 4.0), "disc")
    for z in levels:
        body = ellipsoid((z, y, x), (16.5 - half_disc, ry, rx), 4.0)
        found = canvas.measure(body)
        patient.paint(canvas, found, "cortical_bone", shift_hu=-0.4 * patient.hu["cortical_bone"])
        patient.paint(canvas, found, "trabecular_bone", inset_mm=1.8)
    canal = y + ry + 9.0
    hole = ellipsoid((0.0, canal, x), (np.inf, 8.5, 10.0)) & length
    arch = ellipsoid((0.0, canal, x), (np.inf, 13.0, 15.0)) & length
    patient.paint(canvas, arch, "cortical_bone", shift_hu=-0.45 * patient.hu["cortical_bone"])
    patient.paint(canvas, hole, "csf")
    patient.paint(canvas, ellipsoid((0.0, canal, x), (np.inf, 4.6, 5.8)) & length, "spinal_cord")
    for z in levels:
        patient.paint_bone(
            canvas, capsule((z, canal + 12.0, x), (z - 14.0 * scale, canal + 12.0 + 20.0 * scale, x), 4.0)
        )
        for side in (-1.0, 1.0):
            process = capsule((z, canal - 2.0, x + side * 13.0), (z, canal + 8.0, x + side * 38.0 * scale), 4.5)
            patient.paint_bone(canvas, process)


def draw_ribs(
    canvas: Canvas,
    patient: Patient,
    wide: float,
    deep: float,
    *,
    floating_below_mm: float = -400.0,
    none_below_mm: float = -400.0,
    none_above_mm: float = 400.0,
) -> None:
    """Pairs of ribs on the inside of the muscle wall, falling towards the front, where they go over into cartilage."""
    angles = np.linspace(0.16 * np.pi, 0.95 * np.pi, 17)
    outward = patient.size["muscle"] * 0.35
    hard = 0.008 * max(patient.age_years - 40.0, 0.0)  # calcified share of the cartilage
    for z in np.arange(-_SPINE_REACH_MM + 12.0, 200.0, 28.0) + patient.details["rib_offset_mm"] - 14.0:
        if not none_below_mm < z < none_above_mm:
            continue
        last = len(angles) if z > floating_below_mm else 9
        for side in (-1.0, 1.0):
            course = [
                (
                    z - 45.0 * (a / np.pi - 0.16),
                    (deep + outward) * np.sign(np.cos(a)) * np.abs(np.cos(a)) ** 0.8,
                    side * (wide + outward) * np.sin(a) ** 0.8,
                )
                for a in angles[:last]
            ]
            pieces = [canvas.measure(capsule(*ends, 5.2 * patient.size["bone"])) for ends in pairwise(course)]
            for piece in pieces[:12]:  # the whole shell first, so that no wall parts the marrow
                patient.paint(canvas, piece, "cortical_bone")
            for piece in pieces[:12]:
                patient.paint(canvas, piece, "trabecular_bone", inset_mm=1.5)
            for piece in pieces[12:]:
                patient.paint(canvas, piece, "cartilage", shift_hu=200.0 * hard)


def back_muscles(patient: Patient, y: float, low: float, high: float) -> list[Solid]:
    """The two columns of erector spinae beside the spine."""
    slim = patient.size["muscle"] / 12.0
    length = half_space(0, low, above=True) & half_space(0, high, above=False)
    return [ellipsoid((0.0, y, side * 36.0), (np.inf, 20.0 * slim, 30.0)) & length for side in (-1.0, 1.0)]
