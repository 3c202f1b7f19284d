"""The benchmark of the simulation runs, and measures what it says."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import benchmark_dose_simulation as benchmark

from diffusers_ct.hounsfield import hu_to_mu_per_mm
from diffusers_ct.physics import ParallelBeam, Projector, ReconstructionKernel


def test_table_and_json(tmp_path, monkeypatch, capsys):
    target = tmp_path / "result.json"
    arguments = ["--size", "48", "--slices", "2", "--rounds", "1", "--threads", "1", "--json", str(target)]
    monkeypatch.setattr(sys, "argv", ["benchmark_dose_simulation.py", *arguments])
    before = torch.get_num_threads()
    try:
        benchmark.main()
    finally:
        torch.set_num_threads(before)
    rows = json.loads(target.read_text())["rows"]
    assert {"simulate_low_dose", "scikit-image: projection and FBP"} <= set(rows)
    assert all(row["wall_s_a_slice"] > 0 and row["cpu_s_a_slice"] >= 0 for row in rows.values())
    assert "slices / s" in capsys.readouterr().out


def test_scikit_image_does_the_same_work():
    geometry = ParallelBeam.for_image((64, 64), 400 / 64)
    image = benchmark.make_slices(1, 64, 400 / 64)
    mu = hu_to_mu_per_mm(image)
    theirs = benchmark.scikit_image(mu, geometry)()[0]
    margin = (geometry.bins - 64) // 2
    theirs = theirs[margin : margin + 64, margin : margin + 64]
    projector = Projector(geometry)
    window = ReconstructionKernel(0.5 / geometry.pixel_mm)  # Hann up to the Nyquist frequency of its bins
    ours = projector.fbp(projector.forward(torch.from_numpy(mu)), window).numpy()[0]
    assert np.corrcoef(theirs.ravel(), ours.ravel())[0, 1] == pytest.approx(1.0, abs=0.01)
