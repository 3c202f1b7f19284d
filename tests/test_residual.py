"""The encoding that training and use share."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from diffusers_ct.residual import (
    CONDITION_CHANNELS,
    decode_residual,
    encode_condition,
    encode_residual,
    estimate_noise_hu,
    scan_vector,
)


def test_residual_is_its_formula_and_decoding_its_inverse():
    low, full = 300 * torch.randn(2, 2, 1, 3, 4, 4)
    noise = torch.tensor([[10.0, 20.0, 30.0], [1.0, 2.0, 3.0]])
    residual = encode_residual(full, low, noise)
    assert residual[0, 0, 1, 2, 3].item() == pytest.approx(((full - low)[0, 0, 1, 2, 3] / 20.0).item())
    torch.testing.assert_close(decode_residual(residual, low, noise), full, rtol=1e-5, atol=1e-3)
    assert torch.equal(decode_residual(torch.zeros_like(low), low, noise), low)
    with pytest.raises(ValueError, match="noise_hu"):
        encode_residual(full, low, noise[:, :2])


def test_condition_of_a_patch_is_the_patch_of_the_condition():
    low, noise = 500 * torch.randn(1, 1, 2, 8, 8), torch.tensor([[15.0, 25.0]])
    whole = encode_condition(low, noise)
    assert whole.shape[1] == CONDITION_CHANNELS and whole.abs().max() <= 1.0
    assert torch.equal(encode_condition(low[..., 2:6, 1:5], noise), whole[..., 2:6, 1:5])


def test_noise_windows_count_in_noise_levels():
    value = encode_condition(torch.full((1, 1, 1, 1, 1), 40.0 + 30.0), torch.tensor([[15.0]]))
    assert value[0, 3, 0, 0, 0].item() == pytest.approx(30.0 / (8 * 15.0))
    assert value[0, 1, 0, 0, 0].item() == pytest.approx(70.0 / 200.0 - 0.2)


@pytest.mark.parametrize("sd", [5.0, 20.0, 80.0])
def test_noise_level_follows_the_noise_and_not_the_anatomy(sd):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:128, :128]
    anatomy = np.where(np.hypot(y - 64, x - 64) < 55, 40.0, -1000.0) + 60.0 * (np.hypot(y - 50, x - 70) < 12)
    white = np.stack([anatomy + rng.normal(0, sd, anatomy.shape) for _ in range(3)])
    # white noise less its 5 x 5 mean has the variance 24/25
    assert estimate_noise_hu(white) == pytest.approx(sd * np.sqrt(24 / 25), rel=0.1)
    assert estimate_noise_hu(white + 20) == pytest.approx(estimate_noise_hu(white), rel=0.05)
    assert estimate_noise_hu(anatomy[None]) == pytest.approx(1.0)
    smooth = np.stack([anatomy + sd * ndimage.gaussian_filter(rng.normal(0, 1, anatomy.shape), 1.0) * 3.5] * 2)
    assert estimate_noise_hu(2 * (smooth - anatomy) + anatomy) == pytest.approx(2 * estimate_noise_hu(smooth), rel=0.15)


def test_scan_vector_is_its_formula():
    vector = scan_vector(torch.tensor([[30.0, 50.0]]), torch.tensor([[4.0, 0.375, 0.375]]))
    torch.testing.assert_close(vector, torch.tensor([[1.0, -1.0, 1.0]]))
