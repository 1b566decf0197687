"""Build the site: ``python -m kexue.book.site build``. Nothing is executed; a warning is an error."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["build", "main"]

OUTPUTS = ("html", ".doctrees", "jupyter_execute")
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def build(root: Path) -> int:
    """Build ``_build/html`` below ``root`` from nothing and return the exit status; what failed is said in one line each."""
    target = root / "_build"
    for stale in (*(target / name for name in OUTPUTS), root / "api"):  # a build over an old one hides warnings
        shutil.rmtree(stale, ignore_errors=True)
    started = time.monotonic()
    library = str(root / "lib")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([library, *filter(None, [os.environ.get("PYTHONPATH")])])}
    start = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", start, "build", "-W", "-n", "--keep-going", str(root)]
    print("building the book ...", flush=True)
    run = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    output = ESCAPES.sub("", run.stdout)
    page = target / "html" / "index.html"
    if run.returncode == 0 and page.is_file():
        print(f"built in {time.monotonic() - started:.0f} s; open {page.as_uri()}")
        return 0
    if os.strerror(errno.ENOSPC) in output:
        print("the disk is full: free some space and run it again", file=sys.stderr)
    else:
        complaints = [line for line in output.splitlines() if re.search(r"WARNING|ERROR|Error:", line)]
        print("\n".join(complaints or output.splitlines()[-20:]), file=sys.stderr)
        print(f"the book has {len(complaints)} warnings or errors; none is allowed", file=sys.stderr)
    shutil.rmtree(target / "html", ignore_errors=True)  # no half-built book that looks finished
    return run.returncode or 1


def main(arguments: list[str]) -> int:
    """Run the command line; anything but ``build`` is refused."""
    if arguments != ["build"]:
        print("usage: python -m kexue.book.site build", file=sys.stderr)
        return 2
    root = Path.cwd()
    if not (root / "_config.yml").is_file():
        print(f"{root} is not the root of the book: it has no _config.yml", file=sys.stderr)
        return 2
    return build(root)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
