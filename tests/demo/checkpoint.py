"""A tiny restoration checkpoint that changes a scan visibly and promises little."""

from pathlib import Path

import torch
from diffusers import DDIMScheduler

from diffusers_ct import CheckpointContract, CTDiffusionPipeline, UNet3DCTModel
from diffusers_ct.demo.session import DemoModel
from diffusers_ct.schedulers import make_noise_scheduler


def tiny_pipeline(**promises) -> CTDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNet3DCTModel(
        block_out_channels=(8, 16), layers_per_block=1, conv_mode="2.5d", patch_size=(1, 4, 4), refine_channels=0,
        downsample_strides=(1, 2, 2), norm_num_groups=4,
    )  # fmt: skip
    torch.nn.init.normal_(unet.head.weight, std=0.1)
    contract = CheckpointContract("tests", "Apache-2.0", **promises)
    scheduler = DDIMScheduler.from_config(make_noise_scheduler().config)
    return CTDiffusionPipeline(unet, scheduler, contract.to_dict(), target=contract.target)


def tiny_model(**promises) -> DemoModel:
    return DemoModel(tiny_pipeline(**promises), "tiny", "sha256:0123")


def save_tiny(folder: Path, **promises) -> Path:
    tiny_pipeline(**promises).save_pretrained(folder)
    return folder
