"""A script's mistakes are one line with its flags and status 2; a bug keeps its traceback."""

import argparse

import pytest

from diffusers_ct.cli.scripts import one_line_mistakes
from diffusers_ct.training import TrainingConfig


@pytest.fixture
def parser():
    made = argparse.ArgumentParser()
    TrainingConfig.add_arguments(made)
    return made


def test_a_mistake_is_one_line_with_flags(parser, capsys):
    with pytest.raises(SystemExit) as stop, one_line_mistakes(parser):
        TrainingConfig(output_dir="out", max_train_steps=5)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: --lr_warmup_steps = 50 must be less than --max_train_steps = 5.\n"


def test_other_names_and_the_scripts_own_messages(parser, capsys):
    with pytest.raises(SystemExit), one_line_mistakes(parser, {"depth": "--patch_size"}) as refuse:
        refuse("Use a smaller `depth`.")
    assert capsys.readouterr().err == "error: Use a smaller --patch_size.\n"


def test_a_file_is_named_without_a_number(parser, tmp_path, capsys):
    with pytest.raises(SystemExit), one_line_mistakes(parser):
        (tmp_path / "absent").read_text()
    assert capsys.readouterr().err == f"error: {tmp_path / 'absent'}: No such file or directory\n"


def test_a_bug_is_no_mistake(parser):
    with pytest.raises(ValueError, match="invalid literal"), one_line_mistakes(parser):
        int("x")
