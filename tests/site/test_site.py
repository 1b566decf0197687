"""What a reader's browser sees: every page, offline, in both themes, on a desk and on a phone."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

import axe_playwright_python
import numpy as np
import pytest
from bs4 import BeautifulSoup
from kexue.book.site.content import Book
from PIL import Image

AXE = next(Path(axe_playwright_python.__file__).parent.rglob("axe.min.js")).read_text(encoding="utf-8")
RAW_MATHEMATICS = r"""() => {
  const walker = document.createTreeWalker(document.querySelector("article") || document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  for (let node; (node = walker.nextNode()); ) {
    if (node.parentElement.closest("pre, code, script, style, mjx-container, .kx-cite")) continue;
    if (/\$\$|\\\(|\\\[|\$[^$\s][^$]*\$/.test(node.data)) found.push(node.data.trim().slice(0, 80));
  }
  return found;
}"""
# The dark page is the light one in other colours, so the rules on colour are enough there; style sheets of other hosts do not occur.
AXE_OPTIONS = {
    "light": {"preload": False, "resultTypes": ["violations"]},
    "dark": {
        "preload": False,
        "resultTypes": ["violations"],
        "runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]},
    },
}
CUT_FORMULAS = """() => {
  const edge = (document.querySelector("article") || document.body).getBoundingClientRect().right + 1;
  const formulas = [...document.querySelectorAll("article span.math mjx-container")];
  return formulas.filter((one) => !one.closest("table, .output") && one.getBoundingClientRect().right > edge).length;
}"""
OPEN_FOLDS = "document.querySelectorAll('details').forEach((fold) => (fold.open = true))"


def chapter_pages(book: Book) -> list[str]:
    return [f"{chapter.docname}.html" for chapter in book.chapters]


# ---------------------------------------------------------------- every page, over http


def test_every_page_keeps_to_itself_and_sets_its_mathematics(pages: dict[str, BeautifulSoup], server: str, desk) -> None:
    """One tour, since it takes a minute: no request to another host, no complaint in the console, every formula set."""
    found = {}
    for name, soup in pages.items():
        page = desk.open(f"{server}/{name}")
        formulas, errors = (page.locator(selector).count() for selector in ("mjx-container", "mjx-merror"))
        lacking = max(0, len(soup.select("article .math")) - formulas)
        seen = {"foreign": list(desk.foreign), "console": list(desk.complaints), "raw": page.evaluate(RAW_MATHEMATICS)}
        seen |= {"errors": errors, "lacking": lacking}
        if any(seen.values()):
            found[name] = seen
    assert not found


def test_no_page_scrolls_sideways_at_390_px_and_no_formula_is_cut(pages: dict, server: str, phone) -> None:
    wide = {}
    for name in pages:
        page = phone.open(f"{server}/{name}")
        page.evaluate(OPEN_FOLDS)
        page.wait_for_timeout(50)  # the folds tell the script of the formulas that they are open
        width, cut = page.evaluate("document.documentElement.scrollWidth"), page.evaluate(CUT_FORMULAS)
        if width > 390 or cut:
            wide[name] = width, cut
    assert not wide


def test_axe_finds_nothing_on_the_landing_page_and_the_chapters(book: Book, server: str, themed) -> None:
    theme, watch = themed
    found = {}
    for name in ["index.html", *chapter_pages(book), "evidence.html", "errata.html", "benchmarks.html", "glossary.html", "search.html"]:
        page = watch.open(f"{server}/{name}")
        page.evaluate(OPEN_FOLDS)
        page.evaluate(AXE)
        run = "(options) => axe.run({ exclude: ['mjx-container'] }, options)"  # not its thousands of hidden glyphs
        violations = page.evaluate(run, AXE_OPTIONS[theme])["violations"]
        if violations:
            found[name] = [(v["id"], v["nodes"][0]["html"][:200]) for v in violations]
    assert not found, theme


# ---------------------------------------------------------------- from the file system


def test_pages_open_from_the_file_system(book: Book, site: Path, desk) -> None:
    for name in ["index.html", "evidence.html", *chapter_pages(book)]:
        page = desk.open((site / name).as_uri())
        assert (desk.foreign, desk.complaints) == ([], []), name
        if name in chapter_pages(book):
            assert page.locator("mjx-container").count() > 0, name


@pytest.mark.parametrize("how", ["served", "file"])
def test_search_finds_a_word_of_a_chapter(how: str, book: Book, site: Path, server: str, desk) -> None:
    chapter = book.chapters[0]
    word = max(re.findall(r"[a-z]{6,}", chapter.question.lower()), key=len)
    address = f"{server}/search.html" if how == "served" else (site / "search.html").as_uri()
    page = desk.open(f"{address}?q={word}")
    page.wait_for_selector("#search-results ul.search li a", timeout=15_000)
    hits = page.eval_on_selector_all("#search-results ul.search li a", "(links) => links.map((a) => a.href)")
    assert any(chapter.docname in hit for hit in hits), (word, hits)
    assert desk.foreign == []


# ---------------------------------------------------------------- as written


def test_every_internal_link_and_anchor_resolves(pages: dict[str, BeautifulSoup], site: Path) -> None:
    anchors = {name: {element["id"] for element in soup.select("[id]")} for name, soup in pages.items()}
    broken = []
    for name, soup in pages.items():
        targets = (
            [a["href"] for a in soup.select("a[href]")]
            + [i["src"] for i in soup.select("img[src], script[src]")]
            + [i["href"] for i in soup.select("link[href]")]
        )
        for target in targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            path = (site / name).parent / unquote(parts.path) if parts.path else site / name
            path = path.resolve()
            if not path.is_file():
                broken.append((name, target))
            elif parts.fragment and path.suffix == ".html":
                here = path.relative_to(site.resolve()).as_posix()
                if here in anchors and unquote(parts.fragment) not in anchors[here]:
                    broken.append((name, target))
    assert not broken


def test_no_element_id_is_used_twice(pages: dict[str, BeautifulSoup], server: str, book: Book, desk) -> None:
    for name, soup in pages.items():
        twice = [key for key, n in Counter(element["id"] for element in soup.select("[id]")).items() if n > 1]
        assert not twice, name
    for name in chapter_pages(book):  # and after the scripts have run
        page = desk.open(f"{server}/{name}")
        ids = page.eval_on_selector_all("[id]", "(all) => all.map((element) => element.id)")
        assert [key for key, n in Counter(ids).items() if n > 1] == [], name


def test_every_picture_says_what_one_sees(pages: dict[str, BeautifulSoup]) -> None:
    for name, soup in pages.items():
        for image in soup.select("article img"):
            alt = image.get("alt", "")
            assert len(alt.split()) >= 3, (name, image.get("src"), alt)
            assert not re.search(r"\.(png|svg|jpe?g|ipynb)\b|^_?images?/", alt), (name, alt)


def test_every_claim_links_to_its_evidence_and_back(pages: dict[str, BeautifulSoup], book: Book) -> None:
    rows = {row["id"]: row.select_one("a.kx-claim-id")["href"] for row in pages["evidence.html"].select("tr[id^=evidence-]")}
    assert len(rows) == book.n_claims > 0
    for chapter in book.chapters:
        soup = pages[f"{chapter.docname}.html"]
        lines = soup.select(".kx-claim")
        assert [line["id"] for line in lines] == [f"claim-{claim['id']}" for claim in chapter.claims]
        for line, claim in zip(lines, chapter.claims, strict=True):
            assert line.select_one("a.kx-evidence-link")["href"].endswith(f"evidence.html#evidence-{claim['id']}")
            assert rows[f"evidence-{claim['id']}"] == f"{chapter.docname}.html#claim-{claim['id']}"


def test_every_erratum_leads_to_its_chapter(pages: dict[str, BeautifulSoup], book: Book) -> None:
    shown = {element["id"] for element in pages["errata.html"].select(".kx-erratum")}
    assert shown == {f"erratum-{entry['id']}" for entries in book.errata.values() for entry in entries}


def test_link_previews_and_sitemap_name_every_chapter(pages: dict[str, BeautifulSoup], book: Book, site: Path) -> None:
    sitemap = (site / "sitemap.xml").read_text(encoding="utf-8")
    for chapter in book.chapters:
        soup = pages[f"{chapter.docname}.html"]
        properties = {meta["property"]: meta["content"] for meta in soup.select("meta[property]")}
        assert properties["og:description"].startswith(chapter.question.replace("$", "")[:60])
        assert properties["og:image"].endswith(f"card-{chapter.slug}.png")
        assert f"{chapter.docname}.html" in sitemap


# ---------------------------------------------------------------- what moves


def test_landing_page_counts_the_claims_and_shows_the_cards(server: str, book: Book, desk) -> None:
    page = desk.open(f"{server}/index.html")
    assert page.locator(".kx-numbers strong").first.inner_text() == str(book.n_claims)
    assert page.locator(".kx-card").count() == len(book.chapters)
    page.eval_on_selector_all(".kx-card-picture", "(pictures) => pictures.forEach((p) => (p.loading = 'eager'))")
    page.wait_for_function(
        "[...document.querySelectorAll('.kx-card-picture')].every((p) => p.complete && p.naturalWidth > 0)", timeout=10_000
    )
    assert page.locator(".kx-card-picture").count() == len(book.chapters)


def test_sliders_move_the_curves_by_keyboard(book: Book, pages: dict[str, BeautifulSoup], server: str, desk) -> None:
    moved = 0
    for name in chapter_pages(book):
        if not pages[name].select(".kx-slider"):
            continue
        for slider in pages[name].select(".kx-slider"):
            assert slider.select_one("img.kx-still")["src"].startswith("data:image/svg+xml,"), f"{name}: a picture without script"
        page = desk.open(f"{server}/{name}")
        for i in range(page.locator(".kx-slider").count()):
            figure = page.locator(".kx-slider").nth(i)
            if not figure.is_visible():  # an option that its list does not show
                continue
            drawing = "(figure) => [...figure.querySelectorAll('.kx-curves path')].map((p) => p.getAttribute('d')).join('|')"
            before, label = figure.evaluate(drawing), figure.locator("output").inner_text()
            handle = figure.locator("input[type=range]")
            handle.focus()
            handle.press("ArrowRight" if handle.input_value() == "0" else "ArrowLeft")
            assert figure.evaluate(drawing) != before, name
            assert figure.locator("output").inner_text() != label, name
            moved += 1
    assert moved >= 2, "at least two figures of the book are interactive"


def test_choices_exchange_the_figure_by_keyboard(book: Book, pages: dict[str, BeautifulSoup], server: str, desk) -> None:
    for name in chapter_pages(book):
        page = desk.open(f"{server}/{name}") if pages[name].select(".kx-choice") else None
        for i in range(page.locator(".kx-choice").count() if page else 0):
            choice = page.locator(".kx-choice").nth(i)
            shown = choice.locator(".kx-slider:visible")
            before, place = shown.get_attribute("id"), shown.locator("input").input_value()
            choice.locator("select").focus()
            choice.locator("select").press("ArrowDown")
            assert shown.count() == 1, f"{name}: one figure of the list is shown"
            assert shown.get_attribute("id") != before, name
            assert shown.locator("input").input_value() == place, f"{name}: the slider keeps its place"


def test_evidence_filter_hides_the_other_rows(server: str, book: Book, desk) -> None:
    page = desk.open(f"{server}/evidence.html")
    claim = book.chapters[0].claims[0]["id"]
    page.fill("#kx-filter-text", claim)
    visible = page.eval_on_selector_all(".kx-evidence tbody tr", "(rows) => rows.filter((r) => !r.hidden).map((r) => r.id)")
    assert f"evidence-{claim}" in visible
    assert len(visible) < book.n_claims
    page.fill("#kx-filter-text", "")
    page.select_option("#kx-filter-chapter", book.chapters[-1].slug)
    visible = page.eval_on_selector_all(".kx-evidence tbody tr", "(rows) => rows.filter((r) => !r.hidden).length")
    assert visible == len(book.chapters[-1].claims)


def test_citation_can_be_copied(server: str, book: Book, desk) -> None:
    page = desk.open(f"{server}/{chapter_pages(book)[0]}")
    assert page.locator(".kx-cite button.copybtn").count() == 2
    assert f"kexue-{book.chapters[0].slug}" in page.locator(".kx-cite pre").nth(1).inner_text()


# ---------------------------------------------------------------- figures on a dark ground


def test_figures_stay_legible_and_melt_into_the_dark_page(book: Book, server: str, browser) -> None:
    for name in ["index.html", *chapter_pages(book)]:
        shots: dict[str, list[np.ndarray]] = {}
        grounds: dict[str, np.ndarray] = {}
        for theme in ("light", "dark"):
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            context.add_init_script(f'localStorage.setItem("mode", "{theme}"); localStorage.setItem("theme", "{theme}")')
            page = context.new_page()
            page.goto(f"{server}/{name}")
            page.evaluate("window.MathJax?.startup?.promise")
            page.evaluate("document.fonts.ready.then(() => true)")
            page.evaluate(OPEN_FOLDS)
            page.add_style_tag(content=".bd-header-article, #pst-skip-link { display: none }")  # they would lie over the picture
            colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
            grounds[theme] = np.array([int(v) for v in re.findall(r"\d+", colour)[:3]])
            images = page.locator("article .cell_output img, .kx-card-picture")
            shots[theme] = [np.asarray(Image.open(io.BytesIO(images.nth(i).screenshot())).convert("RGB")) for i in range(images.count())]
            context.close()
        assert shots["light"], name
        for i, (light, dark) in enumerate(zip(shots["light"], shots["dark"], strict=True)):
            assert np.abs(dark[4, 4].astype(int) - grounds["dark"]).max() <= 16, f"{name}: the ground of figure {i} shows on the dark page"
            legible = [(contrast(shot, grounds[theme]) >= 3).sum() for theme, shot in (("light", light), ("dark", dark))]
            assert legible[1] >= 0.9 * legible[0], f"{name}: figure {i} keeps {legible[1]} of {legible[0]} legible points on the dark page"


def contrast(pixels: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """WCAG contrast ratio of every pixel to the ground."""
    a, b = luminance(pixels), luminance(ground)
    return (np.maximum(a, b) + 0.05) / (np.minimum(a, b) + 0.05)


def luminance(colour: np.ndarray) -> np.ndarray:
    c = colour / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])
