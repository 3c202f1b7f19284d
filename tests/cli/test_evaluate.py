"""`diffusers-ct evaluate` on a small prepared dataset."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from typer.testing import CliRunner

from diffusers_ct import CTDiffusionPipeline, UNet3DCTModel, load_paired_ct
from diffusers_ct.cli import build_app
from diffusers_ct.evaluation.learned_baselines import make_baseline
from diffusers_ct.hub import read_pictures
from diffusers_ct.schedulers import make_noise_scheduler


def run(*arguments: object) -> object:
    return CliRunner().invoke(build_app(), [*map(str, arguments)], env={"COLUMNS": "200", "TERM": "dumb"})


def prepared(folder: Path, *arguments: object) -> Path:
    fractions = ("--validation-fraction", 0, "--test-fraction", 0.5)
    done = run("prepare", folder, "--dose", 0.25, *fractions, "--salt", "s", "--num-workers", 0, *arguments)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    return prepared(folder, "--phantoms", 6, "--shape", 2, 64, 64, "--spacing", 3, 6, 6)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    unet = UNet3DCTModel(
        block_out_channels=(8, 16), layers_per_block=1, downsample_strides=(1, 2, 2), refine_channels=4,
        conv_mode="2.5d", norm_num_groups=4,
    )  # fmt: skip
    torch.nn.init.normal_(unet.refine_out.weight, std=0.02)
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    CTDiffusionPipeline(unet, DDIMScheduler.from_config(make_noise_scheduler().config)).save_pretrained(folder)
    return folder


def test_the_folder_holds_a_table_with_comparisons_and_a_report(tmp_path, dataset, model):
    torch.manual_seed(0)
    make_baseline("dncnn", backbone={}).save(tmp_path / "dncnn")
    arguments = (
        "evaluate", tmp_path / "out", "--dataset", dataset, "--model", model, "--learned", tmp_path / "dncnn",
        "--samples", 3, "--sampling-steps", 2, "--sampled-scans", 2, "--tuning-scans", 2,
    )  # fmt: skip
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    rows = {row["method"]: row for row in result["rows"]}
    assert next(iter(rows)) == "low dose" and {
        "dncnn", "small, 1 step", "small, one sample", "total variation",
    } <= set(rows)  # fmt: skip

    # the low dose's own row by an independent computation
    judged = load_paired_ct(str(dataset), split="test").with_format("numpy", dtype=np.float32)
    by_patient = [10 * np.log10(4095**2 / np.mean((np.clip(r["low"], -1024, 3071) - r["full"]) ** 2)) for r in judged]
    assert rows["low dose"]["psnr_full"] == pytest.approx(np.mean(by_patient), abs=1e-3)
    assert rows["low dose"]["n_patients"] == len(by_patient) == len(set(judged["patient_key"]))

    (calibration,) = result["studies"]["calibration"]
    assert calibration["gap_samples"] == 3 and calibration["n_patients"] == 2
    assert {m["method"] for m in result["studies"]["materials"]} == {"low dose", "small, 1 step"}
    assert {c["method"] for c in result["comparisons"]} == {"small, 1 step"}
    weights = json.loads(result["facts"]["weights"])
    assert set(weights) == {"small", "dncnn"} and all(w.startswith("sha256:") for w in weights.values())
    assert result["facts"]["command"].startswith(
        "diffusers-ct evaluate OUT --dataset phantoms --model small --split test"
    )
    pictures = read_pictures(tmp_path / "out" / "worst")
    assert pictures and all(p.png.startswith(b"\x89PNG") and "Gain" in p.caption for p in pictures)
    report = (tmp_path / "out" / "report.html").read_text()
    assert "small, 1 step" in report and str(tmp_path) not in report and "http" not in report.split("<body")[1][:2000]

    # again: nothing is computed anew, the result is the same
    before = (tmp_path / "out" / "parts" / "records.jsonl").read_bytes()
    again = run(*arguments)
    assert again.exit_code == 0, again.output
    assert (tmp_path / "out" / "parts" / "records.jsonl").read_bytes() == before
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text()) == result

    # another question does not mix with it
    for other in ((*arguments[:-1], 1), (*arguments, "--seed", 1), (*arguments, "--no-classical")):
        assert "holds another evaluation" in str(run(*other).exception)
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text()) == result


def test_studies_on_phantoms_come_beside_the_table(tmp_path, model):
    dataset = prepared(tmp_path / "data", "--phantoms", 2, "--shape", 2, 160, 160, "--spacing", 2, 2, 2)
    arguments = ("--dataset", dataset, "--model", model, "--no-classical", "--phantom-studies", "smoke", "--json")
    done = run("evaluate", tmp_path / "out", *arguments, "--sampling-steps", 2)
    assert done.exit_code == 0, done.output
    studies = json.loads((tmp_path / "out" / "benchmark.json").read_text())["studies"]
    assert {"noise", "transfer", "detectability", "insertion", "materials"} <= set(studies)
    assert {row["method"] for row in studies["noise"]} == {
        "full dose", "low dose", "small, 1 step", "small, one sample",
    }  # fmt: skip
    assert json.loads(done.stdout)["studies"] == studies


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--split", "train"], "training patients judge nothing"),
        (["--split", "validation"], "'validation'"),
        (["--samples", "1"], "no spread"),
        (["--phantom-studies", "big"], "must be one of"),
        (["--phantom-studies", "smoke"], "pixels of at most 2 mm"),
    ],
)
def test_mistakes_are_told_before_any_work(tmp_path, dataset, model, arguments, says):
    done = run("evaluate", tmp_path / "out", "--dataset", dataset, "--model", model, *arguments)
    assert done.exit_code != 0 and says in str(done.exception)
    assert not (tmp_path / "out").exists()
