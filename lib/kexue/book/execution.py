"""Run chapters: one task is one chapter at one scale with one seed, executed by papermill on a dask cluster.

Results are written to the state directory as they come, one record and one notebook per task, under a key that names everything the result
depends on (:mod:`kexue.book.sources`). A second call finds them there and runs only what is missing. A task whose worker process dies is
run again by another; a chapter that fails does not stop the others.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbformat import NotebookNode

from kexue.book import normalise, sources
from kexue.book.kernel import CELL_TIMEOUT, Result, Task, first_line, run_notebook

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Result", "Task", "check_parameters", "cluster", "execute", "local_gpus", "plan", "report", "run_notebook"]

RETRIES = 2  # how often a task is run again whose kernel died


def plan(root: Path, chapters: Sequence[str] = (), *, scales: Iterable[str], seeds: Iterable[int], evidence: bool = False) -> list[Task]:
    """The tasks of all ``chapters`` (every one if empty) by scales and seeds.

    Raises ValueError for an unknown chapter and for a notebook whose parameters cell does not define ``scale`` and ``seed``.
    """
    tasks = []
    scales, seeds = list(scales), list(seeds)
    for slug, path in sources.select(sources.find_chapters(root), chapters).items():
        notebook = normalise.normalise(normalise.read(path))
        text = normalise.to_text(notebook)
        for scale in scales:
            for seed in seeds:
                check_parameters(notebook, {"scale": scale, "seed": seed}, path)
                key = sources.result_key(notebook, scale, seed, evidence)
                tasks.append(Task(slug, str(path), text, scale, seed, evidence, key))
    return tasks


def check_parameters(notebook: NotebookNode, parameters: Mapping[str, Any], name_of_notebook: object) -> None:
    """Raise ValueError unless the notebook's parameters cell defines every name in ``parameters``: papermill would only warn."""
    from papermill import inspect_notebook

    defined = inspect_notebook(notebook)
    for name in parameters:
        if name not in defined:
            known = ", ".join(defined) or "nothing"
            raise ValueError(f"{name_of_notebook} has no parameter {name!r}; its cell tagged 'parameters' defines {known}")


def execute(
    tasks: Sequence[Task],
    state: Path,
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    force: bool = False,
    timeout: float = CELL_TIMEOUT,
    progress: bool = True,
    done: Callable[[Task, Result, str], None] | None = None,
) -> list[Result]:
    """Run what is not in ``state`` yet and return the results in the order of ``tasks``.

    ``done`` is called with task, result and the text of the executed notebook as soon as each is known. With ``force`` finished tasks are
    run again. ``scheduler`` is the address of a dask scheduler; without it a cluster of ``workers`` processes (one per core) is started.
    """
    from tqdm import tqdm

    results: dict[str, Result] = {}
    with tqdm(total=len(tasks), desc="chapters", unit="run", file=sys.stderr, disable=not progress) as bar:

        def finish(task: Task, result: Result, text: str) -> None:
            results[task.name] = result
            if done:
                done(task, result, text)
            bar.set_postfix_str(f"{task.chapter} {task.scale} {task.seed}: {result.outcome}")
            bar.update()

        missing = []
        for task in tasks:
            if not force and (found := recall(task, state)):
                finish(task, *found)
            else:
                missing.append(task)
        if missing:
            with cluster(missing, scheduler, workers) as client:
                for task, result, text in _run_all(client, missing, timeout):
                    keep(task, result, text, state)
                    finish(task, result, text)
    return [results[task.name] for task in tasks]


def keep(task: Task, result: Result, text: str, state: Path) -> None:
    """Write a result to the state directory; the record comes last, so that a record always has its notebook."""
    normalise.write_atomically(state / f"{task.name}.ipynb", text)
    normalise.write_atomically(state / f"{task.name}.json", json.dumps(asdict(result), indent=1, sort_keys=True) + "\n")


def recall(task: Task, state: Path) -> tuple[Result, str] | None:
    """The finished result of ``task``, if the state directory has one; failures are worth another try and do not count."""
    record, notebook = state / f"{task.name}.json", state / f"{task.name}.ipynb"
    if not record.exists() or not notebook.exists():
        return None
    result = Result(**json.loads(record.read_text(encoding="utf-8")))
    return (result, notebook.read_text(encoding="utf-8")) if result.outcome == "ok" else None


@contextmanager
def cluster(tasks: Sequence[Task], scheduler: str | None = None, workers: int | None = None) -> Iterator[Client]:
    """A client of the scheduler at the given address, or of a cluster of processes on this machine that ends with the context."""
    from distributed import Client, Nanny, Scheduler, SpecCluster

    if scheduler:
        with Client(scheduler, timeout="30s") as client:
            yield client
        return
    quiet = logging.CRITICAL  # what happens to a worker is reported by the outcomes of its tasks
    common = {"nthreads": 1, "memory_limit": None, "dashboard": False, "silence_logs": quiet, "env": {"OMP_NUM_THREADS": "1"}}
    gpus = local_gpus() if any(task.scale == "gpu" for task in tasks) else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    others = min(workers or os.cpu_count() or 1, max(1, sum(task.scale != "gpu" or not gpus for task in tasks)))
    specification = {f"cpu-{i}": {"cls": Nanny, "options": common} for i in range(others)} | {
        f"gpu-{i}": {
            "cls": Nanny,
            "options": common | {"resources": {"GPU": 1}, "env": common["env"] | {"CUDA_VISIBLE_DEVICES": visible[i]}},
        }
        for i in range(gpus)
    }
    local = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0"}}
    with (
        SpecCluster(workers=specification, scheduler=local, silence_logs=quiet) as processes,
        Client(processes) as client,
    ):
        yield client


def local_gpus() -> int:
    """The number of CUDA devices of this machine; 0 where torch is not installed."""
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count()


def report(results: Sequence[Result]) -> str:
    """A table of outcome, time and peak memory, one line per result."""
    lines = [f"{'chapter':28} {'scale':5} {'seed':>4}  {'outcome':7} {'time':>8} {'memory':>9}  device"]
    for r in results:
        memory = "–" if r.peak_mb is None else f"{r.peak_mb:.0f} MB"
        lines.append(f"{r.chapter:28} {r.scale:5} {r.seed:4}  {r.outcome:7} {r.seconds:6.1f} s {memory:>9}  {r.device}")
        if r.message:
            lines.append(f"    {r.message}")
    failed = sum(r.outcome != "ok" for r in results)
    lines.append(f"{len(results) - failed} of {len(results)} passed")
    return "\n".join(lines)


def _run_all(client: Client, tasks: Sequence[Task], timeout: float) -> Iterator[tuple[Task, Result, str]]:
    """Results as they come. A task is handed out when a worker is free: one that waited behind a task that kills its worker would be
    suspected with it."""
    from distributed import as_completed

    def threads(gpu: bool) -> int:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        return sum(worker["nthreads"] for worker in workers if (worker["resources"].get("GPU", 0) > 0) == gpu)

    accelerated = threads(gpu=True) > 0  # without a GPU anywhere, chapters at scale gpu run on the CPU
    waiting = {True: [], False: []}
    for task in tasks:
        waiting[accelerated and task.scale == "gpu"].append(task)
    running: dict[Any, tuple[Task, bool]] = {}
    futures = as_completed()

    def hand_out() -> None:
        for gpu, queue in waiting.items():
            active = sum(kind == gpu for _, kind in running.values())
            for task in [queue.pop(0) for _ in range(min(len(queue), max(1, threads(gpu)) - active))]:
                resources = {"GPU": 1} if gpu else None
                future = client.submit(run_notebook, task, timeout, retries=RETRIES, resources=resources, pure=False)
                running[future] = (task, gpu)
                futures.add(future)

    hand_out()
    for future in futures:
        task, _ = running.pop(future)
        if future.status == "finished":
            result, text = future.result()
        else:
            message = first_line(str(future.exception())) if future.status == "error" else future.status
            text = task.text
            result = Result(task.chapter, task.scale, task.seed, task.key, "lost", 0.0, None, "unknown", message, sources.versions())
        yield task, result, text
        hand_out()
