"""What `CTDiffusionPipeline` returns."""

from dataclasses import dataclass, field
from typing import Any

from diffusers.utils import BaseOutput


@dataclass
class CTDiffusionPipelineOutput(BaseOutput):
    """Restored scans.

    Attributes:
        volumes: the restored scan in HU: one sample, or the mean of several. `CTVolume`, or (depth, height, width)
            float32 as `output_type` says.
        uncertainty_hu: per-voxel standard deviation of the samples in HU, of the same kind as `volumes`; None for one
            sample. It is the spread of the model's posterior, not an error bound.
        samples: (num_samples, depth, height, width) in HU where `return_samples` asks for them.
        unchecked: promises of the checkpoint's contract that the scan does not say enough to check.
    """

    volumes: Any  # CTVolume | torch.Tensor | np.ndarray
    uncertainty_hu: Any = None
    samples: Any = None
    unchecked: list[str] = field(default_factory=list)
