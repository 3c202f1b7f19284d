"""Neighbours that share no photons have uncorrelated noise; where the anatomy differs, nothing is compared."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from diffusers_ct.conditions import ScanConditions
from diffusers_ct.data import NeighbouringSlices
from diffusers_ct.data.manifest import features, make_row
from diffusers_ct.physics import correlate_slices

MATRIX = (96, 96)
NOISE_HU = 20.0


def rows(volume_hu, spacing_mm=2.0, thickness_mm=2.0):
    row = make_row(
        volume_hu, volume_hu, scan_key="a", patient_key="p", split="train", dose_fraction=0.25,
        spacing_mm=(spacing_mm, 0.7, 0.7), affine_lps=np.eye(4), target="same_scan",
        conditions=ScanConditions(slice_thickness_mm=thickness_mm), provenance={},
    )  # fmt: skip
    row["noise_hu"] = [NOISE_HU] * len(volume_hu)
    return Dataset.from_list([{**row, "low": row["low"].tolist(), "full": row["full"].tolist()}], features(MATRIX))


def white(depth):
    return np.random.default_rng(0).normal(0.0, NOISE_HU, (depth, *MATRIX)).astype(np.float32)


def correlation(pairs):
    one, two = (np.concatenate([pairs[i][name].numpy().ravel() for i in range(len(pairs))]) for name in ("input_hu", "target_hu"))  # fmt: skip
    return np.corrcoef(one, two)[0, 1]


def test_noise_of_the_pairs_is_uncorrelated_also_for_overlapping_slices():
    assert abs(correlation(NeighbouringSlices(rows(white(8)), "low"))) < 0.01
    overlapping = correlate_slices(white(12), 1.0, 3.0)  # neighbours share two thirds of their photons
    assert np.corrcoef(overlapping[4].ravel(), overlapping[5].ravel())[0, 1] > 0.5
    pairs = NeighbouringSlices(rows(overlapping, spacing_mm=1.0, thickness_mm=3.0), "low")
    assert abs(correlation(pairs)) < 0.03
    assert len(pairs) == 2 * (12 - 3)


def test_each_slice_meets_its_neighbour_on_either_side():
    volume = np.arange(5.0)[:, None, None] * 10 + np.zeros(MATRIX)
    pairs = NeighbouringSlices(rows(volume), "low")
    met = [
        (float(pairs[i]["input_hu"].mean()) / 10, float(pairs[i]["target_hu"].mean()) / 10) for i in range(len(pairs))
    ]
    assert met == [(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2), (3, 4), (4, 3)]
    assert pairs[0]["input_hu"].shape == (1, 1, *MATRIX) and pairs[0]["weight"].dtype == torch.float32


def test_other_anatomy_has_no_weight_and_noise_alone_has_all():
    volume = white(2)
    volume[1, 30:60, 30:60] += 60.0
    weight = NeighbouringSlices(rows(volume), "low")[0]["weight"][0, 0].numpy()
    assert weight[36:54, 36:54].max() == 0.0
    outside = np.ones(MATRIX, dtype=bool)
    outside[26:64, 26:64] = False
    assert weight[outside].mean() > 0.999  # the mean of 49 pixels has SD sqrt(2) x 20 / 7 = 4 HU, a fifth of the limit


def test_scans_that_have_no_pairs_are_refused():
    with pytest.raises(ValueError, match="thickness of scan a is not known"):
        NeighbouringSlices(rows(white(4), thickness_mm=None), "low")
    assert len(NeighbouringSlices(rows(white(4), thickness_mm=None), "low", slice_thickness_mm=2.0)) == 6
    with pytest.raises(ValueError, match=r"within 5 mm; the nearest independent ones are 10 mm apart"):
        NeighbouringSlices(rows(white(4), spacing_mm=10.0, thickness_mm=5.0), "low")
    with pytest.raises(IndexError):
        NeighbouringSlices(rows(white(2)), "low")[2]
