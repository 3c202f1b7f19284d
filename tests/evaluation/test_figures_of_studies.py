"""Charts show the numbers that they are given; a method looks alike in all; labels cover nothing."""

import io
from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from PIL import Image

from diffusers_ct.evaluation.figures_plane import PlanePoint, perception_distortion_plane
from diffusers_ct.evaluation.figures_studies import (
    auc_over_dose,
    coverage_curves,
    noise_spectra,
    rank_histograms,
    transfer_curves,
)
from diffusers_ct.evaluation.figures_style import chart_png, looks_of, panel
from diffusers_ct.evaluation.label_places import place_labels
from tests.evaluation.example_result import METHODS, OURS, example_result

STUDIES = example_result().studies
LOOKS = looks_of(["full dose", "low dose", *METHODS], OURS)


def rows_of(study: str, **values):
    return [row for row in STUDIES[study] if all(row[k] == v for k, v in values.items())]


def test_no_two_methods_look_alike():
    looks = looks_of([f"method {k}" for k in range(18)] + ["low dose", "full dose", OURS], OURS)
    for a, b in combinations(looks.values(), 2):
        assert (a.colour, a.dashes) != (b.colour, b.dashes)
    widths = sorted(look.width for look in looks.values())
    assert looks[OURS].width == widths[-1] > widths[-2]
    assert looks_of(["a", "b"], None)["b"] == looks_of(["a", "b", "c"], None)["b"]


def test_a_method_has_one_colour_in_all_charts():
    noise = noise_spectra(rows_of("noise", group="dose 25 %", material="liver"), LOOKS)
    transfer = transfer_curves(rows_of("transfer", group="dose 10 %", insert="bone"), LOOKS)
    position = list(LOOKS).index(OURS)
    colours = {to_hex(figure.axes[0].lines[position].get_color()).upper() for figure in (noise, transfer)}
    assert colours == {LOOKS[OURS].colour}


def test_curves_are_the_numbers():
    rows = rows_of("noise", group="dose 25 %", material="liver")
    lines = noise_spectra(rows, LOOKS).axes[0].lines
    assert len(lines) == len(rows) == len(METHODS) + 2
    for line, row in zip(lines, rows):
        np.testing.assert_array_equal(line.get_xydata(), np.transpose([row["frequency_per_mm"], row["power_hu2_mm2"]]))
    faint = rows_of("transfer", group="dose 25 %", insert="polystyrene")
    curves = transfer_curves(faint, LOOKS).axes[0].lines[: len(faint) - 1]  # one method left no edge
    assert [line.get_ydata()[0] for line in curves] == [1.0] * (len(faint) - 1)
    row = rows_of("calibration", group="dose 25 %")[0]
    curve = coverage_curves([row], LOOKS).axes[0].lines[1]
    np.testing.assert_allclose(curve.get_xydata(), 100 * np.transpose([row["nominal"], row["coverage"]]))


def test_auc_stands_at_its_dose_with_its_interval():
    rows = rows_of("detectability", insert="5 mm, 7 HU")
    axes = auc_over_dose(rows, LOOKS).axes[0]
    plain = [row for row in rows if row["method"] == "low dose"]
    container = axes.containers[0]
    np.testing.assert_allclose(container.lines[0].get_xydata(), [(100 * r["dose_fraction"], r["auc"]) for r in plain])
    bars = [segment[:, 1] for segment in container.lines[2][0].get_segments()]
    np.testing.assert_allclose(bars, [(r["low"], r["high"]) for r in plain])
    for other, method in zip(axes.containers[1:], METHODS):
        own = [row for row in rows if row["method"] == method]
        np.testing.assert_allclose(other.lines[0].get_ydata(), [row["auc"] for row in own])
        # set beside each other, but not so far that a dose would be taken for another
        np.testing.assert_allclose(other.lines[0].get_xdata(), [100 * row["dose_fraction"] for row in own], rtol=0.25)


def test_an_even_rank_histogram_is_a_line_at_one():
    row = {"method": OURS, "rank_histogram": [7] * 9}
    (steps,) = rank_histograms([row], LOOKS).axes[0].patches
    np.testing.assert_allclose(steps.get_data().values, 1.0)


@pytest.mark.parametrize("seed", range(3))
def test_labels_of_a_crowd_cover_nothing(seed):
    rng = np.random.default_rng(seed)
    points = np.concatenate([rng.normal((150, 200), 22, (12, 2)), [[330, 40], [300, 300]]])
    sizes = np.stack([rng.uniform(30, 150, len(points)), np.full(len(points), 12.0)], axis=1)
    frame = (0.0, 0.0, 480.0, 350.0)
    places = place_labels(points, sizes, frame=frame, radius=5.0)
    shift = np.array([{"left": 0.0, "center": 0.5, "right": 1.0}[p.side] for p in places])
    corners = points + [p.offset for p in places] - np.stack([shift * sizes[:, 0], sizes[:, 1] / 2], axis=1)
    boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sizes)]
    markers = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]

    def meet(a, b):
        return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

    assert not [(i, j) for (i, a), (j, b) in combinations(enumerate(boxes), 2) if meet(a, b)]
    assert not [i for i, a in enumerate(boxes) for b in markers if meet(a, b)]
    assert all(x0 >= 0 and y0 >= 0 and x1 <= frame[2] and y1 <= frame[3] for x0, y0, x1, y1 in boxes)
    # the crowd is one: labels that all lie to the right of their points do meet
    naive = [(x + 8, y - 6, x + 8 + w, y + 6) for (x, y), (w, _) in zip(points, sizes)]
    assert any(meet(a, b) for a, b in combinations(naive, 2))


def test_labels_of_the_drawn_plane_do_not_overlap():
    points = [PlanePoint(m, 22 * share, abs(np.log(f))) for m, (share, f, _) in METHODS.items()]
    figure = perception_distortion_plane(points, LOOKS, xlabel="RMSE", ylabel="texture")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    labels = [text for text in axes.texts if text.get_text()]
    assert sorted(text.get_text() for text in labels) == sorted(METHODS)
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in labels]
    assert not [1 for a, b in combinations(boxes, 2) if a.overlaps(b)]
    assert all(axes.bbox.contains(*corner) for box in boxes for corner in (box.min, box.max))
    assert [tuple(line.get_xydata()[0]) for line in axes.lines] == [(p.distortion, p.perception) for p in points]


def test_a_chart_is_a_small_png_that_keeps_its_colours():
    figure, axes = panel([OURS], xlabel="x", ylabel="y")
    axes.plot([0, 1], [0, 1], **LOOKS[OURS].line())
    png = chart_png(figure)
    pixels = np.array(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3).astype(int)
    wanted = np.array([int(LOOKS[OURS].colour[k : k + 2], 16) for k in (1, 3, 5)])
    assert np.abs(pixels - wanted).max(axis=1).min() < 12
    assert (pixels == 255).all(axis=1).mean() > 0.5
    assert len(png) < 20_000
