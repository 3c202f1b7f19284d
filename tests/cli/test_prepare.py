"""The command line: quick, clear about mistakes, honest in its status."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from diffusers_ct.cli import build_app, is_users_mistake, main
from diffusers_ct.cli.prepare import parse_split_by_patient
from diffusers_ct.data import load_paired_ct

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
    for flag in ("--pairs MAYO_FOLDER", "--normal-dose DICOM_FOLDER", "--phantoms 24", "--split-by-patient"):
        assert flag in text


def test_phantoms_end_to_end(tmp_path):
    out = tmp_path / "out"
    arguments = ["prepare", str(out), *PHANTOMS, "--split-by-patient", "test=phantom-1"]
    result = CliRunner().invoke(build_app(), arguments)
    assert result.exit_code == 0, result.output
    assert "3 rows (train 2, validation 0, test 1): 3 made now, 0 from before." in result.output
    assert "provenance" in load_paired_ct(out, "test").column_names
    again = CliRunner().invoke(build_app(), arguments)
    assert "0 made now, 3 from before" in again.output


def test_simulator_options_reach_the_rows(tmp_path):
    result = CliRunner().invoke(build_app(), ["prepare", str(tmp_path / "out"), *PHANTOMS, "--i0", "123456"])
    assert result.exit_code == 0, result.output
    assert json.loads(load_paired_ct(tmp_path / "out", "train")[0]["provenance"])["simulator"]["i0"] == 123456


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--phantoms", "2"], "must be given"),
        (["--dose", "0.25"], "exactly one of"),
        (["--phantoms", "2", "--dose", "25"], "must be in (0, 1), got 25.0"),
        (["--pairs", "absent_folder", "--dose", "0.25"], "absent_folder is not a folder"),
        (["--phantoms", "2", "--dose", "0.25", "--split-by-patient", "L506"], "such as test=L506"),
        (["--phantoms", "2", "--dose", "0.25", "--region", "knee"], "choose of thorax, abdomen"),
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
    with pytest.raises(ValueError, match="sends L506 to test and to train"):
        parse_split_by_patient(["test=L506", "train=L506"])


@pytest.mark.real_data
def test_left_out_scans_are_named_and_end_in_status_1(tmp_path, real_data):
    for patient, dose in (("L096", "full"), ("L096", "quarter"), ("L143", "full")):
        source = real_data / "pairs" / f"mayo_{patient}_D45f_3mm" / dose
        (tmp_path / "in" / patient).mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / patient / dose).symlink_to(source)
    arguments = ["prepare", str(tmp_path / "o"), "--pairs", str(tmp_path / "in"), "--dose", "0.25"]
    result = CliRunner().invoke(build_app(), arguments)
    assert result.exit_code == 1, result.output
    assert "6 made now" in result.output and "4 full-dose slices have no low-dose partner" in result.output
