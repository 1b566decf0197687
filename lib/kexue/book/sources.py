"""Where the chapters are, and what the result of a chapter depends on.

A result belongs to the source of its notebook, to the library modules that the notebook reaches by imports, to scale and seed, and to the
versions of the numerical packages. All of it goes into one key: as long as the key is the same, running again can only repeat the result.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

from nbformat import NotebookNode

__all__ = ["VERSIONED", "find_chapters", "library_digest", "result_key", "select", "versions"]

VERSIONED = ("torch", "numpy", "scipy", "matplotlib", "scikit-learn")
_LIBRARY = Path(__file__).resolve().parents[1]  # .../lib/kexue


def find_chapters(root: Path) -> dict[str, Path]:
    """The notebooks ``chapters/PART/SLUG.ipynb`` below ``root`` by slug. Raises ValueError if there is none or a slug occurs twice."""
    found: dict[str, Path] = {}
    for path in sorted((root / "chapters").glob("*/*.ipynb")):
        if path.stem in found:
            raise ValueError(f"two chapters have the slug {path.stem!r}: {found[path.stem]} and {path}")
        found[path.stem] = path
    if not found:
        raise ValueError(f"no chapter found: {root / 'chapters'} holds no PART/SLUG.ipynb")
    return found


def select(known: dict[str, Path], slugs: Sequence[str]) -> dict[str, Path]:
    """The chapters named by ``slugs``, all if there are none. Raises ValueError for unknown ones, naming the known."""
    if unknown := [slug for slug in slugs if slug not in known]:
        raise ValueError(f"unknown chapter {', '.join(map(repr, unknown))}; the chapters are {', '.join(sorted(known))}")
    return {slug: known[slug] for slug in dict.fromkeys(slugs)} if slugs else dict(sorted(known.items()))


def result_key(notebook: NotebookNode, scale: str, seed: int, evidence: bool = False) -> str:
    """Sixteen hexadecimal digits that change with whatever may change the result of running ``notebook`` (its outputs do not count)."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    other = [(cell.cell_type, cell.source, sorted(cell.metadata.get("tags", []))) for cell in notebook.cells]
    parts = [other, notebook.metadata.get("kexue"), library_digest(code), versions(), scale, seed, evidence]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def library_digest(cells: Iterable[str], library: Path = _LIBRARY) -> str:
    """Digest of the library files that the code in ``cells`` reaches by imports, directly or through other modules."""
    waiting = {name for source in cells for name in _imports(source, "")}
    reached: dict[str, bytes] = {}
    while waiting:
        name = waiting.pop()
        if name in reached or (path := _file(name, library)) is None:
            continue
        reached[name] = path.read_bytes()
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        waiting |= set(_imports(path.read_text(encoding="utf-8"), package)) | ({name.rpartition(".")[0]} if "." in name else set())
    digest = hashlib.sha256()
    for name in sorted(reached):
        digest.update(f"{name} {len(reached[name])}\n".encode() + reached[name])
    return digest.hexdigest()


@cache
def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """The versions of Python and of the numerical packages that are installed."""
    found = {"python": platform.python_version()} | {name: _installed(name) for name in VERSIONED}
    return {name: version for name, version in found.items() if version}


def _file(name: str, library: Path) -> Path | None:
    base = library.joinpath(*name.split(".")[1:])
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


def _imports(source: str, package: str) -> Iterator[str]:
    """Names of the library's modules that ``source`` may import; ``package`` resolves relative imports."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a cell that will fail when it is run
        return
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parent = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name.split(".")[0] == "kexue")
