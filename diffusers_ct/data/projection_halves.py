"""Pairs without a clean image: two reconstructions from different projections of one scan, with independent noise.

A network that predicts one of them from the other can only learn what they share, which is the object
(Noise2Noise: Lehtinen et al. 2018, arXiv:1803.04189; for projections Noise2Inverse: Hendriksen, Pelt and Batenburg
2020, IEEE Trans. Comput. Imaging 6, 1320, doi:10.1109/TCI.2020.3019647).

The projections must be those that the scanner measured, or be simulated before reconstruction. Projecting a
reconstructed image and splitting that does not do: neighbouring views of an image see the same noise (measured on a
phantom: the noise of the halves is correlated by 0.6), and the network would learn to keep it. For images whose
projections are lost there is `NeighbouringSlices`.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from datasets import Dataset

from ..hounsfield import hu_to_mu_per_mm, mu_per_mm_to_hu
from ..physics import ParallelBeam, Projector, ReconstructionKernel, TabulatedKernel
from .patches import volume_view

Window = ReconstructionKernel | TabulatedKernel


def split_reconstructions(
    sinogram: torch.Tensor, projector: Projector, window: Window, *, parts: int = 2
) -> torch.Tensor:
    """FBP from every `parts`-th view, once for each first view.

    FBP sums over views, so the mean of the parts is exactly the FBP of all views; for noise that is independent from
    view to view each part has sqrt(`parts`) times its SD, and the noise of two parts is uncorrelated. Few views leave
    streaks, which differ from part to part.

    Args:
        sinogram: (..., views, bins), line integrals without unit.
        projector: of a `ParallelBeam` whose views `parts` divides.
        window: reconstruction kernel.
        parts: 2 for odd and even views.

    Returns:
        (parts, ..., height, width), attenuation in 1/mm.

    Raises:
        ValueError: if the parts would differ in their number of views, or rays are not parallel.
    """
    geometry = projector.geometry
    if not isinstance(geometry, ParallelBeam):
        raise ValueError(
            "Views of a fan beam are interpolated from their neighbours: rebin them to parallel rays first."
        )
    if parts < 2 or geometry.views % parts:
        raise ValueError(f"`parts` must be at least 2 and divide the {geometry.views} views, got {parts}.")
    reconstructions = []
    for first in range(parts):
        some = torch.zeros_like(sinogram)
        some[..., first::parts, :] = parts * sinogram[..., first::parts, :]
        reconstructions.append(projector.fbp(some, window))
    return torch.stack(reconstructions)


class SimulatedProjections(Sequence[torch.Tensor]):
    """Noisy projections of the slices of prepared scans: item i is (views, bins) and depends on (seed, i) alone.

    Poisson counts and Gaussian electronic noise for each ray, before any reconstruction. What noise the source image
    itself has stays in all parts alike: the target is then the normal-dose image, not a noise-free one.

    Args:
        dataset: rows of `load_unpaired_ct` (normal dose) or `load_paired_ct`.
        column: "volume" of the former, "full" of the latter.
        projector: of a geometry for the matrix and pixels of the rows.
        photons: for each ray without object, at the dose that is simulated.
        electronic_variance: in counts squared.
        seed: of the noise.

    Raises:
        ValueError: if a scan does not fit the geometry, or a number means nothing.
    """

    def __init__(
        self,
        dataset: Dataset,
        column: str,
        projector: Projector,
        *,
        photons: float,
        electronic_variance: float = 0.0,
        seed: int,
    ) -> None:
        if not photons > 0 or electronic_variance < 0:
            raise ValueError(
                f"`photons` must be positive and `electronic_variance` not negative, got {photons}, {electronic_variance}."
            )
        geometry = projector.geometry
        light = dataset.select_columns(["noise_hu", "spacing_mm"]).with_format(None)[:]
        for spacing in light["spacing_mm"]:
            if max(abs(spacing[1] - geometry.pixel_mm), abs(spacing[2] - geometry.pixel_mm)) > 1e-3 * geometry.pixel_mm:
                raise ValueError(
                    f"The geometry is for pixels of {geometry.pixel_mm:g} mm, a scan has {spacing[1]:g} x {spacing[2]:g} "
                    "mm: select scans of one size."
                )
        matrix = tuple(dataset.features[column].shape[1:])
        if matrix != tuple(geometry.image_shape):
            raise ValueError(f"The geometry is for a matrix of {geometry.image_shape}, the scans have {matrix}.")
        self.dataset = dataset
        self.column = column
        self.projector = projector
        self.photons = photons
        self.electronic_variance = electronic_variance
        self.seed = seed
        self._slices = [(row, z) for row, noise in enumerate(light["noise_hu"]) for z in range(len(noise))]

    def __len__(self) -> int:
        return len(self._slices)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"Slice {index} of {len(self)}.")
        row, z = self._slices[index]
        image_hu = volume_view(self.dataset, row, self.column)[z].astype(np.float32)
        clean = self.projector.forward(torch.from_numpy(hu_to_mu_per_mm(image_hu))).numpy().astype(np.float64)
        rng = np.random.default_rng([self.seed, index])
        counts = rng.poisson(self.photons * np.exp(-clean)).astype(np.float64)
        counts += rng.normal(0.0, np.sqrt(self.electronic_variance), counts.shape)
        return torch.from_numpy(-np.log(np.maximum(counts, 1.0) / self.photons).astype(np.float32))

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[index] for index in range(len(self)))


class ProjectionHalves(torch.utils.data.Dataset):
    """Map-style training pairs from projections: each part of the views is the target once, the rest is the input.

    Items: `{"input_hu", "target_hu": float32 (1, 1, H, W) in HU}`; item i is slice i // parts with part i % parts as
    its target. With more than two parts the input is the mean of the others, whose noise is weaker than the target's
    (the strategy "X:1" of Noise2Inverse).

    Args:
        projections: (views, bins) sinograms: line integrals as a scanner measured them, or `SimulatedProjections`.
        projector: of a `ParallelBeam`.
        window: reconstruction kernel.
        parts: into which the views are dealt.

    Raises:
        ValueError: if there is no sinogram, or the views cannot be dealt out evenly.
    """

    def __init__(
        self, projections: Sequence[torch.Tensor], projector: Projector, window: Window, *, parts: int = 2
    ) -> None:
        if not len(projections):
            raise ValueError("There are no projections.")
        split_reconstructions(torch.zeros(projector.sinogram_shape), projector, window, parts=parts)  # refuses early
        self.projections = projections
        self.projector = projector
        self.window = window
        self.parts = parts

    def __len__(self) -> int:
        return self.parts * len(self.projections)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"Item {index} of {len(self)}.")
        number, target = divmod(index, self.parts)
        sinogram = self.projections[number]
        images_hu = mu_per_mm_to_hu(split_reconstructions(sinogram, self.projector, self.window, parts=self.parts))
        others = [part for part in range(self.parts) if part != target]
        return {"input_hu": images_hu[others].mean(dim=0)[None, None], "target_hu": images_hu[target][None, None]}
