"""The comparison of patch sizes: its networks, its statistics, and all of it in the smallest size."""

import importlib
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from diffusers_ct import UNet3DCTModel, load_paired_ct

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example():
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module("compare_patch_sizes")
    # Other tests load these files under the same names.
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == EXAMPLES:
            del sys.modules[name]


@pytest.fixture(scope="module")
def report(example):
    return sys.modules["patch_sizes_report"]


def test_variants_differ_by_patch_and_branch_alone_and_their_patches_fit(example):
    size = example.SIZES["cpu"]
    assert set(example.SIZES["smoke"].variants) <= set(size.variants) == set(example.VARIANTS)
    seen, parameters = set(), {}
    for name in size.variants:
        config = example.model_config(name, size)
        model = UNet3DCTModel(**config)
        parameters[name] = sum(p.numel() for p in model.parameters())
        assert all(n % factor == 0 for n, factor in zip(size.patch, model.size_factor))
        assert any(key.startswith("refine") for key, _ in model.named_parameters()) == name.endswith("branch")
        seen.add((config.pop("patch_size"), config.pop("refine_channels") > 0))
        assert config == {"conv_mode": "2.5d", "layers_per_block": 1, "block_out_channels": size.channels}
    assert len(seen) == len(size.variants)
    assert max(parameters.values()) < 1.1 * min(parameters.values())


def test_seeds_without_which_there_is_no_interval_are_refused(example, capsys):
    for seeds in (["0"], ["1", "1"]):
        with pytest.raises(SystemExit):
            example.parse_args(["--output_dir", "o", "--size", "cpu", "--seeds", *seeds])
        assert "--seeds must be different" in capsys.readouterr().err


def test_a_step_is_timed_by_the_clock_that_is_given(example):
    ticks = iter([0.0, 50.0, 60.0, 61.0, 63.0, 64.0])
    timed = example.Timed(lambda batch, seeds: {"loss": batch}, lambda: next(ticks))
    assert [timed(k, None)["loss"] for k in range(6)] == list(range(6))
    assert timed.seconds_per_step() == 1.0  # of 1, 2 and 1: the first two steps do not count


BUDGETS = ("equal steps", "equal time")


def runs_of(report, values: dict[tuple[str, str], list[float | None]]) -> list[dict]:
    """Runs that have one value, or none, in all columns."""
    facts = {"parameters": 1000, "steps": 5, "seconds_per_step": 0.5, "training_seconds": 2.5}
    return [
        {"variant": variant, "budget": budget, "seed": seed, **(facts if budget else {}), **dict.fromkeys(report.COLUMNS, value)}
        for (variant, budget), of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]  # fmt: skip


@pytest.fixture
def made(report):
    values = {
        ("low dose", ""): [0.0, 0.0, 0.0],
        ("none", "equal steps"): [1.0, 2.0, 4.0],
        ("1x2x2", "equal steps"): [1.5, 2.0, 5.0],
        ("none", "equal time"): [1.0, 2.0, 4.0],
        ("1x2x2", "equal time"): [2.0, None, 6.0],
    }
    patients = {"none, equal steps": [1.0, 3.0], "1x2x2, equal steps": [2.0, 3.0], "1x2x2, equal time": [3.0, 5.0]}
    facts = {
        "patient_gain_db": [patients, {name: [gain + 1.0 for gain in gains] for name, gains in patients.items()}],
        "size": {"channels": [8, 16], "branch": 4, "patch": [1, 32, 32], "lesion_scans": 2},
        "dose_fraction": 0.25, "spacing_mm": [3.0, 1.5, 1.5], "command": "python made.py",
        "environment": {"git_revision": "abc", "git_changed": False, "torch": "2", "threads": 1},
    }  # fmt: skip
    return runs_of(report, values), facts


def test_differences_are_paired_by_seed_and_a_missing_value_leaves_no_mean(report, made, tmp_path, capsys):
    written = report.write_report(tmp_path, *made, reference="none", budgets=BUDGETS)
    assert json.loads((tmp_path / "patch_sizes.json").read_text()) == json.loads(json.dumps(written))
    rows = {(row["variant"], row["budget"]): row for row in written["summary"]}
    steps, over_time = rows["1x2x2", "equal steps"], rows["1x2x2", "equal time"]

    differences = np.array([0.5, 0.0, 1.0])
    expected = stats.t.interval(0.95, 2, loc=differences.mean(), scale=stats.sem(differences))
    estimate, *ends = steps["differences"]["gain_body_db"]
    assert estimate == pytest.approx(0.5) and ends == pytest.approx(expected)
    assert steps["means"]["gain_body_db"][0] == pytest.approx(8.5 / 3)
    assert over_time["means"]["gain_body_db"] == over_time["differences"]["noise_hu"] == (None, None, None)
    # Patients: the reference has one training, whose gains count for both budgets. Two patients have no interval.
    assert steps["gain_difference_over_patients"] == (0.5, None, None)
    assert over_time["gain_difference_over_patients"] == (2.0, None, None)
    assert "differences" not in rows["none", "equal time"] and "differences" not in rows["low dose", ""]

    text = (tmp_path / "patch_sizes.md").read_text()
    assert text in capsys.readouterr().out
    (line,) = [line for line in text.splitlines() if line.startswith("| 1x2x2 | +0.50 [–, –]")]
    assert line.count(f"[{expected[0]:+.2f}, {expected[1]:+.2f}]") == 2  # gain and noise, of two digits
    assert "revision abc, torch 2" in text and "3 seeds" in text and "2 test phantoms" in text
    assert (tmp_path / "patch_sizes.png").stat().st_size > 10_000


@pytest.mark.slow  # a minute of one core
@pytest.mark.timeout(900)
def test_the_smoke_size_fills_the_tables_and_goes_on(example, tmp_path):
    out = tmp_path / "patches"
    command = [
        sys.executable, str(EXAMPLES / "compare_patch_sizes.py"), "--output_dir", str(out), "--size", "smoke",
        "--seeds", "0", "1",
    ]  # fmt: skip

    def run() -> dict:
        environment = {**os.environ, "ACCELERATE_USE_CPU": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=800, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((out / "patch_sizes.json").read_text())

    found = run()
    size = example.SIZES["smoke"]
    runs = {(r["variant"], r["budget"], r["seed"]): r for r in found["runs"]}
    assert len(runs) == 2 * (2 * len(size.variants) + 1)
    seconds = found["facts"]["timed_seconds_per_step"]
    for name in size.variants:
        steps, in_time = runs[name, "equal steps", 0], runs[name, "equal time", 0]
        assert steps["steps"] == size.steps and steps["training_seconds"] > 0
        assert in_time["steps"] == max(2, round(size.steps * seconds["none"] / seconds[name]))
        assert steps["gain_body_db"] != runs[name, "equal steps", 1]["gain_body_db"] != 0.0
        # So briefly trained, a network changes little.
        assert 0.9 < steps["recovery: 20 HU"] < 1.1 and abs(steps["auc: 3 mm, 14 HU"] - 0.75) < 0.25
        assert steps["f50_per_mm: 25 mm, 120 HU"] == pytest.approx(0.22, rel=0.15)
    none = [runs["none", budget, 1] for budget in BUDGETS]
    assert all(a == b for a, b in pairwise({k: v for k, v in r.items() if k != "budget"} for r in none))
    low = runs["low dose", "", 0]
    assert low["gain_body_db"] == 0.0 and low["recovery: 20 HU"] == pytest.approx(1.0, abs=1e-3)
    keys = [set(load_paired_ct(str(out / "data" / part), split=part)["patient_key"]) for part in ("train", "test")]
    assert not keys[0] & keys[1]

    weights = sorted(out.glob("seed-*/*/pipeline/unet/*.safetensors"))
    assert len(weights) == 2 * (2 * len(size.variants) - 1)
    before = [path.stat().st_mtime_ns for path in weights]
    # What did not end begins anew, the rest stays.
    (weights[0].parents[2] / "run.json").unlink()
    again = run()
    after = [path.stat().st_mtime_ns for path in weights]
    assert after[0] > before[0] and after[1:] == before[1:]
    metrics = [{k: v for k, v in r.items() if "seconds" not in k} for r in (*found["runs"], *again["runs"])]
    assert metrics[: len(runs)] == metrics[len(runs) :]
