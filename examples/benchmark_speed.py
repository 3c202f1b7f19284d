"""How fast our networks are, and how much memory they need, beside other volumetric diffusion U-Nets of the same size.

    python -m pip install --no-deps --target PEERS monai video-diffusion-pytorch einops einops-exts rotary-embedding-torch
    OMP_NUM_THREADS=1 PYTHONPATH=PEERS python examples/benchmark_speed.py --output_dir outputs/speed

Peers that are not installed are left out and named. All networks are in one process and take turns, in the other order
every second round; what is printed are medians, and medians of the ratios to our preset within a round, so that a
machine that others use too slows both sides. On a CPU with one thread the clock is the process's own time. Each network
runs in float32, in bfloat16 (weights, too) and in bfloat16 with channels last, and is judged in the setting that it is
fastest in, for sampling and for training apart; a peer's default is measured in float32 alone. One restoration is one
step of the pipeline, with that network in it.

Memory is counted (largest sum of tensors at one time, with the weights; a training step without its optimizer), on CUDA
it is also measured. The share of the peak is that of a large matrix product in the same type, timed in the same rounds.
Weights are random: this measures cost alone, and a network that is faster is not therefore as good.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from speed_peers import CHANNELS, PEERS, Contender, Peer, count, ours, peers
from torch import nn

from diffusers_ct import CTDiffusionPipeline, CTVolume
from diffusers_ct.models import PRESETS
from diffusers_ct.models.complexity import count_module, training_peak_bytes
from diffusers_ct.pipelines.fast_inference import multiplies_bfloat16
from diffusers_ct.schedulers import make_noise_scheduler

# Type and channels last.
SETTINGS = {
    "float32": (torch.float32, False),
    "bfloat16": (torch.bfloat16, False),
    "bfloat16, channels last": (torch.bfloat16, True),
}
WORKS = ("forward", "training")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="Gets speed.md, speed.json and speed.png.")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="ct-unet3d-b", help="Ours; peers get its size.")
    parser.add_argument(
        "--peers", nargs="+", choices=tuple(PEERS), default=tuple(PEERS), help="Slow ones may be left out."
    )
    parser.add_argument(
        "--only_fastest", action="store_true", help="Leave out what is measured as it comes, in float32 alone."
    )
    parser.add_argument(
        "--shape", type=int, nargs=3, default=(16, 64, 64), metavar=("D", "H", "W"), help="Multiples of 8, 16 and 16."
    )
    parser.add_argument("--rounds", type=int, default=5, help="Counted ones; warming up comes before.")
    args = parser.parse_args(arguments)
    if args.rounds < 1 or any(n < step or n % step for n, step in zip(args.shape, (8, 16, 16))):
        parser.error("--rounds must be at least 1 and --shape multiples of 8, 16 and 16.")
    return args


class Clock:
    """Times work on a device: with one CPU thread the process's own time, which other programs disturb least."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        own = not self.cuda and torch.get_num_threads() == 1
        self.name = "process" if own else "wall"
        self._now = time.process_time if own else time.perf_counter

    def seconds(self, work: Callable[[], object]) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        started = self._now()
        work()
        if self.cuda:
            torch.cuda.synchronize()
        return self._now() - started


class Candidate:
    """A network in a setting, ready to run.

    Attributes:
        contender: whose it is.
        setting: a name of `SETTINGS`.
        network: on the device.
        seconds: of each counted round, by kind of work.
        measured_bytes: peak of the device by kind of work, on CUDA.
    """

    def __init__(self, contender: Contender, setting: str, shape: tuple[int, ...], device: torch.device) -> None:
        self.contender, self.setting = contender, setting
        self.dtype, channels_last = SETTINGS[setting]
        torch.manual_seed(0)
        self.network = nn.Module.to(contender.build(), device, self.dtype).eval()
        if channels_last:
            last = {4: torch.channels_last, 5: torch.channels_last_3d}
            for p in self.network.parameters():
                p.data = p.data.contiguous(memory_format=last.get(p.ndim, torch.contiguous_format))
        self.given = arguments_of(self.network, shape, self.dtype, device)
        self.seconds: dict[str, list[float]] = {work: [] for work in WORKS}
        self.measured_bytes: dict[str, int] = {}

    def forward(self) -> None:
        with torch.no_grad():
            self.network(**self.given)

    def training(self) -> None:
        self.network(**self.given, return_dict=False)[0].float().square().mean().backward()
        self.network.zero_grad(set_to_none=True)

    def measure_memory(self, work: str) -> None:
        gc.collect()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        getattr(self, work)()
        weights = sum(p.nbytes for p in self.network.parameters())
        self.measured_bytes[work] = torch.cuda.max_memory_allocated() - before + weights


def arguments_of(network: Any, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """One sample, a timestep and what else the network is told."""
    given = {"sample": torch.zeros(1, CHANNELS, *shape, dtype=dtype, device=device)}
    if device.type != "meta":
        given["sample"].normal_()
    given["timestep"] = torch.full((1,), 500.0, device=device)
    if not isinstance(network, Peer):
        given["pooled"] = torch.zeros(1, network.config["pooled_dim"], dtype=dtype, device=device)
        given["spacing_mm"] = torch.ones(1, 3, device=device)
    return given


def take_turns(candidates: list[Candidate], clock: Clock, device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Fills the candidates' seconds; returns operations per second of the matrix product of each round, by type."""
    n = 8192 if clock.cuda else 1024
    rates: dict[str, list[float]] = {}
    warm_up = 3 if clock.cuda else 1
    for number in range(warm_up + rounds):
        counted = number >= warm_up
        for dtype in dict.fromkeys(c.dtype for c in candidates):
            a = torch.randn(n, n, device=device).to(dtype)
            seconds = min(clock.seconds(lambda a=a: a @ a) for _ in range(3))
            if counted:
                rates.setdefault(str(dtype), []).append(2 * n**3 / seconds)
        for candidate in candidates if number % 2 else reversed(candidates):
            for work in WORKS:
                if clock.cuda and number == 1:
                    candidate.measure_memory(work)
                seconds = clock.seconds(getattr(candidate, work))
                if counted:
                    candidate.seconds[work].append(seconds)
    return rates


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    bfloat16 = "with" if multiplies_bfloat16(device) else "without"
    return f"{platform.machine()} CPU, {torch.backends.cpu.get_cpu_capability()}, {bfloat16} bfloat16 instructions"


def fastest(candidates: list[Candidate], name: str, work: str) -> Candidate:
    of_it = [c for c in candidates if c.contender.name == name]
    return min(of_it, key=lambda c: statistics.median(c.seconds[work]))


def restorations(networks: dict[str, Any], shape: tuple[int, ...], clock: Clock, rounds: int) -> dict[str, list[float]]:
    """Seconds of `pipe(scan)` in one step, the networks taking turns; the first round is not counted."""
    hu = np.random.default_rng(0).normal(40.0, 25.0, shape).astype(np.float32)
    scan = CTVolume.from_array(hu, (3.0, 0.8, 0.8))
    pipes = {}
    for name, network in networks.items():
        pipes[name] = CTDiffusionPipeline(network, DDIMScheduler.from_config(make_noise_scheduler().config))
        pipes[name].set_progress_bar_config(disable=True)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for number in range(rounds + 1):
        for name, pipe in pipes.items():
            spent = clock.seconds(lambda pipe=pipe: pipe(scan, generator=torch.Generator().manual_seed(0)))
            if number:
                seconds[name].append(spent)
    return seconds


def counted(contender: Contender, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, int]:
    with torch.device("meta"):
        network = nn.Module.to(contender.build(), dtype)
    given = arguments_of(network, shape, dtype, torch.device("meta"))
    costs = count_module(network, given)
    return {
        "parameters": costs.parameters,
        "forward_flops": costs.forward_flops,
        "forward_bytes": costs.weight_bytes + costs.inference_peak_bytes,
        "training_bytes": costs.weight_bytes + training_peak_bytes(network, given),
    }


def ratio(seconds: list[float], reference: list[float]) -> dict[str, float]:
    """Of the same rounds: median, least and largest."""
    ratios = [a / b for a, b in zip(seconds, reference)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = parse_args(arguments)
    shape = tuple(args.shape)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    clock, load_before = Clock(device), os.getloadavg()

    # 1. the networks
    own = ours(args.preset)
    others, skipped = peers(count(own[0].build), args.peers)
    contenders = [c for c in (*own, *others) if not (args.only_fastest and c.only_default)]
    candidates = [
        Candidate(contender, setting, shape, device)
        for contender in contenders
        for setting in (["float32"] if contender.only_default else SETTINGS)
    ]

    # 2. time
    rates = take_turns(candidates, clock, device, args.rounds)
    names = [c.name for c in contenders]
    best = {work: {name: fastest(candidates, name, work) for name in names} for work in WORKS}
    restored = restorations({name: c.network for name, c in best["forward"].items()}, shape, clock, args.rounds)

    # 3. one row for each network in its fastest settings, against our preset in its own
    rows = []
    for contender in contenders:
        name = contender.name
        forward, training = best["forward"][name], best["training"][name]
        by_dtype = {dtype: counted(contender, shape, dtype) for dtype in {forward.dtype, training.dtype}}
        costs = {**by_dtype[forward.dtype], "training_bytes": by_dtype[training.dtype]["training_bytes"]}
        peak_shares = [
            costs["forward_flops"] / seconds / rate
            for seconds, rate in zip(forward.seconds["forward"], rates[str(forward.dtype)])
        ]
        row: dict[str, Any] = {"name": name, **costs, "share_of_matmul_peak": statistics.median(peak_shares)}
        for work, candidate in (("forward", forward), ("training", training)):
            row[f"{work}_setting"] = candidate.setting
            row[f"{work}_seconds"] = statistics.median(candidate.seconds[work])
            row[f"{work}_ratio"] = ratio(candidate.seconds[work], best[work][names[0]].seconds[work])
            row[f"{work}_measured_bytes"] = candidate.measured_bytes.get(work)
        row["restoration_seconds"] = statistics.median(restored[name])
        row["restoration_ratio"] = ratio(restored[name], restored[names[0]])
        row["training_bytes_ratio"] = row["training_bytes"] / (rows[0] if rows else row)["training_bytes"]
        rows.append(row)
    result = {
        "facts": {
            "device": describe(device),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "clock": clock.name,
            "load_average_before": load_before[0],
            "load_average_after": os.getloadavg()[0],
            "shape": shape,
            "rounds": args.rounds,
            "matmul_flops_per_second": {dtype: statistics.median(values) for dtype, values in rates.items()},
        },
        "rows": rows,
        "settings": [
            {"name": c.contender.name, "setting": c.setting, **{f"{work}_seconds": c.seconds[work] for work in WORKS}}
            for c in candidates
        ],
        "skipped": skipped,
    }

    # 4. write
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    (out / "speed.json").write_text(json.dumps(result, indent=2) + "\n")
    text = markdown(result)
    (out / "speed.md").write_text(text)
    draw(result, out / "speed.png")
    print(text)
    return result


def markdown(result: dict[str, Any]) -> str:
    facts = result["facts"]
    headings = [
        "network", "parameters M", "GFLOP", "forward s", "ratio", "share of peak", "forward + backward s", "ratio",
        "restoration s", "ratio", "forward MiB", "forward + backward MiB", "ratio",
    ]  # fmt: skip
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]

    def timed(row: dict[str, Any], work: str) -> list[str]:
        ratio = row[f"{work}_ratio"]
        return [f"{row[f'{work}_seconds']:.3g}", f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"]

    def mebibytes(row: dict[str, Any], work: str) -> str:
        measured = row[f"{work}_measured_bytes"]
        return f"{row[f'{work}_bytes'] / 2**20:.0f}" + (f" (measured {measured / 2**20:.0f})" if measured else "")

    for row in result["rows"]:
        cells = [row["name"], f"{row['parameters'] / 1e6:.2f}", f"{row['forward_flops'] / 1e9:.1f}"]
        cells += [*timed(row, "forward"), f"{row['share_of_matmul_peak']:.0%}", *timed(row, "training")]
        cells += [*timed(row, "restoration"), mebibytes(row, "forward"), mebibytes(row, "training")]
        lines.append("| " + " | ".join([*cells, f"{row['training_bytes_ratio']:.2f}"]) + " |")
    lines += ["", "| fastest setting | forward | forward + backward |", "|---|---|---|"]
    lines += [f"| {row['name']} | {row['forward_setting']} | {row['training_setting']} |" for row in result["rows"]]
    rates = ", ".join(
        f"{dtype.removeprefix('torch.')} {rate / 1e12:.3g}" for dtype, rate in facts["matmul_flops_per_second"].items()
    )
    lines += [
        "",
        f"{facts['device']}, torch {facts['torch']}, threads {facts['threads']}, {facts['clock']} time, load average "
        f"{facts['load_average_before']:.1f} before and {facts['load_average_after']:.1f} after. One sample of "
        f"{' x '.join(map(str, facts['shape']))}, {facts['rounds']} rounds: medians, and medians (least to largest) of the "
        f"ratios to {result['rows'][0]['name']}. Matrix products: {rates} TFLOP/s.",
    ]
    lines += [f"Not measured: {name} ({reason})." for name, reason in result["skipped"].items()]
    return "\n".join(lines) + "\n"


def draw(result: dict[str, Any], path: Path) -> None:
    """Ratios to our preset, one bar a network: forward, training, training memory."""
    from matplotlib.figure import Figure

    rows = result["rows"]
    figure = Figure(figsize=(8.0, 1.5 + 0.7 * len(rows)), layout="constrained")
    axes = figure.subplots()
    kinds = {
        "forward": lambda row: row["forward_ratio"]["median"],
        "forward + backward": lambda row: row["training_ratio"]["median"],
        "memory of forward + backward": lambda row: row["training_bytes_ratio"],
    }
    for number, (kind, value) in enumerate(kinds.items()):
        positions = [place + 0.26 * (number - 1) for place in range(len(rows))]
        bars = axes.barh(positions, [value(row) for row in rows], height=0.25, label=kind)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1.0, color="0.5", linewidth=0.8)
    axes.set_xlabel(f"times {rows[0]['name']}, each in its fastest setting (less is better)")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.margins(x=0.1)
    figure.legend(loc="outside lower center", ncols=len(kinds))
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
