"""Guidance through `CTDiffusionPipeline` reaches the guided laws known in closed form, and does nothing else."""

import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from diffusers_ct import ConditionEncoder, CTAdaptiveDDIMScheduler, CTDiffusionPipeline, CTVolume, ScanConditions
from diffusers_ct.residual import estimate_noise_hu
from diffusers_ct.schedulers import make_noise_scheduler
from tests.guidance.gaussian import reached, truth_1d
from tests.pipelines.gaussian_parts import (
    BOTH,
    GIVEN_AGENT,
    GIVEN_BOTH,
    GIVEN_NONE,
    GIVEN_SEX,
    SEX,
    AgeClassifier,
    affine_law,
    alpha_sigma_at,
    gaussian_pipeline,
    guided_denoiser,
    law,
    network_units,
    pet_of,
    start_noise,
    weighted,
)
from tests.pipelines.test_pipeline_ct_diffusion import seeded, tiny_unet

SIZE = (2, 8, 8)
SAMPLERS = {
    "ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
}  # fmt: skip
SCALES = {"contrast_agent": 2.5, "sex": 1.5}
EACH = [(3.0, GIVEN_BOTH), (-1.5, GIVEN_SEX), (-0.5, GIVEN_AGENT)]
ALL = [(2.0, GIVEN_BOTH), (-1.0, GIVEN_NONE)]
AGED = ScanConditions(contrast_agent=True, age_years=40.0)
GIVEN_AGE_TOO = law(contrast_agent=0.25, age_years=0.4)
FREE, JUDGED = [(2.0, GIVEN_AGENT), (-1.0, GIVEN_NONE)], [(1.5, GIVEN_AGE_TOO), (-1.5, GIVEN_AGENT)]


def low_dose(shape=SIZE) -> CTVolume:
    hu = np.random.default_rng(0).normal(40.0, 25.0, shape).astype(np.float32)
    return CTVolume.from_array(hu, (2.0, 0.8, 0.8), BOTH)


def run(pipe, steps: int, *, samples: int = 1, size=SIZE, conditions=BOTH, **settings) -> np.ndarray:
    """Clean fields in network units, (samples, depth, height, width)."""
    settings = {"generator": seeded(), "num_samples": samples, "num_inference_steps": steps, **settings}
    if pipe.config.target == "image":
        made = pipe(conditions=conditions, shape=size, spacing_mm=(2.0, 0.8, 0.8), **settings)
        return network_units(made.volumes)
    low = low_dose(size)
    out = pipe(low.hu, spacing_mm=low.spacing_mm, conditions=conditions, return_samples=True, **settings)
    return (out.samples - low.hu) / estimate_noise_hu(low.hu)[None, :, None, None]


def assert_law(name: str, pipe, terms, judged=(), *, steps: int = 12, **settings) -> None:
    """The same sampler with as many steps on the guided denoiser in closed form: no sampling and no step error."""
    scheduler = SAMPLERS[name].from_config(make_noise_scheduler().config)
    wanted = reached(scheduler, guided_denoiser(scheduler, terms, judged), 1, steps)
    mean, variance = affine_law(start_noise(pipe, seeded(), 1, SIZE), run(pipe, steps, **settings))
    assert mean == pytest.approx(wanted.mean[0], abs=1e-3 * math.sqrt(wanted.covariance[0, 0]))
    assert variance == pytest.approx(wanted.covariance[0, 0], rel=2e-3)


every_sampler = pytest.mark.parametrize("name", SAMPLERS)
both_targets = pytest.mark.parametrize("target", ["residual", "image"])


@every_sampler
@both_targets
def test_a_scale_for_each_condition_reaches_the_closed_form(name, target):
    pipe = gaussian_pipeline(target, SAMPLERS[name])
    assert_law(name, pipe, EACH, guidance_scale=SCALES)
    calls = pipe.unet.calls
    assert [call["batch"] for call in calls] == [3] * 12
    # full, then each condition nulled alone: (agent known, value, sex known, value)
    known = [[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]
    assert all(call["pooled"][:, [-4, -2]].tolist() == known for call in calls)


@every_sampler
def test_many_steps_approach_the_law_of_the_guided_flow(name):
    steps = 200 if name in ("ddim", "euler") else 80
    pipe = gaussian_pipeline("image", SAMPLERS[name], classifier=AgeClassifier())
    for terms, settings in (
        (EACH, {"guidance_scale": SCALES}),
        ([(0.5, GIVEN_AGENT), (-1.0, GIVEN_NONE), (1.5, GIVEN_AGE_TOO)],
         {"guidance_scale": 2.0, "classifier_scale": {"age_years": 1.5}, "conditions": AGED}),
    ):  # fmt: skip
        wanted = truth_1d(weighted(*terms), stochastic=False)
        mean, variance = affine_law(start_noise(pipe, seeded(), 1, SIZE), run(pipe, steps, **settings))
        assert mean == pytest.approx(wanted[0], abs=0.05 * math.sqrt(wanted[1]))
        assert variance == pytest.approx(wanted[1], rel=0.08)


def test_one_scale_nulls_all_conditions_together():
    pipe = gaussian_pipeline("image", DPMSolverMultistepScheduler)
    assert_law("dpm++", pipe, ALL, guidance_scale=2.0)
    assert pipe.unet.calls[0]["pooled"][:, [0, 2]].tolist() == [[1.0, 1.0], [0.0, 0.0]]
    with pytest.raises(AssertionError):
        assert_law("dpm++", pipe, EACH, guidance_scale=2.0)
    assert_law("dpm++", pipe, [(1.0, GIVEN_NONE)], guidance_scale=0.0)  # forgets the conditions
    assert_law("dpm++", pipe, [(1.0, GIVEN_BOTH)])


@both_targets
def test_ddpm_reaches_the_law_of_the_guided_sde(target):
    pipe = gaussian_pipeline(target, DDPMScheduler)
    found = run(pipe, 30, size=(2, 96, 96), guidance_scale=SCALES)
    exact = reached(pipe.scheduler, guided_denoiser(pipe.scheduler, EACH), 1, 30)
    spread = math.sqrt(exact.covariance[0, 0])
    assert found.mean() == pytest.approx(exact.mean[0], abs=0.04 * spread)  # 5 standard errors
    assert found.var() == pytest.approx(spread**2, rel=0.05)
    mean, variance = truth_1d(weighted(*EACH), stochastic=True)
    many = reached(pipe.scheduler, guided_denoiser(pipe.scheduler, EACH), 1, 1000)
    assert (many.mean[0], many.covariance[0, 0]) == pytest.approx((mean, variance), rel=0.05)


@every_sampler
@both_targets
def test_classifier_component_and_classifier_free_guidance_stack(name, target):
    pipe = gaussian_pipeline(target, SAMPLERS[name], classifier=AgeClassifier())
    # the network is not told the age: it is the classifier that is asked for it
    settings = {"guidance_scale": 2.0, "classifier_scale": {"age_years": 1.5}, "conditions": AGED}
    assert_law(name, pipe, FREE, JUDGED, **settings)
    assert len(pipe.classifier.calls) == 11  # not at the first step


def test_classifier_scale_one_is_the_posterior_also_of_an_unconditional_network():
    pipe = gaussian_pipeline("image", DPMSolverMultistepScheduler, classifier=AgeClassifier(agent=False))
    pipe.register_modules(condition_encoder=None)
    with_age, asked = law(age_years=0.4), ScanConditions(age_years=40.0)
    assert_law(
        "dpm++",
        pipe,
        [(1.0, GIVEN_NONE)],
        [(1.0, with_age), (-1.0, GIVEN_NONE)],
        classifier_scale=1.0,
        conditions=asked,
    )
    assert pipe.unet.calls[0]["pooled"] is None
    mean, variance = affine_law(
        start_noise(pipe, seeded(), 1, SIZE), run(pipe, 80, classifier_scale=1.0, conditions=asked)
    )
    assert (mean, variance) == pytest.approx((with_age.mean[0], with_age.covariance[0, 0]), rel=0.05)
    with pytest.raises(ValueError, match="takes no conditions"):
        run(pipe, 10, conditions=asked)


def test_a_classifier_of_the_users_own_equals_the_component():
    component = AgeClassifier()
    pipe = gaussian_pipeline("image", DDIMScheduler, classifier=component)
    inside = run(pipe, 10, conditions=AGED, classifier_scale=1.5)
    target = {"age_years": torch.tensor([40.0])}
    outside = [(lambda x, t: component.log_probability(x, t, target, ("age_years",)), 1.5)]
    np.testing.assert_array_equal(
        run(pipe, 10, conditions=ScanConditions(contrast_agent=True), classifiers=outside), inside
    )
    # the two multiply
    twice = run(pipe, 10, conditions=AGED, classifier_scale=0.75, classifiers=[(outside[0][0], 0.75)])
    np.testing.assert_allclose(twice, inside, atol=1e-5)


def test_an_interval_guides_there_alone():
    pipe = gaussian_pipeline("image", DDIMScheduler)
    found = run(pipe, 20, guidance_scale=SCALES, guidance_interval=(0.3, 0.8))
    scheduler = pipe.scheduler
    plain, guided = guided_denoiser(scheduler, [(1.0, GIVEN_BOTH)]), guided_denoiser(scheduler, EACH)
    inside = lambda t: 0.3 <= int(t) / 999 <= 0.8  # noqa: E731
    wanted = reached(scheduler, lambda x, t: guided(x, t) if inside(t) else plain(x, t), 1, 20)
    mean, variance = affine_law(start_noise(pipe, seeded(), 1, SIZE), found)
    assert (mean, variance) == pytest.approx((wanted.mean[0], wanted.covariance[0, 0]), rel=2e-3)
    batches = [(call["timestep"].item(), call["batch"]) for call in pipe.unet.calls]
    assert len(batches) == 20 and all(batch == (3 if inside(t) else 1) for t, batch in batches)
    with_classifier = gaussian_pipeline("image", DDIMScheduler, classifier=AgeClassifier())
    run(with_classifier, 10, conditions=AGED, classifier_scale=1.0, guidance_interval=(0.3, 0.8))
    assert len(with_classifier.classifier.calls) == 5  # t = 799, 699 ... 399 of 999, 899 ... 99


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_rescaling_equals_a_sampling_loop_written_out(share):
    pipe = gaussian_pipeline("image", DDIMScheduler)
    found = run(pipe, 20, guidance_scale=2.0, guidance_rescale=share)
    x = start_noise(pipe, seeded(), 1, SIZE).astype(np.float64)
    for t in range(999, -1, -50):
        alpha, sigma = (float(c) for c in alpha_sigma_at(t))
        x0 = {}
        for name, one in (("full", GIVEN_BOTH), ("null", GIVEN_NONE)):
            m, v = one.mean[0], one.covariance[0, 0]
            x0[name] = (m * sigma**2 + v * alpha * x) / (alpha**2 * v + sigma**2)
        guided = 2.0 * x0["full"] - x0["null"]
        if guided.std() > 0:
            ratio = share * x0["full"].std() / guided.std() + 1.0 - share
            guided = guided.mean() + ratio * (guided - guided.mean())
        eps = (x - alpha * guided) / sigma
        alpha, sigma = (float(c) for c in alpha_sigma_at(t - 50)) if t > 50 else (1.0, 0.0)
        x = alpha * guided + sigma * eps
    # diffusers sets the last alpha to 1; at the first step a sample of no contrast is rounding alone
    np.testing.assert_allclose(found, x, atol=2e-4)
    assert np.abs(found - run(pipe, 20, guidance_scale=2.0)).max() > 1e-2


@both_targets
def test_guidance_one_is_no_guidance_bit_for_bit_and_costs_nothing(target):
    pipe = gaussian_pipeline(target, DDIMScheduler, classifier=AgeClassifier())
    plain = run(pipe, 5)
    for settings in (
        {"guidance_scale": 1.0}, {"guidance_scale": 1}, {"guidance_scale": {"sex": 1.0}}, {"guidance_scale": {}},
        {"classifier_scale": 0.0}, {"guidance_rescale": 0.7}, {"guidance_interval": (0.2, 0.5)},
    ):  # fmt: skip
        pipe.unet.calls.clear()
        np.testing.assert_array_equal(run(pipe, 5, **settings), plain)
        assert [call["batch"] for call in pipe.unet.calls] == [1] * 5
    assert not pipe.classifier.calls
    assert np.abs(run(pipe, 5, guidance_scale={"sex": 1.5}) - plain).max() > 0.01


@both_targets
def test_images_are_guided_and_nulled_by_name_too(target):
    pipe = gaussian_pipeline(target, DPMSolverMultistepScheduler, image=True)
    all_three = law(contrast_agent=0.25, sex=SEX["F"], pet=0.3)
    no_pet, no_agent = GIVEN_BOTH, law(sex=SEX["F"], pet=0.3)
    wanted = [(1.0 + 1.0 + 0.5, all_three), (-1.0, no_pet), (-0.5, no_agent)]
    images = {"pet": pet_of(0.3, SIZE)}
    assert_law("dpm++", pipe, wanted, guidance_scale={"pet": 2.0, "contrast_agent": 1.5}, images=images)
    call = pipe.unet.calls[0]
    present = call["sample"][:, -1].mean(dim=(1, 2, 3)).tolist()
    assert (present, call["pooled"][:, -4].tolist()) == ([1.0, 1.0, 0.0], [1.0, 0.0, 1.0])
    wanted = [(2.0, all_three), (-1.0, GIVEN_NONE)]
    assert_law("dpm++", pipe, wanted, guidance_scale=2.0, images=images)


@both_targets
def test_a_missing_image_is_one_that_is_not_known_anywhere(target):
    pipe = gaussian_pipeline(target, DDIMScheduler, image=True)
    without = run(pipe, 5)
    assert not pipe.unet.calls[0]["sample"][:, -2:].any()
    unknown = np.full(SIZE, np.nan, dtype=np.float32)
    np.testing.assert_array_equal(run(pipe, 5, images={"pet": unknown}), without)
    with pytest.raises(ValueError, match="names 'pet', which is not among the conditions that are given"):
        run(pipe, 5, images={"pet": unknown}, guidance_scale={"pet": 2.0})
    half = pet_of(0.3, SIZE)
    half[1] = np.nan
    found = run(pipe, 5, images={"pet": half})
    np.testing.assert_array_equal(found[:, 1], without[:, 1])
    assert np.abs(found[:, 0] - without[:, 0]).mean() > 0.02


STACKED = {"guidance_scale": {"contrast_agent": 2.5}, "classifier_scale": 1.5, "conditions": AGED}


@both_targets
@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler])
def test_the_generator_repeats_and_batching_and_tiles_change_nothing(target, scheduler):
    pipe = gaussian_pipeline(target, scheduler, classifier=AgeClassifier())
    one = run(pipe, 6, samples=3, **STACKED)
    np.testing.assert_array_equal(run(pipe, 6, samples=3, **STACKED), one)
    assert np.abs(one - run(pipe, 6, samples=3, **{**STACKED, "generator": seeded(1)})).max() > 5e-3
    assert min(np.abs(one[i] - one[j]).max() for i, j in ((0, 1), (0, 2), (1, 2))) > 5e-3
    pipe.unet.calls.clear()
    np.testing.assert_allclose(run(pipe, 6, samples=3, sample_batch_size=2, **STACKED), one, atol=1e-5)
    assert [call["batch"] for call in pipe.unet.calls] == [4] * 6 + [2] * 6
    wide = {"size": (5, 16, 24), **STACKED}
    whole = run(pipe, 6, **wide)
    pipe.unet.calls.clear()
    tiled = run(pipe, 6, tile_size=(2, 8, 12), tile_overlap=(1, 4, 4), **wide)
    assert len(pipe.unet.calls) == 6 * 4 * 3 * 3
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


MIXED = [
    ScanConditions(contrast_agent=True, age_years=40.0, slice_thickness_mm=1.0),
    ScanConditions(sex="M", age_years=5.0),
    ScanConditions(contrast_agent=False, sex="F", slice_thickness_mm=4.0),
]


def adaptive(shift: float) -> CTAdaptiveDDIMScheduler:
    return CTAdaptiveDDIMScheduler.from_config(
        make_noise_scheduler().config, shift_conditions=["slice_thickness_mm"], shift_knot_counts=[2],
        shift_knots=[1.0, 4.0], shift_values=[-shift, 2.0 * shift],
    )  # fmt: skip


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler, adaptive(1.0)])
def test_conditions_of_each_sample_in_one_batch_equal_single_runs(scheduler):
    pipe = gaussian_pipeline("image", scheduler, classifier=AgeClassifier())
    guided = {"guidance_scale": {"contrast_agent": 2.5, "sex": 0.5}, "classifier_scale": 1.5}
    generators = [seeded(seed) for seed in (7, 8, 9)]
    batch = run(
        pipe, 6, samples=3, sample_batch_size=3, conditions=MIXED, generator=[seeded(s) for s in (7, 8, 9)], **guided
    )
    assert len(pipe.unet.calls) == 6 and pipe.unet.calls[0]["batch"] == 9
    fresh = [seeded(seed) for seed in (7, 8, 9)]
    parts = run(pipe, 6, samples=3, sample_batch_size=2, conditions=MIXED, generator=fresh, **guided)
    np.testing.assert_allclose(parts, batch, atol=2e-5)
    for i, (one, generator) in enumerate(zip(MIXED, generators)):
        # a condition that this sample does not have cannot be asked for by name in a run of its own
        scales = {k: v for k, v in guided["guidance_scale"].items() if getattr(one, k) is not None}
        age = 0.0 if one.age_years is None else 1.5
        single = run(pipe, 6, conditions=one, generator=[generator], guidance_scale=scales, classifier_scale=age)
        np.testing.assert_allclose(batch[i], single[0], atol=2e-5)
    assert min(abs(batch[i].mean() - batch[j].mean()) for i, j in ((0, 1), (0, 2), (1, 2))) > 0.01


@both_targets
def test_the_adaptive_schedule_without_shift_is_ddim_bit_for_bit(target):
    plain = gaussian_pipeline(target, DDIMScheduler, classifier=AgeClassifier())
    zero = gaussian_pipeline(target, adaptive(0.0), classifier=AgeClassifier())
    thick = {**STACKED, "conditions": ScanConditions(contrast_agent=True, age_years=40.0, slice_thickness_mm=1.0)}
    np.testing.assert_array_equal(run(zero, 8, samples=2, **thick), run(plain, 8, samples=2, **thick))


@both_targets
@pytest.mark.parametrize(("thickness", "shift"), [(1.0, -1.0), (4.0, 2.0)])
def test_a_shifted_schedule_equals_its_loop_written_out(target, thickness, shift):
    pipe = gaussian_pipeline(target, adaptive(1.0), classifier=AgeClassifier())
    aged = ScanConditions(contrast_agent=True, age_years=40.0, slice_thickness_mm=thickness)
    found = run(pipe, 20, guidance_scale=2.0, classifier_scale=1.5, conditions=aged)
    x, told = start_noise(pipe, seeded(), 1, SIZE).astype(np.float64), []

    def moved(t):
        alpha, sigma = (float(c) for c in alpha_sigma_at(t))
        snr = alpha**2 / sigma**2 * math.exp(shift) if t >= 0 else math.inf
        return (math.sqrt(snr / (1.0 + snr)), 1.0 / math.sqrt(1.0 + snr)) if snr < math.inf else (1.0, 0.0)

    for t in range(999, -1, -50):
        alpha, sigma = moved(t)
        x0 = sum(w * (one.mean[0] + alpha * one.covariance[0, 0] * (x - alpha * one.mean[0])
                      / (alpha**2 * one.covariance[0, 0] + sigma**2))
                 for w, one in FREE + (JUDGED if t < 999 else []))  # fmt: skip
        told.append(math.atan2(sigma, alpha))
        eps = (x - alpha * x0) / sigma
        alpha, sigma = moved(t - 50 if t > 50 else -1)
        x = alpha * x0 + sigma * eps
    np.testing.assert_allclose(found, x, atol=5e-4)
    # the network is told the time at which the plain schedule has this noise
    np.testing.assert_allclose(
        [math.atan2(*reversed([float(c) for c in alpha_sigma_at(call["timestep"][:1])])) for call in pipe.unet.calls],
        told, atol=1e-5,
    )  # fmt: skip


def test_an_unknown_thickness_in_the_header_does_not_move_the_schedule():
    pipe = gaussian_pipeline("residual", adaptive(1.0))
    low = low_dose()
    zero = CTVolume(low.hu, low.spacing_mm, low.affine_lps, ScanConditions(slice_thickness_mm=0.0))
    none = CTVolume(low.hu, low.spacing_mm, low.affine_lps, ScanConditions())
    a, b = (pipe(v, num_inference_steps=4, generator=seeded(), output_type="np").volumes for v in (zero, none))
    np.testing.assert_array_equal(a, b)


def real_pipeline() -> CTDiffusionPipeline:
    torch.manual_seed(1)
    told = ConditionEncoder(
        conditions=["body_part", "age_years", "findings", "spacing_mm"], body_parts=["HEAD", "THORAX"],
        findings=["cyst", "nodule"], token_dim=8, pooled_dim=5,
    )  # fmt: skip
    unet = tiny_unet(
        in_channels=8, pooled_dim=8, norm_type="rms", transformer_depth=(0, 1), cross_attention_dim=8,
        attention_head_dim=8,
    )  # fmt: skip
    pipe = CTDiffusionPipeline(
        unet, DDIMScheduler.from_config(make_noise_scheduler().config), condition_encoder=told.eval(),
        image_conditions="mri",
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_real_networks_with_cross_attention_and_positions_are_batched_right():
    pipe, low = real_pipeline(), low_dose((2, 16, 16))
    mri = np.random.default_rng(1).random(low.shape).astype(np.float32)
    asked = ScanConditions(body_part="THORAX", age_years=30.0, findings=("nodule",))
    kwargs = {
        "spacing_mm": low.spacing_mm, "conditions": asked, "images": {"mri": mri}, "num_inference_steps": 3,
        "return_samples": True, "output_type": "np", "num_samples": 3,
        "guidance_scale": {"findings": 3.0, "mri": 2.0, "spacing_mm": 1.5},
    }  # fmt: skip
    one = pipe(low.hu, generator=seeded(), sample_batch_size=1, **kwargs).samples
    two = pipe(low.hu, generator=seeded(), sample_batch_size=3, **kwargs).samples
    np.testing.assert_allclose(one, two, atol=2e-2)
    for changed in (
        {"guidance_scale": {"findings": 3.0, "mri": 2.0}}, {"guidance_scale": 2.0}, {"guidance_scale": 1.0},
        {"conditions": ScanConditions(body_part="HEAD", age_years=30.0, findings=("nodule",))},
        {"conditions": ScanConditions(body_part="THORAX", age_years=30.0, findings_absent=("nodule",))},
        {"images": {"mri": mri[::-1].copy()}}, {"spacing_mm": (4.0, 0.8, 0.8)},
    ):  # fmt: skip
        other = pipe(low.hu, generator=seeded(), sample_batch_size=3, **{**kwargs, **changed}).samples
        assert np.abs(other - two).max() > 0.1, changed
