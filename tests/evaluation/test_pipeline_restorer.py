"""A pipeline as methods: what noise decides and what it does not, and that nothing is left changed."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusers_ct import CTDiffusionPipeline, CTVolume, UNet3DCTModel
from diffusers_ct.evaluation import PipelineRestorer
from diffusers_ct.evaluation.scan_seed import seed_of_scan
from diffusers_ct.schedulers import make_noise_scheduler


@pytest.fixture(scope="module")
def pipe() -> CTDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNet3DCTModel(
        block_out_channels=(8, 16), layers_per_block=1, downsample_strides=(1, 2, 2), refine_channels=4,
        conv_mode="2.5d", norm_num_groups=4,
    )  # fmt: skip
    torch.nn.init.normal_(unet.refine_out.weight, std=0.05)
    return CTDiffusionPipeline(unet, DDIMScheduler.from_config(make_noise_scheduler().config))


@pytest.fixture(scope="module")
def scan() -> CTVolume:
    noise = np.random.default_rng(0).normal(0, 30, (2, 16, 16)).astype(np.float32)
    return CTVolume.from_array(40 + noise, (3.0, 1.0, 1.0))


def test_the_estimate_is_the_pipelines_and_samples_follow_their_seed(pipe, scan):
    a, b = (PipelineRestorer(pipe, sampling_steps=3, seed=seed) for seed in (0, 1))
    generator = [torch.Generator().manual_seed(seed_of_scan(scan, 0, 0))]
    np.testing.assert_array_equal(a.one_step(scan), pipe(scan, generator=generator, output_type="np").volumes)
    assert not np.array_equal(a.one_sample(scan), b.one_sample(scan))
    np.testing.assert_array_equal(a.one_sample(scan), a.one_sample(scan))


def test_a_sample_does_not_depend_on_how_many_are_drawn(pipe, scan):
    restorer = PipelineRestorer(pipe, sampling_steps=3, seed=5)
    three = restorer.samples(scan, 3)
    assert three.shape == (3, *scan.shape)
    np.testing.assert_array_equal(three[0], restorer.one_sample(scan))
    # no sample of a run is one of the run with the next seed
    other = PipelineRestorer(pipe, sampling_steps=3, seed=6).samples(scan, 2)
    assert not any(np.array_equal(a, b) for a in three for b in other)


def test_scans_do_not_share_noise(pipe, scan):
    restorer = PipelineRestorer(pipe, sampling_steps=3, seed=0)
    again = CTVolume.from_array(scan.hu + 1.0, scan.spacing_mm)
    seeds = {seed_of_scan(volume, 0, k) for volume in (scan, again) for k in (0, 1)}
    assert len(seeds) == 4 and seed_of_scan(scan, 0, 0) == seed_of_scan(scan, 0, 0)
    assert np.abs(restorer.one_sample(again) - 1.0 - restorer.one_sample(scan)).max() > 1.0


def test_the_pipeline_keeps_its_scheduler(pipe, scan):
    scheduler = pipe.scheduler
    PipelineRestorer(pipe, sampling_steps=2, seed=0).samples(scan, 1)
    assert pipe.scheduler is scheduler
    broken = CTVolume.from_array(np.full((1, 4, 4), np.nan, np.float32), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError):
        PipelineRestorer(pipe, sampling_steps=2, seed=0).samples(broken, 1)
    assert pipe.scheduler is scheduler


def test_what_cannot_be_meant_is_refused(pipe):
    with pytest.raises(ValueError, match="2 steps"):
        PipelineRestorer(pipe, sampling_steps=1, seed=0)
