"""The phantom: one patient a seed, true in three dimensions, with lesions where their mask says."""

import numpy as np
import pytest
from scipy import ndimage

from diffusers_ct.physics import (
    CONTRAST_PHASES,
    LESION_KINDS,
    LESION_KINDS_OF_REGION,
    MIN_FINDING_VOXELS,
    ORGAN_LABELS,
    make_phantom,
)
from diffusers_ct.physics.phantom_canvas import Canvas
from diffusers_ct.physics.phantom_solids import capsule, ellipsoid, thin_share

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
    for seed in range(8):
        phantom = make_phantom(seed, "abdomen", shape=(16, 96, 96), spacing_mm=(4.0, 4.0, 4.0))
        numbers = set(np.unique(phantom.lesion_mask)) - {0}
        assert numbers == set(range(1, len(phantom.lesions) + 1))
        for number, lesion in enumerate(phantom.lesions, start=1):
            mask = phantom.lesion_mask == number
            assert (phantom.organs[mask] == ORGAN_LABELS[lesion.organ]).all()
            volume, sphere = mask.sum() * 4.0**3, 4 / 3 * np.pi * lesion.radius_mm**3
            assert volume < 2.0 * sphere + 200
            edge = mask[[0, -1]].any()
            if lesion.kind == "cyst" and not edge and volume > 0.5 * sphere and lesion.radius_mm > 7:
                found += 1
                core = ndimage.binary_erosion(mask)  # the rim shares its voxels with the liver
                assert np.median(phantom.volume.hu[core]) == pytest.approx(lesion.hu, abs=8)
    assert found >= 1


def test_a_given_contrast_phase_changes_the_blood_and_nothing_else():
    small = {"shape": (2, 64, 64), "spacing_mm": (6.0, 6.0, 6.0), "z_centre_mm": 20.0}
    scans = {phase: make_phantom(4, "abdomen", contrast_phase=phase, **small) for phase in CONTRAST_PHASES}
    drawn = make_phantom(4, "abdomen", **small)
    asked = scans[drawn.volume.conditions.contrast_phase]
    assert np.array_equal(asked.volume.hu, drawn.volume.hu) and asked.lesions == drawn.lesions
    blood = {phase: np.percentile(p.volume.hu[p.organs == ORGAN_LABELS["blood"]], 90) for phase, p in scans.items()}
    assert blood["none"] < 60 < 130 < blood["portal"] < 190 < blood["arterial"]
    for phase, phantom in scans.items():
        assert phantom.volume.conditions.contrast_phase == phase
        assert phantom.volume.conditions.contrast_agent is (phase != "none")
        assert np.array_equal(phantom.organs, drawn.organs)
        assert np.array_equal(phantom.lesion_mask, drawn.lesion_mask)
        fat = phantom.organs == ORGAN_LABELS["fat"]
        assert np.allclose(np.median(phantom.volume.hu[fat]), np.median(drawn.volume.hu[fat]), atol=1.0)


@pytest.mark.parametrize("region", ["thorax", "abdomen"])
def test_asked_findings_show_in_the_volume_and_no_others(region):
    kinds = LESION_KINDS_OF_REGION[region]
    for seed in range(8):
        asked = [kind for bit, kind in enumerate(kinds) if seed >> bit & 1]
        phantom = make_phantom(seed, region, shape=(8, 64, 64), spacing_mm=(6.0, 6.0, 6.0), findings=asked)
        shown = [lesion.kind for lesion in phantom.lesions]
        assert set(shown) == set(asked)
        z_first = phantom.volume.affine_lps[2, 3]
        for number, lesion in enumerate(phantom.lesions, start=1):
            mask = phantom.lesion_mask == number
            assert mask.sum() >= MIN_FINDING_VOXELS
            assert (phantom.organs[mask] == ORGAN_LABELS[lesion.organ]).all()
            assert z_first - 14.0 < lesion.centre_mm[2] < z_first + 7 * 6.0 + 14.0  # the warp moves less than 14 mm
        assert set(phantom.volume.conditions.findings) == set(asked)
        assert set(phantom.volume.conditions.findings_absent) == set(LESION_KINDS) - set(asked)


def test_findings_leave_the_anatomy_alone_and_follow_the_seed():
    grid = {"shape": (4, 64, 64), "spacing_mm": (6.0, 6.0, 6.0)}
    healthy = make_phantom(5, "abdomen", findings=(), **grid)
    ill, again = (make_phantom(5, "abdomen", findings=("cyst", "metastasis"), **grid) for _ in range(2))
    default = make_phantom(5, "abdomen", **grid)
    assert not healthy.lesion_mask.any() and healthy.lesions == []
    assert ill.lesions == again.lesions and np.array_equal(ill.volume.hu, again.volume.hu)
    for other in (ill, default):
        untouched = other.lesion_mask == 0
        assert np.array_equal(other.organs, healthy.organs)
        changed = np.abs(other.volume.hu - healthy.volume.hu) > 0
        # Edge voxels less than half covered change too: at most one voxel around the mask.
        near = ndimage.binary_dilation(other.lesion_mask > 0, np.ones((3, 3, 3)))
        assert changed.any() and (changed[untouched & ~near].mean() < 1e-3)


def test_conditions_follow_the_mask(phantoms):
    for phantom in phantoms.values():
        voxels = dict.fromkeys(LESION_KINDS, 0)
        for number, lesion in enumerate(phantom.lesions, start=1):
            voxels[lesion.kind] += int((phantom.lesion_mask == number).sum())
        conditions = phantom.volume.conditions
        assert set(conditions.findings) == {kind for kind, n in voxels.items() if n >= 4}
        assert set(conditions.findings_absent) == {kind for kind, n in voxels.items() if n == 0}


def test_a_given_radius_bounds_every_lesion():
    grid = {"shape": (8, 64, 64), "spacing_mm": (6.0, 6.0, 6.0), "lesion_radius_mm": (9.0, 11.0)}
    for findings in (None, ["lytic", "cyst"]):
        lesions = make_phantom(4, "abdomen", findings=findings, **grid).lesions
        assert lesions and all(9.0 <= lesion.radius_mm <= 11.0 for lesion in lesions)


def test_a_volume_without_room_for_a_finding_says_so():
    outside_the_liver = {"shape": (2, 64, 64), "spacing_mm": (3.0, 6.0, 6.0), "z_centre_mm": -100.0}
    with pytest.raises(ValueError, match=r"No room for the findings \['cyst'\].*z = -100 mm"):
        make_phantom(0, "abdomen", findings=["cyst"], **outside_the_liver)
    with pytest.raises(ValueError, match="larger `lesion_radius_mm`"):
        make_phantom(
            0, "thorax", shape=(8, 48, 48), spacing_mm=(8.0,) * 3, findings=["lytic"], lesion_radius_mm=(2.0, 3.0)
        )


def test_age_and_sex_are_known_and_change_the_anatomy():
    grid = {"shape": (2, 64, 64), "spacing_mm": (6.0, 6.0, 6.0), "z_centre_mm": 0.0, "contrast_phase": "none"}
    for region in ("thorax", "abdomen"):
        young, old = (make_phantom(3, region, age_years=age, sex="F", findings=(), **grid) for age in (25, 85))
        spongy = [np.median(p.volume.hu[p.organs == ORGAN_LABELS["trabecular_bone"]]) for p in (young, old)]
        assert spongy[1] < spongy[0] - 80.0  # 2.3 HU a year and more after 50
        man, woman = (make_phantom(3, region, age_years=50, sex=sex, findings=(), **grid) for sex in "MF")
        muscle = [(p.organs == ORGAN_LABELS["muscle"]).sum() for p in (man, woman)]
        assert muscle[0] > muscle[1]
        assert (young.volume.conditions.age_years, young.volume.conditions.sex) == (25.0, "F")
    assert (woman.organs == ORGAN_LABELS["breast"]).sum() == 0  # an abdomen
    for wrong, message in (({"age_years": 8}, "phantoms are adults"), ({"sex": "O"}, "`sex` must be one of F, M")):
        with pytest.raises(ValueError, match=message):
            make_phantom(0, "thorax", shape=SHAPE, spacing_mm=SPACING, **wrong)


def test_thin_rods_keep_their_cross_section():
    axes = np.zeros(1), (64, 64), (2.0, 2.0)
    for radius in (0.2, 0.6, 1.0, 3.0):  # on average over the places within a pixel
        areas = []
        for y, x in np.random.default_rng(0).uniform(0.0, 2.0, (40, 2)):
            canvas = Canvas(*axes, (), (), 0.0)
            canvas.paint(capsule((-90.0, y, x), (90.0, y, x), radius), 100.0, share=thin_share(radius, 2.0))
            areas.append(canvas.hu.sum() / 100.0 * 4.0)
        assert np.mean(areas) == pytest.approx(np.pi * radius**2, rel=0.1)


def test_distances_are_signed_and_in_millimetres():
    z, y, x = np.zeros(3), np.zeros(3), np.array([0.0, 10.0, 13.0])
    assert capsule((0, 0, -5), (0, 0, 5), 5.0)((z, y, x)) == pytest.approx([-5.0, 0.0, 3.0])
    assert ellipsoid((0, 0, 0), (20, 30, 10))((z, y, x))[1:] == pytest.approx([0.0, 3.0])
    # A loop of bowel whose course stands still has no direction for its folds.
    still = capsule((0, 0, 5), (0, 0, 5), 5.0).rippled(2.0, 6.0, (0.0, 0.0, 0.0))
    assert still((z, y, x)) == pytest.approx([2.0, 2.0, 5.0])


def test_refusals():
    with pytest.raises(ValueError, match="Unknown region"):
        make_phantom(0, "knee", shape=SHAPE, spacing_mm=SPACING)
    with pytest.raises(ValueError, match="positive"):
        make_phantom(0, "thorax", shape=(0, 8, 8), spacing_mm=SPACING)
    with pytest.raises(ValueError, match="z_centre_mm"):
        make_phantom(0, "thorax", shape=SHAPE, spacing_mm=SPACING, z_centre_mm=300.0)
    for wrong, message in (
        ({"contrast_phase": "late"}, "Unknown contrast phase"),
        ({"findings": ["cyst"]}, "`findings` of the thorax"),
        ({"findings": "lytic"}, "is a list"),
        ({"lesion_radius_mm": (5.0, 4.0)}, "smallest <= largest"),
    ):
        with pytest.raises(ValueError, match=message):
            make_phantom(0, "thorax", shape=SHAPE, spacing_mm=SPACING, **wrong)
