"""Rods in a disc of water, reconstructed by the package's own projector: what observers and transfer functions measure.

Signal and noise go through one chain. The rods are projected and reconstructed with the kernel, and the noise is that of
the same rays and kernel; a rod that was drawn without the kernel's blur would show at frequencies where the kernel leaves
no noise, and an observer that decorrelates noise would find it at any dose.

References:
    Samei et al. 2019, AAPM TG-233, Med. Phys. 46(11) e735, section on task-based assessment (low-contrast rods).
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from ..conditions import ScanConditions
from ..hounsfield import AIR_HU, MU_WATER_PER_MM, WATER_HU, hu_to_mu_per_mm
from ..volume import CTVolume
from .dose import image_geometry, projector_of, simulate_low_dose
from .dose_settings import DoseSettings
from .geometry import ParallelBeam
from .projector import Projector

# Photons per ray of the reference rays (736 bins on 500 mm, 720 views) at full dose. With it a Hotelling observer of
# five channels has an AUC of 0.75 to 0.81 on each rod of `LOW_CONTRAST_RODS` at a quarter of the dose, with the soft kernel.
REFERENCE_I0 = 1.25e5
_REFERENCE_BIN_MM, _REFERENCE_VIEWS = 500.0 / 736.0, 720
_FIELD = 1.1  # side of the image over the diameter of the disc, at least
_SIDE_STEP = 32
_PARTS = 4  # of a pixel's side, on which the object is drawn before it is projected


@dataclass(frozen=True)
class Rod:
    """A cylinder along the slices.

    Attributes:
        diameter_mm: of its circle.
        contrast_hu: over water.
    """

    diameter_mm: float
    contrast_hu: float

    @property
    def label(self) -> str:
        return f"{self.diameter_mm:g} mm, {self.contrast_hu:g} HU"


LOW_CONTRAST_RODS = (Rod(3.0, 14.0), Rod(5.0, 7.0), Rod(7.0, 5.0), Rod(10.0, 3.0))
TRANSFER_RODS = (Rod(25.0, 30.0), Rod(25.0, 120.0), Rod(25.0, -100.0))


@dataclass(frozen=True)
class RodPhantom:
    """A disc of water with copies of rods on a ring around its centre.

    Copies of one kind stand evenly around the ring, the kinds take turns, and every centre is moved to the nearest pixel
    (by half a pixel at most in each direction): all copies lie alike on their pixels, so that their regions are
    realisations of one image.

    A rod of 3 mm is two pixels of 1.5 mm, of which an observer sees little more than that it is there: take pixels of 1 mm
    and less where small rods matter.

    Attributes:
        pixel_mm: side of the pixels.
        rods: the kinds.
        copies: of each kind.
        ring_mm: radius of the ring.
        disc_mm: diameter of the disc.
        offset_pixels: (row, column) of the rods' centres from the middle of their pixels.

    Raises:
        ValueError: for sizes that are not positive, rods that touch each other or the disc's edge.
    """

    pixel_mm: float
    rods: tuple[Rod, ...] = LOW_CONTRAST_RODS
    copies: int = 4
    ring_mm: float = 40.0
    disc_mm: float = 200.0
    offset_pixels: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if not (self.pixel_mm > 0 and self.ring_mm > 0 and self.disc_mm > 0) or self.copies < 1:
            raise ValueError("`pixel_mm`, `ring_mm` and `disc_mm` must be positive and `copies` 1 at least.")
        for rod in self.rods:
            if (
                self.ring_mm + rod.diameter_mm / 2 + self.pixel_mm > self.disc_mm / 2
                or self.clearance_mm(rod) <= rod.diameter_mm / 2
            ):
                raise ValueError(
                    f"The rods of {rod.label} touch others or leave the disc: enlarge `ring_mm` or `disc_mm`."
                )

    @classmethod
    def for_transfer(cls, pixel_mm: float) -> "RodPhantom":
        """Three copies of `TRANSFER_RODS`, off the middle of their pixels: then radii in pixels are many and no bin of an
        edge profile stays empty."""
        return cls(pixel_mm, TRANSFER_RODS, copies=3, ring_mm=55.0, offset_pixels=(0.21, 0.37))

    @property
    def side(self) -> int:
        """Of the image in pixels."""
        return _SIDE_STEP * int(np.ceil(_FIELD * self.disc_mm / self.pixel_mm / _SIDE_STEP))

    @property
    def geometry(self) -> ParallelBeam:
        return image_geometry((self.side, self.side), (1.0, self.pixel_mm, self.pixel_mm))

    def places(self, rod: Rod) -> list[tuple[int, int]]:
        """(row, column) of the pixels that hold the centres of a kind's copies."""
        kind, count = self.rods.index(rod), len(self.rods) * self.copies
        angles = 2 * np.pi * (kind + len(self.rods) * np.arange(self.copies)) / count
        middle = (self.side - 1) / 2
        rows = np.rint(middle + self.ring_mm / self.pixel_mm * np.sin(angles)).astype(int)
        columns = np.rint(middle + self.ring_mm / self.pixel_mm * np.cos(angles)).astype(int)
        return list(zip(rows.tolist(), columns.tolist()))

    def clearance_mm(self, rod: Rod) -> float:
        """Distance from a copy's centre to the nearest edge of another rod, over all copies."""
        own = self.places(rod)
        gaps = [
            np.hypot(r - row, c - column) * self.pixel_mm - other.diameter_mm / 2
            for other in self.rods
            for r, c in self.places(other)
            for row, column in own
            if (r, c) != (row, column)
        ]
        return float(min(gaps, default=self.disc_mm / 2 - self.ring_mm))

    def drawn_hu(self, *, with_rods: bool, parts: int = 1) -> np.ndarray:
        """The object, (parts x side, parts x side) in HU: a pixel at an edge holds its share of both sides."""
        step = self.pixel_mm / parts
        axis = (np.arange(self.side * parts) - (self.side * parts - 1) / 2) * step
        hu = np.full((len(axis), len(axis)), AIR_HU, np.float32)

        def fill(row_mm: float, column_mm: float, diameter_mm: float, inside_hu: float) -> None:
            distance = np.hypot(axis[:, None] - row_mm, axis[None, :] - column_mm)
            hu[...] += np.clip((diameter_mm / 2 - distance) / step + 0.5, 0.0, 1.0).astype(np.float32) * inside_hu

        fill(0.0, 0.0, self.disc_mm, WATER_HU - AIR_HU)
        middle = (self.side - 1) / 2
        for rod in self.rods if with_rods else ():
            for row, column in self.places(rod):
                place = [(k + d - middle) * self.pixel_mm for k, d in zip((row, column), self.offset_pixels)]
                fill(place[0], place[1], rod.diameter_mm, rod.contrast_hu)
        return hu

    def settings(self, kernel: str) -> DoseSettings:
        """The scanner at full dose: as many photons a mm of detector as `REFERENCE_I0` stands for, spread over the views.

        So the noise at a frequency does not depend on the pixels.
        """
        rays = self.geometry
        i0 = REFERENCE_I0 * (rays.bin_mm / _REFERENCE_BIN_MM) * (_REFERENCE_VIEWS / rays.views)
        return DoseSettings(i0=i0, kernel=kernel)

    def noise_free_hu(self, kernel: str, *, with_rods: bool) -> np.ndarray:
        """What the scanner would show without noise, (side, side) in HU: the mean of all its images."""
        return _reconstruction(self, kernel, with_rods).copy()

    def scan(
        self, *, dose_fraction: float, slices: int, seed: int, with_rods: bool, kernel: str, slice_mm: float
    ) -> CTVolume:
        """A scan whose slices are as many independent realisations of one image.

        Args:
            dose_fraction: of the dose of `settings`.
            slices: number.
            seed: of the noise.
            with_rods: or water alone.
            kernel: name in `KERNELS`.
            slice_mm: thickness and distance of the slices, for the header: it does not change the noise.
        """
        settings = self.settings(kernel)
        drawn = np.repeat(self.drawn_hu(with_rods=with_rods)[None], slices, axis=0)
        spacing_mm = (slice_mm, self.pixel_mm, self.pixel_mm)
        noisy = simulate_low_dose(
            drawn,
            spacing_mm=spacing_mm,
            dose_fraction=dose_fraction,
            seed=seed,
            source_noise="noise_free",
            settings=settings,
            geometry=self.geometry,
        )
        hu = self.noise_free_hu(kernel, with_rods=with_rods) + (noisy - drawn)
        conditions = ScanConditions(dose_fraction=dose_fraction, kvp=120.0, slice_thickness_mm=slice_mm)
        return replace(CTVolume.from_array(hu, spacing_mm, conditions), synthetic=True)


def scan_seed(seed: int, *parts: int) -> int:
    """A seed of its own for each scan of a study, from the study's seed and the scan's numbers."""
    return int(np.random.default_rng([seed, *parts]).integers(2**31))


@lru_cache(maxsize=16)
def _reconstruction(phantom: RodPhantom, kernel: str, with_rods: bool) -> np.ndarray:
    """Projections of the finely drawn object, filtered and back-projected onto the phantom's pixels."""
    rays = phantom.geometry
    fine = ParallelBeam(
        (phantom.side * _PARTS, phantom.side * _PARTS), phantom.pixel_mm / _PARTS, rays.views, rays.bins, rays.bin_mm
    )
    drawn = torch.from_numpy(hu_to_mu_per_mm(phantom.drawn_hu(with_rods=with_rods, parts=_PARTS)))
    sinogram = Projector(fine, eps=1e-6, batch=1, engine="finufft", threads=1).forward(drawn)
    mu = projector_of(rays, "finufft").fbp(sinogram, phantom.settings(kernel).window).numpy()
    return mu * np.float32(1000.0 / MU_WATER_PER_MM) + np.float32(AIR_HU)
