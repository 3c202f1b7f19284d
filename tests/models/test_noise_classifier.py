"""The heads' laws against closed forms, and the contract tests of every model."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from diffusers_ct.guidance import ClassifierGuidance
from diffusers_ct.models import NoiseAwareClassifier
from diffusers_ct.models.log_probabilities import (
    bernoulli_log_probability,
    categorical_log_probability,
    gaussian_log_probability,
    ordinal_log_probability,
)
from diffusers_ct.schedulers import make_noise_scheduler

NAN = float("nan")
TINY = {
    "findings": ("lung_nodule", "emphysema"),
    "body_parts": ("ABDOMEN", "CHEST", "HEAD"),
    "dose_thresholds": (0.15, 0.3, 0.6),
    "age": True,
    "block_out_channels": (8, 16),
    "downsample_strides": (1, 2, 2),
    "norm_num_groups": 4,
}
VARIANTS = {
    "3d": {},
    "2.5d": {"conv_mode": "2.5d", "layers_per_block": 2},
    "rms": {"norm_type": "rms"},
    "stride in z": {"downsample_strides": (2, 2, 2)},
    "one threshold": {"dose_thresholds": (0.5,)},
}
TARGETS = {
    "findings": torch.tensor([[1.0, NAN], [0.0, 1.0]]),
    "body_part": torch.tensor([2, 0]),
    "dose_fraction": torch.tensor([0.25, 1.0]),
    "age_years": torch.tensor([61.0, 40.0]),
}


def make(seed: int = 0, **changes) -> NoiseAwareClassifier:
    """A tiny classifier whose zero-initialised layers carry signal."""
    torch.manual_seed(seed)
    model = NoiseAwareClassifier(**{**TINY, **changes})
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def inputs(batch: int = 2) -> dict:
    g = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(batch, 1, 4, 16, 16, generator=g),
        "timestep": torch.arange(batch) * 100 + 7,
    }


def test_bernoulli_law():
    logits, target = torch.tensor([[2.0, -1.0, 0.3]]), torch.tensor([[1.0, 0.0, NAN]])
    wanted = stats.bernoulli.logpmf(1, 1 / (1 + math.exp(-2.0))) + stats.bernoulli.logpmf(0, 1 / (1 + math.exp(1.0)))
    assert bernoulli_log_probability(logits, target).item() == pytest.approx(wanted, rel=1e-6)


def test_categorical_law():
    logits = torch.tensor([[0.1, 2.0, -1.0], [0.1, 2.0, -1.0]])
    probabilities = np.exp([0.1, 2.0, -1.0]) / np.exp([0.1, 2.0, -1.0]).sum()
    found = categorical_log_probability(logits, torch.tensor([2, -1]))
    assert found.tolist() == pytest.approx([math.log(probabilities[2]), 0.0])
    with pytest.raises(ValueError, match=r"-1\.\.2"):
        categorical_log_probability(logits, torch.tensor([3, 0]))


def test_gaussian_law():
    law = torch.tensor([[55.0, 2.0 * math.log(7.0)], [1.0, 1.0]])
    found = gaussian_log_probability(law, torch.tensor([61.0, NAN]))
    assert found.tolist() == pytest.approx([stats.norm.logpdf(61.0, 55.0, 7.0), 0.0])


def test_ordinal_law_is_a_probability_over_classes():
    thresholds, values = (0.15, 0.3, 0.6), torch.tensor([0.1, 0.25, 0.5, 0.9])
    logits = torch.tensor([[1.3, 0.2, -0.7]]).expand(4, 3)
    above = 1 / (1 + np.exp(-np.array([1.3, 0.2, -0.7])))
    wanted = -np.diff([1.0, *above, 0.0])
    found = ordinal_log_probability(logits, values, thresholds).exp().numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert found.sum() == pytest.approx(1.0)
    # a value on a threshold belongs to the class below it; unknown adds nothing
    on_edge = ordinal_log_probability(logits[:2], torch.tensor([0.15, NAN]), thresholds)
    assert on_edge.tolist() == pytest.approx([math.log(wanted[0]), 0.0])


def test_ordinal_law_far_out_is_finite_and_has_a_gradient():
    logits = torch.tensor([[80.0, 79.999, -60.0], [-90.0, -90.001, -91.0]], requires_grad=True)
    found = ordinal_log_probability(logits, torch.tensor([0.25, 0.9]), (0.15, 0.3, 0.6))
    found.sum().backward()
    # sigmoid(80) - sigmoid(79.999) = exp(-79.999) (1 - exp(-0.001)) nearly
    assert found[0].item() == pytest.approx(-79.999 + math.log(-math.expm1(-0.001)), abs=0.1)
    assert found[1].item() == pytest.approx(-91.0, abs=1e-3)
    assert torch.isfinite(logits.grad).all() and logits.grad[1, 2] == pytest.approx(1.0)


def test_cumulative_logits_fall_and_more_score_means_higher_classes():
    head = make().dose_head
    low, high = head(torch.zeros(1, 32)), head(head.score.weight * 10.0)
    assert (low.diff(dim=1) < 0).all() and (high > low).all()


def test_log_probability_is_the_sum_of_its_heads_and_unknown_targets_add_nothing():
    model, given = make(), inputs()
    with torch.no_grad():
        out = model(**given)
        parts = {head: model.log_probability(**given, targets=TARGETS, heads=[head]) for head in model.heads}
        wanted = {
            "findings": bernoulli_log_probability(out.findings, TARGETS["findings"]),
            "body_part": categorical_log_probability(out.body_part, TARGETS["body_part"]),
            "dose_fraction": ordinal_log_probability(out.dose_fraction, TARGETS["dose_fraction"], (0.15, 0.3, 0.6)),
            "age_years": gaussian_log_probability(out.age_years, TARGETS["age_years"]),
        }
        assert parts.keys() == wanted.keys()
        for head, value in wanted.items():
            assert value.abs().min() > 0
            torch.testing.assert_close(parts[head], value)
        torch.testing.assert_close(model.log_probability(**given, targets=TARGETS), sum(wanted.values()))
        unknown = {
            "findings": torch.full((2, 2), NAN),
            "body_part": torch.tensor([-1, -1]),
            "dose_fraction": torch.full((2,), NAN),
            "age_years": torch.full((2,), NAN),
        }
        assert not model.log_probability(**given, targets=unknown).any()
        # keys that it does not judge are passed over
        more = {**TARGETS, "kernel": torch.tensor([0, 1])}
        assert torch.equal(
            model.log_probability(**given, targets=more), model.log_probability(**given, targets=TARGETS)
        )


def test_unknown_targets_leave_finite_gradients():
    model, given = make(), inputs()
    targets = {
        "findings": torch.full((2, 2), NAN),
        "body_part": torch.tensor([-1, 1]),
        "dose_fraction": torch.tensor([NAN, NAN]),
        "age_years": torch.tensor([NAN, NAN]),
    }
    model.log_probability(**given, targets=targets).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert not model.findings_head.weight.grad.any() and not model.age_head.weight.grad.any()
    assert model.body_part_head.weight.grad.any()


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_gets_a_finite_gradient(name):
    model = make(**VARIANTS[name])
    model.log_probability(**inputs(), targets=TARGETS).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("name", VARIANTS)
def test_save_and_load_gives_equal_output(name, tmp_path):
    model = make(**VARIANTS[name])
    model.save_pretrained(tmp_path)
    loaded = NoiseAwareClassifier.from_pretrained(tmp_path, use_safetensors=True)
    assert loaded.heads == model.heads == ("findings", "body_part", "dose_fraction", "age_years")
    assert list(loaded.config["findings"]) == ["lung_nodule", "emphysema"]
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    with torch.no_grad():
        first, second = (m(**inputs(), targets=TARGETS) for m in (model, loaded))
    for head in model.heads:  # the same numbers at another address: products may be summed in another order
        torch.testing.assert_close(first[head], second[head], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(first.log_probabilities[head], second.log_probabilities[head], rtol=1e-6, atol=1e-6)


def test_batch_equals_single_and_dict_equals_tuple():
    model, given = make(), inputs()
    with torch.no_grad():
        both = model(**given, targets=TARGETS)
        as_tuple = model(**given, return_dict=False)
        assert len(as_tuple) == 4 and all(torch.equal(a, both[h]) for a, h in zip(as_tuple, model.heads))
        for i in range(2):
            one = {name: values[i : i + 1] for name, values in TARGETS.items()}
            single = model(given["sample"][i : i + 1], given["timestep"][i], targets=one)
            for head in model.heads:
                torch.testing.assert_close(single[head][0], both[head][i], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(single.log_probabilities[head][0], both.log_probabilities[head][i])


def test_time_changes_the_output():
    model, given = make(), inputs()
    with torch.no_grad():
        later = model(given["sample"], given["timestep"] + 300).findings
        assert (later - model(**given).findings).abs().max() > 1e-3


def test_a_new_classifier_sees_a_spot_that_the_mean_over_the_volume_hides():
    torch.manual_seed(0)
    model = NoiseAwareClassifier(**TINY).eval()
    g = torch.Generator().manual_seed(1)
    plain = 0.3 * torch.randn(16, 1, 8, 64, 64, generator=g)
    spot = plain.clone()
    spot[:, :, 3:5, 20:24, 30:34] += 2.0  # 32 of 32768 voxels
    seen = []
    model.findings_head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(plain, 0), model(spot, 0)
    channels = model.config["block_out_channels"][-1]
    shift = ((seen[1] - seen[0]).mean(dim=0) / seen[0].std(dim=0)).abs()  # in standard deviations between volumes
    assert shift[channels:].max() > 5.0  # pooled with weights
    mean_alone = (spot.mean(dim=(1, 2, 3, 4)) - plain.mean(dim=(1, 2, 3, 4))).mean() / (0.3 / 32768**0.5)
    assert mean_alone < 2.0


def test_gradient_checkpointing_changes_nothing():
    gradients = []
    for checkpointing in (False, True):
        model = make()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.train().log_probability(**inputs(), targets=TARGETS).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for first, second in zip(*gradients):
        torch.testing.assert_close(first, second)


def test_a_classifier_of_one_head_and_guidance_by_it():
    model = make(findings=(), dose_thresholds=(), age=False)
    assert model.heads == ("body_part",) and model(**inputs()).findings is None
    scheduler, x_t = make_noise_scheduler(), inputs()["sample"]
    towards = {"body_part": torch.tensor([1, 1])}
    guided = ClassifierGuidance(
        lambda x, t: torch.zeros_like(x), [(lambda x, t: model.log_probability(x, t, towards), 1.0)], scheduler
    )
    with torch.no_grad():
        step = guided(x_t, torch.tensor(300))
        before, after = (model.log_probability(x, 300, towards) for x in (x_t, x_t + 0.1 * step))
    assert (after > before).all()  # up the gradient


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"findings": (), "body_parts": (), "dose_thresholds": (), "age": False}, "needs a head"),
        ({"findings": ("a", "a")}, "repeat"),
        ({"body_parts": ("CHEST",)}, "at least two"),
        ({"dose_thresholds": (0.3, 0.2)}, "rise"),
        ({"dose_thresholds": (0.3, 1.0)}, "rise"),
        ({"conv_mode": "2d"}, "conv_mode"),
        ({"norm_type": "batch"}, "norm_type"),
        ({"patch_size": (2, 2)}, "patch_size"),
        ({"downsample_strides": (2, 2)}, "downsample_strides"),
    ],
)
def test_configurations_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        NoiseAwareClassifier(**{**TINY, **changes})


def test_inputs_that_do_not_fit():
    model, given = make(dose_thresholds=()), inputs()
    with pytest.raises(ValueError, match=r"divisible by \(1, 4, 4\)"):
        model(torch.zeros(1, 1, 4, 18, 16), 3)
    with pytest.raises(ValueError, match="must be \\(batch, 1,"):
        model(torch.zeros(1, 2, 4, 16, 16), 3)
    with pytest.raises(ValueError, match=r"no head 'finding'\. It has, nearest first: findings"):
        model.log_probability(**given, targets=TARGETS, heads=["finding"])
    with pytest.raises(ValueError, match="say nothing of 'age_years'"):
        model.log_probability(**given, targets={}, heads=["age_years"])
    with pytest.raises(ValueError, match="nothing that the classifier judges"):
        model.log_probability(**given, targets={"dose_fraction": TARGETS["dose_fraction"]})
    with pytest.raises(ValueError, match=r"'findings' must have the shape \(2, 2\), got \(2, 3\)"):
        model.log_probability(**given, targets={"findings": torch.zeros(2, 3)})
