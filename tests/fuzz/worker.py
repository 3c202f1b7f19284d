"""Reads damaged files one after the other in a process of its own, under a limit of time and memory for each.

    python -m tests.fuzz.worker PLAN.json FIRST LAST FOLDER

Prints a line before each case and one after it, so that whoever started it knows the case that it died on.
"""

import json
import logging
import os
import resource
import signal
import sys
import time
import warnings
from pathlib import Path

import pydicom

from diffusers_ct.io import CTReadError, list_series, read_volume

from .mutations import mutate

SUFFIXES = {
    "dicom": ".dcm", "nifti": ".nii", "nifti_gz": ".nii.gz", "metaimage": ".mha", "archive": ".zip",
}  # fmt: skip


def read_case(path: Path, kind: str) -> str:
    """What became of one file: "volume", "refused", or the name of a foreign exception with its text."""
    try:
        volume = read_volume(path)
        if volume.hu.ndim != 3 or not all(s > 0 for s in volume.spacing_mm):
            return f"bad volume {volume.hu.shape} {volume.spacing_mm}"
        outcome = "volume"
    except CTReadError as error:
        if str(path) not in str(error) and str(path.parent) not in str(error):
            return f"message names no file: {error}"
        outcome = "refused"
    except Exception as error:
        return f"{type(error).__module__}.{type(error).__name__}: {error}"
    if kind in ("dicom", "archive"):
        try:
            for summary in list_series(path):
                str(summary)
        except CTReadError:
            pass
        except Exception as error:
            return f"list_series: {type(error).__module__}.{type(error).__name__}: {error}"
    return outcome


def main() -> None:
    plan_file, first, last, folder = sys.argv[1:]
    plan = json.loads(Path(plan_file).read_text())
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what C libraries print
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    seeds = [(kind, Path(path).read_bytes()) for kind, path in plan["seeds"]]
    with open("/proc/self/statm") as file:
        now_bytes = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = now_bytes + plan["memory_bytes"]
    for number in range(int(first), int(last)):
        kind, sound = seeds[number % len(seeds)]
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        path = Path(folder) / f"case{SUFFIXES[kind]}"
        path.write_bytes(mutate(sound, kind, number))
        print(json.dumps({"number": number}), flush=True)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        signal.setitimer(signal.ITIMER_REAL, plan["seconds"])  # its signal ends the process
        started = time.monotonic()
        outcome = read_case(path, kind)
        seconds = time.monotonic() - started
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        print(json.dumps({"number": number, "outcome": outcome, "seconds": round(seconds, 3)}), flush=True)


if __name__ == "__main__":
    main()
