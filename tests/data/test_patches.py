"""Patches are the dataset's own voxels, repeat exactly, share memory with Arrow, and travel to workers."""

import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from torch.utils.data import DataLoader

from diffusers_ct.conditions import ScanConditions
from diffusers_ct.data import PatchDataset, volume_view
from diffusers_ct.data.manifest import features, make_row


def scan(number: int, depth: int, matrix: tuple[int, int] = (40, 40)) -> dict:
    """Each voxel of `full` holds a number of its own, `low` = `full` + 1; the left half is air."""
    full = np.arange(depth * matrix[0] * matrix[1]).reshape(depth, *matrix) % 2000 + 10.0 * number
    full[:, :, : matrix[1] // 2] = -1000.0
    row = make_row(
        full + 1, full, scan_key=f"s{number}", patient_key=f"p{number}", split="train", dose_fraction=0.25,
        spacing_mm=(2.0, 0.7, 0.8), affine_lps=np.eye(4), target="same_scan", conditions=ScanConditions(),
        provenance={},
    )  # fmt: skip
    return {**row, "noise_hu": [100.0 * number + z for z in range(depth)]}


def dataset(folder, depths, matrix=(40, 40)) -> Dataset:
    rows = [scan(number, depth, matrix) for number, depth in enumerate(depths)]
    return Dataset.from_generator(
        _rows, gen_kwargs={"rows": rows}, features=features(matrix), writer_batch_size=1, cache_dir=str(folder)
    )


def _rows(rows):
    yield from rows


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return dataset(tmp_path_factory.mktemp("scans"), [6, 9, 12])


def test_view_shares_memory_with_the_arrow_buffer_on_disk(scans):
    view = volume_view(scans, 1, "full")
    array = scans.data.column("full").chunks[0].storage
    for _ in range(3):
        array = array.flatten()
    first_chunk = array.to_numpy(zero_copy_only=True)
    assert np.shares_memory(volume_view(scans, 0, "full"), first_chunk)
    assert not view.flags.writeable and not view.flags.owndata
    before = pa.total_allocated_bytes()
    for _ in range(20):
        volume_view(scans, 2, "full")
    assert pa.total_allocated_bytes() == before
    assert scans.cache_files, "the rows are in memory, not in a mapped file"


def test_view_follows_selection_and_joining(scans):
    expected = scan(2, 12)["low"]
    assert np.array_equal(volume_view(scans.select([2, 0]), 0, "low"), expected)
    assert np.array_equal(volume_view(scans.shuffle(seed=1).sort("scan_key"), 2, "low"), expected)
    assert np.array_equal(volume_view(concatenate_datasets([scans, scans]), 5, "low"), expected)
    assert volume_view(scans, 0, "low").dtype == np.int16


def test_items_keep_the_contract_and_are_voxels_of_the_scan(scans):
    patches = PatchDataset(scans, (4, 16, 16), 30, seed=1, augment=False)
    volumes = [scan(number, depth)["full"] for number, depth in enumerate((6, 9, 12))]
    for item in (patches[i] for i in range(len(patches))):
        assert item["low_hu"].shape == item["full_hu"].shape == (1, 4, 16, 16)
        assert item["low_hu"].dtype == item["full_hu"].dtype == torch.int16
        assert torch.equal(item["low_hu"], item["full_hu"] + 1)
        number, start = divmod(int(item["noise_hu"][0]), 100)
        assert item["noise_hu"].tolist() == [100.0 * number + start + z for z in range(4)]
        windows = np.lib.stride_tricks.sliding_window_view(volumes[number][start : start + 4], (4, 16, 16))[0]
        assert (windows == item["full_hu"][0].numpy()).all(axis=(-3, -2, -1)).any()
        assert item["spacing_mm"].tolist() == pytest.approx([2.0, 0.7, 0.8]) and item["dose_fraction"] == 0.25


def test_augmentation_turns_both_images_alike(scans):
    patches = PatchDataset(scans, (4, 16, 16), 30, seed=1)
    items = [patches[i] for i in range(30)]
    assert all(torch.equal(item["low_hu"], item["full_hu"] + 1) for item in items)
    assert {round(item["spacing_mm"][1].item(), 3) for item in items} == {0.7, 0.8}
    assert any(item["noise_hu"][0] > item["noise_hu"][-1] for item in items)


def test_item_depends_on_seed_epoch_and_index_alone(scans):
    patches = PatchDataset(scans, (4, 16, 16), 8, seed=5)
    first = [patches[i] for i in range(8)]
    assert all(torch.equal(patches[i]["low_hu"], first[i]["low_hu"]) for i in reversed(range(8)))
    copy = pickle.loads(pickle.dumps(patches))
    assert all(torch.equal(copy[i]["low_hu"], first[i]["low_hu"]) for i in range(8))
    patches.set_epoch(1)
    assert any(not torch.equal(patches[i]["low_hu"], first[i]["low_hu"]) for i in range(8))
    patches.set_epoch(0)
    assert torch.equal(patches[3]["low_hu"], first[3]["low_hu"])
    other = PatchDataset(scans, (4, 16, 16), 8, seed=6)
    assert any(not torch.equal(other[i]["low_hu"], first[i]["low_hu"]) for i in range(8))
    with pytest.raises(IndexError):
        patches[8]


def test_workers_give_the_same_batches(scans):
    patches = PatchDataset(scans, (4, 16, 16), 8, seed=5)
    here = next(iter(DataLoader(patches, batch_size=8)))
    there = next(iter(DataLoader(patches, batch_size=8, num_workers=1, multiprocessing_context="spawn")))
    assert here["noise_hu"].shape == (8, 4) and here["low_hu"].shape == (8, 1, 4, 16, 16)
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_scans_are_drawn_by_their_slices(scans):
    patches = PatchDataset(scans, (4, 8, 8), 600, seed=0, augment=False)
    numbers = [int(patches[i]["noise_hu"][0]) // 100 for i in range(600)]
    assert np.allclose(np.bincount(numbers) / 600, np.array([6, 9, 12]) / 27, atol=0.06)


def test_patches_of_air_are_avoided(scans):
    patches = PatchDataset(scans, (4, 8, 8), 200, seed=0)
    body = [(patches[i]["full_hu"] > -900).float().mean().item() for i in range(200)]
    assert np.mean([fraction < 0.1 for fraction in body]) < 0.02  # about 0.4 without rejection


def test_different_matrices_join_as_a_list(scans, tmp_path):
    patches = PatchDataset([scans, dataset(tmp_path, [6], (24, 56))], (4, 16, 16), 60, seed=0)
    assert {patches[i]["low_hu"].shape for i in range(60)} == {(1, 4, 16, 16)}


def test_patches_that_do_not_fit_are_refused_with_the_way_out(scans):
    with pytest.raises(ValueError, match=r"thinnest scan has 6.*depth of at most 6.*dataset\.filter"):
        PatchDataset(scans, (8, 16, 16), 1, seed=0)
    thick = scans.filter(lambda noise: len(noise) >= 8, input_columns="noise_hu")
    assert PatchDataset(thick, (8, 16, 16), 1, seed=0)[0]["low_hu"].shape == (1, 8, 16, 16)
    with pytest.raises(ValueError, match="does not fit into the matrix of 40 x 40"):
        PatchDataset(scans, (4, 48, 16), 1, seed=0)
    with pytest.raises(ValueError, match="empty"):
        PatchDataset(scans.select([]), (4, 8, 8), 1, seed=0)
    with pytest.raises(ValueError, match="positive"):
        PatchDataset(scans, (0, 8, 8), 1, seed=0)
