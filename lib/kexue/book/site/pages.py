"""Finishing touches on every page: links between claims and evidence, citation blocks, unique ids, tables that scroll inside themselves."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import kexue
from kexue.book.site.content import Book, Chapter

__all__ = [
    "bibtex",
    "citation",
    "describe",
    "finish",
    "keep_marks",
    "link_claims",
    "plain_roles",
    "save_cards",
    "scroll_tables",
    "unique_ids",
]

BOOK_TITLE = "Scientific Spaces, executed"
CLAIM = re.compile(r'(<div class="kx-claim kx-\w+" id="claim-([a-z0-9-]+)">.*?)(</div>)', re.DOTALL)
ELEMENT_ID = re.compile(r'(<[a-zA-Z][^<>]*?)\sid="([^"]*)"')
THEBE = re.compile(r"<script[^>]*x-thebe-config.*?</script>\s*<script>kernelName = [^<]*</script>", re.DOTALL)
# live cells would ask a foreign server; folds are native elements of the page; statements and exercises have our own style
UNWANTED = ("thebe", "THEBE", "toggle", "proof.css", "exercise.css")
FORMULA_HEAD = re.compile(r'(<th\b[^>]*>\s*<p>)(<span class="math[^"]*">[^<]*</span></p>\s*</th>)')  # needs a word that is text
EMPTY_HEAD = re.compile(r"<th\b[^>]*>\s*(?:<p>\s*</p>)?\s*</th>")
PARAMETERS = re.compile(r"<dl>\s*((?:<dd>(?:(?!<dl|</dl).)*</dd>\s*)+)</dl>", re.DOTALL)
MATH_AND_MARK = re.compile(r'(<span class="math[^"]*">[^<]*</span>)([.,;:!?)]+)')
TABLE = re.compile(r"<table\b.*?</table>", re.DOTALL)


def describe(app: Any, env: Any) -> None:
    """Give chapter pages their description and picture for link previews."""
    book: Book = app.kexue_book
    for chapter in book.chapters:
        page = env.metadata[chapter.docname]
        page["og:description"] = f"{chapter.question} {chapter.summary}".replace("$", "")
        if chapter.card is not None:
            page["og:image"] = f"{app.config.html_baseurl}_images/card-{chapter.slug}.png"
            page["og:image:alt"] = chapter.card_alt


def finish(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Rewrite the body of a page (a handler of Sphinx's html-page-context event)."""
    context["script_files"] = [script for script in context["script_files"] if not _unwanted(script)]
    context["css_files"] = [style for style in context["css_files"] if not _unwanted(style)]
    if not context.get("body"):
        return
    book: Book = app.kexue_book
    root = "../" * pagename.count("/")
    body = context["body"]
    chapter = next((c for c in book.chapters if c.docname == pagename), None)
    if chapter is not None:
        body = link_claims(body, root)
        body += citation(chapter, app.config.html_baseurl, kexue.__version__, app.config.copyright)
    context["body"] = unique_ids(scroll_tables(plain_roles(keep_marks(THEBE.sub("", body)))))


def _unwanted(asset: Any) -> bool:
    attributes = getattr(asset, "attributes", {})
    return any(word in f"{getattr(asset, 'filename', asset) or ''} {attributes.get('body') or ''}" for word in UNWANTED)


def link_claims(body: str, root: str) -> str:
    """Add to every claim line a link to its row on the evidence page."""
    link = '<a class="kx-evidence-link" href="{0}evidence.html#evidence-{1}" aria-label="evidence for {1}">evidence</a>'
    return CLAIM.sub(lambda m: f"{m[1]} {link.format(root, m[2])}{m[3]}", body)


def keep_marks(body: str) -> str:
    """Keep a punctuation mark on the line of the formula before it; a browser may break a line behind every formula."""
    return MATH_AND_MARK.sub(r'<span class="kx-together">\1\2</span>', body)


def plain_roles(body: str) -> str:
    """Take off roles that accessibility rules no longer allow, and make parameter lists of signatures what they are: not definitions."""
    body = body.replace(' role="doc-biblioentry"', "").replace('<div role="list" class="citation-list">', '<div class="citation-list">')
    body = EMPTY_HEAD.sub("<td></td>", body)
    body = FORMULA_HEAD.sub(r'\1<span class="kx-hidden">formula </span>\2', body)
    return PARAMETERS.sub(
        lambda m: '<span class="kx-parameters">' + m[1].replace("<dd>", "<span>").replace("</dd>", "</span>") + "</span>", body
    )


def unique_ids(body: str) -> str:
    """Keep the first element of every id and take the id off later ones (proofs, exercises and solutions repeat theirs)."""
    seen: set[str] = set()

    def keep(match: re.Match[str]) -> str:
        if match[2] in seen:
            return match[1]
        seen.add(match[2])
        return match[0]

    return ELEMENT_ID.sub(keep, body)


def scroll_tables(body: str) -> str:
    """Wrap each table that has no frame yet into one that scrolls by itself, also by keyboard."""
    pieces, last = [], 0
    for match in TABLE.finditer(body):
        before = body[last : match.start()]
        pieces.append(before)
        framed = "kx-scroll" in body[max(0, match.start() - 160) : match.start()]
        label = re.search(r"<caption[^>]*>(.*?)</caption>", match[0], re.DOTALL)
        name = html.escape(" ".join(html.unescape(re.sub(r"<[^>]+>", "", label[1])).split()), quote=True) if label else "Table"
        pieces.append(match[0] if framed else f'<div class="kx-scroll" tabindex="0" role="group" aria-label="{name}">{match[0]}</div>')
        last = match.end()
    return "".join([*pieces, body[last:]])


def bibtex(chapter: Chapter, baseurl: str, version: str, year: str) -> str:
    """BibTeX entry of a chapter."""
    title = chapter.title.replace("$", "")
    return (
        f"@incollection{{kexue-{chapter.slug},\n"
        f"  title     = {{{title}}},\n"
        f"  booktitle = {{{BOOK_TITLE}}},\n"
        f"  author    = {{{{The authors of {BOOK_TITLE}}}}},\n"
        f"  year      = {{{year}}},\n"
        f"  version   = {{{version}}},\n"
        f"  url       = {{{baseurl}{chapter.docname}.html}},\n"
        f"  note      = {{After Su Jianlin, {chapter.original['title']}, {chapter.original['date']}, {chapter.original['url']}}}\n"
        "}"
    )


def citation(chapter: Chapter, baseurl: str, version: str, rights: str) -> str:
    """The block at the end of a chapter that says how to cite it, in two forms that a button copies."""
    year = (re.findall(r"\d{4}", rights) or ["n.d."])[-1]
    title = chapter.title.replace("$", "")
    plain = (
        f"{title}. In: {BOOK_TITLE}, version {version} ({year}). {baseurl}{chapter.docname}.html. "
        f"After Su Jianlin, {chapter.original['title']} ({chapter.original['date']}), {chapter.original['url']}."
    )
    block = '<div class="highlight-text notranslate"><div class="highlight"><pre>{}</pre></div></div>'
    return (
        '<section id="cite-this-chapter" class="kx-cite"><h2>How to cite this chapter</h2>'
        + block.format(html.escape(plain))
        + block.format(html.escape(bibtex(chapter, baseurl, version, year)))
        + "</section>"
    )


def save_cards(app: Any, exception: Exception | None) -> None:
    """Write the chapters' card pictures beside the other images."""
    if exception is None and app.builder.format == "html":
        folder = Path(app.outdir) / "_images"
        folder.mkdir(exist_ok=True)
        for chapter in app.kexue_book.chapters:
            if chapter.card is not None:
                (folder / f"card-{chapter.slug}.png").write_bytes(chapter.card)
