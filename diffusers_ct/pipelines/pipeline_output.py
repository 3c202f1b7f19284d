"""What `CTDiffusionPipeline` returns."""

from dataclasses import dataclass, field
from typing import Any

from diffusers.utils import BaseOutput


@dataclass
class CTDiffusionPipelineOutput(BaseOutput):
    """Restored or synthesised scans.

    Attributes:
        volumes: in HU, `CTVolume` or (depth, height, width) float32 as `output_type` says. Restoration: one scan, the
            single sample or the mean of several. Synthesis: a list, one volume a sample; a mean would be no scan.
        uncertainty_hu: per-voxel standard deviation of the samples in HU, of the same kind as `volumes`; None for one
            sample. It is the spread of the model's posterior, not an error bound.
        samples: (num_samples, depth, height, width) in HU where `return_samples` asks for them.
        unchecked: promises of the checkpoint's contract that the scan does not say enough to check.
        left_out: sentences on what the scan's header says and the checkpoint does not know: it was taken as unknown.
        provenance: of synthesis, one dict a volume: seed, conditions, guidance, steps: with the checkpoint, the shape
            and spacing and the images that are named, what makes it again, by
            `generator=[torch.Generator().manual_seed(seed)]` on the device that it was on. The seed is None for a
            generator that had been drawn from before. Functions given as `classifiers` are not in it.
    """

    volumes: Any  # CTVolume | torch.Tensor | np.ndarray
    uncertainty_hu: Any = None
    samples: Any = None
    unchecked: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    provenance: list[dict[str, Any]] = field(default_factory=list)
