"""Spot features of volumes whose densest spots are known."""

import numpy as np
import pytest

from diffusers_ct.evaluation.spot_features import KNOTS_HU, SCALES_MM, SPOT_FEATURES, SPOT_MM3, spot_features

SPACING = (6.0, 3.0, 3.0)


def by_knot(hu: np.ndarray, spacing=SPACING) -> np.ndarray:
    """(knots, 3): middle, fine minus middle, middle minus coarse."""
    features = spot_features(hu, spacing)
    assert features.shape == (SPOT_FEATURES,) and features.dtype == np.float32
    return features.reshape(len(KNOTS_HU), 3)


def test_an_even_volume_belongs_to_its_two_knots_everywhere():
    found = by_knot(np.full((4, 16, 16), -675.0))  # a quarter of the way from -700 to -600
    expected = np.zeros((len(KNOTS_HU), 3))
    expected[KNOTS_HU.index(-700.0), 0], expected[KNOTS_HU.index(-600.0), 0] = 0.75, 0.25
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for beyond, end in ((-3000.0, 0), (3000.0, -1)):
        assert by_knot(np.full((4, 16, 16), beyond))[end, 0] == pytest.approx(1.0)


def test_a_single_voxel_is_a_gaussian_of_the_scale():
    spacing = (3.0, 3.0, 3.0)
    hu = np.full((41, 41, 41), -900.0)
    hu[20, 20, 20] = 300.0
    z, y, x = np.meshgrid(*[3.0 * np.arange(-20, 21)] * 3, indexing="ij")
    fine, middle, coarse = (
        27.0 * np.exp(-(z**2 + y**2 + x**2) / (2 * s**2)) / (2 * np.pi * s**2) ** 1.5 for s in SCALES_MM
    )
    spot = round(SPOT_MM3 / 27.0)
    expected = [np.sort(d.ravel())[-spot:].mean() for d in (middle, fine - middle, middle - coarse)]
    np.testing.assert_allclose(by_knot(hu, spacing)[-1], expected, rtol=0.03)


def test_place_and_flips_do_not_matter_and_size_does():
    def ball(centre, radius_mm) -> np.ndarray:
        z, y, x = np.meshgrid(
            *[s * (np.arange(n) - c) for s, n, c in zip(SPACING, (14, 32, 32), centre)], indexing="ij"
        )
        return np.where(z**2 + y**2 + x**2 < radius_mm**2, -600.0, -850.0)

    first = ball((6, 14, 14), 10.0)
    np.testing.assert_allclose(by_knot(first), by_knot(ball((7, 17, 16), 10.0)), atol=1e-5)
    for axis in range(3):
        np.testing.assert_allclose(by_knot(first), by_knot(np.flip(first, axis)), atol=1e-5)
    knot = KNOTS_HU.index(-600.0)
    small, large = by_knot(ball((6, 14, 14), 5.0))[knot], by_knot(ball((6, 14, 14), 15.0))[knot]
    assert small[0] < 0.5 * by_knot(first)[knot, 0] < 0.5 * large[0]
