"""Distances between distributions against closed forms of Gaussians and direct sums."""

import numpy as np
import pytest
from scipy import linalg

from diffusers_ct.metrics.distribution import (
    fid,
    frechet_distance,
    frechet_distance_of_samples,
    kid,
    relative_frechet_distance,
)
from diffusers_ct.metrics.feature_sets import FeatureSet


def covariance(features, rank, seed):
    x = np.random.default_rng(seed).normal(size=(features, rank))
    return x @ x.T / rank


def features_of(patients, slices, features=6, *, shift=0.0, seed=0, first=0, between=1.0):
    """Slices of one patient share a part, as real ones do."""
    rng = np.random.default_rng(seed)
    shared = between * rng.normal(size=(patients, 1, features))
    x = shift + shared + rng.normal(size=(patients, slices, features))
    return FeatureSet(x.reshape(-1, features), np.repeat(first + np.arange(patients), slices), "test")


def test_one_dimension_by_hand():
    assert frechet_distance(np.array([3.0]), np.array([[4.0]]), np.array([1.0]), np.array([[25.0]])) == pytest.approx(
        (3 - 1) ** 2 + (2 - 5) ** 2
    )


def test_commuting_covariances_by_hand():
    """In common eigenvectors the distance is |dm|^2 + sum (sd_a - sd_b)^2."""
    rotation = linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    a, b = np.array([1.0, 4.0, 0.0, 9.0]), np.array([4.0, 1.0, 16.0, 0.0])
    found = frechet_distance(np.zeros(4), (rotation * a) @ rotation.T, np.ones(4), (rotation * b) @ rotation.T)
    assert found == pytest.approx(4 + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2))


def test_full_rank_equals_the_matrix_square_root():
    a, b = covariance(7, 20, 0), covariance(7, 20, 1)
    root = linalg.sqrtm(a @ b)
    expected = np.trace(a) + np.trace(b) - 2 * np.trace(root).real + 7 * 0.25
    assert frechet_distance(np.zeros(7), a, np.full(7, 0.5), b) == pytest.approx(expected, rel=1e-9)


def test_rank_deficient_is_finite_symmetric_and_zero_for_equal():
    """Rank 3 of 40: the square root of A B that public code takes has imaginary parts here."""
    a, b = covariance(40, 3, 0), covariance(40, 3, 1)
    zero = np.zeros(40)
    forth, back = frechet_distance(zero, a, zero, b), frechet_distance(zero, b, zero, a)
    assert np.isfinite(forth) and forth == pytest.approx(back, rel=1e-12)
    # the closed form with factors: tr root = sum of singular values of X_a^T X_b
    x, y = (np.random.default_rng(s).normal(size=(40, 3)) / np.sqrt(3) for s in (0, 1))
    expected = np.trace(a) + np.trace(b) - 2 * linalg.svdvals(x.T @ y).sum()
    assert forth == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(zero, a, zero, a) == pytest.approx(0.0, abs=1e-6)


def test_shifts_and_scales_of_samples():
    x = np.random.default_rng(0).normal(size=(50, 8))
    assert frechet_distance_of_samples(x, x) == pytest.approx(0.0, abs=1e-12)
    assert frechet_distance_of_samples(x + 2.0, x) == pytest.approx(8 * 4)
    assert frechet_distance_of_samples(3 * (x - x.mean(0)), x - x.mean(0)) == pytest.approx(4 * x.var(0, ddof=1).sum())


@pytest.mark.parametrize("n", [5, 60])
def test_of_samples_equals_the_distance_of_their_moments(n):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, 12)) @ rng.normal(size=(12, 12)), rng.normal(1, 2, (n + 3, 12))
    expected = frechet_distance(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T))
    assert frechet_distance_of_samples(x, y) == pytest.approx(expected, rel=1e-6)


def test_large_samples_reach_the_distance_of_the_gaussians():
    a, b = covariance(4, 8, 0), covariance(4, 8, 1)
    rng = np.random.default_rng(0)
    x, y = (rng.multivariate_normal(np.full(4, m), c, 40_000) for m, c in ((0, a), (0.3, b)))
    exact = frechet_distance(np.zeros(4), a, np.full(4, 0.3), b)
    assert frechet_distance_of_samples(x, y) == pytest.approx(exact, rel=0.03)


def test_fid_is_refused_where_it_would_be_bias():
    few = features_of(49, 4), features_of(60, 4, seed=1)
    with pytest.raises(ValueError, match="kid"):
        fid(*few)
    thin = features_of(60, 1, 80), features_of(60, 1, 80, seed=1)
    with pytest.raises(ValueError, match="mostly bias"):
        fid(*thin)
    assert fid(*thin, allow_small_sample=True).small_sample
    enough = fid(features_of(60, 4), features_of(50, 4, seed=1), standard_error_groups=5)
    assert not enough.small_sample and enough.patients == (60, 50) and enough.slices == (240, 200)
    assert enough.extractor == "test" and 0 < enough.standard_error < enough.value


def test_jackknife_of_fid_is_the_spread_over_samples():
    found = [fid(features_of(50, 2, 3, shift=1.0, seed=2 * s), features_of(50, 2, 3, seed=2 * s + 1),
                 standard_error_groups=25) for s in range(60)]  # fmt: skip
    spread = np.std([f.value for f in found], ddof=1)
    assert np.mean([f.standard_error for f in found]) == pytest.approx(spread, rel=0.3)


def test_kid_is_the_direct_sum_with_one_slice_a_patient():
    a, b = features_of(7, 1), features_of(9, 1, seed=1)

    def kernel(x, y):
        return (x @ y / 6 + 1) ** 3

    within = [
        np.mean([kernel(x, y) for i, x in enumerate(s.features) for j, y in enumerate(s.features) if i != j])
        for s in (a, b)
    ]
    between = np.mean([kernel(x, y) for x in a.features for y in b.features])
    assert kid(a, b).value == pytest.approx(sum(within) - 2 * between, rel=1e-10)


def test_kid_leaves_out_pairs_of_one_patient_and_weighs_patients_alike():
    a, b = features_of(4, 3), features_of(5, 2, seed=1)
    uneven = FeatureSet(a.features[1:], a.patients[1:], "test")  # the first patient has 2 slices

    def kernel(x, y):
        return float(np.mean((x @ y.T / 6 + 1) ** 3))

    def parts(s):
        return [s.features[s.patients == p] for p in np.unique(s.patients)]

    within = [
        np.mean([kernel(x, y) for i, x in enumerate(parts(s)) for j, y in enumerate(parts(s)) if i != j])
        for s in (uneven, b)
    ]
    between = np.mean([kernel(x, y) for x in parts(uneven) for y in parts(b)])
    assert kid(uneven, b).value == pytest.approx(sum(within) - 2 * between, rel=1e-10)


def test_kid_jackknife_equals_leaving_out_by_hand():
    a, b = features_of(5, 2), features_of(6, 3, shift=0.5, seed=1)
    left_a = [kid(a.of_patients([q for q in range(5) if q != p]), b).value for p in range(5)]
    left_b = [kid(a, b.of_patients([q for q in range(6) if q != p])).value for p in range(6)]
    expected = np.sqrt(
        4 / 5 * np.sum((left_a - np.mean(left_a)) ** 2) + 5 / 6 * np.sum((left_b - np.mean(left_b)) ** 2)
    )
    assert kid(a, b).standard_error == pytest.approx(expected, rel=1e-9)


def test_kid_of_one_distribution_is_zero_within_its_error_though_slices_of_a_patient_are_alike():
    found = [kid(features_of(12, 5, seed=2 * s), features_of(10, 5, seed=2 * s + 1)) for s in range(150)]
    values = np.array([f.value for f in found])
    assert abs(values.mean()) < 3 * values.std(ddof=1) / np.sqrt(len(values))
    inside = np.mean([abs(f.value) < 2 * f.standard_error for f in found])
    assert inside > 0.93
    # the jackknife's variance is not below the real one
    assert np.mean([f.standard_error**2 for f in found]) > 0.8 * values.var(ddof=1)


def test_kid_of_a_shift_is_the_closed_form():
    """One feature: MMD^2 = 3 (m1 - n1)^2 + 3 (m2 - n2)^2 + (m3 - n3)^2 with raw moments m of N(d, 1), n of N(0, 1)."""
    d = 0.5
    exact = 3 * d**2 + 3 * (d**2) ** 2 + (d**3 + 3 * d) ** 2
    found = [
        kid(features_of(100, 1, 1, shift=d, between=0, seed=2 * s), features_of(100, 1, 1, between=0, seed=2 * s + 1))
        for s in range(200)
    ]
    values = np.array([f.value for f in found])
    assert values.mean() == pytest.approx(exact, abs=3 * values.std() / np.sqrt(200))
    assert np.mean([f.standard_error for f in found]) == pytest.approx(values.std(ddof=1), rel=0.25)


def test_relative_distance_is_one_for_more_of_the_same_and_large_for_another():
    real = features_of(120, 3, 4)
    same = relative_frechet_distance(features_of(60, 3, 4, seed=1), real, splits=20, seed=0)
    assert same.value == pytest.approx(1.0, abs=0.5)
    ratios = [
        relative_frechet_distance(features_of(60, 3, 4, seed=2 * s), features_of(120, 3, 4, seed=2 * s + 1), splits=10, seed=0).value
        for s in range(15)
    ]  # fmt: skip
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.25)
    assert relative_frechet_distance(features_of(60, 3, 4, shift=2.0, seed=1), real, splits=5, seed=0).value > 10


def test_relative_distance_repeats_with_its_seed_and_refuses_few():
    real, generated = features_of(120, 2, 4), features_of(70, 2, 4, seed=1)
    first = relative_frechet_distance(generated, real, splits=3, seed=5)
    assert first == relative_frechet_distance(generated, real, splits=3, seed=5)
    assert first.value != relative_frechet_distance(generated, real, splits=3, seed=6).value
    with pytest.raises(ValueError, match="mostly bias"):
        relative_frechet_distance(generated, features_of(80, 2, 4), splits=3, seed=5)
    with pytest.raises(ValueError, match="half as many"):
        relative_frechet_distance(features_of(20, 2, 4), real, splits=3, seed=5)


def test_patients_appear_in_no_representation():
    named = FeatureSet(np.ones((3, 2)) * np.arange(3)[:, None], np.array(["DOE^JANE", "ROE", "POE"]), "test")
    assert "DOE" not in repr(named) and "DOE" not in repr(kid(named, named))


def test_refusals():
    good = features_of(5, 2)
    with pytest.raises(ValueError, match="one extractor"):
        kid(good, FeatureSet(good.features, good.patients, "another"))
    with pytest.raises(ValueError, match="3 patients"):
        kid(features_of(2, 9), good)
    with pytest.raises(ValueError, match="not finite"):
        FeatureSet(np.full((2, 2), np.nan), np.arange(2), "test")
    with pytest.raises(ValueError, match="one patient a slice"):
        FeatureSet(np.zeros((2, 2)), np.arange(3), "test")
    with pytest.raises(ValueError, match="semi-definite"):
        frechet_distance(np.zeros(2), np.diag([1.0, -1.0]), np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="one size"):
        frechet_distance(np.zeros(3), np.eye(2), np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="groups"):
        fid(good, good, allow_small_sample=True, standard_error_groups=6)
