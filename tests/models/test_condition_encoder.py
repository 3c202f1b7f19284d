"""Each condition is its own token and its own summand; unknown is learned, and dropping follows the seed alone."""

import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from diffusers_ct import ConditionEncoder
from diffusers_ct.conditions import CONDITION_NAMES, ConditionVocabulary, ScanConditions, collate_conditions
from diffusers_ct.models import drop_fields_at_random, dropped_together, encode_text, null_fields
from diffusers_ct.models.condition_encoder import NAMES, quantity_features

CONFIG = {
    "conditions": CONDITION_NAMES,
    "body_parts": ("CHEST", "HEAD"),
    "kernels": ("B30f", "D45f", "STANDARD"),
    "manufacturers": ("ACME",),
    "contrast_phases": ("arterial", "none", "portal"),
    "findings": ("cyst", "nodule"),
    "token_dim": 6,
    "pooled_dim": 5,
    "text_dim": 7,
}
VOCABULARY = ConditionVocabulary.from_config(CONFIG)
SPACING = CONDITION_NAMES.index("spacing_mm")
# one place a condition, two for the two findings, then the words
PLACES = {name: [i] for i, name in enumerate(CONDITION_NAMES[:12])} | {"findings": [12, 13], "text": [14, 15, 16]}


def make(**changes) -> ConditionEncoder:
    torch.manual_seed(0)
    return ConditionEncoder(**{**CONFIG, **changes}).eval()


def known_fields(batch: int = 2) -> dict[str, torch.Tensor]:
    scan = ScanConditions(
        body_part="HEAD", age_years=40.0, sex="M", dose_fraction=0.2, kvp=100.0, tube_current_mas=200.0, kernel="D45f",
        manufacturer="ACME", slice_thickness_mm=3.0, contrast_agent=True, contrast_phase="portal", findings=("cyst",),
        findings_absent=("nodule",),
    )  # fmt: skip
    fields, _ = collate_conditions([scan] * batch, VOCABULARY, spacing_mm=[(2.0, 0.7, 0.6)] * batch)
    text = torch.randn(batch, 3, 7, generator=torch.Generator().manual_seed(1))
    return fields | {"text_states": text, "text_mask": torch.ones(batch, 3, dtype=torch.bool)}


def test_the_names_are_those_of_the_conditions():
    assert set(NAMES) == set(CONDITION_NAMES)
    config = set(inspect.signature(ConditionEncoder).parameters) - {"token_dim", "pooled_dim", "text_dim"}
    assert set(VOCABULARY.to_config()) == config
    assert isinstance(ConditionEncoder(**VOCABULARY.to_config(), text_dim=7), ConditionEncoder)


@torch.no_grad()
def test_nulling_one_condition_changes_its_token_and_its_share_and_nothing_else():
    model, fields = make(), known_fields()
    full = model(fields)
    assert full.tokens.shape == (2, 17, 6) and full.pooled.shape == (2, 5) and full.mask.all()
    for name, own in PLACES.items():
        other = model(null_fields(fields, [name], torch.tensor([True, False])))
        changed = (other.tokens != full.tokens).any(dim=2) & other.mask
        assert changed[0].nonzero().flatten().tolist() == (own[:1] if name == "text" else own), name
        assert not changed[1].any() and torch.equal(other.pooled[1], full.pooled[1]), name
        assert (other.mask != full.mask)[0].nonzero().flatten().tolist() == (own[1:] if name == "text" else []), name
        assert (other.pooled[0] - full.pooled[0]).abs().min() > 1e-4, name


@torch.no_grad()
def test_a_share_does_not_depend_on_the_other_conditions():
    model, fields = make(), known_fields(1)
    nothing = null_fields(fields, CONDITION_NAMES)
    total = model(nothing).pooled
    for name in CONDITION_NAMES:
        among_all = model(fields).pooled - model(null_fields(fields, [name])).pooled
        others = [other for other in CONDITION_NAMES if other != name]
        alone = model(null_fields(fields, others)).pooled - model(nothing).pooled
        torch.testing.assert_close(alone, among_all, rtol=1e-4, atol=1e-5)
        total = total + alone
    torch.testing.assert_close(total, model(fields).pooled, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_missing_field_is_an_unknown_one():
    model, fields = make(), known_fields()
    for name in CONDITION_NAMES:
        keys = {"text_states", "text_mask"} if name == "text" else {name}
        missing = model({key: value for key, value in fields.items() if key not in keys})
        unknown = model(null_fields(fields, [name]))
        assert torch.equal(missing.pooled, unknown.pooled), name
        assert torch.equal(missing.tokens[missing.mask], unknown.tokens[unknown.mask]), name
    everything = model({}, batch_size=2)
    assert torch.equal(everything.pooled, model(null_fields(fields, CONDITION_NAMES)).pooled)
    assert torch.equal(everything.pooled[0], everything.pooled[1])


@torch.no_grad()
def test_every_condition_has_its_own_unknown_and_every_value_its_own_token():
    model = make()
    unknown = model({}, batch_size=1).tokens[0]
    assert len(unknown) == 15 and len({tuple(row.tolist()) for row in unknown}) == 15
    rows = model(
        {"kernel": torch.arange(-1, 3), "findings": torch.tensor([[math.nan, 0], [0, 1], [1, 0], [1, math.nan]])}
    )
    kernel = PLACES["kernel"][0]
    assert len({tuple(row.tolist()) for row in rows.tokens[:, kernel]}) == 4
    assert torch.equal(rows.tokens[0, kernel], unknown[kernel])
    assert len({tuple(row.tolist()) for row in rows.tokens[:, 12:14].flatten(0, 1)}) == 6


@torch.no_grad()
def test_an_index_is_a_row_of_the_table_and_one_beyond_it_an_error():
    model = make(conditions=("kernel",), body_parts=(), manufacturers=(), contrast_phases=(), findings=(), text_dim=0)
    table = model.encoders["kernel"].table.weight
    output = model({"kernel": torch.tensor([2, -1])})
    assert torch.equal(output.tokens[:, 0], table[[3, 0], :6]) and torch.equal(output.pooled, table[[3, 0], 6:])
    with pytest.raises(IndexError):
        model({"kernel": torch.tensor([3])})


@torch.no_grad()
def test_quantities_enter_by_their_logarithm_and_near_doses_differ():
    x = quantity_features("dose_fraction", torch.tensor([[0.1], [0.12], [0.25], [0.5], [1.0]]))
    assert (x[1:, 0] > x[:-1, 0]).all() and x[2, 0] == 0.0
    assert (x[4, 0] - x[3, 0]).item() == pytest.approx((x[3, 0] - x[2, 0]).item()) == pytest.approx(math.log(2) / 0.7)
    torch.testing.assert_close(x[3, 1 + 2], torch.sin(x[3, 0]))  # the third frequency is 1
    torch.testing.assert_close(x[3, 7 + 2], torch.cos(x[3, 0]))
    assert (x[1] - x[0]).norm() > 0.5
    assert quantity_features("age_years", torch.tensor([[0.0]]))[0, 0] == -2.0
    doses = make()({"dose_fraction": torch.tensor([0.1, 0.12])})
    assert (doses.tokens[0] - doses.tokens[1]).norm() > 0.05 and (doses.pooled[0] - doses.pooled[1]).norm() > 0.05


@torch.no_grad()
def test_a_spacing_with_one_unknown_number_is_unknown():
    model = make()
    output = model({"spacing_mm": torch.tensor([[2.0, 0.7, math.nan], [2.0, 0.7, 0.7], [2.0, 0.7, 0.9]])})
    unknown = model({}, batch_size=1)
    torch.testing.assert_close(output.pooled[0], unknown.pooled[0])
    assert (output.tokens[1, SPACING] != unknown.tokens[0, SPACING]).all()
    assert (output.tokens[1, SPACING] != output.tokens[2, SPACING]).any()


@torch.no_grad()
def test_a_spacing_is_no_error_where_it_is_no_condition():
    model = ConditionEncoder(("sex",))
    fields = {"spacing_mm": torch.ones(2, 3), "sex": torch.tensor([0, 1])}
    assert torch.equal(model(fields).pooled, model({"sex": fields["sex"]}).pooled)
    assert model({"spacing_mm": torch.ones(2, 3)}, batch_size=2).pooled.shape == (2, 64)


@torch.no_grad()
def test_padding_of_a_text_changes_nothing():
    model, fields = make(), known_fields()
    fields["text_mask"] = torch.tensor([[True, True, False], [False, False, False]])
    base = model(fields)
    assert base.mask[:, 14:].tolist() == [[True, True, False], [True, False, False]]
    padded = {**fields, "text_states": fields["text_states"].clone()}
    padded["text_states"][0, 2], padded["text_states"][1] = math.nan, 100.0
    other = model(padded)
    assert torch.equal(other.pooled, base.pooled) and torch.equal(other.tokens[other.mask], base.tokens[base.mask])
    longer = dict(fields)
    longer["text_states"] = torch.cat([fields["text_states"], torch.randn(2, 4, 7)], dim=1)
    longer["text_mask"] = torch.nn.functional.pad(fields["text_mask"], (0, 4))
    torch.testing.assert_close(model(longer).pooled, base.pooled)
    # the share is the mean over the words
    text = model.encoders["text"]
    share = text.project(text.norm(fields["text_states"][0, :2])).mean(dim=0)[6:]
    without = model({k: v for k, v in fields.items() if not k.startswith("text")}).pooled[0]
    torch.testing.assert_close(base.pooled[0] - without, share - text.unknown[6:], rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_finite_gradient():
    model, fields = make(), known_fields()
    # one row knows everything, the other nothing: both sides of every branch
    fields = null_fields(fields, CONDITION_NAMES, torch.tensor([False, True]))
    output = model(fields)
    (output.tokens.square().mean() + output.pooled.square().mean()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_save_and_load_gives_equal_output(tmp_path):
    model, fields = make(), known_fields()
    model.save_pretrained(tmp_path)
    loaded = ConditionEncoder.from_pretrained(tmp_path, use_safetensors=True)
    assert torch.equal(model(fields).tokens, loaded(fields).tokens)
    assert torch.equal(model(fields).pooled, loaded(fields).pooled)
    assert ConditionVocabulary.from_config(loaded.config) == VOCABULARY


@torch.no_grad()
def test_batch_equals_single_dict_equals_tuple_and_bfloat16_stays_near():
    model, fields = make(), known_fields()
    both = model(fields)
    single = model({key: value[:1] for key, value in fields.items()})
    torch.testing.assert_close(single.pooled[0], both.pooled[0])
    assert all(torch.equal(a, b) for a, b in zip(model(fields, return_dict=False), both.to_tuple()))
    low = model.to(torch.bfloat16)(fields)
    assert low.tokens.dtype == low.pooled.dtype == torch.bfloat16
    torch.testing.assert_close(low.pooled.float(), both.pooled, rtol=0.05, atol=0.05)


def test_a_new_encoder_has_tokens_and_pooled_vector_of_unit_spread():
    torch.manual_seed(0)
    model = ConditionEncoder(("sex", "kernel", "findings"), kernels=("a", "b"), findings=list("cdefgh"), pooled_dim=256)
    output = model({"sex": torch.zeros(1, dtype=torch.long), "findings": torch.ones(1, 6)})
    assert output.pooled.std().item() == pytest.approx(1.0, rel=0.15)
    assert output.tokens.std().item() == pytest.approx(1.0, rel=0.15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iodine": torch.zeros(2)}, "was given iodine"),
        ({"sex": torch.zeros(3, dtype=torch.long)}, r"`sex` must be \(2\)"),
        ({"findings": torch.zeros(2, 3)}, r"`findings` must be \(2, 2\)"),
        ({"spacing_mm": torch.zeros(2)}, r"`spacing_mm` must be \(2, 3\)"),
        ({"text_states": torch.zeros(2, 3, 8)}, r"`text_states` must be \(2, length, 7\)"),
        ({"text_mask": torch.ones(2, 4, dtype=torch.bool)}, "`text_mask` must be"),
    ],
)
def test_wrong_fields_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make()({**known_fields(), **change})


def test_half_a_text_and_an_unknown_batch_size_are_refused():
    fields = known_fields()
    del fields["text_mask"]
    with pytest.raises(ValueError, match="both `text_states` and `text_mask`"):
        make()(fields)
    with pytest.raises(ValueError, match="`batch_size` must be given"):
        make()({})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conditions": ()}, "at least one"), ({"conditions": ("sex", "sex")}, "without repetition"),
        ({"conditions": (*CONDITION_NAMES, "weight")}, "'weight'"), ({"kernels": ()}, "'kernel' needs `kernels`"),
        ({"conditions": CONDITION_NAMES[:-1]}, "'text' is not among"), ({"text_dim": 0}, "'text' needs `text_dim`"),
        ({"findings": ("a", "a")}, "twice"), ({"token_dim": 0}, "must be positive"),
    ],
)  # fmt: skip
def test_wrong_configuration_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)


def test_nulling_copies_and_refuses_what_is_no_condition():
    fields = known_fields()
    before = {key: value.clone() for key, value in fields.items()}
    nulled = null_fields(fields, CONDITION_NAMES)
    assert nulled["kernel"].tolist() == [-1, -1] and nulled["findings"].isnan().all()
    assert not nulled["text_mask"].any() and nulled["spacing_mm"].isnan().all()
    assert {key: value.dtype for key, value in nulled.items()} == {key: value.dtype for key, value in fields.items()}
    assert all(torch.equal(fields[key], before[key]) for key in fields)
    assert null_fields({"sex": fields["sex"]}, ["kernel"]).keys() == {"sex"}
    with pytest.raises(ValueError, match="'mri' is no condition"):
        null_fields(fields, ["mri"])


def dropped_table(n: int, *, each: float, all_: float) -> dict[str, np.ndarray]:
    """Which items lose which condition; for `findings`, each of the two."""
    fields = known_fields(n)
    dropped = drop_fields_at_random(fields, torch.arange(n), each=each, all_=all_)
    lost = {name: dropped[name] == -1 for name in ("body_part", "sex", "kernel", "contrast_agent")}
    lost |= {name: dropped[name].isnan() for name in ("kvp", "age_years", "dose_fraction")}
    lost |= {f"finding {i}": dropped["findings"][:, i].isnan() for i in range(2)}
    lost |= {"findings": dropped["findings"].isnan().all(dim=1), "text": ~dropped["text_mask"].any(dim=1)}
    return {name: values.numpy() for name, values in lost.items()}


def within_bounds(count: int, n: int, p: float) -> bool:
    return bool(stats.binomtest(count, n, p).pvalue > 1e-4)


def test_conditions_drop_at_their_rates_and_independently():
    n, each = 4000, 0.2
    lost = dropped_table(n, each=each, all_=0.0)
    names = [name for name in lost if not name.startswith("finding")]
    for name in names:
        assert within_bounds(int(lost[name].sum()), n, each), name
    for a, b in itertools.combinations(names, 2):
        assert within_bounds(int((lost[a] & lost[b]).sum()), n, each**2), (a, b)
    # a finding goes with the whole list, or with a part of it of uniformly drawn size: 1 - (1 - e)(1 - e / 2)
    for i in range(2):
        assert within_bounds(int(lost[f"finding {i}"].sum()), n, 1 - (1 - each) * (1 - each / 2))
    assert within_bounds(int(lost["findings"].sum()), n, each + (1 - each) * each / 3)  # both of two: E[u^2] = 1/3


def test_all_drop_at_once_at_their_rate():
    n, all_ = 4000, 0.15
    lost = np.stack(list(dropped_table(n, each=0.0, all_=all_).values()))
    assert np.array_equal(lost.all(axis=0), lost.any(axis=0))
    assert within_bounds(int(lost[0].sum()), n, all_)
    # both at work: independent of each other
    for name, values in dropped_table(n, each=0.2, all_=all_).items():
        if not name.startswith("finding"):
            assert within_bounds(int(values.sum()), n, 1 - (1 - 0.2) * (1 - all_)), name


def test_dropping_follows_the_seed_alone_and_leaves_its_input():
    fields, seeds = known_fields(40), torch.arange(40) * 7919
    before = {key: value.clone() for key, value in fields.items()}
    dropped = drop_fields_at_random(fields, seeds, each=0.4, all_=0.1)
    assert all(torch.equal(fields[key], before[key]) for key in fields)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    shuffled = drop_fields_at_random({k: v[order] for k, v in fields.items()}, seeds[order], each=0.4, all_=0.1)
    alone = drop_fields_at_random({"kvp": fields["kvp"]}, seeds, each=0.4, all_=0.1)
    torch.testing.assert_close(alone["kvp"], dropped["kvp"], equal_nan=True)
    for key in fields:
        torch.testing.assert_close(shuffled[key], dropped[key][order], equal_nan=True)
    none, everything = (drop_fields_at_random(fields, seeds, each=e, all_=0.0) for e in (0.0, 1.0))
    assert all(torch.equal(none[key], fields[key]) for key in fields)
    nulled = null_fields(fields, CONDITION_NAMES)
    for key in fields:
        torch.testing.assert_close(everything[key], nulled[key], equal_nan=True)
    for wrong in ({"each": -0.1, "all_": 0.0}, {"each": 0.0, "all_": 1.1}):
        with pytest.raises(ValueError, match="is a probability"):
            drop_fields_at_random(fields, seeds, **wrong)


REPORTS = ["solid nodule in the left lung", "no nodule", "a cyst of the liver and a stone of the kidney"]


def word_tokenizer(limit: int = 16) -> PreTrainedTokenizerFast:
    """Trained here, on three sentences."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["[UNK]", "[PAD]"])
    tokenizer.train_from_iterator(REPORTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=limit
    )


def text_encoder(kind: str):
    torch.manual_seed(0)
    size = {
        "vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "max_position_embeddings": 12,
    }  # fmt: skip
    if kind == "bert":
        return BertModel(BertConfig(**size)).eval()
    return CLIPTextModel(CLIPTextConfig(**size, eos_token_id=2, bos_token_id=0, pad_token_id=1)).eval()


@pytest.mark.parametrize("kind", ["bert", "clip"])
def test_reports_become_states_and_pad_or_none_does_not_matter(kind):
    encoder, tokenizer = text_encoder(kind), word_tokenizer()
    fields = encode_text([REPORTS[1], None, REPORTS[2]], encoder, tokenizer)
    assert fields["text_states"].shape == (3, 11, 8) and fields["text_states"].dtype == torch.float32
    assert fields["text_mask"].sum(dim=1).tolist() == [2, 0, 11] and not fields["text_states"].requires_grad
    alone = encode_text([REPORTS[1]], encoder, tokenizer)["text_states"]
    by_hand = encoder(input_ids=tokenizer(REPORTS[1], return_tensors="pt")["input_ids"]).last_hidden_state
    torch.testing.assert_close(alone, by_hand)
    torch.testing.assert_close(fields["text_states"][0, :2], alone[0], rtol=1e-4, atol=1e-5)
    torch.manual_seed(0)
    model = ConditionEncoder(("sex", "text"), text_dim=8, token_dim=6, pooled_dim=5)
    output = model(fields)
    assert output.mask.sum(dim=1).tolist() == [1 + 2, 1 + 1, 1 + 11]
    torch.testing.assert_close(output.pooled[1], model({}, batch_size=1).pooled[0])
    assert (output.pooled[0] - output.pooled[2]).abs().max() > 1e-3
    nothing = encode_text([None, None], encoder, tokenizer)
    assert nothing["text_states"].shape == (2, 1, 8) and not nothing["text_mask"].any()
    torch.testing.assert_close(model(nothing).pooled, model({}, batch_size=2).pooled)


@pytest.mark.parametrize(("limit", "allowed"), [(16, 12), (8, 8)])
def test_a_report_that_is_too_long_is_refused_with_its_length_and_not_shown(limit, allowed):
    with pytest.raises(ValueError, match=f"takes {allowed} tokens and text 2 has 13") as caught:
        encode_text([None, "no", "nodule " * 13], text_encoder("bert"), word_tokenizer(limit))
    assert "nodule" not in str(caught.value)


def test_items_dropped_together_are_those_that_keep_no_condition():
    seeds = torch.arange(400)
    fields = {"sex": torch.zeros(400, dtype=torch.int64), "age_years": torch.full((400,), 40.0)}
    dropped = drop_fields_at_random(fields, seeds, each=0.0, all_=0.3)
    together = dropped_together(seeds, 0.3)
    assert torch.equal(dropped["sex"] < 0, together) and torch.equal(dropped["age_years"].isnan(), together)
    assert 90 <= int(together.sum()) <= 150
