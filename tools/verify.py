"""Everything `make test` promises, stage by stage, with a progress bar, a summary and an honest exit status.

Each stage writes its whole output to ``_build/test/STAGE.log``; what failed is printed. Name stages to run only those:
``python tools/verify.py lint unit``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "_build" / "test"
PYTEST = [sys.executable, "-m", "pytest", "-q", "-ra", "--durations=10"]
WORKERS = str(os.cpu_count() or 1)

STAGES: dict[str, list[list[str]]] = {
    "lint": [[sys.executable, "-m", "ruff", "check", "."], [sys.executable, "-m", "ruff", "format", "--check", "."]],
    "static": [[sys.executable, "-m", "kexue.book", "check"]],
    "unit": [
        [
            *PYTEST,
            "tests",
            "--ignore=tests/site",
            "-n",
            WORKERS,
            "--dist",
            "worksteal",
            "--cov=kexue",
            "--cov-report=term:skip-covered",
            "--cov-fail-under=95",
        ]
    ],
    "nbval": [
        [
            *PYTEST,
            "--nbval",
            "--nbval-sanitize-with=tests/nbval_sanitize.cfg",
            "--nbval-cell-timeout=600",
            "chapters",
            "-n",
            WORKERS,
            "--dist",
            "loadfile",
        ]
    ],
    "papermill": [[sys.executable, "-m", "kexue.book", "execute", "--check", "--scale", "smoke", "--seed", "1"]],
    "site": [[sys.executable, "-m", "kexue.book.site", "build"], [*PYTEST, "tests/site", "-n", WORKERS]],
}


def main(names: list[str]) -> int:
    """Run the stages; return the number that failed."""
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        print(f"unknown stage {', '.join(unknown)}; known are {', '.join(STAGES)}", file=sys.stderr)
        return 2
    LOGS.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"KEXUE_PROGRESS": "0", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    rows: list[tuple[str, bool, float, str]] = []
    bar = tqdm(names or list(STAGES), bar_format="{l_bar}{bar:30}| {n_fmt}/{total_fmt} [{elapsed}]", file=sys.stderr)
    for name in bar:
        bar.set_description(f"{name:9}")
        log, begun, passed = LOGS / f"{name}.log", time.monotonic(), True
        with log.open("w") as file:
            for command in STAGES[name]:
                file.write(f"$ {' '.join(command)}\n")
                file.flush()
                passed &= subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode == 0
        rows.append((name, passed, time.monotonic() - begun, closing_line(log)))
        if not passed:
            tqdm.write(f"--- {name} failed; the end of {log.relative_to(ROOT)}:\n" + "\n".join(log.read_text().splitlines()[-80:]))
    failed = sum(not passed for _, passed, _, _ in rows)
    print("\nstage      result   seconds  summary")
    for name, passed, seconds, line in rows:
        print(f"{name:9}  {'passed' if passed else 'FAILED'}  {seconds:8.1f}  {line}")
    print(f"\nstages: {len(rows) - failed} passed, {failed} failed")
    return failed


def closing_line(log: Path) -> str:
    """The line that says most about a stage: pytest's counts if there are any, else the last line written."""
    lines = [line.strip("= ") for line in log.read_text().splitlines() if line.strip()]
    counts = [line for line in lines if re.search(r"\d+ (passed|failed)", line)]
    total = [line for line in lines if line.startswith("TOTAL")]
    return " · ".join([*(counts or lines)[-1:], *(f"coverage {line.split()[-1]}" for line in total[-1:])])[:150]


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
