"""The sizes of the studies: they run, and restore as many slices as they say."""

import json

import numpy as np
import pytest

from diffusers_ct.evaluation.studies import (
    STUDY_SIZES,
    detectability_study,
    insertion_study,
    noise_study,
    phantom_scans,
    transfer_study,
)
from diffusers_ct.physics import RodPhantom

PIXEL_MM = 1.5


def test_the_smoke_size_restores_as_many_slices_as_it_says():
    size, phantom, seen = STUDY_SIZES["smoke"], RodPhantom(PIXEL_MM), []

    def method(volume):
        seen.append(volume.shape[0])
        return volume.hu

    common = {"slab_slices": size.slab_slices, "seed": 0}
    scans = phantom_scans(
        range(9001, 9001 + size.insertion_scans),
        size.regions,
        shape=(size.insertion_slices, 256, 256),
        spacing_mm=(2.0, PIXEL_MM, PIXEL_MM),
    )
    runs = {
        "detectability": lambda: detectability_study(
            {"m": method},
            phantom=phantom,
            dose_fractions=size.detectability_doses,
            slices=size.detectability_slices,
            **common,
        ),
        "noise": lambda: noise_study(
            {"m": method}, phantom=phantom, dose_fractions=size.doses, slices=size.noise_slices, **common
        ),
        "transfer": lambda: transfer_study(
            {"m": method}, pixel_mm=PIXEL_MM, dose_fractions=size.doses, slices=size.transfer_slices, **common
        ),
        "insertion": lambda: insertion_study(
            {"m": method},
            scans,
            dose_fractions=size.doses,
            diameters_mm=size.diameters_mm,
            contrasts_hu=size.contrasts_hu,
            places=size.insertion_places,
            seed=0,
        ),
    }
    assert set(runs) == set(size.slices())
    for name, run in runs.items():
        seen.clear()
        rows = run()
        json.dumps(rows, allow_nan=False)  # plain values
        assert sum(seen) == size.slices()[name] and {row["method"] for row in rows} >= {"low dose", "m"}


@pytest.mark.parametrize("name", STUDY_SIZES)
def test_sizes_keep_what_was_asked_of_them(name):
    size = STUDY_SIZES[name]
    per_dose = size.detectability_slices
    assert per_dose % (2 * size.slab_slices) == 0 and per_dose <= {"smoke": 24, "standard": 200}[name]
    assert size.noise_slices % size.slab_slices == 0 and size.transfer_slices % size.slab_slices == 0
    places = size.insertion_scans * size.insertion_places
    assert places >= 19 and np.all(np.diff(size.diameters_mm) > 0)
