"""Workers do each job once, outlive a job that kills one of them, and do not outlive their parent."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from diffusers_ct.data.workers import WorkerDied, Workers


def leave_at_two(number: int) -> int:
    if number == 2:
        os._exit(9)  # as the kernel does when memory runs out
    return number * number


def threads(_: int) -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


def test_a_job_that_kills_its_worker_costs_only_itself_and_each_has_one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with Workers(1) as workers:
        results = dict(workers.completed(leave_at_two, range(5)))  # 3 waits in the same process when it dies
        assert isinstance(results.pop(2), WorkerDied)
        assert results == {n: n * n for n in range(5) if n != 2}
        assert list(workers.in_order(abs, range(-20, 0))) == list(range(20, 0, -1))
        assert dict(workers.completed(threads, [0])) == {0: "1"}
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_in_this_process_and_refusal():
    with Workers(0) as workers:
        assert list(workers.completed(abs, [-1, 2])) == [(0, 1), (1, 2)]
    with pytest.raises(ValueError, match=r"0 .* or more, got -1"):
        Workers(-1)


def test_workers_end_with_a_killed_parent():
    script = "import time\nfrom diffusers_ct.data.workers import Workers\nwith Workers(1) as w:\n    list(w.completed(time.sleep, [0.01] * 4 + [600] * 2))"
    parent = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 60
        children: list[psutil.Process] = []
        while time.monotonic() < deadline and not (
            len(children) >= 1 and all(child.num_threads() > 1 for child in children)
        ):
            time.sleep(0.1)
            children = [c for c in psutil.Process(parent.pid).children() if "spawn_main" in " ".join(c.cmdline())]
        assert len(children) == 1
        time.sleep(1.0)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive
    finally:
        parent.kill()
        parent.wait()
