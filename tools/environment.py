"""Create and update ``.venv`` from ``requirements.lock``; needs nothing but Python itself.

    python3 tools/environment.py book          what `make book` needs: neither torch nor data packages
    python3 tools/environment.py book chapters test

An environment counts as finished only when its stamp names the extras and the lock's hash; a step that fails removes the stamp, says in
one line what went wrong and exits with status 2.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import lock  # noqa: E402

MINIMUM_PYTHON = (3, 11)
DISK_NEEDED = {"book": 1.0, "other": 4.0}  # GB: measured 0.4 and 2.3, with room for pip's unpacking


class Refused(Exception):
    """The environment cannot be made; the message is one line that says why and what to do."""


def main(extras: list[str], root: Path = ROOT) -> Path:
    """Bring ``root/.venv`` up to date with the lock for ``extras`` and return the path of its Python."""
    unknown = sorted(set(extras) - set(lock.EXTRAS))
    if unknown or not extras:
        raise Refused(f"unknown extras {' '.join(unknown) or '(none given)'}; known are {' '.join(lock.EXTRAS)}")
    if sys.version_info < MINIMUM_PYTHON:
        raise Refused(
            f"Python {'.'.join(map(str, MINIMUM_PYTHON))} or newer is needed, not {sys.version.split()[0]}: try `make PYTHON=python3.11`"
        )
    environment = root / ".venv"
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = environment / "finished.json"
    digest = hashlib.sha256((root / "requirements.lock").read_bytes() + (root / "pyproject.toml").read_bytes()).hexdigest()
    state = json.loads(stamp.read_text()) if stamp.exists() else {}
    have = set(state.get("extras", [])) if state.get("lock") == digest and state.get("python") == sys.version else set()
    if set(extras) <= have and python.exists():
        return python
    check_disk(root, extras)
    stamp.unlink(missing_ok=True)
    wanted = sorted(have | set(extras), key=lock.EXTRAS.index)
    if not python.exists() or state.get("python", sys.version) != sys.version:
        say("creating .venv")
        shutil.rmtree(environment, ignore_errors=True)
        venv.EnvBuilder(with_pip=True, symlinks=os.name != "nt").create(environment)
    if set(wanted) - {"book"}:
        say("installing torch")
        pip(python, "install", lock.TORCH)
    pinned = lock.select(root / "requirements.lock", wanted)
    say(f"installing {pinned.count('==')} locked packages ({', '.join(wanted)})")
    with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as file:
        file.write(pinned)
    try:
        pip(python, "install", "--no-deps", "--require-hashes", "-r", file.name)
    finally:
        os.unlink(file.name)
    pip(python, "install", "--no-deps", "--no-build-isolation", "--editable", str(root))
    stamp.write_text(json.dumps({"extras": wanted, "lock": digest, "python": sys.version}, indent=1))
    return python


def check_disk(root: Path, extras: list[str]) -> None:
    """Refuse to begin where the disk has no room for what is to be installed."""
    needed = DISK_NEEDED["book" if set(extras) == {"book"} else "other"]
    free = shutil.disk_usage(root).free / 1e9
    if free < needed:
        raise Refused(f"the disk has {free:.1f} GB free and the environment needs {needed:.0f} GB: make room and run this again")


def pip(python: Path, *arguments: str) -> None:
    """Run pip quietly; on failure raise Refused with the reason in one line."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise Refused(reason(result.stderr + result.stdout))


def reason(output: str) -> str:
    """One line that says why pip failed, from what it printed."""
    if "No space left on device" in output:
        return "the disk is full: make room and run this again (nothing unfinished counts as installed)"
    network = (
        "NewConnectionError",
        "ConnectionError",
        "Temporary failure in name resolution",
        "Network is unreachable",
        "ProxyError",
        "ReadTimeout",
    )
    if any(word in output for word in network):
        return "the package index cannot be reached: connect to the network (or point pip at a mirror) and run this again"
    if "DO NOT MATCH THE HASHES" in output:
        return "a package does not match its hash in requirements.lock: the index serves another file than the one that was verified"
    errors = [line for line in output.splitlines() if line.lower().startswith("error")]
    return f"pip failed: {(errors or output.strip().splitlines() or ['no output'])[-1]}"  # the last error is the verdict


def say(message: str) -> None:
    print(f"environment: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        print(main(sys.argv[1:]))
    except Refused as problem:
        say(str(problem))
        sys.exit(2)
    except OSError as problem:  # the disk filled up while the environment itself was written
        say(f"cannot write the environment: {problem}")
        sys.exit(2)
