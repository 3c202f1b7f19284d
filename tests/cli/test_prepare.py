"""The command line: quick, clear about mistakes, honest in its status."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

from diffusers_ct.cli import build_app, main
from diffusers_ct.cli.prepare import parse_split_by_patient
from diffusers_ct.data import load_paired_ct, load_unpaired_ct
from diffusers_ct.io import write_volume
from diffusers_ct.mistakes import is_users_mistake
from diffusers_ct.volume import CTVolume

PHANTOMS = ["--phantoms", "3", "--dose", "0.25", "--shape", "3", "48", "48", "--spacing", "3", "8", "8"]
RUN = "import sys; sys.argv[0] = 'diffusers-ct'; from diffusers_ct.cli import main; main()"


def run(*arguments: str, script: str = RUN) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["prepare", "--help"]])
def test_help_needs_no_torch(arguments):
    script = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('HEAVY', [m for m in ('torch', 'datasets', 'diffusers', 'pydicom') "
        "if m in sys.modules]))\n" + RUN
    )
    result = run(*arguments, script=script)
    assert result.returncode == 0, result.stderr
    assert "HEAVY []" in result.stdout
    assert "prepare" in result.stdout


def test_help_of_prepare_shows_an_example_of_each_source():
    text = run("prepare", "--help").stdout
    for flag in ("--pairs MAYO_FOLDER", "--normal-dose DICOM_FOLDER", "--phantoms 24", "--split-by-patient",
                 "--unpaired", "--shard 1/2", "--merge data/part1", "--patient-from-name"):  # fmt: skip
        assert flag in text


def test_phantoms_end_to_end(tmp_path):
    out = tmp_path / "out"
    arguments = ["prepare", str(out), *PHANTOMS, "--split-by-patient", "test=phantom-1"]
    result = CliRunner().invoke(build_app(), arguments)
    assert result.exit_code == 0, result.output
    assert "3 rows (train 2, validation 0, test 1): 3 made now, 0 from before." in result.output
    assert "provenance" in load_paired_ct(out, "test").column_names
    again = CliRunner().invoke(build_app(), [*arguments, "--num-workers", "0"])
    assert "0 made now, 3 from before" in again.output


def test_parts_are_merged_to_the_whole(tmp_path):
    here = ["--num-workers", "0", "--shard-size", "0.00001"]
    for number in (1, 2):
        arguments = ["prepare", str(tmp_path / f"part{number}"), *PHANTOMS, *here, "--shard", f"{number}/2"]
        assert CliRunner().invoke(build_app(), arguments).exit_code == 0
    parts = ["--merge", str(tmp_path / "part1"), "--merge", str(tmp_path / "part2")]
    result = CliRunner().invoke(build_app(), ["prepare", str(tmp_path / "all"), *parts])
    assert result.exit_code == 0 and "3 rows (" in result.output
    CliRunner().invoke(build_app(), ["prepare", str(tmp_path / "whole"), *PHANTOMS, *here])
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "all" / path.relative_to(tmp_path / "whole")).read_bytes()


def test_unpaired_scans(tmp_path):
    air = np.random.default_rng(0).normal(-990.0, 8.0, (3, 32, 32))
    for name in ("normal/p1_a.nii.gz", "normal/p2_a.nii.gz", "low/p1_a.mha"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_volume(CTVolume.from_array(air, (2.0, 1.0, 1.0)), tmp_path / name)
    folders = ["--normal-dose", str(tmp_path / "normal"), "--low-dose", str(tmp_path / "low"), "--dose", "0.1"]
    arguments = ["prepare", str(tmp_path / "out"), "--unpaired", *folders, "--patient-from-name", r"^(p\d)_"]
    result = CliRunner().invoke(build_app(), [*arguments, "--num-workers", "0", "--split-by-patient", "train=p1,p2"])
    assert result.exit_code == 0, result.output
    rows = load_unpaired_ct(tmp_path / "out", "train")
    assert sorted(rows["dose"]) == ["low", "normal", "normal"] and len(set(rows["patient_key"])) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent as a signal")
def test_ctrl_c_ends_with_how_to_go_on(tmp_path):
    many = [*PHANTOMS, "--shape", "3", "160", "160", "--phantoms", "500"]
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, "prepare", str(tmp_path / "out"), *many],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        # a shell's background job, as CI may be, ignores Ctrl-C and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 220
        while not list((tmp_path / "out").glob("staging/*.arrow")) and time.monotonic() < deadline:
            assert process.poll() is None, "it ended before it could be stopped"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    assert re.fullmatch(r"Stopped: [1-9]\d* rows are ready\. Give the same command again to go on\.\s*", err), err
    assert "Traceback" not in out and not list((tmp_path / "out").rglob("*.part"))


def test_what_was_given_is_repeated_in_no_message():
    for wrong in (["L506"], ["test"], ["=L506"], ["test=L506", "train=L506"]):
        with pytest.raises(ValueError, match="--split-by-patient") as error:
            parse_split_by_patient(wrong)
        assert "L506" not in str(error.value).replace("such as test=L506", "")


def test_advice_of_reading_becomes_a_flag_that_makes_the_row(tmp_path):
    organ = np.random.default_rng(0).normal(40.0, 10.0, (3, 32, 32))
    for patient in ("p1", "p2"):
        write_volume(CTVolume.from_array(organ, (2.0, 1.0, 1.0)), tmp_path / "in" / f"{patient}_a.nii.gz")
    out = str(tmp_path / "out")
    arguments = ["prepare", out, "--normal-dose", str(tmp_path / "in"), "--patient-from-name", r"^(p\d)_", "--dose", "0.25",
                 "--num-workers", "0", "--split-by-patient", "train=p1,p2", "--i0", "5e5", "--kernel", "soft"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["diffusers-ct", *arguments])
        message = _message_of_main()
    assert "No scan could be read" in message and "pass --assume-hu. Left out." in message
    assert message.count("p1_a.nii.gz") == 1
    result = CliRunner().invoke(build_app(), [*arguments, "--assume-hu"])  # nothing was made, so nothing is in the way
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["assume_hu"] is True
    assert "Warning: no patient has come to validation or test." in result.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["diffusers-ct", *arguments])
        assert "prepared with other settings (--assume-hu)" in _message_of_main()


def test_simulator_options_reach_the_rows(tmp_path):
    result = CliRunner().invoke(
        build_app(), ["prepare", str(tmp_path / "out"), *PHANTOMS, "--i0", "123456", "--num-workers", "0"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(load_paired_ct(tmp_path / "out", "train")[0]["provenance"])["simulator"]["i0"] == 123456


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--phantoms", "2"], "must be given"),
        (["--dose", "0.25"], "exactly one of"),
        (["--phantoms", "2", "--dose", "25"], "must be in (0, 1), got 25.0"),
        (["--pairs", "absent_folder", "--dose", "0.25"], "There is no folder absent_folder"),
        (["--phantoms", "2", "--dose", "0.25", "--split-by-patient", "L506"], "such as test=L506"),
        (["--phantoms", "2", "--dose", "0.25", "--region", "knee"], "choose of thorax, abdomen"),
        (["--phantoms", "2", "--dose", "0.25", "--shard", "3/2"], "such as 1/4; got '3/2'"),
        (["--phantoms", "2", "--dose", "0.25", "--low-dose", "x"], "--low-dose is for --unpaired"),
        (["--unpaired", "--phantoms", "2"], "leave out --phantoms"),
        (["--unpaired", "--normal-dose", "x", "--dose", "0.5"], "the one dose of the scans under --low-dose"),
        (["--merge", "absent", "--dose", "0.5"], "leave out --dose"),
        (["--merge", "absent"], "There is no folder absent"),
        (["--phantoms", "2"], "--dose must be given"),
        (["--dose", "0.25"], "exactly one of --pairs, --normal-dose and --phantoms, got none"),
        (["--phantoms", "2", "--dose", "25"], "--dose of the low-dose image must"),
        (["--phantoms", "2", "--dose", "0.25", "--shape", "0", "4", "4"], "--shape and --spacing must be positive"),
        (
            ["--phantoms", "2", "--dose", "0.25", "--validation-fraction", "2"],
            "--validation-fraction and --test-fraction",
        ),
        (
            ["--phantoms", "2", "--dose", "0.25", "--assume-hu"],
            "--assume-hu is for NIfTI and MetaImage files under --normal",
        ),
        (["--phantoms", "2", "--dose", "0.25", "--shard-size", "0"], "--shard-size must be positive"),
    ],
)
def test_mistakes_get_one_message_and_status_2(tmp_path, arguments, words):
    # In this process: the heavy imports are there already.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["diffusers-ct", "prepare", str(tmp_path / "o"), *arguments])
        message = _message_of_main()
    assert words in message and "Traceback" not in message
    assert not (tmp_path / "o").exists()


def _message_of_main() -> str:
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr), pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    return re.sub(r"\s+", " ", stderr.getvalue())


def test_bugs_keep_their_traceback():
    try:
        int("not ours")
    except ValueError as error:
        assert not is_users_mistake(error)
    try:
        parse_split_by_patient(["nonsense"])
    except ValueError as error:
        assert is_users_mistake(error)
    assert is_users_mistake(FileNotFoundError(2, "No such file", "scan.dcm"))


def test_split_by_patient():
    assert parse_split_by_patient(["test=L506, L333", "train=L096"]) == {
        "L506": "test",
        "L333": "test",
        "L096": "train",
    }
    with pytest.raises(ValueError, match="sends a patient to two splits"):
        parse_split_by_patient(["test=L506", "train=L506"])


@pytest.mark.real_data
def test_left_out_scans_are_named_and_end_in_status_1(tmp_path, real_data):
    for patient, dose in (("L096", "full"), ("L096", "quarter"), ("L143", "full")):
        source = real_data / "pairs" / f"mayo_{patient}_D45f_3mm" / dose
        (tmp_path / "in" / patient).mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / patient / dose).symlink_to(source)
    # All to train: of one patient whose key has a salt drawn anew, chance would leave train empty in one run of five.
    everyone = ["--validation-fraction", "0", "--test-fraction", "0"]
    arguments = ["prepare", str(tmp_path / "o"), "--pairs", str(tmp_path / "in"), "--dose", "0.25", *everyone]
    result = CliRunner().invoke(build_app(), arguments)
    assert result.exit_code == 1, result.output
    assert "6 made now" in result.output and "4 full-dose slices have no low-dose partner" in result.output
