"""What looks like a result and is not one: samplers, grids and checkpoints that are refused or kept right."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    LCMScheduler,
)

from diffusers_ct import CheckpointContract, ScanConditions
from diffusers_ct.pipelines.contract import ContractError
from diffusers_ct.pipelines.sampling import choose_tile
from diffusers_ct.pipelines.tiling import tile_starts
from diffusers_ct.schedulers import make_noise_scheduler
from tests.pipelines.test_pipeline_ct_diffusion import (
    MEAN,
    SPREAD,
    GaussianPosterior,
    in_noise_levels,
    pipeline,
    scan,
    seeded,
    tiny_unet,
)

CONFIG = make_noise_scheduler().config


@pytest.mark.parametrize("scheduler", [HeunDiscreteScheduler, IPNDMScheduler, LCMScheduler])
def test_samplers_that_miss_the_posterior_are_refused(scheduler):
    pipe = pipeline()
    pipe.scheduler = scheduler.from_config(CONFIG)
    with pytest.raises(ValueError, match="is not known to sample the posterior"):
        pipe(scan())


@pytest.mark.parametrize(
    ("scheduler", "setting"),
    [
        (EulerDiscreteScheduler, {"use_karras_sigmas": True}),
        (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
        (DPMSolverMultistepScheduler, {"final_sigmas_type": "sigma_min"}),
    ],
)
def test_settings_that_bias_the_spread_are_refused(scheduler, setting):
    pipe = pipeline()
    pipe.scheduler = scheduler.from_config(CONFIG, **setting)
    with pytest.raises(ValueError, match=next(iter(setting))):
        pipe(scan())


@pytest.mark.parametrize("scheduler", [DPMSolverSinglestepScheduler, EulerAncestralDiscreteScheduler])
def test_the_other_accepted_samplers_reach_the_posterior(scheduler):
    low = scan((2, 64, 64))
    out = pipeline(GaussianPosterior(), scheduler)(
        low, num_inference_steps=50, num_samples=4, generator=seeded(), output_type="np", return_samples=True
    )
    residual = in_noise_levels(out.samples[0], low)
    assert residual.mean() == pytest.approx(MEAN, abs=0.04)
    assert residual.std() == pytest.approx(SPREAD, rel=0.1)


@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler])
def test_twenty_steps_of_a_second_order_solver_are_enough(scheduler):
    low = scan((2, 64, 64))
    out = pipeline(GaussianPosterior(), scheduler)(low, num_inference_steps=20, generator=seeded(), output_type="np")
    assert in_noise_levels(out.volumes, low).std() == pytest.approx(SPREAD, rel=0.03)


def test_ddim_with_noise_is_finite_below_eta_one_which_is_refused():
    pipe, low = pipeline(GaussianPosterior(), DDIMScheduler), scan()
    with pytest.raises(ValueError, match="use DDPMScheduler"):
        pipe(low, num_inference_steps=20, eta=1.0)
    assert np.isfinite(pipe(low, num_inference_steps=20, eta=0.99, generator=seeded()).volumes.hu).all()


def test_tiles_keep_to_the_networks_grid_whatever_the_overlap():
    assert tile_starts(40, 16, 6, 4) == [0, 8, 16, 24]
    with pytest.raises(ValueError, match="negative"):
        tile_starts(40, 16, -1)
    pipe = pipeline(tiny_unet(norm_type="rms"))
    low = scan((2, 32, 192))
    whole = pipe(low, generator=seeded(), output_type="np").volumes
    tiled = pipe(low, generator=seeded(), output_type="np", tile_size=(2, 32, 96), tile_overlap=(0, 0, 49)).volumes
    # On a shifted grid of patches the same tiles differ by as much as the network does.
    assert np.abs(tiled - whole).max() < 0.01 * np.abs(whole - low.hu).max()


def test_default_tiles_of_large_planes_can_overlap():
    unet = tiny_unet()
    for size in ((40, 512, 512), (40, 1024, 1024), (40, 2048, 2048), (4, 1024, 1024), (1, 512, 512)):
        tile = choose_tile(size, None, (6, 64, 64), unet.size_factor)
        assert all(t % f == 0 and t <= n for t, f, n in zip(tile, unet.size_factor, size))
        for n, t, o, f in zip(size, tile, (6, 64, 64), unet.size_factor):
            assert tile_starts(n, t, o, f)
    assert choose_tile((40, 512, 512), None, (6, 64, 64), unet.size_factor) == (16, 512, 512)


def test_a_checkpoint_of_another_target_and_pixels_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match="of target 'image', the pipeline of 'residual'"):
        pipeline(contract=CheckpointContract("x", "y", target="image"))
    pipe = pipeline(contract=CheckpointContract("x", "y", pixel_spacing_mm=(0.5, 1.0)))
    with pytest.raises(ValueError, match=r"pixel_spacing_mm is 0.8 to 3"):
        pipe(scan().hu, spacing_mm=(2.0, 0.8, 3.0))
    assert pipe(scan().hu, spacing_mm=(2.0, 0.8, 3.0), ignore_contract="pixel_spacing_mm").unchecked == []


def test_a_callback_may_return_nothing():
    low, expected = scan(), pipeline()(scan(), generator=seeded(), output_type="np").volumes
    seen = pipeline()(low, generator=seeded(), output_type="np", callback_on_step_end=lambda *_: None)
    assert torch.equal(torch.from_numpy(seen.volumes), torch.from_numpy(expected))


@pytest.mark.parametrize(("trained", "asked"), [("THORAX", "CHEST"), ("CHEST", "THORAX"), ("ABDOMEN", "ABD")])
def test_two_dicom_names_of_one_body_part_are_one(trained, asked):
    contract = CheckpointContract("x", "y", body_parts=(trained,))
    known = {"spacing_mm": (2.0, 0.8, 0.8), "noise_level_hu": None}
    assert contract.check(**known, conditions=ScanConditions(body_part=asked)) == []
    with pytest.raises(ContractError, match=f"is 'PELVIS', accepted are {trained}"):
        contract.check(**known, conditions=ScanConditions(body_part="PELVIS"))
