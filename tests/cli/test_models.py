"""`diffusers-ct models`."""

import json

import pytest
from typer.testing import CliRunner

from diffusers_ct.cli import build_app
from diffusers_ct.models import PRESETS, UNet3DCTModel


def run(*arguments: object) -> str:
    result = CliRunner().invoke(build_app(), ["models", *map(str, arguments)], env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_table_has_a_row_for_each_preset_and_states_the_input():
    text = run("--shape", 4, 64, 64)
    assert "1 x 4 x 64 x 64 in float32" in text
    for name in PRESETS:
        assert f" {name} " in text


def test_json_counts_the_stated_input_and_its_configuration_makes_the_model():
    small = json.loads(run("ct-unet3d-s", "--json", "--shape", 2, 64, 64))
    large = json.loads(run("ct-unet3d-s", "--json", "--shape", 4, 64, 64))
    assert small["input_shape"] == [1, 2, 64, 64]
    (a,), (b,) = small["models"], large["models"]
    assert b["forward_flops"] == pytest.approx(2 * a["forward_flops"], rel=1e-3)
    model = UNet3DCTModel(**a["config"])
    assert sum(p.numel() for p in model.parameters()) == a["parameters"]


def test_one_preset_shows_its_configuration():
    text = run("ct-transformer-s", "--shape", 1, 32, 32)
    assert "transformer_depth = (0, 0, 2)" in text and "ct-unet3d-s" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ct-transfomer-s"], "nearest first: ct-transformer-s"),
        (["--shape", "2", "30", "32"], "divisible by"),
        (["--shape", "0", "32", "32"], "three positive numbers"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CliRunner().invoke(build_app(), ["models", *arguments], catch_exceptions=False)
