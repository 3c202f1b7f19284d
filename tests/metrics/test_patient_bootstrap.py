"""The bootstrap over patients against the variance of DeLong, and against counts by hand."""

import numpy as np
import pytest

from diffusers_ct.metrics.patient_bootstrap import draw_patients, paired_bootstrap, percentile_interval
from diffusers_ct.metrics.roc import auc, resampled_auc


def cases(rng, n_present: int, n_absent: int, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Ratings of two unit Gaussians."""
    return rng.standard_normal(n_present) + distance, rng.standard_normal(n_absent)


def delong_variance(present: np.ndarray, absent: np.ndarray) -> float:
    """Variance of the AUC from its placement values: DeLong et al. 1988, doi:10.2307/2531595, eq. 4 to 6."""
    x, y = present[:, None], absent[None]
    wins = (x > y) + 0.5 * (x == y)
    return wins.mean(axis=1).var(ddof=1) / x.size + wins.mean(axis=0).var(ddof=1) / y.size


def test_bootstrap_has_the_spread_of_delong():
    rng = np.random.default_rng(3)
    present, absent = cases(rng, 60, 90, 1.0)
    values = paired_bootstrap(auc, present[None, None], absent[None, None], resamples=1000, seed=0)
    assert values.shape == (1, 1000)
    assert values.std() == pytest.approx(np.sqrt(delong_variance(present, absent)), rel=0.06)
    assert values.mean() == pytest.approx(auc(present, absent), abs=0.005)
    again = paired_bootstrap(auc, present[None, None], absent[None, None], resamples=1000, seed=0)
    np.testing.assert_array_equal(values, again)
    ratings, truth = np.concatenate([present, absent]), np.arange(150) < 60
    counts = draw_patients([str(k) for k in range(150)], truth, resamples=1000, seed=0)
    drawn = resampled_auc(ratings[truth], ratings[~truth], counts[:, truth], counts[:, ~truth])
    assert drawn.std() == pytest.approx(np.sqrt(delong_variance(present, absent)), rel=0.06)


def test_the_interval_leaves_as_much_below_as_above():
    assert percentile_interval(np.arange(101.0)) == pytest.approx((2.5, 97.5))
    assert percentile_interval(np.arange(101.0), 0.8) == pytest.approx((10.0, 90.0))


def test_bootstrap_interval_covers_the_truth():
    def distance(present: np.ndarray, absent: np.ndarray) -> np.ndarray:
        return present.mean(axis=-1) - absent.mean(axis=-1)

    rng = np.random.default_rng(4)
    covered = 0
    for seed in range(150):
        present, absent = cases(rng, 50, 50, 1.0)
        values = paired_bootstrap(distance, present[None, None], absent[None, None], resamples=100, seed=seed)
        low, high = percentile_interval(values[0])
        covered += low <= 1.0 <= high
    assert 132 <= covered <= 149  # 95 % of 150, within what chance, a small sample and few resamples allow


def test_bootstrap_is_paired_and_averages_runs():
    rng = np.random.default_rng(5)
    scores = np.concatenate(cases(rng, 50, 50, 1.0))
    runs = np.stack([scores, scores + 0.3 * rng.standard_normal(100)])
    unrelated = np.concatenate(cases(rng, 50, 50, 1.0))
    methods = np.stack([runs, 2.0 * runs + 1.0, runs[::-1], np.stack([unrelated, unrelated])])
    values = paired_bootstrap(auc, methods[..., :50], methods[..., 50:], resamples=400, seed=0)
    np.testing.assert_array_equal(values[0], values[1])  # AUC does not see a change of scale: no difference at all
    np.testing.assert_allclose(values[0], values[2], rtol=1e-12)  # nor the order of the runs
    single = paired_bootstrap(auc, runs[:, None, :50], runs[:, None, 50:], resamples=400, seed=0)
    np.testing.assert_allclose(values[0], single.mean(axis=0), rtol=1e-12)
    # two runs on the same patients differ less than two unrelated readers do
    assert (single[0] - single[1]).std() < 0.5 * (values[0] - values[3]).std()


def test_all_cases_of_a_patient_come_together_and_no_resample_lacks_a_kind():
    patients = ["a", "b", "a", "c", "d", "b", "e"]
    truth = np.array([True, False, True, False, True, True, False])  # a, d: with alone; c, e: without; b: both
    counts = draw_patients(patients, truth, resamples=500, seed=1)
    assert counts.shape == (500, 7)
    np.testing.assert_array_equal(counts[:, 0], counts[:, 2])
    assert (counts[:, 1] == 1).all() and (counts[:, 5] == 1).all()  # the only one of its kind
    assert (counts[:, 0] + counts[:, 4] == 2).all() and (counts[:, 3] + counts[:, 6] == 2).all()
    assert {0, 1, 2} == set(counts[:, 0].tolist())
    np.testing.assert_array_equal(counts, draw_patients(patients, truth, resamples=500, seed=1))


def test_cases_of_one_patient_say_less_than_as_many_patients():
    rng = np.random.default_rng(6)
    twice = [np.repeat(kind, 2) for kind in cases(rng, 40, 40, 1.0)]
    truth = np.arange(160) < 80

    def spread(patients: list[str]) -> float:
        counts = draw_patients(patients, truth, resamples=2000, seed=0)
        return resampled_auc(*twice, counts[:, :80], counts[:, 80:]).std()

    of_patients, of_cases = spread([str(k // 2) for k in range(160)]), spread([str(k) for k in range(160)])
    assert of_patients == pytest.approx(np.sqrt(2.0) * of_cases, rel=0.08)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="methods, runs, patients"):
        paired_bootstrap(auc, np.zeros(3), np.zeros(3), resamples=10, seed=0)
    with pytest.raises(ValueError, match="must be bool of 2 cases"):
        draw_patients(["a", "b"], np.array([1, 0]), resamples=3, seed=0)
    with pytest.raises(ValueError, match="must be bool of 2 cases"):
        draw_patients(["a", "b"], np.array([True, False, True]), resamples=3, seed=0)
    with pytest.raises(ValueError, match="with and without"):
        draw_patients(["a", "b"], np.array([True, True]), resamples=3, seed=0)
