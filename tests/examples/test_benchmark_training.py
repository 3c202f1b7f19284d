"""The benchmark of training parts a step rightly: who waits for whom."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import benchmark_training as benchmark


class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        time.sleep(0.02)
        return {"item": torch.tensor(index)}


@pytest.mark.parametrize(("workers", "learning_s", "least", "most"), [(0, 0.0, 0.9, 1.0), (0, 0.04, 0.2, 0.65)])
def test_a_slow_dataset_is_waited_for(workers, learning_s, least, most):
    def learn(batch, seeds):
        assert batch["item"].tolist() == seeds.tolist()
        time.sleep(learning_s)

    seconds = benchmark.measure(Slow(), 2, workers, learn, None, torch.device("cpu"), steps=4)
    total = sum(seconds.values())
    assert seconds["simulating"] == 0.0 and total > 4 * (0.04 + learning_s)
    assert least <= seconds["waiting"] / total <= most


def test_both_ways_of_data_are_measured(tmp_path, capsys):
    found = benchmark.main(
        ["--matrix", "64", "--depth", "2", "--patch", "16", "--patches", "4", "--patches_per_slab", "2", "--steps", "2",
         "--block_out_channels", "8", "8", "8", "--workers", "0", "1", "--output_json", str(tmp_path / "rates.json")]
    )  # fmt: skip
    assert [(row["data"], row["workers"]) for row in found] == [
        ("prepared", 0), ("online", 0), ("prepared", 1), ("online", 1),
    ]  # fmt: skip
    for row in found:
        assert row["samples_per_s"] > 0 and sum(row["shares"].values()) == pytest.approx(1.0)
        assert (row["shares"]["simulating"] > 0) == (row["data"] == "online")
        assert min(row["shares"]["waiting"], row["shares"]["learning"]) > 0
    assert capsys.readouterr().out.count("| online |") == 2
    assert json.loads((tmp_path / "rates.json").read_text())["rows"] == found
    with pytest.raises(SystemExit):
        benchmark.parse_args(["--patches", "9"])
