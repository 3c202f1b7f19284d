"""The scanner of a dose simulation, as the literature states it, and drawn at random for training.

References:
    Zeng et al. 2015, "A simple low-dose X-ray CT simulation from high-dose scan", IEEE Trans. Nucl. Sci. 62(5), 2226.
    Gao et al. 2024, "CoreDiff: contextual error-modulated generalized diffusion model for low-dose CT denoising and
        generalization", IEEE Trans. Med. Imaging 43(2), 745.
    Gao et al. 2025, "Noise-inspired diffusion model for generalizable low-dose CT reconstruction" (NEED), Med. Image
        Anal. 105.
    Leuschner et al. 2021, "LoDoPaB-CT, a benchmark dataset for low-dose computed tomography reconstruction", Sci.
        Data 8, 109.
    McCollough et al. 2020 (Moen et al. 2021), "Low-dose CT image and projection dataset", Med. Phys. 48(2), 902.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

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


# I0 per ray at full dose as the papers state it; what they leave out is ours.
PUBLISHED_SETTINGS: dict[str, DoseSettings] = {
    "corediff": DoseSettings(i0=1.5e5),
    "need": DoseSettings(i0=2.5e5),
    "lodopab": DoseSettings(i0=4096.0, electronic_variance=0.0, count_floor=0.1),
    "zeng2015": DoseSettings(electronic_variance=11.0),
}
