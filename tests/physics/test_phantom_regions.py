"""What each region of the phantom must show: tissue by tissue, and how age, sex, contrast and disease change it."""

from typing import get_args

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
    phantom_pelvis,
    phantom_thorax,
)
from diffusers_ct.physics.phantom import Region
from diffusers_ct.physics.phantom_anatomy import LABEL_OF, PERFUSED_HU, Patient
from diffusers_ct.physics.phantom_lesions import LESION_RANGES
from diffusers_ct.physics.phantom_solids import ellipsoid

REGIONS = get_args(Region)
_IN_PLANE = np.zeros((3, 3, 3), dtype=int)
_IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)
FIELD_MM = {"thorax": 384.0, "abdomen": 384.0, "pelvis": 384.0, "shoulder": 460.0, "head": 230.0}


def draw(seed, region, depth=4, matrix=96, z_step_mm=4.0, **options):
    pixel_mm = FIELD_MM[region] / matrix
    return make_phantom(
        seed, region, shape=(depth, matrix, matrix), spacing_mm=(z_step_mm, pixel_mm, pixel_mm), **options
    )


def at(phantom, *organs):
    return np.isin(phantom.organs, [ORGAN_LABELS[organ] for organ in organs])


def patient_of(seed, region, phase):
    return Patient.draw(np.random.default_rng([seed, REGIONS.index(region)]), region, phase)


@pytest.mark.parametrize("region", REGIONS)
def test_a_slab_is_the_same_slab_of_a_bigger_volume(region):
    big = draw(3, region, depth=13, matrix=64, z_centre_mm=10.0)
    slab = draw(3, region, depth=3, matrix=64, z_centre_mm=10.0 + 3 * 4.0)
    for name in ("organs", "lesion_mask"):
        assert np.array_equal(getattr(big, name)[8:11] > 0, getattr(slab, name) > 0)
    assert np.array_equal(big.volume.hu[8:11], slab.volume.hu)
    assert big.volume.affine_lps[2, 3] + 8 * 4.0 == pytest.approx(slab.volume.affine_lps[2, 3])
    again, other = (draw(seed, region, depth=3, matrix=64, z_centre_mm=22.0) for seed in (3, 4))
    assert np.array_equal(again.volume.hu, slab.volume.hu)
    assert np.abs(other.volume.hu - slab.volume.hu).mean() > 15.0


@pytest.mark.parametrize("region", REGIONS)
def test_the_body_lies_in_the_field_of_view(region):
    for seed in range(4):
        phantom = draw(seed, region, depth=3, matrix=64, z_step_mm=30.0)
        for edge in (phantom.organs[:, 0], phantom.organs[:, :, 0], phantom.organs[:, :, -1]):
            assert not edge.any()
        assert np.isfinite(phantom.volume.hu).all() and (phantom.volume.hu[:, 0] == -1000.0).all()
        assert phantom.volume.conditions.body_part == region.upper()


@pytest.mark.parametrize(
    ("region", "z_mm", "tissues"),
    [
        ("pelvis", -30.0, ("fat", "muscle", "bladder", "trabecular_bone")),
        ("shoulder", 55.0, ("fat", "muscle", "thyroid", "airway")),
        ("head", 25.0, ("csf", "white_matter")),
        ("thorax", 10.0, ("lung", "fat")),
        ("abdomen", 20.0, ("liver", "fat", "muscle")),
    ],
)
def test_tissues_have_the_hu_of_their_patient_away_from_their_edges(region, z_mm, tissues):
    for seed in range(2):
        phantom = draw(seed, region, matrix=192, z_step_mm=3.0, z_centre_mm=z_mm, contrast_phase="portal", findings=())
        truth = patient_of(seed, region, "portal").hu
        for tissue in tissues:
            core = np.stack([ndimage.binary_erosion(mask, iterations=2) for mask in at(phantom, tissue)])
            assert core.sum() > 25, tissue
            limit = 30.0 if tissue == "trabecular_bone" else 8.0
            assert np.median(phantom.volume.hu[core]) == pytest.approx(truth[tissue], abs=limit), tissue


@pytest.mark.parametrize("region", REGIONS)
def test_the_contrast_phase_changes_perfused_tissue_and_nothing_else(region):
    scans = [
        draw(5, region, matrix=128, z_centre_mm=0.0, contrast_phase=phase, findings=()) for phase in CONTRAST_PHASES
    ]
    perfused = at(scans[0], *{LABEL_OF.get(name, name) for name in PERFUSED_HU} - {"lung"})
    blood = [np.percentile(scan.volume.hu[at(scan, "blood")], 90) for scan in scans]
    assert blood[0] < 60.0 < blood[2] < blood[1]
    for scan in scans[1:]:
        assert np.array_equal(scan.organs, scans[0].organs)
        changed = np.abs(scan.volume.hu - scans[0].volume.hu) > 0.01
        away = ~ndimage.binary_dilation(perfused, np.ones((1, 3, 3)))
        inert = away & at(scan, "fat", "skin", "disc", "csf", "eye", "bladder", "trabecular_bone", "cartilage", "gas")
        assert inert.any() and changed[inert].mean() < 0.01  # vessels thinner than a pixel have no label


@pytest.mark.parametrize("region", REGIONS)
def test_lesions_change_the_hu_where_their_mask_lies(region):
    kinds = LESION_KINDS_OF_REGION[region]
    options = {"matrix": 128, "depth": 8, "z_centre_mm": 10.0 if region != "pelvis" else -20.0}
    ill = draw(2, region, findings=kinds, **options)
    healthy = draw(2, region, findings=(), **options)
    assert {lesion.kind for lesion in ill.lesions} == set(kinds) == set(ill.volume.conditions.findings)
    assert set(ill.volume.conditions.findings_absent) == set(LESION_KINDS) - set(kinds)
    assert set(healthy.volume.conditions.findings_absent) == set(LESION_KINDS)
    difference = ill.volume.hu - healthy.volume.hu
    near = ndimage.binary_dilation(ill.lesion_mask > 0, np.ones((3, 3, 3)))
    assert (np.abs(difference[~near]) > 0).mean() < 1e-3 and np.array_equal(ill.organs, healthy.organs)
    for number, lesion in enumerate(ill.lesions, start=1):
        mask, limits = ill.lesion_mask == number, LESION_RANGES[lesion.kind]
        assert mask.sum() >= MIN_FINDING_VOXELS
        assert at(ill, limits.organ, *limits.also)[mask].all()
        low, high = limits.hu
        absolute = patient_of(2, region, ill.volume.conditions.contrast_phase).hu.get(limits.relative_to, 0.0)
        assert low <= lesion.hu - absolute <= high
        core = ndimage.binary_erosion(mask, np.ones((1, 3, 3)))
        if core.sum() >= 25:
            shown = difference[core] if limits.adds else ill.volume.hu[core]
            assert np.mean(shown) == pytest.approx(lesion.hu, abs=20.0 if lesion.kind == "ground_glass_nodule" else 7.0)


def test_new_kinds_are_appended_so_that_indices_stay():
    assert LESION_KINDS == (
        "cyst", "ground_glass_nodule", "lytic", "metastasis", "solid_nodule", "haemorrhage", "infarct",
    )  # fmt: skip
    assert REGIONS == ("thorax", "abdomen", "pelvis", "shoulder", "head")


def test_the_skull_is_closed_around_the_brain():
    for seed in range(2):
        phantom = make_phantom(
            seed, "head", shape=(64, 112, 112), spacing_mm=(2.0, 2.0, 2.0), z_centre_mm=36.0, findings=()
        )
        bone = at(phantom, "cortical_bone", "trabecular_bone")
        brain = at(phantom, "grey_matter", "white_matter")
        open_space, _ = ndimage.label(~bone)
        outside = open_space[-1, 0, 0]
        assert outside and brain.sum() > 50_000
        assert not (open_space[brain] == outside).any()


def test_the_vault_has_two_tables_with_diploe_between():
    phantom = make_phantom(0, "head", shape=(1, 460, 460), spacing_mm=(2.0, 0.5, 0.5), z_centre_mm=35.0, findings=())
    skull = at(phantom, "cortical_bone", "trabecular_bone")[0, 230]
    runs, count = ndimage.label(skull)
    assert count == 2  # the right side and the left
    for run in (1, 2):
        hu, labels = phantom.volume.hu[0, 230][runs == run], phantom.organs[0, 230][runs == run]
        assert 4.0 < 0.5 * len(hu) < 10.0
        order = labels[np.insert(np.diff(labels.astype(int)) != 0, 0, True)].tolist()
        assert order == [ORGAN_LABELS[name] for name in ("cortical_bone", "trabecular_bone", "cortical_bone")]
        assert hu.max() > 900.0 > hu[len(hu) // 2]


def test_ventricles_and_sulci_widen_with_age_on_one_seed():
    fluid, deep, brain = [], [], []
    for age in (20, 45, 70, 90):
        phantom = draw(
            1, "head", depth=24, matrix=115, z_step_mm=2.0, z_centre_mm=22.0, age_years=age, sex="F", findings=()
        )
        inside = ndimage.binary_fill_holes(at(phantom, "cortical_bone", "trabecular_bone"), _IN_PLANE)
        csf = at(phantom, "csf")
        core = ndimage.binary_erosion(inside, _IN_PLANE, iterations=16)
        fluid.append(csf.sum())
        deep.append((csf & core).sum())
        brain.append(at(phantom, "grey_matter", "white_matter").sum())
    assert (np.diff(fluid) > 0).all() and (np.diff(deep) > 0).all() and (np.diff(brain) < 0).all()
    # Each diameter of a ventricle grows by 1.1 % a year after 20; in the slices it is an area.
    assert deep[-1] / deep[0] == pytest.approx((1.0 + 0.011 * 70.0) ** 2, rel=0.35)


def test_the_cortex_is_a_sheet_on_the_white_matter():
    phantom = make_phantom(2, "head", shape=(3, 230, 230), spacing_mm=(2.0, 1.0, 1.0), z_centre_mm=45.0, findings=())
    for grey, white in zip(at(phantom, "grey_matter"), at(phantom, "white_matter")):
        reach = ndimage.distance_transform_edt(grey)
        assert np.percentile(reach[grey], 95) < 4.5 and 0.25 < grey.sum() / (grey | white).sum() < 0.8
        assert white[115].sum() > 40


def test_sex_decides_on_prostate_and_uterus_and_age_on_their_size():
    volumes = {}
    for sex, organ, other in (("M", "prostate", "uterus"), ("F", "uterus", "prostate")):
        for age in (40, 70):
            phantom = draw(
                4, "pelvis", depth=40, matrix=128, z_step_mm=3.0, z_centre_mm=-20.0, sex=sex, age_years=age, findings=()
            )
            volumes[sex, age] = at(phantom, organ).sum()
            assert volumes[sex, age] > 50 and not at(phantom, other).any()
            assert at(phantom, "bladder").any() and at(phantom, "bowel").any()
    assert volumes["M", 70] / volumes["M", 40] == pytest.approx((1.0 + 0.011 * 30.0) ** 3, rel=0.12)
    assert volumes["F", 70] < 0.6 * volumes["F", 40]


def test_shoulders_of_men_are_broader_and_the_trachea_runs_through():
    width = {}
    for sex in "MF":
        phantom = draw(
            6, "shoulder", depth=30, matrix=153, z_step_mm=4.0, z_centre_mm=0.0, sex=sex, age_years=40, findings=()
        )
        width[sex] = np.flatnonzero(phantom.organs.any(axis=(0, 1))).size
        airway = at(phantom, "airway")
        _, count = ndimage.label(airway)
        assert count == 1 and airway.any(axis=(1, 2)).all()
        lungs, count = ndimage.label(at(phantom, "lung"))
        sizes = np.sort(np.bincount(lungs.ravel())[1:])[::-1]
        assert count >= 2 and sizes[1] > 0.5 * sizes[0]
    assert width["M"] > 1.04 * width["F"]


def test_gas_in_the_rectum_ends_at_its_level():
    seen = 0
    for seed in range(4):
        phantom = draw(seed, "pelvis", depth=4, matrix=192, z_step_mm=6.0, z_centre_mm=-10.0, findings=())
        rng = np.random.default_rng([seed, REGIONS.index("pelvis")])
        patient = Patient.draw(rng, "pelvis")
        phantom_pelvis.plan(patient, rng)
        level_mm = patient.details["rectum_level_mm"]
        gas = at(phantom, "bowel") & (phantom.volume.hu < -800.0)
        y_mm = (np.nonzero(gas)[1] - 95.5) * 2.0
        y_mm = y_mm[np.abs(y_mm - level_mm) < 20.0]  # other loops lie far in front
        seen += y_mm.size > 20
        assert (y_mm < level_mm + 1.0).all()
    assert seen >= 2


def test_fissures_part_the_lungs_into_five_lobes_and_the_airway_is_one_tree():
    grid = {"shape": (310, 135, 190), "spacing_mm": (1.0, 1.4, 1.4), "z_centre_mm": 10.0}
    phantom = make_phantom(4, "thorax", findings=(), contrast_phase="none", **grid)
    # A fissure is 1.3 mm thick: between two voxels it makes a third of its difference of 210 HU.
    lung = at(phantom, "lung") & (phantom.volume.hu < -785.0)
    parts, _ = ndimage.label(lung)
    sizes = np.bincount(parts.ravel())[1:]
    lobes = 1 + np.flatnonzero(sizes > 0.02 * lung.sum())
    x = [np.nonzero(parts == lobe)[2].mean() - 94.5 for lobe in lobes]
    assert len(lobes) == 5 and sum(place < 0 for place in x) == 3  # the patient's right is at low x
    assert sizes[lobes - 1].sum() > 0.99 * sizes.sum()
    _, airways = ndimage.label(at(phantom, "airway"), np.ones((3, 3, 3)))
    assert airways == 1


def test_bronchi_branch_from_one_another_and_stay_out_of_the_heart():
    for seed in range(4):
        rng = np.random.default_rng([seed, REGIONS.index("thorax")])
        patient = Patient.draw(rng, "thorax")
        phantom_thorax.plan(patient, rng)
        heart = ellipsoid(*patient.solids["heart"])
        for name in ("lung_right", "lung_left"):
            segments = [segment for segment, _ in phantom_thorax.bronchi(patient, name)]
            ends = {tuple(np.round(end, 6)) for _, end, _, _ in segments}
            hilum = tuple(segments[0][0])
            assert len(segments) > 40
            for start, end, radius, end_radius in segments:
                assert tuple(start) == hilum or (tuple(np.round(start, 6)) in ends and float(heart(tuple(start))) > 0.0)
                assert float(heart(tuple(end))) > 0.0 and 0.5 < end_radius <= radius < 7.0
