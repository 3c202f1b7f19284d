"""Contract tests of `UNet3DCTModel`, and laws its parts must obey."""

import itertools

import pytest
import torch
from torch import nn

from diffusers_ct.models import UNet3DCTModel
from diffusers_ct.models.attention import CTAttention, CTSelfAttention
from diffusers_ct.models.blocks import VoxelRMSNorm, conv_nd, norm_nd
from diffusers_ct.models.unet_3d_ct import depth_to_space, space_to_depth

TINY = {
    "in_channels": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "downsample_strides": (1, 2, 2),
    "refine_channels": 4,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
CONTEXT_DIM = 5
VARIANTS = {
    "3d": {"conv_mode": "3d"},
    "2.5d": {"conv_mode": "2.5d"},
    "no refinement": {"refine_channels": 0},
    "refinement added": {"refine_merge": "add"},
    "no patch": {"patch_size": (1, 1, 1)},
    "patch and stride in z": {"patch_size": (2, 2, 2), "downsample_strides": (2, 2, 2)},
    "attention": {"attention_levels": (0, 1), "window_depth": 2},
    "rms": {"norm_type": "rms"},
    "transformer": {"transformer_depth": (0, 2), "window_depth": 3},
    "2.5d transformer": {"conv_mode": "2.5d", "transformer_depth": (1, 1), "norm_type": "rms"},
    "transformer with context": {"transformer_depth": (1, 1), "cross_attention_dim": CONTEXT_DIM},
    "transformer without positions": {"transformer_depth": (1, 1), "position_encoding": "none"},
    "attention and transformer": {"attention_levels": (1,), "transformer_depth": (0, 1)},
}


def make(seed: int = 0, *, awake: bool = True, **changes) -> UNet3DCTModel:
    """A tiny model; `awake` fills the zero-initialised layers so that every path carries signal."""
    torch.manual_seed(seed)
    model = UNet3DCTModel(**{**TINY, **changes})
    if awake:
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.2)
    return model.eval()


def inputs(depth: int = 4, size: int = 16, batch: int = 2, *, context: bool = False) -> dict:
    """What every variant is given; `context` adds what cross-attention reads, with masked tokens."""
    g = torch.Generator().manual_seed(1)
    given = {
        "sample": torch.randn(batch, 3, depth, size, size, generator=g),
        "timestep": torch.arange(batch) * 100 + 7,
        "pooled": torch.randn(batch, 3, generator=g),
        "spacing_mm": torch.tensor([[3.0, 0.7, 0.7], [1.0, 0.9, 0.9]])[:batch],
    }
    if context:
        given["encoder_hidden_states"] = torch.randn(batch, 4, CONTEXT_DIM, generator=g)
        given["encoder_attention_mask"] = torch.arange(4)[None, :] < 3 - torch.arange(batch)[:, None]
    return given


def inputs_of(name: str, **changes) -> dict:
    return inputs(context="cross_attention_dim" in VARIANTS[name], **changes)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_new_model_outputs_zeros(name):
    assert make(awake=False, **VARIANTS[name])(**inputs_of(name)).sample.abs().max() == 0.0


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_gets_a_finite_gradient(name):
    model = make(**VARIANTS[name])
    out = model(**inputs_of(name)).sample
    assert out.shape == (2, 1, 4, 16, 16)
    out.square().mean().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("name", VARIANTS)
def test_save_and_load_gives_equal_output(name, tmp_path):
    model = make(**VARIANTS[name])
    model.save_pretrained(tmp_path)
    loaded = UNet3DCTModel.from_pretrained(tmp_path, use_safetensors=True)
    assert list(tmp_path.glob("*.safetensors"))
    with torch.no_grad():
        assert torch.equal(model(**inputs_of(name)).sample, loaded(**inputs_of(name)).sample)
    assert dict(loaded.config)["conv_mode"] == model.config["conv_mode"]


@pytest.mark.parametrize("name", VARIANTS)
def test_batch_equals_single_and_dict_equals_tuple(name):
    model, given = make(**VARIANTS[name]), inputs_of(name)
    with torch.no_grad():
        both = model(**given).sample
        assert torch.equal(model(**given, return_dict=False)[0], both)
        for i in range(2):
            single = model(**{key: value[i : i + 1] for key, value in given.items()}).sample
            torch.testing.assert_close(single[0], both[i], rtol=1e-4, atol=1e-5)


def test_time_and_pooled_vector_change_the_output():
    model, given = make(), inputs()
    with torch.no_grad():
        base = model(**given).sample
        later = model(given["sample"], given["timestep"] + 300, pooled=given["pooled"]).sample
        other = model(given["sample"], given["timestep"], pooled=given["pooled"] + 1.0).sample
    assert (later - base).abs().max() > 1e-3
    assert (other - base).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("mode", "transformer", "depth"), list(itertools.product(("3d", "2.5d"), ((), (1, 1)), (1, 3, 5)))
)
def test_any_depth_from_one_slice_on(mode, transformer, depth):
    out = make(conv_mode=mode, transformer_depth=transformer, window_depth=2)(**inputs(depth=depth)).sample
    assert out.shape[2] == depth and out.isfinite().all() and out.any()


def test_a_configuration_of_the_first_version_has_the_same_parameters_and_needs_no_spacing():
    model = make(attention_levels=(1,))
    old = {k: v for k, v in model.config.items() if k not in ("transformer_depth", "cross_attention_dim")}
    old.pop("position_encoding")
    again = UNet3DCTModel.from_config(old)
    names = set(again.state_dict())
    assert not any("transformer" in name for name in names)
    assert {n for n in names if n.startswith("down_attentions.1.")} == {
        f"down_attentions.1.{part}.{kind}"
        for part in ("norm", "to_q", "to_k", "to_v", "to_out.0")
        for kind in ("weight", "bias")
    }
    again.load_state_dict(model.state_dict())
    given = inputs()
    with torch.no_grad():
        base = model(**given).sample
        given.pop("spacing_mm")
        assert not again.needs_spacing
        assert torch.equal(again(**given).sample, base)


def test_size_factor_is_patch_times_strides_and_is_enforced():
    model = make(patch_size=(2, 2, 4), downsample_strides=(1, 2, 2))
    assert model.size_factor == (2, 4, 8)
    with pytest.raises(ValueError, match=r"divisible by \(2, 4, 8\)"):
        model(**inputs(depth=3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": torch.zeros(2, 4, 4, 16, 16)}, "`sample` must be"),
        ({"pooled": None}, "`pooled` must be"),
        ({"pooled": torch.zeros(2, 5)}, "`pooled` must be"),
        ({"encoder_hidden_states": torch.zeros(2, 1, 8)}, "no cross-attention"),
        ({"encoder_attention_mask": torch.ones(2, 1, dtype=torch.bool)}, "no cross-attention"),
    ],
)
def test_wrong_input_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make()(**{**inputs(), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spacing_mm": None}, r"`spacing_mm` as a tensor \(2, 3\)"),
        ({"spacing_mm": torch.ones(3)}, r"got \(3,\)"),
        ({"encoder_hidden_states": None}, r"`encoder_hidden_states` must be \(2, length, 5\)"),
        ({"encoder_hidden_states": torch.zeros(2, 4, 6)}, r"got \(2, 4, 6\)"),
        ({"encoder_attention_mask": torch.ones(2, 3, dtype=torch.bool)}, r"must be bool \(2, 4\)"),
        ({"encoder_attention_mask": torch.ones(2, 4)}, "torch.float32"),
    ],
)
def test_wrong_spacing_or_context_is_refused(change, message):
    model = make(**VARIANTS["transformer with context"])
    with pytest.raises(ValueError, match=message):
        model(**{**inputs(context=True), **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_mode": "2d"}, "conv_mode"),
        ({"norm_type": "batch"}, "norm_type"),
        ({"patch_size": (2, 2)}, "patch_size"),
        ({"downsample_strides": (1, 2)}, "downsample_strides"),
        ({"attention_levels": (2,)}, "attention_levels"),
        ({"attention_levels": (0,), "attention_head_dim": 7}, "attention_head_dim"),
        ({"transformer_depth": (1,)}, "transformer_depth"),
        ({"transformer_depth": (0, -1)}, "transformer_depth"),
        ({"cross_attention_dim": 8}, "transformer_depth"),
        ({"transformer_depth": (0, 1), "position_encoding": "learned"}, "position_encoding"),
        ({"transformer_depth": (0, 1), "attention_head_dim": 4}, "at least 6"),
        ({"refine_merge": "mean"}, "refine_merge"),
    ],
)
def test_wrong_configuration_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        UNet3DCTModel(**{**TINY, **change})


@pytest.mark.parametrize("name", ["attention", "transformer with context"])
def test_gradient_checkpointing_changes_nothing(name):
    model, given = make(**VARIANTS[name]), inputs_of(name)
    gradients = []
    for checkpointing in (False, True):
        model.train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        model(**given).sample.square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["attention", "transformer with context"])
def test_attention_backend_and_fused_projections_keep_the_output(name):
    model, given = make(**VARIANTS[name]), inputs_of(name)
    with torch.no_grad():
        base = model(**given).sample
        model.set_attention_backend("_native_math")
        torch.testing.assert_close(model(**given).sample, base, rtol=1e-4, atol=1e-5)
        model.fuse_qkv_projections()
        names = [module_name for module_name, _ in model.named_modules()]
        assert any("to_qkv" in n for n in names)
        assert any("to_kv" in n for n in names) == ("context" in name)
        for module in model.modules():  # what is fused is what is used
            if isinstance(module, CTAttention):
                for part in (module.to_k, module.to_v):
                    nn.init.zeros_(part.weight)
        torch.testing.assert_close(model(**given).sample, base, rtol=1e-4, atol=1e-5)
        model.unfuse_qkv_projections()
        assert (model(**given).sample - base).abs().max() > 1e-3


def test_attention_stays_within_its_window_and_matches_plain_softmax():
    torch.manual_seed(0)
    attention = CTSelfAttention(8, head_dim=4, window_depth=2, norm_type="rms")
    nn.init.normal_(attention.to_out[0].weight)
    x = torch.randn(1, 8, 5, 3, 3)
    with torch.no_grad():
        out = attention(x)
        changed = x.clone()
        changed[:, :, 4] += 1.0
        assert torch.equal(attention(changed)[:, :, :4], out[:, :, :4])
        # one window by hand
        tokens = attention.norm(x)[:, :, 2:4].flatten(2).transpose(1, 2)[0]
        q, k, v = (
            f(tokens).reshape(-1, 2, 4).transpose(0, 1) for f in (attention.to_q, attention.to_k, attention.to_v)
        )
        weights = torch.softmax(q @ k.transpose(1, 2) / 4**0.5, dim=-1)
        by_hand = attention.to_out[0]((weights @ v).transpose(0, 1).reshape(-1, 8)).T.reshape(8, 2, 3, 3)
    torch.testing.assert_close(out[0, :, 2:4] - x[0, :, 2:4], by_hand, rtol=1e-4, atol=1e-5)


def test_space_to_depth_keeps_every_voxel_in_its_patch():
    x = torch.arange(2 * 3 * 4 * 6 * 8.0).reshape(2, 3, 4, 6, 8)
    patches = space_to_depth(x, (2, 3, 4))
    assert torch.equal(depth_to_space(patches, (2, 3, 4)), x)
    assert torch.equal(patches[0, :24, 1, 0, 1], x[0, 0, 2:4, 0:3, 4:8].reshape(-1))


def test_planar_convolution_begins_without_mixing_slices():
    torch.manual_seed(0)
    conv = conv_nd(2, 3, "2.5d")
    x = torch.randn(1, 2, 4, 5, 5)
    changed = x.clone()
    changed[:, :, 0] += 1.0
    assert torch.equal(conv(x)[:, :, 1:], conv(changed)[:, :, 1:])
    by_slice = nn.functional.conv2d(x[:, :, 2], conv[0].weight[:, :, 0], conv[0].bias, padding=1)
    torch.testing.assert_close(conv(x)[:, :, 2], by_slice, rtol=1e-4, atol=1e-5)


def test_voxel_rms_norm_is_its_formula_and_local():
    norm = VoxelRMSNorm(4)
    x = torch.randn(1, 4, 2, 3, 3)
    expected = x / torch.sqrt((x**2).mean(dim=1, keepdim=True) + norm.eps)
    torch.testing.assert_close(norm(x), expected)
    assert torch.equal(norm(x)[..., :2], norm(x[..., :2]))


def test_group_count_falls_back_to_a_divisor():
    assert norm_nd(12, "group", 8).num_groups == 6


@pytest.mark.parametrize("name", ["3d", "transformer with context"])
def test_bfloat16_stays_near_float32(name):
    model, given = make(**VARIANTS[name]), inputs_of(name)
    with torch.no_grad():
        exact = model(**given).sample
        model.to(torch.bfloat16)
        given |= {"sample": given["sample"].bfloat16(), "pooled": given["pooled"].bfloat16()}
        low = model(**given).sample
    assert low.dtype == torch.bfloat16
    assert (low.float() - exact).abs().mean() < 0.03 * exact.abs().mean() + 0.01


@pytest.mark.parametrize("name", ["attention", "transformer with context"])
def test_lora_adapter_on_attention_and_convolution_round_trips(name, tmp_path):
    peft = pytest.importorskip("peft")
    given = inputs_of(name)
    model = make(**VARIANTS[name])
    with torch.no_grad():
        base = model(**given).sample
        config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v", "conv1"], init_lora_weights=False)
        model.add_adapter(config)
        adapted = model(**given).sample
        assert (adapted - base).abs().max() > 1e-4
        model.save_lora_adapter(tmp_path)
        other = make(**VARIANTS[name])
        other.load_lora_adapter(tmp_path, prefix=None, weight_name="pytorch_lora_weights.safetensors")
        torch.testing.assert_close(other(**given).sample, adapted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["attention", "transformer with context"])
def test_layerwise_casting_stores_eight_bits_and_stays_near(name):
    model, given = make(**VARIANTS[name]).to(torch.bfloat16), inputs_of(name)
    given |= {"sample": given["sample"].bfloat16(), "pooled": given["pooled"].bfloat16()}
    with torch.no_grad():
        base = model(**given).sample.float()
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
        low = model(**given).sample
    stored = {parameter_name: p.dtype for parameter_name, p in model.named_parameters()}
    eight_bits = [n for n, dtype in stored.items() if dtype == torch.float8_e4m3fn]
    assert any("to_q" in n for n in eight_bits) and any("conv1" in n for n in eight_bits)
    assert not any("norm" in n for n in eight_bits)
    assert low.dtype == torch.bfloat16
    # e4m3 has 3 bits of mantissa: 2^-4 relative error of each weight.
    assert (low.float() - base).abs().mean() < 0.15 * base.abs().mean()
    assert not torch.equal(low.float(), base)


@pytest.mark.parametrize("kind", [{"offload_type": "leaf_level"}, {"offload_type": "block_level"}])
@pytest.mark.parametrize("name", ["attention", "transformer with context"])
def test_group_offload_brings_every_parameter_to_the_device_of_the_forward_pass(name, kind, monkeypatch):
    from diffusers.hooks.group_offloading import ModuleGroup

    model, given = make(**VARIANTS[name]), inputs_of(name)
    brought: set[int] = set()
    onload = ModuleGroup.onload_

    def record(group):
        modules = [p for module in group.modules for p in module.parameters()]
        brought.update(id(p) for p in [*modules, *group.parameters])
        onload(group)

    monkeypatch.setattr(ModuleGroup, "onload_", record)
    with torch.no_grad():
        base = model(**given).sample
        blocks = {"num_blocks_per_group": 1} if kind["offload_type"] == "block_level" else {}
        model.enable_group_offload(onload_device=torch.device("cpu"), **kind, **blocks)
        torch.testing.assert_close(model(**given).sample, base)
    assert [n for n, p in model.named_parameters() if id(p) not in brought] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention", "transformer with context"])
def test_compiled_blocks_keep_the_output(name):
    model, given = make(**VARIANTS[name]), inputs_of(name)
    with torch.no_grad():
        base = model(**given).sample
        model.compile_repeated_blocks(fullgraph=True)
        torch.testing.assert_close(model(**given).sample, base, rtol=1e-3, atol=1e-4)
