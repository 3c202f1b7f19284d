"""The Ray recipe on two local workers: every scan once, a failing one named, a second run makes nothing anew."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from diffusers_ct import CTDiffusionPipeline, CTVolume, UNet3DCTModel, read_volume, write_volume
from diffusers_ct.schedulers import make_noise_scheduler

ROOT = Path(__file__).parents[2]
pytest.importorskip("ray", reason="the Ray recipe needs ray[data]")


@pytest.mark.timeout(900)
def test_two_workers_restore_a_folder(tmp_path):
    torch.manual_seed(0)
    unet = UNet3DCTModel(
        block_out_channels=(4, 8), layers_per_block=1, conv_mode="2.5d", patch_size=(1, 4, 4), refine_channels=0,
        downsample_strides=(1, 2, 2), norm_num_groups=2,
    )  # fmt: skip
    torch.nn.init.normal_(unet.head.weight, std=0.1)
    model, studies, out = tmp_path / "model", tmp_path / "studies", tmp_path / "out"
    CTDiffusionPipeline(unet, DDIMScheduler.from_config(make_noise_scheduler().config)).save_pretrained(model)
    studies.mkdir()
    for number in range(3):
        hu = np.random.default_rng(number).normal(40.0, 25.0, (2, 16, 16)).astype(np.float32)
        hu[:, :4] = -1000.0
        write_volume(CTVolume.from_array(hu, (2.0, 0.8, 0.8)), studies / f"scan{number}.mha")
    (studies / "broken.mha").write_text("this is no scan")
    command = [
        sys.executable, ROOT / "examples" / "restore_with_ray.py", "--list", studies, "--output_dir", out, "--model", model,
        "--workers", 2, "--format", "mha", "--cpus", 0.5,
    ]  # fmt: skip
    # Ray makes its workers as nice as can be: on a busy machine they would not run at all.
    environment = {
        **os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip

    def run() -> tuple[int, str, dict]:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600, env=environment)
        assert (out / "summary.json").exists(), done.stderr[-3000:]
        return done.returncode, done.stdout, json.loads((out / "summary.json").read_text())

    status, stdout, summary = run()
    assert status == 1 and summary["slices"] == 6 and list(summary["failed"]) == ["broken"]
    assert "3 of 4 scans are there" in stdout
    assert sorted(path.stem for path in out.glob("*.mha")) == [f"scan{number}" for number in range(3)]
    assert read_volume(out / "scan2.mha").shape == (2, 16, 16)
    (studies / "broken.mha").unlink()
    status, _, summary = run()
    assert (status, summary["slices"], summary["failed"]) == (0, 0, {})
