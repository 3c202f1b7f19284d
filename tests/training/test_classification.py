"""The classifier's objective: its optimum is the exact posterior of a Gaussian mixture, at every noise level."""

import pytest
import torch
from torch import nn

from diffusers_ct.models import NoiseAwareClassifier
from diffusers_ct.models.log_probabilities import categorical_log_probability
from diffusers_ct.models.noise_classifier import NoiseClassifierOutput
from diffusers_ct.schedulers import alpha_sigma, make_noise_scheduler
from diffusers_ct.training import ClassificationObjective, TrainingConfig, train

NAN = float("nan")
SCHEDULER = make_noise_scheduler()
MEAN, SPREAD = 0.4, 0.3


class Exact(nn.Module):
    """x0 ~ N(+-MEAN, SPREAD^2) by class: logit of class 1 = gain 2 alpha MEAN x_t / (alpha^2 SPREAD^2 + sigma^2)."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self, sample, timestep, targets):
        self.seen.append((sample, timestep))
        alpha, sigma = alpha_sigma(SCHEDULER, timestep, 1)
        logit = self.gain * 2.0 * alpha * MEAN * sample.flatten(1)[:, 0] / (alpha**2 * SPREAD**2 + sigma**2)
        logits = torch.stack([torch.zeros_like(logit), logit], dim=1)
        log_p = {"body_part": categorical_log_probability(logits, targets["body_part"])}
        return NoiseClassifierOutput(body_part=logits, log_probabilities=log_p)


def mixture(size: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    part = torch.randint(0, 2, (size,), generator=g)
    x0 = (2.0 * part - 1.0) * MEAN + SPREAD * torch.randn(size, generator=g)
    return {"x0": x0.reshape(size, 1, 1, 1, 1), "body_part": part}


def test_the_exact_classifier_is_the_optimum():
    batch, seeds = mixture(4000), torch.arange(4000)
    model = Exact(1.0)
    loss = ClassificationObjective(model, SCHEDULER)(batch, seeds)["loss"]
    loss.backward()
    assert abs(model.gain.grad.item()) < 0.03  # some 4 standard errors
    for wrong in (0.5, 2.0):
        model = Exact(wrong)
        worse = ClassificationObjective(model, SCHEDULER)(batch, seeds)["loss"]
        worse.backward()
        assert worse > loss + 0.01 and model.gain.grad.item() * (wrong - 1.0) > 0.04


def test_timesteps_are_even_from_the_first_and_belong_to_the_item():
    batch, seeds = mixture(600), torch.arange(600)
    model = Exact(1.0)
    objective = ClassificationObjective(model, SCHEDULER, first_timestep=400)
    objective(batch, seeds)
    flipped = {name: values.flip(0) for name, values in batch.items()}
    objective(flipped, seeds.flip(0))
    (x_t, timesteps), (x_again, again) = model.seen
    assert torch.equal(timesteps, again.flip(0)) and torch.equal(x_t, x_again.flip(0))
    assert 400 <= timesteps.min() < 410 and 990 <= timesteps.max() <= 999
    assert timesteps.float().mean() == pytest.approx(699.5, abs=25)
    ClassificationObjective(model, SCHEDULER)(batch, seeds)
    assert model.seen[-1][1].min() < 10


def tiny() -> NoiseAwareClassifier:
    torch.manual_seed(0)
    return NoiseAwareClassifier(
        findings=("a", "b"), body_parts=("ABDOMEN", "CHEST"), dose_thresholds=(0.5,), age=True,
        block_out_channels=(8, 16), downsample_strides=(1, 2, 2), norm_num_groups=4,
    )  # fmt: skip


def test_unknown_labels_are_masked_and_each_head_is_logged():
    g = torch.Generator().manual_seed(1)
    batch = {
        "x0": torch.randn(3, 1, 2, 8, 8, generator=g),
        "findings": torch.tensor([[1.0, NAN], [NAN, NAN], [0.0, 1.0]]),
        "body_part": torch.tensor([0, -1, -1]),
        "dose_fraction": torch.tensor([NAN, NAN, NAN]),
        "kernel": torch.tensor([0, 1, 2]),
    }
    logs = ClassificationObjective(tiny(), SCHEDULER)(batch, torch.arange(3))
    assert set(logs) == {"loss", "loss_findings", "loss_body_part"}
    # sums over the batch: findings known of two items, body part of one, out of three
    wanted = (2.0 * logs["loss_findings"] + logs["loss_body_part"]) / 3.0
    assert logs["loss"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_refusals():
    with pytest.raises(ValueError, match=r"0\.\.999"):
        ClassificationObjective(tiny(), SCHEDULER, first_timestep=1000)
    with pytest.raises(ValueError, match="no labels"):
        ClassificationObjective(tiny(), SCHEDULER)({"x0": torch.zeros(1, 1, 2, 8, 8)}, torch.arange(1))


class Blobs(torch.utils.data.Dataset):
    """ABDOMEN is dark and its dose low; "a" is a bright spot anywhere. Labels are missing for one item in four."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        g = torch.Generator().manual_seed(index)
        part, spot = (int(torch.randint(0, 2, (), generator=g)) for _ in range(2))
        x0 = 0.1 * torch.randn(1, 2, 16, 16, generator=g) + 0.4 * (part - 0.5)
        y, x = (int(torch.randint(0, 13, (), generator=g)) for _ in range(2))
        x0[:, :, y : y + 4, x : x + 4] += 0.8 * spot
        known = index % 4 > 0
        return {
            "x0": x0,
            "body_part": torch.tensor(part if known else -1),
            "findings": torch.tensor([float(spot) if known else NAN, NAN]),
            "dose_fraction": torch.tensor(1.0 if part else 0.1),
            "age_years": torch.tensor(40.0 + 30.0 * spot),
        }


def test_the_one_loop_trains_it_and_accumulation_changes_nothing(tmp_path):
    found = []
    for batch_size, accumulation in ((4, 1), (1, 4)):
        config = TrainingConfig(
            output_dir=str(tmp_path / str(accumulation)), max_train_steps=6, lr_warmup_steps=1,
            train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
            adam_epsilon=1e-4,  # a weight whose gradient is rounding alone would else move by a whole step
        )  # fmt: skip
        model = tiny()
        train(config, model=model, make_objective=lambda m: ClassificationObjective(m, SCHEDULER), dataset=Blobs())
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=2e-6)


def test_it_learns_what_can_be_seen(tmp_path):
    config = TrainingConfig(
        output_dir=str(tmp_path), max_train_steps=120, lr_warmup_steps=10, train_batch_size=8, learning_rate=1e-2,
        use_ema=False,
    )  # fmt: skip
    model = tiny()
    train(config, model=model, make_objective=lambda m: ClassificationObjective(m, SCHEDULER), dataset=Blobs())
    items = [Blobs()[i] for i in range(100, 140)]
    x0 = torch.stack([item["x0"] for item in items])
    spot = torch.tensor([item["age_years"] > 50.0 for item in items])
    dose = torch.tensor([item["dose_fraction"] for item in items])
    with torch.no_grad():
        clean, noise = (
            model.eval()(x0, 0),
            model(torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)), 999),
        )
    assert ((clean.dose_fraction[:, 0] > 0) == (dose > 0.5)).float().mean() > 0.95
    assert ((clean.findings[:, 0] > 0) == spot).float().mean() > 0.9
    assert ((clean.age_years[:, 0] > 55.0) == spot).float().mean() > 0.9
    assert noise.findings[:, 0].sigmoid().sub(0.5).abs().max() < 0.3  # pure noise shows nothing, and it knows
