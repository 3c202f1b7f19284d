"""More kernels from the pairs at hand: filtering both images of a pair is a pair of a smoother kernel.

Filtered back-projection is linear, and a reconstruction kernel acts as a filter in the plane (Kak and Slaney 1988,
chapter 3), so the same in-plane filter applied to the full- and the low-dose image gives the pair that a smoother
kernel would have given, up to the 12-bit rounding of the stored values. The filter from a sharp kernel to a smooth
one is the square root of the ratio of their noise power spectra, which pairs of one scan show directly: their
difference is pure noise. Iterative reconstructions are not linear: do not use it on them.
"""

import json
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from datasets import Dataset

from ..conditions import ScanConditions
from .manifest import make_row
from .patches import volume_view

_BINS = 128  # of the radial spectrum, 0 to 0.5 cycles a pixel
_ROI = 256  # side of the central square that it is measured in
_LARGEST_GAIN = 1.5  # a filter that amplified more would raise what the sharp kernel measured badly


def radial_noise_power(differences_hu: Iterable[np.ndarray]) -> np.ndarray:
    """Mean radial noise power of (height, width) low-minus-full images, over `_BINS` bins from 0 to 0.5 cycles/pixel.

    Raises:
        ValueError: if an image is smaller than the region that is measured.
    """
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(_ROI), np.fft.fftfreq(_ROI)))
    ring = np.minimum((frequency * 2 * _BINS).astype(int), _BINS)
    power, images = np.zeros(_BINS + 1), 0
    for image in differences_hu:
        height, width = image.shape
        if min(height, width) < _ROI:
            raise ValueError(f"The noise power needs images of at least {_ROI} x {_ROI} voxels, got {image.shape}.")
        top, left = (height - _ROI) // 2, (width - _ROI) // 2
        roi = np.asarray(image[top : top + _ROI, left : left + _ROI], dtype=np.float64)
        spectrum = np.abs(np.fft.fft2(roi - roi.mean())) ** 2 / roi.size
        power += np.bincount(ring.ravel(), spectrum.ravel(), _BINS + 1)
        images += 1
    if not images:
        raise ValueError("There is no image to measure the noise power of.")
    return power[:_BINS] / (images * np.bincount(ring.ravel(), minlength=_BINS + 1)[:_BINS])


def kernel_filter(power_from: np.ndarray, power_to: np.ndarray) -> np.ndarray:
    """Amplitude response that turns noise of one kernel into noise of another, 1 at the lowest frequencies.

    Args:
        power_from: radial noise power of the sharper kernel, from `radial_noise_power`.
        power_to: that of the smoother kernel.

    Returns:
        (bins,) amplitude, at most `_LARGEST_GAIN` before it is normalised to the lowest frequencies.
    """
    # The first bin holds the mean alone, which was taken off: it gets its neighbour's value.
    amplitude = np.minimum(np.sqrt(power_to[1:] / power_from[1:]), _LARGEST_GAIN)
    amplitude = np.concatenate([amplitude[:1], amplitude])
    smooth = np.convolve(np.pad(amplitude, 2, mode="edge"), np.full(5, 0.2), mode="valid")
    return smooth / smooth[:6].mean()


def apply_filter(image_hu: np.ndarray, amplitude: np.ndarray) -> np.ndarray:
    """Filters (..., height, width) in the plane by a radial amplitude; the image is taken as periodic."""
    height, width = image_hu.shape[-2:]
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(width), np.fft.fftfreq(height)))
    centres = (np.arange(len(amplitude)) + 0.5) / (2 * len(amplitude))
    response = np.interp(frequency, centres, amplitude)
    return np.fft.ifft2(np.fft.fft2(image_hu) * response).real.astype(np.float32)


def smoother_kernel_pairs(dataset: Dataset, *, from_kernel: str, to_kernel: str, strength: float = 1.0) -> Dataset:
    """Copies of the scans of one kernel as a smoother kernel would have shown them.

    Args:
        dataset: measured pairs (`target` "same_scan") of both kernels, from `load_paired_ct`: the training split.
        from_kernel: name of the sharp kernel in the rows' conditions, "D45f" for example.
        to_kernel: name of the smooth one, "B30f" for example.
        strength: power of the filter in (0, 1]; 0.5 is half-way (in decibels) between the kernels.

    Returns:
        New rows, one for each of `from_kernel`; their kernel is written as "D45f->B30f^0.5".

    Raises:
        ValueError: if a kernel is missing, or the pairs do not share their scan.
    """
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"`strength` must be in (0, 1], got {strength}.")
    conditions = [ScanConditions(**json.loads(text)) for text in dataset["conditions"]]
    sharp, smooth = ([i for i, c in enumerate(conditions) if c.kernel == name] for name in (from_kernel, to_kernel))
    for name, rows in ((from_kernel, sharp), (to_kernel, smooth)):
        if not rows:
            known = sorted({str(c.kernel) for c in conditions})
            raise ValueError(f"No scan of kernel {name!r} is in the dataset; it has {', '.join(known)}.")
    if set(dataset.select(sharp + smooth)["target"]) != {"same_scan"}:
        raise ValueError("Only pairs of the same scan show their noise as a difference (`target` = 'same_scan').")

    def differences(rows: list[int]) -> Iterable[np.ndarray]:
        for i in rows:
            yield from volume_view(dataset, i, "low").astype(np.float32) - volume_view(dataset, i, "full")

    amplitude = kernel_filter(radial_noise_power(differences(sharp)), radial_noise_power(differences(smooth)))
    amplitude = np.clip(amplitude, 1e-3, None) ** strength
    label = f"{from_kernel}->{to_kernel}^{strength:g}"
    copies = []
    for i in sharp:
        row = dataset.select([i]).remove_columns(["low", "full"])[0]
        copies.append(
            make_row(
                apply_filter(volume_view(dataset, i, "low").astype(np.float32), amplitude),
                apply_filter(volume_view(dataset, i, "full").astype(np.float32), amplitude),
                scan_key=f"{row['scan_key']}-{strength:g}",
                patient_key=row["patient_key"],
                split=row["split"],
                dose_fraction=row["dose_fraction"],
                spacing_mm=row["spacing_mm"],
                affine_lps=np.array(row["affine_lps"]).reshape(4, 4),
                target=row["target"],
                conditions=replace(conditions[i], kernel=label),
                provenance={**json.loads(row["provenance"]), "kernel_transfer": label},
            )
        )
    return Dataset.from_list(copies, features=dataset.features)
