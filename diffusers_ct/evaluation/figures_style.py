"""One look for a method in all figures of a report, that colour-blind readers tell apart, and panels that a phone can show."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from .benchmark_result import LOW_DOSE
from .figures import _new_figure, to_png
from .studies import FULL_DOSE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_WIDTH_IN = 4.3
# At 360 px of screen a panel of this width shows its labels at about 11 px.
LABEL_POINTS = 10.0
LEGEND_POINTS = 8.5
_PALETTE_COLOURS = 96
_SUBJECT_COLOUR = "#D55E00"
_COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "v", "P", "X", "<", ">", "p", "h")


@dataclass(frozen=True)
class Look:
    """Colour, dashes, marker and line width [points] of a method."""

    colour: str
    dashes: str
    marker: str
    width: float

    def line(self) -> dict[str, Any]:
        """As keywords of `Axes.plot`."""
        return {"color": self.colour, "linestyle": self.dashes, "linewidth": self.width}

    def point(self) -> dict[str, Any]:
        """As keywords of `Axes.plot`, with the marker alone."""
        return {"color": self.colour, "linestyle": "none", "marker": self.marker, "markersize": 7}


def looks_of(methods: Iterable[str], subject: str | None) -> dict[str, Look]:
    """A look for each method: full dose black, low dose grey, the method judged the one strong red line.

    The other methods take colours in their order, with other dashes from the sixth on and another marker each.

    References:
        Okabe and Ito 2008, "Color universal design" (the colours).
    """
    looks: dict[str, Look] = {}
    others = 0
    for method in dict.fromkeys(methods):
        if method == FULL_DOSE:
            looks[method] = Look("#000000", "--", "*", 1.6)
        elif method == LOW_DOSE:
            looks[method] = Look("#777777", "-", "D", 1.6)
        elif method == subject:
            looks[method] = Look(_SUBJECT_COLOUR, "-", "o", 2.6)
        else:
            colour, dashes = _COLOURS[others % len(_COLOURS)], _DASHES[others // len(_COLOURS) % len(_DASHES)]
            looks[method] = Look(colour, dashes, _MARKERS[(others + 1) % len(_MARKERS)], 1.5)
            others += 1
    return looks


def panel(methods: Sequence[str], *, xlabel: str, ylabel: str) -> tuple["Figure", "Axes"]:
    """One set of axes, with room below it for a legend of these methods."""
    figure = _new_figure(PANEL_WIDTH_IN, 2.9 + 0.18 * -(-len(methods) // _legend_columns(methods)))
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel, fontsize=LABEL_POINTS)
    axes.set_ylabel(ylabel, fontsize=LABEL_POINTS)
    axes.tick_params(labelsize=LABEL_POINTS - 1)
    axes.grid(alpha=0.3)
    return figure, axes


def legend_below(figure: "Figure", methods: Sequence[str], looks: Mapping[str, Look], *, markers: bool) -> None:
    """The legend that `panel` left room for."""
    from matplotlib.lines import Line2D

    handles = []
    for method in methods:
        handle = Line2D([], [], label=method, **looks[method].line())
        if markers:
            handle.set(marker=looks[method].marker, markersize=5)
        handles.append(handle)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=_legend_columns(methods), fontsize=LEGEND_POINTS,
        frameon=False, handlelength=2.4, columnspacing=1.2, borderpad=0.1, labelspacing=0.3,
    )  # fmt: skip


def chart_png(figure: "Figure", *, dpi: int = 120) -> bytes:
    """The figure as PNG with a palette, a third of the size: a report of thirty charts stays below some MB."""
    image = Image.open(io.BytesIO(to_png(figure, dpi=dpi))).convert("RGB")
    buffer = io.BytesIO()
    image.quantize(_PALETTE_COLOURS, dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _legend_columns(methods: Sequence[str]) -> int:
    """Two where the longest names of both columns fit beside each other."""
    half = -(-len(methods) // 2)
    columns = [part for part in (methods[:half], methods[half:]) if part]
    return 2 if sum(max(map(len, part)) for part in columns) <= 50 else 1
