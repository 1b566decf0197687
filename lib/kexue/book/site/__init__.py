"""Sphinx extension of the book: what the pages know about chapters, claims, evidence, errata and benchmarks.

It is imported without torch: everything it shows is read from the committed notebooks and from the files below ``data/``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sphinx.errors import ConfigError

from kexue.book.site import directives, pages, reference, shaping
from kexue.book.site.content import Book

__all__ = ["setup"]


def setup(app: Any) -> dict[str, Any]:
    """Register roles, directives and page handlers with Sphinx."""
    app.connect("config-inited", _prepare, priority=900)  # after the table of contents has been read
    app.connect("doctree-read", shaping.split_question)
    app.connect("doctree-read", shaping.open_proofs)
    app.connect("doctree-resolved", shaping.fold, priority=900)  # after all references have got their texts
    app.connect("env-updated", pages.describe)
    app.connect("html-page-context", pages.finish, priority=900)  # after the theme and OpenGraph have filled the context
    app.connect("missing-reference", reference.resolve_alias)
    app.connect("build-finished", pages.save_cards)
    directives.register(app)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def _prepare(app: Any, config: Any) -> None:
    try:
        app.kexue_book = Book.read(Path(app.srcdir))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    # the API pages are written during the build, so they are not in the table of contents' list of known files
    config.exclude_patterns = [pattern for pattern in config.exclude_patterns if not pattern.startswith("api/")]
