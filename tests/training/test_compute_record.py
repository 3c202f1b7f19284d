"""The time that a run has taken, over all its calls."""

import json
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from diffusers_ct.training.compute_record import ComputeRecord
from tests.training.test_loop import Pairs, run


def read(folder: Path) -> dict:
    return json.loads((folder / "compute.json").read_text())


def test_a_run_leaves_its_minutes_steps_and_device(tmp_path):
    began = time.monotonic()
    run(tmp_path, dataset=Pairs(delay_s=0.01), max_train_steps=5)
    record = read(tmp_path)
    assert 5 * 4 * 0.01 / 60 < record["minutes"] < (time.monotonic() - began) / 60
    assert record["steps"] == 5 and record["processes"] == 1
    if not torch.cuda.is_available():
        assert record["device"] == f"CPU with {torch.get_num_threads()} threads"


def test_a_resumed_run_adds_to_what_was_there_and_a_new_one_does_not(tmp_path):
    accelerator = Accelerator(cpu=True)
    for resumed, minutes in ((False, 2.0), (True, 3.5), (False, 1.5)):
        added = 1.5 if resumed or minutes == 1.5 else 2.0
        ComputeRecord(tmp_path, accelerator, started=time.monotonic() - 60 * added, resumed=resumed).write(7)
        assert read(tmp_path)["minutes"] == pytest.approx(minutes, abs=0.01)
    assert [f.name for f in tmp_path.iterdir()] == ["compute.json"]
