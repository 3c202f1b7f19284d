"""What the viewer shows of one slice: pictures as addresses, with their captions and legends."""

from typing import Any

import numpy as np

from ..volume import CTVolume
from .pictures import (
    Upright,
    data_uri,
    difference,
    difference_palette,
    gradient,
    grey,
    heat_palette,
    uncertainty,
)

# Shown name -> name in `hounsfield.WINDOWS_HU`.
WINDOWS = {
    "Soft tissue": "soft_tissue",
    "Lung": "lung",
    "Bone": "bone",
    "Brain": "brain",
    "Full range": "full",
}
_DIFFERENCE, _HEAT = difference_palette(), heat_palette()
LEGENDS = {"difference": gradient(_DIFFERENCE, first=1), "uncertainty": gradient(_HEAT)}


def top_of(uncertainty_hu: np.ndarray) -> float:
    """The upper end of the colours of a scan's uncertainty, in HU: the same for all slices."""
    return max(round(float(np.percentile(uncertainty_hu[:: max(len(uncertainty_hu) // 16, 1)], 99.5))), 1.0)


def slice_view(
    low: CTVolume,
    number: int,
    *,
    window: str,
    difference_hu: float,
    low_name: str,
    restored_hu: np.ndarray | None = None,
    uncertainty_hu: np.ndarray | None = None,
    uncertainty_top_hu: float = 1.0,
) -> dict[str, Any]:
    """One slice as the page's viewer takes it, JSON values alone.

    Args:
        low: the scan that is, or was, restored.
        number: of the slice, from 1.
        window: name in `hounsfield.WINDOWS_HU`.
        difference_hu: HU at both ends of the colours of the difference.
        low_name: what the scan is called.
        restored_hu: of the scan's shape.
        uncertainty_hu: likewise.
        uncertainty_top_hu: HU at the upper end of its colours.
    """
    depth = low.shape[0]
    k = min(max(int(number), 1), depth) - 1
    upright = Upright.of(low.affine_lps)
    left, right, upper, lower = upright.marks
    axis = int(np.abs(low.affine_lps[:3, 2]).argmax())
    place_mm = float((low.affine_lps @ np.array([0.0, 0.0, k, 1.0]))[axis])
    view: dict[str, Any] = {
        "before": data_uri(upright.turn(grey(low.hu[k], window))),
        "after": "",
        "difference": "",
        "uncertainty": "",
        "aspect": upright.aspect(low.shape, low.spacing_mm),
        "marks": {"left": left, "right": right, "upper": upper, "lower": lower},
        "before_name": low_name,
        "place": f"slice {k + 1} of {depth}, {'xyz'[axis]} = {place_mm:.1f} mm",
        "difference_ends": [f"{-difference_hu:g} HU", "0", f"+{difference_hu:g} HU"],
        "uncertainty_ends": ["0", "", f"{uncertainty_top_hu:g} HU"],
    }
    if restored_hu is not None:
        view["after"] = data_uri(upright.turn(grey(restored_hu[k], window)))
        change = difference(restored_hu[k], low.hu[k], difference_hu)
        view["difference"] = data_uri(upright.turn(change), _DIFFERENCE)
    if uncertainty_hu is not None:
        view["uncertainty"] = data_uri(upright.turn(uncertainty(uncertainty_hu[k], uncertainty_top_hu)), _HEAT)
    return view
