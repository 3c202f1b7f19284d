"""The phantom: one patient a seed, true in three dimensions, with lesions where their mask says."""

import numpy as np
import pytest

from diffusers_ct.physics import ORGAN_LABELS, make_phantom
from diffusers_ct.physics.phantom_canvas import capsule, ellipsoid

SHAPE, SPACING = (4, 128, 128), (3.0, 3.0, 3.0)


@pytest.fixture(scope="module")
def phantoms():
    return {
        (region, seed): make_phantom(seed, region, shape=SHAPE, spacing_mm=SPACING)
        for region in ("thorax", "abdomen")
        for seed in range(3)
    }


def test_the_same_seed_is_the_same_patient_and_another_is_not(phantoms):
    again = make_phantom(1, "thorax", shape=SHAPE, spacing_mm=SPACING)
    assert np.array_equal(again.volume.hu, phantoms["thorax", 1].volume.hu)
    assert again.lesions == phantoms["thorax", 1].lesions
    assert np.abs(phantoms["thorax", 1].volume.hu - phantoms["thorax", 2].volume.hu).mean() > 30


def test_finer_grid_shows_the_same_anatomy():
    coarse = make_phantom(2, "abdomen", shape=(2, 64, 64), spacing_mm=(4.0, 6.0, 6.0), z_centre_mm=0.0)
    # Four fine voxels fill a coarse one; the fine slices lie between the coarse ones.
    fine = make_phantom(2, "abdomen", shape=(2, 128, 128), spacing_mm=(4.0, 3.0, 3.0), z_centre_mm=0.0)
    averaged = fine.volume.hu.reshape(2, 64, 2, 64, 2).mean(axis=(2, 4))
    assert np.corrcoef(averaged.ravel(), coarse.volume.hu.ravel())[0, 1] > 0.99


def test_slices_of_one_place_agree_in_different_volumes():
    thick = make_phantom(3, "thorax", shape=(9, 64, 64), spacing_mm=(5.0, 6.0, 6.0), z_centre_mm=10.0)
    thin = make_phantom(3, "thorax", shape=(1, 64, 64), spacing_mm=(5.0, 6.0, 6.0), z_centre_mm=20.0)
    assert np.array_equal(thick.volume.hu[6], thin.volume.hu[0])
    assert thick.volume.affine_lps[2, 3] + 6 * 5.0 == pytest.approx(thin.volume.affine_lps[2, 3])


@pytest.mark.parametrize(
    ("region", "organ", "low", "high"),
    [
        ("thorax", "lung", -890, -760), ("thorax", "fat", -110, -85), ("thorax", "muscle", 30, 75),
        ("abdomen", "liver", 45, 135), ("abdomen", "fat", -110, -85), ("abdomen", "trabecular_bone", 90, 350),
    ],
)  # fmt: skip
def test_organs_have_their_hu(phantoms, region, organ, low, high):
    for seed in range(3):
        phantom = phantoms[region, seed]
        voxels = phantom.volume.hu[phantom.organs == ORGAN_LABELS[organ]]
        assert voxels.size > 50
        assert low < np.median(voxels) < high


def test_body_lies_within_the_field_of_view_and_air_is_air(phantoms):
    for phantom in phantoms.values():
        assert not phantom.organs[:, :, 0].any() and not phantom.organs[:, 0].any()
        assert (phantom.volume.hu[:, 0] == -1000.0).all()
        assert 0.25 < (phantom.organs > 0).mean() < 0.75
        assert np.isfinite(phantom.volume.hu).all()


def test_neighbouring_slices_are_alike_but_not_equal(phantoms):
    hu = phantoms["thorax", 0].volume.hu
    assert 0.95 < np.corrcoef(hu[0].ravel(), hu[1].ravel())[0, 1] < 0.9999


def test_lesions_lie_in_their_organ_with_about_their_volume():
    found = 0
    for seed in range(4):
        phantom = make_phantom(seed, "abdomen", shape=(16, 96, 96), spacing_mm=(4.0, 4.0, 4.0))
        numbers = set(np.unique(phantom.lesion_mask)) - {0}
        assert numbers == set(range(1, len(phantom.lesions) + 1))
        for number, lesion in enumerate(phantom.lesions, start=1):
            mask = phantom.lesion_mask == number
            assert (phantom.organs[mask] == ORGAN_LABELS[lesion.organ]).all()
            volume, sphere = mask.sum() * 4.0**3, 4 / 3 * np.pi * lesion.radius_mm**3
            assert volume < 2.0 * sphere + 200
            edge = mask[[0, -1]].any()
            if lesion.kind == "cyst" and not edge and volume > 0.5 * sphere and lesion.radius_mm > 5:
                found += 1
                assert np.median(phantom.volume.hu[mask]) == pytest.approx(lesion.hu, abs=8)
    assert found >= 1


def test_distances_are_signed_and_in_millimetres():
    z, y, x = np.zeros(3), np.zeros(3), np.array([0.0, 10.0, 13.0])
    assert capsule((0, 0, -5), (0, 0, 5), 5.0)((z, y, x)) == pytest.approx([-5.0, 0.0, 3.0])
    assert ellipsoid((0, 0, 0), (20, 30, 10))((z, y, x))[1:] == pytest.approx([0.0, 3.0])


def test_refusals():
    with pytest.raises(ValueError, match="Unknown region"):
        make_phantom(0, "knee", shape=SHAPE, spacing_mm=SPACING)
    with pytest.raises(ValueError, match="positive"):
        make_phantom(0, "thorax", shape=(0, 8, 8), spacing_mm=SPACING)
    with pytest.raises(ValueError, match="z_centre_mm"):
        make_phantom(0, "thorax", shape=SHAPE, spacing_mm=SPACING, z_centre_mm=300.0)
