"""Cards that say what was measured, and datasets of which nothing identifies anyone."""

import json

import numpy as np
import pytest
import yaml
from datasets import Dataset, DatasetDict

from diffusers_ct import CheckpointContract, CTDiffusionPipeline, ScanConditions, UNet3DCTModel
from diffusers_ct.data.manifest import features, hashed_key, make_row
from diffusers_ct.evaluation.benchmark_result import COLUMNS, BenchmarkResult
from diffusers_ct.hub import CardError, check_nothing_identifying, push_dataset, render_dataset_card, render_model_card
from diffusers_ct.schedulers import make_noise_scheduler


def benchmark() -> BenchmarkResult:
    row = {
        "method": "ours",
        "group": "dose 25 %",
        **dict.fromkeys(COLUMNS),
        "n_patients": 3,
        "n_scans": 4,
        "n_slices": 9,
    }
    row |= {"psnr_full": 41.234567, "ssim_full": 0.95, "rmse_body_hu": 12.5, "bias_body_hu": -0.1}
    return BenchmarkResult([row], {"package_version": "0.1"})


def pipeline(contract: bool = True) -> CTDiffusionPipeline:
    unet = UNet3DCTModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        downsample_strides=(1, 2, 2),
        refine_channels=4,
        norm_num_groups=4,
    )
    promise = CheckpointContract("64 phantoms", "Apache-2.0", kernels=("soft",), dose_fraction=(0.1, 0.25)).to_dict()
    return CTDiffusionPipeline(unet, make_noise_scheduler(), promise if contract else None)


CARD = {
    "repo_id": "user/model", "licence": "apache-2.0", "method": "ours", "dataset_name": "phantom test set",
    "dataset_split": "test", "command": "make quickstart", "training_config": {"max_train_steps": 7, "output_dir": "/x"},
    "limits": ["Trained on drawings."],
}  # fmt: skip


def test_model_card_is_rendered_from_contract_and_benchmark():
    card = render_model_card(pipeline(), benchmark=benchmark(), **CARD)
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["library_name"] == "diffusers" and metadata["pipeline_tag"] == "image-to-image"
    assert "diffusers-ct" in metadata["tags"] and metadata["license"] == "apache-2.0"
    result = metadata["model-index"][0]["results"][0]
    assert result["dataset"]["split"] == "test"
    assert result["metrics"][0]["value"] == 41.2346
    for text in (
        "64 phantoms",
        "not a medical device",
        "make quickstart",
        "41.23",
        "`kernels` | soft",
        "max_train_steps",
    ):
        assert text in card
    assert "/x" not in card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licence": ""}, "`licence`"), ({"limits": []}, "`limits`"), ({"method": "theirs"}, "a row 'theirs'"),
        ({"dataset_split": "train"}, "training split"),
    ],
)  # fmt: skip
def test_a_card_that_lacks_something_is_refused(change, message):
    with pytest.raises(CardError, match=message):
        render_model_card(pipeline(), benchmark=benchmark(), **{**CARD, **change})
    with pytest.raises(CardError, match="contract"):
        render_model_card(pipeline(contract=False), benchmark=benchmark(), **CARD)


def rows(count: int = 3) -> Dataset:
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        full = rng.integers(-100, 200, (2, 16, 16)).astype(np.float32)
        made.append(
            make_row(
                full + 5, full, scan_key=hashed_key("salt", i), patient_key=hashed_key("phantom", i), split="train",
                dose_fraction=0.25, spacing_mm=(1, 1, 1), affine_lps=np.eye(4), target="noise_free",
                conditions=ScanConditions(), provenance={"source": "phantom", "phantom_seed": i},
            )
        )  # fmt: skip
    return Dataset.from_list(made, features=features((16, 16)))


def test_only_what_cannot_identify_is_pushed():
    sound = rows()
    check_nothing_identifying(sound)
    with pytest.raises(ValueError, match="PatientName"):
        check_nothing_identifying(sound.add_column("PatientName", ["x"] * 3))
    with pytest.raises(ValueError, match="no salted hash"):
        check_nothing_identifying(sound.map(lambda r: {"patient_key": "L506"}))
    with pytest.raises(ValueError, match="patient_id"):
        check_nothing_identifying(sound.map(lambda r: {"conditions": json.dumps({"patient_id": 1})}))
    with pytest.raises(ValueError, match="free text") as caught:
        report = ScanConditions(text="Seen in Alonso Quixote.").to_dict()
        check_nothing_identifying(sound.map(lambda r: {"conditions": json.dumps(report)}))
    assert "Quixote" not in str(caught.value)
    known = ScanConditions(kernel="B30f", contrast_phase="portal", findings=("nodule",)).to_dict()
    check_nothing_identifying(sound.map(lambda r: {"conditions": json.dumps(known)}))
    with pytest.raises(ValueError, match="path or a name"):
        check_nothing_identifying(sound.map(lambda r: {"provenance": json.dumps({"file": "/home/a"})}))


def changed(column: str, **change) -> Dataset:
    return rows(1).map(lambda row: {column: json.dumps({**json.loads(row[column]), **change})})


@pytest.mark.parametrize(
    ("column", "change", "message"),
    [
        ("provenance", {"deidentification": None}, "prepare the data anew with `diffusers-ct prepare`"),
        ("provenance", {"deidentification": "by hand"}, "does not say that the row was de-identified"),
        ("provenance", {"phantom_seed": 5}, "not that of its seed"),
        ("provenance", {"note": "x" * 65}, "long text"),
        ("provenance", {"note": ["Quixote^Alonso"]}, "path or a name"),
        ("conditions", {"body_part": "QUIXOTE"}, "`body_part`"),
        ("conditions", {"kernel": "Quixote^Alonso"}, "`kernel`"),
        ("conditions", {"findings": ["seen in Alonso"]}, "`findings`"),
        ("conditions", {"contrast_phase": "as Dr. Sancho said"}, "`contrast_phase`"),
        ("conditions", {"age_years": 93.0}, "above 90"),
    ],
)
def test_a_row_that_was_not_deidentified_is_refused_without_quoting_it(column, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_nothing_identifying(changed(column, **change))
    assert not any(name in str(caught.value).casefold() for name in ("quixote", "alonso", "sancho"))


@pytest.mark.parametrize(
    "body_part", ["CHEST", "HEAD/NECK", "CHEST_TO_PELVIS", "PARTIALBODY", "CSPINE", "LOWER EXTREMITY"]
)
def test_words_of_body_parts_that_scanners_write_are_pushed(body_part):
    check_nothing_identifying(changed("conditions", body_part=body_part))


def test_a_dataset_from_elsewhere_is_refused_before_anything_is_sent(monkeypatch):
    monkeypatch.setattr("diffusers_ct.hub_datasets.HfApi", lambda **_: pytest.fail("reached the Hub"))
    old = changed("provenance", deidentification=None)
    with pytest.raises(ValueError, match="not pushed"):
        push_dataset(DatasetDict(train=old), "user/ds", licence="cc0-1.0", description="x")
    text_as_dose = rows(1).remove_columns("dose_fraction").add_column("dose_fraction", ["Quixote"])
    with pytest.raises(ValueError, match="does not hold numbers"):
        check_nothing_identifying(text_as_dose)


def test_dataset_card_counts_rows_and_patients():
    card = render_dataset_card(DatasetDict(train=rows()), repo_id="user/ds", licence="apache-2.0", description="Drawn.")
    assert "| train | 3 | 3 |" in card and "25 %" in card and "`noise_free`" in card
    with pytest.raises(CardError, match="licence"):
        render_dataset_card(DatasetDict(train=rows()), repo_id="user/ds", licence="", description="x")
