"""Image metrics in named conventions: the same pair of images scores 19.5 to 37.7 dB depending on the convention.

All take HU, (height, width) or (depth, height, width), and compute in float64. Slices are judged in the plane.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage


@dataclass(frozen=True)
class Convention:
    """How two images are compared.

    Attributes:
        clip_hu: both images are clipped to (lower, upper) first.
        data_range_hu: peak of the PSNR and range of the SSIM; "reference" takes max - min of each reference slice.
        ssim_window: "gaussian" (11 x 11, sigma 1.5, biased covariance) or "uniform" (7 x 7, sample covariance).
        ssim_border: "crop" leaves out where the window leaves the image, "zero" pads with zeros of the clipped range.
        source: who uses it.
    """

    clip_hu: tuple[float, float]
    data_range_hu: float | Literal["reference"]
    ssim_window: Literal["gaussian", "uniform"]
    ssim_border: Literal["crop", "zero"]
    source: str


CONVENTIONS: dict[str, Convention] = {
    "full": Convention((-1024.0, 3071.0), 4095.0, "gaussian", "crop", "diffusers-ct"),
    "soft": Convention((-160.0, 240.0), 400.0, "gaussian", "zero", "RED-CNN (Chen et al. 2017), CTformer"),
    "corediff": Convention((-1000.0, 1000.0), "reference", "gaussian", "crop", "CoreDiff (Gao et al. 2023)"),
    "ldctbench-chest": Convention((-1350.0, 150.0), 1500.0, "uniform", "crop", "Eulig et al. 2024"),
    "ldctbench-abdomen": Convention((-150.0, 250.0), 400.0, "uniform", "crop", "Eulig et al. 2024"),
    "ldctbench-neuro": Convention((0.0, 80.0), 80.0, "uniform", "crop", "Eulig et al. 2024"),
    "ldctbench-val": Convention((-1024.0, 1900.0), 2924.0, "uniform", "crop", "Eulig et al. 2024, validation"),
    "rddm": Convention((-1024.0, 3072.0), 4096.0, "uniform", "crop", "RDDM"),
}


def psnr_pooled(predicted_hu: np.ndarray, reference_hu: np.ndarray, *, convention: str) -> float:
    """Peak signal-to-noise ratio in dB of the mean squared error over all slices; infinite for equal images.

    Raises:
        ValueError: for an unknown convention, other shapes or values that are not finite; and for a convention whose
            range changes from slice to slice, which cannot be pooled.
    """
    predicted, reference, rule = _prepared(predicted_hu, reference_hu, convention)
    if rule.data_range_hu == "reference":
        raise ValueError(f"The range of {convention!r} changes from slice to slice: use `psnr_slice_mean`.")
    return _decibels(float(rule.data_range_hu), float(np.mean((predicted - reference) ** 2)))


def psnr_slice_mean(predicted_hu: np.ndarray, reference_hu: np.ndarray, *, convention: str) -> float:
    """Mean over slices of the peak signal-to-noise ratio in dB."""
    predicted, reference, rule = _prepared(predicted_hu, reference_hu, convention)
    values = [_decibels(_range(rule, r), float(np.mean((p - r) ** 2))) for p, r in zip(predicted, reference)]
    return float(np.mean(values))


def ssim(predicted_hu: np.ndarray, reference_hu: np.ndarray, *, convention: str) -> float:
    """Mean structural similarity over slices, in [-1, 1].

    References:
        Wang et al. 2004, IEEE Trans. Image Process. 13(4) 600, eq. 13, with K1 = 0.01 and K2 = 0.03.
    """
    predicted, reference, rule = _prepared(predicted_hu, reference_hu, convention)
    return float(np.mean([_ssim_slice(p, r, rule) for p, r in zip(predicted, reference)]))


def rmse(
    predicted_hu: np.ndarray, reference_hu: np.ndarray, *, convention: str, mask: np.ndarray | None = None
) -> float:
    """Root mean square error in HU after the convention's clip, inside `mask` where one is given."""
    return float(np.sqrt(np.mean(_errors(predicted_hu, reference_hu, convention, mask) ** 2)))


def mae(
    predicted_hu: np.ndarray, reference_hu: np.ndarray, *, convention: str, mask: np.ndarray | None = None
) -> float:
    """Mean absolute error in HU after the convention's clip, inside `mask` where one is given."""
    return float(np.mean(np.abs(_errors(predicted_hu, reference_hu, convention, mask))))


def bias(
    predicted_hu: np.ndarray, reference_hu: np.ndarray, *, convention: str, mask: np.ndarray | None = None
) -> float:
    """Mean error in HU, predicted minus reference, after the convention's clip, inside `mask` where one is given."""
    return float(np.mean(_errors(predicted_hu, reference_hu, convention, mask)))


def body_mask(volume_hu: np.ndarray) -> np.ndarray:
    """The patient: largest connected part above -500 HU, its holes (lungs, bowel gas) filled slice by slice.

    Args:
        volume_hu: (height, width) or (depth, height, width), best of the full-dose image.

    Raises:
        ValueError: if nothing is above -500 HU.
    """
    volume = np.asarray(volume_hu)
    slices = volume[None] if volume.ndim == 2 else volume
    tissue = slices > -500.0
    tissue = ndimage.binary_opening(tissue, np.ones((1, 3, 3)))  # parts the patient from the table
    labels, count = ndimage.label(tissue)
    if not count:
        raise ValueError("Nothing in the volume is above -500 HU: there is no body to mask.")
    body = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    body = np.stack([ndimage.binary_fill_holes(image) for image in body])
    return body[0] if volume.ndim == 2 else body


def convention_of(name: str) -> Convention:
    """The convention of a name.

    Raises:
        ValueError: listing the known ones.
    """
    if name not in CONVENTIONS:
        raise ValueError(f"Unknown convention {name!r}: choose one of {', '.join(CONVENTIONS)}.")
    return CONVENTIONS[name]


def _prepared(
    predicted_hu: np.ndarray, reference_hu: np.ndarray, name: str
) -> tuple[np.ndarray, np.ndarray, Convention]:
    """Both images as float64 (depth, height, width), clipped."""
    rule = convention_of(name)
    predicted, reference = (np.asarray(a, dtype=np.float64) for a in (predicted_hu, reference_hu))
    if predicted.shape != reference.shape or predicted.ndim not in (2, 3) or not predicted.size:
        raise ValueError(
            f"Two images of one shape, (height, width) or (depth, height, width), are compared; got {predicted.shape} and "
            f"{reference.shape}."
        )
    if not (np.isfinite(predicted).all() and np.isfinite(reference).all()):
        raise ValueError("The images hold values that are not finite.")
    if predicted.ndim == 2:
        predicted, reference = predicted[None], reference[None]
    return predicted.clip(*rule.clip_hu), reference.clip(*rule.clip_hu), rule


def _errors(predicted_hu: np.ndarray, reference_hu: np.ndarray, name: str, mask: np.ndarray | None) -> np.ndarray:
    predicted, reference, _ = _prepared(predicted_hu, reference_hu, name)
    errors = predicted - reference
    if mask is None:
        return errors.ravel()
    if mask.shape != np.shape(predicted_hu) or mask.dtype != bool or not mask.any():
        raise ValueError("`mask` must be boolean, of the images' shape, with at least one voxel.")
    return errors[mask.reshape(errors.shape)]


def _range(rule: Convention, reference_slice: np.ndarray) -> float:
    if rule.data_range_hu != "reference":
        return float(rule.data_range_hu)
    return float(reference_slice.max() - reference_slice.min())


def _decibels(data_range: float, mse: float) -> float:
    return float("inf") if mse == 0.0 else 10.0 * float(np.log10(data_range**2 / mse))


def _ssim_slice(predicted: np.ndarray, reference: np.ndarray, rule: Convention) -> float:
    data_range = _range(rule, reference)
    if rule.ssim_window == "gaussian":
        size, unbiased = 11, 1.0
        taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    else:
        size, unbiased = 7, 49.0 / 48.0
        taps = np.ones(7)
    taps = taps / taps.sum()
    if min(predicted.shape) < size:
        raise ValueError(
            f"The SSIM of this convention needs images of at least {size} x {size}, got {predicted.shape}."
        )
    # Values count from the lower clip, so that padding with zeros pads with the darkest value.
    x, y = predicted - rule.clip_hu[0], reference - rule.clip_hu[0]

    def local_mean(image: np.ndarray) -> np.ndarray:
        return ndimage.correlate1d(ndimage.correlate1d(image, taps, 0, mode="constant"), taps, 1, mode="constant")

    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x = unbiased * (local_mean(x * x) - mean_x**2)
    var_y = unbiased * (local_mean(y * y) - mean_y**2)
    covariance = unbiased * (local_mean(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    if rule.ssim_border == "crop":
        edge = size // 2
        similarity = similarity[edge:-edge, edge:-edge]
    return float(similarity.mean())
