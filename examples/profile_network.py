"""Where the time of a network goes, kernel by kernel, beside what operations and bytes predict.

    OMP_NUM_THREADS=1 python examples/profile_network.py --output_dir outputs/profile --presets ct-unet3d-s ct-unet25d-fast-s

Each kernel of a forward pass and of a training step is timed by itself, by the process's own clock, so that other programs
disturb little; the networks take turns, and a kernel's time is the least of its rounds. The prediction is a floor:
operations at the speed of a large matrix product of the same type, for convolutions and products; bytes read and written at
the speed of a copy, for all else. What a kernel takes beyond it is its own: channels too few for its blocks, transcendental
functions, a layout that it changes first. On a CPU; a GPU's kernels are seen by `torch.profiler`.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from diffusers_ct.models import PRESETS, make_model

# What a kernel is called -> how it is shown; the first that fits.
KINDS = {
    "convolution": "convolution",
    "mm": "product",
    "group_norm": "norm",
    "silu": "activation",
    "cat": "copy",
    "copy": "copy",
    "clone": "copy",
    "upsample": "copy",
}
REST = "arithmetic and the rest"


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="Gets profile.md and profile.json.")
    parser.add_argument("--presets", nargs="+", choices=tuple(PRESETS), default=("ct-unet3d-s", "ct-unet25d-fast-s"))
    parser.add_argument("--shape", type=int, nargs=3, default=(16, 64, 64), metavar=("D", "H", "W"))
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--channels_last", action="store_true")
    parser.add_argument("--rounds", type=int, default=3, help="After one to warm up.")
    args = parser.parse_args(arguments)
    if args.rounds < 1:
        parser.error("--rounds must be at least 1.")
    return args


class KernelClock(TorchDispatchMode):
    """Seconds, operations and bytes of each kernel within it, in the order of their calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, float, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        started = time.process_time()
        out = func(*args, **kwargs)
        seconds = time.process_time() - started
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        inputs = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        # A view moves nothing.
        moved = 0 if all(t.untyped_storage().data_ptr() in inputs for t in made) else sum(t.nbytes for t in tensors)
        count = flop_registry.get(func.overloadpacket)
        operations = count(*args, **kwargs, out_val=out) if count else 0
        self.calls.append((str(func.overloadpacket).removeprefix("aten."), seconds, operations, moved))
        return out


def kind_of(name: str) -> str:
    return next((kind for part, kind in KINDS.items() if part in name), REST)


def works(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """A forward pass and a training step of a preset, to be called."""
    dtype = getattr(torch, args.dtype)
    torch.manual_seed(0)
    network = nn.Module.to(make_model(name), dtype)
    if args.channels_last:
        nn.Module.to(network, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    given = {
        "sample": torch.randn(1, network.config["in_channels"], *args.shape).to(dtype),
        "timestep": torch.full((1,), 500.0),
        "pooled": torch.zeros(1, network.config["pooled_dim"], dtype=dtype),
        "spacing_mm": torch.ones(1, 3),
    }

    def forward() -> None:
        with torch.no_grad():
            network(**given)

    def training() -> None:
        network(**given).sample.float().square().mean().backward()
        network.zero_grad(set_to_none=True)

    return {"forward": forward, "forward + backward": training}


def speeds(dtype: torch.dtype) -> tuple[float, float]:
    """Operations a second of a matrix product, and bytes a second of a copy, read and written, that fits no cache."""
    a, b = torch.randn(1024, 1024).to(dtype), torch.empty(2**25, dtype=torch.uint8)

    def least(work: Any) -> float:
        times = []
        for _ in range(4):
            started = time.process_time()
            work()
            times.append(time.process_time() - started)
        return min(times)

    return 2 * 1024**3 / least(lambda: a @ a), 2 * b.nbytes / least(lambda: b.clone())


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = parse_args(arguments)
    presets = {name: works(name, args) for name in args.presets}
    times: dict[tuple[str, str], list[list[tuple[str, float, int, int]]]] = defaultdict(list)
    for number in range(1 + args.rounds):
        for name, of_it in presets.items():
            for work, run in of_it.items():
                with KernelClock() as clock:
                    run()
                if number:
                    times[name, work].append(clock.calls)
    flops_per_second, bytes_per_second = speeds(getattr(torch, args.dtype))
    rows = []
    for (name, work), rounds in times.items():
        kinds: dict[str, dict[str, float]] = defaultdict(lambda: {"calls": 0, "ms": 0.0, "predicted_ms": 0.0})
        for calls in zip(*rounds, strict=True):
            kernel, _, operations, moved = calls[0]
            seconds = operations / flops_per_second if operations else moved / bytes_per_second
            row = kinds[kind_of(kernel)]
            row["calls"] += 1
            row["ms"] += 1e3 * min(seconds for _, seconds, _, _ in calls)
            row["predicted_ms"] += 1e3 * seconds
        rows += [{"network": name, "work": work, "kind": kind, **kinds[kind]} for kind in kinds]
    result = {
        "facts": {
            **{key: getattr(args, key) for key in ("shape", "dtype", "channels_last", "rounds")},
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "flops_per_second": flops_per_second,
            "bytes_per_second": bytes_per_second,
        },
        "rows": rows,
    }
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    (out / "profile.json").write_text(json.dumps(result, indent=2) + "\n")
    text = markdown(result)
    (out / "profile.md").write_text(text)
    print(text)
    return result


def markdown(result: dict[str, Any]) -> str:
    """A table for each kind of work: kinds of kernels, and milliseconds (predicted) of each network."""
    facts, rows = result["facts"], result["rows"]
    names = list(dict.fromkeys(row["network"] for row in rows))
    lines = []
    for work in dict.fromkeys(row["work"] for row in rows):
        lines += [f"| {work}: ms (predicted) | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        found = {(row["network"], row["kind"]): row for row in rows if row["work"] == work}
        for kind in dict.fromkeys(kind for _, kind in found):
            cells = [
                f"{found[name, kind]['ms']:.1f} ({found[name, kind]['predicted_ms']:.1f})"
                if (name, kind) in found
                else "–"
                for name in names
            ]
            lines.append(f"| {kind} | " + " | ".join(cells) + " |")
        totals = [
            [sum(row[key] for (of, _), row in found.items() if of == name) for key in ("ms", "predicted_ms")]
            for name in names
        ]
        lines += ["| all | " + " | ".join(f"{ms:.1f} ({predicted:.1f})" for ms, predicted in totals) + " |", ""]
    layout = "channels last" if facts["channels_last"] else "plain layout"
    lines.append(
        f"One sample of {' x '.join(map(str, facts['shape']))}, {facts['dtype']}, {layout}, threads {facts['threads']}, torch "
        f"{facts['torch']}; least of {facts['rounds']} rounds. Products {facts['flops_per_second'] / 1e12:.3g} TFLOP/s, copies "
        f"{facts['bytes_per_second'] / 1e9:.3g} GB/s."
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
