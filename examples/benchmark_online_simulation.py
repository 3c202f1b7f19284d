"""How many training patches a second come from low doses simulated while training, beside those prepared before.

    python examples/benchmark_online_simulation.py --matrix 512 --depth 4 --patches_per_slab 8 32

Both ways start from the same phantoms. Prepared: `PatchDataset`, one process. Online: `FullDoseSlabs` and
`OnlineSimulation` on the device (CUDA where there is one), which draws another dose, noise and kernel for every slab. The
two run in turns; medians of the rounds. What a step of the small network costs is printed beside them: a way of making
batches that is faster than that is fast enough.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from diffusers_ct import UNet3DCTModel
from diffusers_ct.conditions import ScanConditions
from diffusers_ct.data import FullDoseSlabs, OnlineSimulation, PatchDataset
from diffusers_ct.data.manifest import features, make_row
from diffusers_ct.physics import DoseDraws, make_phantom, simulate_low_dose
from diffusers_ct.schedulers import make_noise_scheduler
from diffusers_ct.training import ResidualDiffusionObjective


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrix", type=int, default=512)
    parser.add_argument("--depth", type=int, default=4, help="Slices of a slab, and of a patch.")
    parser.add_argument("--patch", type=int, default=64, help="Height and width of a patch.")
    parser.add_argument("--batch", type=int, default=2, help="Slabs, and for the prepared way 8 patches for each.")
    parser.add_argument("--patches_per_slab", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output_json", help="Also write the numbers here.")
    return parser.parse_args(arguments)


def make_rows(matrix: int, depth: int) -> Dataset:
    """Two phantoms at a tenth of the dose."""
    rows = []
    for seed, region in enumerate(("thorax", "abdomen")):
        pixel = 400.0 / matrix
        phantom = make_phantom(seed, region, shape=(2 * depth, matrix, matrix), spacing_mm=(2.0, pixel, pixel))
        low = simulate_low_dose(
            phantom.volume.hu,
            spacing_mm=phantom.volume.spacing_mm,
            dose_fraction=0.1,
            seed=seed,
            source_noise="noise_free",
        )
        rows.append(
            make_row(
                low, phantom.volume.hu, scan_key=f"s{seed}", patient_key=f"p{seed}", split="train", dose_fraction=0.1,
                spacing_mm=phantom.volume.spacing_mm, affine_lps=np.eye(4), target="noise_free",
                conditions=ScanConditions(), provenance={"source": "phantom", "phantom_seed": seed},
            )
        )  # fmt: skip
    return Dataset.from_dict({k: [row[k] for row in rows] for k in rows[0]}, features=features((matrix, matrix)))


def seconds_of(work: Callable[[int], object], device: torch.device, number: int) -> float:
    started = time.perf_counter()
    work(number)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main(arguments: list[str] | None = None) -> None:
    args = parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = make_rows(args.matrix, args.depth)
    size = (args.depth, args.patch, args.patch)
    slabs = FullDoseSlabs(rows, args.depth, 10_000, seed=0)
    patches = PatchDataset(rows, size, 100_000, seed=0)
    prepared_count = 8 * args.batch

    def on_device(items: list[dict]) -> dict[str, torch.Tensor]:
        return {k: v.to(device) for k, v in torch.utils.data.default_collate(items).items()}

    def prepared(number: int) -> dict[str, torch.Tensor]:
        return on_device([patches[number * prepared_count + i] for i in range(prepared_count)])

    def online(per_slab: int) -> Callable[[int], object]:
        simulation = OnlineSimulation(size, draw=DoseDraws(), patches_per_slab=per_slab)
        return lambda number: simulation(
            on_device([slabs[number * args.batch + i] for i in range(args.batch)]),
            torch.arange(args.batch) + number * args.batch,
        )

    torch.manual_seed(0)
    model = UNet3DCTModel(block_out_channels=(48, 96, 144), conv_mode="2.5d").to(device)
    objective = ResidualDiffusionObjective(model, make_noise_scheduler("cosine"), terminal_fraction=0.7)

    def step(number: int) -> None:
        batch = {k: v[:prepared_count] for k, v in prepared(number).items()}
        objective(batch, torch.arange(prepared_count))["loss"].backward()

    ways: dict[str, tuple[Callable[[int], object], int]] = {"prepared": (prepared, prepared_count)}
    for count in args.patches_per_slab:
        ways[f"online, {count} patches a slab"] = (online(count), count * args.batch)
    ways[f"a training step of {prepared_count} patches"] = (step, prepared_count)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.rounds + 1):
        for name, (work, count) in ways.items():
            seconds = seconds_of(work, device, number)
            if number:  # the first round builds plans
                rates[name].append(count / seconds)
    found = {name: float(np.median(values)) for name, values in rates.items()}
    print(f"{size} patches from {args.matrix} x {args.matrix} slices on {device}, {torch.get_num_threads()} threads")
    print("| way | patches / s |\n| --- | --- |")
    for name, rate in found.items():
        print(f"| {name} | {rate:.1f} |")
    if args.output_json:
        facts = {**vars(args), "device": str(device), "threads": torch.get_num_threads(), "patches_per_second": found}
        Path(args.output_json).write_text(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
