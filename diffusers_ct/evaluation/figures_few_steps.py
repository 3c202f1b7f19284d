"""Curves of the study of few steps: a quality over the time that it takes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .figures_style import LABEL_POINTS, Look, legend_below, panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def quality_over_latency(
    rows: Sequence[Mapping[str, Any]], looks: Mapping[str, Look], *, key: str, ylabel: str, exact: float | None = None
) -> "Figure":
    """One quality of each sampler over seconds a slice, its steps beside the points; rows of the study of one group.

    Args:
        rows: those without a value are left out.
        looks: of the methods.
        key: of the quality.
        ylabel: its name and unit.
        exact: value of a perfect sampler, drawn as a line.
    """
    rows = [row for row in rows if row[key] is not None]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, axes = panel(methods, xlabel="seconds a slice", ylabel=ylabel)
    if exact is not None:
        axes.axhline(exact, color="#999999", linewidth=1.0, zorder=0)
    for method in methods:
        own = sorted((row for row in rows if row["method"] == method), key=lambda row: row["steps"])
        look = looks[method]
        seconds, values = [row["seconds_per_slice"] for row in own], [row[key] for row in own]
        axes.plot(seconds, values, **look.line(), marker=look.marker, markersize=5)
        for row, x, y in zip(own, seconds, values):
            axes.annotate(
                str(row["steps"]), (x, y), xytext=(3, 4), textcoords="offset points", fontsize=LABEL_POINTS - 2.5,
                color=look.colour,
            )  # fmt: skip
    axes.set_xscale("log")
    legend_below(figure, methods, looks, markers=True)
    return figure
