"""Text in the pixels, which no header can clean: what a header says of it, and what it looks like.

This tells which images to leave out. It is not the Clean Pixel Data Option of DICOM PS3.15 E.3.1, nor is a face removed as
the Clean Recognizable Visual Features Option (E.3.2) would.
"""

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pydicom
from pydicom.encaps import generate_frames
from scipy import ndimage

from .dicom_multiframe import frame_count, frame_headers, is_multiframe
from .dicom_pixels import decode_frame, is_encapsulated, transfer_syntax

_SCREENS = re.compile(
    r"SCREEN|DOSE|PROTOCOL|\bPROT\b|SOM\d PROT|SUMMARY|SECONDARY CAPTURE|SCANNED|PATIENT DATA|EXAM INFO", re.IGNORECASE
)
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and .7.1 to .7.4


def burned_in_reasons(header: pydicom.Dataset) -> list[str]:
    """Why an image may carry text in its pixels, told from its header; empty if nothing says so.

    An empty answer is no proof: headers seldom speak of it. Values of the header are not quoted.
    """
    reasons = []
    if _word(header.get("BurnedInAnnotation")) == "YES":
        reasons.append("BurnedInAnnotation (0028,0301) is YES")
    kind = str(header.get("SOPClassUID", "") or "")
    if kind == _SECONDARY_CAPTURE or kind.startswith(f"{_SECONDARY_CAPTURE}."):
        reasons.append("it is a secondary capture, such as a dose report or a saved screen")
    image_type = [str(v) for v in _values(header.get("ImageType"))]
    if any(_SCREENS.search(value) for value in image_type):
        reasons.append("ImageType (0008,0008) names a screen, protocol or dose page")
    elif (
        len(image_type) > 1
        and image_type[1].strip().upper() == "SECONDARY"
        and not header.get("ImagePositionPatient")
        and ("SharedFunctionalGroupsSequence" not in header)
    ):
        reasons.append("it is a secondary image without a place in the patient, as saved screens are")
    if re.search(r"dose (report|info|summary)|patient protocol|screen ?(save|shot)", _text(header), re.IGNORECASE):
        reasons.append("its description names a dose report, protocol page or saved screen")
    if header.get("SamplesPerPixel") not in (None, "", 1) or str(
        header.get("PhotometricInterpretation", "")
    ).startswith(("RGB", "YBR", "PALETTE")):
        reasons.append("its pixels are coloured, which HU never are")
    return reasons


def shows_face(header: pydicom.Dataset) -> bool:
    """Whether a surface rendering may show the patient's face, told from the header."""
    if _word(header.get("RecognizableVisualFeatures")) == "YES":
        return True
    return bool(
        re.search(
            r"HEAD|BRAIN|SKULL|FACE|SINUS|ORBIT|NECK|MAXILL|MANDIB|WHOLE ?BODY", _word(header.get("BodyPartExamined"))
        )
    )


_MOST_PIXELS = 2**31  # of one object: 8192 frames of 512 x 512, some minutes


def text_in_pixels(image: pydicom.Dataset, label: str) -> tuple[bool, int]:
    """Whether what looks like text lies in the pixels of any frame, and how many frames could not be searched.

    Each frame is searched in its own HU: those of a multi-frame object have their rescaling in functional groups (PS3.3
    C.7.6.16.2.9). Frames that cannot be decoded are not searched, nor what is beyond the pixels that can be searched in
    some minutes.

    Args:
        image: with its pixels and file meta information.
        label: how messages name the file.
    """
    try:
        headers = frame_headers(image, label) if is_multiframe(image) else [image]
        size = int(image.Rows) * int(image.Columns)
        data = image.PixelData
        if is_encapsulated(transfer_syntax(image)):
            frames = generate_frames(data, number_of_frames=len(headers))
        else:
            frames = (data[2 * size * k : 2 * size * (k + 1)] for k in range(len(headers)))
    except Exception:  # whatever an impossible value brings about
        return False, max(frame_count(image), 1)
    searched = 0
    for header in headers[: max(_MOST_PIXELS // size, 1)]:
        try:
            stored = decode_frame(next(frames), header, label)
            hu = stored * float(header.RescaleSlope) + float(header.RescaleIntercept)
        except Exception:  # whatever a decoder says of a damaged image; its pixels are copied as they are
            continue
        searched += 1
        if looks_like_text(hu):
            return True, len(headers) - searched
    return False, len(headers) - searched


# A line of drawn text: so many glyphs of this size, each of one value, in air, side by side.
_AIR_HU, _LEAST_CONTRAST_HU = -700.0, 200.0
_GLYPH_PIXELS, _GLYPH_HEIGHT, _GLYPH_WIDTH = (5, 600), (5, 40), (1, 40)
_LEAST_GLYPHS, _LARGEST_GAP = 5, 3.0


def looks_like_text(hu: np.ndarray) -> bool:
    """Whether a line of text is drawn into the air around the body: five or more separate shapes of a glyph's size, each of
    one single value and all of the same, side by side.

    Such shapes are no part of a scanned object, whose values vary. The reverse does not hold: text over the body, with soft
    edges, in another orientation or after lossy compression is not found.

    Args:
        hu: (rows, columns) in HU.
    """
    mask = hu > _AIR_HU + _LEAST_CONTRAST_HU
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if count < _LEAST_GLYPHS:
        return False
    glyphs: dict[float, list[tuple[float, float, float, float]]] = {}  # value -> (middle y, height, left, right)
    for k, (rows, columns) in enumerate(ndimage.find_objects(labels)):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if not (_GLYPH_HEIGHT[0] <= height <= _GLYPH_HEIGHT[1] and _GLYPH_WIDTH[0] <= width <= _GLYPH_WIDTH[1]):
            continue
        inside = labels[rows, columns] == k + 1
        values = hu[rows, columns][inside]
        if not _GLYPH_PIXELS[0] <= values.size <= _GLYPH_PIXELS[1] or values.min() != values.max():
            continue
        if inside.all() and width > 2:  # a filled rectangle is a marker, a letter is not
            continue
        middle = (rows.start + rows.stop) / 2
        glyphs.setdefault(float(values[0]), []).append((middle, height, columns.start, columns.stop))
    return any(_has_line(shapes) for shapes in glyphs.values())


def _has_line(shapes: list[tuple[float, float, float, float]]) -> bool:
    """Whether enough shapes stand side by side at one height, none farther from the next than some of their heights."""
    for middle, height, _, _ in shapes:
        line = sorted((s[2], s[3]) for s in shapes if abs(s[0] - middle) <= height / 2)
        run = 1
        for (_, end), (start, _) in pairwise(line):
            run = run + 1 if start - end <= _LARGEST_GAP * height else 1
            if run >= _LEAST_GLYPHS:
                return True
    return False


def _text(header: pydicom.Dataset) -> str:
    return " ".join(str(header.get(name, "") or "") for name in ("SeriesDescription", "ProtocolName", "ImageComments"))


def _word(value: Any) -> str:
    return str(value or "").strip().upper()


def _values(value: Any) -> list[Any]:
    return [] if value is None or value == "" else [value] if isinstance(value, str) else list(value)
