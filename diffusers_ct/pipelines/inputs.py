"""What a pipeline is given, checked before any work: scans, and images beside them."""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import torch

from ..conditions import ScanConditions
from ..image_conditions import normalise_image
from ..volume import CTVolume

Image = CTVolume | np.ndarray | torch.Tensor


def check_counts(**counts: int) -> None:
    """Refuses numbers below 1."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")


def to_volume(
    volume: Image, spacing_mm: tuple[float, float, float] | None, conditions: ScanConditions | None
) -> CTVolume:
    """A scan in HU from what the user gave.

    Raises:
        ValueError: for values that are not HU, or an array without spacing.
    """
    if isinstance(volume, CTVolume):
        if spacing_mm is not None or conditions is not None:
            raise ValueError("A `CTVolume` brings its own spacing and conditions: do not give them again.")
        scan = volume
    else:
        if spacing_mm is None:
            raise ValueError("`spacing_mm` (z, y, x) must be given with an array: the network needs to know it.")
        scan = CTVolume.from_array(_to_numpy(volume), spacing_mm, conditions)
    if not np.isfinite(scan.hu).all():
        raise ValueError("The scan holds values that are not finite.")
    if scan.hu.max() - scan.hu.min() <= 2.0:
        raise ValueError(
            f"The scan's values lie between {scan.hu.min():.3g} and {scan.hu.max():.3g}: that is not in Hounsfield "
            "units. Undo the scaling (air is -1000, water 0)."
        )
    return scan


def check_images(
    images: Mapping[str, Image] | None,
    kinds: Sequence[str],
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    affine_lps: np.ndarray | None,
    mask_classes: int,
) -> dict[str, np.ndarray]:
    """The image conditions, normalised over the whole volume: name -> (depth, height, width) float32.

    Args:
        images: by kind; kinds that are left out are missing, which the network was trained for.
        kinds: that the checkpoint takes.
        shape: (depth, height, width) that they must have.
        spacing_mm: (z, y, x) that a `CTVolume` must have.
        affine_lps: place of the scan that a `CTVolume` must share; None where the scan has none.
        mask_classes: labels of the kind "mask".

    Raises:
        ValueError: for a kind that the checkpoint was not trained with, another shape, or another place.
    """
    found: dict[str, np.ndarray] = {}
    for kind, image in (images or {}).items():
        if kind not in kinds:
            taken = ", ".join(kinds) if kinds else "none"
            raise ValueError(
                f"This checkpoint was not trained with the image {kind!r}; it takes: {taken}. Leave it out."
            )
        values = image.hu if isinstance(image, CTVolume) else _to_numpy(image)
        if values.shape != tuple(shape):
            raise ValueError(
                f"The image {kind!r} has the shape {values.shape}, the scan has {tuple(shape)}: resample it onto the "
                "scan's grid."
            )
        if isinstance(image, CTVolume):
            if not np.allclose(image.spacing_mm, spacing_mm, rtol=1e-3):
                raise ValueError(
                    f"The image {kind!r} has the spacing {image.spacing_mm} mm, the scan has {tuple(spacing_mm)}: "
                    "resample it onto the scan's grid."
                )
            if affine_lps is not None and _farthest_mm(image.affine_lps, affine_lps, shape) > min(spacing_mm) / 2.0:
                raise ValueError(
                    f"The image {kind!r} lies elsewhere in the patient than the scan: resample it onto the scan's grid."
                )
        if (
            kind in ("prior", "context", "low_dose")
            and np.nanmax(values, initial=0) - np.nanmin(values, initial=0) <= 2
        ):
            raise ValueError(
                f"The image {kind!r} is not in Hounsfield units: undo its scaling (air is -1000, water 0)."
            )
        found[kind] = normalise_image(kind, values)
        largest = np.nanmax(found[kind], initial=-np.inf)
        if kind == "mask" and largest >= mask_classes:
            raise ValueError(
                f"The mask holds the label {largest:.0f}; the checkpoint knows 0 to {mask_classes - 1}: merge or leave "
                "out the others (NaN where a label is not known)."
            )
    return found


def _farthest_mm(affine_lps: np.ndarray, other: np.ndarray, shape: tuple[int, int, int]) -> float:
    """The largest distance between the places that two affines give to a corner of the volume."""
    last = [n - 1 for n in reversed(shape)]
    corners = np.array([[*corner, 1] for corner in product(*((0, n) for n in last))])
    return float(np.linalg.norm(corners @ (affine_lps - other).T, axis=1).max())


def _to_numpy(image: np.ndarray | torch.Tensor) -> np.ndarray:
    return image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
