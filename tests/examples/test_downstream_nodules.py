"""The downstream example at a very small size: its table, its patches, and a classifier of one's own."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusers_ct import CTDiffusionPipeline, UNet3DCTModel
from diffusers_ct.physics import ORGAN_LABELS, make_phantom
from diffusers_ct.residual import CONDITION_CHANNELS
from diffusers_ct.schedulers import make_noise_scheduler

FILE = Path(__file__).parents[2] / "examples" / "downstream_nodules.py"
spec = importlib.util.spec_from_file_location("downstream_nodules", FILE)
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)

SHAPE, SPACING = (2, 64, 64), (6.0, 6.0, 6.0)
SMALL = (
    "--train_phantoms", 4, "--test_phantoms", 6, "--shape", *SHAPE, "--spacing", *SPACING, "--lesion_radius", 8, 12,
    "--patch", 12, "--epochs", 1, "--tuning_scans", 1, "--resamples", 50, "--baselines", "Gaussian",
)  # fmt: skip


def words(*arguments: object) -> list[str]:
    return [str(a) for a in arguments]


def save_identity(folder: Path) -> Path:
    """A restoration pipeline that has learned nothing: its network outputs zeros, so that it returns the low dose."""
    unet = UNet3DCTModel(
        in_channels=1 + CONDITION_CHANNELS, block_out_channels=(8, 8), layers_per_block=1, refine_channels=4,
        downsample_strides=(1, 2, 2), norm_num_groups=4,
    )  # fmt: skip
    CTDiffusionPipeline(unet, make_noise_scheduler()).save_pretrained(folder)
    return folder


def test_table_and_json_with_a_pipeline_that_does_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    example.main(words("--output_dir", out, "--model", save_identity(tmp_path / "pipeline"), *SMALL))
    text = (out / "downstream.md").read_text()
    assert text in capsys.readouterr().out
    held = json.loads((out / "downstream.json").read_text())
    rows = {row["images"]: row for row in held["downstream"]}
    assert list(rows) == ["full dose", "low dose", "Gaussian", "diffusers-ct, 1 step"]
    assert all(row["group"] == "dose 10 %" and row["n_patients"] == 6 for row in rows.values())
    assert all(row["task"] == "solid_nodule in 72 x 72 x 12 mm of lung" for row in rows.values())
    nothing, low = rows["diffusers-ct, 1 step"], rows["low dose"]
    assert (nothing["auc"], nothing["low"], nothing["high"]) == (low["auc"], low["low"], low["high"])
    assert nothing["minus_low"] == nothing["minus_low_high"] == 0.0 and f"{low['auc']:.3f}" in text
    assert set(held["facts"]["baseline_strengths"]) == {"Gaussian"}
    assert not any(str(tmp_path) in str(value) for value in held["facts"]["settings"].values())

    # the trained network from its file judges as it did; a network of one's own judges in its own way
    again = tmp_path / "again"
    example.main(words("--output_dir", again, "--classifier", out / "nodules.safetensors", *SMALL))
    repeated = json.loads((again / "downstream.json").read_text())["downstream"]
    assert repeated == [rows[row["images"]] for row in repeated] and len(repeated) == 3
    torch.export.save(torch.export.export(Mean(), (torch.zeros(1, 1, 2, 12, 12),)), tmp_path / "own.pt2")
    example.main(words("--output_dir", again, "--classifier", tmp_path / "own.pt2", *SMALL))
    own = json.loads((again / "downstream.json").read_text())["downstream"]
    assert [row["auc"] for row in own] != [row["auc"] for row in repeated]


class Mean(torch.nn.Module):
    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        return hu.mean()


def test_patches_hold_what_they_say_and_the_nodule_is_not_always_in_the_middle():
    places = []
    for seed in range(6):
        phantom = make_phantom(
            seed, "thorax", shape=SHAPE, spacing_mm=SPACING, findings=["solid_nodule"], lesion_radius_mm=(8.0, 12.0)
        )
        regions = example.patches(phantom, 16, seed)
        assert [r.present for r in regions] == [True] * len(phantom.lesions) + [False]
        for number, region in enumerate(regions, start=1):
            box = tuple(slice(a, a + n) for a, n in zip(region.start, region.size))
            inside = phantom.lesion_mask[box]
            assert inside.shape == (2, 16, 16)
            if region.present:
                places.append(np.argwhere(inside == number).mean(axis=0)[1:])
            else:
                assert not inside.any() and (phantom.organs[box] == ORGAN_LABELS["lung"]).any()
    places = np.array(places)
    assert places.std(axis=0).min() > 1.0 and (np.abs(places - 7.5) <= 6.0).mean() > 0.8
    healthy = make_phantom(0, "thorax", shape=SHAPE, spacing_mm=SPACING, findings=[])
    assert [r.present for r in example.patches(healthy, 16, 0)] == [False, False]


def test_doses_have_noise_of_their_own_and_the_low_one_has_more():
    args = example.parse_args(words("--output_dir", "unused", *SMALL))
    scan = example.draw_scan(args, 3, with_nodules=True)
    truth = make_phantom(
        3, "thorax", shape=SHAPE, spacing_mm=SPACING, findings=["solid_nodule"], lesion_radius_mm=(8.0, 12.0)
    ).volume.hu
    full, low = scan.case.full_hu - truth, scan.case.low_hu - truth
    assert 2.5 < low.std() / full.std() < 4.5  # the square root of 10, and what electronic noise adds
    assert abs(np.corrcoef(full.ravel(), low.ravel())[0, 1]) < 0.1
    assert scan.case.low.conditions.dose_fraction == 0.1 and "solid_nodule" in scan.case.low.conditions.findings
    assert set(np.unique(scan.lesions)) == {0, 1 + example.LESION_KINDS.index("solid_nodule")}


def test_impossible_flags_are_refused():
    for flags, message in ((("--dose", 1.0), r"must be in \(0, 1\)"), (("--epochs", 0), "must be positive")):
        with pytest.raises(SystemExit, match=message):
            example.parse_args(words("--output_dir", "unused", *flags))
