"""Volumes with conditions: slabs are the scans' own voxels, scans are counted once, phantoms are balanced and repeat."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset

from diffusers_ct import CTVolume, ScanConditions
from diffusers_ct.conditions import ConditionVocabulary
from diffusers_ct.data.manifest import features, make_row
from diffusers_ct.data.volumes import (
    REGIONS,
    ConditionedVolume,
    ConditionedVolumes,
    phantom_volumes,
    volumes_from_rows,
)
from diffusers_ct.physics import CONTRAST_PHASES, LESION_KINDS_OF_REGION

VOCABULARY = ConditionVocabulary(("body_part", "age_years", "findings", "spacing_mm"), body_part=("ABDOMEN", "THORAX"),
                                 findings=("cyst",))  # fmt: skip


def scans() -> list[ConditionedVolume]:
    """Each voxel has a value of its own in all three scans."""
    conditions = (
        ScanConditions(body_part="THORAX", age_years=61.0),
        ScanConditions(body_part="ABDOMEN", findings=("cyst",), kernel="B30f"),
        ScanConditions(body_part="PELVIS", findings_absent=("cyst",)),
    )
    return [
        ConditionedVolume(
            (np.arange(depth * 12 * 10).reshape(depth, 12, 10) + 2000 * number - 3000).astype(np.int16),
            (2.0 + number, 0.7, 0.8),
            one,
        )
        for number, (depth, one) in enumerate(zip((4, 6, 9), conditions))
    ]


def items(seed: int = 1, epoch: int = 0, count: int = 60, size=(3, 5, 4)) -> ConditionedVolumes:
    dataset = ConditionedVolumes(scans(), VOCABULARY, size, count, seed=seed)
    dataset.set_epoch(epoch)
    return dataset


def test_a_slab_is_a_block_of_its_scan_and_tells_that_scan_s_conditions():
    volumes = scans()
    chosen: Counter = Counter()
    starts = set()
    for item in items(count=300):
        hu = item["hu"].numpy()[0]
        number = int(hu[0, 0, 0] + 3000) // 2000
        z, y, x = np.argwhere(volumes[number].hu == hu[0, 0, 0])[0]
        np.testing.assert_array_equal(hu, volumes[number].hu[z : z + 3, y : y + 5, x : x + 4])
        assert item["hu"].dtype == torch.float32 and item["hu"].shape == (1, 3, 5, 4)
        assert item["spacing_mm"].tolist() == pytest.approx([2.0 + number, 0.7, 0.8])
        assert item["body_part"] == (1, 0, -1)[number]  # the vocabulary has no PELVIS
        age, finding = item["age_years"].item(), item["findings"].item()
        assert age == 61.0 if number == 0 else np.isnan(age)
        assert np.isnan(finding) if number == 0 else finding == (1.0 if number == 1 else 0.0)
        chosen[number] += 1
        starts.add((number, z, y, x))
    assert all(70 < chosen[number] < 130 for number in range(3))  # evenly, whatever their size
    for number, depth in enumerate((4, 6, 9)):  # up to both ends
        assert {z for n, z, _, _ in starts if n == number} == set(range(depth - 2))
        assert {y for n, _, y, _ in starts if n == number} == set(range(8))
        assert {x for n, _, _, x in starts if n == number} == set(range(7))


def test_an_item_depends_on_seed_epoch_and_number_alone():
    def equal(a, b):
        return all(torch.equal(a[name], b[name]) or bool(a[name].isnan().all() and b[name].isnan().all()) for name in a)

    backwards = [items()[i] for i in reversed(range(20))][::-1]
    assert all(equal(a, b) for a, b in zip(backwards, items()))
    longer = items(count=1000)
    assert all(equal(longer[i], items()[i]) for i in range(5))
    for other in (items(seed=2), items(epoch=1)):
        assert sum(torch.equal(a["hu"], b["hu"]) for a, b in zip(items(), other)) < 5
    loader = torch.utils.data.DataLoader(items(count=8), batch_size=4)
    batch = next(iter(loader))
    assert batch["hu"].shape == (4, 1, 3, 5, 4) and torch.equal(batch["hu"][2], items()[2]["hu"])


def test_refusals():
    with pytest.raises(ValueError, match="no scan"):
        ConditionedVolumes([], VOCABULARY, (1, 1, 1), 1, seed=0)
    with pytest.raises(ValueError, match=r"does not fit into a scan of \(4, 12, 10\)"):
        ConditionedVolumes(scans(), VOCABULARY, (5, 5, 5), 1, seed=0)
    for size, count in (((0, 5, 5), 1), ((3, 5, 5), 0)):
        with pytest.raises(ValueError, match="must be positive"):
            ConditionedVolumes(scans(), VOCABULARY, size, count, seed=0)
    for index in (-1, 60):
        with pytest.raises(IndexError):
            items()[index]


def prepared(rows: list[dict]) -> Dataset:
    """Rows as `load_paired_ct` gives them, of (3, 80, 80) voxels."""
    made = [
        make_row(
            row["low"], row["full"], scan_key=f"s{number}", split="train", affine_lps=np.eye(4), provenance={},
            **{"patient_key": "p", "dose_fraction": 0.25, "spacing_mm": (2.0, 0.7, 0.8), "target": "noise_free",
               **{k: v for k, v in row.items() if k not in ("low", "full")}},
        )
        for number, row in enumerate(rows)
    ]  # fmt: skip
    return Dataset.from_list(made, features=features((80, 80)))


def test_scans_of_a_prepared_dataset_count_once():
    rng = np.random.default_rng(0)
    first = np.full((3, 80, 80), -1000.0)
    first[:, 40:, :] = rng.normal(0.0, 100.0, (3, 40, 80))
    # the same patient again: the same air, the same voxels in another order, so the same sum
    second = first.copy()
    second[:, 40:, :] = first[:, 40:, ::-1]
    thorax = ScanConditions(body_part="THORAX", tube_current_mas=200.0, dose_fraction=0.1)
    rows = prepared(
        [
            {"low": first + 9, "full": first, "conditions": thorax, "dose_fraction": 0.1},
            {"low": first + 3, "full": first, "conditions": replace(thorax, dose_fraction=0.25)},
            {"low": second + 3, "full": second, "conditions": thorax},
            {"low": first + 3, "full": first, "conditions": thorax, "patient_key": "q", "target": "same_scan"},
        ]
    )
    volumes = volumes_from_rows(rows)
    assert len(volumes) == 3
    np.testing.assert_array_equal(volumes[0].hu, np.rint(first))
    np.testing.assert_array_equal(volumes[1].hu, np.rint(second))
    assert volumes[0].conditions == ScanConditions(body_part="THORAX", tube_current_mas=200.0, dose_fraction=1.0)
    # the mAs of a measured pair is that of its low-dose header
    assert volumes[2].conditions == ScanConditions(body_part="THORAX", dose_fraction=1.0)
    assert volumes[0].spacing_mm == pytest.approx((2.0, 0.7, 0.8))
    picked = volumes_from_rows(rows.select([2]))
    np.testing.assert_array_equal(picked[0].hu, np.rint(second))


DRAWN = {"shape": (3, 24, 32), "spacing_mm": (8.0, 14.0, 14.0), "lesion_radius_mm": (16.0, 22.0), "processes": 1}


@pytest.fixture(scope="module")
def phantoms() -> list[ConditionedVolume]:
    return phantom_volumes(10, first_seed=209, **DRAWN)


def alike(a: list[ConditionedVolume], b: list[ConditionedVolume]) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(v.hu, w.hu) and v.conditions == w.conditions and v.spacing_mm == w.spacing_mm
        for v, w in zip(a, b)
    )


def test_phantoms_repeat_through_the_cache_and_workers(phantoms, tmp_path):
    cache = tmp_path / "new" / "phantoms.npz"
    made = phantom_volumes(3, first_seed=211, cache=cache, **DRAWN)
    assert alike(made, phantoms[2:5])
    assert [f.name for f in cache.parent.iterdir()] == ["phantoms.npz"]
    held = cache.stat().st_mtime_ns
    assert alike(phantom_volumes(3, first_seed=211, cache=cache, **DRAWN), made) and cache.stat().st_mtime_ns == held
    assert made[0].hu.dtype == np.int16 and made[0].hu.shape == (3, 24, 32)
    for other in ({"count": 4}, {"first_seed": 212}, {"shape": (3, 24, 48)}, {"lesion_radius_mm": (16.0, 23.0)}):
        with pytest.raises(ValueError, match="holds another set of phantoms"):
            phantom_volumes(**{"count": 3, "first_seed": 211, "cache": cache, **DRAWN, **other})
    assert alike(phantom_volumes(2, first_seed=209, **{**DRAWN, "processes": 2}), phantoms[:2])


def test_phantoms_show_the_plan(phantoms):
    for volume in phantoms:
        region = volume.conditions.body_part.lower()
        assert set(volume.conditions.findings) <= set(LESION_KINDS_OF_REGION[region])
        others = {kind for other in REGIONS if other != region for kind in LESION_KINDS_OF_REGION[other]}
        assert others - set(LESION_KINDS_OF_REGION[region]) <= set(volume.conditions.findings_absent)
        assert volume.hu.min() < -900 and volume.hu.max() > 200
    again = [json.loads(json.dumps(v.conditions.to_dict())) for v in phantoms]
    assert [ScanConditions(**c) for c in again] == [v.conditions for v in phantoms]


def test_conditions_are_balanced_and_independent(monkeypatch):
    # the plan alone: a thousand phantoms would take minutes to draw
    import diffusers_ct.data.volumes as module

    class Drawn:
        def __init__(self, seed, region, *, contrast_phase, findings, shape, spacing_mm, **_):
            conditions = ScanConditions(body_part=region.upper(), contrast_phase=contrast_phase, findings=findings)
            self.volume = CTVolume.from_array(np.zeros(shape, dtype=np.float32), spacing_mm, conditions)

    monkeypatch.setattr(module, "make_phantom", Drawn)
    plans = [v.conditions for v in phantom_volumes(3000, first_seed=0, **{**DRAWN, "shape": (1, 1, 1)})]
    flags = {f"region {r}": [c.body_part == r.upper() for c in plans] for r in REGIONS[:-1]}
    flags |= {f"phase {p}": [c.contrast_phase == p for c in plans] for p in CONTRAST_PHASES[:-1]}
    for name, share in ((n, np.mean(v)) for n, v in flags.items()):
        wanted = 1 / len(REGIONS if name.startswith("region") else CONTRAST_PHASES)
        assert share == pytest.approx(wanted, abs=0.035), name
    for region in REGIONS:
        mine = [c for c in plans if c.body_part == region.upper()]
        table = np.array(
            [[k in c.findings for k in LESION_KINDS_OF_REGION[region]] + [c.contrast_phase == "none"] for c in mine]
        )
        assert np.abs(table[:, :-1].mean(axis=0) - 0.4).max() < 0.05
        correlation = np.corrcoef(table.T) - np.eye(table.shape[1])
        assert np.abs(correlation).max() < 4.5 / len(mine) ** 0.5
    assert np.corrcoef(*[flags[n] for n in ("region " + REGIONS[0], "phase none")])[0, 1] == pytest.approx(0, abs=0.08)
