"""The multimodal door: one restoration model takes any subset of MRI and PET, and each that it is given helps.

Phantoms have what no public data set has: CT, MRI and PET of one anatomy, in place, and the truth. The CT is drowned in
noise, so that what the other images say of the anatomy is worth something.
"""

import numpy as np
import pytest
import torch

from diffusers_ct.image_conditions import drop_images_at_random, encode_images, image_channels, normalise_image
from diffusers_ct.models import ConditionalDenoiser, UNet3DCTModel
from diffusers_ct.physics import LESION_KINDS_OF_REGION, make_phantom, pseudo_mri, pseudo_pet
from diffusers_ct.residual import (
    CONDITION_CHANNELS,
    SCAN_VECTOR_DIM,
    decode_residual,
    encode_condition,
    encode_residual,
    estimate_noise_hu,
    scan_vector,
)

KINDS = ("mri", "pet")
SHAPE, SPACING = (2, 48, 64), (6.0, 6.0, 6.0)
NOISE_HU = 800.0
LAST_STEP = 999  # zero signal-to-noise ratio: the sample is pure noise, and v = -r
TRAINED, HELD_OUT = range(40), range(9000, 9010)
STEPS = 250


def make_case(seed):
    """(full_hu, low_hu, noise_hu, images) of one phantom, without a batch axis."""
    region = ("thorax", "abdomen")[seed % 2]
    findings = LESION_KINDS_OF_REGION[region]
    phantom = make_phantom(
        seed, region, shape=SHAPE, spacing_mm=SPACING, findings=findings, lesion_radius_mm=(9.0, 14.0)
    )
    full = phantom.volume.hu
    low = full + NOISE_HU * np.random.default_rng([seed, 77]).standard_normal(full.shape).astype(np.float32)
    images = {
        "mri": normalise_image("mri", pseudo_mri(phantom, seed=seed)),
        "pet": normalise_image("pet", pseudo_pet(phantom, seed=seed)),
    }
    return (
        torch.from_numpy(full)[None],
        torch.from_numpy(low)[None],
        torch.from_numpy(estimate_noise_hu(low)),
        {kind: torch.from_numpy(image)[None] for kind, image in images.items()},
    )


def stack(cases):
    full, low, noise, images = zip(*cases)
    return (
        torch.stack(full), torch.stack(low), torch.stack(noise),
        {kind: torch.stack([each[kind] for each in images]) for kind in KINDS},
    )  # fmt: skip


def predict_residual(model, low_hu, noise_hu, images, generator):
    """One step from pure noise: E[r | what is known]."""
    x_t = torch.randn(low_hu.shape, generator=generator)
    channels = [x_t, encode_condition(low_hu, noise_hu), encode_images(images, KINDS, like=low_hu)]
    vector = scan_vector(noise_hu, torch.tensor([SPACING]).expand(len(low_hu), 3))
    timesteps = torch.full((len(low_hu),), LAST_STEP)
    return -model(torch.cat(channels, dim=1), timesteps, vector=vector).sample


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    unet = UNet3DCTModel(
        in_channels=1 + CONDITION_CHANNELS + image_channels(KINDS),
        block_out_channels=(24, 48),
        layers_per_block=1,
        conv_mode="2.5d",
        patch_size=(1, 2, 2),
        refine_channels=12,
        downsample_strides=(1, 2, 2),
        pooled_dim=SCAN_VECTOR_DIM,
    )
    model = ConditionalDenoiser(unet)
    full, low, noise, images = stack([make_case(seed) for seed in TRAINED])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=STEPS)
    generator, rng = torch.Generator().manual_seed(1), np.random.default_rng(2)
    for step in range(STEPS):
        chosen = torch.from_numpy(rng.choice(len(full), 4, replace=False))
        seeds = step * 4 + torch.arange(4)
        shown = drop_images_at_random({k: v[chosen] for k, v in images.items()}, KINDS, seeds, each=0.35)
        wanted = encode_residual(full[chosen], low[chosen], noise[chosen])
        loss = (predict_residual(model, low[chosen], noise[chosen], shown, generator) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@pytest.fixture(scope="module")
def errors(model):
    """Root mean square error in HU of each held-out phantom, by what the model is shown."""
    full, low, noise, images = stack([make_case(seed) for seed in HELD_OUT])
    found = {"input": low - full}
    for shown in ((), ("mri",), ("pet",), ("mri", "pet")):
        with torch.no_grad():
            residual = predict_residual(
                model, low, noise, {kind: images[kind] for kind in shown}, torch.Generator().manual_seed(3)
            )
        found["+".join(shown) or "nothing"] = decode_residual(residual, low, noise) - full
    return {name: error.square().mean(dim=(1, 2, 3, 4)).sqrt() for name, error in found.items()}


def test_each_image_lowers_the_error(errors):
    mean = {name: float(error.mean()) for name, error in errors.items()}
    assert mean["mri"] < 0.92 * mean["nothing"]
    assert mean["pet"] < 0.96 * mean["nothing"]
    assert mean["mri+pet"] < 0.98 * mean["mri"]
    # Not by one lucky phantom.
    assert (errors["mri"] < errors["nothing"]).float().mean() >= 0.9
    assert (errors["mri+pet"] < errors["mri"]).float().mean() >= 0.7


def test_a_missing_image_degrades_and_does_not_break(errors):
    for name in ("nothing", "mri", "pet"):
        assert torch.isfinite(errors[name]).all()
        assert (errors[name] < 0.4 * errors["input"]).all()
