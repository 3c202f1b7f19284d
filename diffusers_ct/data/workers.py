"""Worker processes for preparing data: one job at a time and one thread each, and none outlives its parent."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

# Sums over threads round differently from run to run; besides, workers with a thread for each core fight for the cores.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class WorkerDied:
    """Instead of a result: the process that did the job was killed, most often because memory ran out."""


class Workers:
    """A context in which jobs run in `count` spawned processes, or in this process if `count` is 0.

    Every process computes with one thread, so results do not depend on `count` from 1 on. In this process the threads
    are those that it has; with OMP_NUM_THREADS=1 results are the same there too.

    Raises:
        ValueError: if `count` is negative.
    """

    def __init__(self, count: int) -> None:
        if count < 0:
            raise ValueError(f"`num_workers` must be 0 (no further process) or more, got {count}.")
        self.count = count
        self._pool: ProcessPoolExecutor | None = None
        self._alive: tuple[Connection, Connection] | None = None
        self._environment: dict[str, str | None] = {}

    def __enter__(self) -> "Workers":
        if self.count:
            # Processes are started when they are needed, and take the environment of that moment.
            self._environment = {name: os.environ.get(name) for name in _ONE_THREAD}
            os.environ.update(_ONE_THREAD)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop(at_once=kind is not None)
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def completed(
        self, function: Callable[[Job], Result], jobs: Iterable[Job]
    ) -> Iterator[tuple[int, Result | WorkerDied]]:
        """(number of the job, its result) in the order in which they end; only a few jobs are under way at a time.

        A process that dies takes others' jobs with it: those are done again one by one, and only the one that kills its
        process once more results in `WorkerDied`.
        """
        if not self.count:
            for number, job in enumerate(jobs):
                yield number, function(job)
            return
        waiting = enumerate(jobs)
        running: dict[Future[Result], tuple[int, Job]] = {}
        while True:
            lost: list[tuple[int, Job]] = []
            while len(running) <= self.count and not lost and (item := next(waiting, None)) is not None:
                try:
                    running[self._submit(function, item[1])] = item
                except BrokenProcessPool:
                    lost.append(item)
            if not running and not lost:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                item = running.pop(future)
                try:
                    yield item[0], future.result()
                except BrokenProcessPool:
                    lost.append(item)
            if lost:
                lost += running.values()
                running.clear()
                self._stop(at_once=True)
                for number, job in sorted(lost, key=lambda item: item[0]):
                    yield number, self._alone(function, job)

    def in_order(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result | WorkerDied]:
        """The results in the order of the jobs."""
        early: dict[int, Any] = {}
        wanted = 0
        for number, result in self.completed(function, jobs):
            early[number] = result
            while wanted in early:
                yield early.pop(wanted)
                wanted += 1

    def _alone(self, function: Callable[[Job], Result], job: Job) -> Result | WorkerDied:
        try:
            return self._submit(function, job).result()
        except BrokenProcessPool:
            self._stop(at_once=True)
            return WorkerDied()

    def _submit(self, function: Callable[[Job], Result], job: Job) -> Future[Result]:
        if self._pool is None:
            context = get_context("spawn")
            self._alive = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(
                self.count, mp_context=context, initializer=_begin, initargs=(self._alive[0],)
            )
        return self._pool.submit(function, job)

    def stop_at_once(self) -> None:
        """Ends the processes in the midst of their jobs; when it returns, none of them does anything any more."""
        self._stop(at_once=True)

    def _stop(self, *, at_once: bool) -> None:
        if self._pool is None or self._alive is None:
            return
        reader, writer = self._alive
        if at_once:
            writer.close()  # every worker waits for this
        self._pool.shutdown(wait=True, cancel_futures=at_once)
        writer.close()
        reader.close()
        self._pool = self._alive = None


def _begin(parent_alive: Connection) -> None:
    """In a worker: Ctrl-C is the parent's affair, and the end of the parent (kill -9 too) is the worker's end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def leave_with_parent() -> None:
        parent_alive.poll(None)  # nothing is ever sent: this returns when the other end is closed
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
