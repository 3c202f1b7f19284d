"""What a header says of how the scan was made."""

from typing import Any

import numpy as np
import pydicom

from ..conditions import ScanConditions


def values_of(value: Any) -> list:
    """The values of an element of one or several."""
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str | bytes | int | float) else list(value)


def optional_number(header: pydicom.Dataset, name: str) -> float | None:
    """The element as a finite number, None where it is missing or garbled."""
    try:
        value = header.get(name)
        return None if value is None or value == "" else float(value)
    except (TypeError, ValueError):
        return None


def conditions_of(header: pydicom.Dataset) -> ScanConditions:
    """What the header says of how the scan was made; what it leaves out or garbles is unknown.

    Headers state no contrast phase, finding or dose fraction. An empty ContrastBolusAgent is unknown (its module is
    there only if an agent was given, PS3.3 A.3.3, yet scanners write it empty for scans without one); so is a quantity
    of 0.
    """
    sex = str(header.get("PatientSex", "") or "").strip().upper()
    kernel = "\\".join(str(v) for v in values_of(header.get("ConvolutionKernel")))
    agent = str(header.get("ContrastBolusAgent", "") or "").strip().upper()
    contrast = None if not agent else agent not in ("NONE", "NO")
    if contrast is None:  # of enhanced CT (PS3.3 C.7.6.16.2.12)
        contrast = {"YES": True, "NO": False}.get(str(header.get("ContrastBolusAgentAdministered", "")))
    return ScanConditions(
        body_part=str(header.get("BodyPartExamined", "") or "").strip().upper() or None,
        age_years=_age_years(str(header.get("PatientAge", "") or "").strip().upper()),
        sex=sex if sex in ("M", "F", "O") else None,
        kvp=positive_number(header, "KVP"),
        tube_current_mas=exposure_mas(header),
        kernel=kernel or None,
        manufacturer=str(header.get("Manufacturer", "") or "").strip() or None,
        slice_thickness_mm=positive_number(header, "SliceThickness"),
        contrast_agent=contrast,
    )


def positive_number(header: pydicom.Dataset, name: str) -> float | None:
    """The element as a number above 0; scanners write 0 for unknown."""
    value = optional_number(header, name)
    return value if value is not None and 0 < value < np.inf else None


def _age_years(age: str) -> float | None:
    """Completed years of an Age String: three digits and D, W, M or Y (PS3.5 section 6.2); at most 90.

    A child below 1 has an age in months or less: "000Y" is what phantoms and de-identified scans carry, and unknown.
    """
    per_year = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0}
    if not (age[:-1].isdecimal() and age[-1] in per_year) or (int(age[:-1]) == 0 and age[-1] == "Y"):
        return None
    return min(int(age[:-1]) // per_year[age[-1]], 90.0)


def exposure_mas(header: pydicom.Dataset) -> float | None:
    """Exposure in mAs, else the same in uAs, else exposure time (ms) times tube current (mA); PS3.3 C.8.2.1."""
    exposure = positive_number(header, "Exposure")
    if exposure is not None:
        return exposure
    exposure_uas = positive_number(header, "ExposureInuAs")
    if exposure_uas is not None:
        return exposure_uas / 1000.0
    time_ms, current_ma = positive_number(header, "ExposureTime"), positive_number(header, "XRayTubeCurrent")
    return None if time_ms is None or current_ma is None else time_ms * current_ma / 1000.0
