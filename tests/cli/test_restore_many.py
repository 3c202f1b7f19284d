"""`diffusers-ct restore` of many scans: named, divided, resumed, and not stopped by one that fails."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from typer.testing import CliRunner

import diffusers_ct.cli as cli
from diffusers_ct import CTDiffusionPipeline, CTVolume, UNet3DCTModel, read_volume, write_volume
from diffusers_ct.cli.ranks import Rank
from diffusers_ct.cli.restore_many import Summary, list_scans, name_scans, total_of
from diffusers_ct.schedulers import make_noise_scheduler

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    unet = UNet3DCTModel(
        block_out_channels=(4, 8), layers_per_block=1, conv_mode="2.5d", patch_size=(1, 4, 4), refine_channels=0,
        downsample_strides=(1, 2, 2), norm_num_groups=2,
    )  # fmt: skip
    torch.nn.init.normal_(unet.head.weight, std=0.1)
    folder = tmp_path_factory.mktemp("checkpoint")
    CTDiffusionPipeline(unet, DDIMScheduler.from_config(make_noise_scheduler().config)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> Path:
    """Three scans and a file that is none."""
    folder = tmp_path_factory.mktemp("studies")
    for number in range(3):
        hu = np.random.default_rng(number).normal(40.0, 25.0, (2, 16, 16)).astype(np.float32)
        hu[:, :4] = -1000.0
        write_volume(CTVolume.from_array(hu, (2.0, 0.8, 0.8)), folder / f"scan{number}.mha")
    (folder / "broken.mha").write_text("this is no scan")
    return folder


def restore(*arguments: object, environment: dict[str, str] | None = None):
    return CliRunner(env=environment).invoke(cli.build_app(), ["restore", *map(str, arguments)])


def test_a_folder_of_studies_a_failing_scan_and_a_second_run(checkpoint, studies, tmp_path):
    out, flags = tmp_path / "out", ["--list", studies, "--model", checkpoint, "--format", "nii.gz"]
    first = restore(out, *flags)
    assert first.exit_code == 1, first.output
    assert sorted(p.name for p in out.glob("*.nii.gz")) == ["scan0.nii.gz", "scan1.nii.gz", "scan2.nii.gz"]
    assert "3 restored, 0 done before, 1 failed; 6 slices" in first.output and "broken: failed: " in first.output
    summary = json.loads((out / "summary-00000-of-00001.json").read_text())
    assert summary["restored"] == ["scan0", "scan1", "scan2"] and list(summary["failed"]) == ["broken"]
    (out / "scan1.nii.gz").unlink()
    kept = (out / "scan0.nii.gz").stat().st_mtime_ns
    second = restore(out, *flags)
    assert second.exit_code == 1 and "1 restored, 2 done before, 1 failed" in second.output
    assert (out / "scan0.nii.gz").stat().st_mtime_ns == kept
    assert [path.name for path in out.glob(".*")] == []  # nothing half-written
    alone = restore(studies / "scan1.mha", tmp_path / "alone.nii.gz", "--model", checkpoint)
    assert alone.exit_code == 0 and "estimate: about" in alone.output and "took" in alone.output
    assert np.array_equal(read_volume(tmp_path / "alone.nii.gz").hu, read_volume(out / "scan1.nii.gz").hu)


def test_ranks_divide_a_list_and_every_scan_is_restored_once(checkpoint, studies, tmp_path):
    names = tmp_path / "scans.txt"
    names.write_text(f"# ours\n{studies / 'scan0.mha'}\tfirst\n\n{studies / 'scan1.mha'}\n{studies / 'scan2.mha'}\n")
    out = tmp_path / "out"
    for rank in range(2):
        result = restore(
            "--list", names, out, "--model", checkpoint, "--steps", 2, "--samples", 2, "--uncertainty",
            tmp_path / "sd", environment={"RANK": str(rank), "WORLD_SIZE": "2"},
        )  # fmt: skip
        assert result.exit_code == 0, result.output
    summaries = [json.loads((out / f"summary-0000{rank}-of-00002.json").read_text()) for rank in range(2)]
    assert [one["restored"] for one in summaries] == [["first", "scan2"], ["scan1"]]
    assert {p.name for p in (tmp_path / "sd").iterdir()} == {"first", "scan1", "scan2"}
    assert read_volume(tmp_path / "sd" / "first").hu.max() > 0


def test_accelerate_launches_two_processes_that_end_together(checkpoint, studies, tmp_path):
    scans = [studies / f"{name}.mha" for name in ("broken", "scan0", "scan1", "scan2")]
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file",
        ROOT / "examples/accelerate_configs/cpu_two_processes.yaml", "--main_process_port", "0", "-m", "diffusers_ct.cli",
        "restore", *scans, tmp_path / "out", "--model", checkpoint,
    ]  # fmt: skip
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 1, done.stderr
    assert "3 restored, 0 done before, 1 failed" in done.stdout and done.stdout.count("restored") == 1
    assert {p.name for p in (tmp_path / "out").iterdir() if p.is_dir()} == {"scan0", "scan1", "scan2"}
    shares = [json.loads(p.read_text()) for p in sorted((tmp_path / "out").glob("summary-*-of-00002.json"))]
    assert [len(share["restored"]) + len(share["failed"]) for share in shares] == [2, 2]


def test_names_are_as_short_as_tells_scans_apart(tmp_path):
    named = name_scans((Path(p), n) for p, n in [
        ("/a/p1/low", None), ("/a/p2/low", None), ("/a/p2/x.nii.gz", None), ("/b/y.zip", "other"), ("/a/p1/low", None),
    ])  # fmt: skip
    assert [(scan.name, str(scan.path)) for scan in named] == [
        ("other", "/b/y.zip"), ("p1_low", "/a/p1/low"), ("p2_low", "/a/p2/low"), ("x", "/a/p2/x.nii.gz"),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="'same' is given to 2 scans"):
        name_scans([(Path("/a"), "same"), (Path("/b"), "same")])
    with pytest.raises(ValueError, match="no file name"):
        name_scans([(Path("/a"), "../up")])
    with pytest.raises(ValueError, match="empty"):
        list_scans(tmp_path)
    with pytest.raises(FileNotFoundError):
        list_scans(tmp_path / "absent.txt")


def test_shares_are_disjoint_and_hold_all():
    items = list(range(11))
    shares = [Rank(number, 4).share(items) for number in range(4)]
    assert sorted(k for share in shares for k in share) == items and max(map(len, shares)) - min(map(len, shares)) <= 1
    assert Rank.of_environment({}) == Rank(0, 1)
    assert Rank.of_environment({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Rank(3, 8, 1)
    for wrong in ({"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "0"}, {"RANK": "x", "WORLD_SIZE": "2"}):
        with pytest.raises(ValueError, match="RANK"):
            Rank.of_environment(wrong)
    total = total_of([Summary(0, 2, ["a"], slices=3, seconds=2.0), Summary(1, 2, [], ["b"], {"c": "why"}, 0, 5.0)])
    assert (total.restored, total.done_before, total.failed, total.slices, total.seconds) == (
        ["a"], ["b"], {"c": "why"}, 3, 5.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["SCAN"], {}, "Two paths are needed"),
        (["SCAN", "OUT", "--format", "mha"], {}, "for several scans"),
        (["SCAN", "SCAN", "OUT", "--format", "png"], {}, "one of dicom, nii.gz, nii, mha"),
        (["SCAN", "OUT"], {"RANK": "0", "WORLD_SIZE": "2"}, "not divided between processes"),
        (["SCAN", "SCAN2", "SCAN"], {}, "go into a folder"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(
    studies, tmp_path, monkeypatch, capsys, arguments, environment, words
):
    paths = {"SCAN": studies / "scan0.mha", "SCAN2": studies / "scan1.mha", "OUT": tmp_path / "out"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    words_of_command = [str(paths.get(a, a)) for a in arguments]
    monkeypatch.setattr("sys.argv", ["diffusers-ct", "restore", *words_of_command, "--model", "absent/model"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2 and words in capsys.readouterr().err
