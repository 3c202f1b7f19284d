"""Time and memory of restoring whole scans, beside what was estimated before the start, by number of slices.

    python examples/benchmark_whole_scan.py --output_dir outputs/whole_scan --preset ct-unet25d-s --slices 75 150 300

Draws a phantom chest as a DICOM series of each length (a few slices of anatomy back and forth, other noise in each slice) and
restores it in a process of its own, slab by slab, as `diffusers-ct restore` does: from folder to folder, one step. The network
is a preset with random weights, which take as long as trained ones, or a pipeline. Time is told by the wall clock and by the
processor: on a machine that does other work the first is longer, and the estimate, measured on the first slab, is as good as
the load is steady. With `--seam_slices` a piece of the phantom is restored in tiles and at once, and the largest difference
told: give a trained pipeline, since a random network changes the image by more than any real one.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from diffusers import DDIMScheduler
from torch import nn

from diffusers_ct import CTDiffusionPipeline, CTVolume, __version__, make_phantom
from diffusers_ct.cli.restoring import RestoreSettings, restore_scan
from diffusers_ct.io import Derivation, open_volume_writer
from diffusers_ct.models import PRESETS, make_model
from diffusers_ct.pipelines import RestorationStream
from diffusers_ct.schedulers import make_noise_scheduler
from diffusers_ct.volume import ScanSlices

SPACING_MM = (1.0, 0.75, 0.75)
ANATOMY_SLICES = 8
NOISE_HU = 30.0
SAMPLED_EVERY_S = 0.2


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, type=Path, help="Gets whole_scan.md, .json and .png.")
    network = parser.add_mutually_exclusive_group()
    network.add_argument(
        "--preset", choices=tuple(PRESETS), default="ct-unet25d-s", help="Network with random weights."
    )
    network.add_argument("--model", type=Path, help="Folder of a pipeline instead.")
    parser.add_argument("--norm_type", choices=("group", "rms"), help="Of the preset, instead of its own.")
    parser.add_argument("--block_out_channels", type=int, nargs="+", help="Of the preset, instead of its own.")
    parser.add_argument("--slices", type=int, nargs="+", default=[75, 150])
    parser.add_argument("--matrix", type=int, default=512)
    parser.add_argument("--tile_size", type=int, nargs=3, metavar=("Z", "Y", "X"))
    parser.add_argument("--fast", action="store_true", help="bfloat16, where the device multiplies it.")
    parser.add_argument("--seam_slices", type=int, default=0, help="Measure seams on so many slices of 128 x 128.")
    args = parser.parse_args(arguments)
    if min(args.slices) < 1 or args.matrix < 32:
        parser.error("--slices must be positive and --matrix at least 32.")
    return args


def make_scan(depth: int, matrix: int) -> ScanSlices:
    """A phantom chest whose slices are made when they are read."""
    pixel_mm = SPACING_MM[1] * 512 / matrix
    spacing_mm = (SPACING_MM[0], pixel_mm, pixel_mm)
    anatomy = make_phantom(0, "thorax", shape=(ANATOMY_SLICES, matrix, matrix), spacing_mm=spacing_mm).volume

    def read(start: int, stop: int) -> np.ndarray:
        back_and_forth = [*range(ANATOMY_SLICES), *range(ANATOMY_SLICES - 2, 0, -1)]
        images = [
            anatomy.hu[back_and_forth[k % len(back_and_forth)]]
            + NOISE_HU * np.random.default_rng(k).standard_normal((matrix, matrix), dtype=np.float32)
            for k in range(start, stop)
        ]
        return np.stack(images)

    affine = np.diag([spacing_mm[2], spacing_mm[1], spacing_mm[0], 1.0])
    return ScanSlices((depth, matrix, matrix), spacing_mm, affine, read, anatomy.conditions)


def write_series(folder: Path, scan: ScanSlices) -> None:
    made = Derivation(method="phantom chest for a benchmark", package_version=__version__, synthetic=True)
    with open_volume_writer(folder, scan, derivation=made, series_description="phantom") as writer:
        for k in range(scan.shape[0]):
            writer.write(scan.read(k, k + 1))


def save_network(args: argparse.Namespace, folder: Path) -> Path:
    """A pipeline of the preset whose output is not zero."""
    changes = {name: getattr(args, name) for name in ("norm_type", "block_out_channels")}
    torch.manual_seed(0)
    unet = make_model(args.preset, **{name: value for name, value in changes.items() if value is not None})
    for parameter in unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    CTDiffusionPipeline(unet, DDIMScheduler.from_config(make_noise_scheduler().config)).save_pretrained(folder)
    return folder


def load(model: Path, fast: bool) -> tuple[CTDiffusionPipeline, str]:
    pipe = CTDiffusionPipeline.from_pretrained(model)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)
    said = str(pipe.enable_fast_inference()) if fast else f"network on {pipe.device}, computes in {pipe.unet.dtype}"
    return pipe, said


def restore(model: Path, scan: Path, out: Path, tile_size: tuple | None, fast: bool, answers: Any) -> None:
    """In a process of its own: answers with what was estimated and what was taken."""
    pipe, said = load(model, fast)
    settings = RestoreSettings("benchmark", None, tile_size=tile_size)
    began, began_cpu = time.perf_counter(), time.process_time()
    done = restore_scan(pipe, scan, out, settings, tell=lambda text: print(f"  {text}", flush=True))
    assert done.estimate is not None
    answers.put(
        {
            "seconds": done.seconds,
            "estimated_seconds": done.estimate.seconds,
            "peak_bytes": done.peak_bytes,
            "estimated_bytes": done.estimate.peak_bytes,
            "whole_seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - began_cpu,
            "evaluations": done.estimate.evaluations,
            "threads": torch.get_num_threads(),
            "network": said,
        }
    )


def measure(model: Path, depth: int, args: argparse.Namespace) -> dict[str, Any]:
    """One scan of `depth` slices; `rss` is (seconds, bytes) of its process, as this one sees it."""
    scan, out = args.output_dir / f"scan{depth}", args.output_dir / f"restored{depth}"
    for folder in (scan, out):
        shutil.rmtree(folder, ignore_errors=True)
    write_series(scan, make_scan(depth, args.matrix))
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    tile_size = tuple(args.tile_size) if args.tile_size else None
    child = context.Process(target=restore, args=(model, scan, out, tile_size, args.fast, answers))
    load_before, began, rss = os.getloadavg()[0], time.perf_counter(), []
    child.start()
    watched = psutil.Process(child.pid)
    while child.is_alive():
        try:
            rss.append((time.perf_counter() - began, watched.memory_info().rss))
        except psutil.NoSuchProcess:
            break
        child.join(SAMPLED_EVERY_S)
    child.join()
    if child.exitcode:
        raise SystemExit(f"Restoring {depth} slices failed.")
    written = len(list(out.iterdir()))
    for folder in (scan, out):
        shutil.rmtree(folder)
    load = {"load_average_before": load_before, "load_average_after": os.getloadavg()[0]}
    return {"slices": depth, "written": written, **answers.get(), **load, "rss": rss}


def seams(model: Path, depth: int, fast: bool) -> dict[str, float]:
    """Largest and root mean square difference in HU, over the body, of the default tiles to the scan at once."""
    pipe, _ = load(model, fast)
    scan = make_scan(depth, 512)
    middle = slice(192, 320)
    low = CTVolume.from_array(scan.read(0, depth)[:, middle, middle], scan.spacing_mm, scan.conditions)

    def restored(tile: int) -> np.ndarray:
        stream = RestorationStream(
            pipe,
            ScanSlices.of(low),
            tile_size=(tile, 128, 128),
            ignore_contract=list(pipe.contract.checkable() if pipe.contract else ()),
        )
        return np.concatenate([slab.hu for slab in stream])

    whole = restored(-(-depth // pipe.unet.size_factor[0]) * pipe.unet.size_factor[0])
    difference = restored(16) - whole
    moved = whole - low.hu
    return {
        "slices": depth,
        "largest_hu": float(np.abs(difference).max()),
        "rms_hu": float(np.sqrt(np.mean(difference**2))),
        "changed_rms_hu": float(np.sqrt(np.mean(moved**2))),
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    args = parse_args(arguments)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    model = args.model or save_network(args, args.output_dir / "model")
    rows = []
    for depth in args.slices:
        print(f"{depth} slices", flush=True)
        rows.append(measure(model, depth, args))
    result: dict[str, Any] = {
        "facts": {
            "network": "a pipeline" if args.model else args.preset,
            **{k: getattr(args, k) for k in ("norm_type", "block_out_channels", "matrix", "tile_size", "fast")},
            "torch": torch.__version__,
        },
        "rows": rows,
    }
    if args.seam_slices:
        result["seams"] = seams(model, args.seam_slices, args.fast)
    (args.output_dir / "whole_scan.json").write_text(json.dumps(result, indent=2) + "\n")
    text = markdown(result)
    (args.output_dir / "whole_scan.md").write_text(text)
    draw(result, args.output_dir / "whole_scan.png")
    print(text)
    return result


def markdown(result: dict[str, Any]) -> str:
    lines = [
        "| slices | wall s | estimated s | ratio | CPU s | CPU s / slice | peak MiB | estimated MiB | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [row["slices"], f"{row['seconds']:.1f}", f"{row['estimated_seconds']:.1f}"]
        cells += [f"{row['estimated_seconds'] / row['seconds']:.2f}", f"{row['cpu_seconds']:.1f}"]
        cells += [f"{row['cpu_seconds'] / row['slices']:.3f}", f"{row['peak_bytes'] / 2**20:.0f}"]
        cells += [f"{row['estimated_bytes'] / 2**20:.0f}", f"{row['estimated_bytes'] / row['peak_bytes']:.2f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    facts, first = result["facts"], result["rows"][0]
    lines += [
        "",
        f"{facts['network']}, {facts['matrix']} x {facts['matrix']}, one step; {first['network']}; {first['threads']} threads, "
        f"torch {facts['torch']}. Wall seconds from the estimate to the last slice; CPU seconds with reading and the estimate. "
        f"Load average {first['load_average_before']:.1f} before the first and {result['rows'][-1]['load_average_after']:.1f} after "
        "the last.",
    ]
    if "seams" in result:
        seam = result["seams"]
        lines.append(
            f"Seams on {seam['slices']} slices of 128 x 128 in tiles of 16: at most {seam['largest_hu']:.2f} HU, root mean square "
            f"{seam['rms_hu']:.3f} HU; the restoration changes the image by {seam['changed_rms_hu']:.1f} HU."
        )
    return "\n".join(lines) + "\n"


def draw(result: dict[str, Any], path: Path) -> None:
    """Memory of each process over its time."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(7.0, 3.5), layout="constrained")).subplots()
    for row in result["rows"]:
        seconds, size = zip(*row["rss"])
        (line,) = axes.plot(seconds, [b / 2**20 for b in size], label=f"{row['slices']} slices")
        axes.axhline(row["estimated_bytes"] / 2**20, color=line.get_color(), linestyle=":", linewidth=0.8)
    axes.set_xlabel("seconds since the process began")
    axes.set_ylabel("memory, MiB (dotted: told before)")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=len(result["rows"]))
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
