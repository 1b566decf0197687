"""Numbers and tables that a chapter shows: glued values for the prose, and small tables for comparison."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["glue", "table"]

_GLUE_TYPE = "application/papermill.record/text/plain"
_KEY = re.compile(r"[a-zA-Z0-9]+(-[a-zA-Z0-9]+)*")


def glue(key: str, value: Any, spec: str = "") -> str:
    """Store ``value``, formatted by ``spec``, under ``key`` for use in the prose by ``{glue:text}`` and return the formatted text.

    The record has the form that myst-nb reads, so the function works where myst-nb is not installed. Choose ``spec`` so that only
    digits are shown that every machine reproduces. Raises ValueError for a key that is not words joined by hyphens and for NaN.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ValueError(f"key must be words joined by hyphens, got {key!r}")
    value = _unwrap(value)
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"value glued as {key!r} is NaN")
    text = _cell(value, spec)
    from IPython.display import display

    metadata = {"scrapbook": {"name": key, "mime_prefix": "application/papermill.record/"}}
    display({_GLUE_TYPE: repr(text)}, metadata=metadata, raw=True)  # quoted, or myst-nb would read a number and drop its final zeros
    return text


def table(
    rows: Sequence[Mapping[str, Any]],
    *,
    formats: Mapping[str, str] | None = None,
    best: Mapping[str, str] | None = None,
    caption: str | None = None,
) -> None:
    """Display rows (mappings with the same keys) as a table with aligned numbers.

    ``formats`` maps a column to a format specification such as ``".3f"``; ``best`` maps a column to ``"min"`` or ``"max"`` and sets that
    value in bold. Missing values are ``None`` and shown as a dash. Raises ValueError for no rows, for rows with different columns and for
    a column in ``formats`` or ``best`` that no row has.
    """
    formats, best = dict(formats or {}), dict(best or {})
    if not rows:
        raise ValueError("rows must hold at least one row, got none")
    rows = [{name: _unwrap(value) for name, value in row.items()} for row in rows]
    columns = list(rows[0])
    for i, row in enumerate(rows):
        if list(row) != columns:
            raise ValueError(f"every row must have the columns {columns}, row {i} has {list(row)}")
    for name in (*formats, *best):
        if name not in columns:
            raise ValueError(f"unknown column {name!r}; the columns are {columns}")
    chosen = {}
    for name, which in best.items():
        if which not in ("min", "max"):
            raise ValueError(f"best[{name!r}] must be 'min' or 'max', got {which!r}")
        numbers = [row[name] for row in rows if isinstance(row[name], (int, float))]
        chosen[name] = (min if which == "min" else max)(numbers) if numbers else None
    cells = [[_cell(row[name], formats.get(name, "")) for name in columns] for row in rows]
    numeric = [all(isinstance(row[name], (int, float, type(None))) and not isinstance(row[name], bool) for row in rows) for name in columns]
    widths = [max(len(name), *(len(row[j]) for row in cells)) for j, name in enumerate(columns)]
    plain = ["  ".join(name.rjust(w) if n else name.ljust(w) for name, w, n in zip(columns, widths, numeric, strict=True)).rstrip()]
    plain += ["  ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)).rstrip() for row in cells]

    def td(i: int, j: int) -> str:
        text = html.escape(cells[i][j])
        bold = columns[j] in chosen and chosen[columns[j]] is not None and rows[i][columns[j]] == chosen[columns[j]]
        return f"<td{' class=kx-number' if numeric[j] else ''}>{f'<strong>{text}</strong>' if bold else text}</td>"

    head = "".join(
        f'<th scope="col"{" class=kx-number" if n else ""}>{html.escape(name)}</th>' for name, n in zip(columns, numeric, strict=True)
    )
    body = "".join("<tr>" + "".join(td(i, j) for j in range(len(columns))) + "</tr>" for i in range(len(rows)))
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    markup = f'<table class="kx-table">{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    from IPython.display import display

    display({"text/plain": "\n".join(([caption] if caption else []) + plain), "text/html": markup}, raw=True)


def _cell(value: Any, spec: str) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return format(value, spec) if isinstance(value, str) else str(value)
    text = format(value, spec)
    return "−" + text[1:] if text.startswith("-") else text


def _unwrap(value: Any) -> Any:
    """A zero-dimensional array or tensor as a Python number; anything else unchanged."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
