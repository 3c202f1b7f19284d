"""Noise power spectra of water: how much noise each method leaves, and how coarse it is."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...metrics import noise_power_spectrum, roi_corners
from ...physics.low_contrast_phantom import RodPhantom, scan_seed
from ...volume import CTVolume
from .methods import FULL_DOSE, Method, dose_group, restored, with_low_dose

_MARGIN_MM = 10.0  # of the disc's edge, which is no uniform region
_ROI_MM = 32.0
_NO_NOISE_HU = 1e-3  # below this, float32 images differ by their rounding alone


def noise_study(
    methods: Mapping[str, Method],
    *,
    phantom: RodPhantom,
    dose_fractions: Sequence[float],
    slices: int,
    slab_slices: int,
    seed: int,
    kernel: str = "soft",
    slice_mm: float = 2.0,
) -> list[dict[str, Any]]:
    """Radial noise power of the phantom without rods, for the full dose, each low dose, and each method.

    For a sampler give one sample as one method and the mean of many as another: a sample should have the full dose's
    spectrum or less, a mean has little noise, and that coarse.

    Noise is what differs between realisations: the mean of all slabs, slice by slice, is taken off first. A pattern that a
    method draws in every image alike (and the phantom's own shading) is an error, not noise. The rest's power is
    n / (n - 1) of what is left, n slabs, which makes it right on average however few they are.

    Not exact about: what a method does to anatomy. It sees water alone here, which is easy.

    Args:
        methods: name -> method.
        phantom: whose disc is used.
        dose_fractions: in (0, 1].
        slices: of each dose, two slabs at least; each is another realisation.
        slab_slices: that a method gets at once.
        seed: of the noise.
        kernel: of the reconstruction.
        slice_mm: thickness and distance of slices, for the header.

    Returns:
        One dict for each dose and method: "group", "method", "material", "frequency_per_mm" (list), "power_hu2_mm2"
        (list), "mean_frequency_per_mm", "peak_frequency_per_mm" (None where there is no noise), "sd_hu" and "n_images".

    Raises:
        ValueError: for fewer slices than two slabs.
    """
    slabs = slices // slab_slices if slab_slices > 0 else 0
    if slabs < 2:
        raise ValueError(
            f"`slices` must be two slabs of `slab_slices` at least, to tell noise from what does not change; got {slices} "
            f"and {slab_slices}."
        )
    side = max(16, 2 * round(_ROI_MM / phantom.pixel_mm / 2))
    axis = (np.arange(phantom.side) - (phantom.side - 1) / 2) * phantom.pixel_mm
    uniform = np.hypot(axis[:, None], axis[None, :]) < phantom.disc_mm / 2 - _MARGIN_MM
    # Ends of the slabs too: a method in three dimensions knows less there, and such slices are part of every scan.
    mask = np.broadcast_to(uniform, (slabs * slab_slices, *uniform.shape))
    corners = roi_corners(mask, roi_pixels=side, step_pixels=side // 2)

    def scans(dose: float) -> list[CTVolume]:
        return [
            phantom.scan(
                dose_fraction=dose,
                slices=slab_slices,
                seed=scan_seed(seed, round(1e6 * dose), k),
                with_rods=False,
                kernel=kernel,
                slice_mm=slice_mm,
            )
            for k in range(slabs)
        ]

    def row(group: str, name: str, images: Sequence[np.ndarray]) -> dict[str, Any]:
        found = noise_power_spectrum(
            _differing(images), pixel_mm=phantom.pixel_mm, corners=corners, roi_pixels=side, detrend="plane"
        )
        frequency, power = found.radial()
        noisy = found.sd_hu > _NO_NOISE_HU
        return {
            "group": group,
            "method": name,
            "material": "water",
            "frequency_per_mm": frequency.tolist(),
            "power_hu2_mm2": power.tolist(),
            "mean_frequency_per_mm": found.mean_frequency_per_mm if noisy else None,
            "peak_frequency_per_mm": found.peak_frequency_per_mm if noisy else None,
            "sd_hu": found.sd_hu,
            "n_images": slabs * slab_slices,
        }

    full = [volume.hu for volume in scans(1.0)]
    rows = []
    for dose in dose_fractions:
        volumes, group = scans(dose), dose_group(dose)
        rows.append(row(group, FULL_DOSE, full))
        for name, method in with_low_dose(methods).items():
            rows.append(row(group, name, [restored(name, method, volume) for volume in volumes]))
    return rows


def _differing(images: Sequence[np.ndarray]) -> np.ndarray:
    """What differs between realisations (depth, height, width) of one image, all slices in turn, with its full variance."""
    realisations = np.stack(images).astype(np.float64)
    # Differences to the first are exactly 0 where all are alike, which differences to a rounded mean are not.
    rest = realisations - realisations[0]
    rest -= rest.mean(axis=0)
    return np.concatenate(rest * np.sqrt(len(images) / (len(images) - 1)))
