"""Messages of the library in the words of a command: its flags where it has them, and nothing else changed."""

import pytest
import typer

from diffusers_ct.cli import COMMANDS, build_app, main
from diffusers_ct.cli.wording import in_flags
from diffusers_ct.mistakes import message_of


@pytest.mark.parametrize(
    ("command", "text", "said"),
    [
        ("simulate", "Pass resample=True to straighten it.", "Pass --resample to straighten it."),
        ("restore", "stack=2 needs `series_uid`, as", "--stack 2 needs --series-uid, as"),
        ("restore", "4 slices, series_uid=1.2.840.5, stack=2 (x)", "4 slices, --series-uid 1.2.840.5, --stack 2 (x)"),
        ("restore", "series_uid='', stack=1.", "--series-uid '', --stack 1."),
        ("prepare", "`dose_fractions` must be given", "--dose must be given"),
        ("prepare", "Give `patient_from_name` (--patient-from-name), a rule", "Give --patient-from-name, a rule"),
        ("prepare", "`shard_size_mb` must be positive", "--shard-size must be positive"),
        ("simulate", "name a `kernel`, or give `i0`.", "name a --kernel, or give --i0."),
        ("simulate", "If they are, pass assume_hu=True.", "If they are, pass --assume-hu."),
        (
            "restore",
            "If they are, pass assume_hu=True.",
            "If they are, pass assume_hu=True of `diffusers_ct.read_volume` (Python).",
        ),
        ("inspect", "needs `patient_from_name`", "needs --patient-from-name of prepare"),
        ("inspect", "read it with resample=True", "read it with --resample of simulate and restore"),
        ("inspect", "its thickness as `slice_spacing_mm`.", "its thickness as --slice-thickness of simulate."),
        ("inspect", "choose stack=2.", "choose --stack 2 of simulate and restore."),
        ("deidentify", "`kernel` and `i0`", "`kernel` and `i0`"),
        ("simulate", "`read_volume(x, resample=True)`", "`read_volume(x, resample=True)`"),
        ("simulate", "/data/stack=3/kernel: the kernel", "/data/stack=3/kernel: the kernel"),
    ],
)
def test_arguments_become_the_flags_of_the_command(command, text, said):
    assert in_flags(text, command) == said


def test_every_flag_that_is_said_exists():
    commands = typer.main.get_command(build_app()).commands
    assert set(commands) == set(COMMANDS)
    for name, command in commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        for parameter in command.params:
            said = in_flags(f"`{parameter.name}`", name)
            assert said in options or said == f"`{parameter.name}`"


def test_the_operating_system_speaks_without_its_numbers(tmp_path):
    assert message_of(FileNotFoundError(2, "There is nothing", "a/b")) == "a/b: There is nothing"
    assert message_of(ValueError("wrong")) == "wrong"


def test_the_command_line_prints_them_so(tmp_path, monkeypatch, capsys):
    for arguments, said in (
        (["prepare", str(tmp_path / "out"), "--normal-dose", str(tmp_path)], "--dose must be given"),
        (["simulate", str(tmp_path / "none"), "--dose", "0.1"], f"error: {tmp_path / 'none'}: There is no file"),
    ):
        monkeypatch.setattr("sys.argv", ["diffusers-ct", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        printed = capsys.readouterr().err
        assert said in printed and "Errno" not in printed
