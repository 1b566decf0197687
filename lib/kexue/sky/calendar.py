r"""A calendar of celestial events for one civil year in one time zone, as objects, text, CSV and iCalendar.

The year is the reader's: it runs from local midnight of January 1 to local midnight of the next, so that an event in the last hours of
December in Greenwich belongs to the next year in Beijing. A place on the Earth may be given besides; then each event says what that place
sees of it, and an eclipse has its local phases.
"""

import csv
import io
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from kexue.sky.ephemeris import Ephemeris
from kexue.sky.events import Event, tt_of
from kexue.sky.kinds import GROUPS
from kexue.sky.observer import HORIZON, Observer, observed

__all__ = ["calendar", "default_ephemeris", "describe", "to_csv", "to_ics", "to_text", "year_range", "zone_of"]

_COLUMNS = ["local", "utc", "tt_jd", "kind", "bodies", "value", "unit", "note", "uncertainty_s"]
_COLUMNS += ["altitude_deg", "azimuth_deg", "visible", "definition"]
_REVISED = "20261121T000000Z"  # when the definitions last changed: RFC 5545 asks for it, and the clock would make every file differ
_ON_REQUEST = ("terms", "venus")  # groups that only those ask for who count Chinese months or read old lists


@cache
def default_ephemeris() -> Ephemeris:
    """The ephemeris DE421 of the package skyfield-data, opened once; raises :class:`~kexue.data.MissingData` without the package."""
    return Ephemeris()


def zone_of(name: str) -> tzinfo:
    """Return the time zone with an IANA name such as "Asia/Shanghai"; ValueError for an unknown one."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        reason = "an IANA name such as Asia/Shanghai or UTC (on Windows the names come from the package tzdata: pip install tzdata)"
        raise ValueError(f"zone must be {reason}, got {name!r}") from error


def year_range(year: int, zone: tzinfo, ephemeris: Ephemeris) -> tuple[float, float]:
    """First instant of a civil year and of the next as Julian dates in TT; ValueError unless the ephemeris covers it."""
    first, last = ephemeris.range_tt
    years = (int((t - 2451544.5) // 365.2425) + 2000 for t in (first, last))
    low, high = (y + (1 if end == 0 else -1) for end, y in enumerate(years))
    if not low <= year <= high:
        raise ValueError(f"year must lie between {low} and {high}, the whole years of the ephemeris, got {year}")
    t0, t1 = (tt_of(ephemeris, datetime(y, 1, 1, tzinfo=zone)) for y in (year, year + 1))
    return t0, t1


def calendar(
    year: int,
    zone: str = "Asia/Shanghai",
    *,
    kinds: Sequence[str] | None = None,
    place: Observer | None = None,
    ephemeris: Ephemeris | None = None,
) -> list[Event]:
    """All events of a civil year in a time zone, in order of time.

    ``kinds`` names groups of :data:`kexue.sky.kinds.GROUPS`; by default all but the solar terms and Venus's monthly elongation. With a
    ``place``, events say whether their body is up there, and the eclipses that it sees are followed through their phases. All other
    instants stay those of the Earth's centre.

    Raises ValueError for a year that the ephemeris does not cover, an unknown zone or an unknown group, and
    :class:`~kexue.data.MissingData` without skyfield-data.
    """
    groups = [g for g in GROUPS if g not in _ON_REQUEST] if kinds is None else list(kinds)
    if unknown := [g for g in groups if g not in GROUPS]:
        raise ValueError(f"kinds must be among {', '.join(GROUPS)}, got {', '.join(unknown)}")
    local = zone_of(zone)
    ephemeris = default_ephemeris() if ephemeris is None else ephemeris
    t0, t1 = year_range(year, local, ephemeris)
    found = sorted(event for group in groups for event in GROUPS[group](ephemeris, t0, t1))
    return found if place is None else observed(ephemeris, found, place)


def describe(event: Event) -> str:
    """One line of words: what happens, with the value as an almanac prints it, and what a place sees of it if one was given."""
    return "; ".join(filter(None, (_happens(event), _from_here(event))))


def _happens(event: Event) -> str:
    first = event.bodies[0]
    if event.value is None or event.kind.endswith(("equinox", "solstice")):
        return f"{first}, {event.kind}" if event.kind.endswith(("conjunction", "opposition", "sun")) else event.kind
    if event.kind == "greatest eclipse":
        return f"greatest solar eclipse here, {event.note}, magnitude {event.value:.3f}"
    if len(event.bodies) == 2 and event.kind != "solar eclipse":
        side = "N" if event.value > 0 else "S"
        return f"{first} {abs(event.value):.1f}° {side} of {event.bodies[1]}"
    if "elongation" in event.kind:
        return f"{first}, {event.kind} {abs(event.value):.1f}° {'E' if event.value > 0 else 'W'}"
    if "eclipse" in event.kind:
        return f"{event.note} {event.kind}, {'gamma' if event.bodies[0] == 'Sun' else 'magnitude'} {event.value:.3f}"
    if event.kind == "meteor shower":
        return f"{first}, {event.value:.0f} per hour"
    digits = {"km": ".0f", "au": ".4f"}.get(event.unit, ".1f" if event.kind != "solar term" else ".0f")
    return f"{event.kind} {event.value:{digits}} {event.unit.replace('deg', '°')}".replace(" °", "°")


def _from_here(event: Event) -> str:
    here, first = event.here, event.bodies[0]
    if here is None:
        return ""
    if event.kind.endswith("r eclipse") and not here.visible:
        return "not visible here"
    if here.altitude <= HORIZON:
        return f"{first} below the horizon"
    apart = f", {here.separation:.1f}° apart from here" if event.kind == "conjunction with moon" else ""
    return f"{first} {max(here.altitude, 0):.0f}° high{' by day' if here.by_day and first != 'Sun' else ''}{apart}"


def to_text(events: Sequence[Event], zone: str) -> str:
    """The calendar as lines of text: local time to the minute, with its offset from UTC, and a description."""
    local_zone = zone_of(zone)
    return "".join(f"{_rounded(e).astimezone(local_zone):%Y-%m-%d %H:%M %z}  {describe(e)}\n" for e in events)


def to_csv(events: Sequence[Event], zone: str) -> str:
    """The calendar as comma-separated values, one row per event with local time, UTC and TT, uncertainty and definition."""
    local_zone, file = zone_of(zone), io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for e in events:
        local, utc = (x.isoformat(timespec="seconds") for x in (e.at(local_zone), e.utc))
        value = "" if e.value is None else f"{e.value:.7g}"
        here = ["", "", ""] if e.here is None else [f"{e.here.altitude:.1f}", f"{e.here.azimuth:.1f}", "yes" if e.here.visible else "no"]
        about = [e.kind, "/".join(e.bodies), value, e.unit, e.note, f"{e.uncertainty:.1f}"]
        writer.writerow([local, utc, f"{e.tt:.6f}", *about, *here, e.definition])
    return file.getvalue()


def to_ics(events: Sequence[Event]) -> str:
    """The calendar as an iCalendar file (RFC 5545): events without duration in UTC, which a phone shows in its own time zone.

    Raises ValueError without events: the format knows no empty calendar.
    """
    if not events:
        raise ValueError("events must not be empty: an iCalendar file has at least one")
    lines = ["BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:-//scientific-spaces//kexue.sky//EN"]
    for e in events:
        start = _rounded(e).astimezone(UTC)
        uid = f"{start:%Y%m%dT%H%M}-{'-'.join((e.kind, *e.bodies)).replace(' ', '-').lower()}@kexue.sky"
        lines += ["BEGIN:VEVENT", f"UID:{uid}", f"DTSTAMP:{_REVISED}", f"DTSTART:{start:%Y%m%dT%H%M%SZ}"]
        lines += [f"SUMMARY:{_escaped(describe(e))}", f"DESCRIPTION:{_escaped(e.definition)}", "TRANSP:TRANSPARENT", "END:VEVENT"]
    return "".join(_folded(line) + "\r\n" for line in [*lines, "END:VCALENDAR"])


def _rounded(event: Event) -> datetime:
    return (event.utc + timedelta(seconds=30)).replace(second=0, microsecond=0)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(";", "\\;").replace(",", "\\,")


def _folded(line: str) -> str:
    """Break a line before its 75th octet, as RFC 5545 asks; a continuation begins with a space, and no character is cut."""
    parts, size = [""], 0
    for character in line:
        size += len(character.encode())
        if size > 74:
            parts.append(" ")
            size = 1 + len(character.encode())
        parts[-1] += character
    return "\r\n".join(parts)
