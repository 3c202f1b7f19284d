"""The small classifier's batches, noise and training."""

import numpy as np
import pytest
import torch

from diffusers_ct import CTVolume
from diffusers_ct.evaluation import spot_classifier
from diffusers_ct.evaluation.spot_classifier import (
    draw_batch,
    feature_scale,
    labelled,
    mixed,
    noisy_features,
    train_spot_classifier,
)
from diffusers_ct.evaluation.spot_features import SPOT_FEATURES

SPACING = (12.0, 12.0, 12.0)


def coded(value: float, count: int, label: int) -> tuple[torch.Tensor, torch.Tensor]:
    return labelled(torch.full((2, count, SPOT_FEATURES), value), label)


def test_what_looks_synthetic_says_nothing_of_the_label():
    groups = coded(0.0, 2, 1), coded(0.0, 40, 0), coded(1.0, 9, 1), coded(1.0, 9, 0)
    features, label = draw_batch(groups, 16, torch.Generator().manual_seed(0))
    assert features.shape == (16, SPOT_FEATURES)
    looks_synthetic = features[:, 0] == 1.0
    for source in (False, True):
        assert sorted(label[looks_synthetic == source].tolist()) == [0.0] * 4 + [1.0] * 4


def test_few_come_as_rarely_as_they_are_and_every_copy_is_drawn():
    positives, negatives = (
        torch.arange(4.0)[:, None, None].expand(4, n, SPOT_FEATURES) + 10.0 * (n == 5) for n in (5, 95)
    )
    groups = (mixed(positives, negatives),)
    features, label = draw_batch(groups, 4000, torch.Generator().manual_seed(0))
    assert label.mean() == pytest.approx(0.05, abs=0.015)
    assert torch.equal(label, (features[:, 0] >= 10.0).float())
    assert set(features[:, 0].tolist()) == {0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0}


def test_volumes_get_noise_of_their_own_and_of_the_asked_strength(monkeypatch):
    # in the place of the features: what they are told
    monkeypatch.setattr(
        spot_classifier, "spot_features", lambda hu, spacing_mm: np.array([hu.mean(), hu.std(), *spacing_mm])
    )
    volumes = np.stack([np.full((4, 32, 32), value, np.int16) for value in (-800, 40)])
    same = noisy_features(volumes, SPACING, 10.0, varying=False, copies=3, seed=0)
    assert same.shape == (3, 2, 5) and same[0, 0, 2:].tolist() == list(SPACING)
    assert same[..., 0].numpy() == pytest.approx(np.array([[-800.0, 40.0]] * 3), abs=1.0)
    assert same[..., 1].numpy() == pytest.approx(10.0, rel=0.05)
    strengths = noisy_features(volumes, SPACING, 30.0, varying=True, copies=100, seed=0)[..., 1].flatten()
    assert strengths.min() < 2.0 and 28.0 < strengths.max() < 31.0
    assert strengths.mean() == pytest.approx(15.0, abs=2.0) and len(set(strengths.tolist())) == 200


def test_a_trained_classifier_judges_scans():
    rng = np.random.default_rng(0)
    absent = -850.0 + 40.0 * rng.standard_normal((30, 3, 20, 20))
    present = absent.copy()
    present[:, 1, 8:12, 8:12] += 400.0
    features = [noisy_features(v, (4.0, 4.0, 4.0), 10.0, varying=False, copies=1, seed=0) for v in (present, absent)]
    groups = labelled(features[0], 1), labelled(features[1], 0)
    model = train_spot_classifier(groups, scale=feature_scale(features[1]), steps=60, batch_size=8, seed=0)
    with_finding, without = (CTVolume.from_array(hu, (4.0, 4.0, 4.0)) for hu in (present[0], absent[1]))
    assert model.score(with_finding) > 0.0 > model.score(without)
    with pytest.raises(ValueError, match="equal parts of 2 groups"):
        train_spot_classifier(groups, scale=feature_scale(features[1]), steps=1, batch_size=7, seed=0)
