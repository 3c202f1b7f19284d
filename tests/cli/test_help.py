"""Help is shown without what only the work needs: whoever asks for it should not wait for torch."""

import json
import subprocess
import sys

import pytest

from diffusers_ct import __version__
from diffusers_ct.cli import COMMANDS, main

HEAVY = (
    "torch",
    "pydicom",
    "numpy",
    "scipy",
    "datasets",
    "diffusers",
    "transformers",
    "huggingface_hub",
    "nibabel",
    "SimpleITK",
    "gradio",
)
# One process asks for all helps, as importing is what takes the time.
ALL_HELPS = f"""
import contextlib, io, json, sys
from diffusers_ct.cli import main
shown = {{}}
for arguments in json.loads(sys.argv[1]):
    sys.argv, out = ["diffusers-ct", *arguments], io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main()
    shown[" ".join(arguments)] = (out.getvalue(), [name for name in {HEAVY!r} if name in sys.modules])
print(json.dumps(shown))
"""


def test_the_version_is_told_without_a_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["diffusers-ct", "--version"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code and capsys.readouterr().out.strip() == __version__


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[str, list[str]]]:
    asked = [["--help"], *([name, "--help"] for name in COMMANDS)]
    done = subprocess.run(
        [sys.executable, "-c", ALL_HELPS, json.dumps(asked)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_all_commands_are_in_the_help_of_the_application(helps):
    text, _ = helps["--help"]
    assert all(f" {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_imports_nothing_heavy_and_shows_how_to_call(helps, name):
    text, heavy = helps[f"{name} --help".strip()]
    assert heavy == []
    if name:
        assert f"diffusers-ct {name} " in text.partition("Usage:")[2].partition("\n")[2], "an example"
