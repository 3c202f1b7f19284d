"""The profile by kernels at a tiny size: what is counted, and that the table holds it."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusers_ct.models import PRESETS
from diffusers_ct.models.complexity import count_complexity

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("profile_network", EXAMPLES / "profile_network.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_operations_bytes_and_seconds_of_each_kernel_are_counted(example):
    conv, x = nn.Conv3d(2, 3, 3, padding=1, bias=False), torch.randn(1, 2, 4, 5, 6)
    with torch.no_grad(), example.KernelClock() as clock:
        nn.functional.silu(conv(x).view(1, 3, -1))
    named = {name: rest for name, *rest in clock.calls}
    assert named["convolution"][1] == 2 * 2 * 3 * 27 * x[0, 0].numel()
    assert named["view"][1:] == [0, 0]
    assert named["silu"][1:] == [0, 2 * 4 * 3 * x[0, 0].numel()]
    assert all(seconds >= 0.0 for _, seconds, _, _ in clock.calls)
    assert [example.kind_of(n) for n in ("convolution_backward", "silu", "addmm", "sum")] == [
        "convolution", "activation", "product", example.REST,
    ]  # fmt: skip


def test_it_writes_a_row_for_each_kind_of_kernel_and_no_prediction_of_convolutions_is_less_than_its_operations(
    example, tmp_path
):
    shape = (4, 16, 16)
    name = "ct-unet25d-fast-s"
    result = example.main(
        ["--output_dir", str(tmp_path), "--presets", name, "--shape", *map(str, shape), "--rounds", "1"]
    )
    rows = {(row["work"], row["kind"]): row for row in result["rows"]}
    products = sum(rows["forward", kind]["predicted_ms"] for kind in ("convolution", "product")) / 1e3
    counted = count_complexity(PRESETS[name], shape).forward_flops / result["facts"]["flops_per_second"]
    assert products == pytest.approx(counted)
    both, one = (rows[work, "convolution"]["predicted_ms"] for work in ("forward + backward", "forward"))
    assert 2.5 * one < both < 3.0 * one  # no convolution is done again, the sample needs no gradient
    assert json.loads((tmp_path / "profile.json").read_text()) == json.loads(json.dumps(result))
    text = (tmp_path / "profile.md").read_text()
    assert "| forward: ms (predicted) | ct-unet25d-fast-s |" in text and "| activation | " in text


def test_rounds_that_cannot_be_meant_are_refused(example, capsys):
    with pytest.raises(SystemExit):
        example.parse_args(["--output_dir", "o", "--rounds", "0"])
    assert "--rounds" in capsys.readouterr().err
