"""Imports of a piece of code, and whether they can be resolved, without executing anything."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

__all__ = ["imported", "resolvable"]


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names that the code imports: modules, members of the book's library, and ``module.*`` for a star import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            own = node.module.split(".")[0] == "kexue"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if own or alias.name == "*")


@cache
def resolvable(name: str) -> bool:
    """Whether ``name`` is an installed module, or a name that a module of the library defines; nothing is executed."""
    places: Sequence[str] | None = None
    parts = name.split(".")
    if parts[0] in sys.stdlib_module_names:
        return True
    for i in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: i + 1]), places)
        if spec is None:
            return i == len(parts) - 1 and i > 0 and _defines(places, parts[-1])
        places = spec.submodule_search_locations or ([spec.origin] if spec.origin else [])
    return True


def _defines(places: Sequence[str] | None, name: str) -> bool:
    """Whether the module at ``places`` (a package's folders, or one file) has ``name`` at its top level."""
    for place in map(Path, places or []):
        file = place / "__init__.py" if place.is_dir() else place
        if file.suffix == ".py" and file.is_file():
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                names = [alias.asname or alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)]
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                names += [n.id for t in targets if t for n in ast.walk(t) if isinstance(n, ast.Name)]
                if name in names or getattr(node, "name", None) == name:
                    return True
    return False
