"""One call for fast inference: HU stay near the plain ones, and what it says is what is set."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from diffusers_ct import CTDiffusionPipeline, CTVolume, UNet3DCTModel
from diffusers_ct.models import make_model
from diffusers_ct.pipelines import fast_inference
from diffusers_ct.pipelines.host_memory import keep_freed_memory
from diffusers_ct.residual import estimate_noise_hu
from diffusers_ct.schedulers import make_noise_scheduler

CPU = torch.device("cpu")
FAMILIES = ("ct-unet3d-s", "ct-unet25d-s", "ct-transformer-s")


def scan() -> CTVolume:
    hu = np.random.default_rng(0).normal(40.0, 25.0, (3, 32, 32)).astype(np.float32)
    hu[:, :4, :4] = 2800.0  # where one step of bfloat16 would be 16 HU
    return CTVolume.from_array(hu, (2.0, 0.8, 0.8))


def pipeline(unet: UNet3DCTModel) -> CTDiffusionPipeline:
    pipe = CTDiffusionPipeline(unet, DDIMScheduler.from_config(make_noise_scheduler().config))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def trained_alike(name: str) -> UNet3DCTModel:
    """A network that answers as strongly as a trained one: its zeros replaced, its output about one noise level."""
    torch.manual_seed(0)
    model = make_model(name, block_out_channels=(16, 32, 48), attention_head_dim=16).eval()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return model


def restored(pipe: CTDiffusionPipeline, steps: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    return pipe(scan(), num_inference_steps=steps, generator=generator, output_type="np").volumes


@pytest.fixture
def with_bfloat16(monkeypatch):
    """As on a device that multiplies bfloat16, so that the test does not depend on the machine."""
    monkeypatch.setattr(fast_inference, "multiplies_bfloat16", lambda device: True)


@pytest.mark.parametrize("steps", [1, 8])
@pytest.mark.parametrize("name", FAMILIES)
def test_hounsfield_units_stay_within_the_stated_distance(name, steps, with_bfloat16):
    pipe, low = pipeline(trained_alike(name)), scan().hu
    plain = restored(pipe, steps)
    pipe.enable_fast_inference()
    fast = restored(pipe, steps)
    noise_hu = estimate_noise_hu(low)[:, None, None]
    assert 0.2 < np.sqrt(np.mean(((plain - low) / noise_hu) ** 2)) < 5.0
    moved = (fast - plain) / noise_hu
    assert 0.0 < np.sqrt(np.mean(moved**2)) < 0.02
    assert np.abs(moved).max() < 0.1
    assert fast.dtype == np.float32


def test_what_it_says_is_what_is_set(with_bfloat16):
    pipe = pipeline(trained_alike("ct-unet3d-s"))
    said = pipe.enable_fast_inference()
    assert dataclasses.asdict(said) == {
        "device": CPU, "dtype": torch.bfloat16, "channels_last": True, "compiled": False, "multiplies_bfloat16": True,
        "keeps_memory": keep_freed_memory(),
    }  # fmt: skip
    assert all(p.dtype == torch.bfloat16 for p in pipe.unet.parameters())
    for module in pipe.unet.modules():
        if isinstance(module, nn.Conv3d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last_3d)
        assert module._compiled_call_impl is None
    assert "bfloat16; channels last; not compiled; noise, steps and HU stay in float32" in str(said)
    seen = []
    pipe.unet.down_blocks[0][0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    restored(pipe, 1)
    assert seen[0].dtype == torch.bfloat16
    if "AVX512" in torch.backends.cpu.get_cpu_capability():  # elsewhere torch convolves in plain layout
        assert seen[0].is_contiguous(memory_format=torch.channels_last_3d)


def test_a_device_without_bfloat16_keeps_network_and_result_and_says_so(monkeypatch):
    monkeypatch.setattr(fast_inference, "multiplies_bfloat16", lambda device: False)
    pipe = pipeline(trained_alike("ct-unet3d-s"))
    plain = restored(pipe, 1)
    said = pipe.enable_fast_inference()
    assert (said.dtype, said.channels_last, said.compiled) == (torch.float32, False, False)
    assert "has no instructions for bfloat16; computes in float32; channels first; not compiled" in str(said)
    assert np.array_equal(restored(pipe, 1), plain)


def test_one_layer_that_is_not_channels_last_is_not_called_so(with_bfloat16):
    unet = trained_alike("ct-unet3d-s")
    pipeline(unet).enable_fast_inference()
    assert fast_inference._channels_last(unet)
    unet.refine_mid.weight.data = unet.refine_mid.weight.data.contiguous()
    assert not fast_inference._channels_last(unet)


def test_a_network_in_another_type_keeps_it(with_bfloat16):
    unet = nn.Module.to(trained_alike("ct-unet3d-s"), torch.float16)
    assert pipeline(unet).enable_fast_inference().dtype == torch.float16


def test_without_instructions_for_bfloat16_a_processor_is_told_apart(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert not fast_inference.multiplies_bfloat16(CPU)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert fast_inference.multiplies_bfloat16(CPU)
    assert not fast_inference.multiplies_bfloat16(torch.device("meta"))


def test_blocks_are_compiled_only_if_asked_and_this_is_said():
    unet = trained_alike("ct-transformer-s")
    pipe = pipeline(unet)
    assert not pipe.enable_fast_inference().compiled
    said = pipe.enable_fast_inference(compile_blocks=True)
    assert said.compiled and "blocks compiled when they first run" in str(said)
    assert unet.mid_block._compiled_call_impl is not None and unet.mid_transformers[0]._compiled_call_impl is not None


@pytest.mark.slow
def test_compiled_blocks_give_the_stated_distance_too():
    pipe = pipeline(trained_alike("ct-unet3d-s"))
    plain = restored(pipe, 1)
    pipe.enable_fast_inference(compile_blocks=True)
    moved = (restored(pipe, 1) - plain) / estimate_noise_hu(scan().hu)[:, None, None]
    assert np.sqrt(np.mean(moved**2)) < 0.02 and np.abs(moved).max() < 0.1


@pytest.mark.gpu
def test_on_cuda_hounsfield_units_stay_within_the_stated_distance_too():
    pipe = pipeline(trained_alike("ct-unet3d-s")).to("cuda")
    plain = restored(pipe, 1)
    said = pipe.enable_fast_inference()
    assert said.device.type == "cuda" and said.multiplies_bfloat16 == (torch.cuda.get_device_capability() >= (8, 0))
    moved = (restored(pipe, 1) - plain) / estimate_noise_hu(scan().hu)[:, None, None]
    assert np.sqrt(np.mean(moved**2)) < 0.02 and np.abs(moved).max() < 0.1
