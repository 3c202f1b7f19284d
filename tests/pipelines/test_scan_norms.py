"""Statistics of group norm, gathered from what a network is shown, against those of numpy in float64."""

import numpy as np
import pytest
import torch

from diffusers_ct.models.blocks import AdaptiveGroupNorm
from diffusers_ct.pipelines.scan_norms import ScanNorms

STEP = torch.tensor(7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_what_two_tiles_gave_is_applied_to_a_third(dtype, channels_last):
    generator = torch.Generator().manual_seed(0)
    norm = AdaptiveGroupNorm(3, 6).to(dtype)
    layout = torch.channels_last_3d if channels_last else torch.contiguous_format
    # A mean of seven standard deviations: sums of squares that are not kept in float32 would miss the variance.
    tiles = [(20.0 + 3.0 * torch.randn(1, 6, 8, 12, 10, generator=generator)).to(dtype) for _ in range(3)]
    tiles = [tile.to(memory_format=layout) for tile in tiles]
    norms = ScanNorms(norm)
    for number, inner in enumerate([(0.25, 0.75), (0.0, 1.0)]):
        with norms.gathered(STEP, inner):
            norm(tiles[number])
        norms.keep(number)
    with norms.applied(STEP):
        out = norm(tiles[2]).detach()
    shown = np.concatenate([tiles[0].double().numpy()[:, :, 2:6], tiles[1].double().numpy()], axis=2)
    of_groups = shown.reshape(3, -1)
    mean, sd = (values.repeat(2)[:, None, None, None] for values in (of_groups.mean(1), of_groups.std(1)))
    expected = (tiles[2].double().numpy()[0] - mean) / sd
    assert np.abs(out.double().numpy()[0] - expected).max() < (2e-2 if dtype == torch.bfloat16 else 2e-3)


def test_a_small_spread_about_a_large_mean_is_not_lost():
    norm = torch.nn.GroupNorm(1, 2)
    x = 1000.0 + 0.3 * torch.randn(1, 2, 4, 32, 32, generator=torch.Generator().manual_seed(2))
    norms = ScanNorms(norm)
    with norms.gathered(STEP):
        norm(x)
    norms.keep(0)
    with norms.applied(STEP):
        out = norm(x)
    assert out.std().item() == pytest.approx(1.0, abs=5e-3) and abs(out.mean().item()) < 5e-3


def test_tokens_count_all_and_a_tile_shown_again_replaces_what_it_gave():
    norm, x = torch.nn.GroupNorm(2, 4), torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(1))
    norms = ScanNorms(norm)
    for shown in (5.0 * x + 1.0, x):
        with norms.gathered(STEP, (0.4, 0.6)):
            norm(shown)
        norms.keep(0)
    with norms.applied(STEP):
        torch.testing.assert_close(norm(x), torch.nn.GroupNorm(2, 4)(x), atol=1e-5, rtol=1e-5)
    with norms.applied(torch.tensor(8)):  # a step nothing was gathered at
        torch.testing.assert_close(norm(2.0 * x), torch.nn.GroupNorm(2, 4)(2.0 * x))
