"""The configs in examples/accelerate_configs are read by accelerate; `tests/cli/test_restore_many.py` runs the CPU one."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

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
