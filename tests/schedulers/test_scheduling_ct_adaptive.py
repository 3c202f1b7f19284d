"""The adaptive schedule against its formula, and against the parent bit for bit."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from scipy import special

from diffusers_ct import CTAdaptiveDDIMScheduler, CTDiffusionPipeline, CTVolume, ScanConditions, UNet3DCTModel
from diffusers_ct.residual import CONDITION_CHANNELS
from diffusers_ct.schedulers import (
    NOISE_SCHEDULES,
    LogSNRShift,
    alpha_sigma,
    fit_shift_network,
    log_snr_at_error,
    make_noise_scheduler,
    network_timesteps,
    sample_shift,
    signal_to_noise,
)
from diffusers_ct.training import ResidualDiffusionObjective
from tests.schedulers.adaptive_settings import BASE, NAN, SCALED, TABLE, dose


def log_snr(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    return torch.special.logit(alphas_cumprod.double())


@pytest.fixture
def scheduler() -> CTAdaptiveDDIMScheduler:
    return CTAdaptiveDDIMScheduler(**BASE, **TABLE)


# --- the formula ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_schedule", NOISE_SCHEDULES)
def test_log_snr_is_the_parents_scaled_and_shifted(noise_schedule):
    base = make_noise_scheduler(noise_schedule).alphas_cumprod
    shift = LogSNRShift(torch.tensor([2.5, -6.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 0.4, -0.7]).double())
    shifted = shift.alphas_cumprod(base[:-1, None])
    wanted = shift.log_scale.exp() * log_snr(base[:-1])[:, None] + shift.shift
    torch.testing.assert_close(torch.log(shifted) - torch.log1p(-shifted), wanted, rtol=1e-9, atol=1e-6)
    # independent: SciPy's own logistic functions
    torch.testing.assert_close(shifted, torch.from_numpy(special.expit(wanted.numpy())), rtol=1e-12, atol=0.0)
    assert (shifted[1:] < shifted[:-1]).all()


@pytest.mark.parametrize("noise_schedule", NOISE_SCHEDULES)
def test_no_shift_gives_back_every_alpha_exactly_and_both_ends_stay(noise_schedule):
    base = make_noise_scheduler(noise_schedule).alphas_cumprod
    nothing = LogSNRShift(torch.zeros(1), torch.zeros(1))
    assert nothing.is_zero and torch.equal(nothing.alphas_cumprod(base).float(), base)
    for s, w in ((30.0, 0.5), (-30.0, -0.5)):
        ends = LogSNRShift(torch.tensor([s]), torch.tensor([w])).alphas_cumprod(torch.tensor([0.0, 1.0]))
        assert ends.tolist() == [0.0, 1.0]


def test_table_is_piecewise_linear_in_the_logarithm_and_summed(scheduler):
    conditions = {
        "dose_fraction": torch.tensor([0.5, 0.05, 0.001, NAN, NAN, 0.25]),
        "slice_thickness_mm": torch.tensor([NAN, 5.0, 9.0, 5.0**0.5, NAN, 1.0]),
        "age_years": torch.full((6,), 50.0),
    }
    found = scheduler.log_snr_shift(conditions)
    torch.testing.assert_close(found.shift, torch.tensor([-0.5, -2.5, -2.5, 0.0, 0.0, -1.5]).double())
    assert found.log_scale is None
    scaled = CTAdaptiveDDIMScheduler(**BASE, **SCALED).log_snr_shift(conditions)
    torch.testing.assert_close(scaled.log_scale, torch.tensor([0.05, 0.3, 0.3, 0.0, 0.0, 0.1]).double())


def test_spacing_is_read_off_the_field_of_three():
    table = {**TABLE, "shift_conditions": ["pixel_spacing_mm", "slice_spacing_mm"]}
    scheduler = CTAdaptiveDDIMScheduler(**BASE, **table)
    found = scheduler.log_snr_shift({"spacing_mm": torch.tensor([[5.0, 0.25, 0.25], [1.0, 1.0, 1.0]])})
    torch.testing.assert_close(found.shift, torch.tensor([-0.5, -0.5]).double())


# --- zero shift is the parent, bit for bit ----------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prediction_type": "sample"},
        {"prediction_type": "epsilon", "rescale_betas_zero_snr": False},
        {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False},
        {"beta_schedule": "linear", "clip_sample": True},
    ],
    ids=lambda c: "-".join(map(str, c.values())) or "v",
)
@pytest.mark.parametrize("conditions", [None, dose(1.0, NAN)], ids=["none", "zero"])
def test_without_shift_every_method_is_the_parents(changes, eta, dtype, conditions, generator):
    parent, ours = DDIMScheduler(**BASE | changes), CTAdaptiveDDIMScheduler(**BASE | changes, **SCALED)
    x, noise, out = torch.randn(3, 2, 1, 2, 3, 3, generator=generator).to(dtype)
    t = torch.tensor([7, 900])
    assert torch.equal(ours.add_noise(x, noise, t, conditions), parent.add_noise(x, noise, t))
    assert torch.equal(ours.get_velocity(x, noise, t, conditions), parent.get_velocity(x, noise, t))
    parent.set_timesteps(4)
    ours.set_timesteps(4, conditions=conditions)
    assert torch.equal(ours.timesteps, parent.timesteps)
    state = [x, x]
    for t in parent.timesteps:
        assert network_timesteps(ours, t) is t
        for k, each in enumerate((parent, ours)):
            step = each.step(out, t, state[k], eta=eta, generator=torch.Generator().manual_seed(int(t)))
            state[k] = step.prev_sample
            out = out if k == 0 else (step.pred_original_sample * 0.3 + 0.1 * out)
        assert torch.equal(*state)


def test_a_batch_of_two_doses_is_the_two_singles(scheduler, generator):
    x, noise, out = torch.randn(3, 3, 1, 2, 4, 4, generator=generator)
    doses, t = (0.05, 0.4, 1.0), torch.tensor([20, 400, 999])
    together = dose(*doses)
    noisy = scheduler.add_noise(x, noise, t, together)
    velocity = scheduler.get_velocity(x, noise, t, together)

    def sample(samples, conditions, seeds):
        scheduler.set_timesteps(5, conditions=conditions)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        told = []
        for step in scheduler.timesteps:
            told.append(network_timesteps(scheduler, step.expand(len(samples))).float())
            prediction = 0.5 * samples + 0.1 * out[seeds]
            samples = scheduler.step(prediction, step, samples, eta=0.5, generator=generators).prev_sample
        return samples, torch.stack(told)

    batch, batch_told = sample(noisy, together, [0, 1, 2])
    parent = DDIMScheduler(**BASE)
    for k, value in enumerate(doses):
        one, row = dose(value), slice(k, k + 1)
        assert torch.equal(scheduler.add_noise(x[row], noise[row], t[row], one), noisy[row])
        assert torch.equal(scheduler.get_velocity(x[row], noise[row], t[row], one), velocity[row])
        single, single_told = sample(noisy[row], one, [k])
        assert torch.equal(single, batch[row]) and torch.equal(single_told, batch_told[:, row])
    assert torch.equal(noisy[2:], parent.add_noise(x[2:], noise[2:], t[2:]))  # full dose has no shift
    assert not torch.equal(noisy[:1], parent.add_noise(x[:1], noise[:1], t[:1]))


def test_one_condition_serves_a_batch_and_a_wrong_number_is_refused(scheduler, generator):
    x = torch.randn(4, 1, 1, 2, 2, generator=generator)
    scheduler.set_timesteps(3, conditions=dose(0.05))
    one = scheduler.step(x, scheduler.timesteps[0], x).prev_sample
    scheduler.set_timesteps(3, conditions=dose(*[0.05] * 4))
    assert torch.equal(scheduler.step(x, scheduler.timesteps[0], x).prev_sample, one)
    scheduler.set_timesteps(3, conditions=dose(0.05, 0.1))
    with pytest.raises(ValueError, match="2 samples, the batch has 4"):
        scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match="2 samples, the batch has 4"):
        scheduler.add_noise(x, x, torch.tensor([1, 2, 3, 4]), dose(0.05, 0.1))


# --- the marginal -----------------------------------------------------------------------------------------------------


def test_marginal_snr_of_noised_samples_is_what_the_formula_says(scheduler, generator):
    conditions = dose(0.05, 0.1, 1.0)
    base = log_snr(scheduler.alphas_cumprod)
    for t in (50, 500, 800):
        timesteps = torch.full((3,), t)
        wanted = base[t] + scheduler.log_snr_shift(conditions).shift
        # exactly: what is left of a signal of 1 and a noise of 0, and the other way round
        one, zero = torch.ones(3, 1, 1, 1, 1), torch.zeros(3, 1, 1, 1, 1)
        alpha = scheduler.add_noise(one, zero, timesteps, conditions).flatten().double()
        sigma = scheduler.add_noise(zero, one, timesteps, conditions).flatten().double()
        torch.testing.assert_close(2.0 * (alpha.log() - sigma.log()), wanted, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(3).double(), rtol=1e-6, atol=0.0)
        torch.testing.assert_close(scheduler.get_velocity(zero, one, timesteps, conditions).flatten().double(), alpha)
        torch.testing.assert_close(scheduler.get_velocity(one, zero, timesteps, conditions).flatten().double(), -sigma)
        # empirically: regress x_t on x0
        x0, eps = torch.randn(2, 3, 1, 1, 400, 400, generator=generator)
        x_t = scheduler.add_noise(x0, eps, timesteps, conditions).flatten(1)
        x0 = x0.flatten(1)
        slope = (x_t * x0).sum(1) / (x0 * x0).sum(1)
        rest = (x_t - slope[:, None] * x0).var(dim=1)
        torch.testing.assert_close((slope**2 / rest).log().double(), wanted, rtol=0.0, atol=0.06)


def test_schedules_in_force_are_those_of_the_last_set_timesteps(scheduler, generator):
    x, noise = torch.randn(2, 2, 1, 1, 2, 2, generator=generator)
    t, conditions = torch.tensor([300, 700]), dose(0.05, 0.1)
    shifted = scheduler.add_noise(x, noise, t, conditions)
    scheduler.set_timesteps(4, conditions=conditions)
    assert torch.equal(scheduler.add_noise(x, noise, t), shifted)
    alpha, sigma = alpha_sigma(scheduler, t)
    torch.testing.assert_close(alpha * x + sigma * noise, shifted)
    expected = log_snr(scheduler.alphas_cumprod[t]) + scheduler.shift_in_force.shift
    torch.testing.assert_close(signal_to_noise(scheduler, t).log().double(), expected, rtol=1e-5, atol=1e-5)
    scheduler.set_timesteps(4)
    assert scheduler.shift_in_force is None
    assert torch.equal(scheduler.add_noise(x, noise, t), DDIMScheduler(**BASE).add_noise(x, noise, t))
    plain = alpha_sigma(make_noise_scheduler(), t)
    assert all(torch.equal(a, b) for a, b in zip(alpha_sigma(scheduler, t), plain))
    # training gives the shift by hand
    shift = sample_shift(scheduler, conditions)
    torch.testing.assert_close(alpha_sigma(scheduler, t, log_snr_shift=shift)[0], alpha)
    assert sample_shift(make_noise_scheduler(), conditions) is None


# --- what the network is told -----------------------------------------------------------------------------------------


def test_the_network_is_told_the_step_of_equal_snr_of_the_parent(scheduler):
    shift = LogSNRShift(torch.tensor([1.5, -4.0]))
    table = scheduler.alphas_cumprod
    for t in (30, 500, 990):
        told = network_timesteps(scheduler, torch.tensor([t, t]), shift).double()
        wanted = log_snr(table[t]) + shift.shift
        low, high = log_snr(table[told.floor().long()]), log_snr(table[told.ceil().long()])
        assert (high - 1e-6 <= wanted).all() and (wanted <= low + 1e-6).all()
    # One noise level reached on two schedules is told as one number: nothing of the schedule is left.
    steps = torch.arange(1000)
    zero = LogSNRShift(torch.zeros(1))
    assert torch.equal(network_timesteps(scheduler, steps, zero), steps.float())
    assert network_timesteps(scheduler, torch.tensor([999, 999]), shift).tolist() == [999.0, 999.0]
    told = network_timesteps(scheduler, steps, LogSNRShift(torch.tensor([20.0])))
    assert told.min() > -1.0 and (told[1:] > told[:-1]).all()
    t = torch.tensor(5)
    assert network_timesteps(make_noise_scheduler(), t) is t


class Recorder(torch.nn.Module):
    """Answers x_t itself and keeps what it was given."""

    def forward(self, sample, timestep, pooled=None, **_):
        self.sample, self.timestep = sample, timestep
        return type("Output", (), {"sample": sample[:, :1]})


def test_residual_objective_trains_every_sample_on_its_own_schedule(scheduler, generator):
    low = 40.0 + 20.0 * torch.randn(6, 1, 1, 8, 8, generator=generator)
    batch = {
        "low_hu": low, "full_hu": low + 20.0, "noise_hu": torch.full((6, 1), 20.0), "spacing_mm": torch.ones(6, 3),
        "dose_fraction": torch.tensor([0.05, 0.1, 0.25, 0.5, 1.0, NAN]),
    }  # fmt: skip
    fixed, adaptive = Recorder(), Recorder()
    seeds = torch.arange(6) + 5
    ResidualDiffusionObjective(fixed, make_noise_scheduler(), terminal_fraction=0.2)(batch, seeds)
    ResidualDiffusionObjective(adaptive, scheduler, terminal_fraction=0.2)(batch, seeds)
    assert torch.equal(adaptive.timestep[4:], fixed.timestep[4:].float())
    assert torch.equal(adaptive.sample[4:], fixed.sample[4:])
    middle = fixed.timestep[:3] < 999
    assert middle.any() and (adaptive.timestep[:3] > fixed.timestep[:3])[middle].all()  # more noise at low dose
    # With r = 1, x_t = alpha + sigma eps: the noise that both saw is the same.
    eps = []
    for recorder, shift in ((fixed, None), (adaptive, scheduler.log_snr_shift(batch))):
        alpha, sigma = alpha_sigma(scheduler, fixed.timestep, log_snr_shift=shift)
        eps.append((recorder.sample[:, :1] - alpha) / sigma)
    torch.testing.assert_close(*eps, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="adapts to"):
        ResidualDiffusionObjective(adaptive, scheduler, terminal_fraction=0.2)(
            {k: v for k, v in batch.items() if k != "dose_fraction"}, seeds
        )


def test_half_precision_keeps_its_type_and_its_step(scheduler, generator):
    x, out = torch.randn(2, 2, 1, 1, 3, 3, generator=generator)
    scheduler.set_timesteps(4, conditions=dose(0.05, 0.3))
    t = scheduler.timesteps[1]
    full = scheduler.step(out, t, x).prev_sample
    half = scheduler.step(out.bfloat16(), t, x.bfloat16()).prev_sample
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0.02, atol=0.02)


# --- config and saving ------------------------------------------------------------------------------------------------


def test_config_goes_to_the_parent_and_back(scheduler):
    parent = DDIMScheduler.from_config(scheduler.config)
    assert type(parent) is DDIMScheduler and torch.equal(parent.alphas_cumprod, scheduler.alphas_cumprod)
    assert CTAdaptiveDDIMScheduler.from_config(parent.config).log_snr_shift(dose(0.05)).shift.item() == pytest.approx(
        -3.0
    )
    training = make_noise_scheduler()
    ours = CTAdaptiveDDIMScheduler.from_config(training.config, **TABLE)
    assert torch.equal(ours.alphas_cumprod, training.alphas_cumprod)
    assert (ours.config.timestep_spacing, ours.config.clip_sample) == ("trailing", False)
    assert DDPMScheduler.from_config(ours.config).config.rescale_betas_zero_snr
    plain = CTAdaptiveDDIMScheduler.from_config(DDIMScheduler(**BASE).config)
    assert plain.log_snr_shift(dose(0.05)) is None


def tiny_unet() -> UNet3DCTModel:
    torch.manual_seed(0)
    unet = UNet3DCTModel(
        in_channels=1 + CONDITION_CHANNELS, block_out_channels=(8, 8), layers_per_block=1, refine_channels=4,
        downsample_strides=(1, 2, 2), norm_num_groups=4,
    )  # fmt: skip
    torch.nn.init.normal_(unet.refine_out.weight, std=0.5)  # a new model outputs zeros
    return unet.eval()


def test_pipeline_restores_a_scan_on_the_schedule_of_its_dose(generator):
    scan = (30.0 * torch.randn(2, 16, 16, generator=generator)).numpy()
    unet = tiny_unet()

    def restore(scheduler, steps, dose_fraction):
        pipe = CTDiffusionPipeline(unet, scheduler)
        pipe.set_progress_bar_config(disable=True)
        volume = CTVolume.from_array(scan, (2.0, 1.0, 1.0), ScanConditions(dose_fraction=dose_fraction))
        generator = torch.Generator().manual_seed(3)
        return pipe(volume, num_inference_steps=steps, output_type="pt", generator=generator).volumes

    table = {
        "shift_conditions": ["dose_fraction"], "shift_knot_counts": [2], "shift_knots": [0.05, 1.0],
        "shift_values": [-3.0, 0.0],
    }  # fmt: skip
    adaptive, parent = CTAdaptiveDDIMScheduler(**BASE, **table), DDIMScheduler(**BASE)
    plain = restore(parent, 3, 0.05)
    assert torch.equal(restore(adaptive, 3, None), plain) and torch.equal(restore(adaptive, 3, 1.0), plain)
    assert (restore(adaptive, 3, 0.05) - plain).abs().mean() > 0.1
    torch.testing.assert_close(restore(adaptive, 1, 0.05), restore(parent, 1, 0.05), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("shift", ["table", "network"])
def test_saved_alone_and_inside_a_pipeline(shift, tmp_path):

    d = torch.tensor([0.05, 0.1, 0.4, 1.0])
    arguments = SCALED if shift == "table" else fit_shift_network({"dose_fraction": d}, d.log())
    scheduler = CTAdaptiveDDIMScheduler(**BASE, **arguments)
    scheduler.save_pretrained(tmp_path / "alone")
    pipe = CTDiffusionPipeline(tiny_unet(), scheduler)
    pipe.save_pretrained(tmp_path / "pipe")
    loaded = CTDiffusionPipeline.from_pretrained(tmp_path / "pipe").scheduler
    alone = CTAdaptiveDDIMScheduler.from_pretrained(tmp_path / "alone")
    assert '"CTAdaptiveDDIMScheduler"' in (tmp_path / "pipe" / "model_index.json").read_text()
    for other in (loaded, alone):
        assert type(other) is CTAdaptiveDDIMScheduler
        found, wanted = other.log_snr_shift(dose(*d.tolist())), scheduler.log_snr_shift(dose(*d.tolist()))
        assert torch.equal(found.shift, wanted.shift)
        assert shift == "network" or torch.equal(found.log_scale, wanted.log_scale)


def test_refusals(scheduler):
    def make(**changes):
        return CTAdaptiveDDIMScheduler(**BASE, **{**TABLE, **changes})

    with pytest.raises(ValueError, match="positive, or NaN"):
        scheduler.log_snr_shift(dose(0.0, 0.5))
    with pytest.raises(ValueError, match="adapts to"):
        scheduler.set_timesteps(2, conditions={"dose": torch.tensor([0.1])})
    with pytest.raises(ValueError, match="must be \\(batch,\\)"):
        scheduler.log_snr_shift({"dose_fraction": torch.ones(2, 3)})
    with pytest.raises(ValueError, match="one number for each of 2"):
        make(shift_knot_counts=[3])
    with pytest.raises(ValueError, match="length"):
        make(shift_values=[0.0])
    with pytest.raises(ValueError, match="positive and rising"):
        make(shift_knots=[0.25, 0.05, 1.0, 1.0, 5.0])
    with pytest.raises(ValueError, match="shift_log_scales"):
        make(shift_log_scales=[0.0])
    with pytest.raises(ValueError, match="either a table"):
        make(shift_network=[0.0] * 8)
    with pytest.raises(ValueError, match="needs `shift_conditions`"):
        make(shift_conditions=[])
    with pytest.raises(ValueError, match="1 \\+ 3 x hidden"):
        CTAdaptiveDDIMScheduler(shift_conditions=["dose_fraction"], shift_network=[0.0] * 5)
    with pytest.raises(ValueError, match="finite and within"):
        LogSNRShift(torch.tensor([NAN]))
    with pytest.raises(ValueError, match=r"does not pass 0\.5"):
        log_snr_at_error(np.array([0.0, 1.0]), np.array([0.9, 0.8]), 1.0)


def test_a_batch_without_shift_does_not_train_on_the_schedule_of_the_last_sampling(scheduler):
    """At dose 1 the table shifts nothing, which must not be read as the shift that sampling left in force."""
    timesteps = torch.tensor([300])
    expected = alpha_sigma(CTAdaptiveDDIMScheduler(**BASE), timesteps)
    scheduler.set_timesteps(4, conditions=dose(0.1))
    assert not torch.equal(alpha_sigma(scheduler, timesteps)[0], expected[0])
    shift = sample_shift(scheduler, dose(1.0))
    assert torch.equal(alpha_sigma(scheduler, timesteps, log_snr_shift=shift)[0], expected[0])
    assert network_timesteps(scheduler, timesteps, shift).tolist() == pytest.approx([300.0], abs=1e-3)
