"""The map of a part: its chapters as boxes, and an arrow from each chapter to those that build on it.

``{kx-map}`` reads lines of two kinds: ``slug = Short title`` puts a chapter on the map, ``slug -> slug: what is needed`` draws an
arrow. Arrows point down, so that a reader who goes from the top to the bottom never meets a chapter before what it needs. What an arrow
stands for is written in a list below the drawing, which is also what a screen reader hears.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Arrow", "Map"]

WIDTH, HEIGHT, GAP, ROW = 200, 74, 20, 132  # a box, the room between two boxes, and the distance of two rows; a page has three boxes
CHARACTERS = 17  # of one line in a box


@dataclass(frozen=True)
class Arrow:
    """``head`` builds on ``tail``: ``why`` says on what of it."""

    tail: str
    head: str
    why: str


@dataclass
class Map:
    """Chapters with their short titles, and the arrows between them."""

    titles: dict[str, str] = field(default_factory=dict)
    arrows: list[Arrow] = field(default_factory=list)

    @classmethod
    def read(cls, lines: Iterable[str]) -> Map:
        """Read the directive's lines; raises ValueError, quoting the line, if it is of neither kind or names an unknown box."""
        found = cls()
        for line in filter(None, map(str.strip, lines)):
            if arrow := re.fullmatch(r"([\w-]+) -> ([\w-]+): (.+)", line):
                found.arrows.append(Arrow(*arrow.groups()))
                if missing := {arrow[1], arrow[2]} - found.titles.keys():
                    raise ValueError(f"{line!r} names {', '.join(sorted(missing))}, which no earlier line 'slug = Short title' introduces")
            elif box := re.fullmatch(r"([\w-]+) = (.+)", line):
                found.titles[box[1]] = box[2]
            else:
                raise ValueError(f"{line!r} is neither 'slug = Short title' nor 'slug -> slug: what is needed'")
        return found

    def rows(self) -> list[list[str]]:
        """The boxes by the length of the longest chain that leads to them, those without arrows last; raises ValueError if arrows
        run in a circle."""
        depth = dict.fromkeys(self.titles, 0)
        for _ in self.titles:
            before = dict(depth)
            for arrow in self.arrows:
                depth[arrow.head] = max(depth[arrow.head], depth[arrow.tail] + 1)
            if depth == before:
                linked = {slug for arrow in self.arrows for slug in (arrow.tail, arrow.head)}
                depth |= dict.fromkeys(depth.keys() - linked, max(depth.values(), default=0))
                rows = [[slug for slug in self.titles if depth[slug] == level] for level in range(max(depth.values(), default=-1) + 1)]
                return [row[start : start + 3] for row in rows for start in range(0, len(row), 3)]
        raise ValueError(f"the arrows between {', '.join(self.titles)} run in a circle")

    def drawing(self, links: dict[str, str]) -> str:
        """The map as SVG; ``links`` gives the address of every box."""
        rows = self.rows()
        page = 3 * WIDTH + 2 * GAP
        place = {}
        for level, row in enumerate(rows):
            left = (page - len(row) * WIDTH - (len(row) - 1) * GAP) // 2
            for column, slug in enumerate(row):
                place[slug] = (left + column * (WIDTH + GAP), level * ROW)
        parts = [self._arrow(place, arrow) for arrow in self.arrows]
        for slug, (x, y) in place.items():
            words = textwrap.wrap(self.titles[slug], CHARACTERS)
            first = y + HEIGHT / 2 + 7 - 12 * (len(words) - 1)
            lines = "".join(
                f'<tspan x="{x + WIDTH // 2}" y="{first + 24 * i:g}">{html.escape(word)}</tspan>' for i, word in enumerate(words)
            )
            parts.append(
                f'<a href="{links[slug]}"><rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
                f'<text text-anchor="middle">{lines}</text></a>'
            )
        tall = (len(rows) - 1) * ROW + HEIGHT
        return (
            f'<svg class="kx-map" viewBox="-2 -2 {page + 4} {tall + 4}" role="group" aria-label="Map of the chapters">'
            '<defs><marker id="kx-head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
            f'<path d="M0 0L8 4L0 8z"/></marker></defs>{"".join(parts)}</svg>'
        )

    def _arrow(self, place: dict[str, tuple[int, int]], arrow: Arrow) -> str:
        """A curve from the lower edge of one box to the upper edge of the other; arrows at one box stand beside each other."""
        (x, y), (u, v) = place[arrow.tail], place[arrow.head]
        leaving = sorted((a for a in self.arrows if a.tail == arrow.tail), key=lambda a: place[a.head])
        coming = sorted((a for a in self.arrows if a.head == arrow.head), key=lambda a: place[a.tail])
        x += WIDTH * (leaving.index(arrow) + 1) // (len(leaving) + 1)
        u += WIDTH * (coming.index(arrow) + 1) // (len(coming) + 1)
        y += HEIGHT
        return f'<path class="kx-arrow" d="M{x} {y}C{x} {y + 32} {u} {v - 36} {u} {v - 4}" marker-end="url(#kx-head)"/>'
