"""Run chapters: one task is one chapter at one scale with one seed, executed by papermill on a dask cluster.

Results are written to the state directory as they come, one record and one notebook per task, under a key that names everything the result
depends on (:mod:`kexue.book.sources`). A second call finds them there and runs only what is missing. A task whose worker process dies is
run again by another; a chapter that fails does not stop the others.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from nbformat import NotebookNode

from kexue.book import normalise, sources

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Result", "Task", "check_parameters", "cluster", "execute", "local_gpus", "plan", "report", "run_notebook"]

CELL_TIMEOUT = 3600.0  # seconds; a whole chapter takes a minute on a core, ten on a large accelerator
RETRIES = 2  # how often a task is run again whose kernel died
LIBRARY = Path(__file__).resolve().parents[2]

_PROBE = """__import__("json").dumps((lambda json, re, sys, os: {
    "device": (lambda d: "cpu" if d.split(":")[0] != "cuda" else sys.modules["torch"].cuda.get_device_name())
        (str(getattr(globals().get("ch"), "device", "cpu"))),
    "peak_mb": (lambda status: int(re.search(r"VmHWM:\\s+(\\d+) kB", status).group(1)) / 1024)(open("/proc/self/status").read())
        if os.path.exists("/proc/self/status")
        else __import__("resource").getrusage(__import__("resource").RUSAGE_SELF).ru_maxrss / 2**20,
})(*map(__import__, ("json", "re", "sys", "os"))))"""


@dataclass(frozen=True)
class Task:
    """A chapter to be run: where its notebook is, its text, and the parameters."""

    chapter: str
    path: str
    text: str
    scale: str
    seed: int
    evidence: bool
    key: str

    @property
    def name(self) -> str:
        return f"{self.chapter}-{self.scale}-{self.seed}-{self.key}"


@dataclass(frozen=True)
class Result:
    """What became of a task: ``outcome`` is "ok", "failed" (a cell raised) or "lost" (kernel or worker died, again and again)."""

    chapter: str
    scale: str
    seed: int
    key: str
    outcome: str
    seconds: float
    peak_mb: float | None
    device: str
    message: str
    versions: dict[str, str]


def plan(root: Path, chapters: Sequence[str] = (), *, scales: Iterable[str], seeds: Iterable[int], evidence: bool = False) -> list[Task]:
    """The tasks of all ``chapters`` (every one if empty) by scales and seeds.

    Raises ValueError for an unknown chapter and for a notebook whose parameters cell does not define exactly ``scale`` and ``seed``.
    """
    tasks = []
    seeds = list(seeds)
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


def run_notebook(task: Task, timeout: float = CELL_TIMEOUT) -> tuple[Result, str]:
    """Execute one task in a fresh kernel and a fresh directory; this is what a worker does.

    Raises RuntimeError if the kernel dies. A cell that raises is a result: the outcome is "failed".
    """
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    notebook = nbformat.reads(task.text, as_version=4)
    overridden = {"scale": task.scale, "seed": task.seed} if (task.scale, task.seed) != ("cpu", 0) else {}
    usage: dict[str, Any] = {}
    outcome, message = "ok", ""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="kexue-") as folder:
        output = Path(folder) / "executed.ipynb"
        options = {"cwd": folder, "progress_bar": False, "request_save_on_cell_execute": False, "kernel_name": "python3"}
        try:
            executed = execute_notebook(
                notebook,
                str(output),
                parameters=overridden,
                engine_name=_engine(),
                **options,
                env=_kernel_environment(task, folder),
                cell_timeout=timeout,
                usage=usage,
            )
        except PapermillExecutionError as error:
            outcome, message = "failed", f"cell {error.exec_count}: {error.ename}: {_first_line(error.evalue)}"
            executed = nbformat.read(output, as_version=4)
        except CellTimeoutError:
            outcome, message, executed = "failed", f"a cell took longer than {timeout:g} s", notebook
        except DeadKernelError as error:
            raise RuntimeError(f"the kernel of {task.chapter} died (out of memory?): {error}") from None
    seconds = round(time.perf_counter() - start, 2)
    peak = round(usage["peak_mb"], 1) if "peak_mb" in usage else None
    result = Result(
        task.chapter, task.scale, task.seed, task.key, outcome, seconds, peak, usage.get("device", "cpu"), message, sources.versions()
    )
    return result, normalise.to_text(normalise.normalise(_without_error_markers(executed)))


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
    others = min(workers or os.cpu_count() or 1, max(1, sum(task.scale != "gpu" or not gpus for task in tasks)))
    specification = {f"cpu-{i}": {"cls": Nanny, "options": common} for i in range(others)} | {
        f"gpu-{i}": {"cls": Nanny, "options": common | {"resources": {"GPU": 1}, "env": common["env"] | {"CUDA_VISIBLE_DEVICES": str(i)}}}
        for i in range(gpus)
    }
    local = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": None}}
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
    from distributed import as_completed

    has_gpu = any("GPU" in worker.get("resources", {}) for worker in client.scheduler_info(n_workers=-1)["workers"].values())
    futures = {}
    for task in tasks:
        needs = {"GPU": 1} if task.scale == "gpu" and has_gpu else None
        futures[client.submit(run_notebook, task, timeout, retries=RETRIES, resources=needs, pure=False)] = task
    for future in as_completed(futures):
        task = futures[future]
        if future.status == "finished":
            yield task, *future.result()
        else:
            message = _first_line(str(future.exception()))
            lost = Result(task.chapter, task.scale, task.seed, task.key, "lost", 0.0, None, "unknown", message, sources.versions())
            yield task, lost, task.text
        future.release()


def _kernel_environment(task: Task, folder: str) -> dict[str, str]:
    """The environment of the kernel: no progress bars, no plotting back end or start-up files of the user, fixed hashing, this library."""
    env = {k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "KEXUE_EVIDENCE", "PYTHONSTARTUP")}
    env |= {"KEXUE_PROGRESS": "0", "PYTHONHASHSEED": "0", "IPYTHONDIR": str(Path(folder) / ".ipython")}
    env["PYTHONPATH"] = os.pathsep.join([str(LIBRARY), *filter(None, [os.environ.get("PYTHONPATH")])])
    if task.evidence:
        env["KEXUE_EVIDENCE"] = "1"
    if task.scale != "gpu":
        env |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return env


def _engine() -> str:
    """Register, once per process, papermill's own engine with an environment for the kernel, without timing records."""
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine, papermill_engines

    class Probed(PapermillNotebookClient):
        def papermill_execute_cells(self) -> None:
            super().papermill_execute_cells()
            sent = self.kc.execute("", silent=True, user_expressions={"usage": _PROBE})
            reply = self.wait_for_reply(sent)["content"]["user_expressions"]["usage"]
            if reply["status"] == "ok":
                self.usage.update(json.loads(ast.literal_eval(reply["data"]["text/plain"])))

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, *, env, cell_timeout, usage, start_timeout=60, **_) -> NotebookNode:
            client = Probed(nb_man, kernel_name=kernel_name, timeout=cell_timeout, startup_timeout=start_timeout, record_timing=False)
            client.usage = usage
            folder = Path(env["IPYTHONDIR"]).parent
            client.create_kernel_manager()
            if os.name == "posix":  # sockets in the file system: no ports to collide, nobody else can connect
                client.km.transport, client.km.connection_file = "ipc", str(folder / "kernel.json")
            with (folder / "kernel.log").open("wb") as log:
                return client.execute(env=env, stdout=log, stderr=log)

    papermill_engines.register("kexue", Engine)
    return "kexue"


def _without_error_markers(notebook: NotebookNode) -> NotebookNode:
    from papermill.execute import remove_error_markers

    return remove_error_markers(notebook)


def _first_line(text: str) -> str:
    return (str(text).strip().splitlines() or [""])[0][:300]
