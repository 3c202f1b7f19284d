"""The brain: a folded cortex on white matter, dura, basal ganglia, ventricles, cerebellum, brainstem, arteries, sinuses.

The folds of the cortex are the zero surfaces of a smooth random field near the brain's surface: as wide apart as gyri
are, but not those of any atlas.

References:
    Good et al., A voxel-based morphometric study of ageing in 465 normal adult human brains, 2001,
        https://doi.org/10.1006/nimg.2001.0786 (grey matter is lost and cerebrospinal fluid gained with age)
"""

import numpy as np

from .phantom_anatomy import Patient
from .phantom_canvas import Box, Canvas, NoiseLattice
from .phantom_solids import capsule, ellipsoid, rod, union

FOLD_CELL_MM, FOLD_SMOOTH = 3.2, 1.1
# One unit of the field is that many mm near its zero: 1 / its rms slope, sqrt(2) x the width of its Gaussian kernel.
_FOLD_MM = np.sqrt(2.0) * FOLD_CELL_MM * FOLD_SMOOTH
_CORTEX_MM = 3.0
_BRAIN = ("grey_matter", "white_matter")


def draw_brain(canvas: Canvas, patient: Patient, box: Box, depth: np.ndarray) -> None:
    """Hemispheres from the distance to the skull: sulci and the midline are sheets of fluid; grey matter lies on every surface that fluid wets."""
    points = [p[box] for p in canvas.points]
    z, y, x = points
    folds: NoiseLattice = patient.details["folds"]
    field = np.abs(folds.on_grid([canvas.axes[i][box[i]] for i in range(3)]))
    field *= _FOLD_MM
    gap, sulcus = float(patient.details["gap_mm"]), float(patient.details["sulcus_mm"])
    below = -depth - 0.7 - gap  # mm below the brain's surface
    # Sulci get narrower inwards and end some 15 mm below the surface.
    fold = field - sulcus * np.clip(1.0 - below / 22.0, 0.0, 1.0) + np.maximum(below - 15.0, 0.0)
    size = patient.details["head"]
    callosum = np.sqrt(((z - 6.0) / (25.0 * size[0])) ** 2 + (y / (44.0 * size[1])) ** 2) - 1.0
    midline = np.abs(x) - (0.7 + 0.5 * sulcus) + 60.0 * np.maximum(-callosum, 0.0)
    out, wave = np.abs(x) / size[2], 2.0 * np.sin(y / 5.0 + z / 8.0)
    end = np.sqrt(((z + 2.0) / 18.0) ** 2 + ((y + 6.0) / 25.0) ** 2)
    insula = np.abs(out - 43.0 + 0.006 * (y + 8.0) ** 2 + 0.4 * wave) - (0.8 + 1.4 * sulcus) * (1.2 - end)
    insula = np.maximum(insula, 20.0 * (end - 1.0))
    cleft = 0.64 * np.abs(y + 8.0 - 1.2 * (z + 2.0) + 0.25 * (out - 50.0) + 1.5 * np.sin(out / 4.0))
    sylvian = np.maximum(cleft - (0.5 + 0.9 * sulcus), np.abs(z + 2.0) - 16.0)
    sylvian = np.maximum(sylvian, 42.0 - out)
    wet = np.minimum.reduce([below, fold, midline, insula, sylvian])
    tentorium = _tentorium(points)
    cerebrum = np.maximum(-wet, -tentorium)
    patient.paint(canvas, (box, cerebrum), "grey_matter")
    patient.paint(canvas, (box, np.maximum(_CORTEX_MM - wet, -tentorium)), "white_matter", only_on=("grey_matter",))
    inside = np.maximum(depth + 0.4, 0.0)
    falx = np.maximum(np.abs(x) - 0.75, 4.0 - 20.0 * callosum) + 10.0 * inside
    patient.paint(canvas, (box, np.where(z > -18.0, falx, 50.0)), "dura", only_on=("csf", *_BRAIN))
    sheet = np.maximum(np.abs(tentorium) - 0.8, 22.0 - np.hypot(y - 6.0, x)) + 10.0 * inside
    patient.paint(canvas, (box, np.where(y > 4.0, sheet, 50.0)), "dura", only_on=("csf", *_BRAIN))


def _tentorium(points: list[np.ndarray]) -> np.ndarray:
    """Distance in mm from the cerebellum's room, positive outside: above the tent or before the petrous bones."""
    z, y, x = points
    out = np.abs(x)
    above = (z + 8.0 + 0.34 * out + 0.24 * (y - 30.0)) * 0.92
    return np.maximum(above, (0.6 * (out - 16.0) + 2.0 - y) * 0.86)


def draw_deep_brain(canvas: Canvas, patient: Patient) -> None:
    """Basal ganglia, thalamus and ventricles."""
    z, y, x = patient.details["head"]
    wider = float(patient.details["ventricles"])
    for side in (-1.0, 1.0):
        for place, radii in (
            ((13.0, -20.0, 13.5), (9.0, 9.0, 6.0)), ((3.0, -2.0, 26.5), (12.0, 18.0, 5.5)), ((6.0, 13.0, 10.5), (10.0, 14.0, 8.5)),
        ):  # fmt: skip
            where = np.array(place) * np.array([z, y, side * x])
            patient.paint(canvas, ellipsoid(where, radii), "grey_matter", only_on=_BRAIN)
        horn = [
            (9.0, -33.0, 9.0),
            (16.0, -22.0, 8.0),
            (22.0, 4.0, 9.5),
            (16.0, 28.0, 19.0),
            (9.0, 44.0, 21.0),
            (8.0, 60.0, 19.0),
        ]
        course = [np.array(p) * np.array([z, y, side * x]) for p in horn]
        patient.paint(
            canvas,
            rod(course, [2.6 * wider, 4.2 * wider, 4.0 * wider, 5.2 * wider, 3.6 * wider, 1.2 * wider]),
            "csf",
            only_on=_BRAIN,
        )
        temporal = [
            np.array(p) * np.array([z, y, side * x])
            for p in ((14.0, 29.0, 20.0), (-8.0, 22.0, 29.0), (-22.0, -2.0, 29.0))
        ]
        patient.paint(canvas, rod(temporal, [3.2 * wider, 1.8 * wider, 1.2 * wider]), "csf", only_on=_BRAIN)
    septum = ellipsoid((14.0, -14.0, 0.0), (9.0, 16.0, 0.7))
    patient.paint(canvas, septum, "white_matter", only_on=("csf",))
    patient.paint(canvas, ellipsoid((-4.0, 4.0, 0.0), (12.0, 14.0, 1.7 * wider)), "csf", only_on=(*_BRAIN, "csf"))


def draw_hindbrain(canvas: Canvas, patient: Patient, head: tuple[Box, np.ndarray] | None) -> None:
    """Basal cisterns, brainstem, cerebellum with folia, fourth ventricle."""
    z, y, x = patient.details["head"]
    wider = float(patient.details["ventricles"])
    cisterns = union(
        [
            ellipsoid((-26.0, -8.0, 0.0), (9.0, 12.0, 14.0)), ellipsoid((-14.0, 29.0, 0.0), (8.0, 5.5, 11.0)),
            ellipsoid((-28.0, 12.0, 0.0), (13.0, 15.0, 17.0)), ellipsoid((-58.0, 20.0, 0.0), (34.0, 15.0, 16.0)),
        ],
        blend_mm=4.0,
    )  # fmt: skip
    patient.paint(canvas, cisterns, "csf", only_on=(*_BRAIN, "dura"))
    cerebellum = ellipsoid((-43.0, 48.0, 0.0), (38.0 * z, 32.0 * y, 50.0 * x), 2.5)
    if head is not None:
        box, depth = head
        up, back, out = (p[box] for p in canvas.points)
        distance = np.maximum(cerebellum.distance((up, back, out)), depth + 1.8)
        folia = np.maximum(0.9 - 0.9 * np.abs(np.sin((up + 0.35 * np.abs(out) - 0.3 * back) * np.pi / 5.5)), 0.0)
        inside = np.maximum(distance + folia + 0.5, _tentorium([up, back, out]) + 2.2)
        patient.paint(canvas, (box, inside), "grey_matter", shift_hu=-2.0, only_on=("csf", *_BRAIN))
        core = np.maximum(inside + 9.0 + 2.5 * np.sin(up * np.pi / 6.0), np.abs(np.abs(out) - 22.0) - 15.0)
        patient.paint(canvas, (box, core), "white_matter", only_on=("grey_matter",))
    stem = union(
        [
            capsule((-6.0, 13.0, -9.0), (-20.0, 8.0, -12.0), 8.0), capsule((-6.0, 13.0, 9.0), (-20.0, 8.0, 12.0), 8.0),
            ellipsoid((-18.0, 17.0, 0.0), (12.0, 9.0, 13.0)), ellipsoid((-37.0, 13.0, 0.0), (14.0, 12.0, 16.0)),
            rod([(-50.0, 17.0, 0.0), (-78.0, 27.0, 0.0), (-100.0, 34.0 + 17.0, 0.0)], [9.5, 7.0, 5.5]),
        ],
        blend_mm=6.0,
    )  # fmt: skip
    patient.paint(canvas, stem, "white_matter", shift_hu=3.0, only_on=(*_BRAIN, "csf"))
    patient.paint(canvas, ellipsoid((-42.0, 29.0, 0.0), (11.0, 3.0 + 1.5 * wider, 5.0 * wider)), "csf", only_on=_BRAIN)
    patient.paint(canvas, capsule((-22.0, 21.0, 0.0), (-34.0, 26.0, 0.0), 1.0), "csf", only_on=_BRAIN)


def draw_brain_vessels(canvas: Canvas, patient: Patient) -> None:
    """Circle of Willis with the trunks of the middle cerebral arteries, dural sinuses."""
    z, y, x = patient.details["head"]
    arch = np.linspace(-0.20 * np.pi, 0.56 * np.pi, 10)
    course = [(75.0 * z * np.cos(a), 84.0 * y * np.sin(a), 0.0) for a in arch]
    over = ("csf", "dura", *_BRAIN)
    patient.paint(canvas, rod(course, np.linspace(1.6, 4.4, 10).tolist()), "vein", only_on=over)
    patient.paint(canvas, rod([(-8.0, 36.0, 0.0), (-14.0, 78.0 * y, 0.0)], 2.2), "vein", only_on=over)
    for side in (-1.0, 1.0):
        lateral = [
            (-18.0, 80.0 * y, 0.0),
            (-22.0, 66.0 * y, side * 34.0),
            (-30.0, 44.0 * y, side * 52.0 * x),
            (-48.0, 34.0, side * 46.0 * x),
        ]
        patient.paint(canvas, rod(lateral, 3.6), "vein", only_on=over)
        patient.paint(canvas, rod([(-40.0, -14.0, side * 13.0), (-26.0, -10.0, side * 12.0)], 2.0), "blood")
        patient.paint(
            canvas, rod([(-26.0, -10.0, side * 12.0), (-23.0, -7.0, side * 32.0)], 1.5), "blood", only_on=over
        )
        patient.paint(
            canvas,
            rod([(-26.0, -10.0, side * 12.0), (-22.0, -22.0, side * 3.0), (6.0, -44.0, side * 2.0)], 1.2),
            "blood",
            only_on=over,
        )
        patient.paint(
            canvas,
            rod([(-24.0, 0.0, 0.0), (-22.0, 8.0, side * 20.0), (-16.0, 26.0, side * 18.0)], 1.2),
            "blood",
            only_on=over,
        )
    patient.paint(canvas, rod([(-24.0, -2.0, 0.0), (-50.0, 1.0, 0.0)], 1.7), "blood", only_on=over)
    patient.paint_tree(canvas, patient.trees["arteries"], "blood", only_on=over)
