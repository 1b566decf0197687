"""Static checks of the committed notebooks: what can be seen without running anything.

``check`` reads every chapter and returns findings; each says where it is, what is wrong and how to mend it. Claim ids and labels are
compared over the whole book even if only some chapters are checked.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nbformat import NotebookNode

from kexue.book import evidence, imports, normalise, prose, sources
from kexue.book.context import CHAPTERS

__all__ = ["MAX_BYTES", "MAX_LINES", "MIN_CLAIMS", "PARAMETERS", "SETUP", "Finding", "check", "check_chapter"]

MAX_LINES, MIN_CLAIMS, MAX_BYTES = 20, 5, 1_000_000

PARAMETERS = 'scale = "cpu"  # "smoke", "cpu" or "gpu"\nseed = 0'
SETUP = """import sys

if "google.colab" in sys.modules:  # keep Colab's own torch and add only what it lacks
    import subprocess

    source = "https://raw.githubusercontent.com/scientific-spaces/executed/v0.1.0/requirements-colab.txt"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "-r", source], check=True)

from kexue.book import chapter, glue

ch = chapter("SLUG", scale=scale, seed=seed)"""
ORIGINAL = ("title", "english", "date", "url")


@dataclass(frozen=True, order=True)
class Finding:
    """One defect: the file, the cell (1 is the first, 0 the notebook as a whole), what is wrong and how to mend it."""

    path: str
    cell: int
    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.path}:{f' cell {self.cell}:' if self.cell else ''} {self.what} - {self.mend}"


@dataclass
class _Book:
    """What a chapter is compared with: labels and claim ids of the whole book, with how often each occurs."""

    labels: Counter[str] = field(default_factory=Counter)
    claims: Counter[str] = field(default_factory=Counter)


def check(root: Path, slugs: Sequence[str] = ()) -> list[Finding]:
    """Findings in the chapters named by ``slugs`` (all if empty), in the order of the cells."""
    paths = sources.find_chapters(root)
    chosen = sources.select(paths, slugs)
    notebooks = {slug: normalise.read(path) for slug, path in paths.items()}
    book = _Book()
    for page in root.glob("*.md"):
        book.labels.update(prose.labels(page.read_text(encoding="utf-8")))
    for notebook in notebooks.values():
        for cell in notebook.cells:
            book.labels.update(_labels(cell))
        book.claims.update(record["id"] for record in evidence.claims_of(notebook))
    return [finding for slug, path in chosen.items() for finding in check_chapter(path, notebooks[slug], book, root)]


def check_chapter(path: Path, notebook: NotebookNode, book: _Book, root: Path) -> list[Finding]:
    """All findings in one notebook."""
    name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    found = [(0, *finding) for finding in _whole(path, notebook, book)]
    keys = {key for cell in notebook.cells for key in _glued(cell)} if _out_of_order(notebook) is None else None
    level = 0
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "code":
            found += [(number, *finding) for finding in _code(cell, path.stem)]
        elif cell.cell_type == "markdown":
            found += [(number, *finding) for finding in _markdown(cell.source, path.stem, keys, book)]
            for depth, title in prose.headings(cell.source):
                if depth > level + 1:
                    found.append((number, f"heading {title!r} steps from level {level} to {depth}", "go down one level at a time"))
                level = depth
    return [Finding(name, *finding) for finding in dict.fromkeys(found)]


def _whole(path: Path, notebook: NotebookNode, book: _Book) -> Iterator[tuple[str, str]]:
    slug, part = path.stem, path.parent.name
    if slug not in CHAPTERS.get(part, ()):
        yield f"{part}/{slug} is no chapter of the book", "name folder and file after a part and a chapter in kexue.book.context.CHAPTERS"
    meta = notebook.metadata.get("kexue", {})
    for key, right in {"slug": slug, "part": part}.items():
        if meta.get(key) != right:
            yield f"metadata kexue.{key} is {meta.get(key)!r}", f"make it {right!r}"
    for key in ("question", "summary"):
        if not isinstance(meta.get(key), str) or not meta[key].strip():
            yield f"metadata kexue.{key} is missing", "the landing page and the citation need it"
    if len(str(meta.get("question", ""))) > 120:
        yield f"metadata kexue.question has {len(meta['question'])} characters", "at most 120"
    if missing := [key for key in ORIGINAL if not meta.get("original", {}).get(key)]:
        yield f"metadata kexue.original lacks {', '.join(missing)}", "give title, english, date and url of the original post"
    if not isinstance(meta.get("packages"), list):
        yield "metadata kexue.packages is missing", "list the data packages that the chapter needs, [] if none"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if len(code) < 2 or code[0].metadata.get("tags") != ["parameters"] or code[0].source != PARAMETERS:
        yield "the first code cell is not the parameters cell", f"tag it 'parameters'; its text is exactly {PARAMETERS!r}"
    if len(code) < 2 or code[1].metadata.get("tags") != ["setup"] or code[1].source != SETUP.replace("SLUG", slug):
        yield "the second code cell is not the set-up cell", "tag it 'setup'; its text is exactly kexue.book.checks.SETUP with the slug"
    first = notebook.cells[0].source if notebook.cells and notebook.cells[0].cell_type == "markdown" else ""
    if not re.match(r"# (?!\d)\S", first) or ":class: kx-question" not in first:
        yield "the first cell is not title and question box", "begin with '# Title' (no number) and the admonition of class kx-question"
    if (wrong := _out_of_order(notebook)) is not None:  # nothing can be said about outputs before the chapter has been run
        yield f"code cell {wrong} of {len(code)} was not run in order", "execute the whole chapter: python -m kexue.book execute"
    else:
        yield from _recorded(notebook, book)
    if sum(_is_card(cell) for cell in code) != 1:
        yield "no single picture for the chapter's card", "tag the cell of one figure 'card' (in tags, not in mystnb)"
    size = sum(len(json.dumps(cell.outputs, ensure_ascii=False).encode()) for cell in code)
    if size > MAX_BYTES:
        yield f"outputs of {size / 1e6:.2f} MB", "stay under 1 MB: fewer or smaller figures, fewer slider frames"


def _is_card(cell: NotebookNode) -> bool:
    """Whether the landing page takes its picture of the chapter from this cell."""
    return "card" in cell.metadata.get("tags", []) and any("image/png" in output.get("data", {}) for output in cell.outputs)


def _out_of_order(notebook: NotebookNode) -> int | None:
    """The first code cell (1 is the first) whose execution count is not its place, None if the notebook was run in order."""
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    return next((place for place, count in enumerate(counts, 1) if count != place), None)


def _recorded(notebook: NotebookNode, book: _Book) -> Iterator[tuple[str, str]]:
    """Claims and glued values of the outputs, held against the code, the text and the book."""
    recorded = [record["id"] for record in evidence.claims_of(notebook)]
    if len(recorded) < MIN_CLAIMS:
        yield f"{len(recorded)} claims in the outputs", f"a chapter proves at least {MIN_CLAIMS} by running them"
    for identifier in sorted({i for i in recorded if book.claims[i] > 1}):
        yield f"claim id {identifier!r} occurs more than once in the book", "name it after what this chapter claims"
    claimed = {identifier for cell in notebook.cells if cell.cell_type == "code" for identifier in _claims_in(cell.source)}
    if missing := sorted(claimed - set(recorded)):
        yield f"claims in the code and not in the outputs: {', '.join(missing)}", "execute the chapter again"
    keys = Counter(key for cell in notebook.cells for key in _glued(cell))
    used = {key for cell in notebook.cells if cell.cell_type == "markdown" for key in prose.glued(cell.source)}
    for key in sorted(key for key in keys if keys[key] > 1):
        yield f"key {key!r} is glued more than once", "the later value would win silently"
    for key in sorted(keys.keys() - used):
        yield f"glued key {key!r} is never used", "use it in the text or do not glue it"


def _code(cell: NotebookNode, slug: str) -> Iterator[tuple[str, str]]:
    tags = cell.metadata.get("tags", [])
    lines = sum(bool(line.strip()) for line in cell.source.splitlines())
    if lines > MAX_LINES and "setup" not in tags:
        yield f"{lines} lines of code", f"at most {MAX_LINES}: move what is not the point into the library"
    try:
        tree = ast.parse(cell.source)
    except SyntaxError as error:
        yield f"not plain Python ({error.msg}, line {error.lineno})", "no '!' or '%' commands, no syntax of one shell"
        tree = ast.Module([], [])
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and all(isinstance(line, ast.Pass) for line in node.body):
            yield f"a silent except (line {node.lineno})", "let the error be seen"
    if "get_ipython" in cell.source:
        yield "get_ipython()", "a chapter uses nothing of one shell"
    for name in imports.imported(tree):
        if name.endswith(".*"):
            yield f"star import of {name[:-2]}", "name what is imported"
        elif not imports.resolvable(name):
            yield f"import of {name} cannot be resolved", "correct the name or install the package"
    figure = cell.metadata.get("mystnb", {})
    images = [o for o in cell.outputs if any(kind.startswith("image/") for kind in o.get("data", {}))]
    if images and not prose.is_alt(figure.get("image", {}).get("alt")):
        yield "a figure without alt text", "say in cell metadata mystnb.image.alt what one sees, in a sentence"
    if images and not (figure.get("figure", {}).get("caption") and figure.get("figure", {}).get("name")):
        yield "a figure without name or caption", "give both in cell metadata mystnb.figure"
    if len(images) > 1:
        yield f"{len(images)} figures in one cell", "one figure a cell, so that each has its caption and alt text"
    yield from _label_findings(_labels(cell), slug)
    for key in _glued(cell):
        if not key.startswith(f"{slug}-"):
            yield f"glued key {key!r}", f"keys of this chapter begin with {slug}-"
    for record in evidence.claims_of(NotebookNode(cells=[cell])):
        if not record["passed"]:
            yield f"claim {record['id']!r} failed in the committed run", "mend the chapter or report the rate"
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", record["id"]):
            yield f"claim id {record['id']!r}", "use words joined by hyphens that say what is claimed"
    for output in cell.outputs:
        if output.output_type == "error":
            yield f"the output is an error: {output.ename}", "mend the cell and execute again"
        if output.get("name") == "stderr":
            yield f"text on stderr: {output.text.strip()[:60]!r}", "a warning is a defect: mend its cause"
        shown = "\n".join(str(v) for k, v in output.get("data", {}).items() if not k.startswith("image/")) + output.get("text", "")
        if address := re.search(r"\bat 0x[0-9a-f]{6,}", shown):
            yield f"a memory address in the output ({address[0]})", "end the line with ';' or show a value"
        for word, mend in prose.forbidden(shown):
            yield f"{word!r} in the output", mend
    for word, mend in prose.forbidden(cell.source):
        yield f"{word!r} in the code", mend


def _markdown(source: str, slug: str, keys: set[str] | None, book: _Book) -> Iterator[tuple[str, str]]:
    yield from _label_findings(prose.labels(source), slug)
    for key in prose.glued(source):
        if keys is not None and key not in keys:
            yield f"glued key {key!r} is not defined in this chapter", "glue it in a cell, or correct the name"
    for role, label in prose.references(source):
        if not book.labels[label]:
            yield f"{{{role}}} refers to {label!r}, which no page defines", "correct the label"
    for label in prose.labels(source):
        if book.labels[label] > 1:
            yield f"label {label!r} is defined more than once", "labels are unique over the book"
    for number in prose.decimals(source):
        yield (
            f"typed decimal {number}",
            "glue what the chapter computes; put a definition into mathematics, a quotation beside its citation",
        )
    for word, mend in prose.forbidden(prose.prose(source)):
        yield f"{word!r}", mend
    for name in prose.backticked(source):
        yield f"the text of {{{name}}} stands between backticks", "use ::: instead: JupyterLab and Colab show backticks as raw code"
    for image in prose.images_without_alt(source):
        yield f"image {image} without alt text", "say what one sees"
    for _, title in prose.headings(source):
        if re.search(r"\{\w[\w:]*\}`|\]\(", title):
            yield f"a reference inside the heading {title!r}", "refer in the text below it"


def _label_findings(found: Iterable[str], slug: str) -> Iterator[tuple[str, str]]:
    for label in found:
        if not re.fullmatch(rf"(thm|eq|fig|ex|sec|tab)-{re.escape(slug)}(-[a-z0-9]+)+", label):
            yield f"label {label!r}", f"labels are thm-, eq-, fig- or ex-{slug}-name, in lower case"


def _labels(cell: NotebookNode) -> list[str]:
    if cell.cell_type == "markdown":
        return prose.labels(cell.source)
    name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
    return [name] if name else []


def _glued(cell: NotebookNode) -> list[str]:
    metadata = [output.get("metadata", {}) for output in cell.get("outputs", [])]
    return [m["scrapbook"]["name"] for m in metadata if "name" in m.get("scrapbook", {})]


def _claims_in(source: str) -> list[str]:
    return re.findall(r"\bch\.claim\(\s*[\"']([^\"']+)[\"']", source)
