"""The card of a dataset: what its rows say, what they imply, and that it is of these rows when it is pushed."""

import json

import numpy as np
import pytest
import yaml
from datasets import Dataset, DatasetDict
from typer.testing import CliRunner

from diffusers_ct.cli import build_app
from diffusers_ct.data import load_paired_ct, prepare_paired_ct
from diffusers_ct.data.manifest import features, hashed_key, make_row
from diffusers_ct.hub import CardError, check_dataset_card, push_dataset, render_dataset_card
from tests.test_hub import rows

TOLD = {"repo_id": "user/ds", "licence": "apache-2.0", "description": "Drawn."}


def of_patients(target: str) -> DatasetDict:
    """Two scans of one patient, one of another, as the preparation of series of a scanner writes them."""
    from diffusers_ct import ScanConditions

    rng = np.random.default_rng(0)
    made = []
    for patient, kernel, kvp in ((0, "B30f", 100.0), (0, "B70f", 120.0), (1, None, None)):
        full = rng.integers(-100, 200, (2, 16, 16)).astype(np.float32)
        conditions = ScanConditions(
            kernel=kernel, kvp=kvp, sex="F", age_years=40.0, manufacturer="ACME", body_part="CHEST"
        )
        made.append(
            make_row(
                full + rng.normal(0, 9, full.shape).astype(np.float32), full, scan_key=hashed_key("s", len(made)),
                patient_key=hashed_key("s", f"p{patient}"), split="train", dose_fraction=0.25, spacing_mm=(3, 0.7, 0.7),
                affine_lps=np.eye(4), target=target, conditions=conditions, provenance={"source": "pairs"},
            )
        )  # fmt: skip
    return DatasetDict(train=Dataset.from_list(made, features=features((16, 16))))


def test_patients_scanners_and_how_it_was_made_are_told():
    card = render_dataset_card(of_patients("same_scan"), limits=["One hospital."], citation="doi:10.1/x", **TOLD)
    for text in (
        "| train | 3 | 2 |", "| patients | 2 |", "| sex | F 2 |", "| manufacturer | ACME 2 |", "| kernel | B30f 1, B70f 1, unknown 1 |",
        "| tube voltage | 100 to 120 kV, unknown 1 |", "| slice spacing | 3 mm |", "| pixel spacing | 0.7 mm |",
        "| matrix | 16 x 16 |", "measured low- and full-dose series", "shares it with `low`", "* One hospital.",
        "Faces in head scans", "The data: doi:10.1/x", "`same_scan`, a full dose",
    ):  # fmt: skip
        assert text in card, text
    assert "noise_free" not in card
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["license"] == "apache-2.0" and metadata["size_categories"] == ["n<1K"]
    assert metadata["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*"}]


def test_each_kind_of_reference_has_its_own_warning():
    simulated = render_dataset_card(of_patients("normal_dose"), **TOLD)
    drawn = render_dataset_card(DatasetDict(train=rows()), **TOLD)
    assert "it is no truth" in simulated and "Drawn, not patients" not in simulated
    assert "Drawn, not patients" in drawn and "Faces" not in drawn and "A patient is a drawn phantom here" in drawn


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("license: apache-2.0\n", "", "`license`"), ("size_categories:", "sizes:", "`size_categories`"),
        ("## Limits\n", "## Praise\n", 'the section "Limits"'), ("# user/ds\n", "# user/other\n", "not of user/ds"),
        ("| train | 3 | 3 |", "| train | 4 | 3 |", "the split train has 3 rows of 3 patients"), ("---\n", "", "its metadata"),
    ],
)  # fmt: skip
def test_a_card_that_lacks_something_or_is_of_other_rows_is_not_pushed(old, new, message, monkeypatch):
    monkeypatch.setattr("diffusers_ct.hub_datasets.HfApi", lambda **_: pytest.fail("reached the Hub"))
    dataset = DatasetDict(train=rows())
    card = render_dataset_card(dataset, **TOLD)
    check_dataset_card(card, "user/ds", dataset)
    assert old in card
    with pytest.raises(CardError, match=message):
        push_dataset(dataset, "user/ds", card=card.replace(old, new))


def test_nothing_is_pushed_without_a_card_or_what_makes_one(monkeypatch):
    monkeypatch.setattr("diffusers_ct.hub_datasets.HfApi", lambda **_: pytest.fail("reached the Hub"))
    dataset = DatasetDict(train=rows())
    with pytest.raises(CardError, match="lack licence, description"):
        push_dataset(dataset, "user/ds")
    with pytest.raises(ValueError, match="leave out `licence`"):
        push_dataset(dataset, "user/ds", card=render_dataset_card(dataset, **TOLD), licence="apache-2.0")


def test_the_command_leaves_the_card_of_a_folder(tmp_path):
    prepare_paired_ct(
        tmp_path / "data", phantoms=2, dose_fractions=(0.25,), shape=(2, 64, 64), spacing_mm=(3, 6, 6),
        validation_fraction=0, test_fraction=0,
    )  # fmt: skip
    words = [
        "card-dataset",
        str(tmp_path / "data"),
        "--repo",
        "user/ds",
        "--output",
        str(tmp_path / "card" / "README.md"),
    ]
    told = ["--licence", "apache-2.0", "--description", "Two phantoms.", "--limit", "Coarse."]
    assert isinstance(CliRunner().invoke(build_app(), words).exception, CardError)
    assert not (tmp_path / "card").exists()
    done = CliRunner().invoke(build_app(), [*words, *told, "--json"])
    assert done.exit_code == 0, done.output
    card = (tmp_path / "card" / "README.md").read_text()
    assert json.loads(done.stdout) == {"card": str(tmp_path / "card" / "README.md")}
    check_dataset_card(card, "user/ds", load_paired_ct(tmp_path / "data"))
    assert "* Coarse." in card and "Two phantoms." in card and str(tmp_path) not in card
    again = CliRunner().invoke(build_app(), [*words, *told])
    assert isinstance(again.exception, FileExistsError)
