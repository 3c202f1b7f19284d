"""Pairs without a clean image and without projections: neighbouring slices show nearly the same, with other noise.

Only places where they do show the same may be compared; elsewhere the difference is anatomy (Niu and Wang 2020,
"Noise2Sim: similarity-based self-learning for image denoising", arXiv:2011.03384, of which this is the plain form with
neighbours along z instead of a search).
"""

import json
import math

import numpy as np
import torch
from datasets import Dataset
from scipy import ndimage

from .patches import volume_view

_WINDOW = 7  # pixels, over which slices are compared


class NeighbouringSlices(torch.utils.data.Dataset):
    """Map-style training pairs: a slice, the nearest one that shares no photons with it, and where they are alike.

    Slices that overlap share photons and so their noise: the neighbour is the first at a distance of the slice
    thickness or more. Every slice is an input once for each side on which it has such a neighbour.

    Items: `{"input_hu", "target_hu": float32 (1, 1, H, W) in HU, "weight": float32 (1, 1, H, W)}`; the weight is 1 where
    the means over 7 x 7 pixels differ by no more than the scan's noise level, else 0: multiply the loss by it.

    Not exact about noise that the scanner's own processing has correlated along z (iterative reconstruction).

    Args:
        dataset: rows of `load_unpaired_ct` or `load_paired_ct`.
        column: "volume" of the former, "low" of the latter.
        slice_thickness_mm: of scans whose conditions do not tell it.
        farthest_mm: largest distance of the two slices; beyond it they have too little in common.

    Raises:
        ValueError: if the thickness of a scan is not known, or no scan has two slices that go together.
    """

    def __init__(
        self, dataset: Dataset, column: str, *, slice_thickness_mm: float | None = None, farthest_mm: float = 5.0
    ) -> None:
        self.dataset = dataset
        self.column = column
        self._pairs: list[tuple[int, int, int]] = []
        self._noise_hu: list[np.ndarray] = []
        distances = []
        light = dataset.select_columns(["scan_key", "noise_hu", "spacing_mm", "conditions"]).with_format(None)
        for row, scan in enumerate(light):
            thickness = json.loads(scan["conditions"]).get("slice_thickness_mm") or slice_thickness_mm
            if thickness is None:
                raise ValueError(
                    f"The slice thickness of scan {scan['scan_key']} is not known: give `slice_thickness_mm`. Slices that "
                    "overlap share their noise, and nothing could be learnt from them."
                )
            spacing = scan["spacing_mm"][0]
            gap = max(1, math.ceil(thickness / spacing - 1e-3))
            distances.append(gap * spacing)
            self._noise_hu.append(np.array(scan["noise_hu"], dtype=np.float32))
            depth = len(scan["noise_hu"])
            if gap * spacing <= farthest_mm:
                self._pairs += [
                    (row, z, z + step) for z in range(depth) for step in (-gap, gap) if 0 <= z + step < depth
                ]
        if not self._pairs:
            nearest = f"; the nearest independent ones are {min(distances):g} mm apart" if distances else ""
            raise ValueError(
                f"No scan has two independent slices within {farthest_mm:g} mm{nearest}: use thinner slices, deeper "
                "scans, or a larger `farthest_mm`."
            )

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"Pair {index} of {len(self)}.")
        row, z, other = self._pairs[index]
        volume = volume_view(self.dataset, row, self.column)
        one, two = volume[z].astype(np.float32), volume[other].astype(np.float32)
        noise_hu = float(self._noise_hu[row][[z, other]].mean())
        alike = np.abs(ndimage.uniform_filter(one - two, _WINDOW, mode="nearest")) <= noise_hu
        images = {"input_hu": one, "target_hu": two, "weight": alike.astype(np.float32)}
        return {name: torch.from_numpy(image)[None, None] for name, image in images.items()}
