"""Patches of a stream: those of the scans, the same for any number of workers, from disk and from the Hub."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from diffusers_ct.conditions import ConditionVocabulary
from diffusers_ct.data import PatchDataset, StreamingPatches, load_paired_ct, prepare_paired_ct, volume_view
from tests.hub_server import LocalHub, Repo

ROOT = Path(__file__).parents[2]
SIZE = (2, 16, 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("stream") / "out"
    prepare_paired_ct(
        out, phantoms=6, dose_fractions=(0.25,), shape=(4, 40, 40), spacing_mm=(3.0, 9.0, 9.0),
        validation_fraction=0.0, test_fraction=0.0, shard_size_mb=0.06,
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def stream(folder):
    return load_paired_ct(folder, "train", streaming=True)


def fingerprint(item):
    return hashlib.sha256(b"".join(item[name].numpy().tobytes() for name in sorted(item))).hexdigest()


def prints_of(patches, **loader):
    return [fingerprint(item) for item in DataLoader(patches, batch_size=None, **loader)]


def test_items_are_voxels_of_the_scans_in_the_form_of_patch_dataset(folder, stream):
    rows = load_paired_ct(folder, "train")
    expected = PatchDataset(rows, SIZE, 1, seed=0)[0]
    patches = StreamingPatches(stream, SIZE, patches_per_slice=1.5, seed=1, augment=False)
    items = list(patches)
    assert len(items) == 6 * 6
    seen = set()
    for item in items:
        assert {name: (v.shape, v.dtype) for name, v in item.items()} == {
            name: (v.shape, v.dtype) for name, v in expected.items()
        }
        for index in range(len(rows)):
            windows = np.lib.stride_tricks.sliding_window_view(volume_view(rows, index, "low"), SIZE)
            if found := np.argwhere((windows == item["low_hu"][0].numpy()).all(axis=(-3, -2, -1))).tolist():
                z, y, x = found[0]
                box = (slice(z, z + SIZE[0]), slice(y, y + SIZE[1]), slice(x, x + SIZE[2]))
                assert np.array_equal(volume_view(rows, index, "full")[box], item["full_hu"][0].numpy())
                assert item["noise_hu"].tolist() == pytest.approx(rows[index]["noise_hu"][box[0]])
                seen.add(index)
                break
        else:
            pytest.fail("a patch that is in no scan")
    assert seen == set(range(6))


def test_an_epoch_has_the_same_patches_for_any_number_of_workers(stream):
    patches = StreamingPatches(stream, SIZE, patches_per_slice=1.3, seed=1, mixed=7)
    here = prints_of(patches)
    assert here == prints_of(patches)
    spawned = prints_of(patches, num_workers=2, multiprocessing_context="spawn", persistent_workers=False)
    assert Counter(spawned) == Counter(here) and len(set(here)) == len(here)
    assert Counter(prints_of(StreamingPatches(stream, SIZE, patches_per_slice=1.3, seed=1, mixed=1))) == Counter(here)


def test_epochs_and_seeds_differ_and_come_back(stream):
    patches = StreamingPatches(stream, SIZE, patches_per_slice=1.0, seed=1, mixed=4)
    first = prints_of(patches)
    patches.set_epoch(1)
    second = prints_of(patches)
    assert not set(first) & set(second)
    patches.set_epoch(0)
    assert prints_of(patches) == first
    assert not set(first) & set(prints_of(StreamingPatches(stream, SIZE, patches_per_slice=1.0, seed=2)))


def test_patches_of_scans_are_mixed(folder, stream):
    rows = load_paired_ct(folder, "train")
    scan_of = {np.float32(level): n for n, levels in enumerate(rows["noise_hu"]) for level in levels}

    def changes(mixed):
        patches = StreamingPatches(stream, SIZE, patches_per_slice=3.0, seed=1, mixed=mixed)
        scans = [scan_of[np.float32(item["noise_hu"][0])] for item in patches]
        return sum(a != b for a, b in pairwise(scans))

    assert changes(1) <= 6 < 30 < changes(64)


def test_conditions_come_with_the_patches(folder, stream):
    vocabulary = ConditionVocabulary(names=("body_part", "dose_fraction"), body_part=("ABDOMEN", "CHEST"))
    wanted = PatchDataset(load_paired_ct(folder, "train"), SIZE, 60, seed=0, vocabulary=vocabulary)
    patches = StreamingPatches(stream, SIZE, patches_per_slice=1.0, seed=1, vocabulary=vocabulary)
    known = {(int(item["body_part"]), float(item["dose_fraction"])) for item in wanted}
    assert {(int(item["body_part"]), float(item["dose_fraction"])) for item in patches} == known and len(known) == 2


def test_a_dose_that_is_no_condition_is_not_told_beside_conditions(folder, stream):
    vocabulary = ConditionVocabulary(names=("body_part",), body_part=("ABDOMEN", "CHEST"))
    wanted = PatchDataset(load_paired_ct(folder, "train"), SIZE, 1, seed=0, vocabulary=vocabulary)
    patches = StreamingPatches(stream, SIZE, patches_per_slice=1.0, seed=1, vocabulary=vocabulary)
    for item in (wanted[0], next(iter(patches))):
        assert "body_part" in item and "dose_fraction" not in item
    assert "dose_fraction" in PatchDataset(load_paired_ct(folder, "train"), SIZE, 1, seed=0)[0]


def test_mistakes_are_refused(folder, stream):
    with pytest.raises(ValueError, match="streaming=True"):
        StreamingPatches(load_paired_ct(folder, "train"), SIZE, patches_per_slice=1.0, seed=0)
    with pytest.raises(ValueError, match=r"`patches_per_slice` and `mixed` must be positive"):
        StreamingPatches(stream, SIZE, patches_per_slice=0.0, seed=0)
    with pytest.raises(ValueError, match="would lie"):
        vocabulary = ConditionVocabulary(names=("dose_fraction",))
        StreamingPatches(stream, SIZE, patches_per_slice=1.0, seed=0, noise_gain=(0.5, 2.0), vocabulary=vocabulary)
    with pytest.raises(ValueError, match=r"does not fit .*dataset\.filter"):
        next(iter(StreamingPatches(stream, (8, 16, 16), patches_per_slice=1.0, seed=0)))


TRAIN = """
import torch
from diffusers_ct.data import StreamingPatches, load_paired_ct
from torch.utils.data import DataLoader
rows = load_paired_ct("user/scans", split="train", streaming=True)
patches = StreamingPatches(rows, (2, 16, 16), patches_per_slice=4.0, seed=0)
torch.manual_seed(0)
model = torch.nn.Conv3d(1, 1, 3, padding=1)
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
losses = []
for epoch in range(3):
    patches.set_epoch(epoch)
    for batch in DataLoader(patches, batch_size=8):
        low, full = (batch[name].float() / 1000.0 for name in ("low_hu", "full_hu"))
        loss = torch.nn.functional.mse_loss(low + model(low), full)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
assert len(losses) == 3 * 6 * 16 // 8, len(losses)
print("LOSS", losses[0], sum(losses[-6:]) / 6)
"""


def test_a_plain_loop_trains_from_the_hub(folder, tmp_path):
    rows = load_paired_ct(folder, "train")
    files = {}
    for number in range(3):
        path = tmp_path / f"{number}.parquet"
        rows.select([2 * number, 2 * number + 1]).to_parquet(path)
        files[f"data/train-{number:05d}-of-00003.parquet"] = path.read_bytes()
    with LocalHub() as hub:
        repo = hub.repos["datasets", "user/scans"] = Repo()
        repo.commit(files)
        environment = {
            **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        result = subprocess.run(
            [sys.executable, "-c", TRAIN], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240
        )
    assert result.returncode == 0, result.stderr[-3000:]
    first, last = map(float, result.stdout.split("LOSS")[1].split())
    assert last < 0.5 * first
    assert any("train-00002-of-00003.parquet" in request for request in hub.requests)
    assert torch.isfinite(torch.tensor([first, last])).all()
