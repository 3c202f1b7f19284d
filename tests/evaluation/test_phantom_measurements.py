"""Measurements on phantoms whose truth is known: what the synthesised volumes are then judged by."""

from dataclasses import replace

import numpy as np
import pytest

from diffusers_ct.evaluation.phantom_measurements import measure_aorta_hu
from diffusers_ct.physics import CONTRAST_PHASES, make_phantom
from diffusers_ct.physics.phantom_anatomy import Patient
from diffusers_ct.volume import CTVolume

UNSEEN = 5000  # no constant of the measurement was chosen on patients from here on
REGIONS = ("thorax", "abdomen")


def errors_of(region, phase, seeds, *, noise_hu=0.0, shape=(8, 64, 64), voxel_mm=6.0):
    """Measured minus drawn HU of blood, which the phantom paints without texture."""
    errors = []
    for seed in seeds:
        phantom = make_phantom(seed, region, shape=shape, spacing_mm=(voxel_mm,) * 3, contrast_phase=phase)
        noise = noise_hu * np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        truth = Patient.draw(np.random.default_rng([seed, REGIONS.index(region)]), region, phase).hu["blood"]
        volume = replace(phantom.volume, hu=phantom.volume.hu + noise)
        errors.append(measure_aorta_hu(volume, volume.conditions.body_part) - truth)
    return np.abs(errors)


@pytest.mark.parametrize("phase", CONTRAST_PHASES)
@pytest.mark.parametrize("region", REGIONS)
def test_aorta_of_unseen_phantoms(region, phase):
    assert errors_of(region, phase, range(UNSEEN, UNSEEN + 6)).max() < 10.0


@pytest.mark.slow
@pytest.mark.parametrize("noise_hu, mean_below, most_below", [(0.0, 1.0, 5.0), (30.0, 10.0, 25.0)])
@pytest.mark.parametrize("phase", CONTRAST_PHASES)
@pytest.mark.parametrize("region", REGIONS)
def test_aorta_of_many_unseen_phantoms(region, phase, noise_hu, mean_below, most_below):
    errors = errors_of(region, phase, range(UNSEEN, UNSEEN + 60), noise_hu=noise_hu)
    assert errors.mean() < mean_below
    assert np.percentile(errors, 95) < most_below
    assert (errors > 50.0).mean() == 0.0


def test_smaller_voxels_and_few_slices():
    assert errors_of("abdomen", "portal", [UNSEEN], shape=(2, 128, 128), voxel_mm=3.0).max() < 5.0


def test_a_body_of_one_value_has_that_value_everywhere():
    hu = np.full((2, 64, 64), -1000.0, dtype=np.float32)
    hu[:, 14:50, 6:58] = 37.0
    assert measure_aorta_hu(CTVolume.from_array(hu, (6.0, 6.0, 6.0)), "THORAX") == pytest.approx(37.0)


def test_refusals():
    air = CTVolume.from_array(np.full((2, 32, 32), -1000.0, dtype=np.float32), (6.0, 6.0, 6.0))
    with pytest.raises(ValueError, match="must be one of THORAX, ABDOMEN"):
        measure_aorta_hu(air, "KNEE")
    with pytest.raises(ValueError, match="no body"):
        measure_aorta_hu(air, "THORAX")
    with pytest.raises(ValueError, match="at most 6"):
        measure_aorta_hu(CTVolume.from_array(air.hu, (6.0, 8.0, 8.0)), "THORAX")
    with pytest.raises(ValueError, match="whole sections"):
        measure_aorta_hu(CTVolume.from_array(air.hu[:, :8, :8] + 1040.0, (6.0, 6.0, 6.0)), "THORAX")
