"""Whatever a file holds, reading it ends in a volume or in an error of our own, in bounded time and memory.

The default suite reads some hundred damaged files. The campaign reads as many as wanted:

    DIFFUSERS_CT_FUZZ_CASES=20000 python -m pytest -m fuzz tests/fuzz -s
"""

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pydicom
import pytest

from diffusers_ct import CTVolume
from diffusers_ct.io import CTReadError, read_volume, write_volume
from tests.io.synthetic import hu_of, write_series

ROOT = Path(__file__).parents[2]
SECONDS, MEMORY_BYTES = 20.0, 1024 * 2**20

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits of processes need Linux")

REAL_SEEDS = (
    ("dicom", "singles/CT_small.dcm"), ("dicom", "singles/CT1_J2KI.dcm"), ("dicom", "singles/CT1_JLSN.dcm"),
    ("dicom", "singles/barre_CT_JPEG70.dcm"), ("dicom", "singles/CT0012_enhanced_multiframe_jpegll.dcm"),
    ("dicom", "singles/CT1_RLE.dcm"), ("dicom", "singles/explicit_VR-UN_pancreas.dcm"),
    ("dicom", "singles/philips_skullbase_jpegll.dcm"), ("dicom", "singles/CT1_UNC.explicit_big_endian.dcm"),
    ("dicom", "singles/barre_CT_Implicit_Little_Headless_Retired.dcm"),
    ("metaimage", "volumes/3DCT_lung_baseline_small.mha"), ("nifti_gz", "volumes/ts_example_ct_sm.nii.gz"),
)  # fmt: skip


def synthetic_seeds(folder: Path) -> list[tuple[str, str]]:
    """One small sound file of each kind."""
    volume = CTVolume.from_array(hu_of((3, 16, 12)), (2.0, 0.8, 0.8))
    seeds = [("dicom", str(write_series(folder / "series", hu_of((1, 16, 12)))[0]))]
    for kind, name in (("nifti", "a.nii"), ("nifti_gz", "b.nii.gz"), ("metaimage", "c.mha")):
        seeds.append((kind, str(write_volume(volume, folder / name))))
    archive = folder / "study.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted(write_series(folder / "whole", hu_of((3, 16, 12)))):
            out.write(path, path.name)
    return [*seeds, ("archive", str(archive))]


def run_cases(seeds: list[tuple[str, str]], first: int, last: int, folder: Path) -> tuple[Counter, list[dict]]:
    """Outcomes of the cases `first` to `last`, and those that are not allowed; a dead process is one of them."""
    plan = folder / "plan.json"
    plan.write_text(json.dumps({"seeds": seeds, "seconds": SECONDS, "memory_bytes": MEMORY_BYTES}))
    counts: Counter = Counter()
    findings: list[dict] = []
    while first < last:
        command = [sys.executable, "-m", "tests.fuzz.worker", str(plan), str(first), str(last), str(folder)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        for row in rows:
            if "outcome" not in row:
                continue
            counts[row["outcome"].split(":")[0]] += 1
            if row["outcome"] not in ("volume", "refused"):
                findings.append({**row, "seed": seeds[row["number"] % len(seeds)][1]})
        if done.returncode == 0:
            break
        assert rows, f"the worker did not start: exit status {done.returncode}"
        dead = rows[-1]["number"]
        counts["died"] += 1
        findings.append({"number": dead, "outcome": f"died: {done.returncode}", "seed": seeds[dead % len(seeds)][1]})
        first = dead + 1
    return counts, findings


def test_damaged_files_are_read_or_refused(tmp_path):
    counts, findings = run_cases(synthetic_seeds(tmp_path), 0, 300, tmp_path)
    assert not findings, findings[:5]
    assert counts["volume"] + counts["refused"] == 300
    assert min(counts["volume"], counts["refused"]) > 20  # neither is the only answer


def test_the_watch_sees_what_it_is_there_to_see(tmp_path, monkeypatch):
    """A reader that leaks a foreign exception, hangs or takes too much memory is found out."""
    (tmp_path / "sitecustomize.py").write_text("""
import time
import numpy as np
import diffusers_ct.io as io
real, calls = io.read_volume, [0]
def broken(path, **kwargs):
    calls[0] += 1
    if calls[0] == 2: raise KeyError("leaked")
    if calls[0] == 4: np.ones(2**28)  # 2 GiB
    if calls[0] == 6: time.sleep(60)
    return real(path, **kwargs)
io.read_volume = broken
""")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(f"{__name__}.SECONDS", 3.0)
    _, findings = run_cases(synthetic_seeds(tmp_path), 0, 8, tmp_path)
    told = [(found["number"], found["outcome"].split(":")[0]) for found in findings]
    assert told[0] == (1, "builtins.KeyError")
    assert told[1][0] == 3 and "MemoryError" in told[1][1]
    assert told[2] == (5, "died")


def test_a_headless_file_whose_rows_cannot_be_decoded_is_refused(tmp_path):
    """Found by the campaign: an implicit VR file without preamble whose Rows has an odd length."""
    image = pydicom.Dataset()
    image.SOPClassUID, image.Modality, image.Columns = "1.2.840.10008.5.1.4.1.1.2", "CT", 4
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, image, implicit_vr=True, little_endian=True, enforce_file_format=False)
    odd = struct.pack("<HHI", 0x0028, 0x0010, 3) + b"\x04\x00\x00"
    sound = stream.getvalue()
    at = sound.index(struct.pack("<HH", 0x0028, 0x0011))
    path = tmp_path / "a.dcm"
    path.write_bytes(sound[:at] + odd + sound[at:])
    with pytest.raises(CTReadError, match=r"a\.dcm"):
        read_volume(path)


@pytest.mark.parametrize("line", [b"NDims = 1e+300 1", b"NDims = 65535 0 -1 1e+300"])
def test_a_false_number_of_axes_does_not_end_the_process(tmp_path, line):
    """Found by the campaign: ITK's reader writes beyond its arrays for such headers."""
    path = tmp_path / "a.mha"
    write_volume(CTVolume.from_array(hu_of((3, 16, 12)), (2.0, 0.8, 0.8)), path)
    path.write_bytes(path.read_bytes().replace(b"NDims = 3", line))
    with pytest.raises(CTReadError, match="NDims"):
        read_volume(path)


@pytest.mark.fuzz
@pytest.mark.timeout(7200)
def test_campaign(tmp_path):
    seeds = synthetic_seeds(tmp_path)
    if folder := os.environ.get("DIFFUSERS_CT_REAL_DATA"):
        seeds += [(kind, str(Path(folder) / name)) for kind, name in REAL_SEEDS]
    cases = int(os.environ.get("DIFFUSERS_CT_FUZZ_CASES", "2000"))
    first = int(os.environ.get("DIFFUSERS_CT_FUZZ_FIRST", "0"))
    counts, findings = run_cases(seeds, first, first + cases, tmp_path)
    print(dict(counts))
    for found in findings[:40]:
        print(json.dumps(found))
    assert not findings, f"{len(findings)} of {cases} cases: {findings[:3]}"
    assert counts.total() == cases
