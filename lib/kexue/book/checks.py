"""Static checks of the committed notebooks: what can be seen to be wrong without running anything.

Each check is a function from a chapter to findings; a finding names the file, the cell, what is wrong and how to mend it. Execution is
looked at first, because a notebook that was not run in order proves nothing, whatever else it says.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nbformat import NotebookNode

from kexue.book import normalise
from kexue.book.context import CHAPTERS

__all__ = ["PARAMETERS", "SETUP", "Finding", "Notebook", "check", "check_notebook"]

PARAMETERS = 'scale = "cpu"  # "smoke", "cpu" or "gpu"\nseed = 0'
SETUP = """import sys

if "google.colab" in sys.modules:  # keep Colab's own torch and add only what it lacks
    import subprocess

    source = "https://raw.githubusercontent.com/scientific-spaces/executed/v0.1.0/requirements-colab.txt"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "-r", source], check=True)

from kexue.book import chapter, glue

ch = chapter("{slug}", scale=scale, seed=seed)"""

FEWEST_CLAIMS, LONGEST_CELL, LARGEST_OUTPUT = 5, 20, 1_000_000
FORBIDDEN = (
    "obviously",
    "simply",
    "it is easy to see",
    "easy to see",
    "state of the art",
    "coming soon",
    "/work/",
    "/home/",
    "/tmp/",
    "/root/",
)
_DECIMAL = re.compile(r"(?<![\w.\-/:])\d+\.\d{3,}(?![\w.]*\d*[/.])")
_LABEL = re.compile(r"^:(?:label|name): *(\S+)|\(((?:eq|fig|thm|ex)-[\w-]+)\)\s*$|^\(([\w-]+)\)=", flags=re.M)
_REFERENCE = re.compile(r"\{(?:prf:ref|eq|numref|ref)\}`(?:[^`<]*<)?([\w-]+)>?`")


@dataclass(frozen=True, order=True)
class Finding:
    """Something wrong in one cell (0 for the whole notebook), with the way to mend it."""

    path: str
    cell: int
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}, cell {self.cell}: {self.problem} — {self.remedy}"


@dataclass(frozen=True)
class Notebook:
    """A chapter as the checks see it."""

    slug: str
    path: Path
    content: NotebookNode

    @cached_property
    def code(self) -> list[tuple[int, NotebookNode]]:
        return [(i, cell) for i, cell in enumerate(self.content.cells, 1) if cell.cell_type == "code"]

    @cached_property
    def prose(self) -> list[tuple[int, str]]:
        return [(i, cell.source) for i, cell in enumerate(self.content.cells, 1) if cell.cell_type == "markdown"]

    @cached_property
    def outputs(self) -> list[tuple[int, NotebookNode]]:
        return [(i, output) for i, cell in self.code for output in cell.outputs]

    @cached_property
    def claims(self) -> list[tuple[int, str]]:
        found = ((i, output.get("metadata", {}).get("kexue", {}).get("claim", {}).get("id")) for i, output in self.outputs)
        return [(i, name) for i, name in found if name]


def check(root: Path, chapters: Mapping[str, Path]) -> list[Finding]:
    """All findings in ``chapters`` (paths by slug), and claim ids that occur in two of them."""
    notebooks = [Notebook(slug, path, normalise.read(path)) for slug, path in chapters.items()]
    findings = [finding for notebook in notebooks for finding in check_notebook(notebook, root)]
    owners: dict[str, str] = {}
    for notebook in notebooks:
        for cell, name in notebook.claims:
            if owners.setdefault(name, notebook.slug) != notebook.slug:
                where = str(notebook.path)
                findings.append(
                    Finding(where, cell, f"claim id {name!r} is taken by {owners[name]}", "claim ids are unique in the whole book")
                )
    return sorted(findings)


def check_notebook(notebook: Notebook, root: Path = Path()) -> list[Finding]:
    """All findings in one chapter."""
    path = notebook.path
    where = str(path.relative_to(root) if path.is_absolute() and path.is_relative_to(root) else path)
    return [Finding(where, cell, problem, remedy) for one in CHECKS for cell, problem, remedy in one(notebook)]


Findings = Iterator[tuple[int, str, str]]


def _executed(notebook: Notebook) -> Findings:
    for expected, (i, cell) in enumerate(notebook.code, 1):
        if cell.execution_count != expected:
            yield i, f"execution count {cell.execution_count}, expected {expected}", "execute the chapter: make execute"
            return


def _clean(notebook: Notebook) -> Findings:
    for i, output in notebook.outputs:
        if output.output_type == "error":
            yield i, f"the cell raised {output.ename}", "mend the cell and execute the chapter"
        if output.get("name") == "stderr":
            yield i, f"stderr: {output.text.strip()[:80]!r}", "a warning is a defect: remove its cause"
    size = len(json.dumps([output for _, output in notebook.outputs]))
    if size > LARGEST_OUTPUT:
        yield 0, f"outputs of {size / 1e6:.1f} MB", "keep them under 1 MB: smaller figures, shorter curves, no long prints"


def _frame(notebook: Notebook) -> Findings:
    for tag, wanted in (("parameters", PARAMETERS), ("setup", SETUP.format(slug=notebook.slug))):
        cells = [(i, cell) for i, cell in notebook.code if tag in cell.metadata.get("tags", [])]
        if len(cells) != 1:
            yield 0, f"{len(cells)} cells tagged {tag!r}", "there is exactly one"
        elif cells[0][1].source != wanted:
            yield cells[0][0], f"the cell tagged {tag!r} differs from the template", f"it reads, to the letter:\n{wanted}\n"
    metadata = notebook.content.metadata.get("kexue", {})
    missing = [key for key in ("slug", "part", "question", "summary", "original") if not metadata.get(key)]
    missing += [f"original.{key}" for key in ("title", "english", "date", "url") if not metadata.get("original", {}).get(key)]
    if missing:
        yield 0, f"notebook metadata 'kexue' lacks {', '.join(missing)}", "cards, citation and landing page are made from it"
    elif (
        metadata.slug != notebook.slug or notebook.slug not in CHAPTERS.get(metadata.part, ()) or metadata.part != notebook.path.parent.name
    ):
        yield 0, f"metadata says {metadata.part}/{metadata.slug}", "slug and part are those of the file and of the book's plan"


def _code(notebook: Notebook) -> Findings:
    for i, cell in notebook.code:
        lines = [line for line in cell.source.splitlines() if line.strip()]
        if len(lines) > LONGEST_CELL and "setup" not in cell.metadata.get("tags", []):
            yield i, f"{len(lines)} lines of code", f"at most {LONGEST_CELL}: what is longer belongs into the library"
        if re.search(r"^\s*[!%]", cell.source, flags=re.M):
            yield i, "a shell command or magic", "plain Python runs everywhere"
            continue
        for node in ast.walk(ast.parse(cell.source)):
            names = (
                [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names] if isinstance(node, ast.Import) else []
            )
            if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
                yield i, f"from {node.module} import *", "name what is imported"
            for name in names:
                if name and not _exists(name):
                    yield i, f"module {name} cannot be found", "add its package to the extra 'chapters' and to the lock"
            if isinstance(node, ast.ExceptHandler) and all(isinstance(line, ast.Pass) for line in node.body):
                yield i, "a silent except", "let the error be seen"


def _figures(notebook: Notebook) -> Findings:
    for i, cell in notebook.code:
        if not any("image/png" in output.get("data", {}) for output in cell.outputs):
            continue
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if len(alt) < 15 or re.search(r"\.(png|svg)$|^_?images?/", alt):
            yield i, f"alt text {alt!r}", "say in cell metadata mystnb.image.alt what one sees"


def _glue(notebook: Notebook) -> Findings:
    defined: Counter[str] = Counter()
    for i, output in notebook.outputs:
        if name := output.get("metadata", {}).get("scrapbook", {}).get("name"):
            defined[name] += 1
            if not name.startswith(f"{notebook.slug}-"):
                yield i, f"glued key {name!r}", f"keys begin with {notebook.slug}-"
            if defined[name] == 2:
                yield i, f"key {name!r} is glued twice", "the later value would win silently"
    used = {key for _, text in notebook.prose for key in re.findall(r"\{glue:\w*\}`([^`:]+)", text)}
    for i, text in notebook.prose:
        for key in re.findall(r"\{glue:\w*\}`([^`:]+)", text):
            if key not in defined:
                yield i, f"glued key {key!r} is not defined", "glue it in a cell of this chapter"
    for key in sorted(defined.keys() - used):
        yield 0, f"glued key {key!r} is never used", "use it in the prose or do not glue it"


def _claims(notebook: Notebook) -> Findings:
    if len(notebook.claims) < FEWEST_CLAIMS:
        yield 0, f"{len(notebook.claims)} claims", f"a chapter proves at least {FEWEST_CLAIMS}"
    for name, count in Counter(name for _, name in notebook.claims).items():
        if count > 1 or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
            yield 0, f"claim id {name!r} occurs {count} times", "ids are unique, lower-case words joined by hyphens"


def _labels(notebook: Notebook) -> Findings:
    labels: Counter[str] = Counter()
    for i, text in notebook.prose:
        for match in _LABEL.finditer(text):
            name = next(filter(None, match.groups()))
            labels[name] += 1
            if not re.fullmatch(rf"(thm|eq|fig|ex|sec|tab)-{re.escape(notebook.slug)}-[\w-]+", name):
                yield i, f"label {name!r}", f"labels are thm-, eq-, fig- or ex-{notebook.slug}-name"
    for i, cell in notebook.code:
        if name := cell.metadata.get("mystnb", {}).get("figure", {}).get("name"):
            labels[name] += 1
            if not name.startswith(f"fig-{notebook.slug}-"):
                yield i, f"figure name {name!r}", f"names of figures begin with fig-{notebook.slug}-"
    for name, count in labels.items():
        if count > 1:
            yield 0, f"label {name!r} is defined {count} times", "labels are unique"
    for i, text in notebook.prose:
        for name in _REFERENCE.findall(text):
            if notebook.slug in name and name not in labels:
                yield i, f"reference to {name!r}, which is not defined", "refer to a label of this chapter"


def _prose(notebook: Notebook) -> Findings:
    for i, text in notebook.prose:
        plain = plain_text(text)
        for number in _DECIMAL.findall(plain):
            yield i, f"typed decimal {number}", "glue what the chapter computes; put definitions into mathematics"
        for word in FORBIDDEN:
            if re.search(rf"(?<!\w){re.escape(word)}(?!\w)" if word.isalpha() else re.escape(word), plain, flags=re.I):
                yield i, f"{word!r}", "say why instead, or leave it out"


def plain_text(markdown: str) -> str:
    """The words of a Markdown cell without mathematics, code, roles, link targets and lines that are quoted with a citation."""
    text = re.sub(r"```+ *\{(?:code|math|literalinclude|bibliography)[\s\S]*?```+|\$\$[\s\S]*?\$\$", " ", markdown)
    text = re.sub(r"```(?!\{)[\s\S]*?```|(?<!\\)\$[^$]*\$|\{[\w:.-]+\}`[^`]*`|`[^`]*`|\]\([^)]*\)|<https?:[^>]*>", " ", text)
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(":"))


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


CHECKS: Iterable = (_executed, _clean, _frame, _code, _figures, _glue, _claims, _labels, _prose)
