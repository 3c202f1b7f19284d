"""The README's commands at a very small size: prepare, train under accelerate, evaluate."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusers_ct import CTDiffusionPipeline, read_volume
from tests.hub_server import TOKEN, LocalHub

ROOT = Path(__file__).parents[2]
TINY = ("--block_out_channels", "16", "24", "32", "--patch_size", "2", "32", "32")


def run(*command: object, environment: dict[str, str] | None = None) -> str:
    variables = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'examples'}", "ACCELERATE_USE_CPU": "1"}
    variables |= environment or {}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=variables, cwd=ROOT, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    cli = (sys.executable, "-c", "from diffusers_ct.cli import main; main()")
    run(*cli, "prepare", folder, "--phantoms", 5, "--dose", 0.25, "--region", "thorax", "--shape", 2, 64, 64, "--spacing", 4, 6, 6,
        "--validation-fraction", 0.2, "--test-fraction", 0.2)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def model(dataset, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("model")
    stdout = run(
        sys.executable, "-m", "accelerate.commands.launch", "--num_processes", 1, "--num_machines", 1,
        "--mixed_precision", "no", "--dynamo_backend", "no", "examples/train_ldct.py", "--dataset", dataset,
        "--output_dir", out, "--training_data", "5 phantoms", "--training_data_licence", "Apache-2.0",
        "--max_train_steps", 6, "--lr_warmup_steps", 1, "--train_batch_size", 2, "--validation_steps", 3, *TINY,
    )  # fmt: skip
    assert "gain_db" in stdout and "pipeline:" in stdout
    return out


def test_training_on_doses_simulated_online_promises_those_doses(dataset, tmp_path):
    run(
        sys.executable, "examples/train_ldct.py", "--dataset", dataset, "--output_dir", tmp_path / "m",
        "--training_data", "5 phantoms", "--training_data_licence", "Apache-2.0", "--max_train_steps", 2,
        "--lr_warmup_steps", 1, "--train_batch_size", 2, "--online_doses", 0.05, 0.5, "--patches_per_slab", 3, *TINY,
    )  # fmt: skip
    contract = CTDiffusionPipeline.from_pretrained(tmp_path / "m" / "pipeline").contract
    low, high = contract.dose_fraction
    assert low <= 0.05 and high >= 0.5  # the dataset's own dose is 0.25
    with (tmp_path / "m" / "metrics.jsonl").open() as file:
        assert all(np.isfinite(value) for line in file for value in json.loads(line).values())


def test_training_pushes_its_pipeline_with_a_card(dataset, tmp_path):
    with LocalHub() as hub:
        run(
            sys.executable, "examples/train_ldct.py", "--dataset", dataset, "--output_dir", tmp_path / "m",
            "--training_data", "5 phantoms", "--training_data_licence", "Apache-2.0", "--max_train_steps", 2,
            "--lr_warmup_steps", 1, "--train_batch_size", 2, "--push_to_hub", "--hub_model_id", "user/trained", *TINY,
            environment={
                "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
                "HF_HOME": str(tmp_path / "home"),
            },
        )  # fmt: skip
        repo = hub.repos["models", "user/trained"]
        files = repo.commits[repo.head]
    card = files["README.md"].decode()
    assert "split `validation`" in card and "RMSE body" in card and "5 phantoms" in card
    assert "for 2 steps on 1 x " in card and not [
        name for name, text in files.items() if str(tmp_path).encode() in text
    ]
    assert "unet/diffusion_pytorch_model.safetensors" in files


def test_training_leaves_a_pipeline_with_its_contract(model):
    pipe = CTDiffusionPipeline.from_pretrained(model / "pipeline")
    assert pipe.contract.training_data == "5 phantoms"
    assert pipe.contract.slice_spacing_mm == pytest.approx((3.6, 4.4))
    lines = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val/gain_db" in line] == [3, 6]


def test_evaluation_leaves_report_table_and_restored_scan_and_runs_again(dataset, model, tmp_path):
    command = (
        sys.executable, "examples/evaluate_ldct.py", "--dataset", dataset, "--model", model / "pipeline",
        "--output_dir", tmp_path, "--metrics_jsonl", model / "metrics.jsonl", "--steps", 2, "--samples", 2,
        "--tuning_scans", 1,
    )  # fmt: skip
    for _ in range(2):
        stdout = run(*command)
    assert "non-local" in stdout and "dose 25 %" in stdout and "of every other method in" in stdout
    result = json.loads((tmp_path / "benchmark.json").read_text())
    assert {row["method"] for row in result["rows"]} >= {
        "low dose",
        "Gaussian",
        "total variation",
        "diffusers-ct, 1 step",
    }
    assert result["facts"]["split"].startswith("test")
    assert (tmp_path / "report.html").stat().st_size > 20_000 and (tmp_path / "overview.png").is_file()
    assert read_volume(tmp_path / "restored_dicom").shape == (2, 64, 64)
    assert read_volume(tmp_path / "restored.nii.gz").shape == (2, 64, 64)


def test_every_flag_of_the_makefile_exists():
    recipe = (ROOT / "Makefile").read_text()
    for script in ("train_ldct.py", "evaluate_ldct.py", "train_synthesis.py", "evaluate_synthesis.py"):
        parts = re.findall(rf"examples/{script}((?:.*\\\n)*.*)", recipe)
        flags = set(re.findall(r"--[a-z_]+", " ".join(parts)))
        text = run(sys.executable, f"examples/{script}", "--help")
        assert flags and all(flag in text for flag in flags)
