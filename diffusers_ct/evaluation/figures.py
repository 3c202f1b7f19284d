"""Pictures of restored slices and curves of a run; matplotlib's object interface, no global state."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..hounsfield import WINDOWS_HU

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIFFERENCE_HU = 100.0


def _new_figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError('Figures need matplotlib: pip install "diffusers-ct[report]".') from None
    return Figure(figsize=(width, height), layout="constrained")


def to_png(figure: "Figure", *, dpi: int = 110) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def crop_to_body(images: Sequence[np.ndarray], margin: int = 6) -> list[np.ndarray]:
    """The same box of all images, around what is above -500 HU in the first."""
    rows, columns = np.nonzero(images[0] > -500.0)
    height, width = images[0].shape
    top, bottom = max(rows.min() - margin, 0), min(rows.max() + margin + 1, height)
    left, right = max(columns.min() - margin, 0), min(columns.max() + margin + 1, width)
    return [image[top:bottom, left:right] for image in images]


def overview(
    low_hu: np.ndarray,
    restored_hu: np.ndarray,
    full_hu: np.ndarray,
    uncertainty_hu: np.ndarray | None,
    *,
    low_title: str,
    full_title: str,
    window: str = "soft_tissue",
    difference: bool = False,
) -> "Figure":
    """One slice: low dose, restored, reference, uncertainty, and with `difference` the error in a fixed window."""
    images = [full_hu, low_hu, restored_hu] + ([uncertainty_hu] if uncertainty_hu is not None else [])
    full, low, restored, *rest = crop_to_body(images)
    lower, upper = WINDOWS_HU[window]
    panels: list[tuple[np.ndarray, str, dict[str, Any]]] = []
    grey: dict[str, Any] = {"cmap": "gray", "vmin": lower, "vmax": upper}
    panels += [(low, low_title, grey), (restored, "restored", grey), (full, full_title, grey)]
    if difference:
        scale: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -DIFFERENCE_HU, "vmax": DIFFERENCE_HU}
        panels.append((restored - full, f"restored - reference, ±{DIFFERENCE_HU:.0f} HU", scale))
    if rest:
        top = max(float(np.percentile(rest[0], 99.5)), 1.0)
        panels.append((rest[0], f"uncertainty (SD), 0 to {top:.0f} HU", {"cmap": "magma", "vmin": 0.0, "vmax": top}))
    height, width = full.shape
    figure = _new_figure(3.4 * len(panels), 3.4 * height / width + 0.5)
    for k, (image, title, look) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), k + 1)
        axes.imshow(image, interpolation="nearest", **look)
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    return figure


def training_curves(lines: Sequence[Mapping[str, float]]) -> "Figure":
    """Loss and validation error over the steps, from the lines of metrics.jsonl."""
    figure = _new_figure(9.0, 3.2)
    left, right = figure.subplots(1, 2)
    for name, label in (("train/loss", "all timesteps"), ("train/loss_terminal", "last timestep")):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            left.plot(*zip(*points), label=label)
    left.set(xlabel="step", ylabel="v-loss", yscale="log", title="training")
    left.legend()
    points = [(line["step"], line["val/rmse_body_hu"]) for line in lines if "val/rmse_body_hu" in line]
    if points:
        right.plot(*zip(*points), marker="o")
    right.set(xlabel="step", ylabel="RMSE in the body [HU]", title="validation, other patients")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def noise_curves(errors_hu: Mapping[str, np.ndarray], pixel_mm: float) -> "Figure":
    """Radial power of each method's error (depth, height, width) in the central half, in HU^2 mm^2."""
    figure = _new_figure(6.0, 3.4)
    axes = figure.add_subplot()
    for name, error in errors_hu.items():
        _, height, width = error.shape
        side = min(height, width) // 2
        top, left = (height - side) // 2, (width - side) // 2
        roi = error[:, top : top + side, left : left + side].astype(np.float64)
        power = (np.abs(np.fft.fft2(roi - roi.mean(axis=(1, 2), keepdims=True))) ** 2).mean(axis=0)
        power *= pixel_mm**2 / side**2
        frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side, pixel_mm), np.fft.fftfreq(side, pixel_mm)))
        bins = np.linspace(0.0, 0.5 / pixel_mm, 33)
        which = np.digitize(frequency.ravel(), bins) - 1
        inside = (which >= 0) & (which < 32)
        count = np.bincount(which[inside], minlength=32)
        radial = np.bincount(which[inside], power.ravel()[inside], 32)[count > 0] / count[count > 0]
        axes.plot((0.5 * (bins[1:] + bins[:-1]))[count > 0], radial, label=name)
    axes.set(xlabel="spatial frequency [1/mm]", ylabel="error power [HU² mm²]", yscale="log")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return figure
