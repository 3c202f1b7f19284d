"""Notebooks run from top to bottom, as they stand, and hold no output: their cells are one script, without Jupyter."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def cells(notebook: Path, kind: str) -> list[str]:
    content = json.loads(notebook.read_text())
    assert content["nbformat"] == 4
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == kind]


def test_there_is_one():
    assert NOTEBOOKS


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_holds_no_output(notebook):
    content = json.loads(notebook.read_text())
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert code and all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert not any(line.startswith(("!", "%")) for cell in cells(notebook, "code") for line in cell.splitlines())


def run_cells(notebook: Path, folder: Path) -> str:
    script = folder / "cells.py"
    script.write_text("\n\n".join(cells(notebook, "code")))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, str(script)], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_first_steps_restores_better_than_the_low_dose(tmp_path):
    output = run_cells(ROOT / "examples" / "first_steps.ipynb", tmp_path)
    low, restored = map(float, re.search(r"low dose ([\d.]+) HU, restored ([\d.]+) HU", output).groups())
    assert restored < 0.95 * low, output
    assert float(re.search(r"samples\): ([\d.]+) HU", output)[1]) > 1.0
    assert (tmp_path / "first_steps" / "restored.nii.gz").is_file()
