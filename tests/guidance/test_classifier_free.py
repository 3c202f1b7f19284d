"""Rules of classifier-free guidance: what is evaluated, how it is composed, what is refused."""

import pytest
import torch

from diffusers_ct.guidance import ClassifierFreeGuidance, compose, guidance_weights, rescale_to

KNOWN = ("body_part", "findings", "text")


class Counting:
    """x0 = 10 - (number of nulled conditions), and a record of what was asked."""

    def __init__(self) -> None:
        self.asked: list[list[frozenset[str]]] = []

    def __call__(self, x_t, timestep, nulled):
        self.asked.append(list(nulled))
        return [torch.full_like(x_t, 10.0 - len(names)) for names in nulled]


def guide(scale, evaluate=None, **settings):
    return ClassifierFreeGuidance(evaluate or Counting(), scale, known=KNOWN, num_train_timesteps=1000, **settings)


X = torch.zeros(2, 1, 1, 2, 2)


def test_all_evaluations_are_one_call_and_conditions_of_scale_one_cost_nothing():
    evaluate = Counting()
    guided = guide({"text": 3.0, "findings": 1.0, "body_part": 2.0}, evaluate)
    out = guided(X, torch.tensor(500))
    assert evaluate.asked == [[frozenset(), frozenset({"body_part"}), frozenset({"text"})]]
    assert guided.evaluations == 3
    assert torch.equal(out, torch.full_like(X, 10.0 + 1.0 * 1.0 + 2.0 * 1.0))
    for scale in (1.0, {}, {"text": 1.0}):
        evaluate = Counting()
        assert torch.equal(guide(scale, evaluate)(X, torch.tensor(500)), torch.full_like(X, 10.0))
        assert evaluate.asked == [[frozenset()]]


def test_one_scale_nulls_all_conditions_together():
    evaluate = Counting()
    out = guide(2.0, evaluate)(X, torch.tensor(500))
    assert evaluate.asked == [[frozenset(), frozenset(KNOWN)]]
    assert torch.equal(out, torch.full_like(X, 7.0 + 2.0 * 3.0))


def test_one_scale_for_all_is_the_scale_of_a_single_condition_by_name():
    g = torch.Generator().manual_seed(0)
    full, null = (torch.randn(2, 1, 2, 4, 4, generator=g) for _ in range(2))
    torch.testing.assert_close(compose(full, null, 2.5), compose(full, {"text": null}, {"text": 2.5}))
    assert torch.equal(compose(full, null, 0.0), null)


def test_outside_the_interval_only_the_full_condition_is_evaluated():
    evaluate = Counting()
    guided = guide(2.0, evaluate, interval=(0.2, 0.8))
    for timestep, inside in ((999, False), (800, False), (799, True), (200, True), (199, False), (0, False)):
        evaluate.asked.clear()
        out = guided(X, torch.tensor(timestep))
        assert len(evaluate.asked[0]) == (2 if inside else 1)
        assert torch.equal(out, torch.full_like(X, 13.0 if inside else 10.0))
    mixed = guided(X, torch.tensor([500, 900]))
    assert mixed[0].unique() == 13.0 and mixed[1].unique() == 10.0


def test_rescaling_brings_the_spread_back_and_keeps_the_mean():
    g = torch.Generator().manual_seed(0)
    full = torch.randn(3, 1, 4, 8, 8, generator=g) * torch.tensor([0.1, 0.2, 0.4]).reshape(3, 1, 1, 1, 1) - 0.6
    guided = 3.0 * torch.randn(3, 1, 4, 8, 8, generator=g) - 0.5
    axes = (1, 2, 3, 4)
    for share in (0.0, 0.3, 1.0):
        out = rescale_to(guided, full, share)
        wanted = share * full.std(axes) + (1.0 - share) * guided.std(axes)  # eq. 15 and 16 for the spread
        torch.testing.assert_close(out.std(axes), wanted)
        torch.testing.assert_close(out.mean(axes), guided.mean(axes))
    flat = torch.full((1, 1, 1, 4, 4), -0.5)
    assert torch.equal(rescale_to(flat, flat, 1.0), flat)
    # the paper's own form, about 0, for a sample of mean 0
    centred = guided - guided.mean(axes, keepdim=True)
    ratio = full.std(axes, keepdim=True) / centred.std(axes, keepdim=True)
    torch.testing.assert_close(rescale_to(centred, full, 0.7), 0.7 * centred * ratio + 0.3 * centred)


def test_rescaling_is_applied_inside_the_guidance():
    g = torch.Generator().manual_seed(0)
    full, null = (torch.randn(2, 1, 2, 4, 4, generator=g) for _ in range(2))
    guided = guide(4.0, lambda x_t, t, nulled: [full, null][: len(nulled)], rescale=0.7)
    torch.testing.assert_close(guided(X, torch.tensor(3)), rescale_to(compose(full, null, 4.0), full, 0.7))


def test_unknown_names_are_refused_with_the_nearest_first():
    with pytest.raises(ValueError, match=r"'finding'.*nearest first: findings, "):
        guidance_weights({"finding": 2.0}, KNOWN)
    with pytest.raises(ValueError, match="'mri'"):
        guide({"mri": 2.0})
    with pytest.raises(ValueError, match="nearest first: none"):
        guidance_weights({"text": 2.0}, ())
    with pytest.raises(ValueError, match="none is given"):
        guidance_weights(2.0, ())
    assert guidance_weights(1.0, ()) == 1.0
    assert list(guidance_weights({"text": 2, "body_part": 3.0}, KNOWN)) == ["body_part", "text"]


@pytest.mark.parametrize("scale", [-0.5, float("nan"), float("inf")])
def test_scales_that_cannot_be_meant(scale):
    with pytest.raises(ValueError, match="finite and not negative"):
        guide(scale)
    with pytest.raises(ValueError, match="'text' must be finite and not negative"):
        guide({"text": scale})


@pytest.mark.parametrize("scale", [True, "3", None, [2.0]])
def test_scales_that_are_not_numbers(scale):
    with pytest.raises(TypeError, match="must be a number"):
        guide({"text": scale})


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.8, 0.2), (-0.1, 1.0), (0.0, 1.1), (float("nan"), 1.0)])
def test_intervals_that_hold_nothing_or_leave_the_process(interval):
    with pytest.raises(ValueError, match="interval"):
        guide(2.0, interval=interval)


def test_other_refusals():
    with pytest.raises(ValueError, match="rescale"):
        guide(2.0, rescale=1.2)
    with pytest.raises(TypeError, match="nulled alone"):
        compose(X, X, {"text": 2.0})
    with pytest.raises(TypeError, match="without any"):
        compose(X, {"text": X}, 2.0)
