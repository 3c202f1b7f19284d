"""Task transfer functions: how sharp each method keeps an edge, at each contrast and dose."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...metrics import TaskTransfer, regions_around, task_transfer
from ...physics.low_contrast_phantom import Rod, RodPhantom, scan_seed
from .methods import LOW_DOSE, Method, dose_group, restored, with_low_dose

_EDGE_MM = 9.0
_BIN_PIXELS = 0.25
# Of the mean image. In the noise of filtered back-projection f50 has a standard deviation of about 1/cnr of itself (on pixels
# of 0.8 to 1 mm; half as much again at 1.5 mm).
SMALLEST_CNR = 15.0
_NOTHING: dict[str, Any] = {"frequency_per_mm": [], "transfer": [], "f50_per_mm": None, "f10_per_mm": None}


def transfer_study(
    methods: Mapping[str, Method],
    *,
    pixel_mm: float,
    dose_fractions: Sequence[float],
    slices: int,
    slab_slices: int,
    seed: int,
    kernel: str = "soft",
    slice_mm: float = 2.0,
) -> list[dict[str, Any]]:
    """TTF of the edge of 25 mm rods of several contrasts, from the mean over realisations and copies.

    The plain images' own transfer function does not depend on dose: theirs is measured without noise.

    Args:
        methods: name -> method; the low dose itself is always judged.
        pixel_mm: side of the pixels.
        dose_fractions: in (0, 1].
        slices: for each dose and method, each another realisation.
        slab_slices: that a method gets at once.
        seed: of the noise.
        kernel: of the reconstruction.
        slice_mm: thickness and distance of slices, for the header.

    Returns:
        One dict for each dose, method and contrast: "group", "method", "insert", "contrast_hu" (true), "measured_contrast_hu",
        "frequency_per_mm" (list), "transfer" (list), "f50_per_mm", "f10_per_mm", "cnr" (of the mean image; None without
        noise) and "n_images". Where the contrast-to-noise ratio is below `SMALLEST_CNR`, or no edge is left, the
        frequencies are None and the lists empty.

    Raises:
        ValueError: for fewer slices than a slab.
    """
    if not 1 <= slab_slices <= slices:
        raise ValueError(f"`slices` must be one slab of `slab_slices` at least, got {slices} and {slab_slices}.")
    slabs = slices // slab_slices
    phantom = RodPhantom.for_transfer(pixel_mm)
    rows = []
    for dose in dose_fractions:
        volumes = [
            phantom.scan(
                dose_fraction=dose,
                slices=slab_slices,
                seed=scan_seed(seed, round(1e6 * dose), k),
                with_rods=True,
                kernel=kernel,
                slice_mm=slice_mm,
            )
            for k in range(slabs)
        ]
        for name, method in with_low_dose(methods).items():
            if name == LOW_DOSE:
                mean = phantom.noise_free_hu(kernel, with_rods=True)
            else:
                total = np.zeros((phantom.side, phantom.side))
                for volume in volumes:
                    total += restored(name, method, volume).sum(axis=0, dtype=np.float64)
                mean = total / (slabs * slab_slices)
            for rod in phantom.rods:
                row = {"group": dose_group(dose), "method": name, "insert": rod.label, "contrast_hu": rod.contrast_hu}
                rows.append({**row, **_measured(mean, phantom, rod, name), "n_images": slabs * slab_slices})
    return rows


def _measured(mean_hu: np.ndarray, phantom: RodPhantom, rod: Rod, name: str) -> dict[str, Any]:
    try:
        found = rod_transfer(mean_hu, phantom, rod)
    except ValueError:
        if name == LOW_DOSE:  # whose edges are there: a fault of the geometry
            raise
        return {"measured_contrast_hu": 0.0, "cnr": 0.0, **_NOTHING}
    row = {"measured_contrast_hu": found.contrast_hu, "cnr": None if name == LOW_DOSE else found.cnr}
    if found.cnr < SMALLEST_CNR:
        return {**row, **_NOTHING}
    return {
        **row,
        "frequency_per_mm": found.frequency_per_mm.tolist(),
        "transfer": found.ttf.tolist(),
        "f50_per_mm": found.f50_per_mm,
        "f10_per_mm": found.f10_per_mm,
    }


def rod_transfer(mean_hu: np.ndarray, phantom: RodPhantom, rod: Rod) -> TaskTransfer:
    """Transfer function of one kind of rod from a mean image (side, side), over its copies.

    Raises:
        ValueError: where no edge is left.
    """
    radius = rod.diameter_mm / 2
    half = int(np.ceil((radius + _EDGE_MM) / phantom.pixel_mm)) + 1
    copies = [regions_around(mean_hu[None], center=p, roi_pixels=2 * half + 1)[0] for p in phantom.places(rod)]
    row, column = phantom.offset_pixels
    return task_transfer(
        np.stack(copies),
        pixel_mm=phantom.pixel_mm,
        center=(half + row, half + column),
        radius_mm=radius,
        edge_mm=_EDGE_MM,
        bin_mm=_BIN_PIXELS * phantom.pixel_mm,
    )
