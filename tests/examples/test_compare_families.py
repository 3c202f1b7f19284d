"""The comparison of the model families at a very small size."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from diffusers_ct import CTDiffusionPipeline
from diffusers_ct.data.prepare import prepare_paired_ct
from diffusers_ct.models import PRESETS

PATH = Path(__file__).parents[2] / "examples" / "compare_families.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("compare_families", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["compare_families"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["compare_families"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    prepare_paired_ct(
        folder, phantoms=5, dose_fractions=(0.25,), regions=("thorax",), shape=(2, 64, 64), spacing_mm=(4.0, 6.0, 6.0),
        validation_fraction=0.2, test_fraction=0.2, seed=0, salt="a",
    )  # fmt: skip
    return str(folder)


SMALL = ("--width_scale", "0.25", "--patch_size", "2", "32", "32", "--train_batch_size", "1")


def test_all_families_train_on_the_same_steps_and_fill_one_table(example, dataset, tmp_path, capsys):
    example.main(["--dataset", dataset, "--output_dir", str(tmp_path), "--steps", "3", *SMALL])
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    assert list(comparison["models"]) == list(example.FAMILIES)
    table = (tmp_path / "comparison.md").read_text()
    assert table.strip() in capsys.readouterr().out
    gains = {row["method"]: row["gain_body_db"] for row in comparison["benchmark"]["rows"]}
    assert gains["low dose"] == 0.0
    for name, facts in comparison["models"].items():
        pipe = CTDiffusionPipeline.from_pretrained(tmp_path / name / "pipeline")
        assert sum(p.numel() for p in pipe.unet.parameters()) == facts["parameters"]
        assert pipe.unet.needs_spacing == ("transformer" in name)
        assert facts["steps"] == facts["planned_steps"] == 3 and facts["seconds_per_step"] > 0
        assert facts["validation"]["gain_db"] != 0.0 and gains[name] != 0.0  # it has learned something
        row = next(line for line in table.splitlines() if line.startswith(f"| {name} "))
        assert f" {gains[name]:.2f} " in row and f" {facts['batch_saved_bytes'] / 2**20:.0f} " in row
    assert comparison["benchmark"]["facts"]["settings"]["steps"] == 3


def test_a_budget_of_time_ends_with_it(example, dataset, tmp_path):
    minutes = 0.05
    found = example.main(
        [
            "--dataset",
            dataset,
            "--output_dir",
            str(tmp_path),
            "--minutes",
            str(minutes),
            "--models",
            "ct-unet25d-s",
            *SMALL,
        ]
    )
    facts = found["models"]["ct-unet25d-s"]
    assert facts["steps"] > 2
    assert facts["training_minutes"] < 1.5 * minutes + facts["seconds_per_step"] / 60.0


def test_scaled_presets_keep_their_form_and_widths_that_are_not_whole_are_refused(example):
    half = example.scaled(PRESETS["ct-transformer-s"], 0.5)
    assert half["block_out_channels"] == (24, 48, 72) and half["attention_head_dim"] == 24
    assert half["transformer_depth"] == PRESETS["ct-transformer-s"]["transformer_depth"]
    assert example.scaled(PRESETS["ct-unet3d-s"], 1.0) == PRESETS["ct-unet3d-s"]
    with pytest.raises(SystemExit, match="whole widths"):
        example.scaled(PRESETS["ct-unet3d-s"], 0.3)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ([], "one of the arguments --minutes --steps is required"),
        (["--steps", "2", "--minutes", "1"], "not allowed with"),
        (["--minutes", "0"], "--minutes must be positive"),
        (["--steps", "1"], "--steps must be at least 2"),
    ],
)
def test_exactly_one_budget_that_can_be_meant_is_needed(example, budget, message, capsys):
    with pytest.raises(SystemExit):
        example.parse_args(["--dataset", "d", "--output_dir", "o", *budget])
    assert message in capsys.readouterr().err
