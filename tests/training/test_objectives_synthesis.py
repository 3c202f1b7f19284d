"""The synthesis objective: its loss in closed form, what the model is shown, and that two conditions give two volumes."""

import pytest
import torch
from torch import nn

from diffusers_ct.hounsfield import companded_to_hu, hu_to_companded
from diffusers_ct.image_conditions import encode_images, image_channels, normalise_image
from diffusers_ct.models import ConditionalDenoiser, ConditionEncoder, UNet3DCTModel, UNet3DCTOutput
from diffusers_ct.schedulers import alpha_sigma, make_noise_scheduler
from diffusers_ct.training import SynthesisObjective
from diffusers_ct.training.draws import draw_timesteps_and_noise
from diffusers_ct.training.objectives_synthesis import draw_context

SHAPE = (4, 8, 8)


class Watcher(nn.Module):
    """Predicts what it is told to and remembers what it was shown."""

    def __init__(self, answer=None) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, sample, timestep, *, fields=None, spacing_mm=None):
        self.sample, self.timestep, self.fields, self.spacing_mm = sample, timestep, fields, spacing_mm
        return UNet3DCTOutput(sample=torch.zeros_like(sample[:, :1]) if self.answer is None else self.answer)


def batch(size: int, *, images: bool = False) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(7)
    made = {
        "hu": companded_to_hu(0.4 * torch.randn(size, 1, *SHAPE, generator=g)),
        "spacing_mm": torch.full((size, 3), 2.0),
        "body_part": torch.arange(size) % 2,
        "age_years": torch.full((size,), 50.0),
        "findings": torch.ones(size, 2),
        "text_states": torch.randn(size, 3, 4, generator=g),
        "text_mask": torch.ones(size, 3, dtype=torch.bool),
    }
    if images:
        raw = {
            "prior": made["hu"] + 10.0,
            "mri": 700.0 * torch.rand(size, 1, *SHAPE, generator=g),
            "pet": 5.0 * torch.rand(size, 1, *SHAPE, generator=g),
            "mask": torch.randint(0, 3, (size, 1, *SHAPE), generator=g).float(),
        }
        for kind, values in raw.items():
            rows = [torch.from_numpy(normalise_image(kind, one[0].numpy()))[None] for one in values]
            made[f"image_{kind}"] = torch.stack(rows)
    return made


def objective(model: nn.Module, **settings) -> SynthesisObjective:
    return SynthesisObjective(model, make_noise_scheduler(), **settings)


def truth(hu: torch.Tensor, seeds: torch.Tensor):
    """x_t and v by hand."""
    x0 = hu_to_companded(hu)
    t, eps = draw_timesteps_and_noise(seeds, x0, 1000)
    alphas = make_noise_scheduler().alphas_cumprod[t].reshape(-1, 1, 1, 1, 1)
    alpha, sigma = alphas.sqrt(), (1 - alphas).sqrt()
    return t, alpha * x0 + sigma * eps, alpha * eps - sigma * x0


def test_loss_of_one_who_knows_and_of_one_who_knows_nothing():
    given, seeds = batch(6), torch.arange(6)
    timesteps, x_t, v = truth(given["hu"], seeds)
    knows, nothing = Watcher(v), Watcher()
    assert objective(knows)(given, seeds)["loss"].item() < 1e-10
    assert objective(nothing)(given, seeds)["loss"].item() == pytest.approx(v.square().mean().item(), rel=1e-5)
    torch.testing.assert_close(nothing.sample, x_t, rtol=1e-5, atol=1e-6)
    assert torch.equal(nothing.timestep, timesteps) and torch.equal(nothing.spacing_mm, given["spacing_mm"])


def test_loss_of_one_who_knows_nothing_is_the_expected_power_of_v():
    # E v^2 = E alpha^2 + E sigma^2 x0^2, over the timesteps that were drawn
    given, seeds = batch(300), torch.arange(300)
    scheduler = make_noise_scheduler()
    x0 = hu_to_companded(given["hu"])
    timesteps, _ = draw_timesteps_and_noise(seeds, x0, 1000)
    alpha, sigma = alpha_sigma(scheduler, timesteps)
    expected = (alpha**2 + sigma**2 * x0.square().mean(dim=(1, 2, 3, 4), keepdim=True)).mean().item()
    assert objective(Watcher())(given, seeds)["loss"].item() == pytest.approx(expected, rel=0.02)


def test_an_item_s_loss_does_not_depend_on_its_company():
    given, seeds = batch(8, images=True), torch.arange(8) + 40
    kinds = ("context", "prior", "mri", "pet", "mask")
    settings = {"image_kinds": kinds, "context_probability": 0.5, "mask_classes": 3, "drop_each": 0.3}
    together = Watcher()
    whole = objective(together, **settings)(given, seeds)["loss"].item()
    single = []
    for row in range(8):
        alone = Watcher()
        part = {name: value[row : row + 1] for name, value in given.items()}
        single.append(objective(alone, **settings)(part, seeds[row : row + 1])["loss"].item())
        assert torch.equal(alone.sample[0], together.sample[row])
        for name, value in alone.fields.items():
            torch.testing.assert_close(value[0], together.fields[name][row], equal_nan=True, rtol=0, atol=0)
    assert whole == pytest.approx(sum(single) / 8, rel=1e-5)


def unknown(fields) -> dict[str, torch.Tensor]:
    return {
        "body_part": fields["body_part"] == -1,
        "age_years": fields["age_years"].isnan(),
        "findings": fields["findings"].isnan().all(dim=1),
        "text": ~fields["text_mask"].any(dim=1),
    }


def test_conditions_are_dropped_on_their_own_and_together():
    count, each, all_ = 4000, 0.2, 0.15
    given = {**batch(1), **{n: v.expand(count, *v.shape[1:]) for n, v in batch(1).items()}}
    given["hu"], seeds = given["hu"][..., :1, :1, :1], torch.arange(count)
    watcher = Watcher()
    objective(watcher, drop_each=each, drop_all=all_)(given, seeds)
    gone = torch.stack(list(unknown(watcher.fields).values())).double()
    margin = 4.5 * 0.5 / count**0.5
    # one: all + (1 - all) each; a pair: all + (1 - all) each^2; a part of the findings may be gone besides
    assert (gone.mean(dim=1) - (all_ + (1 - all_) * each)).abs().max() < margin + 0.02
    assert ((gone[0] * gone[1]).mean() - (all_ + (1 - all_) * each**2)).abs() < margin
    assert (gone.prod(dim=0).mean() - (all_ + (1 - all_) * each**4)).abs() < margin + 0.01
    assert torch.equal(watcher.spacing_mm, given["spacing_mm"])  # which the network needs to know where things are


@pytest.mark.parametrize("settings", [{"drop_each": 1.0, "drop_all": 0.0}, {"drop_each": 0.0, "drop_all": 1.0}])
def test_nothing_of_a_dropped_condition_reaches_the_model(settings):
    """Two batches that differ in all conditions look alike to a model whose conditions are dropped."""
    kinds = ("context", "mri", "mask")
    images = {"image_kinds": kinds, "mask_classes": 3, "context_probability": 1e-9}
    first, other = batch(4, images=True), batch(4, images=True)
    other["body_part"] = 1 - other["body_part"]
    other["age_years"], other["findings"] = other["age_years"] + 9, 1 - other["findings"]
    other["image_mri"], other["image_mask"] = 1 - other["image_mri"], 2 - other["image_mask"]
    shown = []
    for one in (first, other):
        torch.manual_seed(0)
        model = tiny(kinds, mask_classes=images["mask_classes"])
        watcher = Watcher()
        objective(watcher, **settings, **images)(one, torch.arange(4))
        assert all(v.all() for v in unknown(watcher.fields).values())
        fields = {n: v for n, v in watcher.fields.items() if not n.startswith("text")}
        shown.append(model(watcher.sample, watcher.timestep, fields=fields, spacing_mm=watcher.spacing_mm).sample)
    assert torch.equal(*shown)


def test_images_reach_the_network_in_the_order_of_its_channels():
    given, seeds = batch(3, images=True), torch.arange(3)
    kinds = ("mask", "context", "pet", "prior", "mri")
    watcher = Watcher()
    made = objective(watcher, image_kinds=kinds, context_probability=1.0, mask_classes=3, drop_each=0.0, drop_all=0.0)
    made(given, seeds)
    images = {kind: given[f"image_{kind}"] for kind in ("mask", "pet", "prior", "mri")}
    images["context"] = draw_context(given["hu"], seeds, 1.0)
    expected = encode_images(images, kinds, like=watcher.sample, mask_classes=3)
    assert watcher.sample.shape[1] == 1 + image_channels(kinds, mask_classes=3)
    assert torch.equal(watcher.sample[:, 1:], expected)
    # an image that a batch does not have is missing, not an error
    del given["image_pet"]
    made(given, seeds)
    presence = watcher.sample[:, 1 + 4 + 2 + 1]
    assert (presence == 0).all()
    # each drops on its own
    given = {n: v.expand(600, *v.shape[1:])[..., :2, :2, :2] if n == "hu" or n.startswith("image") else v.expand(600, *v.shape[1:])
             for n, v in batch(1, images=True).items()}  # fmt: skip
    objective(watcher, image_kinds=("mri", "pet"), drop_each=0.25)(given, torch.arange(600))
    mri, pet = watcher.sample[:, 2, 0, 0, 0], watcher.sample[:, 4, 0, 0, 0]
    assert mri.mean() == pytest.approx(0.675, abs=0.08) and pet.mean() == pytest.approx(0.675, abs=0.08)
    assert (mri * pet).mean() == pytest.approx(0.506, abs=0.09)  # 0.9 (0.75)^2


def test_context_is_a_random_number_of_slices_from_one_end():
    depth, count = 5, 4000
    hu = torch.arange(depth).float().reshape(1, 1, depth, 1, 1).expand(count, 1, depth, 2, 2)
    context = draw_context(hu, torch.arange(count), 0.3)
    known = context.isfinite()
    assert torch.equal(context[known], hu[known])
    assert torch.equal(known.any(dim=-1).any(dim=-1), known.all(dim=-1).all(dim=-1))  # whole slices
    slices = known[:, 0, :, 0, 0]
    has = slices.any(dim=1)
    assert has.double().mean() == pytest.approx(0.3, abs=0.035)
    numbers = slices[has].sum(dim=1)
    shares = torch.bincount(numbers, minlength=depth + 1).double() / len(numbers)
    assert shares[0] == 0 and shares[depth] == 0 and (shares[1:depth] - 0.25).abs().max() < 0.06
    first, last = slices[has, 0], slices[has, -1]
    assert (first ^ last).all() and first.double().mean() == pytest.approx(0.5, abs=0.07)
    for row, number in zip(slices[has], numbers.tolist()):
        assert row[:number].all() or row[-number:].all()
    assert draw_context(hu[:50], torch.arange(50), 0.0).isnan().all()
    assert draw_context(hu[:50, :, :1], torch.arange(50), 1.0).isnan().all()  # one slice: nothing would be left to make
    assert draw_context(hu[:50, :, :2], torch.arange(50), 1.0).isfinite()[:, 0, :, 0, 0].sum(dim=1).eq(1).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop_each": 1.5}, "`drop_each` is a probability"),
        ({"drop_all": -0.1}, "`drop_all` is a probability"),
        ({"context_probability": 2.0, "image_kinds": ("context",)}, "`context_probability` is a probability"),
        ({"context_probability": 0.5}, "must be positive where"),
        ({"image_kinds": ("context",)}, "must be positive where"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        objective(Watcher(), **settings)
    with pytest.raises(ValueError, match="predicts v"):
        SynthesisObjective(Watcher(), make_noise_scheduler(prediction_type="sample"))


def tiny(kinds=(), *, mask_classes: int = 0) -> ConditionalDenoiser:
    encoder = ConditionEncoder(
        ("body_part", "age_years", "findings"), body_parts=("A", "B"), findings=("x", "y"), token_dim=16, pooled_dim=16
    )
    unet = UNet3DCTModel(
        in_channels=1 + image_channels(kinds, mask_classes=mask_classes), block_out_channels=(16, 16),
        layers_per_block=1, downsample_strides=(1, 2, 2), conv_mode="2.5d", norm_num_groups=4, pooled_dim=16,
        refine_channels=4,
    )  # fmt: skip
    torch.nn.init.normal_(unet.refine_out.weight, std=0.02)
    return ConditionalDenoiser(unet, encoder)


def test_two_conditions_learn_two_volumes():
    """Told apart by the body part alone: what one step makes of pure noise is the volume that was asked for."""
    torch.manual_seed(0)
    model = tiny()
    hu = torch.tensor([-600.0, 100.0]).reshape(2, 1, 1, 1, 1).expand(2, 1, 1, 8, 8)
    given = {
        "hu": hu.repeat(4, 1, 1, 1, 1),
        "spacing_mm": torch.full((8, 3), 2.0),
        "body_part": torch.arange(8) % 2,
    }
    goal = objective(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(200):
        optimizer.zero_grad()
        goal(given, torch.arange(8) + 8 * step)["loss"].backward()
        optimizer.step()
    noise = torch.randn(2, 1, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    last = torch.full((2,), 999)  # no signal is left: x0 = -v
    with torch.no_grad():
        v = model(noise, last, fields={"body_part": torch.tensor([0, 1])}, spacing_mm=torch.full((2, 3), 2.0)).sample
    found = companded_to_hu(-v).mean(dim=(1, 2, 3, 4))
    assert found.tolist() == pytest.approx([-600.0, 100.0], abs=120.0)


def test_lesions_weigh_as_they_are_told_to():
    """Of a model that predicts zeros the loss is the weighted mean of v^2."""
    given, seeds = batch(3), torch.arange(3)
    given["lesions"] = torch.zeros(given["hu"].shape, dtype=torch.uint8)
    given["lesions"][:, :, 0] = 2
    plain = objective(Watcher())(given, seeds)
    weighted = objective(Watcher(), lesion_weight=5.0)(given, seeds)
    squares = truth(given["hu"], seeds)[2].square()
    assert plain["loss"].item() == pytest.approx(squares.mean().item(), rel=1e-5)
    expected = (torch.where(given["lesions"] > 0, 5.0, 1.0) * squares).mean().item()
    assert weighted["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert weighted["loss_unweighted"].item() == pytest.approx(plain["loss"].item(), rel=1e-6)
    given["lesions"][:, :, 1] = 1
    by_kind = objective(Watcher(), lesion_weight=(2.0, 7.0))(given, seeds)
    expected = (torch.tensor([1.0, 2.0, 7.0])[given["lesions"].long()] * squares).mean().item()
    assert by_kind["loss"].item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="1 or more"):
        objective(Watcher(), lesion_weight=0.5)
    with pytest.raises(ValueError, match="1 or more"):
        objective(Watcher(), lesion_weight=(3.0, 0.5))
