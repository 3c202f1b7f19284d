"""From scans of patients to a pushed dataset: no byte of shards, manifest, settings, caches, logs and cards tells who it was."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest

from diffusers_ct.data.prepare import describe, prepare_paired_ct
from tests.hub_server import TOKEN, LocalHub
from tests.io.identity import found_in, identifying_values
from tests.io.synthetic import SECRETS, hu_of
from tests.io.test_deidentify_series import SECRET, planted

ROOT = Path(__file__).parents[1]
PUSH = """
import logging, sys
logging.basicConfig(level=logging.DEBUG)
from datasets import DatasetDict
from diffusers_ct import load_paired_ct
from diffusers_ct.hub import push_dataset
prepared = load_paired_ct(sys.argv[1])
for rows in prepared.values():
    rows.info.description = rows.info.citation = sys.argv[2]
    rows.map(lambda row: row)  # leaves a cache
push_dataset(prepared, "user/ds", licence="apache-2.0", description="Scans.")
load_paired_ct("user/ds")
"""


def pushed(folder: Path, home: Path, secret: str) -> tuple[bytes, str]:
    """What reaches the Hub and what a process says while it pushes at the level DEBUG."""
    with LocalHub() as hub:
        environment = {
            **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0",
            "HF_TOKEN": TOKEN, "HF_HOME": str(home), "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        environment.pop("HF_DATASETS_CACHE", None)
        done = subprocess.run(
            [sys.executable, "-c", PUSH, str(folder), secret],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        repo = hub.repos["datasets", "user/ds"]
        files = repo.commits[repo.head]
    assert any(name.endswith(".parquet") for name in files) and b"diffusers-ct" in files["README.md"]
    return b"".join(name.encode() + content for name, content in files.items()), done.stdout + done.stderr


def everything_below(folder: Path) -> bytes:
    return b"".join(
        str(f.relative_to(folder)).encode() + f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()
    )


def check_all(source: Path, values: set[str], tmp_path: Path, caplog, **settings) -> None:
    out = tmp_path / "prepared"
    with caplog.at_level(logging.DEBUG):
        report = prepare_paired_ct(out, dose_fractions=(0.25,), validation_fraction=0.0, test_fraction=0.0, **settings)
    assert report.rows["train"] > 0, list(describe(report))
    assert (out / "settings.json").exists() and list((out / "shards").rglob("*.arrow"))
    prepared = everything_below(out)
    sent, said = pushed(out, tmp_path / "home", SECRET)
    salt = (out / "private" / "salt").read_text().strip()
    assert salt.encode() not in sent and salt not in said
    places = {
        "prepared": prepared, "sent": sent, "cache": everything_below(tmp_path / "home"), "log": caplog.text.encode(),
        "said": said.encode(),
    }  # fmt: skip
    for place, content in places.items():
        assert not found_in(content, values | {str(source)}), place


def test_nothing_of_a_planted_patient_reaches_a_dataset(tmp_path, caplog):
    source = planted(tmp_path / "patients" / SECRET, behind_pixels=False, pixel_mm=(0.6, 0.6), StudyTime="083000")
    values = {SECRET, *SECRETS.values(), "Quixote", "Alonso", "Cervantes", "Sancho"}
    for file in source.iterdir():
        values |= identifying_values(pydicom.dcmread(file), kept=("PatientAge", "PatientSex"))
    assert len(hu_of()) == 4 and len(values) > 20
    check_all(source.parent, values, tmp_path, caplog, normal_dose=str(source.parent), i0=5e5, kernel="soft")


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["pairs", "series"])
def test_nothing_of_a_real_patient_reaches_a_dataset(real_data, tmp_path, caplog, name):
    values: set[str] = set()
    for file in (real_data / name).rglob("*"):
        if file.is_file() and file.suffix not in (".npy", ".raw"):
            values |= identifying_values(
                pydicom.dcmread(file, force=True), kept=("PatientAge", "PatientSex", "PatientWeight")
            )
    assert len(values) > 50
    short = {v for v in values if len(v) < 6}  # four bytes stand in megabytes of noise by chance
    settings = {"pairs": str(real_data / name)} if name == "pairs" else {"normal_dose": str(real_data / name)}
    check_all(real_data / name, values - short, tmp_path, caplog, **settings)
