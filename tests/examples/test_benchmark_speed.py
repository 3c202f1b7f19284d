"""The speed benchmark at a tiny size, without the peers that are not dependencies of the package."""

import importlib.util
import json
import statistics
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusers_ct.models import PRESETS
from diffusers_ct.models.complexity import count_complexity

EXAMPLES = Path(__file__).parents[2] / "examples"
PRESET, SHAPE = "ct-unet3d-s", (8, 16, 16)


@pytest.fixture(scope="module")
def example():
    sys.path.insert(0, str(EXAMPLES))
    spec = importlib.util.spec_from_file_location("benchmark_speed", EXAMPLES / "benchmark_speed.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_speed"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(EXAMPLES))
    del sys.modules["benchmark_speed"], sys.modules["speed_peers"]


@pytest.fixture(scope="module")
def run(example, tmp_path_factory):
    """The result without the optional peers, be they installed or not, and its folder."""
    out = tmp_path_factory.mktemp("speed")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("monai", "video_diffusion_pytorch"):
            patch.setitem(sys.modules, name, None)
        result = example.main(
            ["--output_dir", str(out), "--preset", PRESET, "--shape", *map(str, SHAPE), "--rounds", "2"]
        )
    return result, out


def test_missing_peers_are_skipped_and_named(run):
    result, out = run
    assert [row["name"] for row in result["rows"]] == [
        PRESET,
        "ct-unet25d-fast-s",
        "diffusers UNet3DConditionModel",
    ]
    assert set(result["skipped"]) == {"MONAI", "lucidrains"}
    text = (out / "speed.md").read_text()
    assert "Not measured: MONAI (" in text and "Not measured: lucidrains (" in text
    assert "torchvision" not in sys.modules or not hasattr(sys.modules["torchvision"], "assert_called")


def test_networks_have_the_same_number_of_parameters_within_five_percent(run):
    result, _ = run
    counted = count_complexity(PRESETS[PRESET], SHAPE)
    own = result["rows"][0]
    assert (own["parameters"], own["forward_flops"]) == (counted.parameters, counted.forward_flops)
    for row in result["rows"]:
        assert row["parameters"] == pytest.approx(own["parameters"], rel=0.05)


def test_each_is_judged_in_its_fastest_setting_by_ratios_of_the_same_rounds(run):
    result, _ = run
    for row in result["rows"]:
        of_it = [s for s in result["settings"] if s["name"] == row["name"]]
        assert {s["setting"] for s in of_it} == {"float32", "bfloat16", "bfloat16, channels last"}
        for work in ("forward", "training"):
            medians = {s["setting"]: statistics.median(s[f"{work}_seconds"]) for s in of_it}
            assert len(of_it[0][f"{work}_seconds"]) == 2 and min(medians.values()) > 0
            assert row[f"{work}_seconds"] == min(medians.values()) == medians[row[f"{work}_setting"]]
        assert 0.0 < row["share_of_matmul_peak"] < 1.5 and row["restoration_seconds"] > 0
        assert row["training_bytes"] > row["forward_bytes"] > 2 * row["parameters"]
    own, fast, _ = result["rows"]
    for work in ("forward", "training", "restoration"):
        assert own[f"{work}_ratio"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert fast["forward_flops"] < own["forward_flops"]
    assert fast["training_bytes_ratio"] == fast["training_bytes"] / own["training_bytes"]


def test_table_file_and_plot_hold_the_result(run):
    result, out = run
    assert (
        json.loads((out / "speed.json").read_text())["rows"][0]["forward_seconds"]
        == (result["rows"][0]["forward_seconds"])
    )
    text = (out / "speed.md").read_text()
    for row in result["rows"]:
        assert f"| {row['name']} | {row['parameters'] / 1e6:.2f} | {row['forward_flops'] / 1e9:.1f} |" in text
    assert (out / "speed.png").stat().st_size > 10_000


def test_ratios_are_of_the_same_round(example):
    assert example.ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_a_peer_gets_one_time_for_each_sample_and_gives_what_its_network_does(example):
    seen = []

    def call(network, sample, timesteps):
        seen.append(timesteps)
        return network(sample[:, :1])

    network = nn.Conv3d(1, 1, 1)
    peer = sys.modules["speed_peers"].Peer(network, call)
    sample = torch.randn(2, 6, 4, 4, 4)
    told = {"pooled": torch.zeros(2, 3), "spacing_mm": torch.ones(2, 3)}
    out = peer(sample, 7.0, **told).sample
    assert seen[0].tolist() == [7.0, 7.0] and torch.equal(out, network(sample[:, :1]))
    assert torch.equal(peer(sample, 7.0, **told, return_dict=False)[0], out)
    assert peer.config["in_channels"] == 6 and peer.dtype == torch.float32


def test_widths_that_cannot_match_are_refused(example):
    with pytest.raises(SystemExit, match="No widths of toy give 100,000 parameters within 5%"):
        sys.modules["speed_peers"].matched_widths("toy", lambda widths: nn.Linear(widths[0], 1), 100_000)


@pytest.mark.parametrize(("flag", "values"), [("--shape", ["8", "24", "16"]), ("--rounds", ["0"])])
def test_settings_that_cannot_be_meant_are_refused(example, flag, values, capsys):
    with pytest.raises(SystemExit):
        example.parse_args(["--output_dir", "o", flag, *values])
    assert "multiples of 8, 16 and 16" in capsys.readouterr().err
