"""One chapter in one kernel: what a worker does with a task.

papermill puts in the parameters and runs the cells in a fresh kernel with a fixed environment, in a fresh directory. Its own engine is
used with two changes: it gives the kernel that environment, and when the cells are done it asks the kernel for its device and peak memory.
"""

from __future__ import annotations

import ast
import json
import math
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from kexue.book import normalise, sources

__all__ = ["CELL_TIMEOUT", "Result", "Task", "first_line", "run_notebook"]

CELL_TIMEOUT = 3600.0  # seconds; a whole chapter takes a minute on a core, ten on a large accelerator
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
            outcome, message = "failed", f"cell {error.exec_count}: {error.ename}: {first_line(error.evalue)}"
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


def _kernel_environment(task: Task, folder: str) -> dict[str, str]:
    """The environment of the kernel: no progress bars, no plotting back end or start-up files of the user, fixed hashing, this library.

    Dask's threshold for returning memory is meant for workers; a kernel would spend a third of its time giving pages back.
    """
    env = {k: v for k, v in os.environ.items() if k not in ("MPLBACKEND", "KEXUE_EVIDENCE", "PYTHONSTARTUP", "MALLOC_TRIM_THRESHOLD_")}
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
            limit = math.ceil(cell_timeout)  # nbclient takes whole seconds
            client = Probed(nb_man, kernel_name=kernel_name, timeout=limit, startup_timeout=start_timeout, record_timing=False)
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


def first_line(text: str) -> str:
    """The first line of a message, shortened."""
    return (str(text).strip().splitlines() or [""])[0][:300]
