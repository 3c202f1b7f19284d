"""The memorisation check: copies are flagged, fresh volumes at the stated rate."""

import numpy as np
import pytest

from diffusers_ct.metrics.feature_sets import FeatureSet
from diffusers_ct.metrics.memorisation import memorisation_check


def sets(rng, *sizes, features=5):
    """Sets of fresh patients of one population, 2 slices each, numbered on."""
    found, first = [], 0
    for size in sizes:
        x = rng.normal(size=(size, 1, features)) + 0.5 * rng.normal(size=(size, 2, features))
        found.append(FeatureSet(x.reshape(-1, features), np.repeat(first + np.arange(size), 2), "test"))
        first += size
    return found


def test_fresh_volumes_are_flagged_at_the_stated_rate():
    """m = 39 held-out patients: the second smallest distance is the threshold of exactly 2/40."""
    rng = np.random.default_rng(0)
    rates, p_values = [], []
    for _ in range(400):
        generated, training, held_out = sets(rng, 20, 30, 39)
        found = memorisation_check(generated, training, held_out, false_positive_rate=0.05)
        assert found.false_positive_rate == pytest.approx(0.05)
        rates.append(found.flagged.mean())
        p_values.append(found.p_value)
    error = np.std(rates) / np.sqrt(len(rates))
    assert np.mean(rates) == pytest.approx(0.05, abs=3 * error) and error < 0.005
    # distances of one simulation share the training set, but given it they are exchangeable: the test is exact too
    assert np.mean(np.array(p_values) < 0.1) == pytest.approx(0.1, abs=0.05)


def test_copies_are_flagged_and_traced():
    rng = np.random.default_rng(1)
    generated, training, held_out = sets(rng, 10, 30, 39)
    features = generated.features.copy()
    features[4:6] = training.features[20:22] + 0.01 * rng.normal(size=(2, 5))  # volume 2 copies patient 10
    features[11] = training.features[33]  # one slice of volume 5 copies one of patient 16
    leaking = FeatureSet(features, generated.patients, "test")
    found = memorisation_check(leaking, training, held_out, false_positive_rate=0.05)
    clean = memorisation_check(generated, training, held_out, false_positive_rate=0.05)
    assert found.flagged[[2, 5]].all() and not clean.flagged[[2, 5]].any()
    np.testing.assert_array_equal(np.delete(found.flagged, [2, 5]), np.delete(clean.flagged, [2, 5]))
    assert found.nearest[2] in (20, 21) and found.nearest[5] == 33
    assert found.distances[5] == 0.0


def test_a_generator_that_copies_throughout_fails_the_test_of_all():
    rng = np.random.default_rng(2)
    _, training, held_out = sets(rng, 1, 30, 39)
    copies = FeatureSet(training.features + 0.2 * rng.normal(size=training.features.shape), training.patients, "test")
    found = memorisation_check(copies, training, held_out, false_positive_rate=0.05)
    assert found.flagged.mean() > 0.9 and found.p_value < 1e-6


def test_distances_are_in_standard_deviations_and_ignore_constant_features():
    training = FeatureSet(np.array([[0.0, 0.0, 7.0], [2.0, 20.0, 7.0]]), np.array([0, 1]), "test")
    held_out = FeatureSet(np.tile([5.0, 50.0, 7.0], (19, 1)), np.arange(2, 21), "test")
    generated = FeatureSet(np.array([[3.0, 30.0, 7.0]]), np.array([99]), "test")
    found = memorisation_check(generated, training, held_out, false_positive_rate=0.05)
    assert found.distances == pytest.approx(np.sqrt(1 + 1)) and found.flagged.all()


def test_a_distance_at_the_threshold_is_not_flagged():
    """The rate k / (m + 1) is that of lying strictly below the k-th held-out distance."""
    generated, training, held_out = sets(np.random.default_rng(3), 10, 30, 39)
    found = memorisation_check(generated, training, held_out, false_positive_rate=0.05)
    patient = np.unique(held_out.patients)[int(np.argsort(found.held_out_distances)[1])]
    same = held_out.of_patients([patient])
    found = memorisation_check(same, training, held_out, false_positive_rate=0.05)
    assert found.distances[0] == found.threshold and not found.flagged.any()


def test_refusals():
    generated, training, held_out = sets(np.random.default_rng(0), 4, 10, 12)
    with pytest.raises(ValueError, match="19 held-out patients"):
        memorisation_check(generated, training, held_out, false_positive_rate=0.05)
    with pytest.raises(ValueError, match="both in training and held out"):
        memorisation_check(generated, training, training, false_positive_rate=0.1)
    with pytest.raises(ValueError, match="same number"):
        memorisation_check(
            FeatureSet(generated.features[1:], generated.patients[1:], "test"),
            training,
            held_out,
            false_positive_rate=0.1,
        )
    with pytest.raises(ValueError, match="one extractor"):
        memorisation_check(
            FeatureSet(generated.features, generated.patients, "x"), training, held_out, false_positive_rate=0.1
        )
    with pytest.raises(ValueError, match="false_positive_rate"):
        memorisation_check(generated, training, held_out, false_positive_rate=5)
