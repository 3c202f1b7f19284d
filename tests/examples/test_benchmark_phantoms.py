"""The benchmark of the phantoms prints one row for each region, and refuses nothing to measure."""

import importlib.util
from pathlib import Path

import pytest

from diffusers_ct.physics import LESION_KINDS_OF_REGION

FILE = Path(__file__).parents[2] / "examples" / "benchmark_phantoms.py"
spec = importlib.util.spec_from_file_location("benchmark_phantoms", FILE)
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)


def test_every_region_is_measured(capsys):
    benchmark.main(["--seeds", "1", "--slices", "1", "--matrix", "16"])
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row[1].strip() for row in rows] == list(LESION_KINDS_OF_REGION) == list(benchmark.FIELD_MM)
    assert all(float(row[2]) > 0 and float(row[3]) > 0 for row in rows)
    with pytest.raises(SystemExit, match="must be positive"):
        benchmark.main(["--seeds", "0"])
