"""HU, attenuation, volumes and conditions: closed forms and refusals."""

import numpy as np
import pytest
import torch

from diffusers_ct import CTVolume, ScanConditions
from diffusers_ct.hounsfield import (
    MU_WATER_PER_MM,
    WINDOWS_HU,
    companded_to_hu,
    hu_to_companded,
    hu_to_mu_per_mm,
    hu_to_unit,
    mu_per_mm_to_hu,
    unit_to_hu,
    window_bounds_hu,
)


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_attenuation_of_water_air_and_bone(make):
    hu = make([-1000.0, 0.0, 1000.0, -1500.0])
    mu = hu_to_mu_per_mm(hu)
    assert type(mu) is type(hu)
    assert mu.tolist() == pytest.approx([0.0, MU_WATER_PER_MM, 2 * MU_WATER_PER_MM, 0.0])
    assert mu_per_mm_to_hu(mu).tolist() == pytest.approx([-1000.0, 0.0, 1000.0, -1000.0])


@pytest.mark.parametrize("window", [*WINDOWS_HU, (-100.0, 300.0)])
def test_window_ends_are_minus_one_and_one(window):
    lower, upper = window_bounds_hu(window)
    unit = hu_to_unit(np.array([lower - 50, lower, (lower + upper) / 2, upper, upper + 50]), window)
    assert unit.tolist() == pytest.approx([-1, -1, 0, 1, 1])
    assert unit_to_hu(unit[1:4], window).tolist() == pytest.approx([lower, (lower + upper) / 2, upper])
    assert hu_to_unit(np.array([upper + (upper - lower) / 2]), window, clip=False)[0] == pytest.approx(2.0)


def test_unknown_or_empty_windows_are_refused():
    with pytest.raises(ValueError, match="Unknown window"):
        hu_to_unit(np.zeros(1), "mediastinum")
    with pytest.raises(ValueError, match="lower < upper"):
        hu_to_unit(np.zeros(1), (10.0, 10.0))


def volume() -> CTVolume:
    return CTVolume.from_array(np.arange(4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8), (3.0, 0.5, 0.6))


def test_from_array_is_centred_at_the_origin():
    v = volume()
    np.testing.assert_allclose(v.affine_lps @ [3.5, 2.5, 1.5, 1], [0, 0, 0, 1], atol=1e-12)


def test_crop_keeps_every_voxel_in_its_place():
    v = volume()
    part = v.crop((1, 2, 3), (2, 3, 4))
    assert part.hu[0, 0, 0] == v.hu[1, 2, 3] and part.shape == (2, 3, 4)
    np.testing.assert_allclose(part.affine_lps @ [0, 0, 0, 1], v.affine_lps @ [3, 2, 1, 1])
    with pytest.raises(ValueError, match="leaves the volume"):
        v.crop((3, 0, 0), (2, 6, 8))


def test_resampling_a_linear_field_is_exact():
    z, y, x = np.meshgrid(np.arange(5) * 2.0, np.arange(9) * 1.0, np.arange(9) * 1.0, indexing="ij")
    v = CTVolume.from_array((z + 2 * y - x).astype(np.float32), (2.0, 1.0, 1.0))
    finer = v.resample((1.0, 0.5, 2.0))
    assert finer.shape == (9, 17, 5) and finer.spacing_mm == (1.0, 0.5, 2.0)
    assert finer.hu[3, 5, 2] == pytest.approx(3.0 + 2 * 2.5 - 4.0)
    np.testing.assert_allclose(finer.affine_lps @ [2, 5, 3, 1], v.affine_lps @ [4, 2.5, 1.5, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hu": np.zeros((2, 2))}, "depth, height, width"), ({"spacing_mm": (0, 1, 1)}, "positive"),
        ({"affine_lps": np.eye(3)}, "affine_lps"), ({"spacing_mm": (3.0, 0.5, 0.7)}, "does not agree"),
    ],
)  # fmt: skip
def test_volumes_that_contradict_themselves_are_refused(change, message):
    v = volume()
    with pytest.raises(ValueError, match=message):
        CTVolume(**{"hu": v.hu, "spacing_mm": v.spacing_mm, "affine_lps": v.affine_lps, **change})


def test_new_values_keep_the_scan():
    v = volume()
    assert v.with_hu(v.hu + 1).spacing_mm == v.spacing_mm
    with pytest.raises(ValueError, match="shape"):
        v.with_hu(v.hu[:2])


def test_conditions_know_their_ranges():
    unknown = dict.fromkeys(ScanConditions().to_dict()) | {"findings": (), "findings_absent": ()}
    assert ScanConditions().to_dict() == unknown
    for wrong in ({"dose_fraction": 0.0}, {"dose_fraction": 1.5}, {"sex": "female"}, {"kvp": -1.0}):
        with pytest.raises(ValueError, match="must"):
            ScanConditions(**wrong)


KNOTS = {-1024.0: -1.0, -700.0: -0.75, -160.0: -0.5, 240.0: 0.5, 1050.0: 0.8, 3071.0: 1.0}


def test_companded_scale_gives_soft_tissue_half_of_the_range():
    hu, unit = torch.tensor(list(KNOTS)), torch.tensor(list(KNOTS.values()))
    assert torch.equal(hu_to_companded(hu), unit)
    torch.testing.assert_close(companded_to_hu(unit), hu, rtol=0, atol=1e-3)
    # straight between the knots: water is 160 / 400 of the way from -0.5 to 0.5
    assert hu_to_companded(torch.tensor([0.0])).item() == pytest.approx(-0.1, abs=1e-6)
    fine = torch.linspace(-1024.0, 3071.0, 40951)
    companded = hu_to_companded(fine)
    assert (companded.diff() > 0).all()
    expected = np.interp(fine.numpy().astype(float), list(KNOTS), list(KNOTS.values()))
    np.testing.assert_allclose(companded.numpy(), expected, atol=1e-6)
    assert (companded_to_hu(companded) - fine).abs().max() < 0.01


def test_companded_scale_clips_and_passes_what_is_not_known():
    hu = torch.tensor([torch.nan, -9000.0, 9000.0, torch.inf, -torch.inf])
    companded = hu_to_companded(hu)
    assert companded[0].isnan() and companded[1:].tolist() == [-1.0, 1.0, 1.0, -1.0]
    back = companded_to_hu(torch.tensor([torch.nan, -1.5, 1.5]))
    assert back[0].isnan() and back[1:].tolist() == [-1024.0, 3071.0]


@pytest.mark.filterwarnings("error")
def test_companded_scale_takes_any_layout_and_type():
    hu = torch.arange(-600, 600, 50).reshape(2, 3, 4)
    turned = hu_to_companded(hu.transpose(0, 2))
    assert turned.dtype == torch.float32 and torch.equal(turned, hu_to_companded(hu.float()).transpose(0, 2))
    assert hu_to_companded(hu.to(torch.int16)).shape == (2, 3, 4)
