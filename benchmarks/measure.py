"""Side-by-side measurement: the contenders take turns, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_FORGET_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Row:
    """One hot path: ``contenders`` maps a label to a function that prepares its data and returns the call to be timed; ours is first."""

    name: str
    title: str
    contenders: dict[str, Callable[[], Callable[[], Any]]]
    goal: str | None = None
    note: str = ""
    repeats: int = 9
    checks: Callable[[list[Any]], None] | None = field(default=None, compare=False)


def measure(row: Row, *, memory: bool = True) -> dict[str, Any]:
    """Median and quartiles of the seconds of each contender, ratios to ours, and the memory that each needs above its data."""
    calls = {label: prepare() for label, prepare in row.contenders.items()}
    results = [call() for call in calls.values()]  # warm-up; the contenders must agree before they are compared
    if row.checks is not None:
        row.checks(results)
    del results
    seconds: dict[str, list[float]] = {label: [] for label in calls}
    for _ in range(row.repeats):
        for label, call in calls.items():
            call()  # untimed: what the contender before it left in caches and heap must not count
            gc.collect()
            begun = time.perf_counter()
            call()
            seconds[label].append(time.perf_counter() - begun)
    entries = []
    for label, values in seconds.items():
        low, _, high = statistics.quantiles(values, n=4)
        entry = {"label": label, "median_s": statistics.median(values), "spread": [low, high]}
        entries.append(entry | ({"peak_mb": peak_memory(row.name, label)} if memory else {}))
    ours, *peers = entries
    for peer in peers:
        ratios = [p / o for p, o in zip(seconds[peer["label"]], seconds[ours["label"]], strict=True)]
        peer["ratio"] = statistics.median(ratios)
    result = {"name": row.name, "title": row.title, "ours": ours, "peers": peers, "note": row.note, "repeats": row.repeats}
    return rounded(result | {"ratio": min(peer["ratio"] for peer in peers)} | ({"goal": row.goal} if row.goal else {}))


def peak_memory(row: str, label: str) -> float:
    """Megabytes that one call needs above what was there before it, from the resident peak of a process of its own."""
    command = [sys.executable, "-m", "benchmarks", "--memory", row, label]
    return float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_memory(call: Callable[[], Any]) -> float:
    """Growth of this process's resident peak during one call, in megabytes.

    Where Linux lets the peak be forgotten this is a second call: the first also touches pages of the libraries' own code, up to ten
    megabytes that nobody works in.
    """
    if _FORGET_PEAK.exists():
        call()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # freed memory goes back to the system, where the C library can do that
            ctypes.CDLL(None).malloc_trim(0)
        _FORGET_PEAK.write_text("5")
    before = _resident_peak()
    call()
    return _resident_peak() - before


def _resident_peak() -> float:
    """Peak of resident memory in megabytes; Linux's own counter where there is one, because getrusage also counts the parent's past."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    import numpy
    import torch

    model = ""
    if Path("/proc/cpuinfo").exists():
        names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else ""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": model or platform.machine(), "cores": os.cpu_count(), "accelerator": accelerator, "versions": versions}


def rounded(value: Any) -> Any:
    """The same data with floats at three significant digits, which is more than a timing means."""
    if isinstance(value, float):
        return float(f"{value:.3g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def write(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
