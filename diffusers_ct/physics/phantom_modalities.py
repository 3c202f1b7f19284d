"""Pseudo-MRI and pseudo-PET of a phantom: other images of the same anatomy, in place, voxel for voxel.

Each tissue has one signal, from the tables below, to which the two modalities add what makes them differ from a
recoloured CT: MRI an unknown scale, a smooth coil bias and Rician noise; PET a blur and counting noise. The signals are
in the order of clinical images (T1- and T2-weighted spin echo with dark blood; FDG at one hour) and no more exact than
that: no relaxation times, no distortion, no attenuation error, no motion between the scans.

References:
    Gudbjartsson and Patz, The Rician distribution of noisy MRI data, 1995, https://doi.org/10.1002/mrm.1910340618
    Sled et al., A nonparametric method for automatic correction of intensity nonuniformity in MRI data, 1998,
        https://doi.org/10.1109/42.668698 (smooth multiplicative bias)
    Wahl et al., From RECIST to PERCIST, 2009, https://doi.org/10.2967/jnumed.108.057307 (SUV of liver and blood)
"""

import numpy as np
from scipy import ndimage

from .phantom import Phantom
from .phantom_anatomy import ORGAN_LABELS

# Relative to fat in T1 for the MRI sequences; SUV in g/ml for PET.
TISSUE_SIGNAL: dict[str, dict[str, float]] = {
    "t1": {
        "fat": 1.0, "muscle": 0.35, "lung": 0.05, "blood": 0.12, "heart": 0.38, "airway": 0.0, "cortical_bone": 0.03,
        "trabecular_bone": 0.60, "liver": 0.52, "spleen": 0.32, "kidney": 0.40, "bowel": 0.30, "gas": 0.0,
        "gall_bladder": 0.20, "pancreas": 0.56, "skin": 0.45, "disc": 0.28, "cartilage": 0.40, "spinal_cord": 0.42, "csf": 0.10, "grey_matter": 0.40,
        "white_matter": 0.52, "dura": 0.25, "eye": 0.12, "bladder": 0.12, "prostate": 0.36, "uterus": 0.36, "breast": 0.42,
        "thyroid": 0.45, "calcification": 0.02,
    },
    "t2": {
        "fat": 0.75, "muscle": 0.18, "lung": 0.05, "blood": 0.10, "heart": 0.26, "airway": 0.0, "cortical_bone": 0.03,
        "trabecular_bone": 0.45, "liver": 0.26, "spleen": 0.55, "kidney": 0.65, "bowel": 0.60, "gas": 0.0,
        "gall_bladder": 1.20, "pancreas": 0.40, "skin": 0.30, "disc": 0.70, "cartilage": 0.35, "spinal_cord": 0.38, "csf": 1.30, "grey_matter": 0.48,
        "white_matter": 0.36, "dura": 0.12, "eye": 1.25, "bladder": 1.30, "prostate": 0.45, "uterus": 0.50, "breast": 0.45,
        "thyroid": 0.45, "calcification": 0.02,
    },
    "pet": {
        "fat": 0.3, "muscle": 0.7, "lung": 0.4, "blood": 1.7, "heart": 3.0, "airway": 0.0, "cortical_bone": 0.5,
        "trabecular_bone": 1.2, "liver": 2.3, "spleen": 1.9, "kidney": 3.2, "bowel": 1.5, "gas": 0.0,
        "gall_bladder": 0.8, "pancreas": 1.4, "skin": 0.5, "disc": 0.6, "cartilage": 0.6, "spinal_cord": 1.6, "csf": 0.4, "grey_matter": 8.0,
        "white_matter": 3.0, "dura": 0.8, "eye": 0.6, "bladder": 12.0, "prostate": 1.5, "uterus": 1.8, "breast": 1.0,
        "thyroid": 1.4, "calcification": 0.3,
    },
}  # fmt: skip
LESION_SIGNAL: dict[str, dict[str, float]] = {
    "t1": {
        "solid_nodule": 0.35,
        "ground_glass_nodule": 0.12,
        "metastasis": 0.33,
        "cyst": 0.15,
        "lytic": 0.30,
        "haemorrhage": 0.62,
        "infarct": 0.34,
    },
    "t2": {
        "solid_nodule": 0.50,
        "ground_glass_nodule": 0.20,
        "metastasis": 0.60,
        "cyst": 1.20,
        "lytic": 0.80,
        "haemorrhage": 0.22,
        "infarct": 0.85,
    },
    "pet": {
        "solid_nodule": 6.0,
        "ground_glass_nodule": 1.3,
        "metastasis": 8.0,
        "cyst": 0.4,
        "lytic": 7.0,
        "haemorrhage": 0.5,
        "infarct": 1.0,
    },
}
PET_FWHM_MM = 6.0
MRI_SEQUENCES = ("t1", "t2")

_GAS_BELOW_HU = -400.0  # gas in the bowel has no label of its own
_SCALE_RANGE = (50.0, 2000.0)
_COIL_WAVE_MM = (300.0, 600.0)
_COIL_WAVES = 3


def tissue_signal(phantom: Phantom, image: str) -> np.ndarray:
    """The tables on the phantom's voxels, before anything that an imager does to them.

    Args:
        phantom: with its truth.
        image: "t1", "t2" or "pet".

    Returns:
        (depth, height, width) float32; 0 outside the body.

    Raises:
        ValueError: for another image.
    """
    if image not in TISSUE_SIGNAL:
        raise ValueError(f"Unknown image {image!r}: choose one of {', '.join(TISSUE_SIGNAL)}.")
    of_label = np.zeros(256, dtype=np.float32)
    for organ, label in ORGAN_LABELS.items():
        of_label[label] = TISSUE_SIGNAL[image][organ]
    bowel_gas = (phantom.organs == ORGAN_LABELS["bowel"]) & (phantom.volume.hu < _GAS_BELOW_HU)
    signal = of_label[np.where(bowel_gas, ORGAN_LABELS["gas"], phantom.organs)]
    of_lesion = np.array([0.0, *(LESION_SIGNAL[image][lesion.kind] for lesion in phantom.lesions)], dtype=np.float32)
    return np.where(phantom.lesion_mask > 0, of_lesion[phantom.lesion_mask], signal)


def pseudo_mri(
    phantom: Phantom, *, seed: int, sequence: str = "t1", noise: float = 0.03, bias: float = 0.25
) -> np.ndarray:
    """A magnitude MRI of the phantom, in the arbitrary units of its scanner.

    Args:
        phantom: with its truth.
        seed: of scale, bias and noise; the sequences of one seed share scale and bias.
        sequence: of `MRI_SEQUENCES`.
        noise: standard deviation of the real and of the imaginary part, relative to fat in T1.
        bias: standard deviation of the logarithm of the coil's sensitivity, about.

    Returns:
        (depth, height, width) float32, not negative.

    Raises:
        ValueError: for another sequence, or a negative noise or bias.
    """
    if sequence not in MRI_SEQUENCES:
        raise ValueError(f"Unknown sequence {sequence!r}: choose one of {', '.join(MRI_SEQUENCES)}.")
    if not noise >= 0.0 or not bias >= 0.0:
        raise ValueError(f"`noise` and `bias` must not be negative, got {noise} and {bias}.")
    rng = np.random.default_rng([seed, 0])
    scale = float(np.exp(rng.uniform(*np.log(_SCALE_RANGE))))
    signal = tissue_signal(phantom, sequence) * np.exp(bias * _coil_log_sensitivity(phantom, rng))
    noise_rng = np.random.default_rng([seed, 1, MRI_SEQUENCES.index(sequence)])
    real, imaginary = noise * noise_rng.standard_normal((2, *signal.shape))
    return (scale * np.hypot(signal + real, imaginary)).astype(np.float32)


def pseudo_pet(phantom: Phantom, *, seed: int, counts_per_suv_ml: float | None = 500.0) -> np.ndarray:
    """An FDG PET image of the phantom.

    The blur takes what lies beyond the volume for a mirror image of what lies within, so that it neither loses nor
    makes activity. The noise is that of Poisson counts in each voxel on its own; a reconstruction's noise is smoother.

    Args:
        phantom: with its truth.
        seed: of the noise.
        counts_per_suv_ml: counts that one ml at SUV 1 gives; None for no noise.

    Returns:
        (depth, height, width) float32 SUV in g/ml, not negative.

    Raises:
        ValueError: if the counts are not positive.
    """
    if counts_per_suv_ml is not None and not counts_per_suv_ml > 0.0:
        raise ValueError(f"`counts_per_suv_ml` must be positive, or None for no noise, got {counts_per_suv_ml}.")
    spacing_mm = np.asarray(phantom.volume.spacing_mm)
    sigma = PET_FWHM_MM / np.sqrt(8.0 * np.log(2.0)) / spacing_mm
    suv = ndimage.gaussian_filter(tissue_signal(phantom, "pet").astype(np.float64), sigma, mode="reflect")
    if counts_per_suv_ml is not None:
        counts_per_suv = counts_per_suv_ml * float(np.prod(spacing_mm)) / 1000.0
        suv = np.random.default_rng([seed, 2]).poisson(suv * counts_per_suv) / counts_per_suv
    return suv.astype(np.float32)


def _coil_log_sensitivity(phantom: Phantom, rng: np.random.Generator) -> np.ndarray:
    """Sum of a few long waves in patient coordinates, of about unit variance."""
    volume = phantom.volume
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(volume.hu.shape, volume.spacing_mm)]
    axes[0] = volume.affine_lps[2, 3] + np.arange(volume.hu.shape[0]) * volume.spacing_mm[0]
    field = np.zeros(volume.hu.shape)
    for _ in range(_COIL_WAVES):
        direction = rng.normal(size=3)
        z, y, x = 2.0 * np.pi * direction / np.linalg.norm(direction) / rng.uniform(*_COIL_WAVE_MM)
        field += np.cos(z * axes[0][:, None, None] + y * axes[1][:, None] + x * axes[2] + rng.uniform(0.0, 2.0 * np.pi))
    return field * np.sqrt(2.0 / _COIL_WAVES)
