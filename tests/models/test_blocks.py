"""Laws of the blocks: what they keep for the backward pass, norms with a scale and shift of each sample, layouts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffusers_ct.models import UNet3DCTModel
from diffusers_ct.models.blocks import AdaptiveGroupNorm, CTResBlock, VoxelRMSNorm, conv_nd, convolve, modulate
from diffusers_ct.models.complexity import _saved_bytes

LAST = torch.channels_last_3d
MODES = ("3d", "2.5d")


def awake(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return module


def block(mode: str, norm_type: str = "group") -> nn.Module:
    torch.manual_seed(0)
    return awake(CTResBlock(8, 8, 16, mode, norm_type, 4))


def by_hand(block: CTResBlock, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
    """The residual block as its formula says, everything kept."""
    h = block.conv1(F.silu(block.norm1(x)))
    return x + block.conv2(F.silu(modulate(block.norm2(h), block.modulation(embedding))))


def gradients(module: nn.Module, forward, *given: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Output, gradients of inputs and parameters, and operations of both passes."""
    given = tuple(t.clone().requires_grad_() for t in given)
    with FlopCounterMode(display=False) as flops:
        out = forward(*given)
        out.float().square().sum().backward()
    leaves = [*given, *module.parameters()]
    found = [t.grad for t in leaves if t.grad is not None]
    assert len(found) == len(leaves)
    module.zero_grad()
    return out.detach(), found, flops.get_total_flops()


@pytest.mark.parametrize("norm_type", ["group", "rms"])
@pytest.mark.parametrize("mode", MODES)
def test_a_block_is_its_formula_and_no_convolution_is_done_twice(mode, norm_type):
    module, x, embedding = block(mode, norm_type), torch.randn(2, 8, 3, 6, 6), torch.randn(2, 16)
    out, found, operations = gradients(module, module, x, embedding)
    expected, plain, plain_operations = gradients(module, lambda *given: by_hand(module, *given), x, embedding)
    torch.testing.assert_close(out, expected)
    for a, b in zip(found, plain):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)
    assert operations == plain_operations > 0


@pytest.mark.parametrize(("mode", "kept"), [("3d", 2), ("2.5d", 3)])
def test_of_a_block_only_what_enters_norms_and_the_fusion_along_z_is_kept(mode, kept):
    module = block(mode)
    x, embedding = torch.randn(1, 8, 8, 16, 16), torch.randn(1, 16)
    expected = kept * x.nbytes
    stored = _saved_bytes(_Called(module, embedding), {"x": x})
    assert expected <= stored < 1.05 * expected
    assert _saved_bytes(_Called(lambda *given: by_hand(module, *given), embedding), {"x": x}) > 2 * stored


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_in_bfloat16_weights_get_the_gradient_of_float32_however_few_the_slices(depth, mode, autocast):
    torch.manual_seed(0)
    conv, given, weighing = conv_nd(32, 32, mode), torch.randn(2, 32, depth, 8, 8), torch.randn(2, 32, depth, 8, 8)
    last = conv[-1] if mode == "2.5d" else conv
    nn.init.normal_(last.weight, std=0.1)
    (conv(given) * weighing).sum().backward()
    expected = last.weight.grad.clone()
    conv.zero_grad()
    leave_nans_in_freed_memory()
    if autocast:
        with torch.autocast("cpu", torch.bfloat16):
            out = conv(given)
    else:
        out = conv.bfloat16()(given.bfloat16())
    (out.float() * weighing).sum().backward()
    difference = (last.weight.grad.float() - expected).norm() / expected.norm()
    assert difference < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("batch", [1, 2])
def test_without_a_backward_pass_modulation_is_the_same(batch, dtype):
    h, scale_shift = torch.randn(batch, 8, 3, 5, 7).to(dtype), torch.randn(batch, 16).to(dtype)
    scale, shift = (values[:, :, None, None, None].double() for values in scale_shift.chunk(2, dim=1))
    expected = (h.double() * (1.0 + scale) + shift).to(dtype)
    with torch.no_grad():
        for x in (h, h.contiguous(memory_format=LAST)):
            out = modulate(x, scale_shift)
            torch.testing.assert_close(
                out, expected, **({"rtol": 0.02, "atol": 0.02} if dtype is torch.bfloat16 else {})
            )
            assert out.stride() == x.stride()


@pytest.mark.parametrize("autocast", [False, True])
def test_without_a_backward_pass_a_block_gives_the_same_and_leaves_its_input(autocast):
    module, x, embedding = block("2.5d"), torch.randn(1, 8, 3, 6, 6), torch.randn(1, 16)
    kept = x.clone()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = module(x, embedding).detach()
        with torch.no_grad():
            out = module(x, embedding)
    assert out.dtype == expected.dtype and torch.equal(x, kept)
    torch.testing.assert_close(out, expected, **({"rtol": 0.02, "atol": 0.02} if autocast else {}))


def leave_nans_in_freed_memory() -> None:
    kept = [torch.full((n,), torch.nan) for n in (10**3, 10**4, 10**5, 10**6)]
    del kept


class _Called(nn.Module):
    def __init__(self, function, embedding):
        super().__init__()
        self.function, self.embedding = function, embedding

    def forward(self, x):
        return self.function(x, self.embedding)


def test_preparing_again_sees_the_same_autocast_and_the_same_random_numbers():
    torch.manual_seed(0)
    conv, norm, x = nn.Conv3d(8, 4, 3, padding=1), nn.GroupNorm(2, 8), torch.randn(1, 8, 3, 6, 6)

    def prepare(x):
        return F.dropout(F.silu(norm(x)), 0.5)

    both = nn.ModuleList([conv, norm])
    results = []
    for forward in (lambda x: convolve(conv, prepare, x), lambda x: conv(prepare(x))):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            results.append(gradients(both, forward, x)[:2])
    (out, found), (expected, plain) = results
    assert out.dtype == torch.bfloat16 and torch.equal(out, expected)
    for a, b in zip(found, plain):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("make", [lambda: AdaptiveGroupNorm(4, 8), lambda: VoxelRMSNorm(8)])
def test_a_norm_with_scale_and_shift_is_the_norm_and_then_both(make, batch, layout):
    torch.manual_seed(0)
    norm = make()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x = (torch.randn(batch, 8, 3, 5, 5) * 3.0 + 1.0).contiguous(memory_format=layout)
    scale_shift = torch.randn(batch, 16)
    found = norm(x, scale_shift)
    scale, shift = (part[:, :, None, None, None] for part in scale_shift.chunk(2, dim=1))
    torch.testing.assert_close(found, norm(x) * (1.0 + scale) + shift)
    assert found.is_contiguous(memory_format=layout)
    exact = norm.double()(x.double(), scale_shift.double())
    low = norm.bfloat16()(x.bfloat16(), scale_shift.bfloat16())
    assert (low.double() - exact).norm() < 0.02 * exact.norm()


@pytest.mark.skipif(
    "AVX512" not in torch.backends.cpu.get_cpu_capability(), reason="torch convolves in plain layout here"
)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_channels_last_reach_every_convolution_without_a_change_of_layout(mode, batch):
    torch.manual_seed(0)
    model = UNet3DCTModel(
        conv_mode=mode, block_out_channels=(8, 16), downsample_strides=(1, 2, 2), patch_size=(2, 2, 2),
        refine_channels=4, norm_num_groups=4,
    )  # fmt: skip
    model = nn.Module.to(awake(model), torch.bfloat16)  # in float32 torch has a path for small inputs without layouts
    given = {"sample": torch.randn(batch, 6, 4, 16, 16), "timestep": 7, "pooled": torch.randn(batch, 3)}
    given = {key: value.bfloat16() if key != "timestep" else value for key, value in given.items()}
    with torch.no_grad():
        expected = model(**given).sample.float()
    nn.Module.to(model, memory_format=LAST)
    arrived: dict[str, bool] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_pre_hook(
                lambda _, args, name=name: arrived.update({name: args[0].is_contiguous(memory_format=LAST)})
            )
    with torch.no_grad():
        out = model(**given).sample.float()
    assert (out - expected).norm() < 0.03 * expected.norm()
    assert {name for name, last in arrived.items() if not last} == {"refine_in"}  # which gets the sample as it came


@pytest.mark.parametrize("grad", [False, True])
def test_a_compiler_sees_one_graph(grad):
    torch.manual_seed(0)
    model = awake(UNet3DCTModel(block_out_channels=(8, 16), downsample_strides=(1, 2, 2), refine_channels=4))
    given = {"sample": torch.randn(1, 6, 2, 8, 8), "timestep": torch.tensor([7.0]), "pooled": torch.randn(1, 3)}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(compiled(**given).sample, model(**given).sample)
        if grad:
            compiled(**given).sample.square().sum().backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
