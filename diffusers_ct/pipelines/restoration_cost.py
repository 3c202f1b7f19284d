"""What a restoration will take, before it starts: counted without running, then measured on one slab."""

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from ..models.complexity import count_complexity
from .host_memory import kept_bytes
from .tiling import Size

_CGROUP, _OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_SAMPLED_EVERY_S = 0.005


class DoesNotFitError(ValueError):
    """The memory that is free does not hold the restoration."""


@dataclass(frozen=True)
class RestorationCost:
    """What a restoration takes.

    Attributes:
        seconds: from its start to its end; the reading before it not counted.
        peak_bytes: largest memory on the way: of this process on a CPU, of torch on a GPU.
        evaluations: of the network, one tile of one sample at one step each.
    """

    seconds: float
    peak_bytes: float
    evaluations: int

    def __str__(self) -> str:
        return (
            f"about {duration(self.seconds)}, at most {self.peak_bytes / 2**30:.2f} GiB of memory "
            f"({self.evaluations} evaluations of the network)"
        )


def duration(seconds: float) -> str:
    """Such as "12 s", "3 min 20 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{max(seconds, 0.1):.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def counted_bytes(unet: Any, tile: Size) -> int:
    """Activations of one evaluation of a tile, counted (see `count_complexity`): a run takes more, never less."""
    return count_complexity(unet.config, tile, dtype=unet.dtype).inference_peak_bytes


def free_bytes(device: torch.device) -> float:
    """Memory that is there for more: of the GPU, or of the machine and of the control groups the process is held in.

    On a CPU with what this process has freed and kept: that is used first.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    free = min([float(psutil.virtual_memory().available), *_free_of_groups()])
    return free + kept_bytes()


def _free_of_groups() -> Iterator[float]:
    """What each control group that this process is in leaves it (cgroup v2); the cache of files gives way."""
    try:
        own = next(line[3:].strip("/") for line in _OWN_GROUP.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        own = ""
    for folder in (_CGROUP / own, *(_CGROUP / own).parents):
        if not folder.is_relative_to(_CGROUP):
            return
        try:
            limit, used = float((folder / "memory.max").read_text()), int((folder / "memory.current").read_text())
            facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # a group without a limit says "max"
            continue
        yield limit - used + int(facts.get("inactive_file", 0))


def check_fits(needed: float, free: float, tile: Size, *, samples: int, steps: int) -> None:
    """Refuses what cannot fit.

    Raises:
        DoesNotFitError: with what to change.
    """
    if needed <= free:
        return
    advice = [f"a smaller `tile_size` than {' '.join(map(str, tile))}"]
    if samples > 1:
        advice.append(f"fewer `num_samples` than {samples}")
    if steps > 1:
        advice.append(f"fewer `num_inference_steps` than {steps}")
    raise DoesNotFitError(
        f"The restoration needs {needed / 2**30:.2f} GiB of memory, {free / 2**30:.2f} GiB are free: give "
        f"{' or '.join(advice)}, close what else is running, or take a machine with more memory."
    )


class PeakMemory:
    """Within it, the largest memory of this process (CPU) or of torch (GPU), in bytes; `before` as it began."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.before = self.peak = 0

    def __enter__(self) -> "PeakMemory":
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self.before = torch.cuda.memory_allocated(self._device)
            return self
        self._process, self._ended = psutil.Process(os.getpid()), threading.Event()
        self.before = self.peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self.peak = torch.cuda.max_memory_allocated(self._device)
            return
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLED_EVERY_S):
            self.peak = max(self.peak, self._process.memory_info().rss)
