"""The report's sections on images: perception and distortion, noise texture, sharpness, bias by material."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .benchmark_result import LOW_DOSE, BenchmarkResult
from .figures_plane import PlanePoint, perception_distortion_plane
from .figures_studies import noise_spectra, transfer_curves
from .figures_style import Look, chart_png
from .report_parts import (
    Block,
    Cell,
    Heading,
    Picture,
    Pictures,
    Row,
    Section,
    Table,
    Text,
    interval,
    mean,
    number,
    words,
)
from .studies import FULL_DOSE

Rows = Sequence[Mapping[str, Any]]
# A bias of this many HU has the full shade.
_BIAS_SHADE_HU = 10.0


def by(rows: Rows, *keys: str) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """Rows by the values of some keys, in the order in which these come."""
    parts: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        parts.setdefault(tuple(row[key] for key in keys), []).append(row)
    return parts


def plane_section(result: BenchmarkResult, looks: Mapping[str, Look]) -> Section | None:
    """Error against how far the noise texture is from that of full dose."""
    pictures = []
    for (group,), rows in by(result.studies.get("noise", ()), "group").items():
        points = _plane_points(result, group, rows)
        if len(points) < 2:
            continue
        figure = perception_distortion_plane(
            points, looks, xlabel="RMSE in the body [HU]", ylabel="distance of the noise texture"
        )
        near = min(points, key=lambda p: p.distortion), min(points, key=lambda p: p.perception)
        alt = (
            f"Perception-distortion plane, {group}: smallest RMSE {near[0].method} with {near[0].distortion:.1f} HU at texture "
            f"distance {near[0].perception:.2f}; nearest texture {near[1].method} with {near[1].perception:.2f} at "
            f"{near[1].distortion:.1f} HU. {len(points)} methods."
        )
        drawn = {FULL_DOSE, *(p.method for p in points)}
        missing = [method for (method,) in by(rows, "method") if method not in drawn]
        caption = f"Not drawn, for they have no RMSE in the table or no noise: {words(missing)}." if missing else ""
        pictures.append(Picture(group, caption, alt, chart_png(figure), chart=True, wide=True))
    if not pictures:
        return None
    note = (
        "Across: distortion, the RMSE in the body. Up: how far the noise looks from that of full dose, |ln(mean frequency of the "
        "noise power / that at full dose)|, mean over the materials; 0 is the texture of full dose, 0.69 half or twice its "
        "frequency. The method with the least error smooths most; samples of the posterior keep the texture and pay up to 3 dB."
    )
    return Section(
        "plane", "perception and distortion", "Perception and distortion", [Text([note]), Pictures(pictures)]
    )


def _plane_points(result: BenchmarkResult, group: str, noise: Rows) -> list[PlanePoint]:
    full = {r["material"]: r["mean_frequency_per_mm"] for r in noise if r["method"] == FULL_DOSE}
    errors = {row["method"]: row.get("rmse_body_hu") for row in result.table(group)}
    points = []
    for (method,), rows in by(noise, "method").items():
        # Images without any noise have no texture to compare.
        distances = [
            abs(math.log(r["mean_frequency_per_mm"] / full[r["material"]]))
            for r in rows
            if r["material"] in full and r["mean_frequency_per_mm"] is not None
        ]
        error = errors.get(method)
        if distances and error is not None:
            points.append(PlanePoint(method, error, mean(distances)))
    return points


def noise_section(result: BenchmarkResult, looks: Mapping[str, Look]) -> Section | None:
    """Noise power spectra by group and material, with a table."""
    studies = result.studies.get("noise", ())
    if not studies:
        return None
    pictures, blocks = [], list[Block]()
    for (group, material), rows in by(studies, "group", "material").items():
        frequencies = {r["method"]: r["mean_frequency_per_mm"] for r in rows}
        alt = (
            f"Radial noise power over spatial frequency, {group}, {material}. Mean frequencies in 1/mm: "
            + words([f"{m} {number(f, '.3f')}" for m, f in frequencies.items()])
            + "."
        )
        pictures.append(Picture(f"{group}, {material}", "", alt, chart_png(noise_spectra(rows, looks)), chart=True))
    for (group,), rows in by(studies, "group").items():
        materials = list(by(rows, "material"))
        table = [
            Row(
                method,
                [cell for (material,) in materials for cell in _noise_cells(own, material)],
                method in (FULL_DOSE, LOW_DOSE),
            )
            for (method,), own in by(rows, "method").items()
        ]
        headings = ["method", *["mean [1/mm]", "peak [1/mm]", "SD [HU]"] * len(materials)]
        above = [(material, 3) for (material,) in materials]
        blocks += [Heading(group), Table(f"noise, {group}", headings, table, above)]
    note = (
        "Power of the noise over spatial frequency, mean over directions: of what differs between scans of the same water, so a "
        "pattern that a method draws in all of them is not in it. A method that only removes power keeps the curve's "
        "shape; one that smooths moves it to low frequencies, which looks blotchy and hides low contrast as well as before."
    )
    return Section("noise", "noise texture", "Noise texture", [Text([note]), Pictures(pictures), *blocks])


def _noise_cells(rows: Rows, material: str) -> list[Cell]:
    row: Mapping[str, Any] = next((r for r in rows if r["material"] == material), {})
    return [
        Cell(number(row.get("mean_frequency_per_mm"), ".3f")),
        Cell(number(row.get("peak_frequency_per_mm"), ".3f")),
        Cell(number(row.get("sd_hu"), ".1f")),
    ]


def transfer_section(result: BenchmarkResult, looks: Mapping[str, Look]) -> Section | None:
    """Task transfer functions by group and insert, with a table of f50 and f10."""
    studies = result.studies.get("transfer", ())
    if not studies:
        return None
    pictures, blocks = [], list[Block]()
    for (group, insert), rows in by(studies, "group", "insert").items():
        alt = (
            f"Task transfer function, {group}, {insert}. Transfer falls to one half at, in 1/mm: "
            + words([f"{r['method']} {number(r['f50_per_mm'], '.2f')}" for r in rows])
            + "."
        )
        if any(row["transfer"] for row in rows):
            pictures.append(Picture(f"{group}, {insert}", "", alt, chart_png(transfer_curves(rows, looks)), chart=True))
    for (group,), rows in by(studies, "group").items():
        inserts = list(by(rows, "insert"))
        table = []
        for (method,), own in by(rows, "method").items():
            found: dict[str, Mapping[str, Any]] = {r["insert"]: r for r in own}
            cells = [
                Cell(number(found.get(insert, {}).get(key), form))
                for (insert,) in inserts
                for key, form in (("f50_per_mm", ".2f"), ("f10_per_mm", ".2f"), ("measured_contrast_hu", ".1f"))
            ]
            table.append(Row(method, cells, method in (FULL_DOSE, LOW_DOSE)))
        headings = ["method", *["f50 [1/mm]", "f10 [1/mm]", "contrast [HU]"] * len(inserts)]
        blocks += [Heading(group), Table(f"sharpness, {group}", headings, table, [(i, 3) for (i,) in inserts])]
    note = (
        "How much of an insert's contrast is kept at each spatial frequency, from its edge. Lines at 0.5 and 0.1: f50 and f10. "
        "Methods that are not linear blur faint inserts more than strong ones, so each insert has its own curve; contrast: what "
        "is left of it in the flat middle. Dash: the curve does not fall so far, or no edge could be measured."
    )
    return Section("transfer", "sharpness", "Sharpness by contrast", [Text([note]), Pictures(pictures), *blocks])


def materials_section(result: BenchmarkResult) -> Section | None:
    """Bias of every method in every material."""
    studies = result.studies.get("materials", ())
    if not studies:
        return None
    blocks: list[Block] = []
    for (group,), rows in by(studies, "group").items():
        areas = {r["material"]: r["area_cm2"] for r in rows}
        patients = max(r["n_patients"] for r in rows)
        table = []
        for (method,), own in by(rows, "method").items():
            found = {r["material"]: r for r in own}
            cells = [_bias_cell(found[m]) if m in found else Cell("–") for m in areas]
            table.append(Row(method, cells, method == LOW_DOSE))
        headings = ["method", *(f"{m} ({number(a, '.0f')}\u00a0cm²)" for m, a in areas.items())]
        blocks += [
            Heading(f"{group}, {patients} patients"),
            Table(f"bias by material in HU, {group}", headings, table),
        ]
    note = (
        "Mean error in HU, method minus reference, inside each material; a patient's area of it in the heading; in brackets the "
        "lowest and highest mean of a patient. A mean over the body hides "
        f"errors of opposite sign. Shaded from 0 to {_BIAS_SHADE_HU:.0f} HU."
    )
    return Section("bias", "bias by material", "Bias by material", [Text([note]), *blocks])


def _bias_cell(row: Mapping[str, Any]) -> Cell:
    extremes = interval(row["bias_low_hu"], row["bias_high_hu"], "+.1f") if row["n_patients"] > 1 else ""
    heat = min(abs(row["bias_hu"]) / _BIAS_SHADE_HU, 1.0)
    return Cell(number(row["bias_hu"], "+.1f"), extremes, heat=heat)
