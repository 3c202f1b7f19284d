"""Adapters to Hugging Face `evaluate`: they equal `metrics.image`, and the known faults of public code cannot happen."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from diffusers_ct.hounsfield import WINDOWS_HU, hu_to_unit, unit_to_hu
from diffusers_ct.metrics import (
    CONVENTIONS,
    bias,
    body_mask,
    evaluate_modules,
    mae,
    psnr_pooled,
    psnr_slice_mean,
    rmse,
    ssim,
)
from diffusers_ct.metrics.evaluate_modules import CTMAE, CTPSNR, CTRMSE, CTSSIM, MODULES, CTBias


@pytest.fixture(scope="module", autouse=True)
def empty_cache(tmp_path_factory):
    """`evaluate` makes a folder for each module: not in the user's cache here."""
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("metrics")
    patch.setattr(evaluate.config, "HF_METRICS_CACHE", folder)
    yield folder
    assert [path for path in folder.rglob("*") if path.is_file()] == []  # no voxel was ever written
    patch.undo()


@pytest.fixture(scope="module")
def volumes():
    rng = np.random.default_rng(0)
    pairs = []
    for depth in (1, 4, 2):
        reference = rng.normal(40, 120, (depth, 24, 28)).astype(np.float32)
        pairs.append((reference + rng.normal(3, 20, reference.shape).astype(np.float32), reference))
    return pairs


def modules(convention, region="image"):
    return [
        CTPSNR(convention=convention),
        CTSSIM(convention=convention),
        *(module(convention=convention, region=region) for module in (CTRMSE, CTMAE, CTBias)),
    ]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_combined_modules_equal_the_functions_in_any_batches_and_order(volumes, convention):
    predicted, reference = (np.concatenate(part) for part in zip(*volumes))
    expected = {
        "psnr_slice_mean_db": psnr_slice_mean(predicted, reference, convention=convention),
        "ssim": ssim(predicted, reference, convention=convention),
        "rmse_hu": rmse(predicted, reference, convention=convention),
        "mae_hu": mae(predicted, reference, convention=convention),
        "bias_hu": bias(predicted, reference, convention=convention),
    }
    if convention != "corediff":
        expected["psnr_pooled_db"] = psnr_pooled(predicted, reference, convention=convention)
    combined = evaluate.combine(modules(convention))

    # 1. volumes, one a batch, backwards
    for p, r in reversed(volumes):
        combined.add_batch(predictions=[p], references=[r])
    assert combined.compute() == pytest.approx(expected, rel=1e-12)
    # 2. all at once, after the first result has emptied the sums
    assert combined.compute(predictions=[p for p, _ in volumes], references=[r for _, r in volumes]) == pytest.approx(
        expected, rel=1e-12
    )
    # 3. slices one by one, and an array of slices
    for p, r in zip(predicted[:3], reference[:3]):
        combined.add(prediction=p, reference=r)
    combined.add_batch(predictions=predicted[3:], references=reference[3:])
    assert combined.compute() == pytest.approx(expected, rel=1e-12)


def test_body_alone(volumes):
    pairs = []
    for predicted, reference in volumes:
        body = np.full((len(reference), 24, 28), -1000.0)
        body[:, 4:20, 5:22] = reference[:, 4:20, 5:22].clip(-400)
        pairs.append((body + predicted - reference, body))
    predicted, reference = (np.concatenate(part) for part in zip(*pairs))
    mask = np.concatenate([body_mask(r) for _, r in pairs])
    assert not mask.all()
    found = evaluate.combine(modules("full", "body")[2:]).compute(
        predictions=[p for p, _ in pairs], references=[r for _, r in pairs]
    )
    assert found == pytest.approx(
        {
            "rmse_hu": rmse(predicted, reference, convention="full", mask=mask),
            "mae_hu": mae(predicted, reference, convention="full", mask=mask),
            "bias_hu": bias(predicted, reference, convention="full", mask=mask),
        },
        rel=1e-12,
    )


def test_per_slice_data_range_cannot_happen():
    """A clip of metal in one slice must not change its score: the same error is the same number of dB in each slice."""
    reference = np.random.default_rng(0).normal(0, 50, (2, 16, 16))
    reference[1, 8, 8] = 3000.0
    metric = CTPSNR(convention="full")
    scores = [metric.compute(predictions=[s + 10.0], references=[s]) for s in reference]
    assert scores[0] == pytest.approx(scores[1])
    assert scores[0]["psnr_pooled_db"] == pytest.approx(20 * np.log10(4095 / 10))
    legacy = CTPSNR(convention="corediff")  # the published convention with that fault does change, and says so
    faulty = [legacy.compute(predictions=[s + 10.0], references=[s])["psnr_slice_mean_db"] for s in reference]
    assert faulty[1] - faulty[0] > 5
    assert "each reference slice" in legacy.description


def test_eight_bit_quantisation_cannot_happen():
    """0.1 HU is 1/160 of a step of 8 bits on the full range: it must be measured, not rounded away."""
    reference = np.random.default_rng(0).normal(40, 120, (2, 16, 16)).astype(np.float32)
    for convention in ("full", "soft", "rddm"):
        inside = reference.clip(-150, 230)
        found = CTRMSE(convention=convention, region="image").compute(
            predictions=[inside + np.float32(0.1)], references=[inside]
        )
        assert found["rmse_hu"] == pytest.approx(0.1, rel=1e-3)
        assert np.isfinite(CTPSNR(convention=convention).compute(
            predictions=[inside + np.float32(0.1)], references=[inside])["psnr_pooled_db"])  # fmt: skip


def test_mean_shift_of_denormalisation_cannot_happen():
    """There and back is the identity in HU; a range one HU too wide on the way back shows in the bias."""
    metric = CTBias(convention="full", region="image")
    reference = np.random.default_rng(0).uniform(-1000, 2000, (2, 16, 16))
    for window in ("full", (-1024.0, 3072.0)):
        back = unit_to_hu(hu_to_unit(reference, window), window)
        assert abs(metric.compute(predictions=[back], references=[reference])["bias_hu"]) < 1e-9
    low, high = WINDOWS_HU["full"]
    faulty = unit_to_hu(hu_to_unit(reference, "full"), (low, high + 1.0))
    expected = np.mean((reference - low) / (high - low))
    assert metric.compute(predictions=[faulty], references=[reference])["bias_hu"] == pytest.approx(expected)
    assert expected > 0.3


def test_a_refused_batch_leaves_the_sums_alone(volumes):
    predicted, reference = volumes[1]
    metric = CTMAE(convention="full", region="image")
    metric.add_batch(predictions=[predicted], references=[reference])
    with pytest.raises(ValueError, match="one shape"):
        metric.add_batch(predictions=[predicted + 50, predicted[:1]], references=[reference, reference])
    assert metric.compute()["mae_hu"] == pytest.approx(mae(predicted, reference, convention="full"))


def test_refusals(volumes):
    predicted, reference = volumes[1]
    with pytest.raises(TypeError):
        CTPSNR()
    with pytest.raises(TypeError):
        CTRMSE(convention="full")
    with pytest.raises(ValueError, match="Unknown convention"):
        CTPSNR(convention="psnr")
    with pytest.raises(ValueError, match="region"):
        CTRMSE(convention="full", region="lung")
    with pytest.raises(ValueError, match="one process"):
        CTSSIM(convention="full", num_process=2)
    metric = CTSSIM(convention="full")
    with pytest.raises(ValueError, match="Nothing was added"):
        metric.compute()
    with pytest.raises(ValueError, match="do not fit"):
        metric.add_batch(predictions=[predicted], references=[reference, reference])
    with pytest.raises(ValueError, match=r"\[volume\]"):
        metric.add_batch(predictions=predicted[0], references=reference[0])
    with pytest.raises(ValueError, match="both needed"):
        metric.add(prediction=predicted)
    with pytest.raises(ValueError, match="Unknown inputs"):
        metric.add_batch(predictions=[predicted], references=[reference], data_range=[400])


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
def test_cards_name_the_convention_and_their_example_runs(module, volumes):
    region = {} if module in (CTPSNR, CTSSIM) else {"region": "image"}
    card = module(convention="soft", **region).card()
    assert "clip -160 to 240 HU, data range 400 HU" in card and card.startswith("---\ntitle: CT")
    code = card.split("```python\n")[1].split("```")[0]
    predicted, reference = volumes[0]
    names = {"restored_hu": predicted, "reference_hu": reference}
    exec(code.replace("metric.compute()", "result = metric.compute()"), names)
    for key in names["result"]:
        assert f"`{key}`" in card


def test_a_result_comes_back_from_a_card_with_its_convention(volumes, tmp_path):
    """What goes to the Hub is the result, not the module; and not the file of `evaluate.save`, which names a place."""
    predicted, reference = volumes[0]
    metric = CTPSNR(convention="soft")
    found = metric.compute(predictions=[predicted], references=[reference])
    result = EvalResult(
        task_type="image-to-image", dataset_type="user/ds", dataset_name="ds", dataset_split="test",
        metric_type="psnr_pooled_db", metric_config=metric.config_name, metric_value=found["psnr_pooled_db"],
        metric_args={"convention": metric.config_name, "n_slices": len(reference)},
    )  # fmt: skip
    card = ModelCard.from_template(
        ModelCardData(model_name="m", eval_results=[result]), template_str="---\n{{ card_data }}\n---\n"
    )
    (back,) = ModelCard(str(card)).data.eval_results
    assert back == result and back.metric_config == "soft"
    saved = json.loads(evaluate.save(tmp_path / "result.json", **found).read_text())
    assert saved["psnr_pooled_db"] == found["psnr_pooled_db"] and saved["_interpreter_path"] == sys.executable


def test_without_evaluate_the_error_says_what_to_install_and_nothing_else_needs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate", None)
    spec = importlib.util.spec_from_file_location("diffusers_ct.metrics.without_evaluate", evaluate_modules.__file__)
    with pytest.raises(ImportError, match=r"diffusers-ct\[metrics\]"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    for file in Path(evaluate_modules.__file__).parent.glob("*.py"):
        if file.name != "evaluate_modules.py":
            assert not re.search(r"^\s*(import evaluate|from \.?evaluate)", file.read_text(), re.MULTILINE)
