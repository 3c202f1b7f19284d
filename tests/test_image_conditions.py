"""Each image has its own scale and its own presence; what is missing is NaN and never an error."""

import math

import numpy as np
import pytest
import torch

from diffusers_ct.hounsfield import hu_to_companded, hu_to_unit
from diffusers_ct.image_conditions import (
    IMAGE_KINDS,
    drop_images_at_random,
    encode_images,
    image_channels,
    normalise_image,
)
from diffusers_ct.residual import CONDITION_WINDOWS

SHAPE = (2, 1, 2, 6, 5)
LIKE = torch.zeros(2, 3, 2, 6, 5)


def images(seed: int = 0) -> dict[str, torch.Tensor]:
    """One of each kind, with some voxels unknown."""
    g = torch.Generator().manual_seed(seed)
    made = {
        "low_dose": 600 * torch.randn(SHAPE, generator=g),
        "prior": 600 * torch.randn(SHAPE, generator=g),
        "context": 600 * torch.randn(SHAPE, generator=g),
        "mri": 1.2 * torch.rand(SHAPE, generator=g),
        "pet": 60 * torch.rand(SHAPE, generator=g),
        "mask": torch.randint(0, 4, SHAPE, generator=g).float(),
    }
    for image in made.values():
        image[torch.rand(SHAPE, generator=g) < 0.2] = math.nan
    return made


def encoded(kind: str, *values: float, mask_classes: int = 0) -> torch.Tensor:
    """Channels (rows) of single voxels (columns)."""
    image = torch.tensor(values).reshape(1, 1, 1, 1, -1)
    return encode_images({kind: image}, [kind], like=image, mask_classes=mask_classes)[0, :, 0, 0]


def test_hounsfield_images_are_shown_in_three_windows():
    for kind in ("low_dose", "prior"):
        channels = encoded(kind, -1024.0, 40.0, 3071.0, math.nan)
        expected = [[-1.0, 2 * (40 + 1024) / 4095 - 1, 1.0, 0.0], [-1.0, 0.0, 1.0, 0.0]]
        expected += [[2 * (1350 - 1024) / 1500 - 1, 2 * 1390 / 1500 - 1, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
        expected[2][1] = min(expected[2][1], 1.0)
        torch.testing.assert_close(channels, torch.tensor(expected), atol=1e-6, rtol=1e-5)
    low = images()["low_dose"].nan_to_num(0.0)
    by_windows = torch.cat([hu_to_unit(low, window) for window in CONDITION_WINDOWS], dim=1)
    assert torch.equal(encode_images({"low_dose": low}, ["low_dose"], like=LIKE)[:, :3], by_windows)


def test_context_is_on_the_scale_that_synthesis_draws():
    channels = encoded("context", -1024.0, -160.0, 40.0, 240.0, math.nan, 5000.0)
    torch.testing.assert_close(channels[0], torch.tensor([-1.0, -0.5, 0.0, 0.5, 0.0, 1.0]))
    assert channels[1].tolist() == [1, 1, 1, 1, 0, 1]
    context = images()["context"]
    values = encode_images({"context": context}, ["context"], like=LIKE)[:, :1]
    assert torch.equal(values, hu_to_companded(context).nan_to_num(0.0))


def test_mri_is_scaled_by_its_own_bright_end_whatever_its_unit():
    volume = np.random.default_rng(0).gamma(2.0, 300.0, (4, 16, 16))
    volume[:, :4] = 0.0
    volume[0, 5, 5] = np.nan
    normal = normalise_image("mri", volume)
    assert normal.dtype == np.float32 and np.isnan(normal[0, 5, 5])
    positive = volume[np.isfinite(volume) & (volume > 0)]
    np.testing.assert_allclose(normal[1:], volume[1:] / np.percentile(positive, 99), rtol=1e-6)
    np.testing.assert_allclose(normalise_image("mri", 3.0 * volume), normal, rtol=1e-5)
    torch.testing.assert_close(encoded("mri", 0.0, 0.25, 1.0, 7.0, -1.0)[0], torch.tensor([-1.0, -0.5, 1.0, 1.0, -1.0]))


def test_pet_is_on_a_log_scale_of_suv():
    channels = encoded("pet", -0.1, 0.0, 2.0, 50.0, 80.0, math.nan)
    liver = 2 * math.log(3.0) / math.log(51.0) - 1
    torch.testing.assert_close(channels[0], torch.tensor([-1.0, -1.0, liver, 1.0, 1.0, 0.0]))
    # equal ratios of 1 + SUV are equal steps
    steps = encoded("pet", 1.0, 3.0, 7.0, 15.0)[0].diff()
    torch.testing.assert_close(steps, steps[:1].expand(3))


def test_a_mask_is_one_hot_and_unknown_where_nan():
    channels = encoded("mask", 0.0, 2.0, math.nan, 1.0, mask_classes=3)
    expected = [[1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0], [1, 1, 0, 1]]
    assert channels.tolist() == expected
    for wrong in (3.0, -1.0, 0.5):
        with pytest.raises(ValueError, match="from 0 to 2"):
            encoded("mask", 0.0, wrong, mask_classes=3)
    labels = torch.tensor([[[[[0, 2]]]]])
    assert encode_images({"mask": labels}, ["mask"], like=labels, mask_classes=3).sum() == 4


@pytest.mark.parametrize("kind", ["low_dose", "prior", "context", "pet", "mask"])
def test_units_that_mean_something_are_kept_and_nan_with_them(kind):
    volume = np.array([[[0.0, 1.0, np.nan]]])
    normal = normalise_image(kind, volume)
    assert normal.dtype == np.float32 and np.array_equal(normal, volume, equal_nan=True) and normal is not volume


@pytest.mark.parametrize(
    ("kind", "volume", "message"),
    [
        ("ct", np.zeros((1, 1, 1)), "Unknown image conditions 'ct': choose of low_dose, prior"),
        ("mri", np.zeros((1, 1, 1, 1)), "depth, height, width"), ("mri", np.zeros((1, 1, 2)), "no positive value"),
        ("mask", np.full((1, 1, 1), 0.5), "whole numbers"), ("mask", np.full((1, 1, 1), -1), "whole numbers"),
    ],
)  # fmt: skip
def test_volumes_that_mean_nothing_are_refused(kind, volume, message):
    with pytest.raises(ValueError, match=message):
        normalise_image(kind, volume)


def test_an_mri_that_is_nan_everywhere_is_a_missing_one():
    assert np.isnan(normalise_image("mri", np.full((1, 2, 2), np.nan))).all()


def test_channels_stand_in_the_order_of_the_kinds_and_presence_behind_each():
    given = images()
    whole = encode_images(given, IMAGE_KINDS, like=LIKE, mask_classes=4)
    assert image_channels(IMAGE_KINDS, mask_classes=4) == 4 + 4 + 2 + 2 + 2 + 5
    assert whole.shape == (2, 19, 2, 6, 5)
    assert whole.dtype == torch.float32 and whole.isfinite().all() and whole.abs().max() <= 1.0
    start = 0
    for kind in IMAGE_KINDS:
        classes = 4 if kind == "mask" else 0
        alone = encode_images({kind: given[kind]}, [kind], like=LIKE, mask_classes=classes)
        stop = start + image_channels([kind], mask_classes=classes)
        assert torch.equal(whole[:, start:stop], alone), kind
        present = ~given[kind].isnan()
        assert torch.equal(alone[:, -1:], present.float()), kind
        assert (alone[:, :-1].where(~present, torch.zeros(())) == 0).all(), kind
        start = stop
    turned = encode_images(given, IMAGE_KINDS[::-1], like=LIKE, mask_classes=4)
    assert torch.equal(turned[:, :5], whole[:, -5:])
    assert encode_images({}, [], like=LIKE).shape == (2, 0, 2, 6, 5) and image_channels([]) == 0


def test_encoding_of_a_patch_is_the_patch_of_the_encoding():
    given = images()
    whole = encode_images(given, IMAGE_KINDS, like=LIKE, mask_classes=4)
    box = (..., slice(1, 2), slice(2, 5), slice(0, 4))
    patch = encode_images({k: v[box] for k, v in given.items()}, IMAGE_KINDS, like=LIKE[box], mask_classes=4)
    assert torch.equal(patch, whole[box])


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_a_missing_image_is_one_that_is_nan_everywhere_and_its_channels_are_zero(kind):
    given = images()
    without = {k: v for k, v in given.items() if k != kind}
    missing = encode_images(without, IMAGE_KINDS, like=LIKE, mask_classes=4)
    nan = encode_images({**given, kind: torch.full(SHAPE, math.nan)}, IMAGE_KINDS, like=LIKE, mask_classes=4)
    assert torch.equal(missing, nan)
    zeros = (missing == 0).all(dim=(0, 2, 3, 4))
    assert zeros.sum() == image_channels([kind], mask_classes=4 if kind == "mask" else 0)


def test_infinite_voxels_are_not_present():
    assert encoded("mri", math.inf, -math.inf, 0.5).tolist() == [[0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("given", "kinds", "classes", "message"),
    [
        ({"mri": torch.zeros(2, 1, 2, 6, 6)}, ["mri"], 0, r"'mri' must be .* = \(2, 1, 2, 6, 5\) .* got \(2, 1, 2, 6, 6\)"),
        ({"mri": torch.zeros(2, 2, 6, 5)}, ["mri"], 0, r"'mri' must be \(batch, 1, depth"),
        ({"mri": torch.zeros(1, 1, 2, 6, 5)}, ["mri"], 0, "'mri' must be"),
        ({"pet": torch.zeros(SHAPE)}, ["mri", "prior"], 0, "not trained with the image 'pet': it takes mri, prior"),
        ({"pet": torch.zeros(SHAPE)}, [], 0, "it takes none"),
        ({}, ["mri", "ct"], 0, "Unknown image conditions 'ct'"), ({}, ["mri", "mri"], 0, "twice"),
        ({}, ["mask"], 0, "at least 2"), ({}, ["mask"], 1, "at least 2"), ({}, ["mri"], 3, "must be 0 without"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_what_is_expected(given, kinds, classes, message):
    with pytest.raises(ValueError, match=message):
        encode_images(given, kinds, like=LIKE, mask_classes=classes)


def test_images_drop_at_their_rate_by_seed_alone_and_never_in_place():
    n, each = 4000, 0.3
    given = {kind: torch.zeros(n, 1, 1, 1, 2) for kind in ("mri", "pet", "low_dose")}
    dropped = drop_images_at_random(given, ("mri", "pet"), torch.arange(n), each=each)
    assert all(not v.isnan().any() for v in given.values()) and torch.equal(dropped["low_dose"], given["low_dose"])
    lost = {kind: dropped[kind].isnan() for kind in ("mri", "pet")}
    for values in lost.values():
        assert torch.equal(values.any(dim=-1), values.all(dim=-1))
        assert abs(values[..., 0].float().mean().item() - each) < 4 * math.sqrt(each * (1 - each) / n)
    both = (lost["mri"] & lost["pet"])[..., 0].float().mean().item()
    assert abs(both - each**2) < 4 * math.sqrt(each**2 * (1 - each**2) / n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    again = drop_images_at_random({"pet": given["pet"]}, IMAGE_KINDS, torch.arange(n)[order], each=each)
    assert torch.equal(again["pet"].isnan(), lost["pet"][order])
    assert not drop_images_at_random(given, IMAGE_KINDS, torch.arange(n), each=0.0)["pet"].isnan().any()
    assert drop_images_at_random(given, IMAGE_KINDS, torch.arange(n), each=1.0)["pet"].isnan().all()
    with pytest.raises(ValueError, match="is a probability"):
        drop_images_at_random(given, ("mri",), torch.arange(n), each=2.0)
    with pytest.raises(ValueError, match="Unknown image conditions 'ct'"):
        drop_images_at_random(given, ("ct",), torch.arange(n), each=0.5)
