"""The example at a very small size leaves its table, and its score is that of a Gaussian known exactly."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[2]


def test_example_leaves_its_table(tmp_path):
    done = subprocess.run(
        [
            sys.executable, "examples/adaptive_schedule.py", "--output_dir", tmp_path, "--max_train_steps", "40",
            "--patients", "3", "2", "2", "--size", "64", "--slices", "2", "--patch_size", "32", "--train_batch_size", "4",
            "--block_out_channels", "8", "16", "16", "--steps", "2", "--samples", "2",
        ],
        capture_output=True, text=True, cwd=ROOT, timeout=280,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    result = json.loads((tmp_path / "adaptive_schedule.json").read_text())
    assert result["train_steps"] == 40 and len(result["rows"]) == 16
    assert sorted(result["table"]["shift_knots"]) == pytest.approx([0.05, 0.1, 0.25, 0.5])
    # A shift is a change of time alone: one step from pure noise does not know it.
    one_step = {(r["arm"], r["dose_fraction"]): r["one_step_rmse_hu"] for r in result["rows"]}
    for dose in result["doses"]:
        assert one_step["fixed / adaptive", dose] == pytest.approx(one_step["fixed / fixed", dose], rel=1e-5)
    assert (tmp_path / "adaptive_schedule.md").read_text().count("\n| 5% |") == 4
    assert "shift of the log-SNR" in done.stdout and "| 50% | fixed / fixed |" in done.stdout


def test_score_of_samples_of_the_truths_own_law():
    sys.path.insert(0, str(ROOT / "examples"))
    from adaptive_schedule import Slices, score

    g = torch.Generator().manual_seed(0)
    shape, sd = (2, 1, 1, 200, 200), 3.0
    truth = sd * torch.randn(shape, generator=g)
    samples = sd * torch.randn((5, *shape), generator=g)
    empty = torch.zeros(2)
    found = score(samples, Slices(truth, truth, empty, empty, torch.ones(shape, dtype=torch.bool), empty, empty))
    assert found["variance"] == pytest.approx([sd**2] * 2, rel=0.03)
    assert found["squared_error"] == pytest.approx([sd**2 * 1.2] * 2, rel=0.03)
    # E|X - Y| - E|X - X'| / 2 with X, X', Y of one Gaussian: sd / sqrt(pi)
    assert found["crps_hu"] == pytest.approx([sd / math.sqrt(math.pi)] * 2, rel=0.02)
    alone = np.abs(truth[:, 0, 0].numpy()).mean(axis=(1, 2))
    constant = score(torch.zeros(5, *shape), Slices(truth, truth, empty, empty, truth == truth, empty, empty))
    assert constant["crps_hu"] == pytest.approx(alone, rel=1e-5)
