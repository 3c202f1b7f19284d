"""With which sampler few steps are drawn, and why: the spread of a Gaussian posterior that each keeps."""

import numpy as np
import pytest
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from diffusers_ct import CTAdaptiveDDIMScheduler, CTConsistencyScheduler, CTDiffusionPipeline
from diffusers_ct.evaluation.few_step_samplers import few_step_samplers
from diffusers_ct.pipelines.samplers import few_step_scheduler
from diffusers_ct.schedulers import make_noise_scheduler
from tests.pipelines import test_pipeline_ct_diffusion as gaussian

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # of diffusers' own NumPy
CONFIG = make_noise_scheduler().config


@pytest.mark.parametrize(("spread", "unipc", "ddim"), [(0.3, 0.87, 0.79), (0.6, 0.98, 0.87), (1.0, 1.0, 0.88)])
def test_ten_steps_of_unipc_keep_the_spread_that_ddim_loses(monkeypatch, spread, unipc, ddim):
    monkeypatch.setattr(gaussian, "SPREAD", spread)
    pipe = CTDiffusionPipeline(gaussian.GaussianPosterior(), DDIMScheduler.from_config(CONFIG))
    low = gaussian.scan((2, 64, 64))
    kept = {
        s.method: float(gaussian.in_noise_levels(s.draw(low, 0), low).std() / spread)
        for s in few_step_samplers(pipe, seed=0, steps=(10,))
    }
    assert kept["UniPC"] == pytest.approx(unipc, abs=0.02) and kept["DDIM"] == pytest.approx(ddim, abs=0.02)
    assert kept["DDIM"] < kept["DPM-Solver++"] <= kept["UniPC"] * 1.01


def test_only_plain_ddim_is_replaced():
    assert isinstance(few_step_scheduler(DDIMScheduler.from_config(CONFIG)), UniPCMultistepScheduler)
    kept = [
        DPMSolverMultistepScheduler.from_config(CONFIG),
        CTAdaptiveDDIMScheduler.from_config(CONFIG),
        CTConsistencyScheduler.from_config(CONFIG, distilled_timesteps=(998,)),
        DDIMScheduler.from_config({**CONFIG, "distilled_timesteps": [998]}),
    ]
    assert all(few_step_scheduler(scheduler) is scheduler for scheduler in kept)
    np.testing.assert_array_equal(few_step_scheduler(DDIMScheduler.from_config(CONFIG)).alphas_cumprod[:-1],
                                  DDIMScheduler.from_config(CONFIG).alphas_cumprod[:-1])  # fmt: skip
