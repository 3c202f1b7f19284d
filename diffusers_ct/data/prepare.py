"""Preparing a dataset on disk, scan by scan and in parallel, so that a killed run goes on where it stopped.

Layout of the folder: `shards/*.arrow` (some rows each), `manifest.jsonl` (what they hold; written last),
`settings.json` (what was asked for, without paths or names), `left_out.jsonl` (what could not be used, without paths or
names) and `private/salt` (readable by the owner alone; never to be published). Until it is finished, `staging` holds
rows whose shard is not whole.
"""

import errno
import json
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..io import CTReadError
from .dicom_trees import Problem
from .manifest import (
    REPORT_NAME,
    SHARD_FOLDER,
    SPLITS,
    STAGING_FOLDER,
    hashed_key,
    write_atomically,
    write_manifest,
)
from .paired_ct import PairedCTConfig
from .prepare_settings import check_folder, check_settings, keep_settings, kept_salt, only_run_in
from .shards import (
    DiskFullError,
    Place,
    PlannedShard,
    finished_rows,
    is_disk_full,
    pack,
    plan_shards,
    read_entries,
    remove_parts,
    stage_row,
)
from .sources import ScanTask
from .unpaired_ct import UnpairedCTConfig
from .workers import WorkerDied, Workers

Progress = Callable[[int, int, str], None]
SHARD_SIZE_MB = 500


@dataclass
class PrepareReport:
    """What a run did.

    Attributes:
        written: rows made in this run.
        reused: rows found finished from an earlier run.
        rows: rows in the dataset for each split.
        problems: what was left out and why; holds paths of the user, for the user's eyes only.
        empty: splits that were to have patients and have none, in the whole of which this may be a part.
    """

    written: int = 0
    reused: int = 0
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    problems: list[Problem] = field(default_factory=list)
    empty: tuple[str, ...] = ()


def prepare_paired_ct(
    output_dir: str | Path,
    *,
    num_workers: int = 0,
    part: tuple[int, int] | None = None,
    shard_size_mb: float = SHARD_SIZE_MB,
    progress: Progress | None = None,
    **source: Any,
) -> PrepareReport:
    """Makes a folder that `load_paired_ct` opens, from one of the three sources.

    Can be killed at any time and run again: finished rows are kept, half-written ones are not taken for finished, and
    the manifest appears only when every scan has been tried. A scan that cannot be used is reported and left out. The
    files do not depend on the number of workers, on the order in which scans are done, nor on kills.

    Args:
        output_dir: new folder, or the one of an unfinished run with the same settings.
        num_workers: processes, each with one scan in memory and one thread; 0 works in this process with its threads.
            A script that asks for processes needs the `if __name__ == "__main__":` of every use of multiprocessing.
        part: (i, n): makes only the i-th of n parts, for a machine of its own; `merge_prepared` joins the parts. All
            machines need the same source and `salt`.
        shard_size_mb: rows are packed into files of at most this size; a larger row has a file of its own.
        progress: called with (scans done, scans in all, label of the last scan; the label may name a folder).
        **source: the fields of `PairedCTConfig`. Without `salt` one is drawn and kept in the folder.

    Raises:
        ValueError: if the settings mean nothing, no scan is usable, the disk is too small, or the folder was prepared
            with other settings.
        FileNotFoundError: if the source is not there.
        DiskFullError: if the disk fills up on the way; what is ready stays, and the next run goes on.
    """
    return _prepare(Path(output_dir), PairedCTConfig, source, num_workers, part, shard_size_mb, progress)


def prepare_unpaired_ct(
    output_dir: str | Path,
    *,
    num_workers: int = 0,
    part: tuple[int, int] | None = None,
    shard_size_mb: float = SHARD_SIZE_MB,
    progress: Progress | None = None,
    **source: Any,
) -> PrepareReport:
    """Makes a folder that `load_unpaired_ct` opens: single scans at normal dose, at low dose, or of both kinds.

    Args:
        output_dir: as in `prepare_paired_ct`, and so are the others.
        num_workers: processes.
        part: (i, n).
        shard_size_mb: of a file.
        progress: called after each scan.
        **source: the fields of `UnpairedCTConfig`.

    Raises:
        ValueError: as `prepare_paired_ct`.
        FileNotFoundError: if a source is not there.
        DiskFullError: if the disk fills up on the way.
    """
    return _prepare(Path(output_dir), UnpairedCTConfig, source, num_workers, part, shard_size_mb, progress)


def _prepare(
    folder: Path,
    config_class: type[PairedCTConfig] | type[UnpairedCTConfig],
    source: dict[str, Any],
    num_workers: int,
    part: tuple[int, int] | None,
    shard_size_mb: float,
    progress: Progress | None,
) -> PrepareReport:
    check_folder(folder)
    if shard_size_mb <= 0:
        raise ValueError(f"`shard_size_mb` must be positive, got {shard_size_mb}.")
    if part is not None and not 1 <= part[0] <= part[1]:
        raise ValueError(f"`part` must be (i, n) with i from 1 to n, got {part}.")
    salt = source.get("salt") or kept_salt(folder)
    # Phantoms have no patient to protect: a fixed salt lets a rerun compare its settings without keeping a secret.
    phantoms = source.get("phantoms") is not None
    if part is not None and salt is None and not phantoms:
        raise ValueError("The machines that share the work need one `salt` (or DIFFUSERS_CT_SALT): a secret text.")
    config = config_class(**{**source, "salt": salt or ("phantom" if phantoms else secrets.token_hex(16))})
    config.check()
    check_settings(folder, config, part)
    try:
        with Workers(num_workers) as workers:
            tasks, problems = _without_doubles(*config.plan(workers))
            if not tasks:
                raise ValueError("\n".join(["No scan can be used.", *map(str, problems)]))
            if not phantoms and not finished_rows(folder, clean=False):
                refuse_empty_splits(config, tasks)
            shards = plan_shards(tasks, int(shard_size_mb * 1e6))
            if part is not None and part[1] > len(shards):
                raise ValueError(
                    f"The work has {len(shards)} shards of at most {shard_size_mb:g} MB, too few for {part[1]} machines: "
                    "use fewer machines or smaller shards (`shard_size_mb`)."
                )
            mine = shards if part is None else shards[part[0] - 1 :: part[1]]
            _check_space(folder, tasks, mine)
            with only_run_in(folder):
                keep_settings(folder, config, part, shards)
                run = _Run(folder, tasks, mine, problems)
                try:
                    run.make(workers, progress)
                except BaseException:  # Ctrl-C too: what workers were writing does not stay
                    workers.stop_at_once()
                    remove_parts(folder)
                    raise
                run.finish(str(config.salt))
                there = {split for split, rows in run.report.rows.items() if rows}
                fractions = (config.validation_fraction, config.test_fraction)
                run.report.empty = empty_splits(*fractions, there if part is None else {task.split for task in tasks})
                return run.report
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise _disk_full(folder) from error


def _without_doubles(tasks: Sequence[ScanTask], problems: Sequence[Problem]) -> tuple[list[ScanTask], list[Problem]]:
    seen: dict[str, str] = {}
    kept = []
    left_out = list(dict.fromkeys(problems))  # parts of a series that cannot be used for one reason say it once
    for task in tasks:
        if task.row_keys[0] in seen:
            text = f"is the same scan as {seen[task.row_keys[0]]}; left out."
            left_out.append(Problem(task.label, text, "double"))
        else:
            kept.append(task)
        seen.setdefault(task.row_keys[0], task.label)
    return kept, left_out


# Expected patients of a split that chance leaves empty in 5 % of all cases; of fewer a warning must do.
_SURELY_SOME = 3.0


def refuse_empty_splits(config: PairedCTConfig | UnpairedCTConfig, tasks: Sequence[ScanTask]) -> None:
    """Refuses to leave training, or a split that should have some patients, without any.

    Patients go to splits by their keys alone, so that each stays where he or she is when others are added; of few patients
    chance can send none to a split. Who names a split for every patient is not asked.

    Raises:
        ValueError: naming the splits and how to fill them.
    """
    patients = {task.patient_key for task in tasks}
    by_chance = len(patients) - len(config.split_by_patient)
    training = 1.0 - config.validation_fraction - config.test_fraction
    empty = empty_splits(config.validation_fraction, config.test_fraction, {task.split for task in tasks})
    expected = dict(zip(SPLITS, (training, config.validation_fraction, config.test_fraction)))
    missing = [split for split in empty if by_chance * expected[split] >= (1e-9 if split == "train" else _SURELY_SOME)]
    if by_chance < 1 or not missing:
        return
    raise ValueError(
        f"Of {len(patients)} {'patient' if len(patients) == 1 else 'patients'} none would come to {' or '.join(missing)}, for "
        "chance (the hash of a patient) decides. `split_by_patient` sends patients by name, such as "
        f"{missing[0]}=ID[,ID...], and 0 as `validation_fraction` or `test_fraction` leaves that split out."
    )


def _check_space(folder: Path, tasks: Sequence[ScanTask], shards: Sequence[PlannedShard]) -> None:
    """Refuses what cannot end well before the first row is made."""
    size = {key: task.row_bytes for task in tasks for key in task.row_keys}
    finished = finished_rows(folder, clean=False)
    missing = {shard: [key for key in shard.rows if key not in finished] for shard in shards}
    needed = sum(size[key] for keys in missing.values() for key in keys)
    # A shard is packed beside its rows, before these go.
    needed += max((sum(size[key] for key in shard.rows) for shard in shards if missing[shard]), default=0)
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ValueError(
            f"The rows need {needed / 1e9:.1f} GB, and {there} has {free / 1e9:.1f} GB free: choose another disk, fewer "
            "doses or realisations, or share the work (--shard)."
        )


def _disk_full(folder: Path) -> DiskFullError:
    rows = len(finished_rows(folder, clean=True))
    return DiskFullError(
        errno.ENOSPC,
        f"The disk of {folder} is full. {rows} rows are ready and stay (`load_paired_ct(..., unfinished=True)` opens them). Make room and run "
        "the same command again: it goes on where it stopped.",
        str(folder),
    )


@dataclass(frozen=True)
class _Outcome:
    written: tuple[str, ...]
    problem: Problem | None = None
    disk_full: bool = False


def _make_rows(job: tuple[Path, ScanTask, tuple[str, ...]]) -> _Outcome:
    """One scan, in a worker: its rows go to the disk, and only their keys come back."""
    folder, task, missing = job
    written: list[str] = []
    try:
        for row in task.rows(missing):
            stage_row(folder, row, task.schema)
            written.append(row["scan_key"])
    except Exception as error:  # among thousands of scans one that fails in an unknown way must not stop the others
        if is_disk_full(error):
            return _Outcome(tuple(written), disk_full=True)
        name = type(error).__name__
        text = f"{name}: {error}. Left out."
        if isinstance(error, (CTReadError, ValueError)):
            text = f"{error} Left out."
        elif isinstance(error, OSError) and error.strerror and error.filename:
            text = f"{error.filename}: {error.strerror}. Left out."
        lost = tuple(key for key in missing if key not in written)
        return _Outcome(tuple(written), Problem(task.label, text, name, lost))
    return _Outcome(tuple(written))


class _Run:
    """Making the missing rows of a plan and packing each shard as soon as all its scans have been tried."""

    def __init__(
        self, folder: Path, tasks: Sequence[ScanTask], shards: Sequence[PlannedShard], problems: list[Problem]
    ) -> None:
        self.folder = folder
        self.tasks = tasks
        self.shards = shards
        self.report = PrepareReport(problems=problems)
        self.finished: dict[str, Place] = finished_rows(folder, clean=True)
        self.files: dict[str, Path] = {}
        wanted = {key for shard in shards for key in shard.rows}
        if stale := [key for key in self.finished if key not in wanted]:
            text = f"rows of an earlier run ({len(stale)}) belong to no scan that is still there; left out."
            self.report.problems.append(Problem(str(folder), text, "no_scan"))

    def make(self, workers: Workers, progress: Progress | None) -> None:
        for name in (STAGING_FOLDER, SHARD_FOLDER):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        shards_of: dict[int, list[PlannedShard]] = {}
        wanted: dict[int, list[str]] = {}  # in the order of the shards, so that they become whole one after the other
        for shard in self.shards:
            mine = set(shard.rows)
            for number in shard.tasks:
                shards_of.setdefault(number, []).append(shard)
                wanted.setdefault(number, []).extend(key for key in self.tasks[number].row_keys if key in mine)
        self.report.reused = sum(key in self.finished for keys in wanted.values() for key in keys)
        missing = {n: tuple(key for key in keys if key not in self.finished) for n, keys in wanted.items()}
        todo = [number for number, keys in missing.items() if keys]
        open_scans = Counter(shard.name for number in todo for shard in shards_of[number])
        for shard in self.shards:
            if not open_scans[shard.name]:
                self._close(shard)
        done = len(missing) - len(todo)
        if progress:
            progress(done, len(missing), "")
        jobs = ((self.folder, self.tasks[number], missing[number]) for number in todo)
        for position, outcome in workers.completed(_make_rows, jobs):
            number = todo[position]
            task = self.tasks[number]
            if isinstance(outcome, WorkerDied):
                text = "its process was killed twice, most often for want of memory: use fewer workers. Left out."
                lost = tuple(key for key in missing[number] if not self._staged(key).exists())
                outcome = _Outcome(
                    tuple(key for key in missing[number] if key not in lost), Problem(task.label, text, "killed", lost)
                )
            if outcome.disk_full:
                raise OSError(errno.ENOSPC, "No space left on device")
            if outcome.problem:
                self.report.problems.append(outcome.problem)
            self.report.written += len(outcome.written)
            self.finished |= {key: (self._staged(key), 0) for key in outcome.written}
            for shard in shards_of[number]:
                open_scans[shard.name] -= 1
                if not open_scans[shard.name]:
                    self._close(shard)
            done += 1
            if progress:
                progress(done, len(missing), task.label)

    def finish(self, salt: str) -> None:
        """Report and manifest, and only then away with what they do not name."""
        rows = [key for shard in self.shards for key in shard.rows if key in self.finished]
        if not rows:
            raise ValueError("\n".join(["No scan could be read.", *map(str, self.report.problems)]))
        entries = read_entries(self.folder, [self.finished[key] for key in rows])
        write_left_out(self.folder, self.report.problems, salt)
        write_manifest(self.folder, entries)
        for path in (self.folder / SHARD_FOLDER).iterdir():
            if path not in self.files.values():
                path.unlink()
        shutil.rmtree(self.folder / STAGING_FOLDER)
        for entry in entries:
            self.report.rows[entry.split] += 1

    def _close(self, shard: PlannedShard) -> None:
        rows = [key for key in shard.rows if key in self.finished]
        if not rows:
            return
        target = self.folder / SHARD_FOLDER / shard.file_name(rows)
        if not target.exists():
            pack([self.finished[key] for key in rows], target)
        for number, key in enumerate(rows):
            self._staged(key).unlink(missing_ok=True)
            self.finished[key] = (target, number)
        self.files[shard.name] = target

    def _staged(self, key: str) -> Path:
        return self.folder / STAGING_FOLDER / f"{key}.arrow"


def write_left_out(folder: Path, problems: Iterable[Problem], salt: str) -> None:
    """What was left out, one line each, for those who use the data: in one word, and where only as a keyed hash."""
    lines = {
        json.dumps({"kind": problem.kind, "rows": problem.rows, "where": hashed_key(salt, "where", problem.where)})
        for problem in problems
    }
    write_atomically(folder / REPORT_NAME, "".join(f"{line}\n" for line in sorted(lines)))


def describe(report: PrepareReport) -> Iterable[str]:
    """The report as lines for a person."""
    counts = ", ".join(f"{split} {count}" for split, count in report.rows.items())
    total = sum(report.rows.values())
    yield f"{total} {'row' if total == 1 else 'rows'} ({counts}): {report.written} made now, {report.reused} from before."
    if report.problems:
        yield "1 problem:" if len(report.problems) == 1 else f"{len(report.problems)} problems:"
        yield from (f"  {problem}" for problem in report.problems)
    if report.empty:
        yield (
            f"Warning: no patient has come to {' or '.join(report.empty)}. If one is needed there, prepare a new folder with "
            "other fractions, more patients or `split_by_patient`."
        )


def empty_splits(validation_fraction: float, test_fraction: float, there: Collection[str]) -> tuple[str, ...]:
    """The splits that were to have some of the patients and are not among those that are `there`."""
    fractions = (1.0 - validation_fraction - test_fraction, validation_fraction, test_fraction)
    return tuple(split for split, fraction in zip(SPLITS, fractions) if fraction > 1e-9 and split not in there)


def rows_ready(folder: str | Path) -> int:
    """Finished rows of a folder, also of an unfinished run."""
    return len(finished_rows(Path(folder), clean=False))
