"""Training of the learned baselines at a very small size, in one process."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffusers_ct.data.prepare import prepare_paired_ct
from diffusers_ct.evaluation.learned_baselines import LEARNED_BASELINES, load_baseline, make_baseline

PATH = Path(__file__).parents[2] / "examples" / "train_baselines.py"
TINY = (
    "--patch_size", "1", "32", "32", "--block_out_channels", "8", "8", "8", "--max_train_steps", "3",
    "--lr_warmup_steps", "1", "--train_batch_size", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_baselines", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_baselines"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["train_baselines"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    prepare_paired_ct(
        folder, phantoms=4, dose_fractions=(0.25,), regions=("thorax",), shape=(2, 48, 48), spacing_mm=(4.0, 8.0, 8.0),
        validation_fraction=0.25, test_fraction=0.25, seed=0, salt="a",
    )  # fmt: skip
    return str(folder)


def test_all_train_with_the_same_settings_and_are_judged(example, dataset, tmp_path, capsys):
    arguments = ["--dataset", dataset, "--output_dir", str(tmp_path), "--evaluate", "validation", *TINY]
    summary = example.main(arguments)
    printed = capsys.readouterr().out
    assert json.loads((tmp_path / "baselines.json").read_text()) == summary
    assert list(summary["baselines"]) == list(LEARNED_BASELINES)
    gains = {row["method"]: row["gain_body_db"] for row in summary["benchmark"]["rows"]}
    backbone = {"block_out_channels": [8, 8, 8], "conv_mode": "2.5d"}
    configs = []
    for name, facts in summary["baselines"].items():
        assert facts["steps"] == 3 and facts["loss"] > 0.0 and f"| {name} |" in printed
        loaded = load_baseline(tmp_path / name / "baseline")
        assert facts["num_parameters"] == loaded.num_parameters
        torch.manual_seed(0)
        fresh = make_baseline(name, backbone=backbone).network.state_dict()
        weights = load_file(tmp_path / name / "baseline" / "model.safetensors")
        assert any(not torch.equal(weights[key], fresh[key]) for key in weights)  # it has been trained
        assert gains[name] != 0.0
        configs.append(json.loads((tmp_path / name / "training_config.json").read_text()))
    assert len({json.dumps({**config, "output_dir": ""}) for config in configs}) == 1


def test_the_backbone_is_that_of_a_preset(example, dataset, tmp_path):
    flags = ["--baselines", "mse-twin", "--preset", "ct-unet3d-s"]
    example.main(["--dataset", dataset, "--output_dir", str(tmp_path), *TINY, *flags])
    made = load_baseline(tmp_path / "mse-twin" / "baseline").network.config
    assert made["conv_mode"] == "3d" and list(made["block_out_channels"]) == [8, 8, 8]


def test_what_cannot_be_meant_is_refused_before_any_work(example, dataset, tmp_path):
    out = tmp_path / "none"
    for flags, message in (
        (("--push_to_hub", "--hub_model_id", "a/b"), "not pushed"),
        (("--gradient_checkpointing",), "RED-CNN and DnCNN"),
    ):
        with pytest.raises(SystemExit, match=message):
            example.main(["--dataset", dataset, "--output_dir", str(out), *flags, *TINY])
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--lr_warmup_steps", "9"), "--lr_warmup_steps = 9 must be less than --max_train_steps = 3"),
        (("--patch_size", "9", "32", "32"), "Use a --patch_size with a depth of at most 2"),
        (("--dataset", "./typo"), "There is no folder ./typo"),
        (
            ("--block_out_channels", "8", "8", "8", "16", "--preset", "ct-unet25d-fast-s"),
            "--patch_size must be divisible",
        ),
        (("--preset", "ct-unet25d-fast-s"), "--block_out_channels must be 4 positive numbers"),
        (("--evaluate", "test", "--dataset", "{no test}"), "The split 'test' of"),
    ],
)
def test_a_mistake_is_one_line_with_its_flag(example, dataset, tmp_path, capsys, flags, words):
    if "{no test}" in flags:
        prepare_paired_ct(
            tmp_path / "few", phantoms=1, dose_fractions=(0.25,), shape=(2, 48, 48), spacing_mm=(4.0, 8.0, 8.0)
        )
        flags = [flag.replace("{no test}", str(tmp_path / "few")) for flag in flags]
    with pytest.raises(SystemExit) as stop:
        example.main(["--dataset", dataset, "--output_dir", str(tmp_path / "out"), *TINY, *flags])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith("error: ") and words in line
    assert not (tmp_path / "out").exists()
