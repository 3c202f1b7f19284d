"""The card of a model: intervals, pictures, audit and compute in it, and what a card must have to be pushed."""

import json

import numpy as np
import pytest
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

from diffusers_ct.hub import (
    CardError,
    CardPicture,
    audit_of,
    check_model_card,
    joined_compute,
    joined_configs,
    population_of,
    read_pictures,
    render_model_card,
    write_card,
)
from diffusers_ct.metrics import memorisation_check
from diffusers_ct.metrics.feature_sets import FeatureSet
from tests.test_hub import CARD, benchmark, pipeline, rows

COMPUTE = {"minutes": 41.7, "steps": 2000, "processes": 2, "device": "a GPU"}
AUDIT = {
    "flagged": 3, "volumes": 100, "false_positive_rate": 0.05, "p_value": 0.4, "held_out_patients": 19, "extractor": "x",
}  # fmt: skip
PNG = b"\x89PNG of a slice"
PICTURE = CardPicture("dose 25 %, scan 4", "Gain 0.1 dB; slice 3 of 9.", PNG)


def two_doses():
    result = benchmark()
    result.facts |= {"aggregation": "95 %, by a method", "reference": "noise-free truth"}
    first = result.rows[0]
    first["intervals"] = {
        "psnr_full": [40.5, 41.987654],
        "rmse_body_hu": [11.0, 14.0],
        "ssim_full": [float("nan"), 0.96],
    }
    result.rows.append({**first, "group": "dose 10 %", "psnr_full": 38.5, "intervals": {}})
    return result


def render(**change) -> str:
    return render_model_card(pipeline(), **{"benchmark": two_doses(), **CARD, **change})


def results_of(card: str):
    return model_index_to_eval_results(yaml.safe_load(card.split("---\n")[1])["model-index"])[1]


def test_each_dose_has_results_of_its_own_with_convention_and_interval():
    results = {(r.dataset_config, r.metric_type): r for r in results_of(render())}
    psnr = results["dose 25 %", "psnr_full"]
    assert psnr.metric_value == 41.2346 and results["dose 10 %", "psnr_full"].metric_value == 38.5
    assert psnr.metric_args == {
        "convention": "full", "n_patients": 3, "n_scans": 4, "n_slices": 9, "interval_95": [40.5, 41.9877],
        "aggregation": "95 %, by a method", "reference": "noise-free truth",
    }  # fmt: skip
    assert psnr.dataset_name == "phantom test set, dose 25 %" and psnr.dataset_split == "test"
    for key in (("dose 10 %", "psnr_full"), ("dose 25 %", "ssim_full")):  # none, and one that is no number
        assert "interval_95" not in results[key].metric_args


def test_the_reader_sees_the_interval_or_why_there_is_none():
    card = render()
    assert "* Means and intervals: 95 %, by a method\n* Command: `make quickstart`" in card
    assert "* Compared with: noise-free truth" in card and "(3 patients, 4 scans, 9 slices)" in card
    assert "| PSNR full, pooled [dB] | 41.23 | 40.50 to 41.99 |" in card
    assert "| PSNR full, pooled [dB] | 38.50 | too few patients |" in card


def test_comparisons_of_the_method_are_shown():
    result = two_doses()
    row = {"group": "dose 25 %", "method": "ours", "against": "BM3D", "column": "rmse_body_hu", "difference": -1.5,
           "low": -2.0, "high": -1.0, "p_holm": 0.012, "n_patients": 3, "test": "sign-flip, exact"}  # fmt: skip
    result.comparisons = [row, {**row, "against": "TV", "low": None, "high": None}, {**row, "method": "other"}]
    card = render(benchmark=result)
    assert "is NOT ahead" not in card and "is ahead" not in card, "no verdict where metrics are missing"
    assert (
        "| dose 25 % | BM3D | -1.50 | -2.00 to -1.00 | 0.012 | 3 |" in card
        and "paired by patient (sign-flip, exact)" in card
    )
    assert "| dose 25 % | TV | -1.50 | too few patients | 0.012 | 3 |" in card
    assert card.count("| BM3D |") == 1


def test_how_it_stands_beside_others_is_said_in_words():
    result = benchmark()
    values = dict.fromkeys(("psnr_full", "psnr_soft", "ssim_full", "ssim_soft"), 0.9) | {
        "rmse_body_hu": 5.0,
        "mae_body_hu": 4.0,
    }
    result.rows[0] |= values
    worse = {**result.rows[0], "method": "TV", "rmse_body_hu": 9.0, "ssim_soft": 0.95}
    result.rows += [worse, {**worse, "method": "ceiling", **dict.fromkeys(values)}]
    same = {"group": "dose 25 %", "method": "ours", "against": "TV", "difference": -4.0, "low": None, "high": None,
            "p_holm": 0.01}  # fmt: skip
    result.comparisons = [{**same, "column": "rmse_body_hu"}]
    card = render(benchmark=result)
    assert "* dose 25 %: ours is better than every other method in RMSE body [HU]; it is NOT ahead" in card


def test_samples_are_judged_with_their_number_and_interval():
    result = two_doses()
    study = {"group": "dose 25 %", "method": "m, 8 samples", "nominal": [0.5, 0.9], "coverage": [0.6, 0.961],
             "coverage_low": [0.5, 0.933], "coverage_high": [0.7, 0.989], "n_patients": 3}  # fmt: skip
    few = {**study, "group": "dose 10 %", "coverage_low": None, "coverage_high": None, "n_patients": 1}
    result.studies["calibration"] = [study, few, {**study, "method": "other, 8 samples"}]
    result.facts["sampling_steps"] = 10
    for row in result.rows:
        row["method"] = "m, 1 step"
    card = render(benchmark=result, method="m, 1 step")
    assert "Posterior samples of 10 steps" in card
    assert "| dose 25 % | 8 samples | 96.1 | 93.3 to 98.9 | 3 |" in card and card.count("| 8 samples |") == 2
    assert "| dose 10 % | 8 samples | 96.1 | too few patients | 1 |" in card
    assert "was not measured" in render()


def test_phases_of_a_training_are_joined():
    first, second = {"seed": 0, "max_train_steps": 1000}, {"seed": 0, "max_train_steps": 500, "new": None}
    assert joined_configs([first, second]) == {"seed": 0, "max_train_steps": "1000, then 500", "new": None}
    both = joined_compute([COMPUTE, {**COMPUTE, "minutes": 0.3, "steps": 500}])
    assert both == {**COMPUTE, "minutes": 42.0, "steps": 2500}
    with pytest.raises(CardError, match="different devices"):
        joined_compute([COMPUTE, {**COMPUTE, "device": "another"}])
    with pytest.raises(CardError, match="'minutes' in `compute`"):
        render(compute=joined_compute([COMPUTE, {k: v for k, v in COMPUTE.items() if k != "minutes"}]))


def test_what_is_not_known_is_said_and_what_is_known_is_shown():
    bare = render()
    for text in ("Not audited", "time and device were not recorded", "Carbon: not measured", "is not recorded here",
                 "No pictures of failures"):  # fmt: skip
        assert text in bare, text
    full = render(
        compute=COMPUTE, audit=AUDIT, co2_grams=120.0, co2_source="CodeCarbon", pictures=[PICTURE],
        population=[("patients", "12"), ("sex", "F 5, M 7")],
    )  # fmt: skip
    for text in ("41.7 minutes for 2000 steps on 2 x a GPU", "120 g CO2 equivalent (CodeCarbon)", "| sex | F 5, M 7 |",
                 "3 of 100 generated volumes", "5 are expected by chance", "![dose 25 %, scan 4](pictures/01.png)"):  # fmt: skip
        assert text in full, text
    assert yaml.safe_load(full.split("---\n")[1])["co2_eq_emissions"] == {"emissions": 120.0, "source": "CodeCarbon"}
    assert "co2_eq_emissions" not in bare


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"compute": {"minutes": 1.0}}, "'steps' in `compute`"),
        ({"audit": {"flagged": 1}}, "'volumes' in `audit`"),
        ({"co2_grams": 1.0}, "`co2_source`"),
        ({"command": "", "training_config": {}}, "`command`, `training_config`"),
    ],
)
def test_half_of_a_record_is_refused(change, message):
    with pytest.raises(CardError, match=message):
        render(**change)


def test_no_path_of_the_run_is_shown():
    card = render(training_config={"resume_from_checkpoint": "/home/a/x", "logging_dir": "/home/a/logs", "seed": 3})
    assert "/home/a" not in card and "* `seed`: 3" in card and "* measured with: diffusers-ct 0.1\n" in card


def test_a_rendered_card_passes_its_own_check_and_its_pictures_lie_beside_it(tmp_path):
    card = render(pictures=[PICTURE])
    (written,) = write_card(tmp_path / "card" / "README.md", card, [PICTURE])
    assert written.read_bytes() == PNG and (tmp_path / "card" / "README.md").read_text() == card
    assert check_model_card(card, "user/model", folder=tmp_path / "card") == ["pictures/01.png"]
    assert sorted(p.name for p in (tmp_path / "card").iterdir()) == ["README.md", "pictures"]
    for path in (tmp_path / "card" / "README.md", tmp_path / "card" / "other.md"):
        with pytest.raises(FileExistsError):
            write_card(path, card, [PICTURE])
    written.unlink()
    with pytest.raises(CardError, match=r"the picture pictures/01\.png"):
        check_model_card(card, "user/model", folder=tmp_path / "card")
    with pytest.raises(CardError, match="the picture"):
        check_model_card(card, "user/model")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("license: apache-2.0\n", "", "`license`"),
        ("library_name: diffusers\n", "", "`library_name`"),
        ("model-index:", "other:", "`model-index`"),
        ("split: test", "split: train", "held-out `split`"),
        ("convention: soft", "other: soft", "`convention` of each metric"),
        ("## Limits\n", "## Praise\n", 'the section "Limits"'),
        ("---\nlibrary_name", "library_name", "its metadata"),
        ("license: apache-2.0", "license: [", "no YAML"),
        ("# user/model\n", "# user/another\n", "not of user/model"),
    ],
)
def test_a_card_that_was_cut_down_is_not_pushed(old, new, message):
    result = two_doses()
    result.rows[0]["psnr_soft"] = 30.0
    card = render(benchmark=result)
    assert check_model_card(card, "user/model") == [] and old in card
    with pytest.raises(CardError, match=message):
        check_model_card(card.replace(old, new), "user/model")


def test_an_empty_section_is_a_missing_one():
    card = render()
    begin, end = card.index("## Limits"), card.index("## Memorisation")
    with pytest.raises(CardError, match='"Limits"'):
        check_model_card(f"{card[:begin]}## Limits\n\n{card[end:]}", "user/model")


def test_a_picture_from_elsewhere_on_the_machine_is_not_pushed(tmp_path):
    (tmp_path / "secret.png").write_bytes(PNG)
    (tmp_path / "card").mkdir()
    card = render().replace("## Limits\n", "## Limits\n\n![x](../secret.png)\n")
    with pytest.raises(CardError, match="the picture"):
        check_model_card(card, "user/model", folder=tmp_path / "card")


def test_pictures_are_read_as_evaluate_left_them(tmp_path):
    (tmp_path / "01.png").write_bytes(PNG)
    (tmp_path / "pictures.json").write_text(json.dumps([{"file": "01.png", "title": "a", "caption": "b"}]))
    (picture,) = read_pictures(tmp_path)
    assert (picture.title, picture.caption, picture.png) == ("a", "b", PNG)
    (tmp_path / "pictures.json").write_text("[{}]")
    with pytest.raises(ValueError, match="evaluate"):
        read_pictures(tmp_path)


def test_the_audit_counts_what_the_check_found():
    rng = np.random.default_rng(0)

    def features(values: np.ndarray, first: int) -> FeatureSet:
        return FeatureSet(values, np.array([str(first + k) for k in range(len(values))]), "x")

    training = rng.normal(size=(50, 4))
    found = memorisation_check(
        features(np.concatenate([training[:2], rng.normal(size=(8, 4))]), 1000),
        features(training, 0),
        features(rng.normal(size=(19, 4)), 500),
        false_positive_rate=0.05,
    )
    audit = audit_of(found)
    assert audit["volumes"] == 10 and audit["held_out_patients"] == 19 and audit["flagged"] >= 2
    assert json.loads(json.dumps(audit)) == audit
    assert f"{audit['flagged']} of 10 generated volumes" in render(audit=audit)


def test_patients_are_counted_once_and_the_unknown_too():
    conditions = [{"age_years": 30.0, "sex": "F"}, {"age_years": 70.0, "manufacturer": "SIEMENS"}, {}]
    scans = rows(3).map(lambda row, k: {"conditions": json.dumps(conditions[k])}, with_indices=True)
    again = scans.map(lambda row: {"patient_key": scans[0]["patient_key"]})  # three scans of one patient
    assert dict(population_of(scans)) == {
        "patients": "3", "age": "30 to 70 years, median 70, unknown 1", "sex": "F 1, unknown 2",
        "manufacturer": "SIEMENS 1, unknown 2", "body part": "unknown 3",
    }  # fmt: skip
    assert dict(population_of(again))["patients"] == "1"
