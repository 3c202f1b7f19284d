"""The scanner of a dose simulation, and the scanners of the literature by name."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .geometry import FanBeam, ParallelBeam
from .kernels import KERNELS, ReconstructionKernel, TabulatedKernel


@dataclass(frozen=True)
class DoseSettings:
    """The scanner of the simulation.

    Attributes:
        i0: photons per ray at full dose without object, for slices of `i0_thickness_mm`, or of any thickness if None.
        electronic_variance: of the detector's read-out, in counts squared.
        modulation_alpha: tube-current modulation: the current follows exp(alpha x largest line integral of the view);
            0 is constant, 0.5 the square root of the attenuation.
        bowtie_half_width_rad: half width of the bowtie filter's profile over the fan angle (0.19 body, 0.14 head);
            None for no bowtie.
        kernel: name in `KERNELS`, or a window of one's own.
        i0_thickness_mm: slice thickness that `i0` is stated for; photons scale with the thickness.
        count_floor: counts below it are raised to it before the logarithm (photon starvation).
    """

    i0: float = 5e5
    electronic_variance: float = 10.0
    modulation_alpha: float = 0.0
    bowtie_half_width_rad: float | None = None
    kernel: str | ReconstructionKernel | TabulatedKernel = "soft"
    i0_thickness_mm: float | None = None
    count_floor: float = 1.0

    def __post_init__(self) -> None:
        if not self.i0 > 0 or self.electronic_variance < 0 or not self.count_floor > 0:
            raise ValueError("`i0` and `count_floor` must be positive and `electronic_variance` not negative.")
        if isinstance(self.kernel, str) and self.kernel not in KERNELS:
            raise ValueError(f"Unknown kernel {self.kernel!r}: choose one of {sorted(KERNELS)} or give a window.")

    @property
    def window(self) -> ReconstructionKernel | TabulatedKernel:
        return KERNELS[self.kernel] if isinstance(self.kernel, str) else self.kernel

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, for provenance; `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "DoseSettings":
        kernel = settings.get("kernel", "soft")
        if isinstance(kernel, Mapping):
            kernel = TabulatedKernel(**kernel) if "amplitude" in kernel else ReconstructionKernel(**kernel)
        return cls(**{**settings, "kernel": kernel})


@dataclass(frozen=True)
class DosePreset:
    """A simulation as a publication states it; what it leaves out is ours.

    Attributes:
        settings: of the scanner.
        dose_fractions: doses that were simulated; empty where the paper leaves them to the reader.
        source: publication, and what is ours.
        beam: "parallel", or the fan's detector "arc" or "flat"; None for the package's default rays.
        views, bins: of the beam.
        bin_mm: bin pitch, on the detector.
        source_isocentre_mm, source_detector_mm: of a fan.
    """

    settings: DoseSettings
    dose_fractions: tuple[float, ...]
    source: str
    beam: Literal["parallel", "arc", "flat"] | None = None
    views: int = 0
    bins: int = 0
    bin_mm: float = 0.0
    source_isocentre_mm: float = 0.0
    source_detector_mm: float = 0.0

    def geometry(self, image_shape: tuple[int, int], pixel_mm: float) -> ParallelBeam | FanBeam | None:
        """The publication's rays through an image, for `simulate_low_dose`; None where it states none."""
        if self.beam is None:
            return None
        if self.beam == "parallel":
            return ParallelBeam(image_shape, pixel_mm, self.views, self.bins, self.bin_mm)
        return FanBeam(
            image_shape, pixel_mm, self.beam, self.views, self.bins, self.bin_mm,
            self.source_isocentre_mm, self.source_detector_mm,
        )  # fmt: skip


_MAYO_FAN: dict[str, Any] = {
    "beam": "arc", "views": 1152, "bins": 736, "bin_mm": 1.2858,
    "source_isocentre_mm": 595.0, "source_detector_mm": 1085.6,
}  # fmt: skip
_MAYO_SOURCE = (
    "Moen et al. 2021, 'Low-dose CT image and projection dataset', Med. Phys. 48(2) 902, doi:10.1002/mp.14594: noise "
    "inserted into the measured projections of clinical scans (so `source_noise` is 'normal_dose'), on Siemens SOMATOM "
    "Definition scanners with tube-current modulation. I0 is not published: calibrate it with `calibrate_i0_from_scan`."
)

# By name. CoreDiff, NEED and LoDoPaB-CT add all of the noise of a dose to scans that carry their own: to repeat them,
# `source_noise` is "noise_free".
DOSE_PRESETS: dict[str, DosePreset] = {
    "corediff": DosePreset(
        DoseSettings(i0=1.5e5, electronic_variance=10.0),
        (1 / 2, 1 / 4, 1 / 10, 1 / 20),
        "Gao et al. 2024, CoreDiff, IEEE Trans. Med. Imaging 43(2) 745, doi:10.1109/TMI.2023.3320812; rays of the Mayo "
        "simulation that it uses. Kernel ours.",
        beam="arc", views=1152, bins=672, bin_mm=1.85, source_isocentre_mm=746.02, source_detector_mm=1361.2,
    ),
    "need": DosePreset(
        DoseSettings(i0=2.5e5, electronic_variance=10.0),
        (1 / 2, 1 / 4, 1 / 8, 1 / 10, 1 / 20),
        "Gao et al. 2025, NEED, Med. Image Anal. 105 103710, arXiv:2503.22767. Kernel and electronic noise ours.",
        beam="flat", views=672, bins=672, bin_mm=1.85, source_isocentre_mm=746.02, source_detector_mm=1361.2,
    ),
    "lodopab": DosePreset(
        DoseSettings(i0=4096.0, electronic_variance=0.0, count_floor=0.1),
        (1.0,),
        "Leuschner et al. 2021, LoDoPaB-CT, Sci. Data 8 109, doi:10.1038/s41597-021-00893-z: 513 bins over the diagonal "
        "of a 260 mm image of 362 x 362 pixels, no electronic noise, zero counts raised to 0.1. Kernel ours.",
        beam="parallel", views=1000, bins=513, bin_mm=260.0 * 2**0.5 / 513,
    ),
    "zeng2015": DosePreset(
        DoseSettings(electronic_variance=11.0),
        (),
        "Zeng et al. 2015, IEEE Trans. Nucl. Sci. 62(5) 2226, doi:10.1109/TNS.2015.2467219: the electronic variance, 10 "
        "to 11 counts squared. I0, kernel and rays ours.",
    ),
    "mayo_abdomen": DosePreset(
        DoseSettings(modulation_alpha=0.5, bowtie_half_width_rad=0.19), (0.25,), _MAYO_SOURCE, **_MAYO_FAN
    ),
    "mayo_head": DosePreset(
        DoseSettings(modulation_alpha=0.5, bowtie_half_width_rad=0.14), (0.25,), _MAYO_SOURCE, **_MAYO_FAN
    ),
    "mayo_chest": DosePreset(
        DoseSettings(modulation_alpha=0.5, bowtie_half_width_rad=0.19), (0.1,), _MAYO_SOURCE, **_MAYO_FAN
    ),
}  # fmt: skip
PUBLISHED_SETTINGS: dict[str, DoseSettings] = {name: preset.settings for name, preset in DOSE_PRESETS.items()}
