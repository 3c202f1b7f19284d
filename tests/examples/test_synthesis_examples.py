"""Synthesis from training to the table of its evaluation, at a very small size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_ct import CTDiffusionPipeline, NoiseAwareClassifier, ScanConditions
from diffusers_ct.cli.checkpoints import fingerprint
from diffusers_ct.data.volumes import REGIONS
from diffusers_ct.hub import read_pictures, render_synthesis_card
from diffusers_ct.physics import CONTRAST_PHASES, LESION_KINDS_OF_REGION

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

import classifier_guidance  # noqa: E402
import evaluate_synthesis  # noqa: E402
import train_synthesis  # noqa: E402

SIZE = ("--shape", 2, 32, 40, "--spacing", 12, 11, 11, "--lesion_radius", 16, 22)
TINY = (
    "--block_out_channels", 8, 16, "--transformer_depth", 0, 1, "--attention_head_dim", 8, "--max_train_steps", 3,
    "--lr_warmup_steps", 1, "--train_batch_size", 2, "--checkpointing_steps", 2,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    before = os.environ.get("ACCELERATE_USE_CPU")
    os.environ["ACCELERATE_USE_CPU"] = "1"
    yield
    os.environ.pop("ACCELERATE_USE_CPU")
    if before is not None:
        os.environ["ACCELERATE_USE_CPU"] = before


@pytest.fixture(scope="module")
def in_this_process():
    """Phantoms drawn without worker processes, which would import torch for seconds each."""
    patch = pytest.MonkeyPatch()
    for module in (train_synthesis, evaluate_synthesis, classifier_guidance):
        original = module.phantom_volumes
        patch.setattr(module, "phantom_volumes", lambda *a, original=original, **k: original(*a, **k, processes=1))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def model(tmp_path_factory, in_this_process) -> Path:
    out = tmp_path_factory.mktemp("synthesis") / "model"
    train_synthesis.main([str(a) for a in ("--phantoms", 24, "--output_dir", out, *SIZE, *TINY)])
    return out


def test_training_on_phantoms_leaves_a_pipeline_that_knows_its_conditions(model):
    pipe = CTDiffusionPipeline.from_pretrained(model / "pipeline")
    assert pipe.config.target == "image" and pipe.image_kinds == ("context",)
    assert pipe.contract.volume_shape == (2, 32, 40) and pipe.contract.training_data == "24 diffusers-ct phantoms"
    assert pipe.contract.slice_spacing_mm == pytest.approx((10.8, 13.2))
    known = pipe.condition_encoder.config
    assert tuple(known.conditions) == train_synthesis.PHANTOM_CONDITIONS
    assert tuple(known.body_parts) == ("ABDOMEN", "THORAX") and set(known.contrast_phases) == set(CONTRAST_PHASES)
    lines = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    assert any(0 < line["val/loss"] < 10 for line in lines if "val/loss" in line)
    made = pipe(
        conditions=ScanConditions(body_part="THORAX"), spacing_mm=(12.0, 11.0, 11.0), num_inference_steps=2
    ).volumes[0]
    assert made.shape == (2, 32, 40) and np.isfinite(made.hu).all()


def test_evaluation_leaves_a_table_and_pictures(model, tmp_path, capsys):
    arguments = (
        "--model", model / "pipeline", "--output_dir", tmp_path, "--samples", 6, "--guidance", 1, 2, "--steps", 2,
        "--judge_phantoms", 12, "--held_out_phantoms", 6, "--judge_epochs", 1, "--lesion_radius", 16, 22,
    )  # fmt: skip
    evaluate_synthesis.main([str(a) for a in arguments])
    table = (tmp_path / "synthesis.md").read_text()
    assert table in capsys.readouterr().out
    for text in ("real phantoms, held out", "synthesised, guidance 1 ", "synthesised, guidance 2 ", "280"):
        assert text in table
    rows = json.loads((tmp_path / "synthesis.json").read_text())["rows"]
    assert [row["volumes"] for row in rows] == [6, 6, 6] and rows[1]["seconds_per_volume"] > 0
    for row in rows:
        assert 0 <= row["body_part_95"][0] <= row["body_part"] <= row["body_part_95"][1] <= 1
    pictures = sorted(tmp_path.glob("grid_*.png"))
    findings = CTDiffusionPipeline.from_pretrained(model / "pipeline").condition_encoder.config.findings
    kinds = sum(kind in findings for region in REGIONS for kind in LESION_KINDS_OF_REGION[region])
    assert len(pictures) == 1 + len(REGIONS) + kinds
    phases = tmp_path / "grid_contrast_phase_thorax.png"
    assert Image.open(phases).size == (4 * 4 * 40, 4 * 3 * 32)
    shown = read_pictures(tmp_path)
    assert len(shown) == len(pictures) and "Rows from above: none, arterial, portal." in "".join(
        p.caption for p in shown
    )
    found = json.loads((tmp_path / "synthesis.json").read_text())
    assert str(model) not in json.dumps(found) and found["weights"] == fingerprint(model / "pipeline")
    card = render_synthesis_card(
        CTDiffusionPipeline.from_pretrained(model / "pipeline"), repo_id="user/model", licence="apache-2.0", evaluation=found,
        command=found["command"], training_config={"seed": 0}, limits=["Drawn."], pictures=shown,
    )  # fmt: skip
    assert table.strip() in card and "--guidance 1 2 --steps 2" in card


def test_training_on_a_prepared_dataset(tmp_path):
    command = (
        "-c", "from diffusers_ct.cli import main; main()", "prepare", tmp_path / "data", "--phantoms", 4, "--dose", 0.1,
        "--region", "thorax", "--shape", 3, 32, 40, "--spacing", 4, 12, 12, "--validation-fraction", 0.25,
    )  # fmt: skip
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, cwd=ROOT, timeout=280)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "model"
    arguments = (
        "--dataset", tmp_path / "data", "--output_dir", out, "--training_data", "4 phantoms",
        "--training_data_licence", "CC0", "--conditions", "kvp", "spacing_mm", "contrast_phase", "--shape", 2, 32, 32, *TINY,
    )  # fmt: skip
    train_synthesis.main([str(a) for a in arguments])
    pipe = CTDiffusionPipeline.from_pretrained(out / "pipeline")
    assert pipe.contract.training_data == "4 phantoms" and pipe.contract.training_data_licence == "CC0"
    assert tuple(pipe.condition_encoder.config.conditions) == ("kvp", "spacing_mm", "contrast_phase")
    with pytest.raises(SystemExit, match="trained without body_part, findings"):
        evaluate_synthesis.main(["--model", str(out / "pipeline"), "--output_dir", str(tmp_path / "e")])


def test_combinations_that_cannot_be_meant_are_refused_before_any_work(tmp_path):
    out = ("--output_dir", str(tmp_path / "none"))
    for flags, message in (
        (("--phantoms", "4", "--dataset", "x"), "exactly one"),
        ((), "exactly one"),
        (("--dataset", "x"), "--training_data"),
        (("--phantoms", "4", "--push_to_hub", "--hub_model_id", "a/b"), "pushed when it is judged"),
    ):
        with pytest.raises(SystemExit, match=message):
            train_synthesis.main([*flags, *out])
    with pytest.raises(SystemExit, match="--samples must be 6"):
        evaluate_synthesis.main(["--model", "none", "--samples", "5", *out])
    assert not (tmp_path / "none").exists()


def test_a_classifier_joins_the_pipeline_and_changes_what_is_made(model, tmp_path):
    findings = CTDiffusionPipeline.from_pretrained(model / "pipeline").condition_encoder.config.findings
    torch.manual_seed(0)
    classifier = NoiseAwareClassifier(findings=findings, block_out_channels=(8, 8), downsample_strides=(1, 2, 2))
    classifier.save_pretrained(tmp_path / "classifier")
    arguments = (
        "--model", model / "pipeline", "--classifier", tmp_path / "classifier", "--output_dir", tmp_path / "out",
        "--samples", 6, "--steps", 2, "--interval", 0, 0.9, "--classifier_scales", 0, 50, "--judge_phantoms", 12,
        "--judge_epochs", 1, "--lesion_radius", 16, 22,
    )  # fmt: skip
    made = []
    original = classifier_guidance.judge_row
    patch = pytest.MonkeyPatch()
    patch.setattr(classifier_guidance, "judge_row", lambda *a: made.append(a[2]) or original(*a))
    with patch.context():
        classifier_guidance.main([str(a) for a in arguments])
    patch.undo()
    assert CTDiffusionPipeline.from_pretrained(tmp_path / "out" / "pipeline").classifier.heads == ("findings",)
    rows = json.loads((tmp_path / "out" / "classifier_guidance.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["CFG 1, classifier 0", "CFG 1, classifier 50", "CFG 2, classifier 50"]
    assert np.abs(made[0][0].hu - made[1][0].hu).max() > 0.0
