"""Distillation from the command line: the student leaves its teacher's estimate for its samples, and loads in a pipeline."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusers_ct import CheckpointContract, CTConsistencyScheduler, CTDiffusionPipeline, CTVolume, UNet3DCTModel
from diffusers_ct.data.prepare import prepare_paired_ct
from diffusers_ct.schedulers import make_noise_scheduler

PATH = Path(__file__).parents[2] / "examples" / "distill_realtime.py"
TINY = ("--patch_size", "2", "32", "32", "--train_batch_size", "4", "--lr_warmup_steps", "2", "--teacher_steps", "4")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("distill_realtime", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["distill_realtime"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["distill_realtime"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    prepare_paired_ct(
        folder, phantoms=4, dose_fractions=(0.25,), shape=(3, 48, 48), spacing_mm=(4.0, 8.0, 8.0), validation_fraction=0.34,
        test_fraction=0.0,
    )  # fmt: skip
    return str(folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    """Of random weights: any network's sampler is a function of the noise, which can be learned."""
    torch.manual_seed(0)
    unet = UNet3DCTModel(
        block_out_channels=(8, 8), layers_per_block=1, downsample_strides=(1, 2, 2), refine_channels=4, conv_mode="2.5d",
        norm_num_groups=4,
    )  # fmt: skip
    torch.nn.init.normal_(unet.refine_out.weight, std=0.2)
    folder = tmp_path_factory.mktemp("teacher")
    contract = CheckpointContract("phantoms", "CC0")
    sampler = DDIMScheduler.from_config(make_noise_scheduler().config)
    CTDiffusionPipeline(unet, sampler, contract.to_dict()).save_pretrained(folder)
    return str(folder)


def facts_after(example, teacher, dataset, folder: Path, steps: int) -> dict:
    example.main(
        ["--teacher", teacher, "--dataset", dataset, "--output_dir", str(folder), *TINY, "--max_train_steps", str(steps),
         "--learning_rate", "1e-2", "--ema_decay", "0.9"]
    )  # fmt: skip
    return json.loads((folder / "distillation.json").read_text())


def test_a_student_comes_closer_to_its_teachers_samples_and_loads(example, teacher, dataset, tmp_path, capsys):
    before = facts_after(example, teacher, dataset, tmp_path / "a", 3)
    after = facts_after(example, teacher, dataset, tmp_path / "b", 60)
    assert after["distance"] < 0.5 < 0.8 * before["distance"], (before, after)
    assert abs(after["spread"] - 1.0) < abs(before["spread"] - 1.0)
    assert after["distilled_timesteps"] == [998, 499] and after["training_steps"] == 60
    assert "pipeline:" in capsys.readouterr().out

    pipe = CTDiffusionPipeline.from_pretrained(tmp_path / "b" / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, CTConsistencyScheduler) and pipe.contract.training_data == "phantoms"
    low = CTVolume.from_array(np.random.default_rng(0).normal(40, 30, (1, 32, 32)).astype(np.float32), (4.0, 8.0, 8.0))
    one, two = (pipe(low, num_inference_steps=steps, output_type="np").volumes for steps in (1, 2))
    assert np.isfinite(one).all() and np.isfinite(two).all()
    lines = [json.loads(line) for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert {"train/loss_estimate", "train/loss_step_1", "train/loss_step_2"} <= set(lines[0])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--student_steps 4", "--student_steps must be from 1 to below --teacher_steps = 4"),
        ("--patch_size 2 30 32", r"--patch_size must be divisible by \[1, 4, 4\]"),
        ("--push_to_hub --hub_model_id a/b", "--push_to_hub is not for this example"),
    ],
)
def test_a_mistake_is_one_line_with_its_flag_before_any_work(example, teacher, dataset, tmp_path, capsys, flags, words):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        example.main(["--teacher", teacher, "--dataset", dataset, "--output_dir", str(out), *TINY, *flags.split()])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stop.value.code == 2 and not out.exists() and re.search(words, line), line


def test_a_distilled_teacher_is_refused(example, teacher, dataset, tmp_path, capsys):
    pipe = CTDiffusionPipeline.from_pretrained(teacher)
    pipe.scheduler = CTConsistencyScheduler.from_config(pipe.scheduler.config, distilled_timesteps=(998,))
    pipe.save_pretrained(tmp_path / "distilled")
    with pytest.raises(SystemExit):
        example.main(
            ["--teacher", str(tmp_path / "distilled"), "--dataset", dataset, "--output_dir", str(tmp_path / "o")]
        )
    assert "is distilled already" in capsys.readouterr().err
