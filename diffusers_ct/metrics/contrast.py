"""Contrast, contrast-to-noise ratio and contrast recovery of regions in HU.

A high contrast-to-noise ratio says little of what can be seen once the noise is not white, and nothing after a method
that is not linear: see `detectability`.

References:
    Samei et al. 2019, AAPM TG-233, Med. Phys. 46(11) e735.
    Rose 1948, J. Opt. Soc. Am. 38(2) 196.
"""

from typing import Literal

import numpy as np


def contrast_hu(image_hu: np.ndarray, *, signal: np.ndarray, background: np.ndarray) -> float:
    """Mean of the signal's pixels minus mean of the background's, in HU.

    Args:
        image_hu: (height, width) or (slices, height, width).
        signal, background: bool masks of shape (height, width), the same in each slice, or of the image's shape.

    Raises:
        ValueError: for shapes that do not fit, masks that are empty or overlap, values that are not finite.
    """
    image, signal, background = _checked(image_hu, signal, background)
    return float(image[signal].mean() - image[background].mean())


def contrast_to_noise(
    image_hu: np.ndarray,
    *,
    signal: np.ndarray,
    background: np.ndarray,
    noise: Literal["background", "pooled"],
) -> float:
    """Contrast over the standard deviation of a pixel; its sign is the contrast's.

    The variance is taken in each slice about that slice's own mean, and averaged over slices by degrees of freedom.
    It counts as noise whatever varies in the region: shading and anatomy too.

    Args:
        image_hu: (height, width) or (slices, height, width).
        signal, background: as in `contrast_hu`.
        noise: "background" takes the background's variance alone, "pooled" the mean of both regions' variances.

    Raises:
        ValueError: as `contrast_hu`; for an unknown `noise`, and for an image without noise.
    """
    if noise not in ("background", "pooled"):
        raise ValueError(f"`noise` must be 'background' or 'pooled', got {noise!r}.")
    image, signal, background = _checked(image_hu, signal, background)
    variance = _variance(image, background)
    if noise == "pooled":
        variance = 0.5 * (variance + _variance(image, signal))
    if not variance > 0:
        raise ValueError("The region of the noise is constant: a contrast-to-noise ratio would be infinite.")
    return float((image[signal].mean() - image[background].mean()) / np.sqrt(variance))


def contrast_recovery(
    image_hu: np.ndarray, reference_hu: np.ndarray, *, signal: np.ndarray, background: np.ndarray
) -> float:
    """Contrast of the image over that of the reference: 1 where all is kept, 0 where the signal is gone.

    Args:
        image_hu: (height, width) or (slices, height, width).
        reference_hu: of the same shape, best free of noise. Noise of the reference is noise of the ratio.
        signal, background: as in `contrast_hu`.

    Raises:
        ValueError: as `contrast_hu`; for other shapes, and a reference without contrast.
    """
    if np.shape(image_hu) != np.shape(reference_hu):
        raise ValueError(f"The image {np.shape(image_hu)} and its reference {np.shape(reference_hu)} differ in shape.")
    reference = contrast_hu(reference_hu, signal=signal, background=background)
    if reference == 0.0:
        raise ValueError("The reference has no contrast between `signal` and `background`: nothing to recover.")
    return contrast_hu(image_hu, signal=signal, background=background) / reference


def _variance(image: np.ndarray, mask: np.ndarray) -> float:
    squares, freedom = 0.0, 0
    for slice_hu, inside in zip(image, mask):
        values = slice_hu[inside]
        if len(values) > 1:
            squares += float(np.sum((values - values.mean()) ** 2))
            freedom += len(values) - 1
    if not freedom:
        raise ValueError("The region of the noise has a single pixel in each slice: no noise to measure.")
    return squares / freedom


def _checked(
    image_hu: np.ndarray, signal: np.ndarray, background: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image in float64 and both masks, all (slices, height, width)."""
    image = np.asarray(image_hu, np.float64)
    if image.ndim not in (2, 3):
        raise ValueError(f"`image_hu` must be (height, width) or (slices, height, width), got shape {image.shape}.")
    image = image[None] if image.ndim == 2 else image
    masks = []
    for name, mask in (("signal", signal), ("background", background)):
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape not in (image.shape, image.shape[1:]):
            raise ValueError(f"`{name}` must be a bool mask of the image's shape, got {mask.dtype} {mask.shape}.")
        if not mask.any():
            raise ValueError(f"`{name}` is empty.")
        masks.append(np.broadcast_to(mask, image.shape))
    if (masks[0] & masks[1]).any():
        raise ValueError("`signal` and `background` overlap.")
    if not np.isfinite(image[masks[0] | masks[1]]).all():
        raise ValueError("`image_hu` holds values that are not finite within the regions.")
    return image, masks[0], masks[1]
