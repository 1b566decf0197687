"""The published calendar of 2020 as data, and the comparison of two calendars row by row.

The rows are those of the post 2020年全年天象 (kexue.fm/archives/7144), which translated NASA's SKYCAL list into Beijing time.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.resources import files
from typing import NamedTuple
from zoneinfo import ZoneInfo

from kexue.sky.events import Event

__all__ = ["BEIJING", "Match", "Row", "almanac_2020", "match", "omissions", "residuals"]

BEIJING = ZoneInfo("Asia/Shanghai")
_NUMBERED = ("km", "au", "deg", "per hour")


@dataclass(frozen=True)
class Row:
    """One published row: its time, to the minute, with time zone; kind and bodies as in :class:`~kexue.sky.events.Event`.

    ``timed`` is False for a row of the whole day, whose ``when`` is that day's local midnight. ``value`` is in ``unit``; eclipses have a
    type instead, in ``note``.
    """

    when: datetime
    kind: str
    bodies: tuple[str, ...]
    value: float | None = None
    unit: str = ""
    note: str = ""
    timed: bool = True


class Match(NamedTuple):
    """A published row, the computed event that it means or None, and published minus computed in minutes (NaN without a partner)."""

    row: Row
    event: Event | None
    minutes: float


def almanac_2020() -> list[Row]:
    """Return the 264 rows of the published calendar of 2020, in Beijing time."""
    text = files("kexue.sky").joinpath("almanac_2020.tsv").read_text(encoding="utf-8")
    return [_parsed(line) for line in text.splitlines() if not line.startswith("#")]


def _parsed(line: str) -> Row:
    time, kind, bodies, *rest = line.split("\t")
    value, last = [*rest, "", ""][:2]
    number = float(value) if value else None
    unit, note = (last, "") if last in _NUMBERED else ("", last)
    return Row(datetime.fromisoformat(time).replace(tzinfo=BEIJING), kind, tuple(bodies.split("/")), number, unit, note, " " in time)


def match(computed: Sequence[Event], published: Sequence[Row], *, window: timedelta = timedelta(hours=36)) -> list[Match]:
    """Give each published row the nearest computed event of its kind and bodies within ``window``, nearest pairs first, each event once.

    Raises ValueError if the window is not positive.
    """
    if not window > timedelta(0):
        raise ValueError(f"window must be positive, got {window}")
    pairs = [
        (abs(row.when - event.utc), i, j)
        for i, row in enumerate(published)
        for j, event in enumerate(computed)
        if (row.kind, row.bodies) == (event.kind, event.bodies) and abs(row.when - event.utc) <= window
    ]
    partner: dict[int, int] = {}
    for _, i, j in sorted(pairs):
        if i not in partner and j not in partner.values():
            partner[i] = j
    return [_matched(row, computed[partner[i]] if i in partner else None) for i, row in enumerate(published)]


def _matched(row: Row, event: Event | None) -> Match:
    return Match(row, event, float("nan") if event is None else (row.when - event.utc) / timedelta(minutes=1))


def omissions(computed: Sequence[Event], matches: Iterable[Match]) -> list[Event]:
    """Computed events that no published row means."""
    met = {m.event for m in matches}
    return [event for event in computed if event not in met]


def residuals(matches: Iterable[Match], *, label: Callable[[Row], str] = lambda row: row.kind) -> list[dict[str, object]]:
    """Table of the residuals of timed rows, by kind or by what ``label`` calls a row: how many rows, median and largest in minutes, and
    the rows without a partner."""
    sorted_out: dict[str, list[Match]] = {}
    for m in matches:
        if m.row.timed:
            sorted_out.setdefault(label(m.row), []).append(m)
    return [_summary(name, found) for name, found in sorted_out.items()]


def _summary(name: str, found: list[Match]) -> dict[str, object]:
    minutes = [m.minutes for m in found if m.event is not None]
    return {
        "rows about": name,
        "rows": len(found),
        "median [min]": statistics.median(minutes) if minutes else float("nan"),
        "largest [min]": max(minutes, key=abs) if minutes else float("nan"),
        "without partner": len(found) - len(minutes),
    }
