"""The quality benchmark in its smallest size, from nothing to claims, and once more without work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from diffusers_ct import load_paired_ct

EXAMPLE = Path(__file__).parents[2] / "examples" / "benchmark_quality.py"


def run(folder: Path) -> str:
    command = [sys.executable, str(EXAMPLE), "--output_dir", str(folder), "--size", "smoke"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.timeout(900)  # a minute and a half of one core, twice
def test_the_smoke_size_measures_everything_and_goes_on(tmp_path):
    out = tmp_path / "quality"
    printed = run(out)
    result = json.loads((out / "evaluation" / "benchmark.json").read_text())
    assert {"noise", "transfer", "detectability", "insertion", "materials", "calibration"} == set(result["studies"])
    methods = {row["method"] for row in result["rows"]}
    assert {"low dose", "mse-twin", "diffusers-ct, 1 step", "total variation"} <= methods
    assert result["facts"]["steps"] == '{"diffusers-ct": 2, "mse-twin": 2}'
    keys = [load_paired_ct(str(out / "data" / part), split=part)["patient_key"] for part in ("train", "test")]
    assert len(set(keys[1])) == 2 and not set(keys[0]) & set(keys[1])
    assert {row["group"] for row in result["rows"]} == {"dose 25 %", "dose 10 %", "dose 5 %", "dose 15 %"}
    claims = (out / "claims.md").read_text()
    assert claims in printed and claims.count("90 % intervals") == 2 and "mean frequency of a sample" in claims
    assert (out / "evaluation" / "report.html").stat().st_size > 100_000

    weights = out / "models" / "ours" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.stat().st_mtime_ns, (out / "evaluation" / "parts" / "records.jsonl").read_bytes()
    assert claims in run(out)
    assert before == (weights.stat().st_mtime_ns, (out / "evaluation" / "parts" / "records.jsonl").read_bytes())
