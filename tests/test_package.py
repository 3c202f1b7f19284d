"""The package itself: what import brings in, what it names, what it depends on."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import diffusers_ct

ROOT = Path(__file__).parents[1]


def test_every_public_name_is_there():
    for name in diffusers_ct.__all__:
        assert getattr(diffusers_ct, name) is not None
    assert set(dir(diffusers_ct)) == set(diffusers_ct.__all__)
    assert (ROOT / "diffusers_ct" / "py.typed").is_file()


def test_importing_the_package_is_light():
    code = """
import sys, diffusers_ct
heavy = {"torch", "diffusers", "pydicom", "nibabel", "transformers", "datasets"} & set(sys.modules)
assert not heavy, heavy
from diffusers_ct import CTDiffusionPipeline
heavy = {"pydicom", "nibabel", "datasets"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_are_attribute_errors():
    try:
        diffusers_ct.NoSuchThing  # noqa: B018
    except AttributeError as error:
        assert "NoSuchThing" in str(error)
    else:
        raise AssertionError


def test_no_dependency_of_a_forbidden_licence_and_every_one_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=\[;]", d)[0].strip().lower() for d in project["dependencies"]}
    for extra in project["optional-dependencies"].values():
        names |= {re.split(r"[<>=\[;]", d)[0].strip().lower() for d in extra} - {"diffusers-ct"}
    assert not names & {
        "pylibjpeg-libjpeg",
        "astra-toolbox",
        "bm3d",
        "pingouin",
        "krippendorff",
        "torchvision",
        "lpips",
    }
    pinned = {
        line.split("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    assert names <= pinned, names - pinned


def test_no_machine_path_or_registry_in_what_readers_see():
    for file in [
        *ROOT.glob("*.md"),
        *ROOT.glob("examples/*"),
        *ROOT.glob("model_cards/*"),
        *ROOT.glob("diffusers_ct/**/*.py"),
    ]:
        if file.is_file():
            assert not re.search(r"/work/|/root/|pypi\.org|pythonhosted", file.read_text(errors="ignore")), file
