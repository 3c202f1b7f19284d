"""Runs that break, are cut short, or are asked for what cannot be: what is kept, and what is refused."""

import importlib.util
import shutil

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from diffusers_ct.models import UNet3DCTModel
from diffusers_ct.schedulers import make_noise_scheduler
from diffusers_ct.training import ResidualDiffusionObjective, TrainingConfig, TrainingError, list_checkpoints, train
from tests.training.test_loop import TINY, Pairs, run, weights


class SpoiledGradient(torch.autograd.Function):
    """The identity, whose gradient is not a number."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


def test_a_gradient_that_is_not_finite_spoils_no_checkpoint(tmp_path):
    config = TrainingConfig(
        output_dir=str(tmp_path), max_train_steps=8, lr_warmup_steps=2, train_batch_size=4, checkpointing_steps=3,
        checkpoints_total_limit=1,
    )  # fmt: skip
    calls = []

    def make_objective(model):
        objective = ResidualDiffusionObjective(model, make_noise_scheduler(), terminal_fraction=0.5)

        def spoiled(batch, seeds):
            losses = objective(batch, seeds)
            calls.append(losses["loss"].item())
            # step 6 would be saved
            return {**losses, "loss": SpoiledGradient.apply(losses["loss"])} if len(calls) == 6 else losses

        return spoiled

    with pytest.raises(TrainingError, match="gradient norm is nan at step 6"):
        train(config, model=UNet3DCTModel(**TINY), make_objective=make_objective, dataset=Pairs())
    [kept] = list_checkpoints(tmp_path)
    assert kept.name == "checkpoint-3"
    assert all(tensor.isfinite().all() for tensor in load_file(kept / "model.safetensors").values())


def test_what_a_crash_leaves_does_not_stop_the_next_run(tmp_path):
    whole, _ = run(tmp_path / "whole", logging_steps=2)
    run(tmp_path / "part", logging_steps=2)
    newest = list_checkpoints(tmp_path / "part")[-1]
    newest.rename(newest.with_name(newest.name + ".partial"))  # killed after the state was written, before the rename
    log = tmp_path / "part" / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 8, "tr')  # and in the middle of a line
    resumed, _ = run(tmp_path / "part", logging_steps=2, resume_from_checkpoint="latest")
    assert torch.equal(weights(whole), weights(resumed))
    assert log.read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert not list((tmp_path / "part").glob("*.partial"))


def test_a_budget_of_time_ends_a_run_that_can_go_on(tmp_path):
    whole, _ = run(tmp_path / "whole")
    saved = []
    _, result = run(tmp_path / "part", max_train_minutes=1e-6, save_pretrained=saved.append)
    assert result.step == 1 and len(saved) == 1
    assert [c.name for c in list_checkpoints(tmp_path / "part")] == ["checkpoint-1"]
    resumed, result = run(tmp_path / "part", resume_from_checkpoint="latest")
    assert result.step == 8 and torch.equal(weights(whole), weights(resumed))


def test_a_new_run_does_not_mix_with_the_checkpoints_of_another(tmp_path):
    run(tmp_path)
    before = (tmp_path / "training_config.json").read_text()
    with pytest.raises(ValueError, match=r"holds checkpoint-8 of an earlier run.*latest"):
        run(tmp_path, max_train_steps=6)
    assert (tmp_path / "training_config.json").read_text() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 7}, "seed was 0, is 7"), ({"train_batch_size": 2}, "train_batch_size was 4, is 2"),
        ({"use_ema": False}, "use_ema"), ({"dataset": Pairs(20)}, "dataset_length was 12, is 20"),
        ({"max_train_steps": 5}, "beyond `max_train_steps`"),
    ],
)  # fmt: skip
def test_only_the_same_run_is_resumed(tmp_path, change, message):
    run(tmp_path, max_train_steps=6, checkpointing_steps=6)
    with pytest.raises(ValueError, match=message):
        run(tmp_path, resume_from_checkpoint="latest", **{"max_train_steps": 9, **change})


def test_half_deleted_checkpoints_do_not_count(tmp_path, monkeypatch):
    def killed(path, **_):
        raise KeyboardInterrupt(path)

    run(tmp_path, max_train_steps=4, checkpointing_steps=2)
    monkeypatch.setattr(shutil, "rmtree", lambda path, **kw: None if kw else killed(path))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, checkpointing_steps=2, resume_from_checkpoint="latest")
    assert [c.name for c in list_checkpoints(tmp_path)] == ["checkpoint-4", "checkpoint-6"]
    assert (tmp_path / "checkpoint-2").is_dir()


def test_a_refused_run_leaves_nothing(tmp_path):
    missing = [n for n in ("wandb", "aim", "dvclive", "comet_ml") if importlib.util.find_spec(n) is None]
    for settings in ({"report_to": missing[0]}, {"report_to": "nonsense"}, {"train_batch_size": 64},
                     {"lr_scheduler": "cosine_warm_restarts", "lr_num_cycles": 9}):  # fmt: skip
        with pytest.raises(ValueError):
            run(tmp_path / "run", **settings)
        assert not (tmp_path / "run").exists()


@pytest.fixture
def fresh_accelerate():
    """accelerate keeps one precision for a whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_bf16_computes_in_bf16_and_keeps_float32_weights(tmp_path, fresh_accelerate):
    model = UNet3DCTModel(**TINY)
    seen = set()
    model.head.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    _, result = run(tmp_path, model=model, mixed_precision="bf16", gradient_checkpointing=True)
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert 0.0 < result.loss < 2.0
