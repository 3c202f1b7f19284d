"""Settings: one dataclass, its command line, and what it refuses; learning-rate schedules against PyTorch's own."""

import argparse

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from diffusers_ct.training import LR_SCHEDULES, TrainingConfig, make_lr_scheduler


def parse(*arguments: str) -> TrainingConfig:
    parser = argparse.ArgumentParser()
    TrainingConfig.add_arguments(parser)
    return TrainingConfig.from_args(parser.parse_args(["--output_dir", "out", *arguments]))


def test_the_command_line_is_the_dataclass():
    assert parse() == TrainingConfig(output_dir="out")
    config = parse(
        "--learning_rate", "1e-3", "--no-use_ema", "--mixed_precision", "bf16", "--checkpoints_total_limit", "5",
        "--lr_scheduler", "cosine_warm_restarts", "--resume_from_checkpoint", "latest",
    )  # fmt: skip
    assert (config.learning_rate, config.use_ema, config.mixed_precision) == (1e-3, False, "bf16")
    assert (config.checkpoints_total_limit, config.resume_from_checkpoint) == (5, "latest")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate"), ({"terminal_fraction": 0.1}, "terminal_fraction"),
        ({"mixed_precision": "fp8"}, "mixed_precision"), ({"lr_scheduler": "step"}, "lr_scheduler"),
        ({"lr_warmup_steps": 1000}, "less than `max_train_steps`"), ({"push_to_hub": True}, "hub_model_id"),
        ({"ema_decay": 1.0}, "ema_decay"), ({"checkpoints_total_limit": 0}, "checkpoints_total_limit"),
        ({"noise_schedule": "quadratic"}, "noise_schedule"), ({"max_train_minutes": 0.0}, "max_train_minutes"),
        ({"lr_scheduler": "cosine_warm_restarts", "lr_num_cycles": 12}, "lr_num_cycles"), ({"report_to": "abacus"}, "report_to"),
        ({"push_to_hub": True, "hub_model_id": "a b/c"}, "hub_model_id"),
        ({"lr_scheduler": "polynomial", "learning_rate": 1e-9}, "learning_rate"),
        ({"learning_rate": float("inf")}, "finite"), ({"adam_weight_decay": float("nan")}, "finite"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(output_dir="out", **change)


@pytest.mark.parametrize("change", [{"max_train_steps": 2.5}, {"seed": True}, {"use_ema": 1}, {"report_to": None}])
def test_values_of_the_wrong_kind_are_refused(change):
    with pytest.raises(TypeError, match=next(iter(change))):
        TrainingConfig(output_dir="out", **change)


def rates(name: str, *, warmup: int, total: int, cycles: int = 1, mult: int = 2) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_lr_scheduler(
        name, optimizer, warmup_steps=warmup, total_steps=total, num_cycles=cycles, cycle_mult=mult
    )
    out = []
    for _ in range(total):
        out.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return out


def test_warm_restarts_are_pytorchs_after_the_warm_up():
    found = rates("cosine_warm_restarts", warmup=10, total=80, cycles=3, mult=2)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = CosineAnnealingWarmRestarts(optimizer, T_0=10, T_mult=2)
    expected = []
    for _ in range(70):
        expected.append(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()
    assert found[10:] == pytest.approx(expected, abs=1e-9)
    assert found[:10] == sorted(found[:10]) and found[0] < 0.1
    assert found[20] == found[40] == pytest.approx(1.0)  # restarts after cycles of 10 and 20


def test_equal_restarts_are_another_schedule():
    found = rates("cosine_with_restarts", warmup=0, total=60, cycles=3)
    assert found[20] == pytest.approx(1.0) and found[40] == pytest.approx(1.0) and found[10] == pytest.approx(0.5)


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_every_schedule_stays_within_its_bounds(name):
    found = rates(name, warmup=5, total=40)
    assert min(found) >= 0.0 and max(found) <= 1.0 + 1e-9


def test_cycles_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        rates("cosine_warm_restarts", warmup=0, total=5, cycles=4)
