"""Headers that do not fit the scan: told as notes, because the pixels are still right."""

from collections.abc import Sequence

import numpy as np
import pydicom

from .dicom_conditions import exposure_mas, optional_number, positive_number
from .dicom_geometry import SliceGeometry
from .dicom_pixels import transfer_syntax
from .identity import without_identity

_LOSSY = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81")
_TOLERANCE = 0.05
_HEAD_PARTS = ("HEAD", "BRAIN", "SKULL", "NECK", "ORBIT", "EAR")
_LONGEST_HEAD_MM = 600.0


def header_notes(headers: Sequence[pydicom.Dataset], geometry: SliceGeometry) -> list[str]:
    """What the headers of one stack (in the order of `geometry`) say that its geometry or physics contradicts."""
    first = headers[0]
    notes = _spacing_notes(headers, geometry) + _dose_notes(first)
    tilt = optional_number(first, "GantryDetectorTilt")
    upright = len(headers) > 1 and geometry.tilt_degrees < 0.3 and abs(geometry.normal[2]) > 0.9999
    if tilt is not None and abs(tilt) > 0.5 and upright:
        notes.append(f"GantryDetectorTilt (0018,1120) is {tilt:g} degrees, but the slices lie upright and not sheared")
    if str(first.get("LossyImageCompression", "")) == "01" or str(transfer_syntax(first)) in _LOSSY:
        notes.append("lossy compression: the noise is not that of the scanner, do not use it for dose studies")
    if first.get("RescaleType") not in (None, "", "HU"):
        kind = without_identity(str(first.RescaleType), first)
        notes.append(f"RescaleType (0028,1054) is {kind}, not HU; the values are taken as HU")
    length = float(np.ptp(geometry.along_mm))
    part = str(first.get("BodyPartExamined", "") or "").strip().upper()
    if part in _HEAD_PARTS and length > _LONGEST_HEAD_MM:
        notes.append(f"BodyPartExamined (0018,0015) is {part}, but the scan is {length:.0f} mm long")
    return notes


def _spacing_notes(headers: Sequence[pydicom.Dataset], geometry: SliceGeometry) -> list[str]:
    notes = []
    thicknesses = {round(v, 3) for h in headers if (v := positive_number(h, "SliceThickness")) is not None}
    if len(thicknesses) > 1:
        notes.append(f"SliceThickness (0018,0050) changes from {min(thicknesses):g} to {max(thicknesses):g} mm")
    if not thicknesses:
        notes.append("SliceThickness (0018,0050) is empty: the thickness is unknown")
    if len(headers) < 2:
        return notes
    spacing = float(np.median(np.diff(geometry.along_mm)))
    if len(thicknesses) == 1 and spacing > 0:
        thickness = next(iter(thicknesses))
        if thickness < spacing * (1 - _TOLERANCE):
            notes.append(
                f"gaps: SliceThickness (0018,0050) is {thickness:g} mm, the positions are {spacing:.3g} mm apart"
            )
        elif thickness > spacing * (1 + _TOLERANCE):
            notes.append(
                f"slices overlap: SliceThickness (0018,0050) is {thickness:g} mm, the positions are {spacing:.3g} mm apart, so "
                "neighbours share noise"
            )
    between = optional_number(headers[0], "SpacingBetweenSlices")
    if between is not None and abs(abs(between) - spacing) > max(0.02 * spacing, 0.02):
        notes.append(
            f"SpacingBetweenSlices (0018,0088) is {between:g} mm, but the positions are {spacing:.3g} mm apart; the "
            "positions are taken"
        )
    return notes


def _dose_notes(header: pydicom.Dataset) -> list[str]:
    notes = []
    kvp = positive_number(header, "KVP")
    if kvp is None:
        notes.append("KVP (0018,0060) is empty: the tube voltage is unknown")
    elif not 40 <= kvp <= 160:
        notes.append(f"KVP (0018,0060) is {kvp:g}, which no CT scanner has")
    mas = exposure_mas(header)
    if mas is not None and not 0.5 <= mas <= 5000:
        notes.append(
            f"the exposure of {mas:g} mAs is implausible (Exposure (0018,1152) is in mAs, ExposureInuAs in uAs)"
        )
    exposure, in_uas = positive_number(header, "Exposure"), positive_number(header, "ExposureInuAs")
    if exposure is not None and in_uas is not None and abs(in_uas / 1000 - exposure) > max(0.1 * exposure, 1.0):
        notes.append(
            f"Exposure (0018,1152) says {exposure:g} mAs, ExposureInuAs (0018,1153) {in_uas / 1000:g} mAs; the first is taken"
        )
    time_ms, current_ma = positive_number(header, "ExposureTime"), positive_number(header, "XRayTubeCurrent")
    if exposure is not None and time_ms is not None and current_ma is not None:
        product = time_ms * current_ma / 1000
        if not 0.2 <= exposure / product <= 5:  # a helical scan gives mAs per pitch
            notes.append(
                f"Exposure (0018,1152) says {exposure:g} mAs, but time and current make {product:g} mAs: the dose is uncertain"
            )
    dose = optional_number(header, "CTDIvol")
    if dose is not None and not 0 < dose <= 500:
        notes.append(f"CTDIvol (0018,9345) is {dose:g} mGy, which is implausible")
    return notes


def same_dose_note(a: Sequence[pydicom.Dataset], b: Sequence[pydicom.Dataset], name_of_b: str) -> str | None:
    """A note if two stacks of one place and kernel, as the two doses of a pair have, give the same mAs.

    Public full/quarter-dose pairs carry the full-dose value on both sides.
    """
    mas = exposure_mas(a[0])
    if mas is None or mas != exposure_mas(b[0]):
        return None
    for name in ("ConvolutionKernel", "PixelSpacing", "ImageOrientationPatient", "SliceThickness"):
        if str(a[0].get(name)) != str(b[0].get(name)):
            return None
    places = [{tuple(round(float(v), 2) for v in h.ImagePositionPatient) for h in stack} for stack in (a, b)]
    if len(places[0] & places[1]) < 0.5 * min(map(len, places)):
        return None
    return (
        f"lies where {name_of_b} lies and has the same {mas:g} mAs: if the two are the doses of a pair, the dose tags lie; "
        "give the dose fraction yourself"
    )
