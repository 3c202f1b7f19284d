"""The configs in examples/accelerate_configs are read by accelerate; the CPU one trains as one process does.

`tests/cli/test_restore_many.py` restores with it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from diffusers_ct.data.prepare import prepare_paired_ct
from diffusers_ct.models import UNet3DCTModel

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "examples" / "accelerate_configs"
KINDS = {
    "cpu_two_processes": DistributedType.MULTI_GPU,
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_every_config_and_the_untested_say_so(path):
    config = load_config_from_file(str(path))
    assert config.distributed_type == KINDS[path.stem] and config.num_processes > 1
    assert ("UNTESTED" in path.read_text()) == (path.stem != "cpu_two_processes")
    if path.stem == "fsdp2":
        wrapped = config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(",")
        assert wrapped == UNet3DCTModel._no_split_modules


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_launched_processes_train_the_weights_of_one(tmp_path):
    data = tmp_path / "data"
    prepare_paired_ct(
        data, phantoms=3, dose_fractions=(0.25,), shape=(2, 48, 48), spacing_mm=(4.0, 8.0, 8.0), validation_fraction=0.34,
        test_fraction=0.0,
    )  # fmt: skip
    # No word of a CPU: that no GPU is there, the loop sees itself.
    environment = {k: v for k, v in os.environ.items() if k != "ACCELERATE_USE_CPU"}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}

    def train(out: Path, batch_size: int, *launcher: object) -> str:
        # Validated at the last step, too, and beyond one epoch of 64 steps.
        command = [
            sys.executable, *launcher, "examples/train_ldct.py", "--dataset", data, "--output_dir", out,
            "--training_data", "3 phantoms", "--training_data_licence", "Apache-2.0", "--max_train_steps", 66,
            "--validation_steps", 33, "--lr_warmup_steps", 1, "--train_batch_size", batch_size,
            "--patch_size", 2, 16, 16, "--block_out_channels", 8, 8, 8,
            "--adam_epsilon", 1e-4,  # a weight whose gradient is rounding alone would else move by whole steps
        ]  # fmt: skip
        done = subprocess.run(
            [*map(str, command)], capture_output=True, text=True, timeout=400, env=environment, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    config = CONFIGS / "cpu_two_processes.yaml"
    said = train(
        tmp_path / "two", 1, "-m", "accelerate.commands.launch", "--config_file", config, "--main_process_port", 0
    )
    assert said.count("pipeline: ") == 1
    train(tmp_path / "one", 2)
    one, two = (load_file(tmp_path / k / "pipeline/unet/diffusion_pytorch_model.safetensors") for k in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4, msg=name)
    assert one["refine_out.weight"].abs().max() > 1e-3  # zero before training
