"""The Sphinx extension of the book on a tiny book, and its parts on strings."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from kexue.book.site import __main__ as command
from kexue.book.site import browser, pages
from kexue.book.site.content import Book, Chapter, format_limit, format_number, format_seconds
from kexue.book.site.maps import Map
from kexue.book.site.reference import readable
from sphinx.application import Sphinx
from sphinx.errors import ConfigError
from sphinx.util.docutils import docutils_namespace, patch_docutils

PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")

INDEX = """# Book

{kx-claims}`all` claims, {kx-claims}`angles` here, {kx-chapters}`all` chapter.

:::{kx-cards}
:::
"""
TEXT = """# Angles of $n$

:::{admonition} Question and answer
:class: kx-question
**Question.** Why?
**Answer.** So.
*Original:* a post. *Run time:* {kx-runtime}`angles`.
:::

```{prf:theorem}
:label: thm-angles-law
It holds.
```

```{prf:proof}
:class: dropdown
By *hand*, slowly.
```

```{prf:proof}
By machine.
```

:::{admonition} More
:class: dropdown
Hidden.
:::

| a | b |
|---|---|
| 1 | 2 |
"""


def claim(name: str, measured: float = 0.5, **more: object) -> dict:
    return {"id": name, "sentence": "the mean is $1/n$ & small", "measured": measured, "relation": "<=", "limit": 1, "passed": True, **more}


def notebook(claims: list[dict], **kexue: object) -> dict:
    about = {"slug": "angles", "part": "geometry", "question": "Why $n$?", "summary": "So.", **kexue}
    about.setdefault("original", {"title": "角", "date": "2019-11-13", "url": "https://kexue.fm/archives/7076"})
    lines = [
        {
            "output_type": "display_data",
            "metadata": {"kexue": {"claim": record}},
            "data": {"text/html": f'<div class="kx-claim kx-pass" id="claim-{record["id"]}"><span>✓</span></div>', "text/plain": "✓"},
        }
        for record in claims
    ]
    picture = {
        "output_type": "display_data",
        "metadata": {},
        "data": {"image/png": base64.b64encode(PIXEL).decode(), "text/plain": "figure"},
    }
    glued = {"name": "angles-half", "mime_prefix": "application/papermill.record/"}
    value = {"application/papermill.record/text/plain": "'0.50'"}
    lines.append({"output_type": "display_data", "metadata": {"scrapbook": glued}, "data": value})
    code = {"cell_type": "code", "execution_count": 1, "source": "1", "id": "b", "outputs": lines, "metadata": {}}
    card = {**code, "id": "c", "outputs": [picture], "metadata": {"tags": ["card"], "mystnb": {"image": {"alt": "A curve that falls."}}}}
    text = {"cell_type": "markdown", "source": TEXT, "id": "a", "metadata": {}}
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": [text, code, card], "metadata": {"kexue": about, "kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


ERRATA = """
- {id: angles-variance, original: "Says $1$.", correct: "It is $2$.", kind: wrong, claim: mean-is-small}
- {id: angles-law, original: "Silent.", correct: "See there.", kind: missing, label: thm-angles-law}
"""
RUNS = [
    {"chapter": "angles", "scale": "cpu", "seed": s, "device": "cpu", "outcome": "ok", "seconds": 20.0 + s, "peak_mb": 900.0}
    for s in range(3)
]
EVIDENCE = {
    "schema": 1,
    "versions": {"torch": "2.13.0"},
    "runs": [*RUNS, {**RUNS[0], "seed": 9, "outcome": "failed", "seconds": 1.0}],
    "claims": [
        {
            "chapter": "angles",
            "id": "mean-is-small",
            "results": {
                "gpu": {"device": "H200", "n": 1, "passed": 1, "values": [0.25]},
                "cpu": {"device": "cpu", "n": 3, "passed": 2, "values": [0.5, 2.0, 0.75]},
            },
        }
    ],
}
BENCHMARKS = {
    "schema": 1,
    "machine": {"processor": "EPYC", "cores": 2, "accelerator": None, "versions": {"torch": "2.13.0"}},
    "rows": [
        {
            "name": "norms",
            "title": "Norms",
            "ours": {"label": "kexue", "median_s": 0.01, "spread": [0.009, 0.011], "peak_mb": 30.0},
            "peers": [{"label": "opacus", "median_s": 0.08, "ratio": 8.0}],
            "ratio": 8.0,
            "goal": "5×",
            "note": "width $n$",
        },
        {"name": "plain", "title": "Plain", "ours": {"label": "kexue", "median_s": 0.01}, "peers": [], "ratio": None},
    ],
    "book": {"chapters": {"angles": 21.0}, "html_build_s": 20.0, "page_weight_kb": {"index.html": 300.0}},
}


def write(root: Path, name: str, content: object) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def tiny(root: Path, claims: list[dict] | None = None, **data: object) -> Path:
    """A book of one chapter and the pages that speak of it."""
    write(root, "chapters/geometry/angles.ipynb", notebook([claim("mean-is-small"), claim("other")] if claims is None else claims))
    write(root, "_toc.yml", "parts: [{caption: Geometry, chapters: [{file: chapters/geometry/angles}, {file: evidence}]}, {chapters: []}]")
    write(root, "index.md", INDEX + "\n```{toctree}\nchapters/geometry/angles\nevidence\nerrata\nbenchmarks\n```\n")
    write(root, "evidence.md", "# Evidence\n\n:::{kx-evidence}\n:::\n\n:::{kx-versions}\n:::\n")
    write(root, "errata.md", "# Errata\n\n:::{kx-errata}\n:::\n")
    write(root, "benchmarks.md", "# Benchmarks\n\n:::{kx-benchmarks}\n:::\n\n:::{kx-book-figures}\n:::\n")
    for name, content in data.items():
        write(root, {"errata": "data/errata/angles.yml"}.get(name, f"data/{name}.json"), content)
    return root


LIBRARY = '''
"""A room."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["SMALL", "TABLE", "Thing", "norm"]

Alias = float | int
TABLE = {"a very long table": "of values that nobody wants to read on a page of the reference"}
"""A table."""
SMALL = 7
"""A number."""


class Thing:
    """A thing."""


def norm(x: Float[Tensor, "batch time"], thing: Thing, order: Alias = 2) -> Float[Tensor, "batch"]:
    """Norm of a :class:`Thing`."""


def hidden() -> None:
    """Not exported."""
'''


def render(root: Path, **settings: object) -> tuple[dict[str, BeautifulSoup], str]:
    """Pages of a book and Sphinx's warnings."""
    warnings = root / "warnings.txt"
    overrides = {
        "extensions": ["myst_nb", "sphinx_proof", "kexue.book.site"],
        "myst_enable_extensions": ["colon_fence", "dollarmath"],
        "nb_execution_mode": "off",
        "html_baseurl": "https://example.org/",
        "copyright": "2026",
        "suppress_warnings": ["mystnb.unknown_mime_type"],
        "exclude_patterns": ["out", "trees"],
        **settings,
    }
    if "autodoc2" in settings.get("extensions", []):
        overrides = {key: value for key, value in overrides.items() if not key.startswith(("myst", "nb"))}
    with warnings.open("w", encoding="utf-8") as stream, patch_docutils(root), docutils_namespace():
        Sphinx(root, None, root / "out", root / "trees", "html", overrides, status=None, warning=stream).build()
    found = {p.relative_to(root / "out").as_posix(): p for p in (root / "out").rglob("*.html")}
    return {name: BeautifulSoup(p.read_text(encoding="utf-8"), "html.parser") for name, p in found.items()}, warnings.read_text(
        encoding="utf-8"
    )


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, BeautifulSoup], str]:
    root = tiny(tmp_path_factory.mktemp("book"), errata=ERRATA, evidence=EVIDENCE, benchmarks=BENCHMARKS)
    return (root, *render(root))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, BeautifulSoup], str]:
    return render(tiny(tmp_path_factory.mktemp("bare")))


# ---------------------------------------------------------------- pages


def test_tiny_books_build_without_a_warning(full, bare) -> None:
    assert (full[2], bare[1]) == ("", "")


def test_landing_page_counts_claims_and_shows_cards_with_pictures(full) -> None:
    root, site, _ = full
    page = site["index.html"]
    assert "2 claims, 2 here, 1 chapter." in page.get_text()
    card = page.select_one("article.kx-card")
    assert card.select_one("h3 a")["href"] == "chapters/geometry/angles.html"
    assert card.select_one("img")["alt"] == "A curve that falls."
    assert (root / "out" / card.select_one("img")["src"]).read_bytes() == PIXEL
    assert "2 claims · runs in 21 s" in " ".join(card.get_text().split())


def test_run_time_is_the_median_of_the_runs_that_finished(full, bare) -> None:
    assert "21 s on one core (median of 3 runs)" in full[1]["chapters/geometry/angles.html"].get_text()
    assert "not measured yet" in bare[0]["chapters/geometry/angles.html"].get_text()


def test_question_box_gets_paragraphs(full) -> None:
    box = full[1]["chapters/geometry/angles.html"].select_one(".kx-question")
    assert [p.get_text().split()[0] for p in box.select("p:not(.admonition-title)")] == ["Question.", "Answer.", "Original:"]


def test_folds_are_native_and_proofs_begin_apart(full) -> None:
    page = full[1]["chapters/geometry/angles.html"]
    proof, other = page.select("details.kx-fold")
    assert proof.select_one("summary").string == "Proof" and proof.select_one("p").get_text() == " By hand, slowly."
    assert other.select_one("summary").string == "More" and "Hidden." in other.get_text()
    assert page.select_one("div.proof > p > em").string == "Proof."


def test_claim_lines_and_evidence_rows_link_to_each_other(full) -> None:
    chapter, evidence = full[1]["chapters/geometry/angles.html"], full[1]["evidence.html"]
    assert chapter.select_one("#claim-other a.kx-evidence-link")["href"] == "../../evidence.html#evidence-other"
    assert evidence.select_one("#evidence-other a.kx-claim-id")["href"] == "chapters/geometry/angles.html#claim-other"


def test_evidence_shows_scales_rates_medians_and_ranges(full) -> None:
    first, second = full[1]["evidence.html"].select("tbody tr[id]")
    cells = [[*cell.stripped_strings] for cell in first.select("td")]
    assert cells == [["≤ 1"], ["cpu", "gpu (H200)"], ["2/3", "1/1"], ["0.75", "0.25"], ["0.5 … 2", "one run"]]
    assert first.has_attr("data-failed") and not second.has_attr("data-failed")
    assert "committed run" in second.get_text()
    assert first.select_one(".math") is not None, "the sentence's mathematics is mathematics"


def test_runs_are_summarised_or_said_to_be_the_committed_ones(full, bare) -> None:
    assert "Measured with torch 2.13.0." in full[1]["evidence.html"].get_text()
    assert [td.get_text() for td in full[1]["evidence.html"].select("table")[1].select("td")][1:] == ["cpu", "cpu", "3/4", "21 s", "900 MB"]
    assert "committed run of every chapter" in bare[0]["evidence.html"].get_text()


def test_errata_lead_to_the_claim_or_the_statement(full) -> None:
    page = full[1]["errata.html"]
    variance, law = page.select(".kx-erratum")
    assert variance.select_one(".kx-kind").string == "wrong"
    assert variance.select_one(".kx-erratum-claim a")["href"] == "chapters/geometry/angles.html#claim-mean-is-small"
    assert law.select_one("a.reference")["href"] == "chapters/geometry/angles.html#thm-angles-law"


def test_benchmarks_show_ratio_goal_and_note(full, bare) -> None:
    page = full[1]["benchmarks.html"]
    rows = [[td.get_text() for td in tr.select("td")] for tr in page.select("tbody tr")]
    assert rows[0] == ["kexue", "10 ms", "9.0 ms … 11 ms", "30 MB", ""]
    assert rows[1] == ["opacus", "80 ms", "–", "–", "8×"]
    assert rows[2][-1] == ""
    assert ["HTML build", "20 s"] in rows
    assert "Goal 5×; width" in page.get_text()
    assert "Measured on: EPYC, 2 cores, torch 2.13.0." in page.get_text()
    assert not bare[0]["benchmarks.html"].select("table")


def test_chapter_ends_with_its_citation_and_tables_scroll(full) -> None:
    page = full[1]["chapters/geometry/angles.html"]
    plain, bib = (pre.get_text() for pre in page.select("#cite-this-chapter pre"))
    assert "https://example.org/chapters/geometry/angles.html" in plain and "(2026)" in plain
    assert bib.startswith("@incollection{kexue-angles,") and "角" in bib
    assert page.select_one("table").find_parent(class_="kx-scroll")["tabindex"] == "0"


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"claims": [claim("same"), claim("same")]}, "claim id 'same' is used in angles and in angles"),
        ({"evidence": {"schema": 2}}, "evidence.json: schema must be 1, got 2"),
        ({"errata": "- {id: e, original: a, correct: b, kind: wrong, claim: nowhere}"}, "erratum 'e' names the unknown claim 'nowhere'"),
    ],
)
def test_book_refuses_what_would_mislead(tmp_path: Path, damage: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Book.read(tiny(tmp_path, **damage))
    with pytest.raises(ConfigError, match=message):
        render(tmp_path)


def test_chapter_without_metadata_or_under_another_name_is_refused(tmp_path: Path) -> None:
    for about, message in (({"question": ""}, "must have question"), ({"slug": "angels"}, "must be the file name, got 'angels'")):
        write(tmp_path, "chapters/geometry/angles.ipynb", notebook([], **about))
        with pytest.raises(ValueError, match=message):
            Chapter.read(tmp_path, "chapters/geometry/angles", "Geometry")


def test_unknown_chapter_and_kind_are_reported(tmp_path: Path) -> None:
    root = tiny(tmp_path, errata="- {id: e, original: a, correct: b, kind: odd}")
    write(root, "evidence.md", "# Evidence\n\n{kx-runtime}`angels`\n")
    _, warnings = render(root)
    assert "unknown chapter 'angels'; the chapters are angles" in warnings
    assert "kind must be one of wrong, loose, missing, got 'odd'" in warnings


# ---------------------------------------------------------------- parts


def test_reference_pages_show_shapes_link_aliases_and_leave_out_what_is_private(tmp_path: Path) -> None:
    write(tmp_path, "kexue/__init__.py", '"""The library."""\n')
    write(tmp_path, "kexue/part/__init__.py", '"""A part, see :class:`Thing`."""\n')
    write(tmp_path, "kexue/part/room.py", LIBRARY)
    write(tmp_path, "index.rst", "Book\n====\n\n.. toctree::\n\n   api/index\n")
    write(tmp_path, "_toc.yml", "root: index")
    _, warnings = render(
        tmp_path,
        extensions=["autodoc2", "kexue.book.site"],
        autodoc2_packages=[{"path": "kexue"}],
        autodoc2_output_dir="api",
        autodoc2_render_plugin="kexue.book.site.reference.ReferenceRenderer",
        autodoc2_module_all_regexes=[r"kexue\.part\.room"],
        nitpicky=True,
        nitpick_ignore_regex=[("py:class", "Float|Tensor")],
    )
    assert warnings == ""
    page = BeautifulSoup((tmp_path / "out/api/kexue/kexue.part.room.html").read_text(encoding="utf-8"), "html.parser")
    signature = page.find(id="kexue.part.room.norm").get_text()
    assert 'x: Float[Tensor, "batch time"]' in signature.replace("'", '"')
    assert page.find(id="kexue.part.room.TABLE").get_text().strip("\n¶") == "kexue.part.room.TABLE"
    assert page.find(id="kexue.part.room.SMALL").get_text().strip("\n¶") == "kexue.part.room.SMALL = 7"
    assert page.find(id="kexue.part.room.hidden") is None
    package = BeautifulSoup((tmp_path / "out/api/kexue/kexue.part.html").read_text(encoding="utf-8"), "html.parser")
    assert package.select_one('a[href="kexue.part.room.html#kexue.part.room.Thing"]') is not None


def test_unique_ids_keeps_the_first() -> None:
    assert pages.unique_ids('<p id="a">1</p><i class="x" id="a">2</i><b id="b">3</b>') == '<p id="a">1</p><i class="x">2</i><b id="b">3</b>'


def test_scroll_tables_names_the_frame_by_the_caption_and_does_not_frame_twice() -> None:
    once = pages.scroll_tables("<table><caption>A <b>b</b></caption></table>")
    assert 'aria-label="A b"' in once and pages.scroll_tables(once) == once


def test_plain_roles_repairs_empty_heads_and_parameter_lists() -> None:
    assert pages.plain_roles('<th class="head"><p></p></th>') == "<td></td>"
    assert pages.plain_roles("<dl>\n<dd><em>x</em>, </dd>\n</dl>") == '<span class="kx-parameters"><span><em>x</em>, </span>\n</span>'
    assert pages.plain_roles("<dl><dt>a</dt><dd>b</dd></dl>") == "<dl><dt>a</dt><dd>b</dd></dl>"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00012345, "0.0001234"),
        (1e-13, "10⁻¹³"),
        (3.1e-15, "3.1 · 10⁻¹⁵"),
        (-2, "−2"),
        (12345, "12345"),
        (10**9, "10⁹"),
        ("inf", "∞"),
        (float("-inf"), "−∞"),
        (True, "true"),
    ],
)
def test_format_number(value: object, text: str) -> None:
    assert format_number(value) == text


def test_format_limit_and_seconds() -> None:
    assert format_limit({"relation": "in", "limit": [0.1, 2], "unit": "deg"}) == "∈ [0.1, 2] deg"
    assert [format_seconds(t) for t in (2e-5, 0.0123, 3.21, 59.6, 600)] == ["20 µs", "12 ms", "3.2 s", "60 s", "10 min"]


def test_readable_puts_shapes_back_into_quotes() -> None:
    assert readable("jaxtyping.Float[torch.Tensor, batch time] | None") == 'Float[Tensor, "batch time"] | None'
    assert readable("collections.abc.Callable[[torch.Tensor], torch.nn.Module]") == "Callable[[Tensor], nn.Module]"
    assert readable("kexue.generative.divergences.FDivergence") == "kexue.generative.divergences.FDivergence"


# ---------------------------------------------------------------- command and browser


def test_command_refuses_other_words_and_other_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert command.main(["bake"]) == 2 and "usage" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert command.main(["build"]) == 2 and "not the root of the book" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("output", "status", "said"),
    [
        ("", 0, "built in"),
        (
            "\x1b[91mindex.md:3: WARNING: no such label\x1b[0m\nnoise",
            1,
            "index.md:3: WARNING: no such label\nthe book has 1 warnings or errors",
        ),
        (f"OSError: {os.strerror(28)}", 1, "the disk is full"),
        ("nothing known", 1, "nothing known"),
    ],
)
def test_command_says_what_happened_and_leaves_no_half_built_book(output, status, said, tmp_path, monkeypatch, capsys) -> None:
    def run(*arguments: object, **options: object) -> object:
        write(tmp_path, "_build/html/index.html", "<html>")
        return command.subprocess.CompletedProcess(arguments, status, stdout=output)

    write(tmp_path, "_config.yml", "")
    write(tmp_path, "_build/html/stale.html", "")
    write(tmp_path, "_build/test/kept.log", "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command.subprocess, "run", run)
    assert command.main(["build"]) == status
    shown = capsys.readouterr()
    assert said in shown.out + shown.err
    assert (tmp_path / "_build/html").exists() == (status == 0)
    assert not (tmp_path / "_build/html/stale.html").exists()
    assert (tmp_path / "_build/test/kept.log").exists()


def test_browser_takes_the_named_one_then_an_installed_one_then_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEXUE_BROWSER", "true")
    assert browser.find_browser() == "true"
    monkeypatch.setenv("KEXUE_BROWSER", "no-such-browser")
    with pytest.raises(browser.BrowserMissing, match="names 'no-such-browser', which cannot be run"):
        browser.find_browser()
    monkeypatch.delenv("KEXUE_BROWSER")
    there: set[str] = set()
    calls: list[list[str]] = []
    monkeypatch.setattr(browser.shutil, "which", lambda name: f"/usr/bin/{name}" if name in there else None)

    def run(words: list[str], **options: object) -> object:
        calls.append(words)
        if words[:2] == ["apt-get", "install"]:
            there.add("chromium")
        return browser.subprocess.CompletedProcess(words, 0 if words[0] == "apt-get" else 1)

    monkeypatch.setattr(browser.subprocess, "run", run)
    monkeypatch.setattr(browser.os, "geteuid", lambda: 1000)
    with pytest.raises(browser.BrowserMissing, match="the site tests need a browser"):
        browser.find_browser()
    monkeypatch.setattr(browser.os, "geteuid", lambda: 0)
    there.add("apt-get")
    assert browser.find_browser() == "/usr/bin/chromium"
    assert browser.find_browser() == "/usr/bin/chromium" and [c[1] for c in calls if c[0] == "apt-get"] == ["update", "install"]


def test_browser_of_the_distribution_may_be_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEXUE_BROWSER", raising=False)
    monkeypatch.setattr(browser.shutil, "which", lambda name: "/usr/bin/apt-get" if name == "apt-get" else None)
    monkeypatch.setattr(browser.os, "geteuid", lambda: 0)
    monkeypatch.setattr(browser.subprocess, "run", lambda words, **options: browser.subprocess.CompletedProcess(words, 1))
    with pytest.raises(browser.BrowserMissing):
        browser.find_browser()


MAP = [
    "a = Angles",
    "b = A very long title indeed",
    "c = C",
    "d = D",
    "",
    "a -> b: the law of $t$",
    "a -> c: a & b",
    "b -> d: x",
    "c -> d: y",
]


def test_map_reads_boxes_and_arrows_and_puts_what_is_needed_above() -> None:
    plan = Map.read(MAP)
    assert plan.titles == {"a": "Angles", "b": "A very long title indeed", "c": "C", "d": "D"}
    assert [(arrow.tail, arrow.head) for arrow in plan.arrows] == [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]
    assert plan.rows() == [["a"], ["b", "c"], ["d"]]
    assert Map.read(["e = E", *MAP]).rows() == [["a"], ["b", "c"], ["e", "d"]], "a box without arrows stands below"
    assert Map.read([f"{letter} = {letter}" for letter in "abcd"]).rows() == [["a", "b", "c"], ["d"]], "a row holds three boxes"


def test_map_draws_arrows_between_the_edges_of_boxes_without_overlap() -> None:
    plan = Map.read(MAP)
    drawing = BeautifulSoup(plan.drawing({slug: f"{slug}.html" for slug in plan.titles}), "html.parser")
    boxes = {a["href"]: [int(a.rect[key]) for key in ("x", "y", "width", "height")] for a in drawing.select("a")}
    for (x, y, width, height), (u, v, *_) in itertools.combinations(boxes.values(), 2):
        assert abs(u - x) >= width or abs(v - y) >= height
    ends = [[int(number) for number in re.findall(r"-?\d+", path["d"])] for path in drawing.select("path.kx-arrow")]
    for arrow, (x, y, *_, u, v) in zip(plan.arrows, ends, strict=True):
        tail, head = boxes[f"{arrow.tail}.html"], boxes[f"{arrow.head}.html"]
        assert tail[0] < x < tail[0] + tail[2] and y == tail[1] + tail[3]
        assert head[0] < u < head[0] + head[2] and 0 < head[1] - v < 10
    assert len({(x, y) for x, y, *_ in ends}) == len(ends), "two arrows do not leave from one point"
    assert [" ".join(t.string for t in a.select("tspan")) for a in drawing.select("a")] == list(plan.titles.values())


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a"], "'a' is neither 'slug = Short title' nor"),
        (["a = A", "a -> b: why"], "names b, which no earlier line"),
        (["a = A", "b = B", "a -> b"], "is neither"),
    ],
)
def test_map_refuses_lines_it_cannot_read(lines: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Map.read(lines)


def test_map_refuses_a_circle() -> None:
    with pytest.raises(ValueError, match="the arrows between a, b run in a circle"):
        Map.read(["a = A", "b = B", "a -> b: x", "b -> a: y"]).rows()


def test_part_page_shows_its_map_and_numbers_of_chapters(tmp_path: Path) -> None:
    write(tiny(tmp_path), "parts/geometry.md", "# Part\n\nHalf is {kx-value}`angles-half`.\n\n:::{kx-map}\nangles = Angles\n:::\n")
    write(tmp_path, "index.md", INDEX + "\n```{toctree}\nparts/geometry\nchapters/geometry/angles\nevidence\nerrata\nbenchmarks\n```\n")
    found, warnings = render(tmp_path)
    assert "Half is 0.50." in found["parts/geometry.html"].text
    assert found["parts/geometry.html"].select_one("svg.kx-map a")["href"] == "../chapters/geometry/angles.html"
    assert not warnings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{kx-value}`angles-third`", "no chapter glues the key 'angles-third'"),
        (":::{kx-map}\nnone = None\n:::", "unknown chapter 'none'"),
        (":::{kx-map}\nnone\n:::", "'none' is neither"),
    ],
)
def test_part_page_warns_of_what_does_not_exist(tmp_path: Path, text: str, message: str) -> None:
    write(tiny(tmp_path), "index.md", f"# Book\n\n{text}\n\n```{{toctree}}\nchapters/geometry/angles\nevidence\nerrata\nbenchmarks\n```\n")
    assert message in render(tmp_path)[1]


def test_punctuation_stays_with_its_formula() -> None:
    text = (
        '<p>It is <span class="math notranslate nohighlight">\\(x\\)</span>, or <span class="math">\\(y\\)</span> (b) <span>z</span>.</p>'
    )
    together = BeautifulSoup(pages.keep_marks(text), "html.parser").select(".kx-together")
    assert [span.text for span in together] == ["\\(x\\),"]
    assert BeautifulSoup(pages.keep_marks(text), "html.parser").text == BeautifulSoup(text, "html.parser").text
