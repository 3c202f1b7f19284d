"""Training runs that must agree do agree: accumulated, resumed, killed, on two processes; and one slice is learned."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from diffusers_ct.models import UNet3DCTModel
from diffusers_ct.residual import decode_residual, encode_condition, scan_vector
from diffusers_ct.schedulers import make_noise_scheduler
from diffusers_ct.training import (
    ResidualDiffusionObjective,
    TrainingConfig,
    TrainingError,
    Validation,
    list_checkpoints,
    train,
)

TINY = {
    "block_out_channels": (8, 16), "layers_per_block": 1, "downsample_strides": (1, 2, 2), "refine_channels": 4,
    "conv_mode": "2.5d", "norm_num_groups": 4,
}  # fmt: skip


class Pairs(torch.utils.data.Dataset):
    """Small noisy pairs, each from its number and the epoch."""

    def __init__(self, length: int = 12, delay_s: float = 0.0) -> None:
        self.length, self.delay_s, self.epoch = length, delay_s, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        time.sleep(self.delay_s)
        g = torch.Generator().manual_seed(1000 * self.epoch + index)
        full = 50.0 * torch.randn(1, 1, 8, 8, generator=g)
        low = full + 20.0 * torch.randn(1, 1, 8, 8, generator=g)
        return {
            "low_hu": low.round().short(), "full_hu": full.round().short(), "noise_hu": torch.tensor([20.0]),
            "spacing_mm": torch.tensor([1.0, 1.0, 1.0]), "dose_fraction": torch.tensor(0.25),
        }  # fmt: skip


def run(output_dir, *, model=None, dataset=None, validate=None, save_pretrained=None, **settings):
    defaults = {"max_train_steps": 8, "lr_warmup_steps": 2, "train_batch_size": 4, "checkpointing_steps": 3}
    config = TrainingConfig(output_dir=str(output_dir), **{**defaults, **settings})
    torch.manual_seed(0)
    model = model or UNet3DCTModel(**TINY)
    scheduler = make_noise_scheduler(config.noise_schedule)
    result = train(
        config, model=model,
        make_objective=lambda m: ResidualDiffusionObjective(m, scheduler, terminal_fraction=config.terminal_fraction),
        dataset=dataset or Pairs(), validate=validate, save_pretrained=save_pretrained,
    )  # fmt: skip
    return model, result


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def checkpoint_files(folder: Path) -> dict[str, torch.Tensor]:
    newest = list_checkpoints(folder)[-1]
    values = dict(load_file(newest / "model.safetensors"))
    ema = torch.load(newest / "custom_checkpoint_0.pkl", weights_only=True)
    return values | {f"ema{i}": p for i, p in enumerate(ema["shadow_params"])}


def test_four_small_batches_equal_one_large(tmp_path):
    large, _ = run(tmp_path / "large")
    small, _ = run(tmp_path / "small", train_batch_size=1, gradient_accumulation_steps=4)
    torch.testing.assert_close(weights(small), weights(large), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("lr_scheduler", ["cosine", "cosine_warm_restarts"])
def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path, lr_scheduler):
    whole, _ = run(tmp_path / "whole", lr_scheduler=lr_scheduler)
    run(tmp_path / "part", lr_scheduler=lr_scheduler)
    for late in list_checkpoints(tmp_path / "part"):
        if late.name == "checkpoint-8":
            for file in late.iterdir():
                file.unlink() if file.is_file() else None
            (late / "trainer_state.json").unlink(missing_ok=True)
    assert list_checkpoints(tmp_path / "part")[-1].name == "checkpoint-6"  # in the middle of an epoch of 3 steps
    resumed, _ = run(tmp_path / "part", resume_from_checkpoint="latest", lr_scheduler=lr_scheduler)
    assert torch.equal(weights(whole), weights(resumed))


SCRIPT = """
import sys
from tests.training.test_loop import Pairs, run
run(sys.argv[1], dataset=Pairs(delay_s=float(sys.argv[2])), max_train_steps=14, checkpointing_steps=4,
    resume_from_checkpoint="latest")
"""


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "ACCELERATE_USE_CPU": "1"}

    def start(folder: str, delay_s: float) -> subprocess.Popen:
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / folder), str(delay_s)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    whole, killed = start("whole", 0.0), start("killed", 0.04)
    deadline = time.monotonic() + 120
    while not list_checkpoints(tmp_path / "killed"):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.2)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert list_checkpoints(tmp_path / "killed")[-1].name != "checkpoint-14"
    assert whole.wait(120) == 0
    assert start("killed", 0.0).wait(120) == 0
    expected, found = checkpoint_files(tmp_path / "whole"), checkpoint_files(tmp_path / "killed")
    assert expected.keys() == found.keys()
    for name in expected:
        assert torch.equal(expected[name], found[name]), name
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def _two_processes(folder: str) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # what the forked parent knew of its single process
    GradientState._reset_state()
    settings = {**FEW_TERMINAL, "train_batch_size": 1, "validate": of_step, "validation_steps": 4}
    run(folder, max_train_steps=5, **settings)
    run(folder, max_train_steps=12, resume_from_checkpoint="latest", **settings)


def of_step(model, step: int) -> Validation:
    return Validation({"step": float(step)})


# With one sample a process, one of two often has none at the last timestep, and so not the same numbers to log.
FEW_TERMINAL = {"terminal_fraction": 0.2, "logging_steps": 1, "lr_scheduler": "constant_with_warmup"}


def test_two_processes_stopped_and_resumed_equal_one(tmp_path):
    run(tmp_path / "one", train_batch_size=2, max_train_steps=12, **FEW_TERMINAL)
    debug_launcher(_two_processes, (str(tmp_path / "two"),), num_processes=2)
    one, two = checkpoint_files(tmp_path / "one"), checkpoint_files(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=5e-6, msg=name)
    logs = [[json.loads(x) for x in (tmp_path / k / "metrics.jsonl").read_text().splitlines()] for k in ("one", "two")]
    # Validated at the end of both calls, once; at step 12 it was due anyway, and only the main process has the result.
    assert [line["step"] for line in logs[1] if "val/step" in line] == [4, 5, 8, 12]
    logs[1] = [line for line in logs[1] if "val/step" not in line]
    assert len(logs[0]) == 12 and any("train/loss_terminal" not in line for line in logs[0])
    for expected, found in zip(*logs, strict=True):
        assert found == pytest.approx(expected, rel=1e-3)


def test_one_slice_is_learned_to_two_hounsfield_units():
    g = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    full = 40.0 + 60.0 * torch.sin(x / 7) * torch.cos(y / 9) + 100.0 * ((x - 30) ** 2 + (y - 34) ** 2 < 150)
    low = full + 25.0 * torch.randn(64, 64, generator=g)
    item = {
        "low_hu": low[None, None, None], "full_hu": full[None, None, None], "noise_hu": torch.tensor([[25.0]]),
        "spacing_mm": torch.tensor([[1.0, 1.0, 1.0]]),
    }  # fmt: skip
    torch.manual_seed(0)
    model = UNet3DCTModel(
        block_out_channels=(24, 48), layers_per_block=1, downsample_strides=(1, 2, 2), conv_mode="2.5d"
    )
    scheduler = make_noise_scheduler()
    objective = ResidualDiffusionObjective(model, scheduler, terminal_fraction=1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    steps = 350
    lr = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad()
        objective(item, torch.tensor([step]))["loss"].backward()
        optimizer.step()
        lr.step()
    with torch.no_grad():
        shown = torch.zeros(1, 1, 1, 64, 64)  # as the pipeline shows it at zero signal-to-noise ratio
        condition = encode_condition(item["low_hu"], item["noise_hu"])
        pooled = scan_vector(item["noise_hu"], item["spacing_mm"])
        v = model(torch.cat([shown, condition], 1), torch.tensor([999]), pooled=pooled).sample
        restored = decode_residual(-v, item["low_hu"], item["noise_hu"])
    rmse = (restored[0, 0, 0] - full).square().mean().sqrt().item()
    assert (low - full).square().mean().sqrt() > 20
    assert rmse < 2.0, rmse


def test_validation_log_pictures_and_saved_average(tmp_path):
    seen = []

    def validate(model, step):
        assert not model.training
        seen.append((step, weights(model)))
        return Validation({"rmse": float(step)}, {"panel": np.zeros((4, 6), np.uint8)})

    saved = []
    model, result = run(
        tmp_path, validate=validate, save_pretrained=lambda m: saved.append(weights(m)), validation_steps=4,
        logging_steps=2, ema_decay=0.5, report_to="tensorboard",
    )  # fmt: skip
    assert [step for step, _ in seen] == [4, 8] and result.validation.metrics["rmse"] == 8.0
    assert torch.equal(saved[0], seen[-1][1]) and not torch.equal(saved[0], weights(model))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [2, 4, 6, 8]
    assert (tmp_path / "validation" / "panel-000008.png").is_file()
    assert list((tmp_path / "logs").rglob("events.*"))
    assert json.loads((tmp_path / "training_config.json").read_text())["ema_decay"] == 0.5


def test_checkpoints_are_rotated_and_never_half_written(tmp_path):
    run(tmp_path, checkpointing_steps=2, checkpoints_total_limit=2)
    assert [c.name for c in list_checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-8"]
    assert not list(tmp_path.glob("*.partial"))
    (tmp_path / "checkpoint-99").mkdir()  # without its state file: not finished
    assert list_checkpoints(tmp_path)[-1].name == "checkpoint-8"


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = UNet3DCTModel(**TINY)
    with torch.no_grad():
        model.refine_out.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match="lower `learning_rate`"):
        run(tmp_path, model=model)


def test_a_run_of_another_network_or_noise_schedule_does_not_go_on(tmp_path):
    run(tmp_path, max_train_steps=3)
    settings = (tmp_path / "training_config.json").read_text()
    other = UNet3DCTModel(**{**TINY, "refine_channels": 8})
    with pytest.raises(ValueError, match=r"cannot be resumed exactly: network was \d+ parameters \(.* is \d+ param"):
        run(tmp_path, model=other, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match="noise_schedule was cosine, is linear"):
        run(tmp_path, noise_schedule="linear", resume_from_checkpoint="latest")
    assert (tmp_path / "training_config.json").read_text() == settings


def test_refusals_before_any_work(tmp_path):
    with pytest.raises(ValueError, match="needs a GPU"):
        run(tmp_path / "a", mixed_precision="fp16")
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="fewer than one step takes"):
        run(tmp_path / "b", train_batch_size=64)
    with pytest.raises(FileNotFoundError, match="not a finished checkpoint"):
        run(tmp_path / "c", resume_from_checkpoint=str(tmp_path / "nowhere"))
