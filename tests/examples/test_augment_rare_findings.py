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
from diffusers_ct.image_conditions import image_channels
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
    "--finding", FINDING, "--positives", POSITIVES, "--synthetic", 3, "--steps", 2, "--phantoms", 24,
    "--test_phantoms", 16, "--classifier_steps", 2, "--batch_size", 4, "--width", 4, "--seeds", 2, "--resamples", 50,
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
    phantom_volumes(24, first_seed=example.POOL_SEED, cache=out / "pool_phantoms.npz", **drawn)
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
        "few + synthetic of a model that saw few",
        "many, balanced and augmented",
    ]
    pool, test = facts["pool"], facts["test"]
    assert [row["real_positives"] for row in facts["rows"]] == [POSITIVES] * 5 + [pool["positives"]]
    assert [row["synthetic_positives"] for row in facts["rows"]] == [0, 0, 0, 3, 3, 0]
    assert pool["positives"] > POSITIVES and test["positives"] > 0 and test["negatives"] > 0
    few, control, best = facts["rows"][0], facts["rows"][2], facts["rows"][-1]
    assert best["auc_minus_few"] == pytest.approx(best["auc"] - few["auc"])
    assert best["sensitivity_minus_control"] == pytest.approx(best["sensitivity"] - control["sensitivity"])
    assert "auc_minus_few" not in few and "auc_minus_control" not in control
    for row in facts["rows"]:
        assert row["auc"] == pytest.approx(np.mean(row["auc_of_runs"])) and len(row["auc_of_runs"]) == 2
        assert row["auc_95"][0] <= row["auc"] <= row["auc_95"][1]

    saw_many, saw_few = facts["checkpoints"]["many"], facts["checkpoints"]["few"]
    assert saw_many["training_data"] == "99 diffusers-ct phantoms"
    assert saw_few["training_data"] == f"24 diffusers-ct phantoms {example.rare_words(4_000_000, FINDING, POSITIVES)}"
    assert saw_many["revision"].startswith("sha256:") and saw_many["revision"] != saw_few["revision"]
    assert f"Model that saw many: saw_many ({saw_many['revision']})" in text
    assert "not the setting of a rare finding" in text and "no cases but the few: the setting of a rare" in text
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
        (("--model", model, "--seeds", 0), "must be positive"),
    ):
        with pytest.raises(SystemExit, match=message):
            example.main(words("--output_dir", tmp_path / "none", *SMALL, *flags))
    assert not (tmp_path / "none").exists()


def test_what_looks_synthetic_says_nothing_of_the_label():
    real, synthetic = 0.0, 1000.0
    groups = (
        example.labelled(torch.full((2, 1, 2, 8, 8), real), 1),
        example.labelled(torch.full((40, 1, 2, 8, 8), real), 0),
        example.labelled(torch.full((9, 1, 2, 8, 8), synthetic), 1),
        example.labelled(torch.full((9, 1, 2, 8, 8), synthetic), 0),
    )
    for augmented in (False, True):
        hu, label = example.draw_batch(example.Setting("", groups, augmented), 16, torch.Generator().manual_seed(0))
        looks_synthetic = hu.mean(dim=(1, 2, 3, 4)) > 500.0
        assert hu.shape == (16, 1, 2, 8, 8)
        for source in (False, True):
            assert label[looks_synthetic == source].tolist().count(1.0) == 4
            assert label[looks_synthetic == source].tolist().count(0.0) == 4


def test_few_come_as_rarely_as_they_are_and_the_noise_has_its_strength():
    setting = example.Setting("few", (example.mixed(torch.zeros(5, 1, 1, 4, 4), torch.zeros(95, 1, 1, 4, 4)),))
    hu, label = example.draw_batch(setting, 4000, torch.Generator().manual_seed(0))
    assert label.mean() == pytest.approx(0.05, abs=0.015)
    assert hu.std() == pytest.approx(example.NOISE_HU, rel=0.02)


def test_augmentation_flips_head_to_feet_and_left_to_right_alone():
    volume = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(1, 1, 2, 3, 4) * 1e5
    setting = example.Setting("", (example.labelled(volume, 1),), augmented=True)
    hu, _ = example.draw_batch(setting, 64, torch.Generator().manual_seed(0))
    seen = {tuple((one / 1e5).round().flatten().int().tolist()) for one in hu}
    wanted = {tuple((volume[0] / 1e5).flip(axes).flatten().int().tolist()) for axes in ((), (1,), (3,), (1, 3))}
    assert seen == wanted


def test_twins_differ_in_the_finding_and_in_nothing_else(model):
    args = example.parse_args(words("--output_dir", "unused", "--model", model, *SMALL))
    with_finding, without = example.draw_conditions(LESION_KINDS, args)
    assert len(with_finding) == len(without) == 3
    for a, b in zip(with_finding, without):
        assert set(a.findings) - set(b.findings) == {FINDING} and set(b.findings) < set(a.findings)
        assert FINDING in b.findings_absent and set(a.findings) | set(a.findings_absent) == set(LESION_KINDS)
        assert (a.body_part, a.contrast_phase) == (b.body_part, b.contrast_phase) and a.body_part == "THORAX"
    # a network that outputs zeros cannot tell them apart: what is left is the noise, the same for twins alone
    pipe, revision = example.load_synthesis(str(model), args, few=False)
    assert revision.startswith("sha256:")
    made, twins = example.synthesise_twins(pipe, args)
    assert made.shape == (3, 1, *SHAPE) and torch.equal(made, twins) and not torch.equal(made[0], made[1])


def test_the_classifier_finds_a_planted_lesion_and_so_do_the_judges(model):
    rng = torch.Generator().manual_seed(0)
    without = -800.0 + 20.0 * torch.randn((40, 1, 2, 16, 16), generator=rng)
    lesion = torch.zeros_like(without)
    for number in range(40):
        y, x = torch.randint(0, 12, (2,), generator=rng).tolist()
        lesion[number, :, :, y : y + 4, x : x + 4] = 300.0
    with_finding = without.roll(1, 0) + lesion
    args = example.parse_args(
        words("--output_dir", "unused", "--model", model, *SMALL, "--classifier_steps", 40, "--batch_size", 8)
    )
    setting = example.Setting(
        "", (example.labelled(with_finding[:20], 1), example.labelled(without[:20], 0)), augmented=True
    )
    judges = [example.train_classifier(setting, args, seed) for seed in (0, 1)]
    truth = np.arange(40) < 20
    scores = [example.score(judge, torch.cat([with_finding[20:], without[20:]])) for judge in judges]
    assert all(example.auc(one, truth) > 0.95 for one in scores)
    again = example.score(example.train_classifier(setting, args, 0), torch.cat([with_finding[20:], without[20:]]))
    np.testing.assert_array_equal(scores[0], again)

    judged = example.judge_twins(judges, without[20:], with_finding[20:], without[:20])
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
