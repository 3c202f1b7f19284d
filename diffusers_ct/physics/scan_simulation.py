"""A whole scan at a lower dose, with the scanner's noise taken from the scan itself where it is not given."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..volume import CTVolume
from .calibration import calibrate_i0_from_scan
from .dose import SIMULATOR_VERSION, SourceNoise, simulate_low_dose
from .dose_settings import DOSE_PRESETS, DoseSettings
from .geometry import FanBeam, ParallelBeam
from .kernels import ReconstructionKernel
from .scan_noise import match_kernel_from_scan
from .truncation import body_reach_mm, complete_body

MATCHED = "matched"
MODULATION_ALPHA = 0.5  # the current follows the square root of the attenuation (Gies et al. 1999, Med. Phys. 26 2235)
BOWTIE_HALF_WIDTH_RAD = 0.19  # body filter
_SLICES_FOR_KERNEL = 24
_SLICES_FOR_I0 = 8  # 512 x 512, one core: 3 seconds


@dataclass(frozen=True, eq=False)
class ScanScanner:
    """The scanner that a scan is simulated with: `simulate_scan` and the preparation of a dataset share it.

    Attributes:
        volume: the scan.
        settings: with the kernel and the I0 that are used.
        geometry: the rays.
        hu: (depth, height, extended width), the scan with a body that its image cuts off continued.
        margin: columns that were added on each side.
        slice_thickness_mm: None where neither the caller nor the header says it.
    """

    volume: CTVolume
    settings: DoseSettings
    geometry: ParallelBeam | FanBeam
    hu: np.ndarray
    margin: int
    slice_thickness_mm: float | None

    def low_dose_hu(self, *, dose_fraction: float, seed: int, source_noise: SourceNoise = "normal_dose") -> np.ndarray:
        """The scan at a lower dose, in HU, of the scan's shape; arguments as in `simulate_low_dose`."""
        low_hu = simulate_low_dose(
            self.hu,
            spacing_mm=self.volume.spacing_mm,
            dose_fraction=dose_fraction,
            seed=seed,
            source_noise=source_noise,
            settings=self.settings,
            geometry=self.geometry,
            slice_thickness_mm=self.slice_thickness_mm,
        )
        added = (low_hu - self.hu)[:, :, self.margin : self.margin + self.volume.shape[2]]
        return self.volume.hu + added


def scanner_of_scan(
    volume: CTVolume,
    settings: DoseSettings,
    *,
    match_kernel: bool,
    calibrate_i0: bool,
    field_mm: float | None = None,
    slice_thickness_mm: float | None = None,
    rays: Callable[[tuple[int, int], float], ParallelBeam | FanBeam] = ParallelBeam.for_image,
) -> ScanScanner:
    """The scanner of a scan, whose kernel and I0 are measured in some slices of the scan where they are not known.

    They depend on the scan alone, not on a seed, and are rounded to four digits, so that what is written down of them is
    what was used.

    Args:
        volume: the scan, with its own noise if something is to be measured.
        settings: what is known of the scanner.
        match_kernel: whether the noise tells the kernel, instead of the one in `settings`.
        calibrate_i0: whether the noise tells I0, instead of the one in `settings`.
        field_mm: as in `simulate_scan`.
        slice_thickness_mm: as in `simulate_scan`.
        rays: for (height, width) and the pixel in mm.

    Raises:
        ValueError: if pixels are not square, or the scan does not show the noise.
    """
    pixel_mm = square_pixel_mm(volume.spacing_mm)
    if match_kernel:
        kernel = match_kernel_from_scan(_spread(volume.hu, _SLICES_FOR_KERNEL), volume.spacing_mm)
        kernel = ReconstructionKernel(round(kernel.cutoff_per_mm, 4), round(kernel.boost, 4))
        settings = replace(settings, kernel=kernel)
    hu, margin = volume.hu, 0
    if field_mm is not None:
        reach_mm = body_reach_mm(volume.shape[2] * pixel_mm, field_mm)
        hu, margin = complete_body(volume.hu, pixel_mm=pixel_mm, reach_mm=reach_mm)
    geometry = rays((hu.shape[1], hu.shape[2]), pixel_mm)
    thickness_mm = slice_thickness_mm or volume.conditions.slice_thickness_mm
    if calibrate_i0:
        found = calibrate_i0_from_scan(
            _spread(hu, _SLICES_FOR_I0),
            spacing_mm=volume.spacing_mm,
            settings=settings,
            geometry=geometry,
            slice_thickness_mm=thickness_mm,
        )
        settings = replace(settings, i0=float(f"{found:.4g}"))
    return ScanScanner(volume, settings, geometry, hu, margin, thickness_mm)


def _spread(volume_hu: np.ndarray, count: int) -> np.ndarray:
    """At most `count` slices from all over the scan."""
    places = np.linspace(0, len(volume_hu) - 1, min(len(volume_hu), count))
    return volume_hu[np.unique(places.round().astype(int))]


@dataclass(frozen=True, eq=False)
class ScanSimulation:
    """A low-dose scan and how it was made.

    Attributes:
        volume: the low-dose scan.
        settings: the scanner of the simulation, with the I0 that was used.
        geometry: its rays.
        i0_from: "scan", "given" or "preset".
        kernel_name: name of the window, or "matched".
        assumptions: sentences: what was assumed because the scan does not tell.
    """

    volume: CTVolume
    settings: DoseSettings
    geometry: ParallelBeam | FanBeam
    i0_from: Literal["scan", "given", "preset"]
    kernel_name: str
    assumptions: tuple[str, ...]


def simulate_scan(
    volume: CTVolume,
    *,
    dose_fraction: float,
    seed: int,
    source_noise: SourceNoise = "normal_dose",
    preset: str | None = None,
    kernel: str | None = None,
    i0: float | None = None,
    modulation: bool | None = None,
    bowtie: bool | None = None,
    electronic_variance: float | None = None,
    geometry: Literal["parallel", "fan"] | None = None,
    slice_thickness_mm: float | None = None,
    field_mm: float | None = None,
) -> ScanSimulation:
    """Adds the noise of a lower dose to a scan; what is None comes from the preset, or from the scan.

    Args:
        volume: the scan.
        dose_fraction: in (0, 1); a noise-free scan may have 1.
        seed: of the noise.
        source_noise: as in `simulate_low_dose`.
        preset: name in `DOSE_PRESETS`.
        kernel: name in `KERNELS`, or "matched" to the noise of the scan; None: the preset's, else matched.
        i0: photons per ray at the scan's own dose; None: the preset's where it states one, else calibrated from the scan.
        modulation: whether the tube current follows the square root of the attenuation.
        bowtie: whether the beam has a body bowtie.
        electronic_variance: in counts squared.
        geometry: "parallel", or "fan" with an arc detector; None: the preset's, else parallel.
        slice_thickness_mm: None: the header's, else the slice spacing.
        field_mm: diameter of the measured field, into which bodies that the image cuts off are continued; None does not
            continue them.

    Raises:
        ValueError: for values out of range, and where the scan does not show the noise that it is asked for.
    """
    if not 0.0 < dose_fraction <= 1.0 or (dose_fraction == 1.0 and source_noise == "normal_dose"):
        raise ValueError(
            f"`dose_fraction` must be above 0 and below 1 (1 is the scan itself; a noise-free scan may have it), got "
            f"{dose_fraction}."
        )
    if preset is not None and preset not in DOSE_PRESETS:
        raise ValueError(f"There is no preset {preset!r}: choose one of {', '.join(sorted(DOSE_PRESETS))}.")
    named = DOSE_PRESETS[preset] if preset else None
    settings = named.settings if named else DoseSettings()
    published_i0 = named is not None and settings.i0 != DoseSettings().i0
    kernel = kernel or (str(settings.kernel) if named else MATCHED)
    if source_noise == "noise_free" and (kernel == MATCHED or (i0 is None and not published_i0)):
        raise ValueError(
            "A noise-free scan has no noise to match a kernel or I0 to: name `kernel` (smooth, soft or sharp) and give "
            "`i0`, or a preset that states one (corediff, need, lodopab)."
        )
    if modulation is not None:
        settings = replace(settings, modulation_alpha=MODULATION_ALPHA if modulation else 0.0)
    if bowtie is not None:
        settings = replace(settings, bowtie_half_width_rad=BOWTIE_HALF_WIDTH_RAD if bowtie else None)
    if electronic_variance is not None:
        settings = replace(settings, electronic_variance=electronic_variance)
    if i0 is not None:
        settings = replace(settings, i0=i0)
    if kernel != MATCHED:
        settings = replace(settings, kernel=kernel)
    calibrated = i0 is None and not published_i0

    def rays(shape: tuple[int, int], pixel_mm: float) -> ParallelBeam | FanBeam:
        published = named.geometry(shape, pixel_mm) if named else None
        if geometry == "fan" and not isinstance(published, FanBeam):
            return FanBeam(shape, pixel_mm, "arc")
        if geometry == "parallel" and not isinstance(published, ParallelBeam):
            return ParallelBeam.for_image(shape, pixel_mm)
        return published or ParallelBeam.for_image(shape, pixel_mm)

    scanner = scanner_of_scan(
        volume,
        settings,
        match_kernel=kernel == MATCHED,
        calibrate_i0=calibrated,
        field_mm=field_mm,
        slice_thickness_mm=slice_thickness_mm,
        rays=rays,
    )
    low_hu = scanner.low_dose_hu(dose_fraction=dose_fraction, seed=seed, source_noise=source_noise)
    continued_mm = scanner.margin * square_pixel_mm(volume.spacing_mm)
    return ScanSimulation(
        volume=volume.with_hu(low_hu),
        settings=scanner.settings,
        geometry=scanner.geometry,
        i0_from="scan" if calibrated else "given" if i0 is not None else "preset",
        kernel_name=kernel,
        assumptions=_assumptions(
            scanner.settings, source_noise, scanner.slice_thickness_mm, volume, continued_mm, calibrated=calibrated
        ),
    )


def square_pixel_mm(spacing_mm: tuple[float, float, float]) -> float:
    """Side of the pixels.

    Raises:
        ValueError: if they are not square.
    """
    _, y, x = spacing_mm
    if abs(y - x) > 1e-3 * x:
        raise ValueError(f"The simulation needs square pixels, got {y} x {x} mm: resample the scan first.")
    return float(x)


def _assumptions(
    settings: DoseSettings,
    source_noise: SourceNoise,
    thickness_mm: float | None,
    volume: CTVolume,
    continued_mm: float,
    *,
    calibrated: bool,
) -> tuple[str, ...]:
    texts = [
        "The scan carries the noise of its own dose; only what the lower dose adds was added."
        if source_noise == "normal_dose"
        else "The scan is free of noise; all noise of the lower dose was added.",
        "One effective energy (70 keV in water): no beam hardening, no scatter; each slice is its own plane of rays, not a "
        "helix.",
        f"Electronic noise of {settings.electronic_variance:g} counts squared.",
        "Constant tube current within a turn."
        if settings.modulation_alpha == 0
        else f"The tube current follows the attenuation to the power {settings.modulation_alpha:g} within a turn.",
        "No bowtie filter."
        if settings.bowtie_half_width_rad is None
        else f"A bowtie filter of half width {settings.bowtie_half_width_rad:g} rad.",
        "The kernel is linear and the same in the whole image: iterative or denoised reconstructions are not.",
    ]
    if calibrated:
        texts.append("All fine variation of uniform soft tissue is noise, and all slices had the same photons per ray.")
    if continued_mm:
        texts.append(
            f"The image cuts the body off: it was continued as an ellipse, up to {continued_mm:.0f} mm beyond the border."
        )
    if thickness_mm is None:
        texts.append(f"Slices are as thick as their distance, {volume.spacing_mm[0]:g} mm: the header does not say.")
    elif thickness_mm > volume.spacing_mm[0] * 1.001:
        texts.append(f"Slices of {thickness_mm:g} mm every {volume.spacing_mm[0]:g} mm share noise as box profiles do.")
    texts.append(f"Simulator version {SIMULATOR_VERSION}.")
    return tuple(texts)
