"""What a user can get wrong in `train_ldct.py` is told in one line that names the flag, before any work."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from diffusers_ct import CTDiffusionPipeline
from diffusers_ct.data.prepare import prepare_paired_ct
from diffusers_ct.models.presets import preset_config

PATH = Path(__file__).parents[2] / "examples" / "train_ldct.py"
TINY = (
    "--patch_size", "2", "32", "32", "--block_out_channels", "8", "8", "8", "--max_train_steps", "2",
    "--lr_warmup_steps", "1", "--train_batch_size", "1", "--training_data", "phantoms", "--training_data_licence", "CC0",
)  # fmt: skip


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_ldct", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_ldct"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["train_ldct"]


def prepare(folder: Path, **change) -> str:
    source = {"phantoms": 4, "dose_fractions": (0.25,), "shape": (3, 48, 48), "spacing_mm": (4.0, 8.0, 8.0),
              "validation_fraction": 0.34, "test_fraction": 0.0}  # fmt: skip
    prepare_paired_ct(folder, **{**source, **change})
    return str(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    return prepare(tmp_path_factory.mktemp("data") / "phantoms")


@pytest.fixture(scope="module")
def unvalidated(tmp_path_factory) -> str:
    return prepare(tmp_path_factory.mktemp("data") / "train", validation_fraction=0.0, phantoms=1)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--lr_warmup_steps 9", "--lr_warmup_steps = 9 must be less than --max_train_steps = 2"),
        ("--patch_size 8 32 32", "the thinnest scan has 3.* Use a --patch_size with a depth of at most 3"),
        ("--patch_size 8 32 32 --online_doses 0.1 0.5", "A slab of 8 slices .* Use a smaller --patch_size"),
        ("--patch_size 2 32 64", r"--patch_size of \[32, 64\] rows and columns does not fit into the matrix of \[48, 48\]"),
        ("--patch_size 2 32 64 --online_doses 0.1 0.5", "--patch_size of .* does not fit into the matrix"),
        ("--patch_size 2 30 32", r"--patch_size must be divisible by \[1, 8, 8\]"),
        ("--patch_size 0 32 32", "--patch_size must be positive"),
        ("--noise_gain 2 1", "--noise_gain must be"),
        ("--noise_gain 1 2 --conditions dose_fraction", "--noise_gain varies the dose"),
        ("--online_doses 0.5 0.1", "--online_doses must be"),
        ("--online_doses 0.1 2", "--online_doses must lie"),
        ("--online_doses 0.1 0.5 --noise_gain 1 2", "leave out --noise_gain"),
        ("--online_doses 0.1 0.5 --patches_per_slab 0", "--patches_per_slab must be positive"),
        ("--block_out_channels 0 8 8", "--block_out_channels must be 3 positive numbers"),
        ("--preset ct-unet25d-fast-s", "--block_out_channels must be 4 positive .* level of ct-unet25d-fast-s"),
        ("--preset ct-unet25d-fast-s --block_out_channels 8 8 8 8", r"--patch_size must be divisible by \[4, 16, 16\]"),
        ("--conditions kernel", "None of the 3 scans says anything of `kernel`"),
        ("--dataset ./typo", "There is no folder ./typo: make it with `diffusers-ct prepare`"),
        ("--matrix 40 40", r"no scan with a matrix of \(40, 40\)"),
        ("--resume_from_checkpoint typo", r"typo is not a finished checkpoint \(--resume_from_checkpoint\)"),
        ("--lr_scheduler cosine_warm_restarts --lr_num_cycles 5", "--lr_num_cycles = 5 .* do not fit"),
        ("--report_to abacus", "--report_to must be none"),
        ("--push_to_hub", "--push_to_hub needs --hub_model_id"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_flag_before_any_work(example, dataset, tmp_path, capsys, flags, words):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        example.main(["--dataset", dataset, "--output_dir", str(out), *TINY, *flags.split()])
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith("error: ") and not out.exists()
    assert re.search(words, line), line


def test_what_the_parser_refuses_is_told_without_all_flags(example, capsys):
    with pytest.raises(SystemExit) as stop:
        example.main(["--learning_rate", "abc"])
    usage, message = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and "--learning_rate: invalid float value" in message and usage.startswith("usage: ")


def test_without_validation_patients_it_warns_and_trains(example, unvalidated, tmp_path, capsys):
    arguments = ["--dataset", unvalidated, "--output_dir", str(tmp_path), *TINY]
    example.main([*arguments, "--validation_steps", "1"])
    said = capsys.readouterr()
    assert "has no validation patients; nothing is validated, though --validation_steps asks for it." in said.err
    assert "validation:" not in said.out
    with pytest.raises(SystemExit):
        example.main([*arguments, "--push_to_hub", "--hub_model_id", "a/b"])
    assert "--push_to_hub needs validation patients" in capsys.readouterr().err


def test_a_condition_other_than_the_dose_can_be_told(example, dataset, tmp_path):
    arguments = ["--dataset", dataset, "--output_dir", str(tmp_path), *TINY, "--gradient_checkpointing"]
    example.main([*arguments, "--conditions", "slice_thickness_mm"])
    encoder = CTDiffusionPipeline.from_pretrained(tmp_path / "pipeline").condition_encoder
    assert tuple(encoder.encoders) == ("slice_thickness_mm",)


def test_a_preset_is_trained_and_its_widths_can_be_changed(example, tmp_path):
    data = prepare(tmp_path / "data", shape=(4, 48, 48))
    fast = [
        "--preset", "ct-unet25d-fast-s", "--block_out_channels", "8", "8", "8", "16", "--conv_mode", "3d",
        "--patch_size", "4", "32", "32",
    ]  # fmt: skip
    example.main(["--dataset", data, "--output_dir", str(tmp_path / "out"), *TINY, *fast])
    made = CTDiffusionPipeline.from_pretrained(tmp_path / "out" / "pipeline").unet.config
    asked = preset_config("ct-unet25d-fast-s") | {"block_out_channels": [8, 8, 8, 16], "conv_mode": "3d"}
    for name, value in asked.items():
        assert made[name] == (list(value) if isinstance(value, tuple) else value), name
