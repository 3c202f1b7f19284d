"""compute.json of a run: how long it has taken, over all its calls, and on what; for the model's card."""

import json
import os
import time
from pathlib import Path

import torch
from accelerate import Accelerator

COMPUTE_NAME = "compute.json"


class ComputeRecord:
    """Counts the time of a run that may be stopped and resumed, up to the last checkpoint of each call.

    Args:
        output_dir: of the run.
        accelerator: that it runs on.
        started: `time.monotonic()` at which this call began.
        resumed: whether it goes on with an earlier call's checkpoint, whose time counts too.
    """

    def __init__(self, output_dir: str | Path, accelerator: Accelerator, *, started: float, resumed: bool) -> None:
        self._path = Path(output_dir) / COMPUTE_NAME
        self._accelerator = accelerator
        self._started = started
        self._earlier_minutes = 0.0
        if resumed and self._path.exists():
            self._earlier_minutes = float(json.loads(self._path.read_text())["minutes"])

    def write(self, step: int) -> None:
        """Writes it whole or not at all, on the main process."""
        if not self._accelerator.is_main_process:
            return
        record = {
            "minutes": self._earlier_minutes + (time.monotonic() - self._started) / 60.0,
            "steps": step,
            "processes": self._accelerator.num_processes,
            "device": _device_name(self._accelerator.device),
        }
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=2) + "\n")
        os.replace(partial, self._path)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU with {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
