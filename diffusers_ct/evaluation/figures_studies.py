"""Curves of the studies of a benchmark: noise, sharpness, detectability, calibration. One panel a call."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .benchmark_result import LOW_DOSE
from .figures_style import LABEL_POINTS, Look, legend_below, panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
# Decades of noise power that are shown below the highest.
_DECADES = 4


def noise_spectra(rows: Rows, looks: Mapping[str, Look]) -> "Figure":
    """Radial noise power of each method; rows of the study "noise" of one group and material."""
    methods = [row["method"] for row in rows]
    figure, axes = panel(methods, xlabel="spatial frequency [1/mm]", ylabel="noise power [HU² mm²]")
    for row in rows:
        axes.plot(row["frequency_per_mm"], row["power_hu2_mm2"], **looks[row["method"]].line())
    top = max(max(row["power_hu2_mm2"]) for row in rows)
    axes.set(yscale="log", ylim=(top * 10.0**-_DECADES, 2.0 * top), xlim=(0.0, None))
    legend_below(figure, methods, looks, markers=False)
    return figure


def transfer_curves(rows: Rows, looks: Mapping[str, Look]) -> "Figure":
    """Task transfer function of each method; rows of the study "transfer" of one group and insert.

    An insert that a method leaves no measurable edge of has no curve.
    """
    rows = [row for row in rows if row["transfer"]]
    methods = [row["method"] for row in rows]
    figure, axes = panel(methods, xlabel="spatial frequency [1/mm]", ylabel="transfer")
    for row in rows:
        axes.plot(row["frequency_per_mm"], row["transfer"], **looks[row["method"]].line())
    for level in (0.5, 0.1):
        axes.axhline(level, color="#999999", linewidth=0.8, zorder=0)
    axes.set(xlim=(0.0, None), ylim=(0.0, None))
    legend_below(figure, methods, looks, markers=False)
    return figure


def auc_over_dose(rows: Rows, looks: Mapping[str, Look]) -> "Figure":
    """AUC of the observer over dose; rows of the study "detectability" of one insert and observer.

    Methods stand a little beside each other, so that their intervals can be told apart.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, axes = panel(methods, xlabel="dose [% of full]", ylabel="AUC of the observer")
    for k, method in enumerate(methods):
        own = sorted((row for row in rows if row["method"] == method), key=lambda row: row["dose_fraction"])
        # The plain curve is the scale; lines of many methods between few doses would hide it and each other.
        plain = method == LOW_DOSE
        shift = 1.0 if plain else 1.03 ** (k - len(methods) / 2)
        dose = np.array([100.0 * row["dose_fraction"] for row in own]) * shift
        auc = np.array([row["auc"] for row in own])
        errors = np.clip([auc - [row["low"] for row in own], [row["high"] for row in own] - auc], 0.0, None)
        look = looks[method]
        style = look.line() | ({} if plain else {"linestyle": "none"})
        axes.errorbar(dose, auc, errors, **style, marker=look.marker, markersize=4.5, elinewidth=0.9, capsize=2)
    axes.axhline(0.5, color="#999999", linewidth=0.8, zorder=0)
    ticks = sorted({round(100.0 * row["dose_fraction"], 6) for row in rows})
    lowest, highest = min(row["low"] for row in rows), max(row["high"] for row in rows)
    axes.set(xscale="log", ylim=(lowest - 0.03, min(highest + 0.03, 1.01)))
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xticks([], minor=True)
    legend_below(figure, methods, looks, markers=True)
    return figure


def coverage_curves(rows: Rows, looks: Mapping[str, Look]) -> "Figure":
    """Measured over nominal coverage; rows of the study "calibration" of one group."""
    methods = [row["method"] for row in rows]
    figure, axes = panel(methods, xlabel="nominal coverage [%]", ylabel="measured coverage [%]")
    axes.plot([0, 100], [0, 100], color="#999999", linewidth=1.0)
    axes.annotate("exact", (18, 19), fontsize=LABEL_POINTS - 1, color="#666666", ha="right", va="bottom")
    for row in rows:
        look = looks[row["method"]]
        nominal, measured = (100.0 * np.array(row[key]) for key in ("nominal", "coverage"))
        axes.plot(nominal, measured, **look.line(), marker=look.marker, markersize=6)
    axes.set(xlim=(0, 100), ylim=(0, 100))
    legend_below(figure, methods, looks, markers=True)
    return figure


def rank_histograms(rows: Rows, looks: Mapping[str, Look]) -> "Figure":
    """Share of each rank of the truth among the samples, times the number of ranks: 1 everywhere if calibrated."""
    methods = [row["method"] for row in rows]
    figure, axes = panel(methods, xlabel="rank of the truth among the samples", ylabel="frequency, 1 = calibrated")
    axes.axhline(1.0, color="#999999", linewidth=1.0)
    for row in rows:
        counts = np.array(row["rank_histogram"], dtype=np.float64)
        # Methods with another number of samples share the axis: 0 the lowest rank, 1 the highest.
        edges = np.linspace(0.0, 1.0, len(counts) + 1)
        axes.stairs(counts / counts.mean(), edges, color=looks[row["method"]].colour, linewidth=1.6, fill=False)
    axes.set(xlim=(0.0, 1.0), ylim=(0.0, None))
    axes.set_xticks([0.0, 0.5, 1.0], ["lowest", "middle", "highest"])
    legend_below(figure, methods, looks, markers=False)
    return figure
