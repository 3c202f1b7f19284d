"""Slices as pictures: Hounsfield windows in grey, difference and uncertainty in colours, upright as radiologists look at them.

A picture is 8-bit indices and a palette, so that what the page shows is the mapping itself, without loss.
"""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..hounsfield import hu_to_unit

DIFFERENCE_RANGES_HU = (25.0, 50.0, 100.0, 200.0)
ZERO = 128  # index of no difference
# (place in [0, 1], red, green, blue), linear between them; dark to light, so that grey printing keeps the order.
_HEAT = ((0.0, 0, 0, 0), (0.25, 68, 20, 110), (0.5, 178, 48, 98), (0.75, 246, 132, 44), (1.0, 255, 248, 190))
# Lowered blue, raised red (Brewer 1994: diverging schemes), white in the middle.
_DIVERGING = (
    (0.0, 16, 64, 150),
    (0.25, 110, 160, 220),
    (0.5, 255, 255, 255),
    (0.75, 240, 140, 100),
    (1.0, 165, 10, 30),
)
_FROM_TO = (("R", "L"), ("A", "P"), ("F", "H"))  # ends of the patient's axes in LPS


def grey(image_hu: np.ndarray, window: str | tuple[float, float]) -> np.ndarray:
    """uint8 of an image in HU: the window's lower bound is 0, its upper 255; see `hounsfield.WINDOWS_HU`."""
    return np.rint((hu_to_unit(image_hu, window) + 1.0) * 127.5).astype(np.uint8)


def difference(restored_hu: np.ndarray, low_hu: np.ndarray, limit_hu: float) -> np.ndarray:
    """Indices of restored - low dose, for `difference_palette`: `ZERO` is no change, 1 is -limit or less, 255 +limit or more."""
    return (np.rint(np.clip((restored_hu - low_hu) / limit_hu, -1.0, 1.0) * 127.0) + ZERO).astype(np.uint8)


def uncertainty(sd_hu: np.ndarray, top_hu: float) -> np.ndarray:
    """Indices of a standard deviation, for `heat_palette`: 0 is none, 255 is `top_hu` or more."""
    return np.rint(np.clip(sd_hu / top_hu, 0.0, 1.0) * 255.0).astype(np.uint8)


def difference_palette() -> np.ndarray:
    """(256, 3) uint8: index 1 to 255 from blue over white (`ZERO`) to red; 0 is not used."""
    return _palette(_DIVERGING, np.clip((np.arange(256) - 1.0) / 254.0, 0.0, 1.0))


def heat_palette() -> np.ndarray:
    """(256, 3) uint8 from black to pale yellow."""
    return _palette(_HEAT, np.arange(256) / 255.0)


def _palette(knots: tuple[tuple[float, int, int, int], ...], places: np.ndarray) -> np.ndarray:
    at, *channels = zip(*knots)
    return np.stack([np.rint(np.interp(places, at, channel)) for channel in channels], axis=1).astype(np.uint8)


def gradient(palette: np.ndarray, *, first: int = 0) -> str:
    """A palette as a CSS gradient from left to right, for the legend of a picture."""
    stops = palette[np.linspace(first, 255, 9).round().astype(int)]
    return f"linear-gradient(to right, {', '.join(f'rgb({r}, {g}, {b})' for r, g, b in stops.tolist())})"


def data_uri(indices: np.ndarray, palette: np.ndarray | None = None) -> str:
    """A PNG (height, width) inside its address, so that it is never a file; grey without a palette."""
    image = Image.fromarray(np.ascontiguousarray(indices))
    if palette is not None:
        image.putpalette(palette.tobytes())  # the mode becomes "P"
    buffer = io.BytesIO()
    image.save(buffer, format="png", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True)
class Upright:
    """How the slices of a scan are turned: axial ones with the patient's left on the right and the front above, others with
    the head above. Oblique axes count as what they are nearest to.

    Attributes:
        transpose: rows and columns change places.
        flip_rows: the last row comes first, after that.
        flip_columns: likewise.
        marks: letters of the patient's sides (R, L, A, P, H, F) at the left, right, upper and lower border.
    """

    transpose: bool
    flip_rows: bool
    flip_columns: bool
    marks: tuple[str, str, str, str]

    @classmethod
    def of(cls, affine_lps: np.ndarray) -> "Upright":
        """For a scan with this affine, as in `CTVolume`."""
        across, down = affine_lps[:3, 0], affine_lps[:3, 1]
        across_axis, down_axis = (int(np.abs(direction).argmax()) for direction in (across, down))
        if across_axis == down_axis:  # both at 45 degrees: there is no nearest
            return cls(False, False, False, ("", "", "", ""))
        transpose = across_axis > down_axis  # left-right goes across before front-back, and head-foot goes down
        if transpose:
            across, down, across_axis, down_axis = down, across, down_axis, across_axis
        flip_columns = bool(across[across_axis] < 0)
        downwards = -1.0 if down_axis == 2 else 1.0  # to the back, or to the feet
        flip_rows = bool(down[down_axis] * downwards < 0)
        upper, lower = _FROM_TO[down_axis][:: int(downwards)]
        return cls(transpose, flip_rows, flip_columns, (*_FROM_TO[across_axis], upper, lower))

    def turn(self, image: np.ndarray) -> np.ndarray:
        """The slice (height, width) as it is shown."""
        image = image.T if self.transpose else image
        return image[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]

    def aspect(self, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> float:
        """Width over height of the shown slice in mm."""
        height_mm, width_mm = shape[1] * spacing_mm[1], shape[2] * spacing_mm[2]
        return height_mm / width_mm if self.transpose else width_mm / height_mm
