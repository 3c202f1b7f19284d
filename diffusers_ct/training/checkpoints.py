"""Checkpoints of a run: written whole or not at all, the oldest deleted, the newest found."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

_PREFIX = "checkpoint-"
_STATE_NAME = "trainer_state.json"


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Finished checkpoints of a run, oldest first."""
    # A crash between writing the state and renaming leaves a *.partial folder that holds a state file too.
    found = [p for p in Path(output_dir).glob(f"{_PREFIX}*") if re.fullmatch(_PREFIX + r"\d+", p.name)]
    finished = [p for p in found if (p / _STATE_NAME).is_file()]
    return sorted(finished, key=lambda p: int(p.name.removeprefix(_PREFIX)))


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
            _delete(final)
        os.replace(partial, final)
        if limit is not None:
            for old in list_checkpoints(output_dir)[:-limit]:
                _delete(old)
    accelerator.wait_for_everyone()


def _delete(checkpoint: Path) -> None:
    """The state file goes first: a crash in between leaves what counts as unfinished."""
    (checkpoint / _STATE_NAME).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def find_checkpoint(output_dir: str | Path, wanted: str | None) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` means; None to start anew.

    Raises:
        FileNotFoundError: if a named folder holds no finished checkpoint.
        ValueError: if a run is to start anew in a folder that holds another run's checkpoints.
    """
    if wanted is None:
        if found := list_checkpoints(output_dir):
            raise ValueError(
                f"{output_dir} holds {found[-1].name} of an earlier run, with which a new run's checkpoints would mix: "
                "use `resume_from_checkpoint` with latest to go on with it, or another `output_dir`."
            )
        return None
    if wanted == "latest":
        found = list_checkpoints(output_dir)
        return found[-1] if found else None
    path = Path(wanted)
    if not (path / _STATE_NAME).is_file():
        raise FileNotFoundError(
            f"{wanted} is not a finished checkpoint (`resume_from_checkpoint`): it holds no {_STATE_NAME}."
        )
    return path


def read_state(path: Path, run: dict[str, Any], max_train_steps: int) -> dict[str, Any]:
    """The state saved with a checkpoint, held against the run that wants to go on from it.

    Args:
        path: a finished checkpoint.
        run: what fixes the order of the items and must not have changed, by name.
        max_train_steps: of the run.

    Raises:
        ValueError: if the run is another one, or already over.
    """
    state = json.loads((path / _STATE_NAME).read_text())
    changed = [f"{k} was {state[k]}, is {run[k]}" for k in run if k in state and state[k] != run[k]]
    if changed:
        raise ValueError(f"{path} belongs to another run and cannot be resumed exactly: {'; '.join(changed)}.")
    if state["step"] > max_train_steps:
        raise ValueError(f"{path} is at step {state['step']}, beyond `max_train_steps` = {max_train_steps}.")
    return state
