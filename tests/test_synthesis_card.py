"""The card of a synthesis model: shares with n, convention, interval and ceiling; refused where something is missing."""

import json

import pytest
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results
from typer.testing import CliRunner

from diffusers_ct.cli import build_app
from diffusers_ct.cli.checkpoints import fingerprint
from diffusers_ct.hub import (
    CardError,
    CardPicture,
    check_model_card,
    render_model_card,
    render_synthesis_card,
    write_card,
)
from tests.pipelines.test_optional_components import pipeline
from tests.test_hub import CARD, benchmark
from tests.test_hub import pipeline as restorer
from tests.test_model_card import AUDIT, COMPUTE, PNG


def row(name: str, share: float) -> dict:
    phases = {
        f"aorta_{what} {phase}": 1.0
        for what in ("hu", "error_hu", "missing")
        for phase in ("none", "arterial", "portal")
    }
    return {
        "name": name, "volumes": 96, "body_part": share, "body_part_95": [share - 0.1, min(share + 0.05, 1.0)],
        "possible_findings": share, "possible_findings_95": [share - 0.1, min(share + 0.05, 1.0)], "cyst present": share,
        "cyst absent": share, **phases,
    }  # fmt: skip


EVALUATION = {
    "rows": [row("real phantoms, held out", 0.98), row("synthesised, guidance 1", 0.8), row("synthesised, guidance 2", 0.912345)],
    "findings": ["cyst"], "steps": 20, "seed": 0, "shape": [2, 16, 16], "spacing_mm": [6.0, 2.0, 2.0],
    "judge_phantoms": 2400, "command": "python examples/evaluate_synthesis.py --model m",
}  # fmt: skip
TOLD = {
    "repo_id": "user/model", "licence": "apache-2.0", "command": "make it", "training_config": {"seed": 3},
    "limits": ["Drawn anatomy alone."],
}  # fmt: skip


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


def test_each_setting_has_shares_with_n_convention_interval_and_ceiling(pipe):
    card = render_synthesis_card(pipe, evaluation=EVALUATION, **TOLD)
    assert check_model_card(card, "user/model") == []
    _, results = model_index_to_eval_results(yaml.safe_load(card.split("---\n")[1])["model-index"])
    of = {(r.dataset_config, r.metric_type): r for r in results}
    assert len(results) == 4 and ("real phantoms, held out", "body_part_share") not in of
    best = of["synthesised, guidance 2", "body_part_share"]
    assert best.metric_value == 0.9123 and best.metric_args["interval_95"] == [0.8123, 0.9623]
    assert best.metric_args["n_volumes"] == 96 and best.metric_args["on_real_volumes"] == 0.98
    assert "2400 real phantoms" in best.metric_args["convention"]
    assert "| synthesised, guidance 2 | 96 | 91.2 (81.2-96.2) |" in card and "the ceiling of the table" in card
    assert "Makes CT volumes (HU) from conditions: body_part, findings" in card and "spacing_mm=(6, 2, 2)" in card
    assert "Not audited" in card and "No pictures were kept" in card


def test_the_example_of_the_card_runs(pipe):
    card = render_synthesis_card(pipe, evaluation=EVALUATION, **TOLD)
    code = (
        card.split("```python\n")[1]
        .split("```")[0]
        .replace('CTDiffusionPipeline.from_pretrained("user/model")', "pipe")
    )
    names = {"pipe": pipe}
    exec(code.replace("num_samples=2,", "num_samples=2, num_inference_steps=2,"), names)
    assert [volume.shape for volume in names["made"]] == [(2, 16, 16)] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluation": {**EVALUATION, "rows": EVALUATION["rows"][:1]}}, "a row of synthesised volumes"),
        ({"evaluation": {k: v for k, v in EVALUATION.items() if k != "findings"}}, "'findings' in the evaluation"),
        ({"licence": "", "limits": []}, "`licence`, `limits`"), ({"audit": {"flagged": 1}}, "'volumes' in `audit`"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(pipe, change, message):
    with pytest.raises(CardError, match=message):
        render_synthesis_card(pipe, **{"evaluation": EVALUATION, **TOLD, **change})


def test_a_restoring_model_has_another_card(pipe):
    with pytest.raises(CardError, match="render_model_card"):
        render_synthesis_card(restorer(), evaluation=EVALUATION, **TOLD)
    with pytest.raises(CardError, match="render_synthesis_card"):
        render_model_card(pipe, benchmark=benchmark(), **CARD)


def test_the_command_takes_the_evaluation_of_these_weights_alone(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "pipeline")
    (tmp_path / "config.json").write_text('{"seed": 3}')
    (tmp_path / "compute.json").write_text(json.dumps(COMPUTE))
    (tmp_path / "audit.json").write_text(json.dumps(AUDIT))
    (tmp_path / "grids").mkdir()
    (tmp_path / "grids" / "a.png").write_bytes(PNG)
    (tmp_path / "grids" / "pictures.json").write_text(
        json.dumps([{"file": "a.png", "title": "cyst", "caption": "Rows."}])
    )
    words = [
        "card", tmp_path / "pipeline", "--repo", "user/model", "--benchmark", tmp_path / "synthesis.json", "--licence",
        "apache-2.0", "--limit", "Drawn.", "--training-config", tmp_path / "config.json", "--compute",
        tmp_path / "compute.json", "--memorisation", tmp_path / "audit.json", "--pictures", tmp_path / "grids", "--output",
        tmp_path / "card" / "README.md",
    ]  # fmt: skip
    (tmp_path / "synthesis.json").write_text(json.dumps({**EVALUATION, "weights": "sha256:000000000000"}))
    refused = CliRunner().invoke(build_app(), list(map(str, words)))
    assert "is not of this model" in str(refused.exception) and not (tmp_path / "card").exists()
    (tmp_path / "synthesis.json").write_text(json.dumps({**EVALUATION, "weights": fingerprint(tmp_path / "pipeline")}))
    done = CliRunner().invoke(build_app(), list(map(str, words)))
    assert done.exit_code == 0, done.output
    card = (tmp_path / "card" / "README.md").read_text()
    assert check_model_card(card, "user/model", folder=tmp_path / "card") == ["pictures/01.png"]
    for text in (
        "**cyst.** Rows.",
        "3 of 100 generated volumes",
        "2 x a GPU",
        "evaluate_synthesis.py --model m",
        "sha256:",
    ):
        assert text in card, text


def test_its_pictures_are_written_beside_it(pipe, tmp_path):
    picture = CardPicture("cyst", "Rows.", PNG)
    card = render_synthesis_card(pipe, evaluation=EVALUATION, pictures=[picture], **TOLD)
    write_card(tmp_path / "README.md", card, [picture])
    assert check_model_card(card, "user/model", folder=tmp_path) == ["pictures/01.png"]
