"""Requests that a checkpoint cannot serve are refused before the network is asked anything, and say what to do."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusers_ct import (
    CheckpointContract,
    ConditionEncoder,
    ConditionError,
    CTDiffusionPipeline,
    CTVolume,
    NoiseAwareClassifier,
    ScanConditions,
)
from diffusers_ct.pipelines import ContractError
from diffusers_ct.schedulers import make_noise_scheduler
from tests.pipelines.gaussian_parts import GaussianNetwork
from tests.pipelines.test_pipeline_ct_diffusion import scan, seeded

SHAPE, SPACING = (2, 16, 16), (2.0, 0.8, 0.8)


def parts(target: str, **changes):
    kinds = changes.pop("image_conditions", "mri,mask")
    classes = 3 if "mask" in kinds else 0
    extra = {"": 0, "mri,mask": 2 + 4, "mri": 2, "context": 2}[kinds]
    told = ConditionEncoder(
        ["body_part", "age_years", "findings"], body_parts=["ABDOMEN", "HEAD", "THORAX"],
        findings=["cyst", "nodule"], token_dim=2, pooled_dim=4,
    )  # fmt: skip
    judge = NoiseAwareClassifier(
        findings=["nodule"], body_parts=["HEAD", "THORAX"], age=True, block_out_channels=(4,), downsample_strides=(),
        norm_num_groups=2, target=target,
    )  # fmt: skip
    pipe = CTDiffusionPipeline(
        GaussianNetwork((6 if target == "residual" else 1) + extra),
        DDIMScheduler.from_config(make_noise_scheduler().config),
        **{"condition_encoder": told, "classifier": judge, "target": target, "image_conditions": kinds,
           "mask_classes": classes, **changes},
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ask(pipe, **request):
    if pipe.config.target == "image":
        request = {"shape": SHAPE, "spacing_mm": SPACING, "num_inference_steps": 3, **request}
        return pipe(generator=request.pop("generator", seeded()), **request)
    volume = request.pop("volume", scan(SHAPE).hu)
    request = {"num_inference_steps": 3, **request}
    if not isinstance(volume, CTVolume):
        request = {"spacing_mm": SPACING, **request}
    return pipe(volume, generator=request.pop("generator", seeded()), **request)


def refused(pipe, match: str, error=ValueError, **request) -> None:
    with pytest.raises(error, match=match):
        ask(pipe, **request)
    assert not pipe.unet.calls


MRI = np.random.default_rng(0).random(SHAPE).astype(np.float32)
MASK = np.zeros(SHAPE, dtype=np.int64)
KNOWN = ScanConditions(body_part="THORAX", findings=("nodule",))

BOTH_TARGETS = {
    "a condition without training": (
        {"conditions": ScanConditions(kernel="B30f")}, r"not trained with `kernel`.*Set `kernel` to None, or use"),
    "a body part outside the vocabulary": (
        {"conditions": ScanConditions(body_part="THORACIC")},
        r"'THORACIC' is not known to this checkpoint, which knows 'THORAX', .*'HEAD'.*Choose one of these"),
    "a finding outside the vocabulary": (
        {"conditions": ScanConditions(findings=("nodules",))},
        r"'nodules' is not known.*knows 'nodule', 'cyst'\. Choose of these, leave it out"),
    "a finding outside the vocabulary that is absent": (
        {"conditions": ScanConditions(findings_absent=("cist",))}, r"knows 'cyst', 'nodule'.*`findings_absent`"),
    "text without text encoder": (
        {"conditions": ScanConditions(text="Clear lungs.")}, "not trained with `text`.*Leave it out"),
    "an image of another shape": ({"images": {"mri": MRI[:, :8]}}, r"shape \(2, 8, 16\).*\(2, 16, 16\).*resample it"),
    "an image without depth": ({"images": {"mri": MRI[0]}}, r"shape \(16, 16\).*resample it"),
    "an image at another spacing": (
        {"images": {"mri": CTVolume.from_array(MRI, (2.0, 0.9, 0.9))}}, r"spacing \(2.0, 0.9, 0.9\).*resample it"),
    "an image kind without training": ({"images": {"pet": MRI}}, "not trained with the image 'pet'; it takes: mri, mask.*"
                                       "Leave it out"),
    "an unknown image kind": ({"images": {"mir": MRI}}, "not trained with the image 'mir'; it takes: mri, mask"),
    "a label out of range": ({"images": {"mask": MASK + 3}}, "label 3; the checkpoint knows 0 to 2: merge or leave out"),
    "a label below zero": ({"images": {"mask": MASK - 1}}, "whole numbers from 0"),
    "a label that is no whole number": ({"images": {"mask": MASK + 0.5}}, "whole numbers from 0"),
    "an MRI without signal": ({"images": {"mri": MRI * 0}}, "no positive value: a missing one is left out"),
    "guidance by a condition that is not given": (
        {"conditions": KNOWN, "guidance_scale": {"age_years": 2.0}},
        "'age_years', which is not among the conditions that are given. Can be guided, nearest first: .*body_part"),
    "guidance by a misspelt condition": (
        {"conditions": KNOWN, "guidance_scale": {"finding": 2.0}}, "nearest first: findings, body_part"),
    "guidance by an image that is not given": (
        {"conditions": KNOWN, "guidance_scale": {"mri": 2.0}}, "names 'mri', which is not among"),
    "guidance without any condition": ({"guidance_scale": 2.0}, "none is given: set one, or use 1.0"),
    "a negative scale": ({"conditions": KNOWN, "guidance_scale": -1.0}, "not negative, got -1"),
    "a negative scale by name": (
        {"conditions": KNOWN, "guidance_scale": {"findings": -1.0}}, "scale of 'findings' must be finite and not negative"),
    "a scale that is no number": (
        {"conditions": KNOWN, "guidance_scale": float("nan")}, "must be finite and not negative, got nan"),
    "an empty interval": ({"guidance_interval": (0.5, 0.5)}, "0 <= first < last <= 1"),
    "an interval the wrong way round": ({"guidance_interval": (1.0, 0.2)}, "0 <= first < last <= 1"),
    "a share above 1": ({"guidance_rescale": 1.5}, r"`guidance_rescale` must be in \[0, 1\], got 1.5"),
    "a classifier's head that is not there": (
        {"conditions": KNOWN, "classifier_scale": {"finding": 2.0}}, "no head 'finding'. It has, nearest first: findings"),
    "a head without its condition": (
        {"conditions": KNOWN, "classifier_scale": {"age_years": 2.0}}, "`age_years` needs `conditions` that say it: set"),
    "a classifier without conditions": (
        {"classifier_scale": 2.0}, "say nothing of what the classifier judges: set findings or body_part or age_years, or"),
    "a negative classifier scale": (
        {"conditions": KNOWN, "classifier_scale": -2.0}, "finite and not negative, got -2"),
    "a finding that the classifier does not know": (
        {"conditions": ScanConditions(findings=("cyst",)), "classifier_scale": {"findings": 1.0}},
        "'cyst' is not known.*knows 'nodule'"),
    "a classifier and one step": (
        {"conditions": KNOWN, "classifier_scale": 1.0, "num_inference_steps": 1}, "no effect with one step.*set"),
    "the user's own classifier and one step": (
        {"classifiers": [(lambda x, t: x.sum(), 1.0)], "num_inference_steps": 1}, "no effect with one step"),
    "a negative scale of the user's own classifier": (
        {"classifiers": [(lambda x, t: x.sum(), -1.0)]}, "classifier 0 must be finite and not negative"),
    "generators of another number": (
        {"generator": [seeded(), seeded()], "num_samples": 3}, "`generator` is a list of 2, `num_samples` is 3"),
}  # fmt: skip


@pytest.mark.parametrize("target", ["residual", "image"])
@pytest.mark.parametrize("name", BOTH_TARGETS)
def test_refused_before_sampling(name, target):
    request, match = BOTH_TARGETS[name]
    refused(parts(target), f"(?s){match}", **request)


def test_what_was_refused_is_taken_when_put_right():
    for target in ("residual", "image"):
        pipe = parts(target)
        ask(
            pipe, conditions=KNOWN, images={"mri": MRI, "mask": MASK}, guidance_scale={"findings": 2.0, "mri": 1.5},
            classifier_scale={"findings": 1.0}, num_inference_steps=2,
        )  # fmt: skip
        assert [call["batch"] for call in pipe.unet.calls] == [3, 3]


@pytest.mark.parametrize("target", ["residual", "image"])
def test_an_unconditional_checkpoint_says_so(target):
    bare = {"condition_encoder": None, "classifier": None, "image_conditions": ""}
    refused(parts(target, **bare), "takes no conditions, but body_part, findings were given: leave them out",
            ConditionError, conditions=KNOWN)  # fmt: skip
    refused(parts(target, **bare), "this checkpoint is unconditional.*Leave it at 1", guidance_scale=2.0)
    refused(parts(target, **bare), "this checkpoint is unconditional", guidance_scale={"findings": 2.0})
    refused(parts(target, **bare), "has no classifier: leave it at 0, or load one", classifier_scale=1.0)
    refused(parts(target, **bare), "not trained with the image 'mri'; it takes: none", images={"mri": MRI})
    ask(parts(target, **bare), guidance_scale=1.0)


def test_a_condition_error_is_a_value_error_of_its_own():
    refused(parts("image"), "not known", ConditionError, conditions=ScanConditions(body_part="KNEE"))
    several = [KNOWN, ScanConditions(body_part="KNEE")]  # that of any sample
    refused(parts("image"), "'KNEE' is not known", ConditionError, conditions=several, num_samples=2)


def test_what_a_header_says_is_left_out_instead_and_reported():
    pipe, low = parts("residual", classifier=None), scan(SHAPE)
    header = ScanConditions(body_part="KNEE", kernel="B30f", findings=("nodule",), text="Seen before.")
    volume = CTVolume(low.hu, low.spacing_mm, low.affine_lps, header)
    out = ask(pipe, volume=volume)
    assert len(out.left_out) == 3
    assert all(any(word in one for one in out.left_out) for word in ("'KNEE'", "'B30f'", "`text`"))
    assert not any("Seen before" in one for one in out.left_out)
    pipe.unet.calls.clear()
    # what was left out is unknown to the network: there is nothing to be guided by
    refused(pipe, "'body_part', which is not among", volume=volume, guidance_scale={"body_part": 2.0})
    ask(pipe, volume=volume, guidance_scale={"findings": 2.0})


def test_an_image_elsewhere_in_the_patient_is_refused():
    low = scan(SHAPE)

    def mri(affine):
        return {"images": {"mri": CTVolume(MRI, low.spacing_mm, affine)}, "volume": low}

    shifted, turned, near = (low.affine_lps.copy() for _ in range(3))
    shifted[0, 3] += 3.0
    angle = 0.06  # the far edge moves by 0.7 mm, no entry of the matrix by more than 0.05
    turned[:3, :3] = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]] @ turned[:3, :3]
    near[0, 3] += 0.05
    for affine in (shifted, turned):
        refused(parts("residual"), "lies elsewhere in the patient.*resample it", **mri(affine))
    ask(parts("residual"), **mri(near))
    two = {"mri": CTVolume(MRI, SPACING, shifted), "mask": CTVolume(MASK, SPACING, low.affine_lps)}
    refused(parts("image"), "'mask' lies elsewhere", images=two)


def test_each_target_refuses_what_belongs_to_the_other():
    refused(parts("image"), r"synthesises: give `images=\{'prior'", volume=scan(SHAPE).hu)
    refused(parts("image"), "synthesis returns all samples", return_samples=True)
    refused(parts("image"), "three positive numbers", spacing_mm=None)
    refused(parts("image"), "three positive numbers", spacing_mm=(2.0, 0.0, 1.0))
    refused(parts("image"), "`shape` must be", shape=None)
    refused(parts("image"), "`shape` must be", shape=(2, 16))
    refused(parts("residual"), "give the low-dose scan as `volume`", volume=None)
    refused(parts("residual"), "belong to synthesis", shape=SHAPE)
    refused(parts("residual"), "belong to synthesis", slab_overlap=2)
    refused(parts("residual"), "of one scan, not a sequence", conditions=[KNOWN])
    refused(
        parts("image"), "are 2, `num_samples` is 3: give one for each, or one", conditions=[KNOWN] * 2, num_samples=3
    )
    refused(parts("image"), "are 0, `num_samples` is 1", conditions=[])
    refused(parts("image"), "must be `ScanConditions` or a list", TypeError, conditions={"body_part": "HEAD"})


def test_the_contract_of_a_synthesis_checkpoint_holds():
    contract = CheckpointContract(
        "x", "y", target="image", slice_spacing_mm=(1.8, 2.2), body_parts=("HEAD", "THORAX"), volume_shape=(2, 16, 16)
    ).to_dict()
    pipe = parts("image", contract=contract)
    refused(pipe, r"slice_spacing_mm is 4, accepted is 1.8 to 2.2.*ignore_contract=\['slice_spacing_mm'\]",
            ContractError, spacing_mm=(4.0, 0.8, 0.8))  # fmt: skip
    abdomen = ScanConditions(body_part="ABDOMEN")
    refused(pipe, "body_parts is 'ABDOMEN'", ContractError, conditions=[KNOWN, abdomen], num_samples=2)
    refused(pipe, "can name", ignore_contract=["body_part"])
    refused(pipe, r"4 slices is longer than the 2.*\(image condition 'context'\): ask for fewer", shape=(4, 16, 16))
    out = ask(pipe, conditions=[ScanConditions(), KNOWN], num_samples=2)
    assert out.unchecked == ["body_parts"]  # of the first, whatever the last says


def test_a_restored_array_may_say_what_the_contract_asks():
    contract = CheckpointContract("x", "y", kernels=("B30f",), dose_fraction=(0.1, 0.5)).to_dict()
    bare = {"condition_encoder": None, "classifier": None, "image_conditions": "", "contract": contract}
    assert ask(parts("residual", **bare), conditions=ScanConditions(kernel="B30f", dose_fraction=0.25)).unchecked == []
    refused(
        parts("residual", **bare), "dose_fraction is 0.8", ContractError, conditions=ScanConditions(dose_fraction=0.8)
    )
    refused(parts("residual", **bare), "takes no conditions, but sex were", conditions=ScanConditions(sex="F"))


def test_a_pipeline_whose_parts_do_not_fit_is_refused():
    with pytest.raises(ValueError, match="belong together: give both or none"):
        parts("image", tokenizer=torch.nn.Identity())
    with pytest.raises(ValueError, match="Unknown image conditions 'mir'"):
        CTDiffusionPipeline(GaussianNetwork(1), make_noise_scheduler(), target="image", image_conditions="mir")
    with pytest.raises(ValueError, match="`mask_classes` must be at least 2"):
        CTDiffusionPipeline(GaussianNetwork(1), make_noise_scheduler(), target="image", image_conditions="mask")
    pipe = parts("image")
    pipe.register_modules(unet=GaussianNetwork(3))
    refused(pipe, "takes 3 channels; synthesis with the images mri, mask needs 7")


def test_a_classifier_of_another_target_is_refused_at_once():
    of_images = parts("image").classifier
    with pytest.raises(ValueError, match="of target 'image', the pipeline makes one channel of 'residual'"):
        parts("residual", classifier=of_images)
