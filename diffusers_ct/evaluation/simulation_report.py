"""One page on a simulated low-dose scan: noise before and after, its spectrum, I0 and how it was had, what was assumed."""

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from scipy import ndimage

from ..hounsfield import WINDOWS_HU
from ..metrics.noise_power import NoisePower, noise_power_spectrum, roi_corners
from ..physics import noise_of_scan, uniform_soft_tissue
from ..physics.dose import SourceNoise
from ..physics.scan_simulation import ScanSimulation
from ..volume import CTVolume
from .figures import DIFFERENCE_HU, _new_figure, to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1000px; padding: 1rem; color: #1a1a1a; }
h1 { font-size: 1.4rem; margin: 0 0 .5rem; } h2 { font-size: 1.1rem; margin: 1.2rem 0 .3rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; } td.bad { color: #b00020; font-weight: 700; }
img { max-width: 100%; height: auto; } figure { margin: .5rem 0; } figcaption { font-size: .85rem; color: #555; }
.warning { background: #fff4e0; border-left: 4px solid #e08a00; padding: .4rem 1rem; margin: .5rem 0; }
ul { margin: .2rem 0; padding-left: 1.2rem; font-size: .9rem; } .columns { display: flex; gap: 2rem; flex-wrap: wrap; }
@media (prefers-color-scheme: dark) { body { background: #121212; color: #eee; } .warning { background: #3a2c10; } }
@media print { body { font-size: 11px; max-width: none; } }
"""

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title><style>{{ style }}</style></head><body>
<h1>{{ title }}</h1>
<p class="warning">For research use, not a medical device. This is a simulation: no patient was scanned at this dose.</p>
<div class="columns">
<div><h2>Noise</h2><div class="scroll"><table><thead><tr>{% for h in table[0] %}<th>{{ h }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table[1:] %}<tr>{% for c in row %}<td>{{ c }}</td>{% endfor %}</tr>{% endfor %}</tbody></table></div></div>
<div><h2>How it was made</h2><table><tbody>{% for k, v in facts %}<tr><td>{{ k }}</td><td>{{ v }}</td></tr>{% endfor %}
</tbody></table></div>
</div>
{% for p in pictures %}<figure><img alt="{{ p.title }}" src="data:image/png;base64,{{ p.data }}">
<figcaption>{{ p.title }}</figcaption></figure>{% endfor %}
<h2>What was assumed</h2><ul>{% for text in assumptions %}<li>{{ text }}</li>{% endfor %}</ul>
</body></html>
"""
_ROI_PIXELS = 24
_LOCAL_MM = 8.0


def simulation_report(
    source: CTVolume,
    made: ScanSimulation,
    *,
    dose_fraction: float,
    seed: int,
    source_noise: SourceNoise | str,
    notes: Sequence[str] = (),
) -> str:
    """HTML that needs no network, no other file and names no patient.

    Args:
        source: the scan.
        made: what `simulate_scan` returned for it.
        dose_fraction, seed, source_noise: as given to it.
        notes: sentences on the scan to be shown with the assumptions; no patient, no path.
    """
    added = made.volume.hu - source.hu
    tissue = uniform_soft_tissue(source.hu, source.spacing_mm)
    pixel_mm = source.spacing_mm[2]
    spectra = _spectra({"before": source.hu, "after": made.volume.hu, "added": added}, tissue, pixel_mm)
    before, after = (noise_of_scan(hu, source.spacing_mm) for hu in (source.hu, made.volume.hu))
    alone = float(np.sqrt(max(after**2 - before**2, 0.0)))  # the two are independent
    clinical = source_noise == "normal_dose"
    pictures = [
        (
            f"Slice {_shown(tissue) + 1} of {len(source.hu)}: before, after, difference; soft tissue and lung windows, difference "
            f"within ±{DIFFERENCE_HU:.0f} HU.",
            to_png(_slices(source.hu, made.volume.hu, _shown(tissue)), dpi=80),
        ),
        (
            "Left: SD of the added noise around each place. Middle: noise power in uniform soft tissue; before and after hold the "
            "tissue's own texture too, below about 0.2/mm. Right: SD in uniform soft "
            "tissue of each slice" + (", and what the square-root law expects of the dose." if clinical else "."),
            to_png(
                _measurements(
                    source, made.volume.hu, added, spectra, _shown(tissue), dose_fraction if clinical else None
                ),
                dpi=80,
            ),
        ),
    ]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(_TEMPLATE).render(
        title=f"Simulated low-dose CT: {dose_fraction:g} of the scan's dose",
        style=PAGE_STYLE,
        table=_noise_table(before, after, alone, spectra, dose_fraction if clinical else None),
        facts=_facts(source, made, dose_fraction, seed),
        pictures=[{"title": title, "data": base64.b64encode(png).decode("ascii")} for title, png in pictures],
        assumptions=[*made.assumptions, *notes],
    )


def _noise_table(
    before: float, after: float, added: float, spectra: Mapping[str, NoisePower], dose: float | None
) -> list[list[str]]:
    """Rows of before, added and after: SD found, SD expected of the dose, mean and peak frequency of the spectrum."""
    expected = {"before": None, "added": None, "after": None} if dose is None else {
        "before": None, "added": before * np.sqrt(1.0 / dose - 1.0), "after": before / np.sqrt(dose),
    }  # fmt: skip
    rows = [["uniform soft tissue", "SD found [HU]", "SD expected [HU]", "mean freq. [1/mm]", "peak freq. [1/mm]"]]
    for name, sd in (("before", before), ("added", added), ("after", after)):
        spectrum = spectra.get(name)
        rows.append([
            name,
            _number(sd),
            _number(expected[name]),
            f"{spectrum.mean_frequency_per_mm:.3f}" if spectrum else "–",
            f"{spectrum.peak_frequency_per_mm:.3f}" if spectrum else "–",
        ])  # fmt: skip
    return rows


def _number(value: float | None) -> str:
    return "–" if value is None or not np.isfinite(value) else f"{value:.1f}"


_I0_FROM = {
    "scan": "calibrated on the scan's own noise in uniform soft tissue",
    "given": "given by the user",
    "preset": "of the preset",
}


def _facts(source: CTVolume, made: ScanSimulation, dose: float, seed: int) -> list[tuple[str, str]]:
    settings, conditions = made.settings, source.conditions
    facts = [
        ("dose fraction", f"{dose:g}"),
        ("photons per ray I0", f"{settings.i0:.3g}, {_I0_FROM[made.i0_from]}"),
        ("kernel", made.kernel_name if made.kernel_name != "matched" else f"matched: {_window_text(settings.window)}"),
        ("rays", f"{type(made.geometry).__name__}, {made.geometry.views} views x {made.geometry.bins} bins"),
        ("seed", str(seed)),
        (
            "volume",
            f"{' x '.join(map(str, source.shape))} voxels of {' x '.join(f'{s:.3g}' for s in source.spacing_mm)} mm",
        ),
    ]
    known = {
        "scanner": conditions.manufacturer,
        "kernel of the scan": conditions.kernel,
        "exposure of the scan": conditions.tube_current_mas and f"{conditions.tube_current_mas:g} mAs",
        "tube voltage": conditions.kvp and f"{conditions.kvp:g} kV",
    }
    return facts + [(name, str(value)) for name, value in known.items() if value]


def _window_text(window: Any) -> str:
    cutoff, boost = getattr(window, "cutoff_per_mm", None), getattr(window, "boost", 0.0)
    return "table" if cutoff is None else f"Hann to {cutoff:.2f}/mm" + (f", boost {boost:.2g}" if boost else "")


def _spectra(volumes: Mapping[str, np.ndarray], tissue: np.ndarray, pixel_mm: float) -> dict[str, NoisePower]:
    corners = roi_corners(tissue, roi_pixels=_ROI_PIXELS, step_pixels=_ROI_PIXELS // 2, fraction=0.9)
    if not corners:
        return {}
    corners = corners[:: max(1, len(corners) // 600)]
    return {
        name: noise_power_spectrum(hu, pixel_mm=pixel_mm, corners=corners, roi_pixels=_ROI_PIXELS, detrend="quadratic")
        for name, hu in volumes.items()
    }


def _shown(tissue: np.ndarray) -> int:
    """Slice with the most uniform soft tissue among the middle half."""
    depth = len(tissue)
    first, last = depth // 4, max(depth // 4 + 1, depth - depth // 4)
    return first + int(np.argmax(tissue[first:last].sum(axis=(1, 2))))


def _slices(before: np.ndarray, after: np.ndarray, k: int) -> "Figure":
    height, width = before.shape[1:]
    figure = _new_figure(10.5, 3.5 * 2 * height / width + 0.6)
    for row, window in enumerate(("soft_tissue", "lung")):
        lower, upper = WINDOWS_HU[window]
        panels: Sequence[tuple[np.ndarray, str, dict[str, Any]]] = (
            (before[k], f"before, {lower:.0f} to {upper:.0f} HU", {"cmap": "gray", "vmin": lower, "vmax": upper}),
            (after[k], f"after, {lower:.0f} to {upper:.0f} HU", {"cmap": "gray", "vmin": lower, "vmax": upper}),
            (
                after[k] - before[k],
                f"after - before, ±{DIFFERENCE_HU:.0f} HU",
                {"cmap": "gray", "vmin": -DIFFERENCE_HU, "vmax": DIFFERENCE_HU},
            ),
        )
        for column, (image, title, look) in enumerate(panels if row == 0 else panels[:2]):
            axes = figure.add_subplot(2, 3, row * 3 + column + 1)
            axes.imshow(image, interpolation="nearest", **look)
            axes.set_title(title, fontsize=9)
            axes.set_axis_off()
    return figure


def _measurements(
    source: CTVolume,
    after: np.ndarray,
    added: np.ndarray,
    spectra: Mapping[str, NoisePower],
    k: int,
    dose: float | None,
) -> "Figure":
    figure = _new_figure(10.5, 3.2)
    left, middle, right = figure.subplots(1, 3)
    sigma = _LOCAL_MM / source.spacing_mm[2]
    local = np.sqrt(
        ndimage.gaussian_filter(np.mean(added[max(0, k - 2) : k + 3].astype(np.float64) ** 2, axis=0), sigma)
    )
    body = source.hu[k] > -900.0
    top = float(np.percentile(local[body], 99)) if body.any() else float(local.max())
    shown = left.imshow(local, cmap="magma", vmin=0.0, vmax=max(top, 1.0))
    left.set_title("SD of the added noise [HU]", fontsize=9)
    left.set_axis_off()
    figure.colorbar(shown, ax=left, shrink=0.8)
    for name, style in (("before", "-"), ("added", "--"), ("after", "-")):
        if name in spectra:
            middle.plot(*spectra[name].radial(), style, label=name)
    middle.set(xlabel="spatial frequency [1/mm]", ylabel="noise power [HU² mm²]")
    if spectra:
        middle.set_yscale("log")
        middle.legend(fontsize=8)
    middle.grid(alpha=0.3)
    step = max(1, len(source.hu) // 40)
    numbers = range(0, len(source.hu), step)
    own = np.array([noise_of_scan(source.hu[i : i + 1], source.spacing_mm) for i in numbers])
    low = np.array([noise_of_scan(after[i : i + 1], source.spacing_mm) for i in numbers])
    z = np.array(numbers) + 1
    right.plot(z, own, "o-", ms=3, label="before")
    right.plot(z, low, "o-", ms=3, label="after, found")
    if dose is not None:
        right.plot(z, own / np.sqrt(dose), "k--", lw=1, label="after, expected")
    right.set(xlabel="slice", ylabel="SD [HU]")
    right.set_ylim(bottom=0)
    right.legend(fontsize=8)
    right.grid(alpha=0.3)
    return figure
