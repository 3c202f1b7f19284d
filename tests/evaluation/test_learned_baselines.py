"""Learned baselines: layer arithmetic, identities, oracles, optima on Gaussian data, and their folders."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from diffusers_ct import CTVolume
from diffusers_ct.evaluation import Case, run_benchmark
from diffusers_ct.evaluation.learned_baselines import (
    LEARNED_BASELINES,
    REDCNN,
    ColdDiffusion,
    ColdDiffusionObjective,
    DnCNN,
    EpsilonDDPM,
    EpsilonObjective,
    MSETwin,
    ResidualMSEObjective,
    load_baseline,
    make_baseline,
)
from diffusers_ct.evaluation.learned_baselines.cold_diffusion import T, degrade
from diffusers_ct.evaluation.learned_baselines.conditional_ddpm import ddpm_scheduler
from diffusers_ct.evaluation.learned_baselines.dncnn import DnCNNNetwork
from diffusers_ct.evaluation.learned_baselines.red_cnn import REDCNNNetwork
from diffusers_ct.hounsfield import hu_to_unit
from diffusers_ct.models import UNet3DCTModel, UNet3DCTOutput
from diffusers_ct.residual import estimate_noise_hu

TINY = {"block_out_channels": (8, 16), "conv_mode": "2.5d", "downsample_strides": (1, 2, 2), "norm_num_groups": 4}
NOISE_HU, SIGNAL_HU = 20.0, 30.0


def batch(size: int = 2, shape=(2, 24, 24), seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    full = 40.0 + SIGNAL_HU * torch.randn(size, 1, *shape, generator=g)
    low = full + NOISE_HU * torch.randn(size, 1, *shape, generator=g)
    noise = torch.full((size, shape[0]), NOISE_HU)
    return {"low_hu": low, "full_hu": full, "noise_hu": noise, "spacing_mm": torch.ones(size, 3)}


def volume(shape=(3, 27, 30), seed: int = 0) -> CTVolume:
    hu = np.random.default_rng(seed).normal(-300.0, 400.0, shape).astype(np.float32)
    return CTVolume.from_array(hu, (2.0, 1.0, 1.0))


class Stub(nn.Module):
    """Stands where the backbone does: `answer(sample, timesteps)`; `size_factor` as that of a real one."""

    size_factor = (1, 4, 4)

    def __init__(self, answer) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.zeros(()))
        self.answer = answer

    def forward(self, sample, timestep, pooled=None, spacing_mm=None):
        return UNet3DCTOutput(sample=self.answer(sample, timestep) + 0.0 * self.share)


def zeros(sample, timestep):
    return torch.zeros_like(sample[:, :1])


def padded(hu: np.ndarray) -> torch.Tensor:
    """As the backbone's grid: edges repeated to multiples of 4."""
    return torch.from_numpy(np.pad(hu, ((0, 0), *((0, -n % 4) for n in hu.shape[1:])), mode="edge"))[None, None]


# layer arithmetic


def test_parameters_are_those_of_the_papers_layers():
    k, f = 5 * 5, 96
    assert REDCNN().num_parameters == (k * f + f) + 8 * (k * f * f + f) + (k * f + 1) == 1_848_865
    k, f = 3 * 3, 64
    assert DnCNN().num_parameters == (k * f + f) + 15 * (k * f * f + 2 * f) + (k * f + 1) == 556_097


@pytest.mark.parametrize("name", ["mse-twin", "cold-diffusion", "epsilon-ddpm"])
def test_those_on_the_backbone_have_its_parameters(name):
    backbone = UNet3DCTModel(**TINY)
    assert make_baseline(name, backbone=TINY).num_parameters == sum(p.numel() for p in backbone.parameters())


def test_red_cnn_is_its_formula_written_out():
    torch.manual_seed(0)
    network = REDCNNNetwork(filters=3).double()
    for p in network.parameters():
        nn.init.normal_(p, std=0.2)
    low = 100.0 * torch.randn(1, 1, 23, 22, dtype=torch.float64)
    e, d, relu = network.encoder, network.decoder, torch.relu
    e2 = relu(e[1](relu(e[0](low / 256.0))))
    e4 = relu(e[3](relu(e[2](e2))))
    e5 = relu(e[4](e4))
    d3 = d[2](relu(d[1](relu(d[0](e5) + e4))))
    d5 = d[4](relu(d[3](relu(d3 + e2))))
    expected = 32.0 * relu((low + 2048.0) / 32.0 + d5) - 2048.0
    assert torch.allclose(network(low), expected, atol=1e-3)  # the answer itself passes through float32
    assert (expected - low).abs().max() > 1.0


# identities: no shift of the mean, no range of a slice's own, no quantisation


@pytest.mark.parametrize("kind", [REDCNN, DnCNN])
@pytest.mark.parametrize("shape", [(3, 27, 30), (1, 5, 40)])
def test_with_a_zero_last_layer_the_input_comes_back_bit_for_bit(kind, shape):
    baseline = kind()
    last = baseline.network.decoder[-1] if kind is REDCNN else baseline.network.layers[-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    low = volume(shape)
    restored = baseline.restore(low)
    assert restored.dtype == np.float32 and np.array_equal(restored, low.hu)
    assert (low.hu < -1024.0).any() and not np.array_equal(low.hu, np.rint(low.hu))  # what a fault would change


@pytest.mark.parametrize("name", ["mse-twin", "cold-diffusion"])
def test_a_new_backbone_baseline_is_the_identity(name):
    low = volume()
    assert np.array_equal(make_baseline(name, backbone=TINY).restore(low), low.hu)


@pytest.mark.parametrize("kind", [REDCNN, DnCNN])
def test_slices_are_restored_alone(kind):
    torch.manual_seed(1)
    baseline = kind()
    low = volume((3, 24, 24))
    other = low.hu.copy()
    other[0] *= 2.0
    first, second = baseline.restore(low), baseline.restore(low.with_hu(other))
    assert np.array_equal(first[1:], second[1:]) and not np.array_equal(first[0], second[0])


# objectives


@pytest.mark.parametrize("kind", [REDCNN, DnCNN])
def test_slice_loss_is_the_squared_error_in_hu(kind):
    baseline = kind()
    last = baseline.network.decoder[-1] if kind is REDCNN else baseline.network.layers[-1]
    nn.init.zeros_(last.weight)
    given = batch()
    loss = baseline.make_objective(baseline.network)(given, torch.arange(2))["loss"]
    mse = (given["full_hu"] - given["low_hu"]).square().mean()
    assert loss.item() == pytest.approx(mse.item() / 32.0**2, rel=1e-5)
    loss.backward()
    assert last.weight.grad.abs().max() > 0.0


def test_twins_loss_of_a_zero_network_is_the_power_of_the_residual():
    given = batch()
    loss = ResidualMSEObjective(Stub(zeros))(given, torch.arange(2))["loss"]
    expected = ((given["full_hu"] - given["low_hu"]) / NOISE_HU).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_twins_optimum_on_gaussian_data_is_the_posterior_mean():
    # Channel 4 shows (low - 40) / (8 s); E[r | low] = -N / (N + S) (low - 40) / s, so the gain to find is known. The loss
    # is a parabola in the gain: three values give its vertex.
    given = batch(16, (2, 64, 64))
    losses = []
    for gain in (-1.0, 0.0, 1.0):
        network = Stub(lambda sample, timestep, gain=gain: 8.0 * gain * sample[:, 4:5])
        losses.append(ResidualMSEObjective(network)(given, torch.arange(16))["loss"].item())
    down, middle, up = losses
    vertex = 0.5 * (down - up) / (down - 2.0 * middle + up)
    assert vertex == pytest.approx(-(NOISE_HU**2) / (NOISE_HU**2 + SIGNAL_HU**2), abs=0.01)


def test_cold_diffusion_trains_on_every_step_and_knows_only_the_degraded_image():
    seen = []

    def answer(sample, timestep):
        seen.append((sample.clone(), timestep.clone()))
        return zeros(sample, timestep)

    given = batch(64, (1, 16, 16))
    loss = ColdDiffusionObjective(Stub(answer))(given, torch.arange(64))["loss"]
    sample, told = seen[0]
    t = (told + 1.0) * T / 1000.0
    assert sorted(set(t.tolist())) == pytest.approx(list(range(1, T + 1)))
    # the zero network leaves x_t, whose error is (1 - a_t) of the low dose's
    share = (t / T)[:, None, None, None, None]
    expected = (share * (given["full_hu"] - given["low_hu"]) / NOISE_HU).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    x_t = degrade(given["full_hu"], given["low_hu"], share * T)
    assert torch.allclose(sample[:, 4:5], ((x_t - 40.0) / (8.0 * NOISE_HU)).clip(-1, 1), atol=1e-5)
    assert not sample[:, :1].any()
    again = ColdDiffusionObjective(Stub(answer))(given, torch.arange(64))["loss"]
    assert again.item() == loss.item()


def test_degradation_keeps_the_mean_and_ends_where_it_should():
    g = torch.Generator().manual_seed(0)
    full = torch.randn(1, 1, 2, 16, 16, generator=g, dtype=torch.float64)
    low = torch.randn(full.shape, generator=g, dtype=torch.float64)
    low = low - low.mean() + full.mean()
    for t in range(T + 1):
        assert degrade(full, low, t).mean().item() == pytest.approx(full.mean().item(), abs=1e-12)
    assert torch.equal(degrade(full, low, 0), full) and torch.equal(degrade(full, low, T), low)


def test_ddpms_noise_has_the_level_of_the_schedule():
    seen = []

    def answer(sample, timestep):
        seen.append((sample[:, :1].clone(), timestep.clone()))
        return zeros(sample, timestep)

    given = batch(96, (1, 24, 24))
    given["full_hu"] = torch.full_like(given["full_hu"], 1023.5 + 1023.75)  # half of the way: y = 0.5
    loss = EpsilonObjective(Stub(answer))(given, torch.arange(96))["loss"]
    x_t, timesteps = seen[0]
    kept = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))[timesteps.numpy()]  # Ho et al., section 4
    means, variances = x_t.flatten(1).mean(1).numpy(), x_t.flatten(1).var(1).numpy()
    assert np.abs((means - 0.5 * np.sqrt(kept)) / np.sqrt((1.0 - kept) / 576)).max() < 4.5
    assert np.abs(variances / (1.0 - kept) - 1.0).max() < 5.0 * np.sqrt(2.0 / 576)
    assert timesteps.min() < 60 and timesteps.max() > 940
    assert loss.item() == pytest.approx(1.0, abs=5.0 * np.sqrt(2.0 / x_t.numel()))


# restorations with networks that know the answer


@pytest.mark.parametrize("num_steps", [1, 2, 5, 10])
def test_cold_diffusion_with_an_oracle_returns_the_truth(num_steps):
    low, full = volume(seed=0), volume(seed=1)
    noise = torch.from_numpy(estimate_noise_hu(low.hu))[None, None, :, None, None]
    baseline = ColdDiffusion(TINY, num_steps)
    told, state = [], {"x_t": padded(low.hu)}

    def oracle(sample, timestep):
        told.append(round((timestep.item() + 1.0) * T / 1000.0))
        residual = (padded(full.hu) - state["x_t"]) / noise
        step = (T // num_steps) / T  # what the sampler is to do with it
        state["x_t"] = state["x_t"] + step * (padded(full.hu) - padded(low.hu))
        return residual

    baseline.network = Stub(oracle)
    restored = baseline.restore(low)
    assert np.abs(restored - full.hu).max() < 2e-3
    assert told == list(range(T, 0, -T // num_steps))


@pytest.mark.parametrize("num_steps", [1, 4, 50])
def test_ddpm_with_an_oracle_returns_the_truth(num_steps):
    low, full = volume(seed=0), volume(seed=1)
    y = padded(hu_to_unit(full.hu, "full"))
    kept = ddpm_scheduler().alphas_cumprod
    baseline = EpsilonDDPM(TINY, num_steps)

    def oracle(sample, timestep):
        a = kept[timestep.long()]
        return (sample[:, :1] - a.sqrt() * y) / (1.0 - a).sqrt()

    baseline.network = Stub(oracle)
    # alpha is 0.006 at the last timestep: what float32 rounds there is 160 times as much in one step to the image
    limit = 0.1 if num_steps == 1 else 0.02
    assert np.abs(baseline.restore(low) - full.hu.clip(-1024.0, 3071.0)).max() < limit


def ancestral_spread(num_steps: int, spread: float) -> float:
    """Standard deviation of ancestral samples of N(m, spread^2) with the optimal network, by recursion of the variance.

    Ho et al. 2020, eq. 7 and 15, on every (1000 / num_steps)-th timestep.
    """
    kept = np.append(np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))[999 :: -1000 // num_steps], 1.0)
    variance = 1.0
    for a, before in pairwise(kept):
        beta = 1.0 - a / before
        gain = np.sqrt(a) * spread**2 / (a * spread**2 + 1.0 - a)  # of E[y | x_t]
        slope = np.sqrt(before) * beta / (1.0 - a) * gain + np.sqrt(a / before) * (1.0 - before) / (1.0 - a)
        variance = slope**2 * variance + beta * (1.0 - before) / (1.0 - a)
    return float(np.sqrt(variance))


def test_ddpm_samples_gaussian_data_as_the_recursion_says_and_repeats_by_seed():
    # y ~ N(m, s^2): E[eps | x_t] = sigma (x_t - alpha m) / (alpha^2 s^2 + sigma^2), so mean and spread of samples are known.
    mean, spread = 0.1, 0.15
    kept = ddpm_scheduler().alphas_cumprod
    baseline = EpsilonDDPM(TINY, 250)

    def optimal(sample, timestep):
        a = kept[timestep.long()]
        return (1 - a).sqrt() * (sample[:, :1] - a.sqrt() * mean) / (a * spread**2 + 1 - a)

    baseline.network = Stub(optimal)
    low = volume((1, 128, 128))
    first = hu_to_unit(baseline.restore(low, seed=3), "full", clip=False)
    expected = ancestral_spread(250, spread)
    assert first.mean() == pytest.approx(mean, abs=4.0 * spread / 128)
    assert first.std() == pytest.approx(expected, rel=4.0 / np.sqrt(2.0 * 128**2))
    assert np.array_equal(baseline.restore(low, seed=3), baseline.restore(low, seed=3))
    assert not np.array_equal(baseline.restore(low, seed=3), baseline.restore(low, seed=4))
    # too narrow by 8 % here; by far more where the spread is that of CT noise, 10 HU on this scale: see its docstring
    assert expected / spread == pytest.approx(0.92, abs=0.005)
    assert ancestral_spread(100, 0.005) / 0.005 == pytest.approx(0.11, abs=0.005)
    assert ancestral_spread(1000, 0.005) / 0.005 == pytest.approx(0.43, abs=0.005)


@pytest.mark.parametrize("name", ["red-cnn", "dncnn", "mse-twin", "cold-diffusion"])
def test_what_the_objective_teaches_is_what_the_restoration_does(name):
    # Flat discs in white noise: a few steps must take noise away, and leave the mean of a new scan where it was.
    torch.manual_seed(0)
    baseline = make_baseline(name, backbone=TINY)
    if name == "dncnn":
        baseline.network = DnCNNNetwork(depth=4, filters=12)
    y, x = np.mgrid[:32, :32] - 15.5
    full = np.where(np.hypot(y, x) < 11.0, 60.0, 0.0).astype(np.float32)[None].repeat(2, axis=0)
    g = torch.Generator().manual_seed(0)
    noisy = full + NOISE_HU * torch.randn(9, 1, *full.shape, generator=g).numpy()
    objective = baseline.make_objective(baseline.network)
    # RED-CNN in full: with few filters the paper's initial weights of 0.01 leave it silent
    optimizer = torch.optim.Adam(baseline.network.parameters(), lr=5e-4 if name == "red-cnn" else 5e-3)
    for step in range(48):
        low = torch.from_numpy(noisy[step % 4 * 2 : step % 4 * 2 + 2])
        noise = torch.full((2, 2), NOISE_HU)
        given = {"low_hu": low, "full_hu": torch.from_numpy(full)[None, None].expand(2, -1, -1, -1, -1)}
        optimizer.zero_grad()
        seeds = torch.arange(2) + 2 * step
        objective({**given, "noise_hu": noise, "spacing_mm": torch.ones(2, 3)}, seeds)["loss"].backward()
        optimizer.step()
    new = CTVolume.from_array(noisy[8, 0], (1.0, 1.0, 1.0))
    restored = baseline.restore(new)
    before, after = ((hu - full).std() for hu in (new.hu, restored))
    assert after < 0.7 * before
    assert abs((restored - full).mean()) < 0.25 * NOISE_HU


# folders and use


def randomise(network: nn.Module) -> None:
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.01, 0.1)


@pytest.mark.parametrize("name", LEARNED_BASELINES)
def test_saved_and_loaded_is_the_same_bit_for_bit(name, tmp_path):
    torch.manual_seed(0)
    baseline = make_baseline(name, backbone=TINY)
    if isinstance(baseline, EpsilonDDPM):
        baseline.num_steps = 3
    randomise(baseline.network)
    low = volume()
    loaded = load_baseline(baseline.save(tmp_path / "b"))
    before, after = baseline.restore(low, seed=1), loaded.restore(low, seed=1)
    assert np.array_equal(before, after) and not np.array_equal(before, low.hu)
    assert type(loaded) is type(baseline) and loaded.config == baseline.config
    facts = json.loads((tmp_path / "b" / "config.json").read_text())
    assert facts["num_parameters"] == loaded.num_parameters and facts["baseline"] == name
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["config.json", "model.safetensors"]


def test_dncnn_calibrated_is_the_same_in_training_and_in_use():
    torch.manual_seed(0)
    baseline = DnCNN()
    given = batch(4, (2, 24, 24))
    baseline.calibrate([given])
    slices = given["low_hu"].transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        trained = baseline.network.train()(slices)
    baseline.calibrate([given])
    low = CTVolume.from_array(given["low_hu"][0, 0].numpy(), (1.0, 1.0, 1.0))
    used = baseline.restore(low)
    # the batch's own variance is biased, the measured one is not: n / (n - 1) apart
    assert np.abs(used - trained[:2, 0].numpy()).max() < 0.01 * np.abs(used - low.hu).max()


def test_every_baseline_is_a_method_of_the_benchmark():
    low = volume((2, 32, 32))
    case = Case("s", "p", low, low.hu + 5.0, 0.25, "noise_free")
    baselines = {name: make_baseline(name, backbone=TINY) for name in LEARNED_BASELINES}
    baselines["epsilon-ddpm"] = EpsilonDDPM(TINY, 2)
    result = run_benchmark([case], {name: lambda c, b=b: b.restore(c.low) for name, b in baselines.items()})
    bias = {row["method"]: row["bias_body_hu"] for row in result.rows}
    assert bias["mse-twin"] == bias["cold-diffusion"] == bias["low dose"]
    assert set(bias) == {*LEARNED_BASELINES, "low dose"}


def test_large_scans_go_tile_by_tile_to_the_same_result(monkeypatch):
    from diffusers_ct.evaluation.learned_baselines import backbone

    baseline = MSETwin(TINY)
    baseline.network = Stub(lambda sample, timestep: sample[:, 4:5])  # pointwise, so that tiles cannot matter
    low = volume((3, 40, 40))
    whole = baseline.restore(low)
    monkeypatch.setattr(backbone, "choose_tile", lambda *_: (2, 24, 24))
    monkeypatch.setattr(backbone, "TILE_OVERLAP", (1, 8, 8))
    assert np.abs(baseline.restore(low) - whole).max() < 1e-3
    assert np.abs(whole - low.hu).max() > 1.0


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="red-cnn"):
        make_baseline("redcnn", backbone=TINY)
    with pytest.raises(ValueError, match="divide 10"):
        ColdDiffusion(TINY, 3)
    with pytest.raises(ValueError, match="`num_steps` must be"):
        EpsilonDDPM(TINY, 0)
    with pytest.raises(FileNotFoundError, match="is missing"):
        load_baseline(tmp_path)
    folder = MSETwin(TINY).save(tmp_path / "a")
    other = MSETwin({**TINY, "block_out_channels": (8, 24)}).save(tmp_path / "b")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="do not belong together"):
        load_baseline(folder)
