"""Restoring one scan from path to path, slab by slab: what `restore` does once, or for each of many scans."""

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..pipelines.restoration_cost import RestorationCost


@dataclass(frozen=True)
class RestoreSettings:
    """What is the same for all scans; the fields are the flags of `diffusers-ct restore`."""

    model_id: str
    model_revision: str | None
    steps: int = 1
    samples: int = 1
    seed: int = 0
    series_uid: str | None = None
    stack: int | None = None
    resample: bool = False
    deidentify: Any = "basic"
    ignore_contract: tuple[str, ...] = ()
    tile_size: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class RestoredScan:
    """What was done.

    Attributes:
        slices: of the scan.
        seconds: of the restoration, the reading before it not counted.
        peak_bytes: largest memory meanwhile, as in `RestorationCost`.
        estimate: what both were said to be before the start; None if they were not.
        unchecked: see `RestorationStream`.
        left_out: likewise.
    """

    slices: int
    seconds: float
    peak_bytes: float
    estimate: "RestorationCost | None"
    unchecked: list[str]
    left_out: list[str]


def restore_scan(
    pipe: Any,
    scan: Path,
    output: Path,
    settings: RestoreSettings,
    *,
    uncertainty: Path | None = None,
    tell: Callable[[str], None],
    estimate: bool = True,
) -> RestoredScan:
    """Reads, restores and writes a scan; nothing is left of one that fails.

    Args:
        pipe: a pipeline that restores; for several steps it is given `few_step_scheduler`'s.
        scan: as of `read_volume`.
        output: as of `write_volume`.
        settings: of the restoration.
        uncertainty: where the standard deviation of the samples goes.
        tell: takes notes and the estimate.
        estimate: measure time and memory on the first slab before the start.

    Raises:
        CTReadError, ContractError, ValueError, OSError: as reading, restoring and writing do.
    """
    from ..derivations import restoration_derivation
    from ..io import check_output_path, open_scan, open_volume_writer
    from ..pipelines import RestorationStream
    from ..pipelines.host_memory import keep_freed_memory
    from ..pipelines.restoration_cost import PeakMemory
    from ..pipelines.samplers import few_step_scheduler

    keep_freed_memory()
    if settings.steps > 1:
        pipe.scheduler = few_step_scheduler(pipe.scheduler)

    paths = [path for path in (uncertainty, output) if path is not None]
    for path in paths:
        check_output_path(path)
    slices = open_scan(scan, series_uid=settings.series_uid, stack=settings.stack, resample=settings.resample)
    for note in getattr(slices.source, "notes", ()):
        tell(f"note: {note}")
    for path in paths:
        _check_disk(path, slices.shape)
    derivation = restoration_derivation(
        model_id=settings.model_id,
        model_revision=settings.model_revision,
        num_inference_steps=settings.steps,
        num_samples=settings.samples,
        seed=settings.seed,
    )
    stream = RestorationStream(
        pipe,
        slices,
        num_inference_steps=settings.steps,
        num_samples=settings.samples,
        seed=settings.seed,
        tile_size=settings.tile_size,
        ignore_contract=settings.ignore_contract,
    )
    common: dict[str, Any] = {"derivation": derivation, "deidentify": settings.deidentify}
    with ExitStack() as stack:
        # Left in the reverse order: the result appears last, so that where it is, all is.
        writer = stack.enter_context(
            open_volume_writer(output, slices, series_description="diffusers-ct restored", **common)
        )
        spread_writer = None
        if uncertainty is not None:
            spread_writer = stack.enter_context(
                open_volume_writer(
                    uncertainty,
                    slices,
                    series_description="diffusers-ct uncertainty (SD)",
                    rescale_slope=None,
                    **common,
                )
            )
        cost = stream.measure(writer.seconds_per_slice) if estimate else None
        if cost is not None:
            tell(f"estimate: {cost}")
        began = time.perf_counter()
        with PeakMemory(pipe._execution_device) as memory:
            for slab in stream:
                writer.write(slab.hu)
                if spread_writer is not None and slab.uncertainty_hu is not None:
                    spread_writer.write(slab.uncertainty_hu)
    seconds = time.perf_counter() - began
    return RestoredScan(slices.shape[0], seconds, memory.peak, cost, stream.unchecked, stream.left_out)


def _check_disk(path: Path, shape: tuple[int, int, int]) -> None:
    """Refuses a disk that would be full before the end."""
    depth, height, width = shape
    bytes_of_voxel = 4 if path.name.lower().endswith((".nii", ".nii.gz", ".mha")) else 2  # DICOM: int16
    needed = depth * height * width * bytes_of_voxel
    above = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(above).free
    if needed > free:
        raise ValueError(
            f"{path}: the result takes up to {needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free on that disk: "
            "name a path on another one."
        )
