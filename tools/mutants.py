"""The test of the tests: plant faults in the library and count which ones the unit tests catch, and which ones the claims alone.

    python tools/mutants.py                          every module that a chapter imports
    python tools/mutants.py f-gan --sample 30        the modules of one chapter, thirty faults each

A fault is one small change of the program: another arithmetic operator, another comparison, a constant off by one or by a fifth, a negated
condition, a swapped pair of arguments. Each is planted in a copy of the tree. "Unit" says that the module's tests fail; "claims" that the
chapter, run at the scale ``smoke``, refutes one of its claims; "stopped" that the chapter fails in any way. Docstrings, annotations and
messages are not touched. Some faults change nothing that anybody could see (a tolerance, a chunk size); they count as missed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.MatMult: ast.Mult}
COMPARISONS = {ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot}
UNIT_LIMIT, CLAIM_LIMIT = 180, 240  # seconds; a fault that makes the run endless is caught


@dataclass(frozen=True)
class Mutant:
    """One planted fault: the module, its whole text with the fault, and what was done where."""

    module: Path
    text: str
    what: str


def mutants(module: Path) -> list[Mutant]:
    """All single faults of one module, in the order of its lines."""
    tree = ast.parse(module.read_text())
    found = []
    for index, node in enumerate(_places(tree)):
        for variant, what in enumerate(_changes(node)):
            twin = copy.deepcopy(tree)
            list(_changes(list(_places(twin))[index], variant))
            found.append(Mutant(module, ast.unparse(twin), f"line {node.lineno}: {what}"))
    return found


def _places(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that faults can be planted in; what only describes the program is left out."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            parts = [node.returns, *(a.annotation for a in [*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs])]
            parts += node.decorator_list
        elif isinstance(node, ast.AnnAssign):
            parts = [node.annotation]
        elif isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom) or _describes(node):
            parts = [node]
        for part in parts:
            skipped.update(id(n) for n in ast.walk(part or ast.Pass()))
    for node in ast.walk(tree):
        if id(node) not in skipped and hasattr(node, "lineno"):
            yield node


def _describes(node: ast.AST) -> bool:
    """Whether the node lists what is public or names a type."""
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
    return isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "TypeVar"


def _changes(node: ast.AST, apply: int | None = None) -> Iterator[str]:
    """Describe the faults that ``node`` offers; with ``apply`` also plant that one."""
    options: list[tuple[str, str, object]] = []
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS and not _is_text(node):
        other = OPERATORS[type(node.op)]
        options.append((f"{type(node.op).__name__} -> {other.__name__}", "op", other()))
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        other = COMPARISONS[type(node.ops[0])]
        options.append((f"{type(node.ops[0]).__name__} -> {other.__name__}", "ops", [other()]))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        options.append(("-x -> +x", "op", ast.UAdd()))
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        options.append((f"{node.value} -> {not node.value}", "value", not node.value))
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        options.append((f"{node.value} -> {node.value + 1}", "value", node.value + 1))
    elif isinstance(node, ast.Constant) and isinstance(node.value, float):
        options.append((f"{node.value} -> {1.2 * node.value + 0.2}", "value", 1.2 * node.value + 0.2))
    elif isinstance(node, ast.IfExp | ast.If):
        options.append(("condition negated", "test", ast.UnaryOp(ast.Not(), node.test)))
    elif isinstance(node, ast.Call) and len(node.args) == 2 and not node.keywords and not isinstance(node.args[1], ast.Starred):
        options.append((f"arguments of {ast.unparse(node.func)} swapped", "args", node.args[::-1]))
    for number, (what, attribute, value) in enumerate(options):
        if number == apply:
            setattr(node, attribute, value)
            ast.fix_missing_locations(node)
        yield what


def _is_text(node: ast.BinOp) -> bool:
    return any(isinstance(n, ast.JoinedStr) or (isinstance(n, ast.Constant) and isinstance(n.value, str)) for n in ast.walk(node))


def chapters_of(root: Path) -> dict[str, list[Path]]:
    """Which chapter imports which modules of the library, itself or through them; the book's own machinery and data are left out."""
    found = {}
    for notebook in sorted(root.glob("chapters/*/*.ipynb")):
        cells = json.loads(notebook.read_text())["cells"]
        todo = {m for cell in cells if cell["cell_type"] == "code" for m in _imports("".join(cell["source"]))}
        modules: set[Path] = set()
        while todo:
            name = todo.pop()
            place = root / "lib" / name.replace(".", "/")
            path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            if path.exists() and path not in modules and not name.startswith(("kexue.book", "kexue.data")):
                modules.add(path)
                todo |= set(_imports(path.read_text()))
        found[notebook.stem] = sorted(path for path in modules if path.stem != "__init__")
    return found


def _imports(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("kexue"):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("kexue"))


def tests_of(root: Path, module: Path) -> list[str]:
    """The unit tests that import the module or are named after it."""
    folder = root / "tests" / module.parent.relative_to(root / "lib/kexue")
    dotted = ".".join(module.relative_to(root / "lib").with_suffix("").parts)
    named = [p for p in folder.glob("test_*.py") if p.stem.startswith(f"test_{module.stem.lstrip('_')}")]
    using = [p for p in folder.glob("test_*.py") if re.search(rf"{re.escape(dotted)}\b", p.read_text())]
    return [str(p.relative_to(root)) for p in (named or using or sorted(folder.glob("test_*.py")))]


def judge(mutant: Mutant, tests: list[str], chapter: str) -> dict[str, object]:
    """Plant the fault in a copy of the tree; run the tests, then the chapter."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("lib", "tests", "chapters", "data", "pyproject.toml"):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__", "site", "*.egg-info"))
                if name == "lib":  # the site's package is imported by nothing here, but belongs to the library
                    shutil.copytree(source / "kexue/book/site", root / "lib/kexue/book/site", dirs_exist_ok=True)
            elif source.exists():
                shutil.copy(source, root / name)
        (root / mutant.module.relative_to(ROOT)).write_text(mutant.text)
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "KEXUE_PROGRESS": "0"}
        environment = os.environ | threads | {"PYTHONPATH": str(root / "lib"), "PYTHONDONTWRITEBYTECODE": "1"}
        unit, _ = _run([sys.executable, "-m", "pytest", "-x", "-q", "--no-header", *tests], root, environment, UNIT_LIMIT)
        notebook = next(root.glob(f"chapters/*/{chapter}.ipynb"))
        command = [sys.executable, "-m", "papermill", "-p", "scale", "smoke", "--no-progress-bar", str(notebook), str(root / "out.ipynb")]
        stopped, output = _run(command, root, environment, CLAIM_LIMIT)
    return {"what": mutant.what, "unit": unit, "claims": stopped and "ClaimFailed" in output, "stopped": stopped}


def _run(command: list[str], root: Path, environment: dict[str, str], limit: int) -> tuple[bool, str]:
    """Whether the command failed (or did not end), and what it printed."""
    try:
        result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return True, "timeout"
    return result.returncode != 0, result.stdout + result.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*", help="slugs; all if none is named")
    parser.add_argument("--sample", type=int, default=12, help="faults per module (default 12)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    known = chapters_of(ROOT)
    if unknown := sorted(set(options.chapters) - set(known)):
        parser.error(f"unknown chapter {', '.join(unknown)}; known are {', '.join(known)}")
    work, seen = [], set()
    for slug in options.chapters or known:
        for module in known[slug]:
            if module not in seen:  # a module of several chapters is judged by the first
                seen.add(module)
                every = mutants(module)
                chosen = random.Random(f"{options.seed} {module.name}").sample(every, min(options.sample, len(every)))
                work += [(mutant, tests_of(ROOT, module), slug) for mutant in chosen]
    report: dict[str, list[dict[str, object]]] = {}
    output = ROOT / "_build" / "mutants.json"
    output.parent.mkdir(exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = pool.map(lambda item: (item[0], judge(*item)), work)
        for mutant, verdict in tqdm(jobs, total=len(work), desc="mutants"):
            report.setdefault(str(mutant.module.relative_to(ROOT / "lib")), []).append(verdict)
            output.write_text(json.dumps(report, indent=1))
    print(f"\n{'module':45} faults   unit  claims  stopped")
    for name, rows in report.items():
        share = {key: sum(bool(r[key]) for r in rows) / len(rows) for key in ("unit", "claims", "stopped")}
        print(f"{name:45} {len(rows):6d}  {share['unit']:5.0%}  {share['claims']:6.0%}  {share['stopped']:7.0%}")
        for row in rows:
            if not row["unit"]:
                print(f"    missed by the tests: {row['what']}")


if __name__ == "__main__":
    main()
