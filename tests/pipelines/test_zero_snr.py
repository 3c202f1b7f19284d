"""At zero signal-to-noise ratio the network is shown nothing: one step is one result, whatever the seed."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from diffusers_ct import CTDiffusionPipeline, CTVolume, UNet3DCTModel
from diffusers_ct.schedulers import alpha_sigma, make_noise_scheduler, without_pure_noise
from diffusers_ct.training import ResidualDiffusionObjective


@pytest.fixture(scope="module")
def unet() -> UNet3DCTModel:
    torch.manual_seed(0)
    unet = UNet3DCTModel(
        block_out_channels=(8, 16), layers_per_block=1, downsample_strides=(1, 2, 2), refine_channels=4,
        conv_mode="2.5d", norm_num_groups=4,
    )  # fmt: skip
    torch.nn.init.normal_(unet.refine_out.weight, std=0.05)
    return unet


def restored(pipe: CTDiffusionPipeline, steps: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 30, (2, 16, 16)).astype(np.float32)
    scan = CTVolume.from_array(40 + noise, (3.0, 1.0, 1.0))
    generator = torch.Generator().manual_seed(seed)
    return pipe(scan, num_inference_steps=steps, generator=generator, output_type="np").volumes


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler])
def test_one_step_is_the_same_for_every_seed_and_more_steps_are_not(unet, scheduler):
    pipe = CTDiffusionPipeline(unet, scheduler.from_config(make_noise_scheduler().config))
    pipe.set_progress_bar_config(disable=True)
    # schedulers that keep 2^-12 in place of alpha = 0 let that much of the noise through
    np.testing.assert_allclose(restored(pipe, 1, 0), restored(pipe, 1, 1), atol=0.1)
    assert np.abs(restored(pipe, 3, 0) - restored(pipe, 3, 1)).max() > 1.0


def test_training_shows_zeros_at_the_last_timestep_and_the_noisy_residual_elsewhere(unet):
    seen = []

    def model(sample: torch.Tensor, timestep: torch.Tensor, **arguments: torch.Tensor):
        seen.append((sample, timestep))
        return unet(sample, timestep, **arguments)

    batch = {
        "low_hu": torch.randn(16, 1, 1, 8, 8), "full_hu": torch.randn(16, 1, 1, 8, 8), "noise_hu": torch.ones(16, 1),
        "spacing_mm": torch.ones(16, 3),
    }  # fmt: skip
    ResidualDiffusionObjective(model, make_noise_scheduler(), terminal_fraction=0.5)(batch, torch.arange(16))
    ((sample, timestep),) = seen
    last = timestep == 999
    assert 0 < last.sum() < 16
    assert (sample[last, 0] == 0).all() and (sample[~last, 0].std(dim=(1, 2, 3)) > 0.3).all()


def test_only_steps_that_tell_nothing_are_hidden():
    scheduler = make_noise_scheduler()
    alpha, _ = alpha_sigma(scheduler, torch.tensor([0, 500, 998, 999]))
    shown = without_pure_noise(torch.ones(4, 1, 1, 2, 2), alpha)
    assert shown.amax(dim=(1, 2, 3, 4)).tolist() == [1.0, 1.0, 1.0, 0.0]
