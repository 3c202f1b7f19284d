"""The benchmark of whole scans restores every slice in a process of its own and tells estimate and truth."""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import benchmark_whole_scan as benchmark


def test_the_phantom_is_the_same_whatever_is_read_of_it():
    scan = benchmark.make_scan(20, 32)
    assert np.array_equal(scan.read(9, 12), scan.read(0, 20)[9:12])
    assert 15.0 < np.std(scan.read(0, 1) - scan.read(14, 15)) / np.sqrt(2.0) < 45.0  # same anatomy, other noise


def test_a_scan_is_restored_and_the_estimate_told_beside_it(tmp_path):
    result = benchmark.main(
        ["--output_dir", str(tmp_path), "--block_out_channels", "8", "8", "8", "--norm_type", "rms", "--matrix", "32",
         "--slices", "19", "--tile_size", "12", "32", "32", "--seam_slices", "20"]
    )  # fmt: skip
    (row,) = result["rows"]
    assert row["slices"] == row["written"] == 19 and row["evaluations"] == 3
    assert row["estimated_seconds"] > 0 and 0 < row["seconds"] < row["whole_seconds"]
    # What the process says of its memory is what is seen from outside; the outside looks less often.
    assert 0.5 < max(size for _, size in row["rss"]) / row["peak_bytes"] < 1.1
    assert 0.0 < result["seams"]["largest_hu"] < 0.5 < result["seams"]["changed_rms_hu"]
    assert {p.name for p in tmp_path.iterdir()} == {"model", "whole_scan.json", "whole_scan.md", "whole_scan.png"}
    assert json.loads((tmp_path / "whole_scan.json").read_text())["rows"][0]["written"] == 19
    assert "| 19 |" in (tmp_path / "whole_scan.md").read_text()
