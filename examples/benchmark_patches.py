"""How many training patches a second each way of storing volumes gives.

    python examples/benchmark_patches.py

Draws the same boxes from the same volumes: views of the memory-mapped Arrow file (what `PatchDataset` does), the
`datasets` NumPy format (decodes the whole scan for every patch), `.npy` memory maps, and `PatchDataset` itself with
its search for body and its augmentation. Both images of a pair are read; files are in the page cache.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from datasets import Dataset
from rich.console import Console
from rich.table import Table

from diffusers_ct.conditions import ScanConditions
from diffusers_ct.data import PatchDataset, volume_view
from diffusers_ct.data.manifest import features, make_row


def make_scan(seed: int, shape: tuple[int, int, int]) -> dict:
    """A pair of noise volumes, as one row."""
    rng = np.random.default_rng(seed)
    full = rng.normal(40.0, 10.0, shape).astype(np.float32)
    return make_row(
        full + rng.normal(0.0, 20.0, shape).astype(np.float32),
        full,
        scan_key=f"scan{seed}",
        patient_key=f"patient{seed}",
        split="train",
        dose_fraction=0.25,
        spacing_mm=(1.0, 0.7, 0.7),
        affine_lps=np.eye(4),
        target="same_scan",
        conditions=ScanConditions(),
        provenance={"source": "benchmark"},
    )


def patches_per_second(read: Callable[[int, tuple[slice, ...]], int], boxes: list, seconds: float) -> float:
    """Reads boxes in turn until the time is over; the first one is not counted."""
    read(*boxes[0])
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        read(*boxes[count % len(boxes)])
        count += 1
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=2)
    parser.add_argument("--shape", type=int, nargs=3, default=(160, 512, 512), metavar=("D", "H", "W"))
    parser.add_argument("--patch", type=int, nargs=3, default=(32, 96, 96), metavar=("D", "H", "W"))
    parser.add_argument("--seconds", type=float, default=3.0, help="for each row of the table")
    options = parser.parse_args()
    shape, patch = tuple(options.shape), tuple(options.patch)

    with tempfile.TemporaryDirectory() as folder:
        rows = Dataset.from_generator(
            lambda seeds: (make_scan(seed, shape) for seed in seeds),
            gen_kwargs={"seeds": list(range(options.scans))},
            features=features(shape[1:]),
            writer_batch_size=1,
            cache_dir=folder,
        )
        maps = []
        for index in range(options.scans):
            for name in ("low", "full"):
                np.save(Path(folder) / f"{name}{index}.npy", volume_view(rows, index, name))
            maps.append({name: np.load(Path(folder) / f"{name}{index}.npy", mmap_mode="r") for name in ("low", "full")})

        rng = np.random.default_rng(0)
        boxes = []
        for _ in range(512):
            start = [int(rng.integers(0, n - size + 1)) for n, size in zip(shape, patch)]
            boxes.append((int(rng.integers(options.scans)), tuple(slice(a, a + n) for a, n in zip(start, patch))))
        views = [{name: volume_view(rows, index, name) for name in ("low", "full")} for index in range(options.scans)]
        decoded = rows.select_columns(["low", "full"]).with_format("numpy", dtype=np.int16)
        patches = PatchDataset(rows, patch, len(boxes), seed=0)
        number = {id(box): index for index, (_, box) in enumerate(boxes)}

        ways: dict[str, Callable[[int, tuple[slice, ...]], object]] = {
            "Arrow, zero-copy view": lambda i, box: [views[i][n][box].copy() for n in ("low", "full")],
            ".npy memory map": lambda i, box: [maps[i][n][box].copy() for n in ("low", "full")],
            "NumPy format of datasets": lambda i, box: [decoded[i][n][box].copy() for n in ("low", "full")],
            "PatchDataset (body search, augmentation)": lambda i, box: patches[number[id(box)]],
        }
        table = Table(title=f"{patch} patches of {shape} pairs")
        table.add_column("way")
        table.add_column("pairs of patches / s", justify="right")
        table.add_column("ms each", justify="right")
        for name, read in ways.items():
            rate = patches_per_second(read, boxes, options.seconds)
            table.add_row(name, f"{rate:.0f}" if rate >= 10 else f"{rate:.2f}", f"{1000 / rate:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
