"""Scan geometries: which rays are measured. Lengths in mm, angles in radians.

The image plane has x along columns and y along rows, the origin at the image centre; a ray of the parallel geometry
is the line x cos(theta) + y sin(theta) = s.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class ParallelBeam:
    """Parallel rays over half a turn.

    Attributes:
        image_shape: (height, width) in pixels.
        pixel_mm: side of the square pixels.
        views: angles, evenly over [0, pi).
        bins: detector bins, centred on the axis.
        bin_mm: width and pitch of the bins at the axis.
    """

    image_shape: tuple[int, int]
    pixel_mm: float
    views: int = 720
    bins: int = 736
    bin_mm: float = 500.0 / 736.0

    def __post_init__(self) -> None:
        _check_positive(self, "pixel_mm", "views", "bins", "bin_mm")
        if len(self.image_shape) != 2 or min(self.image_shape) < 1:
            raise ValueError(f"`image_shape` must be (height, width), got {self.image_shape}.")

    @classmethod
    def for_image(cls, image_shape: tuple[int, int], pixel_mm: float) -> "ParallelBeam":
        """A detector that covers the image's circle of 1.25 x the longer side, as 500 mm covers a 400 mm image.

        The bins are never finer than 0.87 pixels nor than the reference 0.68 mm, and there are about as many views as
        bins, so that coarse images cost less. Photons are counted per ray: a wider bin of equal `i0` is a lower dose.
        """
        span_mm = 1.25 * max(image_shape) * pixel_mm
        bin_mm = max(0.87 * pixel_mm, 500.0 / 736.0)
        bins = 2 * int(np.ceil(span_mm / bin_mm / 2))
        views = max(180, 2 * round(bins * 720 / 736 / 2))
        return cls(image_shape, pixel_mm, views, bins, bin_mm)

    @property
    def angles(self) -> np.ndarray:
        return np.arange(self.views) * (np.pi / self.views)

    @property
    def positions_mm(self) -> np.ndarray:
        """Bin centres s."""
        return (np.arange(self.bins) - (self.bins - 1) / 2) * self.bin_mm

    @property
    def field_mm(self) -> float:
        """Diameter of the circle that all views see."""
        return self.bins * self.bin_mm


@dataclass(frozen=True)
class FanBeam:
    """Rays from a point source over a full turn, to an arc centred on the source or to a flat detector.

    Attributes:
        image_shape: (height, width) in pixels.
        pixel_mm: side of the square pixels.
        detector: "arc" (equal angles) or "flat" (equal lengths).
        views: source angles, evenly over [0, 2 pi).
        bins: detector bins.
        pitch_mm: distance of bins on the detector.
        source_isocentre_mm: radius of the source's circle.
        source_detector_mm: distance of source and detector.
    """

    image_shape: tuple[int, int]
    pixel_mm: float
    detector: Literal["arc", "flat"]
    views: int = 1152
    bins: int = 736
    pitch_mm: float = 1.2858
    source_isocentre_mm: float = 595.0
    source_detector_mm: float = 1085.6

    def __post_init__(self) -> None:
        _check_positive(self, "pixel_mm", "views", "bins", "pitch_mm", "source_isocentre_mm", "source_detector_mm")
        if self.detector not in ("arc", "flat"):
            raise ValueError(f"`detector` must be 'arc' or 'flat', got {self.detector!r}.")
        if self.source_detector_mm <= self.source_isocentre_mm:
            raise ValueError("`source_detector_mm` must be larger than `source_isocentre_mm`.")

    @property
    def angles(self) -> np.ndarray:
        """Source angles beta."""
        return np.arange(self.views) * (2 * np.pi / self.views)

    @property
    def fan_angles(self) -> np.ndarray:
        """Angle gamma of each bin's ray from the central ray."""
        offset_mm = (np.arange(self.bins) - (self.bins - 1) / 2) * self.pitch_mm
        if self.detector == "arc":
            return offset_mm / self.source_detector_mm
        return np.arctan(offset_mm / self.source_detector_mm)

    @property
    def field_mm(self) -> float:
        """Diameter of the circle that all views see."""
        half_mm = self.bins / 2 * self.pitch_mm / self.source_detector_mm
        return 2 * self.source_isocentre_mm * float(np.sin(half_mm if self.detector == "arc" else np.arctan(half_mm)))

    def parallel_coordinates(self) -> tuple[np.ndarray, np.ndarray]:
        """(theta, s) of every ray, each (views, bins): theta = beta + gamma, s = R sin(gamma) (Kak and Slaney, 3.4)."""
        theta = self.angles[:, None] + self.fan_angles[None, :]
        s = np.broadcast_to(self.source_isocentre_mm * np.sin(self.fan_angles), theta.shape)
        return theta, s


def _check_positive(geometry: object, *names: str) -> None:
    for name in names:
        value = getattr(geometry, name)
        if not value > 0:
            raise ValueError(f"`{name}` must be positive, got {value}.")
