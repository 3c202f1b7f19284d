"""Many scans: the same bytes whatever the workers, the kills and the machines; nothing lost, nothing half-written."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from filelock import FileLock

from diffusers_ct.data import (
    DiskFullError,
    load_paired_ct,
    merge_prepared,
    prepare_paired_ct,
    shards,
    verify_checksum,
    volume_view,
)
from diffusers_ct.data import prepare as prepare_module
from diffusers_ct.data.manifest import read_manifest
from diffusers_ct.data.prepare import rows_ready

# Transforms this small run on one thread in every process, so that `num_workers=0` gives the same last bit too.
PHANTOMS = {"phantoms": 10, "dose_fractions": (0.25, 0.1), "shape": (3, 24, 24), "spacing_mm": (3.0, 16.0, 16.0)}
ROW_BYTES = 2 * 3 * 24 * 24 * 2
THREE_ROWS = {"shard_size_mb": 3.5 * ROW_BYTES / 1e6}
SCANNER = {"i0": 5e5, "kernel": "soft"}  # the scans are too small to measure their noise
SERVER = """
import json, os, sys
from diffusers_ct.data import prepare_paired_ct
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.setsid()
        prepare_paired_ct(**json.loads(line))
        os._exit(0)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "out"
    prepare_paired_ct(folder, **PHANTOMS, **THREE_ROWS)
    return folder


@pytest.fixture
def normal_dose(tmp_path, write_series):
    for number in range(6):
        write_series(
            tmp_path / "in" / f"Meier{number}", [0, 2, 4], patient=f"PAT-{number}", matrix=(24, 24), seed=number
        )
    return {"normal_dose": str(tmp_path / "in"), "dose_fractions": (0.25,), "salt": "s", **THREE_ROWS, **SCANNER}


def test_rows_are_packed_up_to_the_limit_and_found_again(whole, tmp_path):
    entries = read_manifest(whole)
    assert len(entries) == 20
    sizes: dict[str, list] = {}
    for entry in entries:
        sizes.setdefault(entry.file, []).append(entry.row)
    by_split = {split: sorted(len(r) for f, r in sizes.items() if f"/{split}-" in f) for split in ("train", "test")}
    assert by_split == {"train": [1, 3, 3, 3, 3, 3], "test": [2]}
    assert all(sorted(rows) == list(range(len(rows))) for rows in sizes.values())
    prepare_paired_ct(tmp_path / "alone", **PHANTOMS, shard_size_mb=1e-6)
    assert len(list((tmp_path / "alone" / "shards").iterdir())) == 20
    packed, alone = load_paired_ct(whole, "train"), load_paired_ct(tmp_path / "alone", "train")
    assert packed["scan_key"] == alone["scan_key"]
    for index in range(len(packed)):
        assert np.array_equal(volume_view(packed, index, "low"), volume_view(alone, index, "low"))
        verify_checksum(packed[index])


def test_workers_and_their_number_do_not_change_a_byte(whole, tmp_path):
    report = prepare_paired_ct(tmp_path / "out", **PHANTOMS, **THREE_ROWS, num_workers=2)
    assert report.written == 20 and not report.problems
    assert files_of(tmp_path / "out") == files_of(whole)  # made in this process


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills are made in forked processes")
@pytest.mark.parametrize(
    ("kills", "workers", "phantoms"),
    [(4, 0, 10), pytest.param(20, 2, 60, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def test_killed_at_random_points_and_rerun_gives_the_same_bytes(tmp_path, kills, workers, phantoms):
    source = {**PHANTOMS, **THREE_ROWS, "phantoms": phantoms}
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    def run(folder, kill_after=None):
        """Seconds from the first file to the end, and how it ended."""
        request = {"output_dir": str(folder), **source, "num_workers": workers}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        pid = int(server.stdout.readline())
        while not folder.exists():
            time.sleep(0.0005)
        begun = time.monotonic()
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.kill(pid, signal.SIGKILL)
        status = int(server.stdout.readline())
        return time.monotonic() - begun, status

    try:
        life, status = run(tmp_path / "undisturbed")
        assert status == 0
        undisturbed = files_of(tmp_path / "undisturbed")
        rng, ready = random.Random(kills), []
        for number in range(4 * kills):
            folder = tmp_path / str(number)
            _, status = run(folder, kill_after=rng.uniform(0.0, 0.9 * life))
            if status == signal.SIGKILL:  # else it was quicker than the undisturbed run, and has ended
                ready.append(rows_ready(folder))
            prepare_paired_ct(folder, **source)
            assert files_of(folder) == undisturbed, f"kill {number}"
            shutil.rmtree(folder)
            if len(ready) == kills:
                break
        print(f"killed {len(ready)} times before the end, rows ready then: {ready} of {2 * phantoms}")
        assert len(ready) == kills and len(set(ready)) > 1
    finally:
        server.stdin.close()
        server.kill()
        server.wait()
        server.stdout.close()


def test_one_folder_killed_again_and_again_by_hand(whole, tmp_path):
    """Every state that a kill can leave: before, within and after each of the steps that change the disk."""
    out = tmp_path / "out"
    changes = 0

    class Killed(BaseException):
        pass

    def killed_at(step):
        left = [step]

        def count(original):
            def counted(*arguments, **options):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return original(*arguments, **options)

            return counted

        return count

    while True:
        with pytest.MonkeyPatch.context() as patch:
            count = killed_at(changes % 7)
            for module, name in ((shards, "_to_disk"), (prepare_module, "pack"), (prepare_module, "write_manifest"),
                                 (prepare_module, "write_left_out"), (shutil, "rmtree")):  # fmt: skip
                patch.setattr(module, name, count(getattr(module, name)))
            try:
                prepare_paired_ct(out, **PHANTOMS, **THREE_ROWS)
                break
            except Killed:
                changes += 1
    assert changes > 6
    assert files_of(out) == files_of(whole)


@pytest.mark.parametrize("writes", [0, 1, 5, 8])
def test_a_full_disk_ends_clearly_and_the_next_run_goes_on(whole, tmp_path, monkeypatch, writes):
    out = tmp_path / "out"
    left = [writes]

    def full(path):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_to_disk", full)
        with pytest.raises(DiskFullError, match=r"is full. \d+ rows are ready .* the same command again") as error:
            prepare_paired_ct(out, **PHANTOMS, **THREE_ROWS)
    assert error.value.errno == errno.ENOSPC
    ready = rows_ready(out)
    assert f"{ready} rows" in str(error.value) and not list(out.rglob("*.part"))
    if writes:
        opened = load_paired_ct(out, unfinished=True)
        assert sum(len(rows) for rows in opened.values()) == ready > 0
        for rows in opened.values():
            for row in rows:
                verify_checksum(row)
    else:
        assert ready == 0
        with pytest.raises(FileNotFoundError, match="no finished row"):
            load_paired_ct(out, unfinished=True)
    report = prepare_paired_ct(out, **PHANTOMS, **THREE_ROWS)
    assert report.reused == ready and files_of(out) == files_of(whole)


def test_a_disk_too_small_is_refused_before_work(whole, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"The rows need [\d.]+ GB, and .* GB free"):
        prepare_paired_ct(tmp_path / "out", phantoms=1000, dose_fractions=(0.25,), shape=(5000, 4096, 4096))
    assert not (tmp_path / "out").exists()
    full = types.SimpleNamespace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    assert prepare_paired_ct(whole, **PHANTOMS, **THREE_ROWS).reused == 20  # nothing to make, nothing needed


def test_parts_of_several_machines_merge_to_the_whole(whole, tmp_path):
    parts = [tmp_path / f"part{i}" for i in (1, 2, 3)]
    for number, part in enumerate(parts, 1):
        report = prepare_paired_ct(part, **PHANTOMS, **THREE_ROWS, part=(number, 3))
        assert 0 < report.written < 20 and report.empty == ()  # a split may be in another part
        again = prepare_paired_ct(part, **PHANTOMS, **THREE_ROWS, part=(number, 3))
        assert again.written == 0
    assert sum(len(read_manifest(part)) for part in parts) == 20
    for wrong, words in (
        (parts[:2], r"each of its 3 parts once, got 1/3, 2/3; missing: 3/3"),
        ([*parts, parts[0]], "each of its 3 parts once"),
        ([parts[0], whole], "is no part"),
    ):
        with pytest.raises(ValueError, match=words):
            merge_prepared(tmp_path / "all", wrong)
        assert not (tmp_path / "all").exists()
    merge_prepared(tmp_path / "all", parts[::-1])
    assert files_of(tmp_path / "all") == files_of(whole)
    report = merge_prepared(tmp_path / "all", parts)
    assert sum(report.rows.values()) == 20 and report.empty == ()
    assert prepare_paired_ct(tmp_path / "all", **PHANTOMS, **THREE_ROWS).written == 0
    with pytest.raises(ValueError, match="not empty"):
        merge_prepared(parts[0], parts)
    with pytest.raises(ValueError, match=r"other settings \(`part`\)"):
        prepare_paired_ct(parts[0], **PHANTOMS, **THREE_ROWS, part=(2, 3))


def test_parts_of_patients_need_one_salt_and_the_same_scans(normal_dose, tmp_path, write_series):
    with pytest.raises(ValueError, match="need one `salt`"):
        prepare_paired_ct(tmp_path / "part1", **{**normal_dose, "salt": None}, part=(1, 2))
    with pytest.raises(ValueError, match="too few for 9 machines"):
        prepare_paired_ct(tmp_path / "part1", **normal_dose, part=(1, 9))
    prepare_paired_ct(tmp_path / "part1", **normal_dose, part=(1, 2))
    shutil.copytree(tmp_path / "in", tmp_path / "mounted elsewhere")
    elsewhere = {**normal_dose, "normal_dose": str(tmp_path / "mounted elsewhere")}
    prepare_paired_ct(tmp_path / "part2 there", **elsewhere, part=(2, 2))
    assert sum(merge_prepared(tmp_path / "both", [tmp_path / "part1", tmp_path / "part2 there"]).rows.values()) == 6
    prepare_paired_ct(tmp_path / "other", **{**normal_dose, "salt": "t"}, part=(2, 2))
    with pytest.raises(ValueError, match=r"different settings \(.*`salt`"):
        merge_prepared(tmp_path / "all", [tmp_path / "part1", tmp_path / "other"])
    write_series(tmp_path / "in" / "late", [0, 2, 4], patient="PAT-9", matrix=(24, 24))
    prepare_paired_ct(tmp_path / "part2", **normal_dose, part=(2, 2))
    with pytest.raises(ValueError, match="made from other scans"):
        merge_prepared(tmp_path / "all", [tmp_path / "part1", tmp_path / "part2"])
    with pytest.raises(ValueError, match="every part needs the same"):
        prepare_paired_ct(tmp_path / "part1", **normal_dose, part=(1, 2))


def test_scans_that_come_later_join_and_what_is_there_is_not_made_again(normal_dose, tmp_path, write_series):
    out = tmp_path / "out"
    assert prepare_paired_ct(out, **normal_dose).written == 6
    write_series(tmp_path / "in" / "late", [0, 2, 4], patient="PAT-9", matrix=(24, 24))
    report = prepare_paired_ct(out, **normal_dose)
    assert (report.written, report.reused) == (1, 6) and not report.problems
    prepare_paired_ct(tmp_path / "anew", **normal_dose)
    assert files_of(out) == files_of(tmp_path / "anew")
    shutil.rmtree(tmp_path / "in" / "late")
    report = prepare_paired_ct(out, **normal_dose)
    assert [problem.kind for problem in report.problems] == ["no_scan"] and sum(report.rows.values()) == 6


def test_what_is_left_out_is_told_beside_the_data_without_a_name(normal_dose, tmp_path):
    damaged = next(iter(sorted((tmp_path / "in" / "Meier2").iterdir())))
    damaged.write_bytes(damaged.read_bytes()[:-200])
    (tmp_path / "in" / "Meier3" / "note.dcm").write_text("PAT-3 was here")
    shutil.copytree(tmp_path / "in" / "Meier4", tmp_path / "in" / "copy")
    out = tmp_path / "out"
    report = prepare_paired_ct(out, **normal_dose)
    assert report.written == 4 and damaged.name in " ".join(map(str, report.problems))
    left_out = [json.loads(line) for line in (out / "left_out.jsonl").read_text().splitlines()]
    assert sorted(line["kind"] for line in left_out) == ["DamagedFileError", "irregular_geometry", "not_dicom"]
    (lost,) = (line for line in left_out if line["kind"] == "DamagedFileError")
    assert len(lost["rows"]) == 1 and lost["rows"][0] not in {entry.scan_key for entry in read_manifest(out)}
    for name, content in files_of(out).items():
        assert not [word for word in (b"PAT-", b"Meier", b"IMA") if word in content + name.encode()], name


def test_an_error_nobody_foresaw_costs_one_scan(normal_dose, tmp_path, monkeypatch):
    original = prepare_module.stage_row
    calls = []

    def fails_once(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise RuntimeError("decoder went mad")
        return original(*arguments)

    monkeypatch.setattr(prepare_module, "stage_row", fails_once)
    report = prepare_paired_ct(tmp_path / "out", **normal_dose)
    assert report.written == 5 and "RuntimeError: decoder went mad" in str(report.problems[0])


def test_a_folder_of_one_file_a_row_still_opens(whole, tmp_path):
    old = tmp_path / "old"
    (old / "shards").mkdir(parents=True)
    lines = []
    for entry in read_manifest(whole):
        file = f"shards/{entry.scan_key}.arrow"
        shards.pack([(whole / entry.file, entry.row)], old / file)
        kept = {name: value for name, value in vars(entry).items() if name not in ("row", "dose")}
        lines.append(json.dumps({**kept, "file": file}) + "\n")
    (old / "manifest.jsonl").write_text("".join(lines))
    for split in ("train", "validation", "test"):
        assert sorted(load_paired_ct(old, split)["checksum"]) == sorted(load_paired_ct(whole, split)["checksum"])
    (old / "settings.json").write_bytes((whole / "settings.json").read_bytes())
    report = prepare_paired_ct(old, **PHANTOMS, **THREE_ROWS)  # packs them anew, and makes none
    assert (report.written, report.reused) == (0, 20) and files_of(old) == files_of(whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_interrupt_leaves_no_half_row(tmp_path, workers):
    def interrupt(done, total, label):
        if done:
            (tmp_path / "out" / "staging" / "half.123.part").write_bytes(b"half a row")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_paired_ct(tmp_path / "out", **PHANTOMS, num_workers=workers, progress=interrupt)
    assert not list(tmp_path.rglob("*.part")) and rows_ready(tmp_path / "out") > 0


def test_two_runs_do_not_share_a_folder(tmp_path):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(ValueError, match="Another run is preparing"):
        prepare_paired_ct(tmp_path / "out", **PHANTOMS)
    assert prepare_paired_ct(tmp_path / "out", **PHANTOMS).written == 20


def test_damage_to_finished_files_is_made_good(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "out")
    first, second, *_ = sorted((tmp_path / "out" / "shards").iterdir())
    first.write_bytes(first.read_bytes()[:-8])
    second.write_bytes(second.read_bytes()[:3000])
    (tmp_path / "out" / "manifest.jsonl").unlink()
    assert prepare_paired_ct(tmp_path / "out", **PHANTOMS, **THREE_ROWS).written > 1
    assert files_of(tmp_path / "out") == files_of(whole)
