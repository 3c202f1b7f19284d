"""The rare-findings example at a very small size, and the parts on which its honesty rests."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_ct import CheckpointContract, ConditionEncoder, CTDiffusionPipeline, ScanConditions, UNet3DCTModel
from diffusers_ct.conditions import ConditionVocabulary
from diffusers_ct.data.volumes import ConditionedVolume, phantom_volumes
from diffusers_ct.evaluation.spot_classifier import feature_scale, labelled, noisy_features, train_spot_classifier
from diffusers_ct.evaluation.spot_features import SPOT_FEATURES
from diffusers_ct.image_conditions import image_channels
from diffusers_ct.metrics import auc
from diffusers_ct.physics import LESION_KINDS
from diffusers_ct.schedulers import make_noise_scheduler

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples"))

import augment_rare_findings as example  # noqa: E402
from train_synthesis import make_rare  # noqa: E402

FINDING, POSITIVES = "ground_glass_nodule", 2
SHAPE, SPACING, RADIUS = (2, 32, 32), (12.0, 12.0, 12.0), (16.0, 24.0)
GRID = ("--shape", *SHAPE, "--spacing", *SPACING, "--lesion_radius", *RADIUS)
SMALL = (
    "--finding", FINDING, "--positives", POSITIVES, "--synthetic", 4, "--steps", 2, "--phantoms", 40,
    "--test_phantoms", 16, "--classifier_steps", 5, "--batch_size", 8, "--seeds", 2, "--resamples", 50,
    *GRID,
)  # fmt: skip


def words(*arguments: object) -> list[str]:
    return [str(a) for a in arguments]


def save_model(folder: Path, training_data: str, findings=LESION_KINDS) -> Path:
    """A synthesis pipeline that has learned nothing: its network outputs zeros."""
    names = ("body_part", "contrast_phase", "findings")
    phases = ("arterial", "none", "portal")
    vocabulary = ConditionVocabulary(names, ("ABDOMEN", "THORAX"), contrast_phase=phases, findings=findings)
    encoder = ConditionEncoder(**vocabulary.to_config(), token_dim=8, pooled_dim=8)
    torch.manual_seed(0)
    unet = UNet3DCTModel(
        in_channels=1 + image_channels(("context",)), block_out_channels=(8, 16, 16), layers_per_block=1, conv_mode="2.5d",
        pooled_dim=8, window_depth=SHAPE[0],
    )  # fmt: skip
    contract = CheckpointContract.from_scans(
        [SPACING], [], [], [], training_data=training_data, training_data_licence="Apache-2.0", package_version="0",
        target="image", volume_shape=SHAPE,
    )  # fmt: skip
    scheduler = make_noise_scheduler("cosine")
    CTDiffusionPipeline(
        unet, scheduler, contract.to_dict(), condition_encoder=encoder, target="image", image_conditions="context"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "saw_many", "99 diffusers-ct phantoms")


def test_table_json_and_picture_say_which_model_saw_what(model, tmp_path, capsys):
    out = tmp_path / "rare"
    drawn = {"shape": SHAPE, "spacing_mm": SPACING, "lesion_radius_mm": RADIUS, "processes": 1}
    phantom_volumes(40, first_seed=example.POOL_SEED, cache=out / "pool_phantoms.npz", **drawn)
    phantom_volumes(16, first_seed=example.TEST_SEED, cache=out / "test_phantoms.npz", **drawn)
    phantom_volumes(8, first_seed=1_000_000, cache=out / "few_model" / "held_out.npz", **drawn)
    shutil.copy(out / "pool_phantoms.npz", out / "few_model" / "phantoms.npz")
    tiny = (
        "--max_train_steps", 2, "--lr_warmup_steps", 1, "--train_batch_size", 2, "--block_out_channels", 8, 16, 16,
        "--transformer_depth", 0, 0, 0,
    )  # fmt: skip
    example.main(words("--model", model, "--output_dir", out, *SMALL, "--train_few", *tiny))

    text = (out / "rare_findings.md").read_text()
    assert text in capsys.readouterr().out
    facts = json.loads((out / "rare_findings.json").read_text())
    names = [row["name"] for row in facts["rows"]]
    assert names == [
        "few",
        "few, balanced",
        "few, balanced and augmented",
        "few + synthetic of a model that saw many",
        "few + synthetic of a model that saw many: placebo",
        "few + synthetic of a model that saw few",
        "few + synthetic of a model that saw few: placebo",
        "many, balanced and augmented",
    ]
    pool, test = facts["pool"], facts["test"]
    assert [row["real_positives"] for row in facts["rows"]] == [POSITIVES] * 7 + [pool["positives"]]
    assert [row["synthetic_positives"] for row in facts["rows"]] == [0, 0, 0, 4, 4, 4, 4, 0]
    assert pool["positives"] > POSITIVES and test["positives"] > 0 and test["negatives"] > 0
    few, control, best = facts["rows"][0], facts["rows"][2], facts["rows"][-1]
    assert best["auc_minus_few"] == pytest.approx(best["auc"] - few["auc"])
    assert best["sensitivity_minus_control"] == pytest.approx(best["sensitivity"] - control["sensitivity"])
    placebo = {row["name"]: row["auc_minus_placebo"] for row in facts["rows"] if "auc_minus_placebo" in row}
    assert list(placebo) == [names[3], names[5]]
    assert placebo[names[5]] == pytest.approx(facts["rows"][5]["auc"] - facts["rows"][6]["auc"])
    assert "auc_minus_few" not in few and "auc_minus_control" not in control
    for row in facts["rows"]:
        assert row["auc"] == pytest.approx(np.mean(row["auc_of_runs"])) and len(row["auc_of_runs"]) == 2
        assert row["auc_95"][0] <= row["auc"] <= row["auc_95"][1]

    saw_many, saw_few = facts["checkpoints"]["many"], facts["checkpoints"]["few"]
    assert saw_many["training_data"] == "99 diffusers-ct phantoms"
    assert saw_few["training_data"] == f"40 diffusers-ct phantoms {example.rare_words(4_000_000, FINDING, POSITIVES)}"
    assert saw_many["revision"].startswith("sha256:") and saw_many["revision"] != saw_few["revision"]
    assert f"Model that saw many: saw_many ({saw_many['revision']})" in text
    assert "not the setting of a rare finding" in text and "no cases but the few: the setting of a rare" in text
    other_sets = (pool["positives"] - POSITIVES) // POSITIVES
    assert [list(one) for one in facts["auc_of_other_few"].values()] == [[names[k] for k in (0, 2, 3, 4)]] * other_sets
    assert other_sets > 0 and f"Luck of the draw: with {other_sets} other sets of 2 real cases" in text
    assert "--train_few --max_train_steps 2" in facts["command"] and facts["command"] in text
    picture = np.asarray(Image.open(out / "synthetic_cases.png"))
    assert picture.shape == (5 * 32 * 3, 110 + 6 * 32 * 3) and picture[: 32 * 3, 110 : 110 + 32 * 3].std() > 10


def test_a_model_under_the_wrong_flag_is_refused_before_any_work(model, tmp_path):
    few_words = example.rare_words(example.POOL_SEED, FINDING, POSITIVES)
    few = save_model(tmp_path / "few", f"24 diffusers-ct phantoms {few_words}")
    fewer = save_model(tmp_path / "fewer", f"24 diffusers-ct phantoms {few_words.replace('first 2', 'first 1')}")
    blind = save_model(tmp_path / "blind", "99 diffusers-ct phantoms", findings=("cyst",))
    for flags, message in (
        (("--few_model", model), "must have been trained on phantoms from seed 4000000 .* only the first 2"),
        (("--few_model", fewer), "only the first 1"),
        (("--model", few), "give it as --few_model"),
        (("--model", blind), "knows the finding ground_glass_nodule"),
        (("--model", model, "--shape", 4, 32, 32), "give that as --shape"),
        ((), "Give --model, --few_model or --train_few"),
        (("--few_model", few, "--train_few"), "not both"),
        (("--model", model, "--batch_size", 6), "multiple of 4"),
        (("--model", model, "--synthetic", 5), "must be even"),
        (("--model", model, "--seeds", 0), "must be positive"),
    ):
        with pytest.raises(SystemExit, match=message):
            example.main(words("--output_dir", tmp_path / "none", *SMALL, *flags))
    assert not (tmp_path / "none").exists()


def test_a_model_of_the_few_cannot_start_from_one_that_saw_more(model, tmp_path):
    flags = (
        "--phantoms",
        40,
        "--keep_positives",
        FINDING,
        POSITIVES,
        "--init_from",
        model,
        "--output_dir",
        tmp_path / "none",
    )
    with pytest.raises(SystemExit, match="what its pipeline has seen"):
        example.train_synthesis(words(*flags))
    assert not (tmp_path / "none").exists()


def test_labels_of_a_placebo_say_nothing():
    with_finding, without = torch.ones(2, 6, SPOT_FEATURES), torch.zeros(2, 6, SPOT_FEATURES)
    first, second = example.exchange_labels(with_finding, without)
    assert first[:, :, 0].tolist() == [[1.0, 0.0] * 3] * 2 and torch.equal(second, 1.0 - first)


def test_twins_differ_in_the_finding_and_in_nothing_else(model):
    args = example.parse_args(words("--output_dir", "unused", "--model", model, *SMALL))
    with_finding, without = example.draw_conditions(LESION_KINDS, args)
    assert len(with_finding) == len(without) == 4
    for a, b in zip(with_finding, without):
        assert set(a.findings) - set(b.findings) == {FINDING} and set(b.findings) < set(a.findings)
        assert FINDING in b.findings_absent and set(a.findings) | set(a.findings_absent) == set(LESION_KINDS)
        assert (a.body_part, a.contrast_phase) == (b.body_part, b.contrast_phase) and a.body_part == "THORAX"
    # a network that outputs zeros cannot tell them apart: what is left is the noise, the same for twins alone
    pipe, revision = example.load_synthesis(str(model), args, few=False)
    assert revision.startswith("sha256:")
    made, twins = example.synthesise_twins(pipe, args)
    assert made.shape == (4, *SHAPE) and np.array_equal(made, twins) and not np.array_equal(made[0], made[1])


def test_the_classifier_finds_a_planted_lesion_in_the_twins_too():
    rng = np.random.default_rng(0)
    without = np.full((40, 2, 24, 24), -850.0) + 60.0 * rng.standard_normal((40, 2, 1, 1))
    with_finding = np.roll(without, 1, axis=0)
    for volume in with_finding:
        y, x = rng.integers(0, 20, 2)
        volume[:, y : y + 4, x : x + 4] = -600.0
    real, absent = (
        noisy_features(volumes, (6.0, 6.0, 6.0), 10.0, varying=False, copies=2, seed=0)
        for volumes in (with_finding, without)
    )
    groups = labelled(real[:, :20], 1), labelled(absent[:, :20], 0)
    how = {"scale": feature_scale(absent[:, :20]), "steps": 60, "batch_size": 8}
    classifiers = [train_spot_classifier(groups, **how, seed=seed) for seed in (0, 1)]
    held_out = torch.cat([real[0, 20:], absent[0, 20:]])
    scores = [example.score(one, held_out) for one in classifiers]
    assert all(auc(one[:20], one[20:]) > 0.95 for one in scores)
    again = example.score(train_spot_classifier(groups, **how, seed=0), held_out)
    np.testing.assert_array_equal(scores[0], again)
    assert not np.array_equal(scores[0], scores[1])

    judged = example.judge_twins(classifiers, absent[0, 20:], real[0, 20:], absent[0, :20])
    assert judged["asked for"]["seen"] > 0.8 and judged["asked not to be"]["seen"] < 0.4
    low, high = judged["asked for"]["seen_95"]
    assert judged["asked for"]["volumes"] == 20 and low < judged["asked for"]["seen"] <= high


def test_a_finding_is_made_rare_by_leaving_out_all_but_the_first():
    def volume(number: int, **findings) -> ConditionedVolume:
        return ConditionedVolume(np.full((1, 1, 1), number, np.int16), SPACING, ScanConditions(**findings))

    with_cyst = [volume(n, findings=("cyst",)) for n in range(7)]
    without = [volume(10 + n, findings_absent=("cyst",)) for n in range(3)]
    unknown = [volume(20)]
    mixed = [*unknown, *with_cyst[:4], *without, *with_cyst[4:]]
    kept = [int(v.hu.item()) for v in make_rare(mixed, "cyst", 2)]
    assert kept == [10, 11, 12, *(0, 1) * 3]
    with pytest.raises(SystemExit, match="8 volumes with cyst cannot be kept: there are 7"):
        make_rare(mixed, "cyst", 8)
