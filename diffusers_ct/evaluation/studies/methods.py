"""What a study judges: a method, that takes a scan and gives its voxels back."""

from collections.abc import Callable, Mapping

import numpy as np

from ...volume import CTVolume

# (depth, height, width) in HU of the same shape as the scan. The noise of the scan is real noise, not a level.
Method = Callable[[CTVolume], np.ndarray]

LOW_DOSE = "low dose"  # the images as they are: plain filtered back-projection
FULL_DOSE = "full dose"


def dose_group(dose_fraction: float) -> str:
    """Name of the table of a dose."""
    return f"dose {100 * dose_fraction:g} %"


def with_low_dose(methods: Mapping[str, Method]) -> dict[str, Method]:
    """The methods after the images as they are.

    Raises:
        ValueError: for a method that takes a name of the plain images.
    """
    if taken := {LOW_DOSE, FULL_DOSE} & set(methods):
        raise ValueError(f"These names are the plain images' own: {sorted(taken)}.")
    return {LOW_DOSE: lambda volume: volume.hu, **methods}


def restored(name: str, method: Method, volume: CTVolume) -> np.ndarray:
    """What a method gives for a scan, float32.

    Raises:
        ValueError: for another shape or values that are not finite, naming the method.
    """
    hu = np.asarray(method(volume), np.float32)
    if hu.shape != volume.shape:
        raise ValueError(f"The method {name!r} turned {volume.shape} into {hu.shape}: it must keep the shape.")
    if not np.isfinite(hu).all():
        raise ValueError(f"The method {name!r} returned values that are not finite.")
    return hu
