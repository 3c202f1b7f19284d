"""Synthesis: slabs that continue each other, defaults, padding, and facts from which a volume is made again."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from diffusers_ct import CheckpointContract, CTDiffusionPipeline, CTVolume, ScanConditions, write_volume
from diffusers_ct.hounsfield import companded_to_hu, hu_to_companded
from diffusers_ct.io import Derivation
from diffusers_ct.pipelines import ContractError
from diffusers_ct.pipelines.synthesis import slab_boxes, stored_conditions
from diffusers_ct.schedulers import make_noise_scheduler, x0_to_prediction
from tests.pipelines.gaussian_parts import (
    BOTH,
    AgeClassifier,
    GaussianNetwork,
    alpha_sigma_at,
    gaussian_pipeline,
    network_units,
    pet_of,
)
from tests.pipelines.test_pipeline_ct_diffusion import seeded

SPACING = (2.0, 0.8, 0.8)
RISE = 0.01


class Ramp(ModelMixin, ConfigMixin):
    """Continues the slices it is shown by RISE a slice; shown none, it begins at its `start`. Copies what is shown."""

    @register_to_config
    def __init__(self, in_channels: int = 3, start: float = -0.4, depth_factor: int = 1) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.size_factor, self.needs_spacing = (depth_factor, 2, 2), False
        self.contexts: list[torch.Tensor] = []

    def forward(self, sample, timestep, pooled=None, return_dict=True):
        x_t, value, known = sample[:, :1], sample[:, 1:2], sample[:, 2:3] > 0
        self.contexts.append(known[0, 0, :, 0, 0])
        depth = torch.arange(sample.shape[2])
        at = depth[:, None, None] - value / RISE  # where the ramp through a shown voxel is 0
        zero = torch.where(known, at, 0.0).sum(2, keepdim=True) / known.sum(2, keepdim=True).clamp(min=1)
        zero = torch.where(known.any(2, keepdim=True), zero, -self.config.start / RISE)
        x0 = torch.where(known, value, RISE * (depth[:, None, None] - zero)).double()
        alpha, sigma = alpha_sigma_at(timestep)
        return (x0_to_prediction(x0, x_t.double(), alpha, sigma, "v_prediction").float(),)


def contract(shape) -> dict:
    return CheckpointContract("x", "y", target="image", volume_shape=shape).to_dict()


def slab_pipeline(unet, shape, scheduler=DDIMScheduler, **parts) -> CTDiffusionPipeline:
    pipe = CTDiffusionPipeline(
        unet, scheduler.from_config(make_noise_scheduler().config), contract(shape), target="image",
        image_conditions="context", **parts,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make(pipe, **request):
    free = {"ignore_contract": ["volume_shape"]} if pipe.contract is not None else {}
    return pipe(**{"spacing_mm": SPACING, "num_inference_steps": 3, "generator": seeded(), **free, **request})


def test_planes_of_another_size_are_refused_unless_named_and_a_synthetic_volume_says_so(tmp_path):
    pipe = slab_pipeline(Ramp(), (2, 8, 8))
    with pytest.raises(ContractError, match="16 x 8, and this checkpoint was trained on 8 x 8"):
        make(pipe, shape=(2, 16, 8), ignore_contract=())
    made = make(pipe, shape=(2, 8, 8), ignore_contract=())
    volume = made.volumes[0]
    assert volume.synthetic and volume.crop((0, 0, 0), (1, 4, 4)).synthetic and volume.with_hu(volume.hu).synthetic
    with pytest.raises(ValueError, match="is synthetic and must say so"):
        write_volume(volume, tmp_path / "a.nii.gz")
    assert not list(tmp_path.iterdir())
    facts = Derivation.from_provenance(made.provenance[0], package_version="1")
    assert facts.synthetic and facts.seed == made.provenance[0]["seed"]
    write_volume(volume, tmp_path / "a.nii.gz", derivation=facts)


@pytest.mark.parametrize(
    ("depth", "slab", "overlap", "factor", "starts"),
    [
        (8, 8, None, 1, [0]), (5, 8, 3, 1, [0]), (9, 8, None, 1, [0, 1]), (16, 8, None, 1, [0, 4, 8]),
        (18, 8, None, 1, [0, 4, 8, 10]), (16, 8, 1, 1, [0, 7, 8]), (16, 8, 2, 4, [0, 4, 8]), (20, 8, 4, 4, [0, 4, 8, 12]),
        (10, 4, 3, 1, [0, 1, 2, 3, 4, 5, 6]),
    ],
)  # fmt: skip
def test_slabs_cover_and_overlap(depth, slab, overlap, factor, starts):
    boxes = slab_boxes(depth, slab, overlap, factor)
    assert [box.start for box in boxes] == starts
    assert boxes[-1].stop == depth and all(box.stop - box.start == min(slab, depth) for box in boxes)
    assert all(a.stop - b.start >= (slab // 2 if overlap is None else overlap) for a, b in pairwise(boxes))
    assert all(box.start % factor == 0 for box in boxes)


@pytest.mark.parametrize(("overlap", "factor"), [(0, 1), (-1, 1), (8, 1), (9, 1), (5, 4)])
def test_an_overlap_that_leaves_no_progress_or_nothing_to_continue_is_refused(overlap, factor):
    with pytest.raises(ValueError, match=f"from 1 to {8 - factor} slices, got {overlap}"):
        slab_boxes(16, 8, overlap, factor)


def test_slabs_of_one_step_of_the_network_cannot_continue_each_other():
    assert slab_boxes(4, 4, None, 4) == [slice(0, 4)]
    with pytest.raises(ValueError, match="ask for at most 4 slices"):
        slab_boxes(8, 4, None, 4)
    assert [box.start for box in slab_boxes(12, 8, None, 8 - 2)] == [0, 4]  # the default leaves room for a step


@pytest.mark.parametrize("overlap", [None, 1, 3])
def test_a_network_that_continues_what_it_is_shown_is_consistent_along_z(overlap):
    pipe = slab_pipeline(Ramp(), (4, 6, 6))
    made = make(pipe, shape=(11, 6, 6), slab_overlap=overlap, num_samples=2)
    ramp = -0.4 + RISE * np.arange(11)[:, None, None] * np.ones((11, 6, 6))
    for volume in network_units(made.volumes):
        np.testing.assert_allclose(volume, ramp, atol=1e-4)
    shown = [int(known.sum()) for known in pipe.unet.contexts[::3]]
    kept = {None: [0, 2, 2, 2, 3], 1: [0, 1, 1, 3], 3: [0, 3, 3, 3, 3, 3, 3, 3]}[overlap]
    assert shown == kept * 2


def test_slices_that_are_there_are_kept_bit_for_bit():
    network = GaussianNetwork(3, takes_image=True)  # a noisy look at the context: made again, slices would differ
    pipe = slab_pipeline(network, (4, 8, 8))
    ends = []

    def record(pipe, step, timestep, tensors):
        if step == 2:
            ends.append(companded_to_hu(tensors["latents"])[0, 0].numpy())

    volume = make(pipe, shape=(8, 8, 8), callback_on_step_end=record).volumes[0].hu
    first, second, third = ends
    np.testing.assert_array_equal(volume[:4], first)
    np.testing.assert_array_equal(volume[4:6], second[2:])
    np.testing.assert_array_equal(volume[6:], third[2:])
    assert np.abs(second[:2] - first[2:]).min() > 0.0
    # what the second slab was shown is what the first made
    seen = network.calls[3]["sample"][0, 1]
    np.testing.assert_allclose(seen[:2], hu_to_companded(torch.tensor(first[2:])), atol=1e-5)
    assert not seen[2:].any() and network.calls[3]["sample"][0, 2].mean(dim=(1, 2)).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("depth", [4, 9])
def test_a_context_that_the_user_gives_is_continued_and_kept(depth):
    pipe = slab_pipeline(Ramp(), (4, 6, 6))
    there = np.full((depth, 5, 6), np.nan, dtype=np.float32)
    there[2] = 37.25
    affine = CTVolume.from_array(np.zeros(there.shape), SPACING).affine_lps.copy()
    affine[:3, 3] += [5.0, -3.0, 40.0]
    volume = make(pipe, images={"context": CTVolume(there, SPACING, affine)}, shape=there.shape).volumes[0]
    np.testing.assert_array_equal(volume.hu[2], there[2])
    start = float(hu_to_companded(torch.tensor(37.25)))
    ramp = start + RISE * (np.arange(depth)[:, None, None] - 2.0) * np.ones(there.shape)
    np.testing.assert_allclose(hu_to_companded(torch.tensor(volume.hu)), ramp, atol=1e-4)
    np.testing.assert_array_equal(volume.affine_lps, affine)  # lies where its context lies


def test_shape_defaults_to_the_contract_and_the_networks_factor_is_padded_away():
    pipe = gaussian_pipeline("image", DDIMScheduler, image=True, contract=contract((2, 8, 8)))
    assert make(pipe, conditions=BOTH).volumes[0].shape == (2, 8, 8)
    odd, whole = ({"pet": pet_of(0.3, shape)} for shape in ((2, 5, 7), (2, 8, 8)))
    small = make(pipe, shape=(2, 5, 7), images=odd, output_type="np").volumes[0]
    assert pipe.unet.calls[-1]["sample"].shape[2:] == (2, 8, 8)
    large = make(pipe, shape=[2, 8, 8], images=whole, output_type="np").volumes[0]
    np.testing.assert_array_equal(small, large[:, :5, :7])
    assert make(pipe, shape=(1, 8, 8)).volumes[0].shape == (1, 8, 8)  # thinner than the training's


def test_the_classifiers_factor_counts_too():
    pipe = gaussian_pipeline("image", DDIMScheduler, classifier=AgeClassifier(size_factor=8))
    aged = ScanConditions(contrast_agent=True, age_years=40.0)
    asked = {"conditions": aged, "classifier_scale": 1.0, "shape": (2, 12, 4)}
    assert make(pipe, **asked).volumes[0].shape == (2, 12, 4)
    assert pipe.unet.calls[-1]["sample"].shape[2:] == (2, 16, 8)
    judge = AgeClassifier(agent=False)
    judge.size_factor = (4, 4, 4)
    pipe = slab_pipeline(GaussianNetwork(3, takes_image=True), (6, 8, 8), classifier=judge)
    asked = {"conditions": ScanConditions(age_years=40.0), "classifier_scale": 1.0}
    with pytest.raises(ValueError, match=r"classifier takes multiples of 4 slices.*6 at a time"):
        make(pipe, shape=(12, 8, 8), **asked)
    assert not pipe.unet.calls


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler])
def test_the_stored_facts_make_each_volume_again(scheduler):
    pipe = gaussian_pipeline("image", scheduler, classifier=AgeClassifier())
    asked = [ScanConditions(contrast_agent=True, age_years=40.0), ScanConditions(sex="F", age_years=60.0), BOTH]
    made = make(
        pipe, conditions=asked, num_samples=3, sample_batch_size=2, shape=(2, 8, 8),
        guidance_scale={"contrast_agent": 2.0, "sex": 1.5}, classifier_scale=1.5, guidance_rescale=0.3,
        guidance_interval=(0.0, 0.9),
    )  # fmt: skip
    for volume, facts in zip(made.volumes, json.loads(json.dumps(made.provenance))):
        again = ScanConditions(**facts["conditions"])
        assert again == volume.conditions and facts["synthetic"] is True
        given = {"contrast_agent": again.contrast_agent, "sex": again.sex}
        scales = {k: v for k, v in facts["guidance_scale"].items() if given[k] is not None}
        repeated = make(
            pipe, conditions=again, shape=volume.shape, spacing_mm=volume.spacing_mm,
            generator=[torch.Generator().manual_seed(facts["seed"])], guidance_scale=scales,
            guidance_rescale=facts["guidance_rescale"], guidance_interval=tuple(facts["guidance_interval"]),
            classifier_scale=facts["classifier_scale"] if again.age_years else 0.0, eta=facts["eta"],
            num_inference_steps=facts["num_inference_steps"], slab_overlap=facts["slab_overlap"],
        )  # fmt: skip
        np.testing.assert_allclose(repeated.volumes[0].hu, volume.hu, atol=2e-2)
        assert repeated.provenance[0]["seed"] == facts["seed"]
    assert len({facts["seed"] for facts in made.provenance}) == 3
    assert made.provenance[0]["scheduler"] == scheduler.__name__


def test_a_long_volume_is_made_again_bit_for_bit():
    pipe = slab_pipeline(GaussianNetwork(3, takes_image=True), (4, 8, 8), DDPMScheduler)
    made = make(pipe, shape=(10, 8, 8), num_samples=2, slab_overlap=3)
    facts = made.provenance[1]
    assert facts["slab_overlap"] == 3 and facts["images"] == []
    again = make(pipe, shape=(10, 8, 8), slab_overlap=3, generator=[torch.Generator().manual_seed(facts["seed"])])
    np.testing.assert_array_equal(again.volumes[0].hu, made.volumes[1].hu)
    assert np.abs(made.volumes[0].hu - made.volumes[1].hu).max() > 1.0


def test_output_types_agree():
    pipe = gaussian_pipeline("image", DDIMScheduler)
    request = {"conditions": BOTH, "shape": (2, 8, 8), "num_samples": 2}
    volumes = make(pipe, **request).volumes
    assert [v.conditions for v in volumes] == [BOTH, BOTH] and volumes[0].spacing_mm == SPACING
    np.testing.assert_array_equal(volumes[0].affine_lps, CTVolume.from_array(volumes[0].hu, SPACING).affine_lps)
    arrays = make(pipe, output_type="np", **request).volumes
    tensors = make(pipe, output_type="pt", return_dict=False, **request)[0]
    for volume, array, tensor in zip(volumes, arrays, tensors):
        assert array.dtype == np.float32 and tensor.dtype == torch.float32
        np.testing.assert_array_equal(array, volume.hu)
        np.testing.assert_array_equal(tensor.numpy(), volume.hu)
    assert len(arrays) == len(tensors) == 2
    assert arrays[0].min() >= -1024.0 and arrays[0].max() <= 3071.0


def test_conditions_may_be_one_for_all_and_nothing_may_be_asked():
    pipe = gaussian_pipeline("image", DDIMScheduler)
    one = make(pipe, conditions=[BOTH], num_samples=2, shape=(2, 8, 8), output_type="np").volumes
    two = make(pipe, conditions=[BOTH, BOTH], num_samples=2, shape=(2, 8, 8), output_type="np").volumes
    np.testing.assert_array_equal(one, two)
    free = make(pipe, shape=(2, 8, 8))
    assert free.volumes[0].conditions == ScanConditions() and free.provenance[0]["conditions"] == {}
    assert pipe.unet.calls[-1]["pooled"].tolist() == [[0.0] * 4]


def test_a_report_is_stored_as_its_hash_alone():
    stored = stored_conditions(ScanConditions(text="Mr. Example, nodule", findings=("nodule",)))
    assert "Example" not in str(stored) and len(stored["text_sha256"]) == 64
    assert stored["findings"] == ("nodule",)
