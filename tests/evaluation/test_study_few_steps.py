"""The study of few steps on samplers whose posterior is known, and its section in the report."""

import numpy as np
import pytest
from diffusers import DDIMScheduler
from scipy.ndimage import gaussian_filter

from diffusers_ct import CTConsistencyScheduler, CTDiffusionPipeline, CTVolume
from diffusers_ct.evaluation import BenchmarkResult, Case
from diffusers_ct.evaluation.few_step_samplers import few_step_samplers
from diffusers_ct.evaluation.figures_few_steps import quality_over_latency
from diffusers_ct.evaluation.figures_style import looks_of
from diffusers_ct.evaluation.report_few_steps import few_steps_section
from diffusers_ct.evaluation.report_parts import Pictures, Table, Text
from diffusers_ct.evaluation.studies import FewStepSampler, few_steps_study, few_steps_texture
from diffusers_ct.evaluation.studies.few_steps import fewest_steps
from diffusers_ct.physics.low_contrast_phantom import RodPhantom
from diffusers_ct.residual import estimate_noise_hu
from diffusers_ct.schedulers import make_noise_scheduler
from tests.evaluation.example_result import example_result
from tests.pipelines.test_distilled_pipeline import distilled
from tests.pipelines.test_pipeline_ct_diffusion import MEAN, SPREAD, GaussianPosterior

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # of diffusers' own NumPy


def case(seed: int) -> Case:
    """A reference drawn from the posterior that `GaussianPosterior` samples."""
    rng = np.random.default_rng(seed)
    low = CTVolume.from_array(rng.normal(40.0, 25.0, (2, 64, 64)).astype(np.float32), (2.0, 0.8, 0.8))
    residual = rng.normal(MEAN, SPREAD, low.shape)
    full = low.hu + estimate_noise_hu(low.hu)[:, None, None] * residual
    return Case(f"scan-{seed}", f"patient-{seed}", low, full.astype(np.float32), 0.25, "normal_dose")


def rows_by_name(rows):
    return {(row["method"], row["steps"]): row for row in rows}


@pytest.fixture(scope="module")
def studied():
    pipe = CTDiffusionPipeline(GaussianPosterior(), DDIMScheduler.from_config(make_noise_scheduler().config))
    samplers = few_step_samplers(pipe, seed=0, steps=(1, 2, 10)) + few_step_samplers(distilled(), seed=0)
    own = pipe.scheduler
    rows = few_steps_study(samplers, [case(0), case(1)], samples=4)
    assert pipe.scheduler is own
    return rows_by_name(rows)


def test_estimate_and_samples_have_the_scores_of_a_gaussian_posterior(studied):
    level = np.mean([estimate_noise_hu(case(k).low.hu).mean() for k in (0, 1)])
    sd = SPREAD * level
    for method in ("DDIM", "DPM-Solver++", "UniPC"):
        one = studied[method, 1]
        assert one["crps_hu"] == pytest.approx(sd * np.sqrt(2 / np.pi), rel=0.03) and one["spread_skill"] < 1e-3
        assert one["psnr_one_db"] == pytest.approx(one["psnr_mean_db"], abs=1e-3)
        assert (one["n_patients"], one["n_scans"], one["samples"], one["group"]) == (2, 2, 4, "dose 25 %")
    exact = {"crps_hu": sd / np.sqrt(np.pi), "spread_skill": 1.0}
    for name in (("UniPC", 10), ("distilled", 1), ("distilled", 2)):
        for key, value in exact.items():
            assert studied[name][key] == pytest.approx(value, rel=0.06), (name, key)
        # one sample misses the truth by twice the variance, the mean of 4 by 1.25 times
        lost = studied["DDIM", 1]["psnr_one_db"] - studied[name]["psnr_one_db"]
        assert lost == pytest.approx(10 * np.log10(2), abs=0.35)
        assert studied[name]["psnr_mean_db"] - studied[name]["psnr_one_db"] == pytest.approx(
            10 * np.log10(1.6), abs=0.3
        )


def test_too_few_steps_are_found(studied):
    ddim = [studied["DDIM", steps] for steps in (1, 2, 10)]
    assert np.all(np.diff([row["spread_skill"] for row in ddim]) > 0.2) and ddim[1]["spread_skill"] < 0.7
    assert np.all(np.diff([row["crps_hu"] for row in ddim]) < 0.0)
    assert studied["UniPC", 10]["spread_skill"] > ddim[2]["spread_skill"]
    assert fewest_steps([row for name, row in studied.items() if name[0] != "distilled"], margin=0.02)["steps"] == 10
    assert fewest_steps(list(studied.values()), margin=0.02)["method"] == "distilled"
    assert fewest_steps(list(studied.values()), margin=1.0)["steps"] == 1


def test_time_is_that_of_a_slice_and_samplers_take_turns():
    order = []

    def draw(method):
        def of(volume, number):
            order.append((method, number))
            return volume.hu + number

        return of

    samplers = [FewStepSampler(name, 2, draw(name)) for name in "ab"]
    rows = few_steps_study(samplers, [case(0)], samples=2)
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert all(0.0 < row["seconds_per_slice"] < 1.0 for row in rows) and rows[0]["frequency_share"] is None
    with pytest.raises(ValueError, match="one name"):
        few_steps_study([samplers[0], samplers[0]], [case(0)], samples=2)
    for samples, cases in ((1, [case(0)]), (2, [])):
        with pytest.raises(ValueError, match="2 samples or more of one scan"):
            few_steps_study(samplers, cases, samples=samples)


def test_texture_is_a_share_of_the_full_doses():
    plain = FewStepSampler("plain", 1, lambda volume, number: volume.hu)
    smooth = FewStepSampler("smooth", 1, lambda volume, number: gaussian_filter(volume.hu, (0, 1, 1)))
    silent = FewStepSampler("silent", 1, lambda volume, number: np.zeros_like(volume.hu))
    found = few_steps_texture(
        [plain, smooth, silent], phantom=RodPhantom(pixel_mm=2.0, disc_mm=120.0), dose_fractions=(0.25,), slices=8,
        slab_slices=2, seed=0, slice_mm=2.0,
    )  # fmt: skip
    shares = {method: of for (_, method, _), of in found.items()}
    assert shares["plain"]["noise_share"] == pytest.approx(2.0, rel=0.1)  # a quarter of the photons
    assert shares["plain"]["frequency_share"] == pytest.approx(1.0, abs=0.05)
    assert shares["smooth"]["frequency_share"] < 0.8 and shares["smooth"]["noise_share"] < 1.2
    assert shares["silent"] == {"frequency_share": None, "noise_share": 0.0}
    rows = few_steps_study([plain], [case(0)], samples=2, texture=found)
    assert rows[0]["frequency_share"] == shares["plain"]["frequency_share"]


def test_a_distilled_pipeline_has_its_own_steps_alone():
    assert [(s.method, s.steps) for s in few_step_samplers(distilled(), seed=0)] == [("distilled", 1), ("distilled", 2)]
    assert isinstance(distilled().scheduler, CTConsistencyScheduler)


def test_curves_are_the_numbers_and_the_section_says_which_steps_are_enough():
    rows = [row for row in example_result().studies["few_steps"] if row["group"] == "dose 10 %"]
    looks = looks_of(["DDIM", "UniPC", "distilled"], None)
    axes = quality_over_latency(rows, looks, key="crps_hu", ylabel="CRPS", exact=5.0).axes[0]
    for line, method in zip(axes.lines[1:], looks, strict=True):
        own = [row for row in rows if row["method"] == method]
        np.testing.assert_array_equal(line.get_xydata(), [(row["seconds_per_slice"], row["crps_hu"]) for row in own])
    assert [text.get_text() for text in axes.texts] == ["1", "2", "4", "10", "25", "1", "2", "4", "10", "25", "1"]
    section = few_steps_section(BenchmarkResult([], studies={"few_steps": rows}), looks)
    sentences = [line for block in section.blocks if isinstance(block, Text) for line in block.lines]
    assert "Fewest steps whose CRPS is within 2 % of the least: UniPC, 10." in sentences
    (table,) = [block for block in section.blocks if isinstance(block, Table)]
    marked = [(row.name, row.cells[0].text) for row in table.rows if row.cells[0].mark]
    assert marked == [("UniPC", "10")] and len(table.rows) == len(rows)
    pictures = next(block for block in section.blocks if isinstance(block, Pictures)).pictures
    assert len(pictures) == 3 and "UniPC with 10 6.02 at 0.500 s" in pictures[0].alt
    assert few_steps_section(BenchmarkResult([]), looks) is None
