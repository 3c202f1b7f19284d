"""Many scans: divided between processes, each restored once, a failing one reported and passed over, resumable.

A scan is done when its result is there, which appears whole or not at all: there is no other record to go wrong.
"""

import json
import os
import secrets
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..mistakes import is_users_mistake, message_of
from .ranks import Rank
from .wording import in_flags

FORMATS = ("dicom", "nii.gz", "nii", "mha")
_SUFFIXES = (".nii.gz", ".tar.gz", ".tar.bz2", ".tar.xz", ".nii", ".mha", ".mhd", ".zip", ".tar", ".tgz", ".dcm")


@dataclass(frozen=True)
class NamedScan:
    """A scan, and the name that its result gets."""

    path: Path
    name: str


@dataclass
class Summary:
    """What a process did with its scans.

    Attributes:
        rank: of the process.
        world_size: how many there are.
        restored: names of scans restored in this run.
        done_before: names of scans whose results were there.
        failed: name -> why.
        slices: restored in this run.
        seconds: that this run took, without loading the model.
    """

    rank: int = 0
    world_size: int = 1
    restored: list[str] = field(default_factory=list)
    done_before: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    slices: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        done = f"{len(self.restored)} restored, {len(self.done_before)} done before, {len(self.failed)} failed"
        return f"{done}; {self.slices} slices in {self.seconds:.0f} s"


def list_scans(studies: Path) -> list[NamedScan]:
    """The scans that a list names, or that lie in a folder.

    Args:
        studies: a text file with a path on each line, behind a tab a name if it is to be another than the path's own; or
            a folder, each entry of which is a scan.

    Raises:
        FileNotFoundError: if there is nothing at `studies`.
        ValueError: if it names no scan, or a name is not fit for a file.
    """
    if studies.is_dir():
        return name_scans((path, None) for path in sorted(studies.iterdir()) if not path.name.startswith("."))
    if not studies.exists():
        raise FileNotFoundError(2, "There is no list or folder of scans at this path", str(studies))
    pairs: list[tuple[Path, str | None]] = []
    for line in studies.read_text(encoding="utf-8").splitlines():
        path, _, name = line.partition("\t")
        if path.strip() and not path.startswith("#"):
            pairs.append((Path(path.strip()), name.strip() or None))
    return name_scans(pairs)


def name_scans(scans: Iterable[tuple[Path, str | None]]) -> list[NamedScan]:
    """Scans in the order of their names, which are as short as tells them apart; one given twice is taken once.

    Raises:
        ValueError: for no scans, or a name that is not fit or given twice.
    """
    once: dict[Path, str | None] = {}
    for path, name in scans:
        once.setdefault(path.absolute(), name)
    if not once:
        raise ValueError("There is no scan to restore: the list or folder is empty.")
    own = [path for path, name in once.items() if name is None]
    names = {path: name or "" for path, name in once.items()}
    parts = 1
    while own:
        for path in own:
            names[path] = "_".join([*path.parent.parts[1:], _stem(path)][-parts:])
        counts = Counter(names.values())
        own = [path for path in own if counts[names[path]] > 1 and parts < len(path.parts)]
        parts += 1
    for name, count in Counter(names.values()).items():
        if count > 1 or Path(name).name != name or name.startswith("."):
            raise ValueError(
                f"The name {name!r} is given to {count} scans or is no file name: give another in the list."
            )
    return sorted((NamedScan(path, name) for path, name in names.items()), key=lambda scan: scan.name)


def _stem(path: Path) -> str:
    suffix = next((s for s in _SUFFIXES if path.name.lower().endswith(s)), "")
    return path.name[: len(path.name) - len(suffix)] or path.name


def restore_many(
    scans: Sequence[NamedScan],
    output: Path,
    suffix: str,
    rank: Rank,
    restore_one: Callable[[NamedScan, Path], int],
    tell: Callable[[str], None],
) -> Summary:
    """Restores this process's share of `scans` into the folder `output`, and leaves a summary there.

    Args:
        scans: all of them, the same in every process.
        output: folder.
        suffix: of a result, such as ".nii.gz"; "" for folders.
        rank: which process this is.
        restore_one: f(scan, path of the result) -> number of slices.
        tell: takes a line for each scan.
    """
    summary = Summary(rank.number, rank.world_size)
    output.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    mine = rank.share(scans)
    for number, scan in enumerate(mine, start=1):
        result = output / f"{scan.name}{suffix}"
        place = f"[{number}/{len(mine)}] {scan.name}"
        if result.exists():
            summary.done_before.append(scan.name)
            tell(f"{place}: done before")
            continue
        started = time.perf_counter()
        try:
            slices = restore_one(scan, result)
        except Exception as error:  # whatever is wrong with one scan, the others are restored
            reason = in_flags(message_of(error), "restore") if is_users_mistake(error) else _last_line(error)
            summary.failed[scan.name] = reason
            tell(f"{place}: failed: {reason}")
            continue
        summary.restored.append(scan.name)
        summary.slices += slices
        tell(f"{place}: {slices} slices in {time.perf_counter() - started:.1f} s")
    summary.seconds = time.perf_counter() - began
    _write(output / f"summary-{rank.number:05d}-of-{rank.world_size:05d}.json", summary)
    return summary


def total_of(summaries: Sequence[Summary]) -> Summary:
    """Of all processes; the time is that of the slowest."""
    total = Summary(0, summaries[0].world_size)
    for one in summaries:
        total.restored += one.restored
        total.done_before += one.done_before
        total.failed |= one.failed
        total.slices += one.slices
        total.seconds = max(total.seconds, one.seconds)
    return total


def _last_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()


def _write(path: Path, summary: Summary) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    partial.write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)
