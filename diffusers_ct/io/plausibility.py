"""Checks for formats that do not say what their values are, and for headers that promise more than the file holds."""

from pathlib import Path

import numpy as np

from .errors import DamagedFileError, NotCTError

_LARGEST_COMPRESSION = 2000
_AIR_BELOW_HU = -200.0


def check_volume_bytes(path: Path, declared: int, *, compressed: bool) -> None:
    """Refuses a declared size that the file cannot hold, before memory is taken.

    Raises:
        DamagedFileError: with both numbers.
    """
    there = path.stat().st_size
    if declared > there * (_LARGEST_COMPRESSION if compressed else 1):
        raise DamagedFileError(
            f"{path}: the header declares {declared} bytes of voxels, the file has {there}: it is cut off or wrong."
        )


def check_looks_like_hu(path: Path, values: np.ndarray, *, assume_hu: bool) -> None:
    """Refuses values that cannot be HU: every CT volume holds air or lung.

    Raises:
        NotCTError: unless `assume_hu`.
        DamagedFileError: if values are not finite.
    """
    if not np.isfinite(values).all():
        raise DamagedFileError(f"{path}: the volume holds values that are not finite.")
    low, high = float(values.min()), float(values.max())
    if no_air(low) and not assume_hu:
        raise NotCTError(
            f"{path}: the values lie between {low:g} and {high:g}, with no air (-1000) among them: they do not look like "
            "Hounsfield units. If they are, pass assume_hu=True."
        )


def no_air(least_value: float) -> bool:
    """Whether the smallest of all values is too large for a CT scan in HU."""
    return least_value > _AIR_BELOW_HU
