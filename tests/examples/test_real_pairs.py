"""The judge of real pairs on pairs made here: the folder's layout, a table for each kernel, and a model that does nothing."""

import importlib.util
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from diffusers_ct import CTDiffusionPipeline, UNet3DCTModel
from diffusers_ct.schedulers import make_noise_scheduler

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.timeout(300)
def test_a_new_network_gains_nothing_on_real_pairs(real_data, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    spec = importlib.util.spec_from_file_location("real_pairs", EXAMPLES / "real_pairs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    network = UNet3DCTModel(block_out_channels=(8, 8, 8), conv_mode="2.5d")
    CTDiffusionPipeline(network, DDIMScheduler.from_config(make_noise_scheduler().config)).save_pretrained(
        tmp_path / "p"
    )
    result = module.main(
        ["--pairs", str(real_data / "pairs"), "--model", str(tmp_path / "p"), "--output_dir", str(tmp_path / "out")]
    )
    groups = {row["group"] for row in result.rows}
    assert {"3 mm slices, D45f", "3 mm slices, B30f", "1 mm slices, B30f"} <= groups
    gains = [row["gain_body_db"] for row in result.rows if row["method"] == module.OURS]
    assert len(gains) == len(groups) and gains == pytest.approx([0.0] * len(gains), abs=1e-4)
    assert (tmp_path / "out" / "benchmark.json").exists()
