"""A restoration pipeline as the samplers that the study of few steps compares."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, SchedulerMixin, UniPCMultistepScheduler

from ..pipelines import CTDiffusionPipeline
from ..schedulers import CTConsistencyScheduler
from ..volume import CTVolume
from .scan_seed import seed_of_scan
from .studies.few_steps import FewStepSampler

FEW_STEPS = (1, 2, 4, 10, 25)
SAMPLERS = {"DDIM": DDIMScheduler, "DPM-Solver++": DPMSolverMultistepScheduler, "UniPC": UniPCMultistepScheduler}
DISTILLED = "distilled"


def few_step_samplers(
    pipe: CTDiffusionPipeline, *, seed: int, steps: Sequence[int] = FEW_STEPS, ignore_contract: Sequence[str] = ()
) -> list[FewStepSampler]:
    """DDIM, DPM-Solver++ and UniPC with each number of steps; of a distilled pipeline its own steps alone.

    A sample's noise follows seed, scan and number: the samplers start from the same.

    Args:
        pipe: of a restoration checkpoint.
        seed: of the noise.
        steps: of the three.
        ignore_contract: promises of the checkpoint that are not checked.
    """
    pipe.set_progress_bar_config(disable=True)
    config = pipe.scheduler.config
    if isinstance(pipe.scheduler, CTConsistencyScheduler):
        asked = [(DISTILLED, pipe.scheduler, n + 1) for n in range(len(config.distilled_timesteps))]
    else:
        asked = [(name, kind.from_config(config), n) for n in steps for name, kind in SAMPLERS.items()]

    def sampler(method: str, scheduler: SchedulerMixin, n: int) -> FewStepSampler:
        def draw(volume: CTVolume, number: int) -> np.ndarray:
            own = pipe.scheduler
            pipe.scheduler = scheduler
            try:
                generator = [torch.Generator().manual_seed(seed_of_scan(volume, seed, number))]
                return pipe(
                    volume,
                    num_inference_steps=n,
                    generator=generator,
                    output_type="np",
                    ignore_contract=ignore_contract,
                ).volumes
            finally:
                pipe.scheduler = own

        return FewStepSampler(method, n, draw)

    return [sampler(*each) for each in asked]
