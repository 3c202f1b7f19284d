"""Positions in mm, windows and masks of the transformer blocks, each against its closed form."""

import pytest
import torch
from torch import nn

from diffusers_ct.models import UNet3DCTModel
from diffusers_ct.models.attention import CTAttention
from diffusers_ct.models.rotary import WAVELENGTHS_MM, rotary_table, rotate
from diffusers_ct.models.transformer import CTTransformerBlock

HEAD_DIM = 14  # two pairs for each axis, and two channels that are not rotated


def logits(query: torch.Tensor, key: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """(tokens, tokens) attention logits of one head."""
    q, k = rotate(query, *table)[0, :, 0], rotate(key, *table)[0, :, 0]
    return q @ k.T


def table(grid, spacing_mm):
    return rotary_table(grid, torch.tensor([spacing_mm], dtype=torch.float32), HEAD_DIM)


def same_everywhere(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One query and one key vector, at every token: logits then depend on positions alone."""
    g = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, 1, 1, HEAD_DIM, generator=g).expand(1, length, 1, HEAD_DIM) for _ in range(2))


def test_logits_are_the_closed_form_of_the_distance_in_mm():
    grid, spacing = (2, 3, 4), (2.5, 0.9, 0.7)
    q, k = same_everywhere(24)
    found = logits(q, k, table(grid, spacing))
    where = torch.stack(torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij"), -1).reshape(-1, 3)
    distance = (where[:, None] - where[None]).double() * torch.tensor(spacing, dtype=torch.float64)  # query - key
    # a pair (a, b) of channels is the complex number a + ib: Re(q conj(k) e^(i 2 pi d / wavelength))
    q, k = q[0, 0, 0].double(), k[0, 0, 0].double()
    expected = (q[12:] @ k[12:]).expand(24, 24).clone()
    for pair in range(6):
        axis, wavelength = pair // 2, WAVELENGTHS_MM[pair % 2]
        product = torch.complex(q[pair], q[pair + 6]) * torch.complex(k[pair], k[pair + 6]).conj()
        expected += (product * torch.exp(2j * torch.pi * distance[..., axis] / wavelength)).real
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert found.std() > 0.1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_same_points_at_1_mm_and_2_mm_give_equal_logits(axis):
    fine_grid, coarse_grid, coarse_mm = [3, 3, 3], [3, 3, 3], [1.0, 1.0, 1.0]
    fine_grid[axis], coarse_mm[axis] = 5, 2.0
    every_other = [slice(None)] * 3
    every_other[axis] = slice(None, None, 2)
    g = torch.Generator().manual_seed(1)
    q, k = (torch.randn(1, *fine_grid, HEAD_DIM, generator=g) for _ in range(2))
    coarse = [t[0][tuple(every_other)].reshape(1, 27, 1, HEAD_DIM) for t in (q, k)]
    fine = logits(q.reshape(1, 45, 1, HEAD_DIM), k.reshape(1, 45, 1, HEAD_DIM), table(fine_grid, (1.0, 1.0, 1.0)))
    chosen = torch.arange(45).reshape(fine_grid)[tuple(every_other)].reshape(-1)
    torch.testing.assert_close(logits(*coarse, table(coarse_grid, coarse_mm)), fine[chosen][:, chosen])
    # and to read 2 mm as 1 mm would be another result
    assert (logits(*coarse, table(coarse_grid, (1.0, 1.0, 1.0))) - fine[chosen][:, chosen]).abs().max() > 0.01


def test_shifting_all_tokens_changes_nothing():
    g = torch.Generator().manual_seed(2)
    q, k = (torch.randn(1, 12, 1, HEAD_DIM, generator=g) for _ in range(2))
    cos, sin = table((4, 5, 6), (5.0, 0.8, 0.8))
    index = torch.arange(4 * 5 * 6).reshape(4, 5, 6)
    here, there = index[:2, :2, :3].reshape(-1), index[2:, 3:, 3:].reshape(-1)
    shifted = [logits(q, k, (cos[:, places], sin[:, places])) for places in (here, there)]
    torch.testing.assert_close(*shifted, rtol=1e-4, atol=1e-5)


def test_rotation_keeps_length_and_type_and_the_channels_that_are_left_over():
    x = torch.randn(1, 8, 2, HEAD_DIM)
    turned = rotate(x, *table((2, 2, 2), (3.0, 1.0, 1.0)))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[..., 12:], x[..., 12:])
    assert rotate(x.bfloat16(), *table((2, 2, 2), (3.0, 1.0, 1.0))).dtype == torch.bfloat16


def test_neighbouring_tokens_turn_by_less_than_half_a_turn():
    cos, sin = table((2, 2, 2), (7.9, 7.9, 7.9))
    angle = torch.atan2(sin, cos)
    assert angle.min() >= 0.0 and angle.max() < torch.pi  # beyond, a step forward would look like one backward


def awake(block: nn.Module) -> nn.Module:
    for parameter in block.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return block


def test_windows_are_attention_by_hand_and_do_not_see_each_other():
    torch.manual_seed(0)
    block = awake(CTTransformerBlock(12, head_dim=6, window_depth=2))
    tokens = torch.randn(2, 5, 3, 12)
    cos, sin = rotary_table((2, 1, 3), torch.tensor([[2.0, 1.0, 1.0], [5.0, 0.5, 0.5]]), 6)
    with torch.no_grad():
        out = block(tokens, cos, sin)
        for start, stop in ((0, 2), (2, 4), (4, 5)):
            x = tokens[:, start:stop].flatten(1, 2)
            n = x.shape[1]
            q, k, v = (
                f(block.norm1(x)).unflatten(-1, (2, 6)) for f in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)
            )
            q, k = rotate(q, cos[:, :n], sin[:, :n]), rotate(k, cos[:, :n], sin[:, :n])
            weights = torch.softmax(torch.einsum("bqhc,bkhc->bhqk", q, k) / 6**0.5, dim=-1)
            x = x + block.attn1.to_out[0](torch.einsum("bhqk,bkhc->bqhc", weights, v).flatten(2))
            x = x + block.ff(block.norm3(x))
            torch.testing.assert_close(out[:, start:stop].flatten(1, 2), x, rtol=1e-4, atol=1e-5)
        changed = tokens.clone()
        changed[:, 4] += 1.0
        assert torch.equal(block(changed, cos, sin)[:, :4], out[:, :4])


def test_a_new_block_is_the_identity():
    block = CTTransformerBlock(12, head_dim=6, window_depth=2, context_dim=4)
    tokens = torch.randn(1, 3, 4, 12)
    assert torch.equal(block(tokens, None, None, torch.randn(1, 2, 4)), tokens)


def test_masked_context_is_the_context_without_it_and_no_context_is_exactly_nothing():
    torch.manual_seed(0)
    attention = awake(CTAttention(12, 6, context_dim=4))
    tokens, context = torch.randn(3, 5, 12), torch.randn(3, 4, 4)
    mask = torch.tensor([[True, True, True, True], [True, False, True, False], [False] * 4])
    tokens.requires_grad_()
    context.requires_grad_()
    out = attention(tokens, context, mask)
    torch.testing.assert_close(out[0], attention(tokens[:1], context[:1])[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(out[1], attention(tokens[1:2], context[1:2, [0, 2]])[0], rtol=1e-4, atol=1e-6)
    assert not out[2].any()
    out.sum().backward()
    for gradient in (tokens.grad, context.grad, *(p.grad for p in attention.parameters())):
        assert gradient.isfinite().all()
    assert not context.grad[2].any() and not context.grad[1, [1, 3]].any() and context.grad[0].all()


def test_the_model_gives_each_level_the_distance_of_its_tokens():
    torch.manual_seed(0)
    model = UNet3DCTModel(
        in_channels=1,
        block_out_channels=(12, 12, 12),
        layers_per_block=1,
        patch_size=(1, 2, 2),
        downsample_strides=(1, 2, 2, 2, 2, 2),
        norm_num_groups=2,
        pooled_dim=0,
        attention_head_dim=6,
        window_depth=2,
        transformer_depth=(1, 0, 1),
    )
    spacing = torch.tensor([[2.5, 0.5, 0.75]])
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, CTTransformerBlock):
            module.register_forward_hook(
                lambda m, args, out, name=name: seen.update({name: (args[0].shape, *args[1:3])})
            )
    model(torch.randn(1, 1, 4, 16, 16), 3, spacing_mm=spacing)
    levels = {"down_transformers.0.0": 0, "down_transformers.2.0": 2, "mid_transformers.0": 2, "up_transformers.0.0": 0}
    assert set(seen) == set(levels)
    for name, level in levels.items():
        steps = torch.tensor([(1, 2, 2), (1, 4, 4), (2, 8, 8)][level])
        size = (4 // steps[0], 16 // steps[1], 16 // steps[2])
        shape, cos, sin = seen[name]
        assert shape == (1, size[0], size[1] * size[2], 12)
        for found, expected in zip((cos, sin), rotary_table((2, *size[1:]), spacing * steps, 6)):
            assert torch.equal(found, expected)


def test_only_rotary_transformer_levels_need_and_use_the_spacing():
    config = {"in_channels": 1, "block_out_channels": (12,), "downsample_strides": (), "pooled_dim": 0, "layers_per_block": 1,
              "norm_num_groups": 2, "attention_head_dim": 6}  # fmt: skip
    sample = torch.randn(1, 1, 2, 8, 8)
    for changes, needs in (
        ({"transformer_depth": (1,)}, True),
        ({"transformer_depth": (1,), "position_encoding": "none"}, False),
        ({"transformer_depth": (0,)}, False),
        ({"attention_levels": (0,)}, False),
    ):
        torch.manual_seed(0)
        model = awake(UNet3DCTModel(**config, **changes)).eval()
        assert model.needs_spacing == needs
        with torch.no_grad():
            fine, coarse = (model(sample, 1, spacing_mm=torch.full((1, 3), mm)).sample for mm in (1.0, 2.0))
        assert torch.equal(fine, coarse) != needs
