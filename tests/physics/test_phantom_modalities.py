"""Pseudo-MRI and pseudo-PET: the tables where nothing disturbs them, and the laws of what does."""

import numpy as np
import pytest
from scipy import ndimage

from diffusers_ct.physics import LESION_KINDS, LESION_KINDS_OF_REGION, ORGAN_LABELS, make_phantom
from diffusers_ct.physics.phantom_modalities import (
    LESION_SIGNAL,
    PET_FWHM_MM,
    TISSUE_SIGNAL,
    pseudo_mri,
    pseudo_pet,
    tissue_signal,
)

GRID = {"shape": (6, 96, 96), "spacing_mm": (4.0, 4.0, 4.0), "lesion_radius_mm": (9.0, 14.0)}


@pytest.fixture(scope="module")
def phantoms():
    return {
        region: make_phantom(7, region, findings=LESION_KINDS_OF_REGION[region], **GRID)
        for region in LESION_KINDS_OF_REGION
    }


def plain_mri(phantom, sequence="t1", seed=3):
    return pseudo_mri(phantom, seed=seed, sequence=sequence, noise=0.0, bias=0.0)


def test_every_tissue_and_every_lesion_stands_in_every_table():
    for image in ("t1", "t2", "pet"):
        assert set(TISSUE_SIGNAL[image]) == set(ORGAN_LABELS)
        assert set(LESION_SIGNAL[image]) == set(LESION_KINDS)


@pytest.mark.parametrize("image", ["t1", "t2", "pet"])
def test_undisturbed_images_are_the_table(phantoms, image):
    for phantom in phantoms.values():
        signal = tissue_signal(phantom, image)
        assert (signal[phantom.organs == 0] == 0.0).all()
        healthy = phantom.lesion_mask == 0
        for organ in ORGAN_LABELS.keys() - {"bowel"}:  # whose gas is told by its HU
            voxels = signal[(phantom.organs == ORGAN_LABELS[organ]) & healthy]
            assert np.allclose(voxels, TISSUE_SIGNAL[image][organ])
        for number, lesion in enumerate(phantom.lesions, start=1):
            assert np.allclose(signal[phantom.lesion_mask == number], LESION_SIGNAL[image][lesion.kind])
        if image != "pet":
            # One unknown scale is all that is left without noise and bias.
            mri = plain_mri(phantom, image)
            fat = mri[(phantom.organs == ORGAN_LABELS["fat"])].mean() / TISSUE_SIGNAL[image]["fat"]
            assert mri == pytest.approx(fat * signal, rel=1e-5)


def test_lesions_stand_out_the_way_they_should(phantoms):
    for phantom in phantoms.values():
        for number, lesion in enumerate(phantom.lesions, start=1):
            inside = phantom.lesion_mask == number
            around = (phantom.organs == ORGAN_LABELS[lesion.organ]) & (phantom.lesion_mask == 0)
            contrast = {
                "t1": np.subtract(*(plain_mri(phantom, "t1")[m].mean() for m in (inside, around))),
                "t2": np.subtract(*(plain_mri(phantom, "t2")[m].mean() for m in (inside, around))),
                "pet": np.subtract(*(pseudo_pet(phantom, seed=0)[m].mean() for m in (inside, around))),
            }
            signs = {name: int(np.sign(value)) for name, value in contrast.items()}
            assert (
                signs
                == {
                    "metastasis": {"t1": -1, "t2": 1, "pet": 1},
                    "cyst": {"t1": -1, "t2": 1, "pet": -1},
                    "lytic": {"t1": -1, "t2": 1, "pet": 1},
                    "solid_nodule": {"t1": 1, "t2": 1, "pet": 1},
                    "ground_glass_nodule": {"t1": 1, "t2": 1, "pet": 1},
                    "haemorrhage": {"t1": 1, "t2": -1, "pet": -1},  # subacute
                    "infarct": {"t1": -1, "t2": 1, "pet": -1},
                }[lesion.kind]
            )


def test_gas_in_the_bowel_gives_no_signal(phantoms):
    phantom = phantoms["abdomen"]
    gas = (phantom.organs == ORGAN_LABELS["bowel"]) & (phantom.volume.hu < -900)
    assert gas.sum() > 10
    for image in ("t1", "t2", "pet"):
        assert (tissue_signal(phantom, image)[gas] == 0.0).all()


def test_rician_noise_has_the_second_moment_of_its_law(phantoms):
    # E[M^2] = A^2 + 2 sigma^2 (Gudbjartsson and Patz, 1995), and a Rayleigh mean sigma sqrt(pi / 2) in air.
    phantom, sigma = phantoms["abdomen"], 0.2
    plain, noisy = plain_mri(phantom), pseudo_mri(phantom, seed=3, noise=sigma, bias=0.0)
    fat, air = phantom.organs == ORGAN_LABELS["fat"], phantom.organs == 0
    scale = plain[fat].mean()
    assert (noisy[fat].astype(float) ** 2).mean() / scale**2 == pytest.approx(1.0 + 2 * sigma**2, rel=0.02)
    assert noisy[air].mean() / scale == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.02)


def test_bias_is_smooth_and_shared_by_the_sequences(phantoms):
    phantom = phantoms["abdomen"]
    body = (phantom.organs > 0) & (plain_mri(phantom) > 0)
    log_bias = {}
    for sequence in ("t1", "t2"):
        biased = pseudo_mri(phantom, seed=3, sequence=sequence, noise=0.0, bias=0.25)
        log_bias[sequence] = np.log(biased[body] / plain_mri(phantom, sequence)[body])
    assert log_bias["t1"] == pytest.approx(log_bias["t2"], abs=1e-4)
    assert 0.03 < log_bias["t1"].std() < 0.5
    whole = np.zeros(phantom.organs.shape)
    whole[body] = log_bias["t1"]
    steps = np.abs(np.diff(whole, axis=2))[body[:, :, 1:] & body[:, :, :-1]]
    # Three waves no shorter than 300 mm, of amplitude 0.25 sqrt(2 / 3) each.
    assert 0 < steps.max() < 3 * 0.25 * np.sqrt(2 / 3) * 2 * np.pi / 300.0 * 4.0


def test_blur_keeps_the_activity_and_has_its_width(phantoms):
    for phantom in phantoms.values():
        before, after = tissue_signal(phantom, "pet"), pseudo_pet(phantom, seed=0, counts_per_suv_ml=None)
        assert after.sum(dtype=float) == pytest.approx(before.sum(dtype=float), rel=1e-6)
    sigma_voxels = PET_FWHM_MM / 2.3548 / 4.0
    assert after == pytest.approx(
        ndimage.gaussian_filter(before, sigma_voxels, mode="reflect", truncate=4.0), rel=1e-3, abs=1e-4
    )


def test_counting_noise_is_unbiased_with_the_variance_of_poisson(phantoms):
    phantom = phantoms["abdomen"]
    mean = pseudo_pet(phantom, seed=0, counts_per_suv_ml=None)
    noise = pseudo_pet(phantom, seed=0, counts_per_suv_ml=200.0) - mean
    core = mean > 0.2
    assert noise[core].mean() == pytest.approx(0.0, abs=0.02)
    assert (noise[core] ** 2 / mean[core]).mean() == pytest.approx(1 / (200.0 * 0.064), rel=0.05)


def test_seeds_repeat_and_differ(phantoms):
    phantom = phantoms["thorax"]
    assert np.array_equal(pseudo_mri(phantom, seed=1), pseudo_mri(phantom, seed=1))
    assert np.array_equal(pseudo_pet(phantom, seed=1), pseudo_pet(phantom, seed=1))
    assert not np.allclose(pseudo_pet(phantom, seed=1), pseudo_pet(phantom, seed=2))
    scales = [plain_mri(phantom, seed=seed).max() for seed in range(8)]
    assert max(scales) > 2 * min(scales)
    for image in (pseudo_mri(phantom, seed=1, sequence="t2"), pseudo_pet(phantom, seed=1)):
        assert image.dtype == np.float32 and image.shape == phantom.organs.shape
        assert np.isfinite(image).all() and (image >= 0).all()


def test_refusals(phantoms):
    phantom = phantoms["thorax"]
    with pytest.raises(ValueError, match="Unknown sequence 'flair'"):
        pseudo_mri(phantom, seed=0, sequence="flair")
    with pytest.raises(ValueError, match="Unknown sequence 'pet'"):
        pseudo_mri(phantom, seed=0, sequence="pet")
    with pytest.raises(ValueError, match="must not be negative"):
        pseudo_mri(phantom, seed=0, noise=-1.0)
    with pytest.raises(ValueError, match="Unknown image"):
        tissue_signal(phantom, "ct")
    with pytest.raises(ValueError, match="must be positive"):
        pseudo_pet(phantom, seed=0, counts_per_suv_ml=0.0)
