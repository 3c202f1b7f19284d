"""A distilled checkpoint in the pipeline: one and two steps draw from a Gaussian posterior; what would not, is refused."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from diffusers.configuration_utils import register_to_config

from diffusers_ct import CTConsistencyScheduler, CTDiffusionPipeline, CTVolume, UNet3DCTModel
from diffusers_ct.evaluation import PipelineRestorer
from diffusers_ct.pipelines import RestorationStream
from diffusers_ct.pipelines.one_step_export import OneStepRestoration, one_step_inputs
from diffusers_ct.schedulers import alpha_sigma, make_noise_scheduler
from diffusers_ct.volume import ScanSlices
from tests.pipelines.test_pipeline_ct_diffusion import (
    MEAN,
    SPREAD,
    GaussianPosterior,
    in_noise_levels,
    scan,
    seeded,
    tiny_unet,
)

DISTILLED = {"distilled_timesteps": (998, 499)}


class DistilledPosterior(GaussianPosterior):
    """The exact student: at its timesteps, v of the trajectory's end; at the last one, of the mean; elsewhere nonsense."""

    @register_to_config
    def __init__(self, in_channels: int = 6) -> None:
        super().__init__()

    def forward(self, sample, timestep, pooled=None, return_dict=True):
        x_t, timestep = sample[:, :1], int(torch.as_tensor(timestep).reshape(-1)[0])
        alpha, sigma = alpha_sigma(self.process, torch.tensor([timestep]))
        if timestep == 999:
            assert not x_t.any()
            return (torch.full_like(x_t, -MEAN),)
        if timestep not in DISTILLED["distilled_timesteps"]:
            return (torch.full_like(x_t, torch.nan),)
        end = MEAN + SPREAD * (x_t - alpha * MEAN) / (alpha**2 * SPREAD**2 + sigma**2).sqrt()
        return ((alpha * x_t - end) / sigma,)


def distilled(unet=None) -> CTDiffusionPipeline:
    config = make_noise_scheduler().config
    pipe = CTDiffusionPipeline(unet or DistilledPosterior(), CTConsistencyScheduler.from_config(config, **DISTILLED))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("steps", [None, 1, 2])
def test_one_and_two_steps_draw_from_the_posterior(steps):
    pipe, low = distilled(), scan((2, 64, 64))
    out = pipe(low, num_inference_steps=steps, num_samples=2, generator=seeded(), return_samples=True)
    one, two = (in_noise_levels(sample, low) for sample in out.samples)
    assert one.mean() == pytest.approx(MEAN, abs=0.02) and one.std() == pytest.approx(SPREAD, rel=0.02)
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] == pytest.approx(0.0, abs=0.05)


def test_the_stream_draws_from_the_same_posterior():
    low = scan((8, 32, 32))
    for steps in (1, 2):
        stream = RestorationStream(
            distilled(), ScanSlices.of(low), num_inference_steps=steps, tile_size=(4, 32, 32), tile_overlap=(2, 0, 0)
        )
        residual = in_noise_levels(np.concatenate([slab.hu for slab in stream]), low)
        assert residual.mean() == pytest.approx(MEAN, abs=0.03) and residual.std() == pytest.approx(SPREAD, rel=0.04)


def test_the_estimate_is_one_step_of_ddim():
    pipe, low = distilled(), scan()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    np.testing.assert_allclose(in_noise_levels(pipe(low).volumes.hu, low), MEAN, atol=1e-4)


@pytest.mark.parametrize("sampler", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_more_steps_of_another_sampler_are_refused_also_after_a_second_change(sampler):
    pipe = distilled()
    pipe.scheduler = sampler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match=f"was distilled: {sampler.__name__} gives its estimate"):
        pipe(scan(), num_inference_steps=10)
    with pytest.raises(ValueError, match="was distilled"):
        RestorationStream(pipe, ScanSlices.of(scan()), num_inference_steps=2)
    pipe.scheduler = CTConsistencyScheduler.from_config(pipe.scheduler.config)  # and back
    assert np.isfinite(pipe(scan(), num_inference_steps=2).volumes.hu).all()


def test_more_steps_than_distilled_guidance_and_eta_are_refused():
    pipe = distilled()
    with pytest.raises(ValueError, match="distilled for 1 to 2 steps"):
        pipe(scan(), num_inference_steps=3)
    with pytest.raises(ValueError, match="`eta` belongs to DDIM"):
        pipe(scan(), eta=0.5)
    with pytest.raises(ValueError, match="nothing is left to guide"):
        pipe(scan(), num_inference_steps=2, classifiers=[(lambda x, t: x.flatten(1).sum(dim=1), 1.0)])
    with pytest.raises(ValueError, match="any other is sampled by DDIMScheduler"):
        CTConsistencyScheduler.from_config(make_noise_scheduler().config)


def test_a_saved_one_loads_and_samples_alike(tmp_path):
    pipe, low = distilled(tiny_unet()), scan()
    pipe.save_pretrained(tmp_path)
    loaded = CTDiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.scheduler, CTConsistencyScheduler) and isinstance(loaded.unet, UNet3DCTModel)
    first, second = (
        p(low, num_inference_steps=2, generator=seeded(), output_type="np").volumes for p in (pipe, loaded)
    )
    np.testing.assert_allclose(first, second, atol=1e-3)


def test_the_exported_step_is_the_sample():
    pipe, low = distilled(tiny_unet()), scan((2, 16, 16))
    with torch.no_grad():
        graph = OneStepRestoration(pipe)(**one_step_inputs(pipe, low, generator=seeded()))
    np.testing.assert_allclose(graph[0, 0].numpy(), pipe(low, generator=seeded(), output_type="np").volumes, atol=1e-3)
    other = pipe(low, generator=seeded(1), output_type="np").volumes
    assert np.abs(graph[0, 0].numpy() - other).max() > 0.5


def test_a_restorer_takes_estimate_and_samples_each_by_its_own_sampler():
    pipe, low = distilled(), scan((2, 64, 64))
    own = pipe.scheduler
    for steps in (1, 2):
        restorer = PipelineRestorer(pipe, sampling_steps=steps, seed=0)
        np.testing.assert_allclose(in_noise_levels(restorer.one_step(low), low), MEAN, atol=1e-4)
        samples = restorer.samples(low, 2)
        assert in_noise_levels(samples[0], low).std() == pytest.approx(SPREAD, rel=0.02)
        assert not np.array_equal(*samples) and pipe.scheduler is own
    with pytest.raises(ValueError, match="distilled for 1 to 2 steps"):
        PipelineRestorer(pipe, sampling_steps=10, seed=0)


def test_one_slice_in_one_pass():
    """The network is called once, for a scan of one slice."""
    calls = []
    pipe = distilled()
    forward = pipe.unet.forward
    pipe.unet.forward = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    low = CTVolume.from_array(scan((1, 40, 40)).hu, (2.0, 0.8, 0.8))
    assert pipe(low, generator=seeded()).volumes.shape == (1, 40, 40) and len(calls) == 1
