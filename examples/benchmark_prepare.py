"""How fast `diffusers-ct prepare` is by the number of workers, and whether its memory stays flat.

    python examples/benchmark_prepare.py

Writes DICOM series of one size, prepares some and then many of them with each number of workers (low dose simulated),
and samples the resident memory of the main process and of its largest worker. Headers are timed by themselves.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from rich.console import Console
from rich.table import Table

from diffusers_ct.data.dicom_trees import read_headers
from diffusers_ct.data.workers import Workers

COMMAND = [sys.executable, "-c", "import sys; sys.argv[0] = 'diffusers-ct'; from diffusers_ct.cli import main; main()"]


def write_scan(folder: Path, number: int, shape: tuple[int, int, int], pixel_mm: float) -> None:
    """A disc of tissue in air with noise, as a DICOM series of 1 mm slices."""
    folder.mkdir(parents=True)
    depth, height, width = shape
    rng = np.random.default_rng(number)
    y, x = np.indices((height, width)) - np.array([height - 1, width - 1])[:, None, None] / 2
    body = np.where(np.hypot(y / height, x / width) < 0.35, 40.0, -1000.0)
    study, series = generate_uid(), generate_uid()
    for z in range(depth):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        path = folder / f"{z:04d}.dcm"
        ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, study
        ds.Modality, ds.ImageType, ds.PatientID = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], f"bench{number}"
        ds.ConvolutionKernel, ds.SliceThickness, ds.KVP, ds.InstanceNumber = "B30f", 1.0, 120, z + 1
        ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0.0, 0.0, float(z)]
        ds.PixelSpacing, ds.Rows, ds.Columns = [pixel_mm, pixel_mm], height, width
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1024, "HU"
        ds.PixelData = (np.rint(body + rng.normal(0, 10, body.shape)) + 1024).clip(0, 4095).astype("<u2").tobytes()
        ds.save_as(path, enforce_file_format=True)


def measured(arguments: list[str]) -> tuple[float, float, float]:
    """Seconds, and the largest resident memory in MB of the main process and of any worker."""
    start = time.perf_counter()
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL)
    main, worker = 0, 0
    here = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            main = max(main, here.memory_info().rss)
            for child in here.children():
                if "spawn_main" in " ".join(child.cmdline()):
                    worker = max(worker, child.memory_info().rss)
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.02)
    if process.returncode:
        raise RuntimeError(f"prepare ended with status {process.returncode}.")
    return time.perf_counter() - start, main / 1e6, worker / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, nargs="+", default=(10, 100))
    parser.add_argument("--workers", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--shape", type=int, nargs=3, default=(16, 256, 256), metavar=("D", "H", "W"))
    parser.add_argument("--pixel_mm", type=float, default=1.4)
    args = parser.parse_args()
    table = Table(
        title=f"prepare, scans of {' x '.join(map(str, args.shape))}, one simulated dose, one thread a worker"
    )
    for column in ("scans", "workers", "headers/s", "seconds", "scans/s", "main MB", "largest worker MB"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        written = 0
        for count in sorted(args.scans):
            for number in range(written, count):
                write_scan(root / "in" / f"scan{number}", number, tuple(args.shape), args.pixel_mm)
            written = count
            for workers in args.workers:
                with Workers(workers) as pool:
                    list(pool.in_order(abs, range(4 * workers)))  # the processes are there
                    start = time.perf_counter()
                    headers = len(read_headers(root / "in", pool)[0]) / (time.perf_counter() - start)
                out = root / f"out{count}-{workers}"
                source = ["--normal-dose", str(root / "in"), "--dose", "0.25", "--num-workers", str(workers),
                          "--i0", "5e5", "--kernel", "soft"]  # fmt: skip
                seconds, main_mb, worker_mb = measured(["prepare", str(out), *source])
                table.add_row(
                    str(count), str(workers), f"{headers:.0f}", f"{seconds:.1f}", f"{count / seconds:.2f}",
                    f"{main_mb:.0f}", f"{worker_mb:.0f}",
                )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
