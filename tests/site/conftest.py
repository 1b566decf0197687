"""The built site, served on the loopback interface, and a browser that cannot reach anything else."""

from __future__ import annotations

import functools
import http.server
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from filelock import FileLock
from kexue.book.site.__main__ import build
from kexue.book.site.browser import FLAGS, BrowserMissing, find_browser
from kexue.book.site.content import Book
from playwright.sync_api import Browser, BrowserContext, Page, Route, sync_playwright

ROOT = Path(os.environ.get("KEXUE_ROOT", Path(__file__).resolve().parents[2]))
SOURCES = ("*.md", "_*.yml", "references.bib", "chapters/**/*.ipynb", "_static/*", "_templates/*", "data/**/*", "lib/kexue/book/site/*.py")


@pytest.fixture(scope="session")
def book() -> Book:
    return Book.read(ROOT)


@pytest.fixture(scope="session")
def site() -> Path:
    """The directory of the built pages; it is built if it is missing or older than a source."""
    index = ROOT / "_build/html/index.html"
    newest = max(path.stat().st_mtime for pattern in SOURCES for path in ROOT.glob(pattern) if path.is_file())
    with FileLock(Path(tempfile.gettempdir()) / f"kexue-site-{os.getuid()}.lock"):  # several test processes may want it at once
        if (not index.is_file() or index.stat().st_mtime < newest) and build(ROOT) != 0:
            pytest.fail("the book does not build: run `make book` to see why", pytrace=False)
    return index.parent


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[str, BeautifulSoup]:
    """Every page by its path below the site, parsed as it was written."""
    written = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    return {path.relative_to(site).as_posix(): BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in written}


@pytest.fixture(scope="session")
def server(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listener.server_port}"
        listener.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    try:
        path = find_browser()
    except BrowserMissing as error:
        pytest.fail(str(error), pytrace=False)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield started
        started.close()


class Watch:
    """A page together with everything it asked for and complained about."""

    def __init__(self, context: BrowserContext) -> None:
        self.page: Page = context.new_page()
        self.foreign: list[str] = []
        self.complaints: list[str] = []
        context.route("**/*", self._gate)
        self.page.on("console", lambda message: self.complaints.append(message.text) if message.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _gate(self, route: Route) -> None:
        if route.request.url.startswith(("http://127.0.0.1:", "file:", "data:", "blob:")):
            route.continue_()
        else:
            self.foreign.append(route.request.url)
            route.abort()

    def open(self, address: str) -> Page:
        """Open a page and wait until its mathematics is set; the records begin anew."""
        self.foreign.clear()
        self.complaints.clear()
        self.page.goto(address)
        self.page.evaluate("window.MathJax?.startup?.promise")
        self.page.evaluate("document.fonts.ready.then(() => true)")
        return self.page


@pytest.fixture(scope="session", params=["light", "dark"])
def themed(request: pytest.FixtureRequest, browser: Browser) -> Iterator[tuple[str, Watch]]:
    """A desk-sized page in the light and in the dark theme."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.add_init_script(f'localStorage.setItem("mode", "{request.param}"); localStorage.setItem("theme", "{request.param}")')
    yield request.param, Watch(context)
    context.close()


@pytest.fixture(scope="session")
def desk(browser: Browser) -> Iterator[Watch]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield Watch(context)
    context.close()


@pytest.fixture(scope="session")
def phone(browser: Browser) -> Iterator[Watch]:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    yield Watch(context)
    context.close()
