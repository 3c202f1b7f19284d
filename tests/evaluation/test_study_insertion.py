"""The insertion study on methods whose effect on a lesion is known."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import norm

from diffusers_ct.conditions import ScanConditions
from diffusers_ct.evaluation.studies import TrueScan, insertion_study, phantom_scans
from diffusers_ct.evaluation.studies.insertion import FALSE_PER_CM2, SOFT_KERNEL_SD_MM, lesion_places, soft_tissue
from diffusers_ct.metrics import ball_lesion, with_lesions
from diffusers_ct.physics.low_contrast_phantom import scan_seed
from diffusers_ct.volume import CTVolume

SPACING_MM = (2.0, 1.5, 1.5)
SHAPE = (8, 96, 96)


def uniform_scan(key: str = "a") -> TrueScan:
    """A disc of tissue of 40 HU in air."""
    axis = np.arange(SHAPE[1]) - (SHAPE[1] - 1) / 2
    inside = np.hypot(axis[:, None], axis[None, :]) < 44
    hu = np.broadcast_to(np.where(inside, 40.0, -1000.0), SHAPE)
    conditions = ScanConditions(body_part="ABDOMEN", slice_thickness_mm=2.0)
    return TrueScan(key, CTVolume.from_array(hu, SPACING_MM, conditions), np.zeros(SHAPE, bool))


def ball(diameter_mm: float, contrast_hu: float):
    return ball_lesion(
        diameter_mm=diameter_mm, contrast_hu=contrast_hu, spacing_mm=SPACING_MM, edge_sd_mm=SOFT_KERNEL_SD_MM
    )


def blur(volume):
    return ndimage.gaussian_filter(volume.hu.astype(np.float64), (0.0, 1.2, 1.2))


def study(methods, *, scans=None, diameters=(5.0,), contrasts=(50.0,), doses=(0.25,)):
    return insertion_study(
        methods,
        scans or [uniform_scan("a"), uniform_scan("b")],
        dose_fractions=doses,
        diameters_mm=diameters,
        contrasts_hu=contrasts,
        places=40,
        seed=0,
    )


def test_identity_keeps_all_and_a_blur_loses_the_known_share():
    rows = study({"blur": blur}, diameters=(3.0, 8.0), contrasts=(20.0,))
    assert [(r["method"], r["diameter_mm"]) for r in rows] == [
        (name, d) for name in ("low dose", "blur") for d in (3.0, 8.0)
    ]
    for row in rows:
        profile = np.pad(ball(row["diameter_mm"], 20.0).profile_hu, ((0, 0), (9, 9), (9, 9)))
        # <G s, s> / <s, s> by Parseval, G(f) = exp(-2 (pi 1.2 f)^2) at f cycles a pixel
        f = np.hypot(*np.meshgrid(np.fft.fftfreq(profile.shape[1]), np.fft.fftfreq(profile.shape[2]), indexing="ij"))
        power = np.abs(np.fft.fft2(profile)) ** 2
        share = float(np.sum(np.exp(-2 * (np.pi * 1.2 * f) ** 2) * power) / power.sum())
        assert row["recovery"] == pytest.approx(1.0 if row["method"] == "low dose" else share, abs=3e-3)
        assert row["recovery_low"] <= row["recovery"] <= row["recovery_high"]
        assert row["n_places"] >= 19 and row["n_patients"] == 2 and row["group"] == "dose 25 %"


def eraser(volume):
    return np.where(volume.hu < -500.0, -1000.0, 40.0)


def test_an_eraser_is_caught():
    rows = {row["method"]: row for row in study({"eraser": eraser})}
    n = rows["eraser"]["n_places"]
    assert rows["eraser"]["erased"] == rows["eraser"]["missed"] == 1.0 and rows["eraser"]["false"] == 0.0
    assert rows["eraser"]["recovery"] == 0.0
    # Clopper and Pearson's bound where all of n fail
    assert rows["eraser"]["erased_low"] == pytest.approx(0.025 ** (1 / n)) and rows["eraser"]["erased_high"] == 1.0
    assert rows["low dose"]["erased"] == 0.0 and rows["low dose"]["missed"] < 0.5


def test_a_forger_is_caught():
    lesion = ball(5.0, 50.0)
    places = lesion_places(uniform_scan(), [lesion], count=40, seed=scan_seed(0, 0, 0))
    row = study({"forger": lambda volume: with_lesions(eraser(volume), lesion, places)}, scans=[uniform_scan()])[-1]
    assert row["n_places"] == len(places)
    assert row["false"] == 1.0 and row["missed"] == 0.0 and row["erased"] == 1.0  # found, but not what was there


def test_a_method_sees_the_scan_as_it_was_made():
    seen = []

    def look(volume):
        seen.append((volume.conditions.body_part, volume.conditions.dose_fraction, volume.spacing_mm))
        return volume.hu

    study({"look": look}, doses=(0.5,))
    assert set(seen) == {("ABDOMEN", 0.5, SPACING_MM)} and len(seen) == 4


def test_less_dose_misses_more():
    rows = study({}, diameters=(5.0,), contrasts=(20.0,), doses=(1.0, 0.05))
    assert rows[0]["missed"] < rows[1]["missed"] and rows[0]["dose_fraction"] == 1.0


def test_the_threshold_is_that_of_the_full_dose():
    """The filter's noise grows as 1 / sqrt(dose): of 5 % false positives at full dose, 36 % are left at a twentieth."""
    (row,) = study({}, contrasts=(20.0,), doses=(0.05,))
    expected = norm.sf(norm.isf(0.05) * np.sqrt(0.05))
    # Of some 50 places; at the low dose's own threshold no more than 5 % could be above it.
    assert row["n_places"] >= 40 and row["false"] == pytest.approx(expected, abs=0.2)
    assert row["false_low"] > 0.05


def test_false_lesions_a_square_centimetre_are_counted_in_all_tissue_without_lesions():
    def forger(volume):
        drawn = [(SHAPE[0] // 2, i, j) for i in range(16, 80, 16) for j in range(40, 57, 8)]
        return with_lesions(eraser(volume), ball(3.0, 50.0), drawn)

    scans = [uniform_scan("a"), uniform_scan("b")]
    rows = study(
        {"eraser": eraser, "forger": forger}, scans=scans, diameters=(3.0,), contrasts=(20.0, 50.0), doses=(0.1,)
    )
    keys = ("false_per_cm2", "false_per_cm2_low", "false_per_cm2_high")
    found = {row["method"]: [row[key] for key in keys] for row in rows}
    for row in rows:
        assert [row[key] for key in keys] == pytest.approx(found[row["method"]])  # the filter knows no contrast
    box = ball(3.0, 50.0).template.shape
    inside = soft_tissue(scans[0], box)
    inside[: box[0] // 2] = inside[SHAPE[0] - box[0] // 2 :] = False
    area_cm2 = 2 * inside.sum() * 1.5**2 / 100.0
    # Poisson's exact upper bound of none is -ln(0.025); the forger draws 12 in each of two scans.
    assert found["eraser"] == pytest.approx([0.0, 0.0, -np.log(0.025) / area_cm2])
    assert found["forger"][0] == pytest.approx(24 / area_cm2)
    assert found["low dose"][1] > FALSE_PER_CM2  # three times the noise, at the full dose's threshold


def test_too_little_tissue_has_no_density():
    """A disc of 22 mm in one slice of each of four scans: not the 50 cm^2 in which the full dose has one."""
    spacing_mm = (2.0, 0.5, 0.5)
    lesion = ball_lesion(diameter_mm=3.0, contrast_hu=50.0, spacing_mm=spacing_mm, edge_sd_mm=SOFT_KERNEL_SD_MM)
    hu = uniform_scan().volume.hu[: lesion.template.shape[0]]
    conditions = ScanConditions(body_part="ABDOMEN", slice_thickness_mm=2.0)
    scans = [TrueScan(key, CTVolume.from_array(hu, spacing_mm, conditions), np.zeros(hu.shape, bool)) for key in "abcd"]
    (row,) = study({}, scans=scans, diameters=(3.0,))
    assert row["n_places"] >= 19
    assert [row[key] for key in ("false_per_cm2", "false_per_cm2_low", "false_per_cm2_high")] == [None] * 3


def test_places_are_in_soft_tissue_away_from_edges_and_lesions():
    scan = phantom_scans([9001], ["abdomen"], shape=(8, 192, 192), spacing_mm=(2.0, 2.0, 2.0))[0]
    lesions = [ball_lesion(diameter_mm=d, contrast_hu=20.0, spacing_mm=(2.0, 2.0, 2.0), edge_sd_mm=0.6) for d in (3, 8)]
    box = lesions[1].template.shape
    places = lesion_places(scan, lesions, count=12, seed=1)
    assert len(places) == 12 and places == lesion_places(scan, lesions, count=12, seed=1)
    for k, (z, y, x) in enumerate(places):
        around = tuple(slice(c - n // 2, c + n // 2 + 1) for c, n in zip((z, y, x), box))
        truth = scan.volume.hu[around]
        assert truth.shape == box and truth.min() > -30 and truth.max() < 160 and truth.std() < 15.0
        assert not scan.lesions[around].any()
        for a, b, c in places[:k]:
            assert abs(z - a) >= box[0] or abs(y - b) >= box[1] or abs(x - c) >= box[2]


def test_bad_input_is_refused():
    shallow = TrueScan("a", CTVolume.from_array(np.full((3, 64, 64), 40.0), SPACING_MM), np.zeros((3, 64, 64), bool))
    with pytest.raises(ValueError, match="fill a box"):
        study({}, scans=[shallow])
    with pytest.raises(ValueError, match="one scan"):
        insertion_study({}, [], dose_fractions=(0.25,), diameters_mm=(5.0,), contrasts_hu=(20.0,), places=4, seed=0)
