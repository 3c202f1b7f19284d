"""A prepared folder: resumable, free of names, opened memory-mapped, the same through Parquet and streaming."""

import json
import os
import signal
import stat
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from datasets import Array3D, Dataset

from diffusers_ct.cli.wording import in_flags
from diffusers_ct.conditions import ScanConditions
from diffusers_ct.data import PairedCT, PairedCTConfig, load_paired_ct, prepare_paired_ct, verify_checksum, volume_view
from diffusers_ct.data.dicom_trees import Problem
from diffusers_ct.data.manifest import MANIFEST_NAME, SplitRule, features, hashed_key, read_manifest
from diffusers_ct.data.prepare import PrepareReport, describe, empty_splits, rows_ready

SHORT = range(0, 8, 2)
PHANTOMS = {"phantoms": 10, "dose_fractions": (0.25,), "shape": (3, 48, 48), "spacing_mm": (3.0, 8.0, 8.0)}
IDENTITY = [b"Meier", b"Anna", b"PAT-4711", b"19610203", b"ACC778899", b"Klinikum", b"20150102", b"secretfolder"]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms") / "out"
    return folder, prepare_paired_ct(folder, **PHANTOMS)


@pytest.fixture
def pairs(tmp_path, write_series):
    root = tmp_path / "secretfolder"
    for patient in ("PAT-4711", "PAT-4712", "PAT-4713"):
        for dose, noise in (("full", 10.0), ("low", 20.0)):
            write_series(root / patient / dose, SHORT, patient=patient, noise_hu=noise, seed=int(patient[-1]))
    return root


def rows_of(folder):
    return {entry.scan_key: entry.checksum for entry in read_manifest(folder)}


def test_phantoms_have_truth_and_simulated_dose(phantoms):
    folder, report = phantoms
    assert report.written == 10 and not report.problems and report.rows == {"train": 8, "validation": 1, "test": 1}
    rows = load_paired_ct(folder, "train")
    assert rows.features == features((48, 48))
    for index, row in enumerate(rows.with_format("numpy", dtype=np.int16)):
        assert row["low"].shape == row["full"].shape == (3, 48, 48)
        assert np.array_equal(row["low"], volume_view(rows, index, "low"))
        assert not np.array_equal(row["low"], row["full"])
    row = rows[0]
    verify_checksum(row)
    provenance = json.loads(row["provenance"])
    assert row["target"] == "noise_free" and provenance["source"] == "phantom"
    assert {"simulator_version", "phantom_version", "seed", "package_version", "simulator"} <= set(provenance)
    assert ScanConditions(**json.loads(row["conditions"])).dose_fraction == 0.25
    assert len(row["noise_hu"]) == 3 and len(row["affine_lps"]) == 16 and row["spacing_mm"] == [3.0, 8.0, 8.0]


def test_the_same_settings_give_the_same_rows_anywhere(phantoms, tmp_path):
    prepare_paired_ct(tmp_path / "again", **PHANTOMS)
    assert rows_of(tmp_path / "again") == rows_of(phantoms[0])


def test_a_second_run_makes_nothing_and_other_settings_are_refused(phantoms):
    folder, _ = phantoms
    before = {path: path.stat().st_mtime_ns for path in (folder / "shards").iterdir()}
    report = prepare_paired_ct(folder, **PHANTOMS)
    assert (report.written, report.reused) == (0, 10)
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "shards").iterdir()}
    with pytest.raises(ValueError, match=r"prepared with other settings \(`dose_fractions`\)"):
        prepare_paired_ct(folder, **{**PHANTOMS, "dose_fractions": (0.1,)})


def test_killed_and_run_again_no_row_is_lost_or_doubled(phantoms, tmp_path):
    out = tmp_path / "out"
    # It kills itself, so that a busy machine cannot let it end before somebody outside does.
    script = (
        "import os, signal\nfrom diffusers_ct.data import prepare_paired_ct\n"
        "def die(done, total, label):\n    if done == 4:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        f"prepare_paired_ct({str(out)!r}, **{PHANTOMS}, progress=die)"
    )
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == -signal.SIGKILL
    made = rows_ready(out)
    assert made == 4
    with pytest.raises(FileNotFoundError, match="has not finished"):
        load_paired_ct(out)
    opened = load_paired_ct(out, unfinished=True)
    assert sum(len(rows) for rows in opened.values()) == made
    (out / "staging" / "half.123.part").write_bytes(b"half a row")
    report = prepare_paired_ct(out, **PHANTOMS)
    assert (report.reused, report.written) == (made, 10 - made)
    assert rows_of(out) == rows_of(phantoms[0])
    assert not list(out.rglob("*.part")) and not (out / "staging").exists()


def test_pairs_hold_the_files_hu_and_no_name(pairs, tmp_path):
    out = tmp_path / "out"
    report = prepare_paired_ct(
        out, pairs=str(pairs), dose_fractions=(0.25,), split_by_patient={"PAT-4711": "test", "PAT-4712": "validation",
                                                                        "PAT-4713": "train"})  # fmt: skip
    assert report.rows == {"train": 1, "validation": 1, "test": 1} and not report.problems
    rows = load_paired_ct(out, "test")
    for dose in ("full", "low"):
        files = sorted((pairs / "PAT-4711" / dose).iterdir())
        expected = np.stack([pydicom.dcmread(file).pixel_array.astype(np.int16) - 1024 for file in files])
        assert np.array_equal(volume_view(rows, 0, dose), expected)
    assert rows[0]["target"] == "same_scan" and rows[0]["spacing_mm"] == pytest.approx([2.0, 0.8, 0.8])
    for path in out.rglob("*"):
        if path.is_file():
            content = path.read_bytes() + str(path.relative_to(out)).encode()
            assert not [word for word in IDENTITY if word in content], path
    assert stat.S_IMODE((out / "private" / "salt").stat().st_mode) == 0o600
    assert (out / "private" / "salt").read_bytes().strip() not in (out / "settings.json").read_bytes()


def test_no_patient_ever_stands_in_two_splits(tmp_path, write_series):
    for number in range(8):
        for kernel in ("B30f", "D45f"):
            for dose in ("full", "low"):
                place = tmp_path / "in" / f"P{number}" / kernel / dose
                write_series(place, [0, 2, 30], patient=f"P{number}", kernel=kernel, matrix=(8, 8))
    for salt in "abcdef":
        config = PairedCTConfig(
            pairs=str(tmp_path / "in"), dose_fractions=(0.25,), salt=salt, validation_fraction=0.3, test_fraction=0.3
        )
        tasks, problems = config.plan()
        assert len(tasks) == 8 * 2 * 2 and not problems
        splits_of: dict[str, set[str]] = {}
        for task in tasks:
            splits_of.setdefault(task.patient_key, set()).add(task.split)
        assert len(splits_of) == 8 and all(len(splits) == 1 for splits in splits_of.values())
        assert len({key for task in tasks for key in task.row_keys}) == len(tasks)


def test_keys_need_the_salt(pairs, tmp_path):
    source = {"pairs": str(pairs), "dose_fractions": (0.25,)}
    for name, salt in (("a", "one"), ("b", "one"), ("c", "two")):
        prepare_paired_ct(tmp_path / name, salt=salt, **source)
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")
    assert not set(rows_of(tmp_path / "a")) & set(rows_of(tmp_path / "c"))
    assert set(rows_of(tmp_path / "a").values()) == set(rows_of(tmp_path / "c").values())


def test_a_damaged_scan_is_named_and_the_others_are_kept(pairs, tmp_path):
    damaged = next(iter((pairs / "PAT-4712" / "low").iterdir()))
    damaged.write_bytes(damaged.read_bytes()[:-200])
    report = prepare_paired_ct(tmp_path / "out", pairs=str(pairs), dose_fractions=(0.25,), salt="s")
    assert report.written == 2 and len(report.problems) == 1
    assert damaged.name in str(report.problems[0])
    assert len(rows_of(tmp_path / "out")) == 2


def test_normal_dose_gives_every_dose_and_realisation(tmp_path, write_series):
    write_series(tmp_path / "in" / "A", SHORT, patient="A", matrix=(48, 48))
    report = prepare_paired_ct(
        tmp_path / "out", normal_dose=str(tmp_path / "in"), dose_fractions=(0.25, 0.1), realizations=2, i0=5e5, kernel="soft",
        validation_fraction=0.0, test_fraction=0.0)  # fmt: skip
    assert report.rows["train"] == 4
    rows = load_paired_ct(tmp_path / "out", "train")
    assert sorted(np.round(rows["dose_fraction"], 3)) == [0.1, 0.1, 0.25, 0.25]
    assert len(set(rows["scan_key"])) == 4 and len(set(rows["patient_key"])) == 1
    assert {row["target"] for row in rows.select_columns("target")} == {"normal_dose"}
    lows = {volume_view(rows, index, "low").tobytes() for index in range(4)}
    fulls = {volume_view(rows, index, "full").tobytes() for index in range(4)}
    assert len(lows) == 4 and len(fulls) == 1


def test_low_dose_images_are_no_normal_dose(pairs, tmp_path):
    with pytest.raises(ValueError, match="whose name says low dose"):
        prepare_paired_ct(tmp_path / "out", normal_dose=str(pairs), dose_fractions=(0.25,))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dose_fractions": ()}, "must be given"),
        ({"dose_fractions": (25.0,)}, r"in \(0, 1\)"),
        ({"phantoms": None}, "exactly one"),
        ({"pairs": "somewhere"}, "exactly one"),
        ({"regions": ("knee",)}, "thorax, abdomen"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        prepare_paired_ct(tmp_path / "out", **{**PHANTOMS, **change})
    assert not (tmp_path / "out").exists()


def test_a_strange_folder_is_not_written_into(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="not empty"):
        prepare_paired_ct(tmp_path, **PHANTOMS)


def test_no_message_names_a_patient_and_an_unknown_one_leaves_nothing(pairs, tmp_path):
    source = {"pairs": str(pairs), "dose_fractions": (0.25,), "salt": "s"}
    with pytest.raises(ValueError, match=r"not there \(1 for test\): 3 were found.* Write the Pat") as error:
        prepare_paired_ct(tmp_path / "out", **source, split_by_patient={"L999": "test", "PAT-4711": "train"})
    assert "PAT-47" not in str(error.value) and "L999" not in str(error.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="choose one of train, validation, test") as error:
        prepare_paired_ct(tmp_path / "out", **source, split_by_patient={"test": "PAT-4711"})
    assert "PAT-47" not in str(error.value)
    prepare_paired_ct(tmp_path / "out", **source)
    with pytest.raises(ValueError, match="split_by_patient"):
        prepare_paired_ct(tmp_path / "out", **source, split_by_patient={"L999": "test"})
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or b"L999" not in path.read_bytes(), path


def test_an_unknown_phantom_hears_what_phantoms_are_called(tmp_path):
    with pytest.raises(ValueError, match=r"10 were found.* called phantom-0 to phantom-9\."):
        prepare_paired_ct(tmp_path / "out", **PHANTOMS, split_by_patient={"phantom-10": "test"})


def test_an_empty_split_is_told_unless_none_was_asked_for(tmp_path, phantoms):
    assert phantoms[1].empty == ()
    report = prepare_paired_ct(tmp_path / "few", **{**PHANTOMS, "phantoms": 3})
    assert report.rows == {"train": 3, "validation": 0, "test": 0} and report.empty == ("validation", "test")
    assert "no patient has come to validation or test." in list(describe(report))[-1]
    everyone_trains = {"validation_fraction": 0.0, "test_fraction": 0.0}
    report = prepare_paired_ct(tmp_path / "train", **{**PHANTOMS, "phantoms": 1}, **everyone_trains)
    assert report.empty == () and len(list(describe(report))) == 1
    assert empty_splits(0.3, 0.7, {"validation", "test"}) == ()


def test_few_patients_whom_chance_keeps_from_a_split_are_refused_before_any_work(tmp_path, write_series):
    patients = [f"PAT-{number}" for number in range(12)]
    for patient in patients:
        for dose in ("full", "low"):
            write_series(tmp_path / "in" / patient / dose, [0, 2], patient=patient, matrix=(8, 8))
    fractions = {"validation_fraction": 0.3, "test_fraction": 0.3}
    source = {"pairs": str(tmp_path / "in"), "dose_fractions": (0.25,)}

    def salt_that_leaves_test_empty(fraction: float) -> str:
        rule = SplitRule(fraction, fraction)
        for number in range(5000):
            there = {rule.of_patient(one, hashed_key(str(number), "patient", one)) for one in patients}
            if there == {"train", "validation"}:
                return str(number)
        raise AssertionError("no such salt")

    few = salt_that_leaves_test_empty(0.1)  # 1.2 patients were to be expected: chance alone, and a warning
    report = prepare_paired_ct(tmp_path / "few", **source, salt=few, validation_fraction=0.1, test_fraction=0.1)
    assert report.empty == ("test",) and report.rows["train"] > 0
    empty_test = salt_that_leaves_test_empty(0.3)
    out = tmp_path / "out"
    for part in (None, (1, 2)):  # every machine says the same
        with pytest.raises(ValueError, match="Of 12 patients none would come to test") as error:
            prepare_paired_ct(out, **source, **fractions, salt=empty_test, part=part, shard_size_mb=1e-6)
    assert "PAT-" not in str(error.value) and not out.exists()
    assert (
        "--split-by-patient sends patients by name, such as test=ID[,ID...], and 0 as --validation-fraction"
        in in_flags(str(error.value), "prepare")
    )
    with pytest.raises(ValueError, match="none would come to train"):
        prepare_paired_ct(out, **source, salt="s", validation_fraction=0.5, test_fraction=0.499999)
    report = prepare_paired_ct(out, **source, **fractions, salt=empty_test, split_by_patient={"PAT-0": "test"})
    assert report.rows["test"] == 1 and report.rows["train"] > 0
    everyone = {"validation_fraction": 0.2, "test_fraction": 0.0}
    assert prepare_paired_ct(tmp_path / "two", **source, salt=empty_test, **everyone).rows["test"] == 0


def test_one_reason_of_several_parts_of_a_series_is_told_once(pairs, tmp_path, monkeypatch):
    plan = PairedCTConfig.plan

    def with_one_told_twice(self, workers=None):
        tasks, _ = plan(self, workers)
        return tasks, [
            Problem("a", "gantry tilt.", "tilt"),
            Problem("a", "gantry tilt.", "tilt"),
            Problem("b", "c", "d"),
        ]

    monkeypatch.setattr(PairedCTConfig, "plan", with_one_told_twice)
    report = prepare_paired_ct(tmp_path / "out", pairs=str(pairs), dose_fractions=(0.25,), salt="s")
    assert list(describe(report))[1:4] == ["2 problems:", "  a: gantry tilt.", "  b: c"]
    assert len((tmp_path / "out" / "left_out.jsonl").read_text().splitlines()) == 2


def test_a_problem_says_its_path_once():
    assert str(Problem("a/b.mha", "a/b.mha: is cut off.", "x")) == "a/b.mha: is cut off."
    assert str(Problem("a/b (2 slices from 1.dcm)", f"a/b{os.sep}2.dcm: is cut off.", "x")) == (
        "a/b (2 slices from 1.dcm): 2.dcm: is cut off."
    )
    assert str(Problem("a/b (2 slices from 1.dcm)", "a/c/2.dcm: is cut off.", "x")).endswith(": a/c/2.dcm: is cut off.")
    one = PrepareReport(problems=[Problem("a", "b", "c")])
    assert list(describe(one))[1:] == ["1 problem:", "  a: b"]


def test_opening_refuses_clearly(phantoms, tmp_path):
    with pytest.raises(ValueError, match="Unknown split 'dev'"):
        load_paired_ct(phantoms[0], "dev")
    with pytest.raises(FileNotFoundError, match="not a prepared dataset"):
        load_paired_ct(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        load_paired_ct(tmp_path / "absent")


def test_matrices_are_opened_one_at_a_time(tmp_path, write_series):
    for patient, matrix in (("A", (24, 32)), ("B", (40, 40))):
        for dose in ("full", "low"):
            write_series(tmp_path / "in" / patient / dose, SHORT, patient=patient, matrix=matrix)
    everyone = {"A": "train", "B": "train"}
    prepare_paired_ct(
        tmp_path / "out", pairs=str(tmp_path / "in"), dose_fractions=(0.5,), split_by_patient=everyone)  # fmt: skip
    with pytest.raises(ValueError, match=r"\(24, 32\), \(40, 40\)"):
        load_paired_ct(tmp_path / "out", "train")
    rows = load_paired_ct(tmp_path / "out", "train", matrix=(24, 32))
    assert rows.features["low"] == Array3D((None, 24, 32), "int16") and len(rows) == 1


def test_parquet_and_streaming_keep_every_voxel(phantoms, tmp_path):
    rows = load_paired_ct(phantoms[0], "train")
    rows.to_parquet(tmp_path / "rows.parquet")
    back = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
    assert back.features == rows.features
    stream = load_paired_ct(phantoms[0], "train", streaming=True)
    for index, row in enumerate(stream):
        assert row["scan_key"] == rows[index]["scan_key"] == back[index]["scan_key"]
        assert np.array_equal(np.asarray(row["low"]), volume_view(back, index, "low"))
        assert volume_view(back, index, "low").dtype == np.int16
        verify_checksum(row)
    assert index == 7


def test_builder_makes_the_same_rows(phantoms, tmp_path):
    builder = PairedCT(**PHANTOMS, cache_dir=str(tmp_path))
    builder.download_and_prepare()
    rows = builder.as_dataset(split="train")
    wanted = rows_of(phantoms[0])
    assert len(rows) == 8 and all(wanted[row["scan_key"]] == row["checksum"] for row in rows)
    first = next(iter(builder.as_streaming_dataset(split="train")))
    assert wanted[first["scan_key"]] == first["checksum"]


def test_builder_refuses_what_it_cannot_use(pairs, tmp_path):
    next(iter((pairs / "PAT-4712" / "low").iterdir())).unlink()
    with pytest.raises(ValueError, match="no partner"):
        PairedCT(pairs=str(pairs), dose_fractions=(0.25,), salt="s", cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="`salt` must be given"):
        PairedCT(pairs=str(pairs), dose_fractions=(0.25,), cache_dir=str(tmp_path))


@pytest.mark.real_data
def test_real_pairs_row_for_row(real_data, tmp_path):
    out = tmp_path / "out"
    report = prepare_paired_ct(
        out, pairs=str(real_data / "pairs"), dose_fractions=(0.25,),
        split_by_patient={"L506": "test", "L096": "train", "L143": "train"})  # fmt: skip
    assert report.rows == {"train": 14, "validation": 0, "test": 1} and not report.problems
    wanted = {}
    for full in sorted((real_data / "pairs").glob("*/full/*.IMA")):
        stored = [pydicom.dcmread(path) for path in (full.parents[1] / "quarter" / full.name, full)]
        hu = [d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in stored]
        low, full_hu = (image.clip(-1024, 3071).astype(np.int16) for image in hu)
        wanted[low.tobytes()] = (full_hu.tobytes(), stored[0])
    count = {}
    for split in ("train", "test"):
        rows = load_paired_ct(out, split)
        for index, row in enumerate(rows.remove_columns(["low", "full"])):
            full_bytes, header = wanted.pop(volume_view(rows, index, "low").tobytes())
            assert volume_view(rows, index, "full").tobytes() == full_bytes
            conditions = ScanConditions(**json.loads(row["conditions"]))
            assert conditions.kernel == header.ConvolutionKernel and conditions.kvp == float(header.KVP)
            assert conditions.slice_thickness_mm == float(header.SliceThickness)
            assert row["dose_fraction"] == conditions.dose_fraction == 0.25
            assert row["spacing_mm"][1:] == pytest.approx([float(v) for v in header.PixelSpacing])
            name = (str(header.PatientName)[:4], conditions.kernel)
            count[name] = count.get(name, 0) + 1
    assert not wanted
    assert count == {("L096", "D45f"): 6, ("L143", "B30f"): 4, ("L143", "D45f"): 4, ("L506", "B30f"): 1}
    assert len({entry.patient_key for entry in read_manifest(out)}) == 3
    assert (out / MANIFEST_NAME).is_file()
