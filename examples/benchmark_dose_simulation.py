"""How many slices a second the low-dose simulation makes, beside projectors of other libraries.

    python examples/benchmark_dose_simulation.py --json dose_simulation.json

One row a way: ours (all of it: projection, Poisson counts, electronic noise, filtered back-projection of the noise, for
512 x 512 slices with 720 views x 736 bins), our projection and reconstruction alone by each engine, and projection and
reconstruction alone by scikit-image and by ASTRA if it is installed (GPL-3.0: measured, never needed). All in one
process and in turns, so that other jobs on the machine weigh on all of them; the CPU seconds count what their wall
time hides. Nothing is warm but plans and matrices, which every way may prepare.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from skimage.transform import iradon, radon

from diffusers_ct.hounsfield import hu_to_mu_per_mm
from diffusers_ct.physics import KERNELS, ParallelBeam, Projector, simulate_low_dose, simulate_low_dose_batch

try:
    import astra
except ImportError:
    astra = None

PEER = "projection and FBP"


def make_slices(count: int, size: int, pixel_mm: float) -> np.ndarray:
    """Water ellipses with bone, (count, size, size) in HU."""
    axis = (np.arange(size) - (size - 1) / 2) * pixel_mm
    x, y = np.meshgrid(axis, axis)
    slices = []
    for k in range(count):
        image = np.where((x / 170) ** 2 + (y / (110 + k % 8)) ** 2 < 1, 40.0, -1000.0)
        for side in (-1, 1):
            image[np.hypot(x - side * 95, y) < 25] = 700.0
        slices.append(image)
    return np.stack(slices).astype(np.float32)


def measured(run: Callable[[], object], rounds: int, slices: int, wait: Callable[[], None]) -> dict[str, float]:
    """Least wall and CPU time of a slice over the rounds; the first one is not counted."""
    run()
    wait()
    wall, cpu = [], []
    for _ in range(rounds):
        clock, process = time.perf_counter(), time.process_time()
        run()
        wait()
        wall.append(time.perf_counter() - clock)
        cpu.append(time.process_time() - process)
    return {"wall_s_a_slice": min(wall) / slices, "cpu_s_a_slice": min(cpu) / slices}


def scikit_image(images: np.ndarray, geometry: ParallelBeam) -> Callable[[], object]:
    # It takes as many bins as the image has columns: as wide a detector needs a wider image.
    margin = (geometry.bins - images.shape[1]) // 2
    padded = np.pad(images, ((0, 0), (margin, margin), (margin, margin)))
    theta = np.degrees(geometry.angles)
    return lambda: [
        iradon(radon(image, theta=theta, circle=True), theta=theta, circle=True, filter_name="hann") for image in padded
    ]


def astra_toolbox(images: np.ndarray, geometry: ParallelBeam) -> Callable[[], object]:
    volume = astra.create_vol_geom(*geometry.image_shape)
    rays = astra.create_proj_geom("parallel", geometry.bin_mm / geometry.pixel_mm, geometry.bins, geometry.angles)
    projector = astra.create_projector("linear", rays, volume)

    def run() -> list[np.ndarray]:
        out = []
        for image in images:
            sinogram_id, _ = astra.create_sino(image, projector)
            image_id = astra.data2d.create("-vol", volume)
            config = astra.astra_dict("FBP")
            config.update(ProjectorId=projector, ProjectionDataId=sinogram_id, ReconstructionDataId=image_id)
            config["option"] = {"FilterType": "hann"}
            algorithm = astra.algorithm.create(config)
            astra.algorithm.run(algorithm)
            out.append(astra.data2d.get(image_id))
            astra.algorithm.delete(algorithm)
            astra.data2d.delete([sinogram_id, image_id])
        return out

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=16)
    parser.add_argument("--peer-slices", type=int, default=1, help="slices of the slower libraries")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="of the batched simulation, such as cuda")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pixel_mm = 400.0 / options.size
    slices = make_slices(options.slices, options.size, pixel_mm)
    few = make_slices(options.peer_slices, options.size, pixel_mm)
    geometry = ParallelBeam.for_image((options.size, options.size), pixel_mm)
    spacing_mm = (1.0, pixel_mm, pixel_mm)
    device = torch.device(options.device)
    batch = torch.from_numpy(slices)[None, None].to(device)
    images = hu_to_mu_per_mm(torch.from_numpy(slices))
    finufft = Projector(geometry, eps=1e-4)
    gridding = Projector(geometry, eps=1e-4, engine="torch")

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    ways: dict[str, tuple[Callable[[], object], int]] = {
        "simulate_low_dose": (
            lambda: simulate_low_dose(
                slices, spacing_mm=spacing_mm, dose_fraction=0.1, seed=0, source_noise="noise_free"
            ),
            len(slices),
        ),
        f"simulate_low_dose_batch, torch on {device}": (
            lambda: simulate_low_dose_batch(
                batch, spacing_mm=spacing_mm, dose_fraction=[0.1], seeds=[0], source_noise="noise_free", engine="torch"
            ),
            len(slices),
        ),
        f"ours, finufft: {PEER}": (lambda: finufft.fbp(finufft.forward(images), KERNELS["soft"]), len(slices)),
        f"ours, torch on {device}: {PEER}": (
            lambda: gridding.fbp(gridding.forward(images.to(device)), KERNELS["soft"]),
            len(slices),
        ),
        f"scikit-image: {PEER}": (scikit_image(hu_to_mu_per_mm(few), geometry), len(few)),
    }
    if astra is not None:
        ways[f"ASTRA on the CPU: {PEER}"] = (astra_toolbox(hu_to_mu_per_mm(few), geometry), len(few))
    rows = {name: measured(run, options.rounds, count, wait) for name, (run, count) in ways.items()}

    first = rows["simulate_low_dose"]
    table = Table(
        title=f"{options.size} x {options.size}, {geometry.views} views x {geometry.bins} bins, {options.threads} threads"
    )
    for column in ("way", "slices / s", "CPU s a slice", "wall, simulate_low_dose = 1"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, row in rows.items():
        ratio = row["wall_s_a_slice"] / first["wall_s_a_slice"]
        table.add_row(name, f"{1 / row['wall_s_a_slice']:.2f}", f"{row['cpu_s_a_slice']:.3f}", f"{ratio:.2f}")
    Console().print(table)
    if options.json:
        machine = {"python": platform.python_version(), "torch": torch.__version__, "processor": platform.processor()}
        result = {"machine": machine, "threads": options.threads, "size": options.size, "views": geometry.views,
                  "bins": geometry.bins, "rows": rows}  # fmt: skip
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
