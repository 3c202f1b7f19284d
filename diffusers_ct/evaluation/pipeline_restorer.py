"""A restoration pipeline as the methods that a benchmark compares: estimate, one sample, several samples."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler

from ..pipelines import CTDiffusionPipeline, CTDiffusionPipelineOutput
from ..volume import CTVolume
from .scan_seed import seed_of_scan


class PipelineRestorer:
    """Restores scans with one pipeline; one sample is one sample, never the best of several.

    The noise of a sample follows the seed, the scan's voxels and the sample's number: scans do not share it.

    Args:
        pipe: of a restoration checkpoint. Its scheduler makes the one-step estimate; samples are drawn by UniPC made from
            the same configuration, whose few steps keep the spread (4 % too small at 10 steps, DDIM's 15 %).
        sampling_steps: network evaluations of a sample.
        seed: of the noise.
        ignore_contract: promises of the checkpoint that are not checked: a test set may lie outside them on purpose.
    """

    def __init__(
        self, pipe: CTDiffusionPipeline, *, sampling_steps: int, seed: int, ignore_contract: Sequence[str] = ()
    ) -> None:
        if sampling_steps < 2:
            raise ValueError(f"Samples need 2 steps or more, got `sampling_steps` = {sampling_steps}.")
        if pipe.config.target != "residual":
            raise ValueError("This checkpoint synthesises: only one that restores can be judged on pairs.")
        pipe.set_progress_bar_config(disable=True)
        self.pipe = pipe
        self.sampling_steps = sampling_steps
        self.seed = seed
        self.ignore_contract = tuple(ignore_contract)

    def one_step(self, volume: CTVolume) -> np.ndarray:
        """The estimate of least mean square error, (depth, height, width) in HU."""
        return self._call(volume, steps=1, samples=1).volumes

    def one_sample(self, volume: CTVolume) -> np.ndarray:
        """One draw from the posterior, (depth, height, width) in HU."""
        return self.samples(volume, 1)[0]

    def samples(self, volume: CTVolume, count: int) -> np.ndarray:
        """Draws from the posterior, (count, depth, height, width) in HU; the first is `one_sample`."""
        estimator = self.pipe.scheduler
        self.pipe.scheduler = UniPCMultistepScheduler.from_config(estimator.config)
        try:
            output = self._call(volume, steps=self.sampling_steps, samples=count)
        finally:
            self.pipe.scheduler = estimator
        return output.samples

    def _call(self, volume: CTVolume, *, steps: int, samples: int) -> CTDiffusionPipelineOutput:
        # A generator for each sample: the noise of one does not depend on how many there are.
        seeds = [torch.Generator().manual_seed(seed_of_scan(volume, self.seed, k)) for k in range(samples)]
        return self.pipe(
            volume,
            num_inference_steps=steps,
            num_samples=samples,
            generator=seeds,
            output_type="np",
            return_samples=steps > 1,
            ignore_contract=self.ignore_contract,
        )
