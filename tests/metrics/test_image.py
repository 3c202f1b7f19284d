"""Image metrics against closed forms and scikit-image."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from diffusers_ct.metrics import CONVENTIONS, bias, body_mask, mae, psnr_pooled, psnr_slice_mean, rmse, ssim


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    reference = rng.normal(40, 120, (3, 40, 36))
    return reference + rng.normal(0, 20, reference.shape), reference


def test_closed_forms():
    reference = np.zeros((2, 16, 16))
    predicted = reference + np.array([10.0, -30.0])[:, None, None]
    assert rmse(predicted, reference, convention="full") == pytest.approx(np.sqrt(500))
    assert mae(predicted, reference, convention="full") == pytest.approx(20.0)
    assert bias(predicted, reference, convention="full") == pytest.approx(-10.0)
    assert psnr_pooled(predicted, reference, convention="full") == pytest.approx(10 * np.log10(4095**2 / 500))
    mean = 0.5 * (20 * np.log10(4095 / 10) + 20 * np.log10(4095 / 30))
    assert psnr_slice_mean(predicted, reference, convention="full") == pytest.approx(mean)
    assert psnr_pooled(reference, reference, convention="full") == float("inf")
    assert ssim(reference, reference, convention="full") == pytest.approx(1.0)


def test_the_clip_belongs_to_the_convention():
    reference, predicted = np.full((16, 16), 1000.0), np.full((16, 16), 3000.0)
    assert rmse(predicted, reference, convention="soft") == 0.0
    assert rmse(predicted, reference, convention="full") == 2000.0


@pytest.mark.parametrize("name", CONVENTIONS)
def test_psnr_is_scikit_images(images, name):
    rule = CONVENTIONS[name]
    predicted, reference = (image.clip(*rule.clip_hu) for image in images)
    values = []
    for p, r in zip(predicted, reference):
        data_range = r.max() - r.min() if rule.data_range_hu == "reference" else rule.data_range_hu
        values.append(peak_signal_noise_ratio(r, p, data_range=data_range))
    assert psnr_slice_mean(*images, convention=name) == pytest.approx(np.mean(values), abs=1e-9)


@pytest.mark.parametrize("name", [n for n, c in CONVENTIONS.items() if c.ssim_border == "crop"])
def test_ssim_is_scikit_images(images, name):
    rule = CONVENTIONS[name]
    settings = (
        {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        if rule.ssim_window == "gaussian"
        else {"win_size": 7}
    )
    values = []
    for p, r in zip(*(image.clip(*rule.clip_hu) - rule.clip_hu[0] for image in images)):
        data_range = r.max() - r.min() if rule.data_range_hu == "reference" else rule.data_range_hu
        values.append(structural_similarity(r, p, data_range=data_range, **settings))
    assert ssim(*images, convention=name) == pytest.approx(np.mean(values), abs=1e-9)


def test_zero_padded_ssim_differs_at_the_border_alone(images):
    padded = ssim(*images, convention="soft")
    lower = CONVENTIONS["soft"].clip_hu[0]
    framed = [np.pad(i.clip(-160, 240), ((0, 0), (10, 10), (10, 10)), constant_values=lower) for i in images]
    values = []
    for p, r in zip(*(f - lower for f in framed)):
        full = structural_similarity(
            r, p, data_range=400, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
        )[1]
        values.append(full[10:-10, 10:-10].mean())
    assert padded == pytest.approx(np.mean(values), abs=1e-9)


def test_masks_and_two_dimensions(images):
    predicted, reference = images
    mask = np.zeros(reference.shape, bool)
    mask[1] = True
    assert rmse(predicted, reference, convention="full", mask=mask) == pytest.approx(
        rmse(predicted[1], reference[1], convention="full")
    )


def test_body_is_the_patient_without_table_and_with_lungs():
    volume = np.full((2, 64, 64), -1000.0)
    volume[:, 10:40, 10:54] = 40.0
    volume[:, 20:30, 20:30] = -850.0  # lung
    volume[:, 50:53] = 0.0  # table
    expected = np.zeros(volume.shape, bool)
    expected[:, 10:40, 10:54] = True
    np.testing.assert_array_equal(body_mask(volume), expected)
    np.testing.assert_array_equal(body_mask(volume[0]), expected[0])
    with pytest.raises(ValueError, match="no body"):
        body_mask(np.full((8, 8), -1000.0))


def test_refusals(images):
    predicted, reference = images
    with pytest.raises(ValueError, match="Unknown convention"):
        rmse(predicted, reference, convention="psnr")
    with pytest.raises(TypeError):
        rmse(predicted, reference)
    with pytest.raises(ValueError, match="one shape"):
        rmse(predicted[0], reference, convention="full")
    with pytest.raises(ValueError, match="not finite"):
        rmse(np.full((8, 8), np.nan), np.zeros((8, 8)), convention="full")
    with pytest.raises(ValueError, match="psnr_slice_mean"):
        psnr_pooled(predicted, reference, convention="corediff")
    with pytest.raises(ValueError, match="mask"):
        rmse(predicted, reference, convention="full", mask=np.zeros(reference.shape, bool))
