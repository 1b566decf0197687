"""Who is blamed when a worker process is killed, on a cluster of real processes."""

import signal

import dask
from kexue.book.execution import execute, plan

from .small import book, notebook


def test_chapter_that_kills_every_worker_is_lost_and_the_one_that_waited_behind_it_is_not(tmp_path):
    """Dask suspects every task that a dead worker had in hand; a task that only waits is therefore not handed out."""
    killer = notebook(f"import os, time; os.kill(os.getppid(), {int(signal.SIGKILL)}); time.sleep(60)")
    root = book(tmp_path, killer=killer, other=notebook("1"))
    tasks = plan(root, scales=["smoke"], seeds=[0])
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        results = execute(tasks, tmp_path / "state", workers=1, progress=False)
    assert [r.outcome for r in results] == ["lost", "ok"]
    assert "worker" in results[0].message
