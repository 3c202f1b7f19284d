"""What `diffusers-ct prepare --normal-dose` would make of what `inspect` has found, told by its own code.

It differs from reading a series at once: a gap parts a series and is no reason to refuse it, nothing is resampled, and
two images at one place are refused.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data.dicom_trees import Problem, SliceHeader
    from ..io.inspection import Inspection, StackReport
    from ..io.volume_inspection import VolumeReport

_NONE = "none of its files is taken for a CT slice"
_NO_THICKNESS = (
    "SliceThickness (0018,0050) is empty, and without it nothing tells which slices follow each other: write the series as "
    "NIfTI with `read_volume` and `write_volume`, and prepare that with `patient_from_name`"
)


@dataclass(frozen=True)
class Preview:
    """One stack or file.

    Attributes:
        prepare: "yes" as one scan, "parts", or "no".
        reason: why not as one scan, or what it takes; empty where nothing is to be said.
    """

    prepare: str
    reason: str


def preview_prepare(folder: Path, found: "Inspection", *, pixels: bool) -> tuple[list[Preview], list[Preview]]:
    """For each stack and each file of a folder, in the order of `found`.

    Args:
        folder: that was inspected.
        found: there.
        pixels: whether to read all slices and voxels; else the first slice of each stack.
    """
    from ..data.dicom_trees import read_headers

    headers: list[SliceHeader] = []
    problems: list[Problem] = []
    if any(stack.kind != "localizer" for stack in found.stacks):
        try:
            headers, problems = read_headers(folder)
        except ValueError as error:  # no CT slice; after the first line the reasons of files
            reasons = "; ".join(str(error).splitlines()[1:4]) or _NONE
            return [Preview("no", reasons) for _ in found.stacks], [_of_volume(v, pixels) for v in found.volumes]
    unusable = {str(Path(problem.where)): problem.reason for problem in problems}
    by_series: dict[str, list[SliceHeader]] = defaultdict(list)
    for header in headers:
        by_series[header.series].append(header)
    stacks = [_of_stack(stack, by_series[stack.series_uid], unusable, pixels) for stack in found.stacks]
    return stacks, [_of_volume(volume, pixels) for volume in found.volumes]


def _of_stack(stack: "StackReport", series: "list[SliceHeader]", unusable: dict[str, str], pixels: bool) -> Preview:
    from ..data.slice_matching import find_runs, read_run

    if stack.kind == "localizer":
        return Preview("no", "a localizer is left out")
    files = set(stack.files)
    runs, problems = find_runs(series)
    mine = [run for run in runs if any(str(header.path) in files for header in run)]
    if not mine:
        reasons = [problem.reason for problem in problems] + [
            unusable[name] for name in stack.files if name in unusable
        ]
        return Preview("no", (reasons or [_NONE])[0])
    made, reason = [], ""
    for run in mine if pixels else mine[:1]:
        try:
            read_run(run if pixels else run[:1])
            made.append(run)
        except ValueError as error:
            reason = reason or str(error)
    if not made:
        return Preview("no", _NO_THICKNESS if stack.thickness_mm is None else reason)
    made = made if pixels else mine
    taken = sum(map(len, made))
    if len(made) == 1 and taken == stack.slices:
        return Preview("yes", "")
    if reason or len(made) == 1:
        return Preview(
            "parts", f"{taken} of {stack.slices} slices; others cannot be used{f' ({reason})' if reason else ''}"
        )
    sizes = " + ".join(str(len(run)) for run in made[:6]) + (" ..." if len(made) > 6 else "")
    return Preview(
        "parts",
        f"{len(made)} scans of {sizes} slices, as the spacing or thickness changes, or the slices lie farther apart than twice "
        "their thickness",
    )


def _of_volume(volume: "VolumeReport", pixels: bool) -> Preview:
    from ..data.scans import FileScan

    if volume.usable != "yes" or volume.shape is None:
        return Preview("no", volume.reason)
    if volume.orientation != "axial":
        return Preview("no", "its slices are not axial: reorient the volume first")
    if pixels:
        path = Path(volume.path)
        try:
            FileScan(path, path.name, "unknown", None, volume.shape).read()
        except ValueError as error:
            return Preview("no", str(error))
    return Preview("yes", "needs `patient_from_name`: the file does not tell whose it is")
