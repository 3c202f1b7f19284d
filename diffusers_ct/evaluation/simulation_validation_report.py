"""The validation of the dose simulation as one HTML file: tables, noise images side by side, spectra."""

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from .figures import _new_figure, to_png
from .simulation_report import PAGE_STYLE
from .simulation_validation import RADIAL_BINS, Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Dose simulation against real scanner pairs</title><style>{{ style }}</style></head><body>
<h1>Dose simulation against real scanner pairs</h1>
<p class="warning">For research use, not a medical device. Numbers hold for the slices named here alone.</p>
<p>{{ summary }}</p>
<p>Of each slice the noise that the lower dose adds (low minus full dose) is predicted from its full-dose image, its mAs and
the <em>other</em> slices. SD: soft tissue. <em>Own noise</em>: I0 from the slice's own full-dose image instead of other slices' pairs;
<em>both</em>: their geometric mean.
NPS correlation: Pearson, of radial noise power spectra in {{ bins }} rings up to the Nyquist frequency, mean of all regions of
64 x 64 pixels in the body, quadratically detrended. Ceiling: the same correlation of one simulated draw with the mean of the
others, mean (smallest): what a perfect prediction would reach. Red: outside 10 % or below 0.98.</p>
<div class="scroll"><table><thead><tr>{% for h in headings %}<th>{{ h }}</th>{% endfor %}</tr></thead><tbody>
{% for row in rows %}<tr>{% for c in row %}<td{% if c.bad %} class="bad"{% endif %}>{{ c.text }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>
{% for note in notes %}<p>{{ note }}</p>{% endfor %}
<h2>Chosen on the slices of the other folds</h2>
<div class="scroll"><table><thead><tr>{% for h in fold_headings %}<th>{{ h }}</th>{% endfor %}</tr></thead><tbody>
{% for row in folds %}<tr>{% for c in row %}<td>{{ c }}</td>{% endfor %}</tr>{% endfor %}</tbody></table></div>
{% for p in pictures %}<figure><img alt="{{ p.title }}" src="data:image/png;base64,{{ p.data }}">
<figcaption>{{ p.title }}</figcaption></figure>{% endfor %}
<p>{% for k, v in facts %}{{ k }} {{ v }}{% if not loop.last %}, {% endif %}{% endfor %}.</p>
</body></html>
"""
_HEADINGS = (
    "slice", "mAs", "SD measured [HU]", "SD predicted [HU]", "ratio", "ratio, own noise", "ratio, both", "NPS correlation", "ceiling",
    "mean frequency measured [1/mm]", "predicted", "regions",
)  # fmt: skip
_FOLD_PARAMETERS = (
    "body_reach", "modulation_alpha", "bowtie_half_width_rad", "electronic_variance",
)  # fmt: skip


def validation_report(
    predictions: Sequence[Prediction], folds: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> str:
    """HTML.

    Args:
        predictions: of `validate`.
        folds: of `validate`, `chosen` as a plain dict.
        facts: versions and the like.
    """
    pictures = [
        ("Noise power: measured (black), predicted (red), mean over directions.", _spectra(predictions)),
        *(
            (f"{p.pair.name}: full dose; added noise, measured and simulated; ±{_scale(p):.0f} HU.", _noise(p))
            for p in predictions
        ),
    ]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_TEMPLATE).render(
        style=PAGE_STYLE,
        summary=summary(predictions),
        bins=RADIAL_BINS,
        headings=_HEADINGS,
        rows=[_row(p) for p in predictions],
        notes=sorted({f"{p.pair.name}: {p.note}." for p in predictions if p.note}),
        fold_headings=("fold", "calibrated on", *_FOLD_PARAMETERS),
        folds=[
            (f["fold"] + 1, f"{len(f['calibrated_on'])} slices", *(f["chosen"][n] for n in _FOLD_PARAMETERS))
            for f in folds
        ],
        pictures=[
            {"title": t, "data": base64.b64encode(to_png(figure, dpi=75)).decode("ascii")} for t, figure in pictures
        ],
        facts=sorted(facts.items()),
    )


def summary(predictions: Sequence[Prediction]) -> str:
    """How many slices are within the limits."""
    sentences = []
    for name, ratios in (
        ("from other slices", [p.ratio for p in predictions]),
        ("from its own noise", [p.row()["sd_ratio_own_noise"] for p in predictions]),
        ("from both", [p.ratio_of_both for p in predictions]),
    ):
        known = np.array([r for r in ratios if r is not None])
        if len(known):
            sentences.append(
                f"SD {name}: within 10 % in {(np.abs(known - 1) <= 0.1).sum()} of {len(known)} slices, ratios {known.min():.3f} to "
                f"{known.max():.3f}."
            )
    correlations = np.array([p.correlation for p in predictions])
    sentences.append(
        f"NPS correlation above 0.98 in {(correlations > 0.98).sum()} of {len(correlations)} slices, median "
        f"{np.median(correlations):.4f}, smallest {correlations.min():.4f}."
    )
    return " ".join(sentences)


def _row(p: Prediction) -> list[dict[str, Any]]:
    row = p.row()
    own = row["sd_ratio_own_noise"]

    def cell(text: str, bad: bool = False) -> dict[str, Any]:
        return {"text": text, "bad": bad}

    return [
        cell(p.pair.name),
        cell("–" if p.pair.exposure_mas is None else f"{p.pair.exposure_mas:.0f}"),
        cell(f"{p.sd_measured_hu:.1f}"),
        cell("–" if p.sd_predicted_hu is None else f"{p.sd_predicted_hu:.1f}"),
        cell("–") if p.ratio is None else cell(f"{p.ratio:.3f}", abs(p.ratio - 1) > 0.1),
        *(cell("–") if r is None else cell(f"{r:.3f}", abs(r - 1) > 0.1) for r in (own, p.ratio_of_both)),
        cell(f"{p.correlation:.4f}", p.correlation <= 0.98),
        cell(f"{p.ceiling[0]:.4f} ({p.ceiling[1]:.4f})"),
        cell(f"{p.measured.mean_frequency_per_mm:.3f}"),
        cell(f"{p.predicted.mean_frequency_per_mm:.3f}"),
        cell(str(p.measured.rois)),
    ]


def _spectra(predictions: Sequence[Prediction]) -> "Figure":
    columns = 5
    rows = -(-len(predictions) // columns)
    figure = _new_figure(12.5, 2.3 * rows)
    for k, p in enumerate(predictions):
        axes = figure.add_subplot(rows, columns, k + 1)
        axes.plot(*p.measured.radial(RADIAL_BINS), "k", lw=1)
        axes.plot(*p.predicted.radial(RADIAL_BINS), "r--", lw=1)
        axes.set_title(f"{p.pair.name}\n{p.correlation:.4f}", fontsize=7)
        axes.tick_params(labelsize=6)
        axes.set_ylim(bottom=0)
    figure.supxlabel("spatial frequency [1/mm]", fontsize=8)
    figure.supylabel("noise power [HU² mm²]", fontsize=8)
    return figure


def _scale(p: Prediction) -> float:
    return 2.5 * p.sd_measured_hu


def _noise(p: Prediction) -> "Figure":
    figure = _new_figure(11.0, 4.0)
    look: dict[str, Any] = {"cmap": "gray", "vmin": -_scale(p), "vmax": _scale(p)}
    panels: tuple[tuple[np.ndarray, str, dict[str, Any]], ...] = (
        (p.pair.full_hu, "full dose", {"cmap": "gray", "vmin": -160, "vmax": 240}),
        (p.pair.added_hu, f"measured, SD {p.sd_measured_hu:.1f} HU", look),
        (p.drawn_hu, "simulated" + ("" if p.sd_predicted_hu is None else f", SD {p.sd_predicted_hu:.1f} HU"), look),
    )
    for k, (image, title, style) in enumerate(panels):
        axes = figure.add_subplot(1, 3, k + 1)
        axes.imshow(image, **style)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    return figure
