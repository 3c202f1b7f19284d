"""Runs commands of `diffusers-ct` in a fresh process that talks to a `LocalHub`."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.hub_server import TOKEN

ROOT = Path(__file__).parents[2]
_SCRIPT = """
import contextlib, io, json, sys
from diffusers_ct.cli import main
done = []
for arguments in json.loads(sys.argv[1]):
    sys.argv, out, err, status = ["diffusers-ct", *arguments], io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
    done.append((status, out.getvalue(), err.getvalue()))
print("RESULTS" + json.dumps(done))
"""


@dataclass
class Done:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one line of a mistake."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert self.status == 2 and len(lines) == 1 and "Traceback" not in self.stderr, self
        return lines[0].removeprefix("error: ")


def environment(url: str, home: Path, **changes: str | None) -> dict[str, str]:
    """Of a process that takes the server for the Hub; None takes a variable out."""
    settings: dict[str, str | None] = {
        "HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0",
        "HF_TOKEN": TOKEN, "HF_HOME": str(home), "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": None, **changes,
    }  # fmt: skip
    return {name: value for name, value in {**os.environ, **settings}.items() if value is not None}


def run_commands(commands: Sequence[Sequence[object]], env: dict[str, str]) -> list[Done]:
    """All in one process, one after the other."""
    asked = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run([sys.executable, "-c", _SCRIPT, asked], env=env, capture_output=True, text=True, timeout=250)
    assert "RESULTS" in done.stdout, done.stderr[-3000:]
    return [Done(*result) for result in json.loads(done.stdout.partition("RESULTS")[2])]
