"""Completing a body that the image cuts off: an ellipse whose cut part is known."""

import numpy as np
import pytest

from diffusers_ct.hounsfield import MU_WATER_PER_MM, hu_to_mu_per_mm
from diffusers_ct.physics.geometry import FanBeam, ParallelBeam
from diffusers_ct.physics.truncation import body_beyond_field_mm, body_reach_mm, borders_in_body, complete_body

PIXEL_MM = 0.8


def ellipse(width: int, *, half_mm=(230.0, 120.0), height: int = 400) -> np.ndarray:
    x = (np.arange(width) - (width - 1) / 2) * PIXEL_MM
    y = (np.arange(height) - (height - 1) / 2) * PIXEL_MM
    inside = (x[None, :] / half_mm[0]) ** 2 + (y[:, None] / half_mm[1]) ** 2 < 1
    return np.where(inside, 40.0, -1000.0).astype(np.float32)


def test_an_ellipse_cut_at_both_sides_is_completed():
    truth = ellipse(624)  # 499 mm
    cut = truth[:, 76:548]  # 378 mm
    wide, margin = complete_body(np.stack([cut, cut]), pixel_mm=PIXEL_MM, reach_mm=61.0)
    assert margin == 76 and wide.shape == (2, 400, 624) and wide.dtype == np.float32
    np.testing.assert_array_equal(wide[0], wide[1])
    np.testing.assert_array_equal(wide[0, :, 76:548], cut)
    # the longest rays, along the rows, are what matters: within 4 % of the true line integral
    rays, true_rays = (hu_to_mu_per_mm(image).sum(axis=1) * PIXEL_MM for image in (wide[0], truth))
    middle = slice(150, 250)
    np.testing.assert_allclose(rays[middle], true_rays[middle], rtol=0.04)
    without = hu_to_mu_per_mm(cut).sum(axis=1)[middle] * PIXEL_MM
    assert (without < 0.9 * true_rays[middle]).all()
    area = [(image > -500).sum() * PIXEL_MM**2 for image in (wide[0], truth)]
    assert area[0] == pytest.approx(area[1], rel=0.02)
    assert true_rays.max() == pytest.approx(2 * 230 * 1.04 * MU_WATER_PER_MM, rel=0.01)


def test_one_side_is_completed_alone_and_mirrored_images_give_mirrored_bodies():
    shifted = ellipse(624)[:, 76:]  # cut at the left
    wide, margin = complete_body(shifted[None], pixel_mm=PIXEL_MM, reach_mm=80.0)
    assert margin == 100
    assert (wide[0, :, -margin:] == -1000).all() and (wide[0, :, :margin] > -500).any()
    mirrored, _ = complete_body(shifted[None, :, ::-1], pixel_mm=PIXEL_MM, reach_mm=80.0)
    np.testing.assert_array_equal(mirrored[0], wide[0, :, ::-1])


def test_a_body_inside_the_image_is_left_as_it_is():
    whole = ellipse(500, half_mm=(150.0, 100.0))[None]
    assert complete_body(whole, pixel_mm=PIXEL_MM, reach_mm=50.0)[0] is whole
    assert complete_body(whole, pixel_mm=PIXEL_MM, reach_mm=50.0)[1] == 0
    cut = ellipse(500, half_mm=(400.0, 120.0))[None]
    assert complete_body(cut, pixel_mm=PIXEL_MM, reach_mm=0.0)[1] == 0  # nothing is measured beyond
    air = np.full((1, 300, 300), -1000.0, np.float32)
    assert complete_body(air, pixel_mm=PIXEL_MM, reach_mm=50.0)[1] == 0
    table = air.copy()
    table[0, 250:256] = 100.0  # 5 mm: a table's edge is no body
    assert complete_body(table, pixel_mm=PIXEL_MM, reach_mm=50.0)[1] == 0


def test_nothing_is_added_beyond_the_reach():
    cut = ellipse(624, half_mm=(2000.0, 120.0))[None, :, 76:548]
    wide, margin = complete_body(cut, pixel_mm=PIXEL_MM, reach_mm=20.0)
    assert margin == 25 and wide.shape[2] == 472 + 50
    assert (wide[0, 200] > -500).all()
    assert body_reach_mm(380.0) == pytest.approx(0.4 * 60.0) and body_reach_mm(520.0) == 0.0


def test_a_single_image_is_refused():
    with pytest.raises(ValueError, match="depth, height, width"):
        complete_body(ellipse(100), pixel_mm=PIXEL_MM, reach_mm=10.0)


def test_what_lies_beyond_the_field_and_the_borders_that_cut_are_told():
    body = ellipse(624)[None]  # 460 x 240 mm in 499 x 320 mm
    for field_mm, beyond_mm in ((500.0, 0.0), (440.0, 10.0), (300.0, 80.0)):
        assert body_beyond_field_mm(body, pixel_mm=PIXEL_MM, field_mm=field_mm) == pytest.approx(beyond_mm, abs=1.0)
    assert borders_in_body(body, pixel_mm=PIXEL_MM) == ()
    assert borders_in_body(body[:, :, 76:], pixel_mm=PIXEL_MM) == ("left",)
    assert borders_in_body(body[:, 100:-100, 76:-76], pixel_mm=PIXEL_MM) == ("left", "right", "upper", "lower")
    assert borders_in_body(np.full((1, 64, 64), -1000.0, np.float32), pixel_mm=PIXEL_MM) == ()


def test_the_field_is_the_circle_that_the_outermost_rays_touch():
    parallel, fan = ParallelBeam((64, 64), 1.0, bins=100, bin_mm=2.0), FanBeam((64, 64), 1.0, "arc")
    assert parallel.field_mm == 2 * (parallel.positions_mm.max() + 1.0)
    flat = FanBeam((64, 64), 1.0, "flat")
    for rays in (fan, flat):
        outermost = 2 * rays.parallel_coordinates()[1].max()
        assert outermost < rays.field_mm < outermost + 2.0
