"""Four tests of the transform: identity, effect, exact, alike for all parts of a sample."""

import numpy as np
import pytest

from diffusers_ct.data import transforms
from diffusers_ct.data.transforms import Orientation

ALL = [Orientation(z, x, turns) for z in (False, True) for x in (False, True) for turns in range(4)]


@pytest.fixture
def volume():
    return np.arange(2 * 3 * 3, dtype=np.int16).reshape(2, 3, 3)


def test_default_changes_nothing_and_copies(volume):
    same = transforms.apply(volume, Orientation())
    assert np.array_equal(same, volume) and not np.shares_memory(same, volume)


def test_the_sixteen_orientations_differ_and_keep_every_value(volume):
    results = [transforms.apply(volume, o) for o in ALL]
    assert len({r.tobytes() for r in results}) == 16
    assert all(r.dtype == np.int16 and sorted(r.ravel()) == sorted(volume.ravel()) for r in results)


def test_one_turn_is_numpys(volume):
    turned = transforms.apply(volume, Orientation(flip_z=True, quarter_turns=1))
    assert np.array_equal(turned, np.stack([np.rot90(volume[1]), np.rot90(volume[0])]))


def test_slices_and_spacing_follow():
    assert transforms.apply_to_slices(np.array([1.0, 2.0]), Orientation(flip_z=True)).tolist() == [2.0, 1.0]
    assert transforms.apply_to_spacing(np.array([3.0, 1.0, 2.0]), Orientation(quarter_turns=3)).tolist() == [3, 2, 1]
    assert transforms.apply_to_spacing(np.array([3.0, 1.0, 2.0]), Orientation(quarter_turns=2)).tolist() == [3, 1, 2]


def test_drawing_repeats_and_reaches_all():
    drawn = [transforms.draw(np.random.default_rng(seed), square=True) for seed in range(400)]
    assert drawn == [transforms.draw(np.random.default_rng(seed), square=True) for seed in range(400)]
    assert set(drawn) == set(ALL)
    oblong = {transforms.draw(np.random.default_rng(seed), square=False).quarter_turns for seed in range(100)}
    assert oblong == {0, 2}
