"""The comparison with MONAI's network: equal time in turns, a stop that changes nothing, the table."""

import importlib.util
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from diffusers_ct import UNet3DCTModel

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = {"block_out_channels": (8,), "downsample_strides": (), "layers_per_block": 1, "refine_channels": 2}


@pytest.fixture(scope="module")
def example():
    before = set(sys.modules)
    sys.path.insert(0, str(EXAMPLES))
    spec = importlib.util.spec_from_file_location("compare_with_monai", EXAMPLES / "compare_with_monai.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["compare_with_monai"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(EXAMPLES))
    for name in {"compare_with_monai", "speed_peers", "benchmark_quality"} - before:
        sys.modules.pop(name, None)


class Patches:
    """Items by number alone, as of `PatchDataset`."""

    def __init__(self):
        self.seen = []

    def __getitem__(self, number):
        self.seen.append(number)
        g = torch.Generator().manual_seed(number)
        full, noise = torch.randn(1, 2, 8, 8, generator=g) * 100.0, torch.randn(1, 2, 8, 8, generator=g) * 20.0
        noise_hu, spacing_mm = torch.full((2,), 20.0), torch.tensor([2.0, 1.0, 1.0])
        return {"low_hu": full + noise, "full_hu": full, "noise_hu": noise_hu, "spacing_mm": spacing_mm}


@pytest.fixture
def trainee(example, tmp_path, monkeypatch):
    """Makes a network in training whose steps take a second each."""
    ticks = itertools.count()
    monkeypatch.setattr(example.time, "process_time", lambda: float(next(ticks)))

    def make(name):
        return example.Trainee(name, lambda: UNet3DCTModel(**TINY), 0, 1e-2, tmp_path / f"{name}.pt")

    return make


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts another clock there")
def test_a_stopped_training_goes_on_where_it_stopped(example, trainee):
    first, patches, budget = trainee("a"), Patches(), example.Budget(4.0, None)
    begun = [p.detach().clone() for p in first.network.parameters()]
    first.train(patches, 2, 0.5, budget)
    assert (first.steps, first.seconds) == (2, 2.0) and patches.seen == [0, 1, 2, 3]
    assert max(float((p.detach() - b).abs().max()) for p, b in zip(first.network.parameters(), begun)) > 1e-3

    again, patches = trainee("a"), Patches()
    assert (again.steps, again.seconds) == (2, 2.0)
    for part in ("network", "optimizer", "average"):
        old, new = (tree_leaves(getattr(of, part).state_dict()) for of in (first, again))
        assert len(old) == len(new) > 10
        assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(old, new))
    again.train(patches, 2, 1.0, budget)
    assert (again.steps, again.seconds) == (4, 4.0) and patches.seen == [4, 5, 6, 7]
    # Its last step began after three quarters of the time, where a cosine is at (1 - 2^-1/2) / 2.
    assert again.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * (1.0 - 0.5**0.5) / 2.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts another clock there")
def test_with_equal_steps_time_does_not_count(example, trainee):
    budget, first, patches = example.Budget(1.0, 6), trainee("a"), Patches()
    first.train(patches, 1, 0.5, budget)
    assert first.steps == 3 and budget.spent(first) == 0.5
    first.train(patches, 1, 1.0, budget)
    assert first.steps == 6
    assert (str(budget), str(example.Budget(90.0, None))) == ("6 steps", "1.5 min")


def test_a_training_that_diverges_ends_with_an_error(example, trainee):
    class Infinite(Patches):
        def __getitem__(self, number):
            return super().__getitem__(number) | {"full_hu": torch.full((1, 2, 8, 8), torch.inf)}

    with pytest.raises(RuntimeError, match="non-finite"):
        trainee("a").train(Infinite(), 1, 1.0, example.Budget(4.0, None))


def test_the_peer_has_its_weights_and_results_after_it_was_mended(example):
    torch.manual_seed(0)
    peer = torch.nn.Sequential(torch.nn.Conv3d(2, 3, 3, padding=1), torch.nn.Conv3d(3, 3, 3, stride=2, padding=1))
    given = torch.randn(1, 2, 2, 4, 4)
    before, state = peer(given), {key: value.clone() for key, value in peer.state_dict().items()}
    mended = example.learning_from_two_slices(peer)
    assert [type(m).__name__ for m in mended] == ["ThinConv3d", "Conv3d"]
    assert torch.equal(mended(given), before)
    assert all(torch.equal(value, state[key]) for key, value in mended.state_dict().items())


def test_presets_are_compared_alone_without_monai(example, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "monai", None)
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    assert list(example.networks(("ct-unet25d-fast-s", "ct-unet3d-s"), 0.5)) == ["ct-unet25d-fast-s", "ct-unet3d-s"]
    assert "Without MONAI" in capsys.readouterr().out
    with torch.device("meta"):
        assert example.networks(("ct-unet3d-s",), 0.5)["ct-unet3d-s"]().config["block_out_channels"] == [16, 32, 48]


def test_the_table_holds_means_over_seeds_and_says_what_could_not_be_measured(example):
    size = example.asdict(example.SIZES["smoke"])
    facts = {"size": size, "budget": "2 min", "seeds": [0, 1], "learning_rate": 1e-3, "threads": 1}
    runs = [
        {"network": "a", "seed": seed, "parameters": 1_500_000, "steps": 10 * seed, "seconds": 120.0, "rmse_body_hu, dose 25 %": 20.0 + seed,
         "f50_per_mm, rod": None}
        for seed in (0, 1)
    ]  # fmt: skip
    text = example.markdown({"facts": facts, "runs": runs})
    assert "| a | 1.50 | 5 | 120 | 20.50 | – |" in text and "RMSE body HU, dose 25 %" in text


def test_a_dose_is_found_though_rows_hold_it_in_float32(example):
    cases = [SimpleNamespace(dose_fraction=float(np.float32(dose))) for dose in (0.25, 0.1, 0.05, 0.1)]
    assert example.of_dose(cases, 0.1) == [cases[1], cases[3]]
    assert all(example.of_dose(cases, dose) for dose in example.JUDGED_DOSES)


def test_minutes_that_cannot_be_meant_are_refused(example, capsys):
    with pytest.raises(SystemExit):
        example.parse_args(["--output_dir", "o", "--size", "smoke", "--minutes", "0"])
    assert "--minutes" in capsys.readouterr().err


@pytest.mark.slow
def test_it_runs_from_phantoms_to_the_table_and_is_done_when_called_again(example, tmp_path):
    arguments = ["--output_dir", str(tmp_path), "--size", "smoke", "--presets", "ct-unet25d-fast-s"]
    result = example.main(arguments)
    own = next(run for run in result["runs"] if run["network"] == "ct-unet25d-fast-s")
    assert own["steps"] >= 1 and own["seconds"] >= 0.3 and any(key.startswith("rmse_body_hu") for key in own)
    assert json.loads((tmp_path / "monai.json").read_text()) == json.loads(json.dumps(result))
    assert example.main(arguments)["runs"][0]["steps"] == own["steps"]
