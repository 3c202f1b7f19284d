"""The presets and what is counted of them, against counts by hand."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

from diffusers_ct import CTDiffusionPipeline, CTVolume
from diffusers_ct.models import PRESETS, UNet3DCTModel, make_model
from diffusers_ct.models.complexity import _LiveBytes, _saved_bytes, count_complexity, count_module, training_peak_bytes
from diffusers_ct.models.presets import preset_config
from diffusers_ct.schedulers import make_noise_scheduler

SHAPE = (4, 8, 8)
ONE_LEVEL = {
    "in_channels": 2, "block_out_channels": (12,), "downsample_strides": (), "patch_size": (1, 1, 1), "layers_per_block": 0,
    "refine_channels": 0, "pooled_dim": 0, "attention_head_dim": 6, "norm_num_groups": 4,
}  # fmt: skip
VOXELS, WIDTH = 4 * 8 * 8, 12


def count(**changes):
    return count_complexity({**ONE_LEVEL, **changes}, SHAPE)


@pytest.mark.parametrize("size", ["s", "b"])
def test_families_of_a_size_have_the_same_number_of_parameters_within_ten_percent(size):
    sizes = [count_complexity(PRESETS[name], (4, 32, 32)).parameters for name in PRESETS if name.endswith(f"-{size}")]
    assert len(sizes) == 4
    assert max(sizes) < 1.1 * min(sizes)
    million = {"s": 3, "b": 12}[size]
    assert all(0.9 * million < n / 1e6 < 1.1 * million for n in sizes)


def test_families_differ_in_what_their_names_say():
    for name in PRESETS:
        with torch.device("meta"):
            model = make_model(name)
        assert model.config["conv_mode"] == ("3d" if "3d" in name else "2.5d")
        assert model.needs_spacing == ("transformer" in name)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("-s")])
def test_a_preset_runs_forward_and_backward_and_takes_changes(name):
    torch.manual_seed(0)
    model = make_model(name, in_channels=2, pooled_dim=0, cross_attention_dim=8 if "transformer" in name else 0)
    context = {"encoder_hidden_states": torch.randn(1, 2, 8)} if "transformer" in name else {}
    out = model(torch.randn(1, 2, 4, 16, 16), 3, spacing_mm=torch.ones(1, 3), **context).sample
    assert out.shape == (1, 1, 4, 16, 16) and not out.any()
    (out - 1.0).square().mean().backward()
    assert model.refine_out.weight.grad.any()


# MONAI 1.6.1's `DiffusionModelUNet` with flash attention and as many parameters as "s" and "b", counted in the same way by
# `examples/benchmark_speed.py`: (operations of a forward pass, bytes of a training step).
MONAI = {"s": (359.1e9, 1078 * 2**20), "b": (1198.3e9, 2163 * 2**20)}


@pytest.mark.parametrize("size", ["s", "b"])
def test_the_fast_family_needs_an_eighth_of_the_operations_and_a_tenth_of_the_memory_of_its_peer(size):
    with torch.device("meta"):
        model = make_model(f"ct-unet25d-fast-{size}").to(torch.bfloat16)
        given = {"sample": torch.empty(1, 6, 32, 128, 128, dtype=torch.bfloat16), "timestep": torch.empty(1)}
        given |= {"pooled": torch.empty(1, 3, dtype=torch.bfloat16), "spacing_mm": torch.empty(1, 3)}
    costs = count_module(model, given)
    operations, training_bytes = MONAI[size]
    assert 8 * costs.forward_flops < operations
    assert 10 * (costs.weight_bytes + training_peak_bytes(model, given)) < training_bytes


def test_the_fast_family_restores_one_slice_of_an_odd_size():
    model = make_model("ct-unet25d-fast-s", block_out_channels=(8, 8, 16, 16))
    pipe = CTDiffusionPipeline(model, DDIMScheduler.from_config(make_noise_scheduler().config))
    pipe.set_progress_bar_config(disable=True)
    hu = np.random.default_rng(0).normal(40.0, 20.0, (1, 37, 45)).astype(np.float32)
    restored = pipe(CTVolume.from_array(hu, (3.0, 0.8, 0.8)), output_type="np").volumes
    assert np.array_equal(restored, hu)  # a new network is the identity


def test_an_unknown_name_lists_the_nearest_first():
    with pytest.raises(ValueError, match="nearest first: ct-unet25d-b, ct-unet"):
        make_model("unet25d-b")


def test_a_preset_cannot_be_changed_by_accident():
    preset_config("ct-unet3d-s")["conv_mode"] = "2.5d"
    assert PRESETS["ct-unet3d-s"]["conv_mode"] == "3d"


def test_what_differs_from_a_preset_has_a_width_for_each_of_its_levels():
    changed = preset_config("ct-unet25d-fast-s", block_out_channels=(8, 8, 8, 16), conv_mode=None)
    assert changed == {**PRESETS["ct-unet25d-fast-s"], "block_out_channels": (8, 8, 8, 16)}
    two_levels = preset_config("ct-unet3d-s", block_out_channels=(8, 8), downsample_strides=(1, 2, 2))
    assert len(make_model("ct-unet3d-s", **two_levels).config["block_out_channels"]) == 2
    for widths in ((8, 8), (8, 0, 8), ()):
        with pytest.raises(ValueError, match="`block_out_channels` must be 3 positive numbers"):
            preset_config("ct-unet3d-s", block_out_channels=widths)


def test_parameters_and_operations_of_convolutions_are_those_by_hand():
    base, block = count(), count(layers_per_block=1)
    embedding = 4 * WIDTH
    convolutions = 2 * 27 * WIDTH**2
    assert block.parameters - base.parameters == (
        convolutions + 2 * WIDTH + (embedding * 2 * WIDTH + 2 * WIDTH) + 2 * 2 * WIDTH
    )
    assert block.forward_flops - base.forward_flops == 2 * convolutions * VOXELS + 2 * embedding * 2 * WIDTH
    planar = count(layers_per_block=1, conv_mode="2.5d").forward_flops - count(conv_mode="2.5d").forward_flops
    assert planar == 2 * (9 + 9 + 3) * WIDTH**2 * VOXELS + 2 * embedding * 2 * WIDTH
    assert block.weight_bytes == 4 * block.parameters
    with torch.device("meta"):
        assert block.parameters == sum(
            p.numel() for p in UNet3DCTModel(**{**ONE_LEVEL, "layers_per_block": 1}).parameters()
        )


@pytest.mark.parametrize(("window", "lengths"), [(4, [256]), (3, [192, 64]), (1, [64] * 4)])
def test_operations_of_attention_are_those_by_hand(window, lengths):
    base, with_blocks = count(), count(transformer_depth=(1,), window_depth=window)
    projections, feed_forward = 2 * 4 * WIDTH**2 * VOXELS, 2 * (8 + 4) * WIDTH**2 * VOXELS
    attention = sum(2 * 2 * length**2 * WIDTH for length in lengths)
    blocks = 2  # one in the level, one in the middle
    assert with_blocks.forward_flops - base.forward_flops == blocks * (projections + feed_forward + attention)
    context = count_complexity(
        {**ONE_LEVEL, "transformer_depth": (1,), "window_depth": window, "cross_attention_dim": 5},
        SHAPE,
        context_length=7,
    )
    cross = 2 * (2 * WIDTH**2 * VOXELS + 2 * 5 * WIDTH * 7) + 2 * 2 * VOXELS * 7 * WIDTH
    assert context.forward_flops - with_blocks.forward_flops == blocks * cross


def test_attention_is_counted_without_its_scores():
    thin, thick = (count(transformer_depth=(1,), position_encoding="none", window_depth=n) for n in (1, 4))
    assert thin.training_saved_bytes == thick.training_saved_bytes
    assert thin.forward_flops < thick.forward_flops


def test_memory_of_a_chain_of_convolutions_is_that_by_hand():
    n = 4 * 3 * 5 * 6 * 7  # bytes of one tensor of 3 channels
    with torch.device("meta"):
        chain = nn.Sequential(nn.Conv3d(3, 3, 3, padding=1), nn.SiLU(), nn.Conv3d(3, 3, 3, padding=1))
        x = torch.empty(1, 3, 5, 6, 7)
        assert _saved_bytes(chain[0], {"input": x}) == n
        # the input, the input of SiLU, the input of the second convolution; weights are not counted
        assert _saved_bytes(chain, {"input": x}) == 3 * n
        live = _LiveBytes()
        with torch.no_grad(), live:
            chain(x)
        assert live.peak == 2 * n  # an operation's input and output; x itself is not made here
        assert live.live == 0
        with torch.no_grad(), live:
            kept = [x[:, 1:].flatten(2).add(1.0).view(2, -1)[:1] for _ in range(3)]
        assert live.live == 3 * n * 2 // 3 and len(kept) == 3


def test_memory_of_a_training_step_of_a_chain_is_that_by_hand():
    n = 4 * 3 * 5 * 6 * 7
    with torch.device("meta"):
        chain = nn.Sequential(nn.Conv3d(3, 3, 3, padding=1), nn.SiLU(), nn.Conv3d(3, 3, 3, padding=1))
        x = torch.empty(1, 3, 5, 6, 7)
    gradients = 4 * (27 * 3 * 3 + 3)  # of one convolution
    # At the backward of SiLU: input, first convolution's output, output, two gradients; loss and its gradient.
    assert training_peak_bytes(chain, {"input": x}) == 5 * n + gradients + 2 * 4
    assert all(p.grad is None for p in chain.parameters())


def test_any_network_is_counted_as_ours_are():
    config = {**ONE_LEVEL, "layers_per_block": 1, "transformer_depth": (1,), "position_encoding": "none"}
    with torch.device("meta"):
        model = UNet3DCTModel(**config)
        given = {"sample": torch.empty(1, 2, *SHAPE), "timestep": torch.empty(1), "spacing_mm": torch.empty(1, 3)}
    counted = count_module(model, given)
    assert counted == count_complexity(config, SHAPE)
    # A backward pass frees what it has used, and makes gradients while it does.
    assert counted.training_saved_bytes < training_peak_bytes(model, given) < 3 * counted.training_saved_bytes


def test_attention_called_by_position_is_counted_as_one_operation_too():
    class Attention(nn.Module):
        def forward(self, tokens):
            return nn.functional.scaled_dot_product_attention(tokens, tokens, value=tokens)

    tokens = torch.empty(1, 2, 100, 16, device="meta")
    counted = count_module(Attention(), {"tokens": tokens})
    assert counted.forward_flops == 2 * 2 * 2 * 100**2 * 16
    assert counted.inference_peak_bytes < 4 * tokens.nbytes  # the scores alone would be 12.5


def test_memory_scales_with_the_batch_and_the_type():
    config = {**ONE_LEVEL, "layers_per_block": 1, "transformer_depth": (1,)}
    one, two = (count_complexity(config, SHAPE, batch=n) for n in (1, 2))
    assert two.forward_flops == pytest.approx(2 * one.forward_flops, rel=0.01)
    assert two.training_saved_bytes == pytest.approx(2 * one.training_saved_bytes, rel=0.02)
    half = count_complexity(config, SHAPE, dtype=torch.bfloat16)
    assert 2 * half.weight_bytes == one.weight_bytes
    assert half.forward_flops == one.forward_flops
    assert 0.45 < half.inference_peak_bytes / one.inference_peak_bytes < 0.65


def test_a_saved_configuration_can_be_counted(tmp_path):
    model = UNet3DCTModel(**ONE_LEVEL)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert count_complexity(config, SHAPE) == count()
    assert count_complexity(model.config, SHAPE) == count()


def test_a_shape_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="divisible by"):
        count_complexity(PRESETS["ct-unet3d-s"], (2, 30, 32))
