"""Roles and directives of the book's pages: cards, claim counts, run times, evidence, errata and benchmarks."""

from __future__ import annotations

import html
import re
import statistics
from typing import Any, ClassVar

from docutils import nodes
from sphinx.util.docutils import SphinxDirective, SphinxRole

from kexue.book.site.content import Book, Chapter, Outcome, format_limit, format_number, format_seconds
from kexue.book.site.maps import Map

__all__ = ["register"]

EVIDENCE_PAGE = "evidence"


def register(app: Any) -> None:
    """Add all roles and directives."""
    app.add_role("kx-runtime", RunTime())
    app.add_role("kx-claims", ClaimCount())
    app.add_role("kx-value", Value())
    app.add_role("kx-chapters", ChapterCount())
    app.add_directive("kx-cards", Cards)
    app.add_directive("kx-map", PartMap)
    app.add_directive("kx-evidence", Evidence)
    app.add_directive("kx-versions", Versions)
    app.add_directive("kx-errata", Errata)
    app.add_directive("kx-benchmarks", Benchmarks)
    app.add_directive("kx-book-figures", BookFigures)


class RunTime(SphinxRole):
    """``{kx-runtime}`slug```: median run time of a chapter at the default scale, from the evidence."""

    def run(self) -> tuple[list[nodes.Node], list[Any]]:
        book: Book = self.env.app.kexue_book
        try:
            book.chapter(self.text)
        except KeyError as error:
            return [], [self.inliner.reporter.error(str(error.args[0]), line=self.lineno)]
        measured = book.run_time(self.text)
        if measured is None:
            return [nodes.Text("not measured yet")], []
        seconds, runs = measured
        return [nodes.Text(f"{format_seconds(seconds)} on one core (median of {runs} run{'s' if runs > 1 else ''})")], []


class ClaimCount(SphinxRole):
    """``{kx-claims}`all``` or ``{kx-claims}`slug```: number of claims in the committed notebooks."""

    def run(self) -> tuple[list[nodes.Node], list[Any]]:
        book: Book = self.env.app.kexue_book
        return [nodes.Text(str(book.n_claims if self.text == "all" else len(book.chapter(self.text).claims)))], []


class Value(SphinxRole):
    """``{kx-value}`key```: a number that a chapter has glued, on any other page."""

    def run(self) -> tuple[list[nodes.Node], list[Any]]:
        try:
            return [nodes.Text(self.env.app.kexue_book.value(self.text))], []
        except KeyError as error:
            return [], [self.inliner.reporter.error(str(error.args[0]), line=self.lineno)]


class ChapterCount(SphinxRole):
    """``{kx-chapters}`all```: number of chapters."""

    def run(self) -> tuple[list[nodes.Node], list[Any]]:
        return [nodes.Text(str(len(self.env.app.kexue_book.chapters)))], []


class _BookDirective(SphinxDirective):
    has_content = False

    @property
    def book(self) -> Book:
        for path in self.env.app.kexue_book.files:
            self.env.note_dependency(str(path))
        return self.env.app.kexue_book

    def href(self, docname: str, anchor: str = "") -> str:
        """Relative link from this page to another one of the book."""
        depth = self.env.docname.count("/")
        return html.escape("../" * depth + f"{docname}.html" + (f"#{anchor}" if anchor else ""), quote=True)

    def claim(self, chapter: Chapter, name: str) -> str:
        """Relative link to a claim in its chapter."""
        return self.href(chapter.docname, f"claim-{name}")


class Cards(_BookDirective):
    """The chapters as cards: picture, title, one-line question, number of claims."""

    def run(self) -> list[nodes.Node]:
        result: list[nodes.Node] = [_raw('<div class="kx-cards">')]
        for chapter in self.book.chapters:
            result += [
                _raw(
                    f'<article class="kx-card"><div class="kx-card-text"><p class="kx-part">{html.escape(chapter.part)}</p>'
                    f'<h3><a href="{self.href(chapter.docname)}">'
                ),
                *inline(chapter.title),
                _raw('</a></h3><p class="kx-card-question">'),
                *inline(chapter.question),
                _raw(f'</p><p class="kx-card-meta">{self._facts(chapter)}</p></div>{self._picture(chapter)}</article>'),
            ]
        return [*result, _raw("</div>")]

    def _picture(self, chapter: Chapter) -> str:
        if chapter.card is None:
            return ""
        source = "../" * self.env.docname.count("/") + f"_images/card-{chapter.slug}.png"
        return f'<img class="kx-card-picture" src="{source}" alt="{html.escape(chapter.card_alt, quote=True)}" loading="lazy">'

    def _facts(self, chapter: Chapter) -> str:
        measured = self.book.run_time(chapter.slug)
        time = f" · runs in {format_seconds(measured[0])}" if measured else ""
        return f'<span class="kx-mark" aria-hidden="true">✓</span> {len(chapter.claims)} claims{time}'


class PartMap(_BookDirective):
    """Who needs whom in a part: a drawing with links, and a sentence for every arrow."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        try:
            plan = Map.read(list(self.content))
            links = {slug: self.href(self.book.chapter(slug).docname) for slug in plan.titles}
            drawing = plan.drawing(links)
        except (ValueError, KeyError) as error:
            raise self.error(str(error.args[0])) from error
        result: list[nodes.Node] = [_raw(f'{drawing}<ul class="kx-needs">')]
        for arrow in plan.arrows:
            tail, head = (f'<a href="{links[slug]}">{html.escape(plan.titles[slug])}</a>' for slug in (arrow.tail, arrow.head))
            result += [_raw(f"<li>{head} needs from {tail}: "), *inline(arrow.why), _raw("</li>")]
        return [*result, _raw("</ul>")]


class Evidence(_BookDirective):
    """One row per claim: what must hold, and how it fared by scale; filtered in the page by a small script."""

    def run(self) -> list[nodes.Node]:
        book = self.book
        options = "".join(f'<option value="{c.slug}">{html.escape(re.sub("[$]", "", c.title))}</option>' for c in book.chapters)
        result: list[nodes.Node] = [
            _raw(
                '<div class="kx-filter" hidden><label>Find <input type="search" id="kx-filter-text" autocomplete="off"></label>'
                f'<label>Chapter <select id="kx-filter-chapter"><option value="">all</option>{options}</select></label>'
                '<label class="kx-check"><input type="checkbox" id="kx-filter-failed"> failed at least once</label>'
                '<output id="kx-filter-count" for="kx-filter-text kx-filter-chapter kx-filter-failed">'
                f"{book.n_claims} claims</output></div>"
                '<div class="kx-scroll" tabindex="0" role="group" aria-label="Table of claims">'
                '<table class="kx-table kx-evidence kx-wide"><thead><tr>'
                '<th scope="col">Claim</th><th scope="col">Must hold</th><th scope="col">Runs</th><th scope="col">Passed</th>'
                '<th scope="col">Median</th><th scope="col">Range</th></tr></thead><tbody>'
            )
        ]
        for chapter in book.chapters:
            for claim in chapter.claims:
                outcomes = book.outcomes(chapter, claim)
                failed = any(o.passed < o.n for o in outcomes)
                result += [
                    _raw(
                        f'<tr id="evidence-{claim["id"]}" data-chapter="{chapter.slug}"{" data-failed" if failed else ""}>'
                        f'<th scope="row"><a class="kx-claim-id" href="{self.claim(chapter, claim["id"])}">{claim["id"]}</a> '
                    ),
                    *inline(claim["sentence"]),
                    _raw(
                        f'</th><td data-label="Must hold" class="kx-nowrap">{html.escape(format_limit(claim))}</td>'
                        + _cells(outcomes)
                        + "</tr>"
                    ),
                ]
        return [*result, _raw("</tbody></table></div>")]


def _cells(outcomes: list[Outcome]) -> str:
    columns: dict[str, list[str]] = {"Runs": [], "Passed": [], "Median": [], "Range": []}
    for o in outcomes:
        columns["Runs"].append(html.escape(o.scale + (f" ({o.device})" if o.device and o.device != o.scale else "")))
        state = "pass" if o.passed == o.n else "fail"
        columns["Passed"].append(f'<span class="kx-rate kx-{state}">{o.passed}/{o.n}</span>')
        columns["Median"].append(format_number(statistics.median(o.values)))
        columns["Range"].append(
            f"{format_number(min(o.values))} … {format_number(max(o.values))}" if len(set(o.values)) > 1 else "same in all"
        )
        if o.n == 1:
            columns["Range"][-1] = "one run"
    return "".join(f'<td data-label="{name}" class="kx-nowrap">{"<br>".join(lines)}</td>' for name, lines in columns.items())


class Versions(_BookDirective):
    """Versions of the software with which the evidence was measured, and the chapters' runs."""

    def run(self) -> list[nodes.Node]:
        book = self.book
        versions = book.evidence.get("versions", {})
        runs = book.evidence.get("runs", [])
        if not runs:
            text = "The table shows the committed run of every chapter: one seed at the default scale."
            return [nodes.paragraph("", text)]
        rows = []
        for chapter in book.chapters:
            for scale in ("smoke", "cpu", "gpu"):
                mine = [r for r in runs if r["chapter"] == chapter.slug and r["scale"] == scale]
                if mine:
                    good = [r for r in mine if r["outcome"] == "ok"]
                    seconds = format_seconds(statistics.median(r["seconds"] for r in good)) if good else "–"
                    memory = f"{max(r['peak_mb'] for r in good):.0f} MB" if good and all(r.get("peak_mb") for r in good) else "–"
                    devices = ", ".join(sorted({str(r["device"]) for r in mine}))
                    rows.append([chapter.title, scale, devices, f"{len(good)}/{len(mine)}", seconds, memory])
        head = ["Chapter", "Scale", "Device", "Runs that finished", "Median time", "Peak memory"]
        text = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        return [nodes.paragraph("", f"Measured with {text}."), *_table("Runs behind this page", head, rows)]


class Errata(_BookDirective):
    """Errors of the original posts by chapter: what is said, what is correct, and the claim or statement that shows it."""

    kinds: ClassVar[dict[str, str]] = {"wrong": "wrong", "loose": "loose", "missing": "missing"}

    def run(self) -> list[nodes.Node]:
        book, result = self.book, []
        for chapter in book.chapters:
            entries = book.errata.get(chapter.slug, [])
            if not entries:
                continue
            section = nodes.section(ids=[f"errata-{chapter.slug}"], names=[])
            section += nodes.title("", "", *inline(chapter.title))
            source = f"[{chapter.original['title']}]({chapter.original['url']}), {chapter.original['date']}"
            section += self.parse_text_to_nodes(f"Original: {source}. Chapter: [](/{chapter.docname}.ipynb).")
            for entry in entries:
                section += self._entry(chapter, entry)
            result.append(section)
        return result

    def _entry(self, chapter: Chapter, entry: dict[str, str]) -> list[nodes.Node]:
        if entry.get("kind") not in self.kinds:
            raise self.error(f"erratum {entry.get('id')!r}: kind must be one of {', '.join(self.kinds)}, got {entry.get('kind')!r}")
        shown = ""
        if entry.get("label"):
            shown = f" Shown in {{prf:ref}}`{entry['label']}`."
        content = self.parse_text_to_nodes(
            f"**The original:** {entry['original'].strip()}\n\n**Correct:** {entry['correct'].strip()}{shown}"
        )
        link = ""
        if entry.get("claim"):
            link = f'<p class="kx-erratum-claim">Run in claim <a href="{self.claim(chapter, entry["claim"])}">{entry["claim"]}</a></p>'
        kind = f'<span class="kx-kind kx-{entry["kind"]}">{self.kinds[entry["kind"]]}</span>'
        head = f'<div class="kx-erratum" id="erratum-{entry["id"]}">{kind}'
        return [_raw(head), *content, _raw(f"{link}</div>")]


class Benchmarks(_BookDirective):
    """Our hot paths against named peers, measured in one process: one table each."""

    def run(self) -> list[nodes.Node]:
        data = self.book.benchmarks
        result: list[nodes.Node] = []
        for row in data.get("rows", []):
            lines = [[entry["label"], *_timing(entry), _times(entry.get("ratio"))] for entry in [row["ours"], *row["peers"]]]
            remarks = [f"goal {row['goal']}"] if row.get("goal") else []
            remarks += [row["note"]] if row.get("note") else []
            heading = nodes.paragraph("", "", nodes.strong("", "", *inline(row["title"])))
            head = ["Implementation", "Median", "Quartiles", "Peak memory", "Time relative to ours"]
            result += [heading, *_table(row["title"], head, lines)]
            if remarks:
                sentence = "; ".join(remarks)
                result.append(nodes.paragraph("", "", *inline(f"{sentence[0].upper()}{sentence[1:]}.")))
        machine = data.get("machine", {})
        versions = [f"{name} {version}" for name, version in sorted(machine.get("versions", {}).items())]
        parts = [machine.get("processor"), machine.get("cores") and f"{machine['cores']} cores", machine.get("accelerator"), *versions]
        if result and any(parts):
            result.insert(0, nodes.paragraph("", f"Measured on: {', '.join(str(part) for part in parts if part)}."))
        return result


def _timing(entry: dict[str, Any]) -> list[str]:
    spread = " … ".join(format_seconds(t) for t in entry["spread"]) if entry.get("spread") else "–"
    return [format_seconds(entry["median_s"]), spread, f"{entry['peak_mb']:.0f} MB" if entry.get("peak_mb") is not None else "–"]


def _times(ratio: float | int | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.2g}×"


class BookFigures(_BookDirective):
    """The book's own figures: execution time per chapter, build time and page weight."""

    def run(self) -> list[nodes.Node]:
        figures = self.book.benchmarks.get("book", {})
        rows = [[f"Execution of {slug}, default scale", format_seconds(t)] for slug, t in sorted(figures.get("chapters", {}).items())]
        if figures.get("html_build_s"):
            rows.append(["HTML build", format_seconds(figures["html_build_s"])])
        rows += [[f"Weight of {page}", f"{weight:.0f} kB"] for page, weight in sorted(figures.get("page_weight_kb", {}).items())]
        return _table("The book itself", ["What", "Measured"], rows) if rows else []


def inline(text: str) -> list[nodes.Node]:
    """A sentence as document nodes; ``$...$`` is mathematics, everything else is plain."""
    parts = re.split(r"\$([^$]+)\$", " ".join(text.split()))
    return [nodes.math("", part) if i % 2 else nodes.Text(part) for i, part in enumerate(parts) if part]


def _table(name: str, head: list[str], rows: list[list[str]]) -> list[nodes.Node]:
    result: list[nodes.Node] = [
        _raw(
            f'<div class="kx-scroll" tabindex="0" role="group" aria-label="{html.escape(name)}"><table class="kx-table"><thead><tr>'
            + "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
            + "</tr></thead><tbody>"
        )
    ]
    for row in rows:
        result.append(_raw("<tr>"))
        for cell in row:
            result += [_raw("<td>"), *inline(cell), _raw("</td>")]
        result.append(_raw("</tr>"))
    return [*result, _raw("</tbody></table></div>")]


def _raw(markup: str) -> nodes.raw:
    return nodes.raw("", markup, format="html")
