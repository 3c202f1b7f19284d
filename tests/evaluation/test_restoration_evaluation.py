"""A whole evaluation: what it is tuned on, what it refuses to mix, and what it dares to say."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusers_ct import CTDiffusionPipeline, CTVolume, UNet3DCTModel
from diffusers_ct.evaluation import Case, EvaluationSettings, PipelineRestorer, evaluate_restoration, run_benchmark
from diffusers_ct.evaluation.baselines import strength_at, tune_by_dose
from diffusers_ct.evaluation.restoration_evaluation import verdict
from diffusers_ct.metrics import body_mask
from diffusers_ct.schedulers import make_noise_scheduler

SETTINGS = EvaluationSettings(split="test", samples=0, sampled_scans=1, classical=True, seed=0)


def case(seed: int, *, noise_hu: float, detail_hu: float, dose: float = 0.25, shift_hu: float = 0.0) -> Case:
    """A body with a checkerboard of detail: the more of it, the less smoothing pays."""
    rng = np.random.default_rng(seed)
    full = np.full((1, 48, 48), -1000.0, np.float32)
    full[:, 6:42, 6:42] = 40.0 + detail_hu * (np.indices((36, 36)).sum(axis=0) % 2)
    low = full + rng.normal(0, noise_hu, full.shape).astype(np.float32)
    return Case(f"s{seed}", f"p{seed}", CTVolume.from_array(low, (1.0, 1.0, 1.0)), full + shift_hu, dose, "noise_free")


TRAINING = [case(100 + k, noise_hu=30, detail_hu=0) for k in range(2)]
CASES = [case(k, noise_hu=30, detail_hu=60) for k in range(3)]


@pytest.fixture(scope="module")
def model() -> PipelineRestorer:
    torch.manual_seed(0)
    unet = UNet3DCTModel(
        block_out_channels=(8, 16), layers_per_block=1, downsample_strides=(1, 2, 2), refine_channels=4,
        conv_mode="2.5d", norm_num_groups=4,
    )  # fmt: skip
    pipe = CTDiffusionPipeline(unet, DDIMScheduler.from_config(make_noise_scheduler().config))
    return PipelineRestorer(pipe, sampling_steps=2, seed=0)


def evaluate(output, model, **changed):
    arguments = {
        "training": TRAINING, "learned": {"shift": lambda volume: volume.hu + 1.0},
        "weights": {"m": "sha256:a", "shift": "sha256:b"}, "settings": SETTINGS, "title": "t", "facts": {},
    } | changed  # fmt: skip
    cases = arguments.pop("cases", CASES)
    return evaluate_restoration(output, cases, {"m": model}, **arguments)


def test_baselines_are_tuned_on_training_patients_and_on_no_other(tmp_path, model):
    result = evaluate(tmp_path / "out", model)

    def tuned(cases):
        return tune_by_dose((c.dose_fraction, c.low_hu, c.full_hu, body_mask(c.full_hu)) for c in cases)

    said = json.loads(result.facts["baseline_strengths"])
    assert said == {"0.25": tuned(TRAINING)[0.25]} != {"0.25": tuned(CASES)[0.25]}
    # and applied as they are said: far too smooth for the test's detail
    gaussian = next(r for r in result.rows if r["method"] == "Gaussian")
    assert gaussian["gain_body_db"] < 0


def test_strengths_are_those_of_the_nearest_dose():
    pairs = [(d, c.low_hu, c.full_hu, body_mask(c.full_hu)) for d, c in ((0.25, TRAINING[0]), (0.05, CASES[0]))]
    strengths = tune_by_dose(pairs)
    assert list(strengths) == [0.05, 0.25]
    assert strength_at(strengths, "Gaussian", 0.2) == strengths[0.25]["Gaussian"] > strengths[0.05]["Gaussian"]
    assert (
        strength_at(strengths, "Gaussian", 0.1) == strengths[0.05]["Gaussian"]
    )  # by its noise: sqrt(0.25 * 0.05) is 0.11


@pytest.mark.parametrize(
    "changed",
    [
        {"weights": {"m": "sha256:a", "shift": "sha256:retrained"}},
        {"cases": [case(k, noise_hu=30, detail_hu=60, shift_hu=30.0) for k in range(3)]},
        {"cases": [case(k + 7, noise_hu=30, detail_hu=60) for k in range(3)]},
        {"training": TRAINING[:1]},
        {"facts": {"data": "other"}},
    ],
    ids=["weights", "reference", "cases", "training", "facts"],
)
def test_a_folder_never_mixes_two_evaluations(tmp_path, model, changed):
    evaluate(tmp_path / "out", model)
    before = (tmp_path / "out" / "benchmark.json").read_bytes()
    with pytest.raises(ValueError, match="holds another evaluation"):
        evaluate(tmp_path / "out", model, **changed)
    assert (tmp_path / "out" / "benchmark.json").read_bytes() == before


def test_what_is_missing_is_told_before_any_work(tmp_path, model):
    with pytest.raises(ValueError, match="which weights these have: shift"):
        evaluate(tmp_path / "out", model, weights={"m": "x"})
    with pytest.raises(ValueError, match="there are none"):
        evaluate(tmp_path / "out", model, training=[])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("patients", "shift", "says"),
    [
        (1, 1e-4, "which these patients do not prove"),
        (14, 5.0, "is better than every other method in PSNR full"),
        (14, -5.0, "is NOT ahead of every other method in PSNR full"),
    ],
)
def test_the_verdict_says_better_only_where_it_is_shown(patients, shift, says):
    cases = [case(k, noise_hu=30, detail_hu=0) for k in range(patients)]
    methods = {"ours": lambda c: c.full_hu + 10.0, "other": lambda c: c.full_hu + 10.0 + shift}
    result = run_benchmark(cases, methods)
    result.compare("ours")
    assert says in verdict(result, "dose 25 %", "ours")


def test_calibration_takes_the_middle_slices_of_the_doses_asked_for(tmp_path, model):
    def deep(seed: int, dose: float) -> Case:
        slices = [case(seed + 10 * k, noise_hu=30, detail_hu=0, dose=dose) for k in range(5)]
        low, full = (np.concatenate([getattr(c, name) for c in slices]) for name in ("low_hu", "full_hu"))
        return Case(f"s{seed}", f"p{seed}", CTVolume.from_array(low, (1.0, 1.0, 1.0)), full, dose, "noise_free")

    seen = []

    class Watched(PipelineRestorer):
        def samples(self, volume, count):
            seen.append(volume.hu)
            return super().samples(volume, count)

    cases = [deep(k, dose) for k in (1, 2) for dose in (0.25, 0.1)]
    settings = EvaluationSettings(
        split="test", samples=2, sampled_scans=1, classical=False, seed=0, sampled_doses=(0.1,), sampled_slices=3,
        one_sample=False,
    )  # fmt: skip
    watched = Watched(model.pipe, sampling_steps=2, seed=0)
    result = evaluate(tmp_path / "out", watched, cases=cases, settings=settings, training=[])
    assert [row["group"] for row in result.studies["calibration"]] == ["dose 10 %"]
    assert result.studies["calibration"][0]["reference"] == "noise-free truth"
    (hu,) = seen
    np.testing.assert_array_equal(hu, cases[1].low_hu[1:4])
    assert "m, one sample" not in {row["method"] for row in result.rows}
