"""`diffusers-ct card`: from files that training and evaluation leave to a card that can be pushed."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffusers_ct.cli import build_app
from diffusers_ct.cli.checkpoints import fingerprint
from diffusers_ct.evaluation.benchmark_result import BenchmarkResult
from diffusers_ct.hub import check_model_card
from tests.test_hub import benchmark, pipeline
from tests.test_model_card import AUDIT, COMPUTE, PNG


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What a training and its evaluation leave."""
    made = tmp_path_factory.mktemp("made")
    pipeline().save_pretrained(made / "pipeline")
    pipeline(contract=False).save_pretrained(made / "promises_nothing")
    judged = benchmark()
    judged.rows[0]["method"] = "small, 1 step"
    judged.facts |= {
        "weights": json.dumps({"small": fingerprint(made / "pipeline")}), "data": "phantoms", "split": "test: other",
        "command": "diffusers-ct evaluate OUT --dataset phantoms",
    }  # fmt: skip
    judged.comparisons = [{"method": "small, 1 step", "column": "psnr_full", "group": "dose 25 %"}]
    judged.save(made / "benchmark.json")
    BenchmarkResult(judged.rows, {**judged.facts, "weights": {"small": "sha256:000000000000"}}).save(
        made / "other.json"
    )
    BenchmarkResult(judged.rows).save(made / "silent.json")
    (made / "training_config.json").write_text(json.dumps({"seed": 3, "output_dir": "/home/a"}))
    (made / "compute.json").write_text(json.dumps(COMPUTE))
    (made / "audit.json").write_text(json.dumps(AUDIT))
    (made / "list.json").write_text("[]")
    (made / "torn.json").write_text('{"rows"')
    (made / "worst").mkdir()
    (made / "worst" / "01.png").write_bytes(PNG)
    (made / "worst" / "pictures.json").write_text(json.dumps([{"file": "01.png", "title": "a", "caption": "b"}]))
    return made


def run(folder: Path, output: Path, **options: object):
    """The command with all that is needed, but for what is changed or, with None, left out."""
    given = {
        "benchmark": folder / "benchmark.json", "repo": "user/model", "licence": "apache-2.0", "output": output,
        "training_config": folder / "training_config.json", "limit": "Adults alone.", **options,
    }  # fmt: skip
    model = given.pop("model", folder / "pipeline")
    words = [w for k, v in given.items() if v is not None for w in (f"--{k.replace('_', '-')}", str(v))]
    return CliRunner().invoke(build_app(), ["card", str(model), *words, "--json"])


def test_the_card_says_what_the_files_say_and_can_be_pushed(folder, tmp_path):
    records = {"compute": folder / "compute.json", "memorisation": folder / "audit.json", "pictures": folder / "worst"}
    done = run(folder, tmp_path / "card" / "README.md", **records)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["method"] == "small, 1 step" and Path(told["pictures"][0]).read_bytes() == PNG
    card = (tmp_path / "card" / "README.md").read_text()
    assert check_model_card(card, "user/model", folder=tmp_path / "card") == ["pictures/01.png"]
    for text in ("On phantoms, split `test`", "--dataset phantoms", "* `seed`: 3", "* Adults alone.", "2 x a GPU",
                 "3 of 100 generated volumes"):  # fmt: skip
        assert text in card, text
    assert str(tmp_path) not in card and "/home/a" not in card
    again = run(folder, tmp_path / "card" / "README.md")
    assert isinstance(again.exception, FileExistsError)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"licence": None}, "would lack --licence"),
        ({"limit": None, "training_config": None}, "would lack --training-config, --limit"),
        ({"benchmark": "silent.json", "method": "small, 1 step"}, "--dataset-name, --dataset-split, --command"),
        ({"benchmark": "other.json", "method": "small, 1 step"}, "not of this model"),
        ({"benchmark": "silent.json"}, "a row ''"),
        ({"benchmark": "torn.json"}, "is no JSON"),
        ({"benchmark": "list.json"}, "JSON object"),
        ({"benchmark": "compute.json"}, "is no benchmark.json"),
        ({"method": "BM4D"}, "a row 'BM4D'"),
        ({"model": "promises_nothing", "benchmark": "silent.json", "method": "small, 1 step"}, "a contract"),
        ({"memorisation": "compute.json"}, "'flagged' in --memorisation"),
        ({"co2_grams": 1}, "--co2-source"),
    ],
)
def test_what_is_missing_is_named_by_its_flag_and_nothing_is_written(folder, tmp_path, change, says):
    from diffusers_ct.cli.wording import in_flags

    paths = {k: folder / v if str(v).endswith("json") or k == "model" else v for k, v in change.items()}
    done = run(folder, tmp_path / "card.md", **paths)
    assert isinstance(done.exception, ValueError), done.output
    assert says in in_flags(str(done.exception), "card")
    assert list(tmp_path.iterdir()) == []
