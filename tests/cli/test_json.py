"""`--json`: one document on stdout, and nothing else there, from every command that does something."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from diffusers_ct import CTVolume, load_paired_ct, read_volume, write_volume
from diffusers_ct.cli import COMMANDS, build_app
from tests.cli.test_synthesize import save
from tests.io.synthetic import SECRETS, write_series


def run(status: int, *arguments: object) -> dict:
    done = CliRunner().invoke(build_app(), [*map(str, arguments), "--json"])
    assert done.exit_code == status, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("restore", "demo")])
def test_every_command_has_it(name):
    command = typer.main.get_command(build_app()).commands[name]
    assert "--json" in {flag for parameter in command.params for flag in parameter.opts}


def test_simulate_says_what_it_wrote_and_how(tmp_path):
    body = np.where(np.hypot(*np.mgrid[-1:1:96j, -1:1:96j]) < 0.6, 40.0, -1000.0)
    hu = np.stack([body, body]).astype(np.float32)
    write_volume(CTVolume(hu, (3.0, 3.0, 3.0), np.diag([3.0, 3.0, 3.0, 1.0])), tmp_path / "scan.nii.gz")
    options = ("--dose", 0.1, "--source-noise", "noise_free", "--preset", "corediff", "--no-report", "--seed", 4)
    told = run(0, "simulate", tmp_path / "scan.nii.gz", "--output", tmp_path / "low.nii.gz", *options)
    assert told["output"] == str(tmp_path / "low.nii.gz") and told["report"] is None
    assert told["seed"] == 4 and told["dose_fraction"] == 0.1 and told["preset"] == "corediff" and told["i0"] > 0
    assert read_volume(told["output"]).shape == (2, 96, 96)


def test_prepare_counts_rows_and_names_what_it_left_out(tmp_path):
    asked = ("prepare", tmp_path / "data", "--phantoms", 3, "--shape", 2, 64, 64, "--spacing", 3, 6, 6, "--dose", 0.25,
             "--validation-fraction", 0, "--test-fraction", 0)  # fmt: skip
    told = run(0, *asked)
    assert told["written"] == told["rows"]["train"] == len(load_paired_ct(tmp_path / "data", split="train")) == 3
    assert told["problems"] == [] and run(0, *asked)["reused"] == 3
    air = np.full((3, 64, 64), -1000.0, np.float32)
    for name in ("whole", "torn"):
        write_series(tmp_path / "scans" / name, air, pixel_mm=(6.0, 6.0), SliceThickness="3")
    for file in (tmp_path / "scans" / "torn").iterdir():
        file.write_bytes(file.read_bytes()[:-2000])  # the pixels end too early
    simulated = ("--dose", 0.25, "--i0", 5e5, "--kernel", "soft", "--split-by-patient", "train=HIDALGO-1605")
    told = run(1, "prepare", tmp_path / "sim", "--normal-dose", tmp_path / "scans", "--salt", "s", *simulated)
    assert sum(told["rows"].values()) == 1
    assert any("torn" in problem["where"] and problem["reason"] for problem in told["problems"])


def test_deidentify_counts_images_and_quotes_no_name(tmp_path):
    write_series(tmp_path / "series", np.full((3, 32, 32), -1000.0, np.float32))
    (tmp_path / "series" / "notes.txt").write_text("Quixote")
    told = run(1, "deidentify", tmp_path / "series", tmp_path / "public")
    assert told["written"] == 3 and told["series"] == 1 and told["output"] == str(tmp_path / "public")
    assert len(told["left_out"]) == 1 and not any(secret in json.dumps(told["left_out"]) for secret in SECRETS)


def test_synthesize_lists_each_volume_with_its_seed(tmp_path):
    model: Path = save(tmp_path / "model")
    options = ("--count", 2, "--seed", 7, "--steps", 2, "--body-part", "thorax")
    told = run(0, "synthesize", tmp_path / "made.nii.gz", "--model", model, *options)
    assert [v["seed"] for v in told["volumes"]] == [7, 8] and told["conditions"] == {"body_part": "THORAX"}
    assert told["weights"].startswith("sha256:") and told["shape"] == [4, 16, 24]
    assert all(read_volume(v["output"]).shape == (4, 16, 24) for v in told["volumes"])
