"""Write and read ``requirements.lock``: exact versions with hashes of everything but torch, each marked with the extras that need it.

    python tools/lock.py write               resolve anew (needs the network); writes environment.yml and requirements-colab.txt too
    python tools/lock.py select book test    print the part of the lock that these extras need

torch is left out because its CPU and GPU builds have different files: it is installed first, at the version that tools/environment.py pins.
Packages of ``tool.kexue.no-deps`` (data and peers whose own requirements are wrong or enormous) are locked without their requirements;
since the lock is complete, everything is installed with ``--no-deps``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch==2.13.0"
EXTRAS = ("book", "chapters", "test", "dev", "weights")
CORE = "core"  # the library's own dependencies: needed by every extra but `book`
MARK = "    # for: "
HEADER = "# Written by `make lock`. Exact versions and hashes of a verified set; `# for:` names the extras that need a package.\n"
COLAB_LACKS = ("jaxtyping", "jplephem", "sgp4", "skyfield", "wadler-lindig")
BUILD = ("setuptools",)  # builds the sdists and the editable install, without a download of its own


def blocks(text: str) -> dict[str, str]:
    """The lock as a mapping from ``name==version`` to its lines, hashes and marks included."""
    found: dict[str, str] = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", "\n" + text):
        match = re.match(r"\n?([A-Za-z0-9_.\-]+==[^\s\\;]+)", block)
        if match:
            found[match[1]] = block.strip("\n") + "\n"
    return found


def select(path: Path, extras: Iterable[str]) -> str:
    """The lines of the lock at ``path`` that ``extras`` need; every extra but ``book`` also needs the library's own dependencies."""
    wanted = set(extras) | ({CORE} if set(extras) - {"book"} else set())
    return "".join(block for block in blocks(path.read_text()).values() if wanted & marks(block))


def marks(block: str) -> set[str]:
    return set(match[1].split()) if (match := re.search(rf"^{MARK}(.+)$", block, flags=re.M)) else set()


def write() -> None:
    """Resolve all extras together, find out which extra needs what, and write the three files."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    no_deps: dict[str, list[str]] = project["tool"]["kexue"]["no-deps"]
    direct = {CORE: project["project"]["dependencies"], **project["project"]["optional-dependencies"]}
    everything, dependents = compile_lock([line for lines in direct.values() for line in lines] + list(BUILD))
    needs: dict[str, set[str]] = {name: set() for name in everything}
    for extra, lines in direct.items():
        for name in closure({project_name(line) for line in [*lines, *BUILD]}, dependents):
            needs[name].add(extra)
    for extra, lines in no_deps.items():
        for name in lines:
            everything[name] = hashed(name)
            needs.setdefault(name, set()).add(extra)
    entries = [f"{everything[name].rstrip()}\n{MARK}{' '.join(sorted(needs[name]))}\n" for name in sorted(everything, key=str.lower)]
    (ROOT / "requirements.lock").write_text(HEADER + "".join(entries))
    derive()


def derive(root: Path = ROOT) -> dict[str, str]:
    """environment.yml and requirements-colab.txt, which follow from the lock; written below ``root`` and returned."""
    project = tomllib.loads((root / "pyproject.toml").read_text())
    locked = {name: marks(block) for name, block in blocks((root / "requirements.lock").read_text()).items()}
    free = {project_name(line) for lines in project["tool"]["kexue"]["no-deps"].values() for line in lines}
    resolved = [name for name, needed in locked.items() if project_name(name) not in free and needed & {CORE, "book", "chapters", "test"}]
    conda = [
        "# Written by `make lock`: the versions of requirements.lock for conda. Afterwards, in the new environment, install the data",
        "# packages, which come without their own requirements, and the library:",
        "#   python tools/lock.py select chapters > locked.txt",
        "#   pip install --no-deps --require-hashes -r locked.txt && pip install --no-deps -e .",
        "name: kexue",
        "channels: [conda-forge, nodefaults]",
        "dependencies:",
        "  - python=3.11",
        "  - pip",
        "  - make",
        "  - pip:",
        *(f"      - {name}" for name in [TORCH, *resolved]),
    ]
    colab = [
        "# Written by `make lock`: what Google's Colab lacks; installed with --no-deps so that its own torch and CUDA stay.",
        f"kexue @ git+https://github.com/scientific-spaces/executed@v{project['project']['version']}",
        *(name for name in locked if project_name(name) in COLAB_LACKS or name in project["tool"]["kexue"]["no-deps"]["chapters"]),
    ]
    files = {"environment.yml": "\n".join(conda) + "\n", "requirements-colab.txt": "\n".join(colab) + "\n"}
    for name, text in files.items():
        (root / name).write_text(text)
    return files


def compile_lock(lines: list[str]) -> tuple[dict[str, str], dict[str, set[str]]]:
    """Resolve requirement ``lines`` with pip-tools: the blocks of the result, and for each the names of the projects that need it."""
    with tempfile.TemporaryDirectory() as folder:
        given, fixed, out = (Path(folder, name) for name in ("given.in", "fixed.txt", "out.txt"))
        given.write_text("\n".join(lines) + "\n")
        fixed.write_text(TORCH + "\n")
        command = [
            sys.executable,
            "-m",
            "piptools",
            "compile",
            "--quiet",
            "--generate-hashes",
            "--strip-extras",
            "--allow-unsafe",
            "--no-header",
        ]
        command += ["--no-emit-index-url", "--no-emit-find-links", "--constraint", str(fixed), "--output-file", str(out), str(given)]
        subprocess.run(command, check=True)
        found = blocks(out.read_text())
    found = {name: block for name, block in found.items() if not re.match(r"(pip|triton|nvidia-.*|cuda-.*)==", name)}
    via = {
        name: {project_name(word) for word in re.findall(r"^    # (?:via)? *([A-Za-z0-9][\w.\-]*)$", block, flags=re.M)}
        for name, block in found.items()
    }
    clean = {name: "".join(line + "\n" for line in block.splitlines() if not line.startswith("    #")) for name, block in found.items()}
    return {name: block for name, block in clean.items() if not name.startswith("torch==")}, via


def closure(roots: set[str], dependents: dict[str, set[str]]) -> set[str]:
    """The locked names that the projects ``roots`` are or need, directly or through others."""
    reached: set[str] = set()
    while fresh := {n for n, users in dependents.items() if n not in reached and (project_name(n) in roots or users & roots)}:
        reached |= fresh
        roots = roots | {project_name(name) for name in fresh}
    return {name for name in reached if not name.startswith("torch==")}


def project_name(requirement: str) -> str:
    """The normalized project name at the beginning of a requirement."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s=<>~!\[;@]", requirement)[0]).lower()


def hashed(requirement: str) -> str:
    """The lock block of one exact requirement of a pure-Python package: one file, whatever the platform, hence one hash."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--dry-run",
        "--no-deps",
        "--ignore-installed",
        "--report",
        "-",
        requirement,
    ]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    (item,) = report["install"]
    return f"{requirement} \\\n    --hash=sha256:{item['download_info']['archive_info']['hashes']['sha256']}\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["write"]:
        write()
    elif len(sys.argv) > 2 and sys.argv[1] == "select" and set(sys.argv[2:]) <= set(EXTRAS):
        sys.stdout.write(select(ROOT / "requirements.lock", sys.argv[2:]))
    else:
        sys.exit(f"usage: lock.py write | lock.py select EXTRA...  (extras: {' '.join(EXTRAS)})")
