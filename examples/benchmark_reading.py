"""Speed of reading DICOM series, by encoding, beside a plain pydicom loop.

One file of each encoding is copied to a series of slices that differ in place and identity only; all are read with
`read_volume` and by the loop that one writes with pydicom alone (sorted, rescaled, no checks). CPU time is told beside
wall time, because a shared machine stretches the latter; the peak is what reading adds to the volume itself.

    python examples/benchmark_reading.py DATA --slices 100

DATA holds the single files CT1_*.dcm of the DICOM WG-04 compression samples.
"""

import argparse
import shutil
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import generate_uid

from diffusers_ct import read_volume

ENCODINGS = {
    "uncompressed": "CT1_UNC.explicit_little_endian.dcm",
    "JPEG lossless": "CT1_JPLL.dcm",
    "JPEG 2000": "CT1_J2KR.dcm",
    "JPEG-LS": "CT1_JLSL.dcm",
    "RLE": "CT1_RLE.dcm",
}


def make_series(file: Path, folder: Path, slices: int) -> None:
    folder.mkdir()
    dataset = pydicom.dcmread(file)
    x, y, z = (float(v) for v in dataset.ImagePositionPatient)
    for k in range(slices):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.ImagePositionPatient = [x, y, round(z + 5.0 * k, 3)]
        dataset.save_as(folder / f"{k:04d}.dcm")


def plain_loop(folder: Path) -> np.ndarray:
    datasets = [pydicom.dcmread(f) for f in folder.iterdir()]
    datasets.sort(key=lambda d: float(d.ImagePositionPatient[2]))
    return np.stack([d.pixel_array.astype(np.float32) * d.RescaleSlope + d.RescaleIntercept for d in datasets])


def timed(read) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    read()
    return time.process_time() - cpu, time.perf_counter() - wall


def peak_beyond_volume(read, volume_bytes: int) -> float:
    """MB that Python and NumPy hold at most beyond the volume; memory within C decoders is not seen."""
    tracemalloc.start()
    read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return (peak - volume_bytes) / 2**20


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--slices", type=int, default=100)
    args = parser.parse_args(arguments)
    if args.slices < 1:
        raise SystemExit(f"--slices must be positive, got {args.slices}.")
    print(
        f"{'encoding':14} {'slices/s':>9} {'CPU ms/slice':>13} {'plain slices/s':>15} {'CPU ms/slice':>13} {'MB above':>9}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for name, file in ENCODINGS.items():
            folder = Path(scratch) / "series"
            make_series(args.data / file, folder, args.slices)
            volume_bytes = read_volume(folder).hu.nbytes  # also warms the file cache
            ours, theirs = timed(lambda f=folder: read_volume(f)), timed(lambda f=folder: plain_loop(f))
            above = peak_beyond_volume(lambda f=folder: read_volume(f), volume_bytes)
            n = args.slices
            print(
                f"{name:14} {n / ours[1]:9.1f} {1e3 * ours[0] / n:13.1f} {n / theirs[1]:15.1f} {1e3 * theirs[0] / n:13.1f} "
                f"{above:9.1f}"
            )
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
