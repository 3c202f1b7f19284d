"""Classical denoisers in the same table, each with one strength, in units of the measured noise level.

All work slice by slice in 2-D. The strength is tuned on training pairs of each dose. In units of the noise it means much
the same at every dose, not the same: what is left of an edge depends on its height in noise levels.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, denoise_wavelet

from ..residual import estimate_noise_hu

SliceFilter = Callable[[np.ndarray, float], np.ndarray]


@dataclass(frozen=True)
class Baseline:
    """A denoiser with one strength.

    Attributes:
        name: in the table.
        filter: (slice in units of its noise level, strength) -> slice.
        strengths: that `tune` tries.
        source: what it implements.
    """

    name: str
    filter: SliceFilter
    strengths: tuple[float, ...]
    source: str

    def __call__(self, low_hu: np.ndarray, strength: float) -> np.ndarray:
        """Denoises (depth, height, width) HU; returns float32 HU."""
        levels = estimate_noise_hu(low_hu)
        out = [level * self.filter(image / level, strength) for image, level in zip(low_hu, levels)]
        return np.stack(out).astype(np.float32)


def gaussian(image: np.ndarray, strength: float) -> np.ndarray:
    """Gaussian filter; the strength is its sigma in pixels."""
    return ndimage.gaussian_filter(image, strength, mode="nearest")


def bilateral(image: np.ndarray, strength: float) -> np.ndarray:
    """Bilateral filter with a spatial sigma of 1.5 pixels; the strength is the range sigma in noise levels.

    References:
        Tomasi and Manduchi 1998, ICCV, eq. 4.
    """
    radius, sigma = 4, 1.5
    padded = np.pad(image.astype(np.float32), radius, mode="edge")
    total, weights = np.zeros_like(image, dtype=np.float32), np.zeros_like(image, dtype=np.float32)
    height, width = image.shape
    for dy in range(2 * radius + 1):
        for dx in range(2 * radius + 1):
            shifted = padded[dy : dy + height, dx : dx + width]
            near = ((dy - radius) ** 2 + (dx - radius) ** 2) / (2.0 * sigma**2)
            weight = np.exp(-near - (shifted - image) ** 2 / (2.0 * strength**2))
            total += weight * shifted
            weights += weight
    return total / weights


def non_local_means(image: np.ndarray, strength: float) -> np.ndarray:
    """Non-local means, 5 x 5 patches within 13 x 13; the strength is the filter parameter h in noise levels.

    References:
        Buades, Coll and Morel 2005, CVPR; scikit-image's fast variant.
    """
    return denoise_nl_means(image, patch_size=5, patch_distance=6, h=strength, sigma=1.0, fast_mode=True)


def total_variation(image: np.ndarray, strength: float) -> np.ndarray:
    """Total variation (Chambolle 2004); the strength is the weight in noise levels."""
    return denoise_tv_chambolle(image, weight=strength, eps=1e-4, max_num_iter=200)


def wavelet(image: np.ndarray, strength: float) -> np.ndarray:
    """BayesShrink in Daubechies-2 wavelets (Chang, Yu and Vetterli 2000); the strength scales the assumed noise."""
    return denoise_wavelet(image, sigma=strength, wavelet="db2", method="BayesShrink", mode="soft", rescale_sigma=False)


BASELINES: tuple[Baseline, ...] = (
    Baseline("Gaussian", gaussian, (0.15, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0), "separable Gaussian"),
    Baseline("bilateral", bilateral, (0.7, 1.0, 1.4, 2.0, 2.8, 4.0), "Tomasi and Manduchi 1998"),
    Baseline("non-local means", non_local_means, (0.3, 0.45, 0.6, 0.8, 1.0, 1.3, 1.7), "Buades et al. 2005"),
    Baseline("total variation", total_variation, (0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8), "Chambolle 2004"),
    Baseline("wavelet", wavelet, (0.4, 0.6, 0.8, 1.0, 1.3, 1.7, 2.2), "Chang et al. 2000"),
)


def tune(baseline: Baseline, pairs: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> float:
    """The strength of least mean squared error on training pairs.

    Args:
        baseline: to tune.
        pairs: (low_hu, full_hu, mask) of training patients, each (depth, height, width); errors count in the mask.

    Raises:
        ValueError: if there is no pair.
    """
    pairs = list(pairs)
    if not pairs:
        raise ValueError("There is no training pair to tune the baseline on.")
    errors = []
    for strength in baseline.strengths:
        squared = [np.square(baseline(low, strength) - full)[mask] for low, full, mask in pairs]
        errors.append(float(np.mean([s.mean(dtype=np.float64) for s in squared])))
    return baseline.strengths[int(np.argmin(errors))]


def tune_by_dose(
    pairs: Iterable[tuple[float, np.ndarray, np.ndarray, np.ndarray]],
) -> dict[float, dict[str, float]]:
    """The best strength of every baseline at every dose.

    Args:
        pairs: (dose_fraction, low_hu, full_hu, mask) of training patients.

    Returns:
        Dose fraction -> name -> strength.
    """
    of_dose: dict[float, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    for dose, *pair in pairs:
        of_dose.setdefault(dose, []).append((pair[0], pair[1], pair[2]))
    return {dose: {b.name: tune(b, of_dose[dose]) for b in BASELINES} for dose in sorted(of_dose)}


def strength_at(strengths: Mapping[float, Mapping[str, float]], name: str, dose_fraction: float) -> float:
    """The strength of the dose that is nearest by its noise: a dose that was not tuned for takes its neighbour's."""
    nearest = min(strengths, key=lambda dose: abs(np.log(dose / dose_fraction)))
    return strengths[nearest][name]
