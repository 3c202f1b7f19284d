"""A restoration pipeline as the methods that a benchmark compares: estimate, one sample, several samples."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DDIMScheduler, SchedulerMixin, UniPCMultistepScheduler

from ..pipelines import CTDiffusionPipeline, CTDiffusionPipelineOutput
from ..schedulers import CTConsistencyScheduler, check_distilled_steps
from ..volume import CTVolume
from .scan_seed import seed_of_scan


class PipelineRestorer:
    """Restores scans with one pipeline; one sample is one sample, never the best of several.

    The noise of a sample follows the seed, the scan's voxels and the sample's number: scans do not share it.

    Args:
        pipe: of a restoration checkpoint. Its scheduler makes the one-step estimate; samples are drawn by UniPC made from
            the same configuration, whose few steps keep the spread (4 % too small at 10 steps, DDIM's 15 %). A
            distilled checkpoint's scheduler draws the samples, and DDIM makes the estimate.
        sampling_steps: network evaluations of a sample; 2 or more but for a distilled checkpoint.
        seed: of the noise.
        ignore_contract: promises of the checkpoint that are not checked: a test set may lie outside them on purpose.
    """

    def __init__(
        self, pipe: CTDiffusionPipeline, *, sampling_steps: int, seed: int, ignore_contract: Sequence[str] = ()
    ) -> None:
        distilled = isinstance(pipe.scheduler, CTConsistencyScheduler)
        if distilled:
            check_distilled_steps(pipe.scheduler.config.distilled_timesteps, sampling_steps)
        elif sampling_steps < 2:
            raise ValueError(f"Samples need 2 steps or more, got `sampling_steps` = {sampling_steps}.")
        if pipe.config.target != "residual":
            raise ValueError("This checkpoint synthesises: only one that restores can be judged on pairs.")
        pipe.set_progress_bar_config(disable=True)
        self.pipe = pipe
        config = pipe.scheduler.config
        self._estimator = DDIMScheduler.from_config(config) if distilled else pipe.scheduler
        self._sampler = pipe.scheduler if distilled else UniPCMultistepScheduler.from_config(config)
        self.sampling_steps = sampling_steps
        self.seed = seed
        self.ignore_contract = tuple(ignore_contract)

    def one_step(self, volume: CTVolume) -> np.ndarray:
        """The estimate of least mean square error, (depth, height, width) in HU."""
        return self._call(volume, self._estimator, steps=1, samples=1).volumes

    def one_sample(self, volume: CTVolume) -> np.ndarray:
        """One draw from the posterior, (depth, height, width) in HU."""
        return self.samples(volume, 1)[0]

    def samples(self, volume: CTVolume, count: int) -> np.ndarray:
        """Draws from the posterior, (count, depth, height, width) in HU; the first is `one_sample`."""
        return self._call(volume, self._sampler, steps=self.sampling_steps, samples=count).samples

    def _call(
        self, volume: CTVolume, scheduler: SchedulerMixin, *, steps: int, samples: int
    ) -> CTDiffusionPipelineOutput:
        # A generator for each sample: the noise of one does not depend on how many there are.
        seeds = [torch.Generator().manual_seed(seed_of_scan(volume, self.seed, k)) for k in range(samples)]
        own = self.pipe.scheduler
        self.pipe.scheduler = scheduler
        try:
            return self.pipe(
                volume,
                num_inference_steps=steps,
                num_samples=samples,
                generator=seeds,
                output_type="np",
                return_samples=scheduler is self._sampler,
                ignore_contract=self.ignore_contract,
            )
        finally:
            self.pipe.scheduler = own
