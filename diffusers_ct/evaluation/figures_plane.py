"""The perception-distortion plane: no method can have both errors small, so one number cannot rank methods.

References:
    Blau and Michaeli 2018, "The perception-distortion tradeoff", CVPR, arXiv:1711.06077.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .figures import _new_figure
from .figures_style import LABEL_POINTS, Look
from .label_places import NEAR, place_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKER_POINTS = 5.0


@dataclass(frozen=True)
class PlanePoint:
    """A method's two errors, both better when smaller."""

    method: str
    distortion: float
    perception: float


def perception_distortion_plane(
    points: Sequence[PlanePoint], looks: Mapping[str, Look], *, xlabel: str, ylabel: str
) -> "Figure":
    """One labelled point a method; labels lie beside each other, not on a label or point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _new_figure(6.8, 5.0)
    axes = figure.add_subplot()
    for p in points:
        axes.plot(p.distortion, p.perception, **looks[p.method].point(), zorder=3)
    axes.margins(0.2)
    top = axes.get_ylim()[1]
    axes.set_ylim(-0.06 * top, top)  # no distance is below 0; a point at 0 shows whole
    axes.set_xlabel(f"{xlabel}: less is better", fontsize=LABEL_POINTS)
    axes.set_ylabel(f"{ylabel}: less is better", fontsize=LABEL_POINTS)
    axes.tick_params(labelsize=LABEL_POINTS - 1)
    axes.grid(alpha=0.3)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # the layout settles, so that pixels are known
    figure.set_layout_engine("none")
    _label(axes, points, canvas.get_renderer())
    return figure


def _label(axes: "Axes", points: Sequence[PlanePoint], renderer) -> None:
    """Writes the labels where `place_labels` finds room, all in typographic points."""
    unit = axes.figure.dpi / 72.0
    texts = [
        axes.annotate(
            p.method, (p.distortion, p.perception), xytext=(0, 0), textcoords="offset points", fontsize=LABEL_POINTS - 1,
            color="#1a1a1a", annotation_clip=False, verticalalignment="center",
        )
        for p in points
    ]  # fmt: skip
    boxes = [text.get_window_extent(renderer) for text in texts]
    places = axes.transData.transform([(p.distortion, p.perception) for p in points]) / unit
    found = place_labels(
        places,
        np.array([(box.width, box.height) for box in boxes]) / unit + 2.0,
        frame=tuple(np.array(axes.bbox.extents) / unit),
        radius=_MARKER_POINTS,
    )
    for text, place in zip(texts, found):
        text.set(position=place.offset, horizontalalignment=place.side)
        if np.hypot(*place.offset) > NEAR:
            axes.annotate(
                "", text.xy, xytext=place.offset, textcoords="offset points", annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.7, "shrinkA": 1, "shrinkB": 4},
            )  # fmt: skip
