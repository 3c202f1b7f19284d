"""Speed of drawing phantoms: slices a second of each region, one process, with lesions and masks.

    python examples/benchmark_phantoms.py --seeds 3

CPU time is told beside wall time, because a shared machine stretches the latter. BLAS threads do not matter: nothing here
multiplies matrices.
"""

import argparse
import time
from typing import get_args

import numpy as np

from diffusers_ct.physics import PHANTOM_VERSION, make_phantom
from diffusers_ct.physics.phantom import Region

FIELD_MM = {"thorax": 384.0, "abdomen": 384.0, "pelvis": 384.0, "shoulder": 460.0, "head": 230.0}


def measure(region: str, seeds: int, slices: int, matrix: int) -> tuple[float, float]:
    """Seconds of CPU and of the wall clock for each phantom, medians over the seeds."""
    pixel_mm = FIELD_MM[region] / matrix
    taken = []
    for seed in range(seeds):
        cpu, wall = time.process_time(), time.perf_counter()
        make_phantom(seed, region, shape=(slices, matrix, matrix), spacing_mm=(2.0, pixel_mm, pixel_mm))  # type: ignore[arg-type]
        taken.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu, wall = np.median(taken, axis=0).tolist()
    return cpu, wall


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--slices", type=int, default=32)
    parser.add_argument("--matrix", type=int, default=256)
    args = parser.parse_args(arguments)
    if min(args.seeds, args.slices, args.matrix) < 1:
        raise SystemExit("--seeds, --slices and --matrix must be positive.")
    print(f"phantoms {PHANTOM_VERSION}: {args.slices} slices of {args.matrix} x {args.matrix}, median of {args.seeds}")
    print("| region | slices/s (wall) | slices/s (CPU) |\n|---|---|---|")
    for region in get_args(Region):
        cpu, wall = measure(region, args.seeds, args.slices, args.matrix)
        print(f"| {region} | {args.slices / wall:.1f} | {args.slices / cpu:.1f} |", flush=True)


if __name__ == "__main__":
    main()
