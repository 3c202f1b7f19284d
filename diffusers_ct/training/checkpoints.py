"""Checkpoints of a run: written whole or not at all, the oldest deleted, the newest found."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

_PREFIX = "checkpoint-"
_STATE_NAME = "trainer_state.json"


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Finished checkpoints of a run, oldest first."""
    found = [p for p in Path(output_dir).glob(f"{_PREFIX}*") if (p / _STATE_NAME).is_file()]
    return sorted(found, key=lambda p: int(p.name.removeprefix(_PREFIX)))


def save_checkpoint(accelerator: Accelerator, output_dir: str | Path, state: dict[str, Any], limit: int | None) -> None:
    """Writes `checkpoint-<step>`; every process calls it. A crash in between leaves only a folder named *.partial."""
    final = Path(output_dir) / f"{_PREFIX}{state['step']}"
    partial = final.with_name(final.name + ".partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (partial / _STATE_NAME).write_text(json.dumps(state))
        if final.exists():
            shutil.rmtree(final)
        os.replace(partial, final)
        if limit is not None:
            for old in list_checkpoints(output_dir)[:-limit]:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()


def find_checkpoint(output_dir: str | Path, wanted: str | None) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` means; None to start anew.

    Raises:
        FileNotFoundError: if a named folder holds no finished checkpoint.
    """
    if wanted is None:
        return None
    if wanted == "latest":
        found = list_checkpoints(output_dir)
        return found[-1] if found else None
    path = Path(wanted)
    if not (path / _STATE_NAME).is_file():
        raise FileNotFoundError(f"{wanted} is not a finished checkpoint: it holds no {_STATE_NAME}.")
    return path


def load_checkpoint(accelerator: Accelerator, path: Path) -> dict[str, Any]:
    """Restores model, optimizer and everything registered; returns the state that was saved with it."""
    accelerator.load_state(str(path))
    return json.loads((path / _STATE_NAME).read_text())
