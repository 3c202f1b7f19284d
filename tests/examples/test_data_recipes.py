"""Every command of the recipes is one that the command line takes, and the code in them does what they say."""

import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import typer

from diffusers_ct.cli import build_app
from diffusers_ct.cli.prepare import parse_shard, parse_split_by_patient
from diffusers_ct.data import prepare_paired_ct

RECIPES = (Path(__file__).parents[2] / "examples" / "data_recipes.md").read_text()
COMMANDS = re.findall(r"^diffusers-ct prepare (.*)$", RECIPES, re.MULTILINE)


def options_of(command: str) -> dict:
    prepare = typer.main.get_command(build_app()).commands["prepare"]
    return prepare.make_context("prepare", shlex.split(command)).params


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_taken(command):
    options = options_of(command)
    parse_shard(options["shard"])
    parse_split_by_patient(options["split_by_patient"] or [])
    assert options["merge"] or any(options[source] for source in ("pairs", "normal_dose", "low_dose", "phantoms"))


def test_every_recipe_has_its_command():
    assert len(COMMANDS) >= 11
    for number in range(1, 6):
        section = RECIPES.split(f"\n## {number}. ")[1].split("\n## ")[0]
        assert "diffusers-ct prepare" in section and "**Traps" in section
        assert number == 5 or ("**Licence**" in section and "**Where**" in section)


def test_ct_rate_values_become_hu_and_the_rule_finds_the_patient(tmp_path):
    rng = np.random.default_rng(0)
    hu = np.rint(rng.normal(-990.0, 10.0, (3, 32, 32)))
    hu[:, 8:24, 8:24] = np.rint(rng.normal(40.0, 10.0, (3, 16, 16)))
    rows = []
    for patient in (1, 2):
        name = f"valid_{patient}_a_1.nii.gz"
        path = tmp_path / "valid" / f"valid_{patient}" / f"valid_{patient}_a" / name
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image((hu + 1024).transpose(2, 1, 0).astype(np.float32), np.eye(4)), path)
        rows.append({"VolumeName": name, "RescaleSlope": 1, "RescaleIntercept": -1024, "XYSpacing": "[0.7, 0.7]", "ZSpacing": 1.5})  # fmt: skip
    with (tmp_path / "validation_metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (command,) = (c for c in COMMANDS if "ct-rate" in c)
    rule = options_of(command)["patient_from_name"]
    source = {"patient_from_name": rule, "dose_fractions": (0.25,), "validation_fraction": 0.0, "test_fraction": 0.0,
              "i0": 5e5, "kernel": "soft"}  # fmt: skip
    with pytest.raises(ValueError, match=r"do not look like Hounsfield units|these are no HU"):
        prepare_paired_ct(tmp_path / "refused", normal_dose=str(tmp_path / "valid"), **source)
    code = RECIPES.split("```python\n")[1].split("```")[0]
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    written = nib.load(tmp_path / "valid_hu" / "valid_1" / "valid_1_a" / "valid_1_a_1.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj).transpose(2, 1, 0), hu)
    assert written.header.get_zooms() == pytest.approx((0.7, 0.7, 1.5))
    report = prepare_paired_ct(tmp_path / "out", normal_dose=str(tmp_path / "valid_hu"), **source)
    assert report.written == 2 and not report.problems
