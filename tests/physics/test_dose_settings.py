"""Named and drawn scanners."""

from dataclasses import replace

import numpy as np
import pytest

from diffusers_ct.physics import (
    DOSE_PRESETS,
    KERNELS,
    PUBLISHED_SETTINGS,
    DoseDraws,
    DoseSettings,
    FanBeam,
    ParallelBeam,
    draw_dose_settings,
    simulate_low_dose,
)
from diffusers_ct.physics.dose_draws import kernel_of_sharpness


@pytest.mark.parametrize("name", DOSE_PRESETS)
def test_every_preset_simulates(name):
    preset = DOSE_PRESETS[name]
    few = replace(preset, views=preset.views // 8)  # quicker
    axis = (np.arange(64) - 31.5) * 4.0
    body = np.where(np.hypot(*np.meshgrid(axis, axis)) < 90, 0.0, -1000.0).astype(np.float32)[None]
    low = simulate_low_dose(
        body, spacing_mm=(1.0, 4.0, 4.0), dose_fraction=0.25, seed=0, source_noise="normal_dose",
        settings=preset.settings, geometry=few.geometry((64, 64), 4.0),
    )  # fmt: skip
    assert 0.5 < (low - body)[0, 24:40, 24:40].std() < 500
    assert PUBLISHED_SETTINGS[name] is preset.settings and len(preset.source) > 40


def test_presets_have_the_published_numbers():
    assert DOSE_PRESETS["corediff"].settings.i0 == 1.5e5
    assert DOSE_PRESETS["need"].settings.i0 == 2.5e5
    lodopab = DOSE_PRESETS["lodopab"]
    assert (lodopab.settings.i0, lodopab.settings.electronic_variance) == (4096.0, 0.0)
    rays = lodopab.geometry((362, 362), 260.0 / 362)
    assert isinstance(rays, ParallelBeam) and (rays.views, rays.bins) == (1000, 513)
    assert rays.bins * rays.bin_mm == pytest.approx(np.hypot(260.0, 260.0))  # covers the corners
    mayo = DOSE_PRESETS["mayo_chest"]
    assert mayo.dose_fractions == (0.1,) and DOSE_PRESETS["mayo_abdomen"].dose_fractions == (0.25,)
    assert mayo.geometry((512, 512), 0.78125) == FanBeam((512, 512), 0.78125, "arc")
    assert DOSE_PRESETS["zeng2015"].geometry((512, 512), 0.78) is None


def test_draws_repeat_with_the_seed_and_fill_their_ranges():
    first, again = (draw_dose_settings(np.random.default_rng(5)) for _ in range(2))
    assert first == again != draw_dose_settings(np.random.default_rng(6))
    rng = np.random.default_rng(0)
    drawn = [DoseDraws()(rng) for _ in range(2000)]
    doses = np.array([dose for dose, _ in drawn])
    assert doses.min() >= 0.03 and doses.max() <= 0.5
    assert np.median(doses) == pytest.approx(np.sqrt(0.03 * 0.5), rel=0.1)  # log-uniform
    i0 = np.array([s.i0 for _, s in drawn])
    assert i0.min() >= 2e5 and i0.max() <= 1e6 and np.median(i0) == pytest.approx(np.sqrt(2e11), rel=0.1)
    variance = np.array([s.electronic_variance for _, s in drawn])
    assert variance.min() >= 5 and variance.max() <= 30 and variance.mean() == pytest.approx(17.5, rel=0.05)
    for value, choices in (("modulation_alpha", {0.0, 0.5}), ("bowtie_half_width_rad", {None, 0.19})):
        found = [getattr(s, value) for _, s in drawn]
        assert set(found) == choices and 0.4 < np.mean([x == found[0] for x in found]) < 0.6
    cutoffs = np.array([s.window.cutoff_per_mm for _, s in drawn])
    assert cutoffs.min() < 0.4 and cutoffs.max() > 0.7


def test_kernels_can_be_limited_to_given_ones():
    rng = np.random.default_rng(0)
    kernels = [DoseDraws(kernels=("smooth", "sharp"))(rng)[1].kernel for _ in range(200)]
    assert 60 < kernels.count("smooth") < 140 and kernels.count("smooth") + kernels.count("sharp") == 200


def test_sharpness_leads_through_the_named_kernels():
    for sharpness, name in ((0.0, "smooth"), (0.6, "soft"), (1.0, "sharp")):
        kernel = kernel_of_sharpness(sharpness)
        assert kernel.cutoff_per_mm == pytest.approx(KERNELS[name].cutoff_per_mm)
        assert kernel.boost == pytest.approx(KERNELS[name].boost)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"dose_fraction": (0.0, 0.5)}, "must lie in"),
        ({"dose_fraction": (0.5, 1.5)}, "must lie in"),
        ({"i0": (2e6, 1e5)}, "least, largest"),
        ({"electronic_variance": (-1.0, 3.0)}, "not negative"),
        ({"kernels": ()}, "at least one"),
    ],
)
def test_ranges_that_mean_nothing_are_refused(wrong, match):
    with pytest.raises(ValueError, match=match):
        DoseDraws(**wrong)


def test_drawn_settings_survive_provenance():
    _, settings = draw_dose_settings(np.random.default_rng(1))
    assert DoseSettings.from_dict(settings.to_dict()) == settings
