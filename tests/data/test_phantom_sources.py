"""Phantoms as a source of pairs: every region when asked for, thorax and abdomen when not."""

import json

import pytest

from diffusers_ct.data import PairedCTConfig, load_paired_ct, prepare_paired_ct
from diffusers_ct.data.sources import REGIONS
from diffusers_ct.data.volumes import FINDINGS, phantom_volumes
from diffusers_ct.data.volumes import REGIONS as SYNTHESIS_REGIONS
from diffusers_ct.physics import LESION_KINDS_OF_REGION


def test_regions_are_prepared_in_turns(tmp_path):
    assert set(REGIONS) == set(LESION_KINDS_OF_REGION)
    prepare_paired_ct(
        tmp_path / "out", phantoms=5, dose_fractions=(0.25,), regions=REGIONS, shape=(2, 32, 32),
        spacing_mm=(4.0, 15.0, 15.0), validation_fraction=0.2, test_fraction=0.2, seed=0, salt="a",
    )  # fmt: skip
    rows = [row for split in load_paired_ct(str(tmp_path / "out")).values() for row in split]
    assert sorted(json.loads(row["conditions"])["body_part"] for row in rows) == sorted(
        region.upper() for region in REGIONS
    )


def test_defaults_and_synthesis_stay_with_the_trunk():
    assert PairedCTConfig(phantoms=1).regions == SYNTHESIS_REGIONS == ("thorax", "abdomen")
    assert set(FINDINGS) == {kind for region in SYNTHESIS_REGIONS for kind in LESION_KINDS_OF_REGION[region]}
    volumes = phantom_volumes(
        6, first_seed=0, shape=(3, 24, 32), spacing_mm=(6.0, 16.0, 16.0), lesion_radius_mm=(16.0, 24.0), processes=1
    )
    for volume in volumes:
        conditions = volume.conditions
        assert set(conditions.findings) | set(conditions.findings_absent) <= set(FINDINGS)
        assert conditions.body_part in ("THORAX", "ABDOMEN")


def test_an_unknown_region_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="choose of thorax, abdomen, pelvis, shoulder, head"):
        prepare_paired_ct(tmp_path / "out", phantoms=1, dose_fractions=(0.25,), regions=("knee",), shape=(2, 32, 32))
