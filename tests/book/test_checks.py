"""A good chapter has no findings; every planted defect gives exactly its own."""

import copy
import re

import pytest
from kexue.book import checks, normalise
from kexue.book.prose import backticked
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

SLUG = "random-angles"
HEAD, PARAMETERS, SETUP, TEXT, FIGURE, CLAIMS = range(6)  # cells of the good chapter; findings count them from 1
TITLE = """# Angles of random vectors

:::{admonition} Question and answer
:class: kx-question
**Answer.** About {glue:text}`random-angles-angle` degrees.
:::"""
PROSE = """## Statement

:::{prf:theorem} Needle
:label: thm-random-angles-needle
The density is $1.2345$ at most.
:::

$$ x = 1.2345 $$ (eq-random-angles-x)

![a flat line becomes a needle](figure.png)

{prf:ref}`thm-random-angles-needle`, {eq}`eq-random-angles-x` and {numref}`fig-random-angles-tails`."""


def shown(data="x", **metadata):
    return new_output("display_data", data={"text/plain": data}, metadata=metadata)


def claim(name, passed=True):
    return shown(kexue={"claim": {"id": name, "passed": passed}})


def glued(key):
    return shown(scrapbook={"name": key})


def picture():
    return new_output("display_data", data={"image/png": "AA==", "text/plain": "<Figure>"})


def good(slug=SLUG, prefix="claim"):
    figure = {
        "figure": {"name": "fig-random-angles-tails", "caption": "**It falls.**"},
        "image": {"alt": "A flat line becomes a needle."},
    }
    names = [f"{prefix}-{letter}" for letter in "abcde"]
    cells = [
        new_markdown_cell(TITLE),
        new_code_cell(checks.PARAMETERS, metadata={"tags": ["parameters"]}),
        new_code_cell(checks.SETUP.replace("SLUG", slug), metadata={"tags": ["setup"]}),
        new_markdown_cell(PROSE),
        new_code_cell("import matplotlib.pyplot as plt\nplt.show()", metadata={"mystnb": figure, "tags": ["card"]}, outputs=[picture()]),
        new_code_cell(
            "\n".join(f'ch.claim("{name}", "It is so.", 1, "<", 2)' for name in names),
            outputs=[*map(claim, names), glued("random-angles-angle")],
        ),
    ]
    for count, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), 1):
        cell.execution_count = count
    original = {"title": "夹角", "english": "Angles", "date": "2019-11-13", "url": "https://example.org"}
    meta = {"slug": slug, "part": "geometry", "question": "What?", "summary": "That.", "original": original, "packages": []}
    notebook = new_notebook(cells=cells, metadata={"kexue": meta})
    for cell in notebook.cells if slug != SLUG else []:
        cell.source = cell.source.replace(SLUG, slug)
        for output in cell.get("outputs", []):
            if "scrapbook" in output.metadata:
                output.metadata.scrapbook.name = f"{slug}-angle"
        if "mystnb" in cell.metadata:
            cell.metadata.mystnb.figure.name = f"fig-{slug}-tails"
    return notebook


def write(root, notebook, slug=SLUG, part="geometry"):
    path = root / "chapters" / part / f"{slug}.ipynb"
    normalise.write_atomically(path, normalise.to_text(notebook))
    return path


def found(root, *slugs):
    return [(finding.cell, finding.what) for finding in checks.check(root, slugs)]


def test_good_chapters_have_no_findings(tmp_path):
    write(tmp_path, good())
    write(tmp_path, good("batch-norm", "other"), "batch-norm")
    assert found(tmp_path) == []


def meta(**change):
    return lambda n: n.metadata.kexue.update(change)


def source(index, text):
    return lambda n: n.cells[index].update(source=text)


def add(index, text):
    return lambda n: n.cells[index].update(source=n.cells[index].source + "\n" + text)


def sub(index, old, new):
    def change(n):
        assert old in n.cells[index].source
        n.cells[index].source = n.cells[index].source.replace(old, new)

    return change


def output(index, *outputs):
    return lambda n: n.cells[index].outputs.extend(outputs)


def mystnb(kind, **change):
    return lambda n: n.cells[FIGURE].metadata.mystnb[kind].update(change)


def stderr(text):
    return new_output("stream", name="stderr", text=text)


def both(*changes):
    return lambda n: [change(n) for change in changes]


ERROR = new_output("error", ename="KeyError", evalue="x", traceback=[])
NOT_RUN = "code cell 3 of 4 was not run in order"
DEFECTS = {
    "slug": (meta(slug="f-gan"), 0, "metadata kexue.slug is 'f-gan'"),
    "part": (meta(part="craft"), 0, "metadata kexue.part is 'craft'"),
    "question": (meta(question=" "), 0, "metadata kexue.question is missing"),
    "summary": (meta(summary=None), 0, "metadata kexue.summary is missing"),
    "long question": (meta(question="w" * 121), 0, "metadata kexue.question has 121 characters"),
    "original": (lambda n: n.metadata.kexue.original.update(date="", url=""), 0, "metadata kexue.original lacks date, url"),
    "packages": (meta(packages=None), 0, "metadata kexue.packages is missing"),
    "parameters": (source(PARAMETERS, 'scale = "cpu"\nseed = 0'), 0, "the first code cell is not the parameters cell"),
    "tag of parameters": (lambda n: n.cells[PARAMETERS].metadata.pop("tags"), 0, "the first code cell is not the parameters cell"),
    "set-up": (add(SETUP, "import torch"), 0, "the second code cell is not the set-up cell"),
    "title with number": (sub(HEAD, "# Angles", "# 3 Angles"), 0, "the first cell is not title and question box"),
    "no question box": (sub(HEAD, ":class: kx-question\n", ""), 0, "the first cell is not title and question box"),
    "not executed": (lambda n: n.cells[FIGURE].update(execution_count=None), 0, NOT_RUN),
    "executed twice": (lambda n: n.cells[FIGURE].update(execution_count=5), 0, NOT_RUN),
    "few claims": (
        both(lambda n: n.cells[CLAIMS].outputs.pop(0), sub(CLAIMS, 'ch.claim("claim-a"', "print(1")),
        0,
        "4 claims in the outputs",
    ),
    "claim twice": (output(CLAIMS, claim("claim-a")), 0, "claim id 'claim-a' occurs more than once in the book"),
    "claim without record": (
        add(CLAIMS, "ch.claim('claim-f', 'It is.', 1, '<', 2)"),
        0,
        "claims in the code and not in the outputs: claim-f",
    ),
    "failed claim": (output(CLAIMS, claim("claim-f", False)), 6, "claim 'claim-f' failed in the committed run"),
    "claim of one word": (output(CLAIMS, claim("claim")), 6, "claim id 'claim'"),
    "claim in capitals": (output(CLAIMS, claim("Claim-F")), 6, "claim id 'Claim-F'"),
    "glued twice": (output(CLAIMS, glued("random-angles-angle")), 0, "key 'random-angles-angle' is glued more than once"),
    "glued and not used": (output(CLAIMS, glued("random-angles-more")), 0, "glued key 'random-angles-more' is never used"),
    "glued under another name": (both(output(CLAIMS, glued("angle")), add(TEXT, "{glue:text}`angle`")), 6, "glued key 'angle'"),
    "used and not glued": (add(TEXT, "{glue:text}`random-angles-no`"), 4, "glued key 'random-angles-no' is not defined in this chapter"),
    "large output": (output(FIGURE, shown("x" * 1_000_001)), 0, "outputs of 1.00 MB"),
    "long cell": (source(FIGURE, "\n".join(f"x{i} = {i}\n" for i in range(21))), 5, "21 lines of code"),
    "shell command": (source(FIGURE, "!ls"), 5, "not plain Python (invalid syntax, line 1)"),
    "magic": (source(FIGURE, "x = 1\n%time x"), 5, "not plain Python (invalid syntax, line 2)"),
    "silent except": (source(FIGURE, "try:\n    x = 1\nexcept KeyError:\n    pass"), 5, "a silent except (line 3)"),
    "shell object": (source(FIGURE, "get_ipython()"), 5, "get_ipython()"),
    "star import": (source(FIGURE, "from math import *"), 5, "star import of math"),
    "unknown module": (source(FIGURE, "import no_such_module_at_all"), 5, "import of no_such_module_at_all cannot be resolved"),
    "unknown name": (source(FIGURE, "from kexue.book import nothing"), 5, "import of kexue.book.nothing cannot be resolved"),
    "no alt text": (lambda n: n.cells[FIGURE].metadata.mystnb.pop("image"), 5, "a figure without alt text"),
    "file name as alt text": (mystnb("image", alt="the file called a.png"), 5, "a figure without alt text"),
    "short alt text": (mystnb("image", alt="A figure."), 5, "a figure without alt text"),
    "no card": (lambda n: n.cells[FIGURE].metadata.update(tags=[]), 0, "no single picture for the chapter's card"),
    "card in the wrong place": (
        lambda n: n.cells[FIGURE].metadata.mystnb.update(tags=n.cells[FIGURE].metadata.pop("tags")),
        0,
        "no single picture for the chapter's card",
    ),
    "no caption": (mystnb("figure", caption=""), 5, "a figure without name or caption"),
    "two figures": (output(FIGURE, picture()), 5, "2 figures in one cell"),
    "figure label": (
        both(mystnb("figure", name="fig-tails"), sub(TEXT, "fig-random-angles-tails", "fig-tails")),
        5,
        "label 'fig-tails'",
    ),
    "text label": (lambda n: [sub(TEXT, "eq-random-angles-x", "eq-x")(n)], 4, "label 'eq-x'"),
    "label twice": (add(TEXT, "\n(eq-random-angles-x)="), 4, "label 'eq-random-angles-x' is defined more than once"),
    "reference": (add(TEXT, "{eq}`eq-random-angles-y`"), 4, "{eq} refers to 'eq-random-angles-y', which no page defines"),
    "solution": (add(TEXT, "\n```{solution-start} ex-no\n```"), 4, "{solution} refers to 'ex-no', which no page defines"),
    "decimal": (add(TEXT, "About 3.14 of them."), 4, "typed decimal 3.14"),
    "word": (add(TEXT, "Obviously so."), 4, "'Obviously'"),
    "word in code": (add(FIGURE, "# TODO"), 5, "'TODO' in the code"),
    "path in output": (output(FIGURE, shown("in /home/me")), 5, "'/home/m' in the output"),
    "address in output": (output(FIGURE, shown("<f at 0x7f00deadbeef>")), 5, "a memory address in the output (at 0x7f00deadbeef)"),
    "image": (add(TEXT, "![](other.png)"), 4, "image other.png without alt text"),
    "reference in heading": (
        add(TEXT, "\n### By {eq}`eq-random-angles-x`"),
        4,
        "a reference inside the heading 'By {eq}`eq-random-angles-x`'",
    ),
    "heading steps": (add(TEXT, "\n#### Deep"), 4, "heading 'Deep' steps from level 2 to 4"),
    "error": (output(FIGURE, ERROR), 5, "the output is an error: KeyError"),
    "stderr": (output(FIGURE, stderr(" Warning: old\n")), 5, "text on stderr: 'Warning: old'"),
}


@pytest.mark.parametrize(("change", "cell", "what"), DEFECTS.values(), ids=DEFECTS)
def test_planted_defect_gives_exactly_its_finding(change, cell, what, tmp_path):
    notebook = good()
    change(notebook)
    write(tmp_path, copy.deepcopy(notebook))
    assert found(tmp_path) == [(cell, what)]
    (finding,) = checks.check(tmp_path)
    assert finding.mend and finding.path == f"chapters/geometry/{SLUG}.ipynb"
    assert str(finding) == f"{finding.path}:{f' cell {cell}:' if cell else ''} {what} - {finding.mend}"


def test_claim_ids_and_labels_are_compared_over_the_whole_book(tmp_path):
    write(tmp_path, good())
    other = good("batch-norm", "other")
    other.cells[CLAIMS].outputs.append(claim("claim-c"))
    write(tmp_path, other, "batch-norm")
    collision = [(0, "claim id 'claim-c' occurs more than once in the book")]
    assert found(tmp_path, SLUG) == found(tmp_path, "batch-norm") == collision
    assert [f.path for f in checks.check(tmp_path)] == ["chapters/geometry/batch-norm.ipynb", "chapters/geometry/random-angles.ipynb"]


def test_labels_of_the_books_pages_can_be_referred_to(tmp_path):
    notebook = good()
    add(TEXT, "{ref}`the evidence <sec-evidence>`")(notebook)
    write(tmp_path, notebook)
    assert found(tmp_path) == [(4, "{ref} refers to 'sec-evidence', which no page defines")]
    (tmp_path / "evidence.md").write_text("(sec-evidence)=\n# Evidence\n")
    assert found(tmp_path) == []


def test_file_outside_the_books_plan_is_found(tmp_path):
    notebook = good()
    notebook.metadata.kexue.part = "sky"
    write(tmp_path, notebook, part="sky")
    assert found(tmp_path) == [(0, "sky/random-angles is no chapter of the book")]


def test_empty_notebook_is_reported_and_not_an_error(tmp_path):
    write(tmp_path, new_notebook())
    problems = [what for _, what in found(tmp_path)]
    assert "the first cell is not title and question box" in problems and "0 claims in the outputs" in problems


def test_unknown_chapter_is_refused(tmp_path):
    write(tmp_path, good())
    with pytest.raises(ValueError, match=re.escape("unknown chapter 'x'; the chapters are random-angles")):
        checks.check(tmp_path, ["x"])


def test_finding_outside_the_root_names_the_whole_path(tmp_path):
    notebook = good()
    meta(summary="")(notebook)
    path = write(tmp_path, notebook)
    (finding, *_) = checks.check_chapter(path, notebook, checks._Book(), tmp_path / "elsewhere")
    assert finding.path == str(path)


@pytest.mark.parametrize(
    ("markdown", "found"),
    [
        ("```{prf:theorem} X\n:label: thm-x\n\nBody\n```", ["prf:theorem"]),
        ("Text.\n\n````{exercise}\n:label: ex-x\n\nDo it.\n\n```python\n1\n```\n````\n", ["exercise"]),
        (":::{prf:theorem} X\n:label: thm-x\n\nBody\n:::", []),
        ("```{literalinclude} a.py\n:pyobject: f\n```", []),
        ("```{math}\nx\n```\n\n```python\n{x}\n```", []),
        ("```{solution-start} ex-x\n:class: dropdown\n```", []),
    ],
)
def test_backticked_finds_text_that_viewers_show_as_code(markdown, found):
    assert backticked(markdown) == found
