"""The denoiser is its U-Net called with the encoder's tokens and pooled vector, and nothing else."""

import pytest
import torch
from torch import nn

from diffusers_ct.models import ConditionalDenoiser, ConditionEncoder, UNet3DCTModel

UNET = {
    "in_channels": 2, "block_out_channels": (8, 16), "layers_per_block": 1, "downsample_strides": (1, 2, 2),
    "refine_channels": 4, "norm_num_groups": 4, "attention_head_dim": 8,
}  # fmt: skip
CROSS = {"transformer_depth": (0, 1), "cross_attention_dim": 12}
SPACING = torch.tensor([[2.0, 0.7, 0.7], [1.0, 0.5, 0.6]])


def encoder(**changes) -> ConditionEncoder:
    torch.manual_seed(1)
    return ConditionEncoder(
        ("sex", "kvp", "findings"), findings=("a", "b"), **{"token_dim": 12, "pooled_dim": 5, **changes}
    )


def make(*, conditional: bool = True, **changes) -> ConditionalDenoiser:
    torch.manual_seed(0)
    unet = UNet3DCTModel(**{**UNET, "pooled_dim": 8 if conditional else 3, **changes})
    for parameter in unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return ConditionalDenoiser(unet, encoder() if conditional else None).eval()


def inputs() -> dict:
    g = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(2, 2, 2, 8, 8, generator=g),
        "timestep": torch.tensor([7, 800]),
        "vector": torch.randn(2, 3, generator=g),
        "spacing_mm": SPACING,
    }


def fields() -> dict[str, torch.Tensor]:
    findings = torch.tensor([[1.0, 0.0], [0.0, float("nan")]])
    return {"sex": torch.tensor([0, -1]), "kvp": torch.tensor([120.0, float("nan")]), "findings": findings}


@torch.no_grad()
@pytest.mark.parametrize("cross", [{}, CROSS], ids=["pooled", "cross-attention"])
def test_it_is_the_unet_with_the_encoders_output(cross):
    model, given = make(**cross), inputs()
    encoded = model.condition_encoder(fields())
    tokens = {"encoder_hidden_states": encoded.tokens, "encoder_attention_mask": encoded.mask} if cross else {}
    expected = model.unet(
        given["sample"], given["timestep"], pooled=torch.cat([given["vector"], encoded.pooled], dim=1),
        spacing_mm=SPACING, **tokens,
    ).sample  # fmt: skip
    out = model(**given, fields=fields()).sample
    assert torch.equal(out, expected) and out.abs().max() > 0
    unknown = model(**given).sample
    assert (unknown - out).abs().max() > 1e-4
    torch.testing.assert_close(unknown, model(**given, fields={"sex": torch.tensor([-1, -1])}).sample)


@torch.no_grad()
def test_tokens_alone_reach_the_output_through_cross_attention():
    model, given = make(**CROSS), inputs()
    base = model(**given, fields=fields()).sample
    width = model.condition_encoder.config["token_dim"]
    model.condition_encoder.encoders["sex"].table.weight[:, :width] += 1.0
    assert (model(**given, fields=fields()).sample - base).abs().max() > 1e-5
    plain = make()
    base = plain(**given, fields=fields()).sample
    plain.condition_encoder.encoders["sex"].table.weight[:, :width] += 1.0
    assert torch.equal(plain(**given, fields=fields()).sample, base)


@torch.no_grad()
def test_the_padding_of_a_text_is_not_attended_to():
    torch.manual_seed(2)
    unet = make(**CROSS).unet
    reader = ConditionEncoder(("text",), text_dim=4, token_dim=12, pooled_dim=5)
    model = ConditionalDenoiser(unet, reader).eval()
    mask = torch.tensor([[True, True, True], [True, False, False]])
    text = {"text_states": torch.randn(2, 3, 4), "text_mask": mask}
    base = model(**inputs(), fields=text).sample
    short = {key: value[1:, :1] for key, value in text.items()}
    alone = model(**{key: value[1:] for key, value in inputs().items()}, fields=short).sample
    torch.testing.assert_close(base[1:], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_without_encoder_it_is_the_unet():
    model, given = make(conditional=False), inputs()
    expected = model.unet(given["sample"], given["timestep"], pooled=given["vector"]).sample
    assert torch.equal(model(**given).sample, expected) and torch.equal(model(**given, fields={}).sample, expected)
    assert torch.equal(model(**given, fields={"spacing_mm": SPACING}).sample, expected)
    with pytest.raises(ValueError, match="trained without"):
        model(**given, fields=fields())
    bare = make(conditional=False, pooled_dim=0)
    assert bare(given["sample"], 3).sample.shape == (2, 1, 2, 8, 8)


@pytest.mark.parametrize("cross", [{}, CROSS], ids=["pooled", "cross-attention"])
def test_every_parameter_gets_a_gradient_as_distributed_training_demands(cross):
    model = make(**cross)
    model(**inputs(), fields=fields()).sample.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_gradient_checkpointing_reaches_the_unet_and_changes_nothing():
    model, gradients = make(**CROSS), []
    model.train()
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
            assert model.unet.is_gradient_checkpointing
        model.zero_grad()
        model(**inputs(), fields=fields()).sample.square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b)


def test_a_unet_that_knows_millimetres_gets_the_spacing():
    model, given = make(**CROSS), inputs()
    assert model.unet.needs_spacing
    with torch.no_grad():
        base = model(**given, fields=fields()).sample
        wider = model(**{**given, "spacing_mm": 2 * SPACING}, fields=fields()).sample
    assert (wider - base).abs().max() > 1e-6
    with pytest.raises(ValueError, match="spacing_mm"):
        model(**{**given, "spacing_mm": None}, fields=fields())


def test_parts_that_do_not_fit_are_refused():
    unet = UNet3DCTModel(**UNET, pooled_dim=8, **CROSS)
    with pytest.raises(ValueError, match="`token_dim` = 16 must equal"):
        ConditionalDenoiser(unet, encoder(token_dim=16))
    with pytest.raises(ValueError, match="must be at least the encoder's = 9"):
        ConditionalDenoiser(unet, encoder(pooled_dim=9))
    with pytest.raises(ValueError, match="needs a `condition_encoder`"):
        ConditionalDenoiser(unet)
    with pytest.raises(ValueError, match=r"`pooled` must be \(2, 8\)"):
        make()(**{**inputs(), "vector": None}, fields=fields())
