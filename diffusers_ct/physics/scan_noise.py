"""Noise of a scan without a second one: its SD and its kernel, from uniform soft tissue."""

import numpy as np
from scipy import ndimage, optimize

from .kernels import ReconstructionKernel, radial_spectrum

BLOCK_MM = 10.0
_TREND_MM = 3.0
_PATCH_MM = 24.0
_PATCHES_NEEDED = 8
_RINGS_NEEDED = 6
_LEAST_SD_HU = 1e-3  # rounding


def noise_of_scan(volume_hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    """SD in HU of the noise in the scan's uniform soft tissue; NaN without tissue.

    The median over blocks of 10 mm, so that anatomy in some of them does not count, of the scan minus its Gaussian mean
    of 3 mm, which takes some per cent of the noise with it.
    """
    volume_hu = np.asarray(volume_hu, dtype=np.float32)
    blocks = block_sd(volume_hu, uniform_soft_tissue(volume_hu, spacing_mm), spacing_mm[2])
    return float(np.median(blocks)) if len(blocks) else float("nan")


def uniform_soft_tissue(volume_hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Mask, (depth, height, width), of soft tissue away from edges: smoothed, it is -20 to 120 HU and flat.

    The choice is made on an image smoothed in its plane until its noise is small (Gaussian of 3 mm), and so does not
    prefer places where the noise happens to be low.
    """
    sigma = 3.0 / spacing_mm[2]
    # Clipped, so that air and bone do not reach as far into the tissue.
    smooth = ndimage.gaussian_filter(np.clip(volume_hu, -200.0, 300.0).astype(np.float32), (0, sigma, sigma))
    slope = np.hypot(*np.gradient(smooth, spacing_mm[1], axis=(1, 2)))  # HU / mm
    tissue = (smooth > -20.0) & (smooth < 120.0)
    # Noise of the scan is left in the slope: edges are what stands out of it.
    limit = max(0.5, 3.0 * float(np.median(slope[tissue]))) if tissue.any() else 0.5
    return ndimage.binary_erosion(
        tissue & (slope < limit), np.ones((1, 3, 3)), iterations=round(2.0 / spacing_mm[2]) or 1
    )


def block_sd(volume_hu: np.ndarray, mask: np.ndarray, pixel_mm: float) -> np.ndarray:
    """SD of each block that lies in the mask by three quarters or more, (blocks,), of the image without its trend."""
    sigma = _TREND_MM / pixel_mm
    weight = ndimage.gaussian_filter(mask.astype(np.float32), (0, sigma, sigma))
    mean = ndimage.gaussian_filter(np.where(mask, volume_hu, 0.0).astype(np.float32), (0, sigma, sigma))
    detail = np.where(mask, volume_hu - mean / np.maximum(weight, 1e-3), 0.0)
    side = max(4, round(BLOCK_MM / pixel_mm))
    depth, rows, columns = len(volume_hu), volume_hu.shape[1] // side, volume_hu.shape[2] // side

    def blocks(x: np.ndarray) -> np.ndarray:
        x = x[:, : rows * side, : columns * side].astype(np.float64)
        return x.reshape(depth, rows, side, columns, side).sum(axis=(2, 4)).ravel()

    count = blocks(mask)
    enough = count >= 0.75 * side**2
    return np.sqrt(blocks(detail**2)[enough] / count[enough])


def match_kernel_from_scan(volume_hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> ReconstructionKernel:
    """The kernel of a scan from its own noise, where there is no pair for `match_kernel`.

    The spectrum of uniform soft tissue is fitted by a f W(f)^2 + b / f^3: noise of filtered back-projection with the
    window W of a `ReconstructionKernel` (Kak and Slaney 1988, section 5.2), and tissue, whose spectrum falls by about
    the third power (Burgess, Jacobson and Judy 2001, Med. Phys. 28(4) 419). It is measured in squares of 24 mm that
    lie in `uniform_soft_tissue`, without their quadratic trend and tapered; of each ring the median over the squares.

    Not exact about: kernels outside that family, noise of iterative reconstruction.

    Args:
        volume_hu: (depth, height, width) in HU, with its own noise.
        spacing_mm: (z, y, x), y and x equal.

    Raises:
        ValueError: if there is too little uniform soft tissue, no noise in it, or the pixels are too coarse.
    """
    pixel_mm = spacing_mm[2]
    volume_hu = np.asarray(volume_hu, dtype=np.float32)
    side = 2 * max(8, round(_PATCH_MM / pixel_mm / 2))
    frequencies = radial_spectrum(np.zeros((1, side, side)), pixel_mm, side // 2)[0]
    if (frequencies > 1.5 / _PATCH_MM).sum() < _RINGS_NEEDED:
        raise ValueError(
            f"Pixels of {pixel_mm:.3g} mm are too coarse to measure the reconstruction kernel in the noise: name a `kernel` "
            "(smooth, soft or sharp)."
        )
    squares = _squares(volume_hu, uniform_soft_tissue(volume_hu, spacing_mm), side)
    if len(squares) < _PATCHES_NEEDED:
        raise ValueError(
            f"The scan has {len(squares)} squares of {_PATCH_MM:.0f} mm of uniform soft tissue, too few to measure its "
            f"noise spectrum ({_PATCHES_NEEDED} are needed): choose slices with more of it, or name a `kernel`."
        )
    y, x = np.mgrid[-1.0 : 1.0 : side * 1j, -1.0 : 1.0 : side * 1j].reshape(2, -1)
    trend = np.linalg.qr(np.stack([x**0, x, y, x * x, x * y, y * y], axis=1))[0]
    flat = squares.reshape(len(squares), -1).astype(np.float64)
    flat -= flat @ trend @ trend.T
    taper = np.hanning(side + 2)[1:-1]
    power = np.abs(np.fft.fft2(flat.reshape(-1, side, side) * (taper[:, None] * taper))) ** 2
    frequency, radial, count = radial_spectrum(power, pixel_mm, side // 2)
    measured = np.median(radial, axis=0)
    # Below this frequency, the trend has taken its part.
    kept = (frequency > 1.5 / _PATCH_MM) & (measured > (_LEAST_SD_HU * side) ** 2)
    if kept.sum() < _RINGS_NEEDED:
        raise ValueError(
            "The scan has no noise in its uniform soft tissue, from which its kernel could be told: name a `kernel` (smooth, "
            "soft or sharp)."
        )
    return _fitted_kernel(frequency[kept], measured[kept], count[kept], 0.5 / pixel_mm)


def _fitted_kernel(
    frequency: np.ndarray, power: np.ndarray, count: np.ndarray, nyquist_per_mm: float
) -> ReconstructionKernel:
    """Least squares in the logarithm, rings weighted by their size, from several starts."""

    def error(x: np.ndarray) -> np.ndarray:
        noise, cutoff, boost, tissue = np.exp(x)
        window = np.maximum(
            ReconstructionKernel(cutoff, boost)(frequency), 1e-3
        )  # 0 beyond the cutoff has no logarithm
        return (np.log(noise * frequency * window**2 + tissue / frequency**3) - np.log(power)) * np.sqrt(count)

    level = float(np.log(np.median(power / frequency)))
    lower = [level - 20.0, np.log(0.3 * nyquist_per_mm), np.log(0.01), level - 40.0]
    upper = [level + 20.0, np.log(4.0 * nyquist_per_mm), np.log(30.0), level + 20.0]
    starts = [
        [level, np.log(cutoff * nyquist_per_mm), np.log(boost), level - 6.0]
        for cutoff in (0.6, 1.0, 1.6, 2.5)
        for boost in (0.02, 1.0, 6.0)
    ]
    fits = [optimize.least_squares(error, start, bounds=(lower, upper)) for start in starts]
    _, cutoff, boost, _ = np.exp(min(fits, key=lambda fit: fit.cost).x)
    return ReconstructionKernel(float(cutoff), float(boost))


def _squares(volume_hu: np.ndarray, mask: np.ndarray, side: int) -> np.ndarray:
    """Squares, half overlapping, that lie in the mask: (squares, side, side)."""
    found = []
    for image, tissue in zip(volume_hu, mask, strict=True):
        for top in range(0, image.shape[0] - side + 1, side // 2):
            for left in range(0, image.shape[1] - side + 1, side // 2):
                here = slice(top, top + side), slice(left, left + side)
                if tissue[here].mean() > 0.9:
                    found.append(image[here])
    return np.stack(found) if found else np.zeros((0, side, side), np.float32)
