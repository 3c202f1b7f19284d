"""The reconstruction kernel of a scan, from its own noise."""

import numpy as np

from .calibration import uniform_soft_tissue
from .kernels import ReconstructionKernel

_SIDE = 24
_FEWEST, _MOST = 6, 600
# Below, tissue has texture of its own; above, the pixels and the interpolation of the scanner shape the spectrum.
_LOWEST_PER_MM, _HIGHEST_OF_NYQUIST = 0.12, 0.9
_CUTOFFS_PER_MM = np.geomspace(0.25, 3.0, 60)
_BOOSTS = np.concatenate([[0.0], np.geomspace(0.1, 20.0, 24)])


def kernel_of_scan(volume_hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> ReconstructionKernel:
    """The window whose noise has a spectrum like the scan's own, in regions of uniform soft tissue.

    FBP noise has the power f W(f)^2 (Kak and Slaney 1988, section 5.2); cutoff and boost are fitted to its logarithm. Where
    slices have neighbours, their difference is taken, in which anatomy cancels.

    Not exact about: kernels that are no Hann window with a boost, and what is coarser than 8 mm.

    Args:
        volume_hu: (depth, height, width) in HU, with noise.
        spacing_mm: (z, y, x).

    Raises:
        ValueError: if there is too little uniform soft tissue.
    """
    volume_hu = np.asarray(volume_hu, dtype=np.float32)
    pixel_mm = spacing_mm[2]
    tissue = uniform_soft_tissue(volume_hu, spacing_mm)
    regions = []
    if len(volume_hu) > 1:
        regions = _regions(np.diff(volume_hu, axis=0), tissue[1:] & tissue[:-1])
    if len(regions) < _FEWEST:
        regions = _regions(volume_hu, tissue)
    if len(regions) < _FEWEST:
        raise ValueError(
            f"The scan has {len(regions)} regions of {_SIDE} x {_SIDE} pixels of uniform soft tissue, too few to match a "
            f"kernel to its noise ({_FEWEST} are needed): choose the kernel by name (smooth, soft or sharp)."
        )
    axis = np.fft.fftfreq(_SIDE, pixel_mm)
    frequency = np.hypot(axis[:, None], axis[None, :])
    # Blurred by the edge of the regions as little as may be: a Hann taper (Welch 1967).
    taper = np.outer(*(2 * (0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(_SIDE) + 0.5) / _SIDE)),) * 2)
    chosen = np.stack(regions)[:: max(1, len(regions) // _MOST)]
    power = np.mean(np.abs(np.fft.fft2(chosen * taper)) ** 2, axis=0)
    if not power.max() > 0:
        raise ValueError("The scan has no noise in its uniform soft tissue: its kernel cannot be told from it.")
    nyquist = 0.5 / pixel_mm
    used = (frequency > min(_LOWEST_PER_MM, 0.3 * nyquist)) & (frequency < _HIGHEST_OF_NYQUIST * nyquist)
    return _fit(frequency[used], power[used])


def _fit(frequency: np.ndarray, power: np.ndarray) -> ReconstructionKernel:
    """Least squares of the logarithms; power so weak that leakage or rounding of HU makes it counts as a hundredth."""
    floor = 0.01 * power.max()
    measured = np.log(np.maximum(power, floor))
    best, kernel = np.inf, ReconstructionKernel(float(_CUTOFFS_PER_MM[-1]))
    for cutoff in _CUTOFFS_PER_MM:
        for boost in _BOOSTS:
            tried = ReconstructionKernel(float(cutoff), float(boost))
            model = frequency * tried(frequency) ** 2
            model = np.log(np.maximum(model, 0.01 * model.max()))
            misfit = float(np.var(measured - model))
            if misfit < best:
                best, kernel = misfit, tried
    return kernel


def _regions(noise_hu: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """Half-overlapping squares that lie in the mask by nine tenths, without their mean and slope."""
    y, x = np.mgrid[:_SIDE, :_SIDE] - (_SIDE - 1) / 2.0
    found = []
    for image, inside in zip(noise_hu, mask):
        for top in range(0, image.shape[0] - _SIDE + 1, _SIDE // 2):
            for left in range(0, image.shape[1] - _SIDE + 1, _SIDE // 2):
                if inside[top : top + _SIDE, left : left + _SIDE].mean() >= 0.9:
                    region = image[top : top + _SIDE, left : left + _SIDE].astype(np.float64)
                    region = region - region.mean()
                    region -= y * (region * y).sum() / (y**2).sum() + x * (region * x).sum() / (x**2).sum()
                    found.append(region)
    return found
