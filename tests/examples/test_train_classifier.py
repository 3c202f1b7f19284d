"""The classifier's example at a very small size, and its measures against a count by hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusers_ct import NoiseAwareClassifier
from diffusers_ct.data.volumes import phantom_volumes

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from train_classifier import TEST_SEED, area_under_roc, judge, main, table  # noqa: E402

NAN = float("nan")


TINY = ("--block_out_channels", 8, 16, "--max_train_steps", 4, "--lr_warmup_steps", 1, "--train_batch_size", 2)


def run(*command: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "1"}
    arguments = [sys.executable, *map(str, command)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def test_on_phantoms_it_trains_judges_and_saves(tmp_path, capsys):
    grid = {"shape": (4, 32, 32), "spacing_mm": (8.0, 12.0, 12.0), "lesion_radius_mm": (14.0, 20.0)}
    for name, count, seed in (("phantoms", 8, 0), ("held_out", 16, TEST_SEED)):  # found there: no processes are started
        phantom_volumes(count, first_seed=seed, cache=tmp_path / f"{name}.npz", processes=1, **grid)
    arguments = (
        "--phantoms", 8, "--output_dir", tmp_path, "--shape", 4, 32, 32, "--spacing", 8, 12, 12, "--lesion_radius",
        14, 20, "--validation_steps", 2, *TINY,
    )  # fmt: skip
    main([str(a) for a in arguments])
    stdout = capsys.readouterr().out
    assert "findings_auc" in stdout and "body_part_accuracy" in stdout and "t = 749" in stdout
    model = NoiseAwareClassifier.from_pretrained(tmp_path / "classifier")
    assert model.heads == ("findings", "body_part") and len(model.config.body_parts) == 2
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    judged = [line for line in lines if "val/body_part_accuracy_t0" in line]
    assert [line["step"] for line in judged] == [2, 4]
    assert all("train/loss_findings" in line for line in lines if "train/loss" in line)


def test_on_a_prepared_dataset_it_learns_from_both_doses(tmp_path, capsys):
    run(
        "-c", "from diffusers_ct.cli import main; main()", "prepare", tmp_path / "data", "--phantoms", 4, "--dose", 0.1,
        "--region", "thorax", "--shape", 2, 32, 32, "--spacing", 4, 12, 12, "--validation-fraction", 0.25,
    )  # fmt: skip
    out = tmp_path / "model"
    arguments = (
        "--dataset", tmp_path / "data", "--output_dir", out, "--heads", "dose_fraction", "--dose_thresholds", 0.5,
        "--shape", 2, 32, 32, *TINY,
    )  # fmt: skip
    main([str(a) for a in arguments])
    assert "dose_accuracy" in capsys.readouterr().out
    assert NoiseAwareClassifier.from_pretrained(out / "classifier").heads == ("dose_fraction",)


def test_combinations_that_cannot_be_meant_are_refused_before_any_work(tmp_path):
    for flags, message in (
        (("--phantoms", "4", "--dataset", "x"), "exactly one"),
        (("--phantoms", "4", "--heads", "dose_fraction"), "--dose_thresholds"),
        (("--phantoms", "4", "--heads", "age_years"), "need --dataset"),
        (("--phantoms", "4", "--push_to_hub", "--hub_model_id", "a/b"), "part of a pipeline"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([*flags, "--output_dir", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


def test_area_under_the_curve_counts_pairs():
    g = np.random.default_rng(0)
    scores, present = torch.tensor(g.integers(0, 6, 40)).float(), torch.tensor(g.random(40) < 0.4)
    pairs = scores[present][:, None] - scores[~present][None]
    assert area_under_roc(scores, present) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).float().mean().item())
    assert np.isnan(area_under_roc(scores, torch.ones(40, dtype=torch.bool)))


def test_measures_pass_over_what_is_unknown():
    part = ["CHEST"] * 4
    findings = torch.tensor([[1.0, NAN], [0.0, NAN], [NAN, 1.0]])
    scores = torch.tensor([[2.0, 0.0], [1.0, 0.0], [9.0, 0.0]])
    assert judge("findings", scores, findings, part[:3], ()) == ("findings_auc", 1.0)
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    assert judge("body_part", logits, torch.tensor([0, 1, -1]), part[:3], ()) == ("body_part_accuracy", 0.5)
    above = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, -2.0]])
    doses = torch.tensor([0.25, 1.0, NAN])
    assert judge("dose_fraction", above, doses, part[:3], (0.15, 0.5)) == ("dose_accuracy", 1.0)
    ages = torch.tensor([[50.0, 1.0], [60.0, 1.0]])
    assert judge("age_years", ages, torch.tensor([53.0, NAN]), part[:2], ()) == ("age_error_years", 3.0)
    assert table({"a_t0": 0.5, "a_t10": 1.0}).splitlines()[1].split() == ["a", "0.500", "1.000"]


def test_telling_body_parts_apart_is_not_finding():
    truth, part = torch.tensor([[1.0], [0.0], [0.0], [0.0]]), ["ABDOMEN", "ABDOMEN", "CHEST", "CHEST"]
    of_the_part = torch.tensor([[1.0], [1.0], [0.0], [0.0]])
    assert judge("findings", of_the_part, truth, part, ()) == ("findings_auc", 0.5)
    assert judge("findings", of_the_part, truth, ["ABDOMEN"] * 4, ())[1] > 0.8
