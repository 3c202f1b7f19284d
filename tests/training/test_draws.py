"""All randomness of an item comes from its seed: the numbers are pinned, spread as they should, and independent."""

import pytest
import torch

from diffusers_ct.training.draws import draw_timesteps_and_noise, uniform

SEEDS = torch.arange(4000)
RECORDED_TIMESTEPS = [239, 139]
RECORDED_NOISE = [-0.2905093, -1.0703703, 0.1163136, 0.7213022]
RECORDED_UNIFORM = [[0.4033165, 0.502512], [0.323253, 0.3595149]]


def test_draws_belong_to_the_item_and_its_share_at_the_end_is_kept():
    like = torch.zeros(400, 1, 1, 2, 2)
    timesteps, noise = draw_timesteps_and_noise(SEEDS[:400], like, 1000, terminal_fraction=0.25)
    again, noise_again = draw_timesteps_and_noise(SEEDS[:400].flip(0), like, 1000, terminal_fraction=0.25)
    assert torch.equal(timesteps, again.flip(0)) and torch.equal(noise, noise_again.flip(0))
    assert 0.18 < (timesteps == 999).float().mean() < 0.33
    others = timesteps[timesteps < 999].float()
    assert others.min() < 30 and others.max() > 960 and abs(others.mean() - 499.5) < 50
    assert abs(noise.mean()) < 0.1 and noise.std() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("terminal_fraction", [0.0, 0.25, 1.0])
def test_numbers_are_those_of_every_run_before(terminal_fraction):
    # a checkpoint of an earlier version goes on with the same draws: share at the end, timestep, noise, in this order
    seeds = torch.tensor([0, 3, 2**40 + 5, 2**62 - 1])
    timesteps, noise = draw_timesteps_and_noise(
        seeds, torch.zeros(4, 2, 3, 4, 5), 1000, terminal_fraction=terminal_fraction
    )
    for row, seed in enumerate(seeds.tolist()):
        generator = torch.Generator().manual_seed(seed)
        at_end = torch.rand((), generator=generator) < terminal_fraction
        timestep = torch.randint(0, 1000, (), generator=generator)
        assert timesteps[row] == (999 if at_end else timestep)
        assert torch.equal(noise[row], torch.randn(2, 3, 4, 5, generator=generator))
    # the share at the end takes nothing else along
    plain, plain_noise = draw_timesteps_and_noise(seeds, torch.zeros(4, 2, 3, 4, 5), 1000)
    assert torch.equal(noise, plain_noise) and torch.equal(timesteps[timesteps < 999], plain[timesteps < 999])


def test_recorded_numbers():
    # torch 2 on x86 and ARM; they must never change, or a resumed run is another run
    timesteps, noise = draw_timesteps_and_noise(torch.tensor([0, 1]), torch.zeros(2, 1, 1, 1, 2), 1000)
    assert timesteps.tolist() == RECORDED_TIMESTEPS
    torch.testing.assert_close(noise.flatten(), torch.tensor(RECORDED_NOISE), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        uniform(torch.tensor([0, 1]), 2, stream="context"), torch.tensor(RECORDED_UNIFORM), rtol=0, atol=1e-6
    )


def test_uniform_numbers_fill_the_interval_and_streams_do_not_know_each_other():
    a, b = uniform(SEEDS, 2, stream="context"), uniform(SEEDS, 2, stream="other")
    timesteps, noise = draw_timesteps_and_noise(SEEDS, torch.zeros(4000, 1, 1, 1, 1), 1000)
    for column in (*a.T, *b.T):
        assert column.min() >= 0 and column.max() < 1
        counts = torch.histc(column, bins=10, min=0, max=1)
        assert ((counts - 400) ** 2 / 400).sum() < 30  # chi squared, 9 degrees of freedom: 27.9 is the 99.9 % point
    everything = torch.stack([*a.T, *b.T, timesteps.float(), noise.flatten()])
    correlation = torch.corrcoef(everything) - torch.eye(len(everything))
    assert correlation.abs().max() < 4.5 / 4000**0.5
    # neighbouring items are not alike either
    assert torch.corrcoef(torch.stack([a[1:, 0], a[:-1, 0]]))[0, 1].abs() < 4.5 / 4000**0.5


def test_uniform_is_of_the_item_alone():
    whole = uniform(SEEDS[:9], 3, stream="context")
    assert torch.equal(whole[4:5], uniform(SEEDS[4:5], 3, stream="context"))
    assert torch.equal(whole[:, :1], uniform(SEEDS[:9], 1, stream="context"))
    assert uniform(torch.tensor([2**63 - 1, 0]), 1, stream="context").shape == (2, 1)
