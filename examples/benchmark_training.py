"""Samples a second in training, and the share of the time in which the network has nothing to do, for both ways of data.

    python examples/benchmark_training.py --workers 0 2 --steps 10

Prepared: `PatchDataset` cuts patches from the Arrow file. Online: `FullDoseSlabs` reads full-dose slabs, and `OnlineSimulation`
draws a dose, noise and kernel for each on the training device. A step is parted into waiting for the next batch (making or
fetching it, and moving it to the device), simulating, and learning (forward, backward, optimizer). Waiting is the time in
which a GPU is idle; to tell the parts, the device is waited for after each, so steps are a little slower than those of a run.
With 0 workers batches are made while the network waits, with more by other processes meanwhile.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmark_online_simulation import make_rows

from diffusers_ct.data import FullDoseSlabs, OnlineSimulation, PatchDataset
from diffusers_ct.models import PRESETS, make_model
from diffusers_ct.physics import DoseDraws
from diffusers_ct.schedulers import make_noise_scheduler
from diffusers_ct.training import ResidualDiffusionObjective

PARTS = ("waiting", "simulating", "learning")
WARM_UP = 2  # steps: plans, workers, allocations


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="ct-unet25d-s")
    parser.add_argument("--block_out_channels", type=int, nargs="+", help="Of the preset, instead of its own.")
    parser.add_argument("--matrix", type=int, default=512, help="Of the scans.")
    parser.add_argument("--depth", type=int, default=8, help="Slices of a patch, and of a slab.")
    parser.add_argument("--patch", type=int, default=64, help="Rows and columns of a patch.")
    parser.add_argument("--patches", type=int, default=8, help="Of a step.")
    parser.add_argument("--patches_per_slab", type=int, default=8, help="Online: divides --patches.")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="Processes that make batches.")
    parser.add_argument("--steps", type=int, default=10, help=f"Timed ones; {WARM_UP} come before.")
    parser.add_argument("--output_json", type=Path, help="Also write the numbers here.")
    args = parser.parse_args(arguments)
    if args.patches % args.patches_per_slab:
        parser.error("--patches must be a multiple of --patches_per_slab.")
    return args


class Stopwatch:
    """Adds up the seconds of the parts of a step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """What passed since the last lap was `part`."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now


def measure(
    dataset: torch.utils.data.Dataset,
    batch_size: int,
    workers: int,
    learn: Callable[[dict[str, torch.Tensor], torch.Tensor], None],
    simulate: OnlineSimulation | None,
    device: torch.device,
    steps: int,
) -> dict[str, float]:
    """Seconds of each part over `steps` steps."""
    watch = Stopwatch(device)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size, num_workers=workers, pin_memory=device.type == "cuda", drop_last=True
    )
    batches = iter(loader)
    for number in range(WARM_UP + steps):
        if number == WARM_UP:
            watch = Stopwatch(device)
        batch = {name: value.to(device, non_blocking=True) for name, value in next(batches).items()}
        seeds = torch.arange(batch_size) + batch_size * number
        watch.lap("waiting")
        if simulate is not None:
            batch, seeds = simulate(batch, seeds)
            watch.lap("simulating")
        learn(batch, seeds)
        watch.lap("learning")
    return watch.seconds


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    args = parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = make_rows(args.matrix, args.depth)
    size = (args.depth, args.patch, args.patch)
    torch.manual_seed(0)
    changes = {"block_out_channels": args.block_out_channels} if args.block_out_channels else {}
    model = make_model(args.preset, **changes).to(device)
    objective = ResidualDiffusionObjective(model, make_noise_scheduler("cosine"), terminal_fraction=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def learn(batch: dict[str, torch.Tensor], seeds: torch.Tensor) -> None:
        objective(batch, seeds)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    slabs = args.patches // args.patches_per_slab
    simulation = OnlineSimulation(size, draw=DoseDraws(), patches_per_slab=args.patches_per_slab)
    most = WARM_UP + args.steps + 2 * max(args.workers) + 2  # steps that workers may run ahead
    ways: dict[str, tuple[Any, int, OnlineSimulation | None]] = {
        "prepared": (PatchDataset(rows, size, most * args.patches, seed=0), args.patches, None),
        "online": (FullDoseSlabs(rows, args.depth, most * slabs, seed=0), slabs, simulation),
    }
    found = []
    for workers in args.workers:
        for name, (dataset, batch_size, simulate) in ways.items():
            seconds = measure(dataset, batch_size, workers, learn, simulate, device, args.steps)
            total = sum(seconds.values())
            shares = {part: value / total for part, value in seconds.items()}
            found.append(
                {"data": name, "workers": workers, "samples_per_s": args.steps * args.patches / total, "shares": shares}
            )
    print(
        f"{args.preset}, {args.patches} patches of {size} a step from {args.matrix} x {args.matrix} slices, {device}, "
    )
    print(f"{torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}")
    print(f"| data | workers | samples / s | {' | '.join(PARTS)} |\n|---|---|---|---|---|---|")
    for row in found:
        cells = [row["data"], str(row["workers"]), f"{row['samples_per_s']:.2f}"]
        print("| " + " | ".join(cells + [f"{row['shares'][part]:.1%}" for part in PARTS]) + " |")
    if args.output_json:
        args.output_json.write_text(json.dumps({"args": vars(args), "rows": found}, indent=2, default=str) + "\n")
    return found


if __name__ == "__main__":
    main()
