"""What a volume holds in its most striking spots: features for a small, quick classifier of findings.

A finding of some millimetres is a place where a certain range of HU is denser than elsewhere. A convolutional network
has to find that out, which takes it thousands of volumes; here it is built in, and a linear classifier is left to learn
which HU and which size.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

# Between lung and bone, closer where tissues are close. A voxel belongs to the two nearest knots by its distance.
KNOTS_HU = (-1000.0, -900.0, -800.0, -700.0, -600.0, -450.0, -300.0, -150.0, -60.0, 0.0, 40.0, 80.0, 150.0, 300.0)
SCALES_MM = (4.2, 7.2, 12.0)
SPOT_MM3 = 3500.0  # a ball of 9.4 mm radius
SPOT_FEATURES = 3 * len(KNOTS_HU)


def spot_features(hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """How dense each range of HU is in the spots where it is densest.

    The share of each knot in a voxel (hat functions, which sum to 1) is smoothed at three scales: a local histogram of
    HU. Its value at the middle scale and the differences between neighbouring scales are averaged over the
    `SPOT_MM3` of the volume where they are largest, wherever these lie. So flips change nothing.

    Args:
        hu: (depth, height, width).
        spacing_mm: (z, y, x).

    Returns:
        (SPOT_FEATURES,) float32: for each knot (middle, fine minus middle, middle minus coarse), in [-1, 1].

    References:
        Koenderink and van Doorn 1999, "The structure of locally orderless images", doi:10.1023/A:1008065931878.
    """
    place = np.interp(hu, KNOTS_HU, np.arange(len(KNOTS_HU)))
    voxels = min(hu.size, max(1, round(SPOT_MM3 / float(np.prod(spacing_mm)))))
    features = []
    for knot in range(len(KNOTS_HU)):
        share = np.clip(1.0 - np.abs(place - knot), 0.0, 1.0).astype(np.float32)
        fine, middle, coarse = (
            gaussian_filter(share, [scale / step for step in spacing_mm], mode="nearest") for scale in SCALES_MM
        )
        for density in (middle, fine - middle, middle - coarse):
            features.append(np.partition(density, -voxels, axis=None)[-voxels:].mean())
    return np.array(features, dtype=np.float32)
