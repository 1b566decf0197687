r"""The groups of kinds of a calendar: each function finds the events of its group between two Julian dates in TT.

The quantities are one line each. What matters is which one: conjunctions with the Moon are equal right ascensions, the others equal
longitudes, close approaches are minima of an angle, and the apsides are extrema of a distance at one instant.
"""

from collections.abc import Callable
from itertools import combinations

import numpy as np
from jaxtyping import Float

from kexue.sky.eclipses import lunar_eclipses, solar_eclipses
from kexue.sky.ephemeris import PLANETS, STARS, Ephemeris
from kexue.sky.events import AU, KILOMETRE, Event, Quantity, events, extrema, roots
from kexue.sky.search import wrap

__all__ = ["GROUPS", "SHOWERS", "longitude_difference", "right_ascension_difference", "solar_longitude_j2000", "terms"]

BRIGHT = PLANETS[:5]
CLOSE = 7.0  # degrees: farther approaches are not worth a line
SHOWERS = {  # solar longitude of J2000 in degrees and zenithal hourly rate at the peak, as reported of the IMO calendar 2020
    "Quadrantids": (283.16, 110),
    "Lyrids": (32.32, 18),
    "eta Aquariids": (45.5, 50),
    "Southern delta Aquariids": (127.0, 25),
    "Perseids": (140.0, 100),
    "Orionids": (208.0, 20),
    "Southern Taurids": (197.0, 5),
    "Northern Taurids": (230.0, 5),
    "Leonids": (235.27, 15),
    "Geminids": (262.2, 150),
    "Ursids": (270.7, 10),
}
_SEASONS = ["march equinox", "june solstice", "september equinox", "december solstice"]
_PHASES = ["new moon", "first quarter", "full moon", "last quarter"]


def longitude_difference(ephemeris: Ephemeris, a: str, b: str) -> Quantity:
    """Difference of apparent ecliptic longitudes of date in degrees, ``a`` minus ``b``, as a function of Julian dates in TT."""
    return lambda tt: ephemeris.place(a, tt).lon - ephemeris.place(b, tt).lon


def right_ascension_difference(ephemeris: Ephemeris, a: str, b: str) -> Quantity:
    """Difference of apparent right ascensions of date in degrees, ``a`` minus ``b``, as a function of Julian dates in TT."""
    return lambda tt: ephemeris.place(a, tt).ra - ephemeris.place(b, tt).ra


def solar_longitude_j2000(ephemeris: Ephemeris, tt: Float[np.ndarray, " times"]) -> Float[np.ndarray, " times"]:
    """Geometric longitude in degrees of the Sun in the ecliptic of the year 2000, by which meteor showers are dated."""
    x, y, z = ephemeris.geometric("Earth", "Sun", tt)
    obliquity = np.radians(84381.448 / 3600)  # of J2000; the ICRS differs from its equator by 0.02 arc seconds
    return np.degrees(np.arctan2(np.cos(obliquity) * y + np.sin(obliquity) * z, x)) % 360


def _phases(e: Ephemeris, t0: float, t1: float) -> list[Event]:
    q = longitude_difference(e, "Moon", "Sun")
    found = roots(q, t0, t1, period=90)
    quarter = np.rint(q(found[0]) / 90).astype(int) % 4 if len(found[0]) else []
    return events(e, [_PHASES[i] for i in quarter], ("Moon",), found)


def _apsides(e: Ephemeris, t0: float, t1: float) -> list[Event]:
    rows = []
    pairs = (("Earth", "Moon", ("perigee", "apogee"), "km", 1.0), ("Sun", "Earth", ("perihelion", "aphelion"), "au", AU))
    for center, body, names, unit, scale in pairs:
        q = _distance(e, center, body)
        found = extrema(q, t0, t1, accuracy=KILOMETRE)
        kinds = [names[int(kind > 0)] for kind in found[1]]
        rows += events(e, kinds, (body,), found, q(found[0]) / scale if kinds else (), unit)
    return rows


def _distance(e: Ephemeris, a: str, b: str) -> Quantity:
    return lambda tt: e.geometric_distance(a, b, tt)


def _nodes(e: Ephemeris, t0: float, t1: float) -> list[Event]:
    found = roots(lambda tt: e.place("Moon", tt).lat, t0, t1, period=None)
    return events(e, ["ascending node" if up > 0 else "descending node" for up in found[1]], ("Moon",), found)


def _declinations(e: Ephemeris, t0: float, t1: float) -> list[Event]:
    def q(tt: Float[np.ndarray, " times"]) -> Float[np.ndarray, " times"]:
        return e.place("Moon", tt).dec

    found = extrema(q, t0, t1)
    kinds = ["moon northernmost" if kind > 0 else "moon southernmost" for kind in found[1]]
    return events(e, kinds, ("Moon",), found, q(found[0]) if kinds else (), "deg")


def terms(e: Ephemeris, t0: float, t1: float, *, spacing: float | int = 15) -> list[Event]:
    """Instants at which the Sun's apparent longitude is a multiple of ``spacing`` degrees (the value): 15 for the 24 solar terms."""
    found = roots(lambda tt: e.place("Sun", tt).lon, t0, t1, period=spacing)
    lon = np.rint(e.place("Sun", found[0]).lon / spacing) * spacing % 360 if len(found[0]) else np.empty(0)
    return events(e, "solar term", ("Sun",), found, lon, "deg")


def _seasons(e: Ephemeris, t0: float, t1: float) -> list[Event]:
    return [
        Event(t.tt, _SEASONS[int(t.value or 0) // 90], ("Sun",), t.utc, t.value, "deg", t.uncertainty) for t in terms(e, t0, t1, spacing=90)
    ]


def _moon_conjunctions(e: Ephemeris, t0: float, t1: float) -> list[Event]:
    rows = []
    for body in (*BRIGHT, "M44"):
        found = roots(right_ascension_difference(e, "Moon", body), t0, t1)
        apart = e.place(body, found[0]).dec - e.place("Moon", found[0]).dec if len(found[0]) else ()
        rows += events(e, "conjunction with moon", (body, "Moon"), found, apart, "deg")
    return rows


def _approaches(e: Ephemeris, t0: float, t1: float) -> list[Event]:
    rows = []
    for a, b in [*combinations(BRIGHT, 2), *((planet, star) for planet in BRIGHT for star in STARS)]:
        t, kind, uncertainty = extrema(lambda tt, a=a, b=b: e.separation(a, b, tt), t0, t1)
        keep = (kind < 0) & (e.separation(a, b, t) < CLOSE) if len(t) else kind < 0
        t, found = t[keep], (t[keep], kind[keep], uncertainty[keep])
        north = np.sign(e.place(a, t).dec - e.place(b, t).dec) * e.separation(a, b, t) if len(t) else ()
        rows += events(e, "closest approach", (a, b), found, north, "deg")
    return rows


def _sun_conjunctions(e: Ephemeris, t0: float, t1: float) -> list[Event]:
    rows = []
    for body in PLANETS:
        q = longitude_difference(e, body, "Sun")
        found = roots(q, t0, t1, period=180)
        opposite = np.abs(wrap(q(found[0]), 360)) > 90 if len(found[0]) else []
        nearer = e.place(body, found[0]).distance < e.place("Sun", found[0]).distance if len(found[0]) else []
        inner = [("inferior" if near else "superior") + " conjunction" for near in nearer]
        outer = ["opposition" if far else "conjunction with sun" for far in opposite]
        rows += events(e, inner if body in PLANETS[:2] else outer, (body,), found)
    return rows


def _elongation(e: Ephemeris, body: str, tt: Float[np.ndarray, " times"]) -> Float[np.ndarray, " times"]:
    side = np.sign(wrap(e.place(body, tt).lon - e.place("Sun", tt).lon, 360))
    return side * e.separation(body, "Sun", tt)


def _elongations(e: Ephemeris, t0: float, t1: float) -> list[Event]:
    rows = []
    for body in PLANETS[:2]:
        t, kind, uncertainty = extrema(lambda tt, body=body: e.separation(body, "Sun", tt), t0, t1)
        found = tuple(x[kind > 0] for x in (t, kind, uncertainty))
        rows += events(e, "greatest elongation", (body,), found, _elongation(e, body, found[0]) if len(found[0]) else (), "deg")
    return rows


def _venus(e: Ephemeris, t0: float, t1: float) -> list[Event]:
    days = np.arange(np.ceil(t0 - 0.01), t1)  # noon of the civil day of Greenwich, to the TT - UTC seconds
    days = days + e.tt_minus_civil(days) / 86400
    found = days, np.zeros(len(days), dtype=int), np.zeros(len(days))
    rows = events(e, "elongation", ("Venus",), found, _elongation(e, "Venus", days), "deg")
    return [row for row in rows if row.utc.day == 1 and t0 <= row.tt < t1]


def _meteors(e: Ephemeris, t0: float, t1: float) -> list[Event]:
    rows = []
    for shower, (longitude, rate) in SHOWERS.items():
        found = roots(lambda tt, longitude=longitude: solar_longitude_j2000(e, tt) - longitude, t0, t1, accuracy=0.01)
        rows += events(e, "meteor shower", (shower,), found, [rate] * len(found[0]), "per hour")
    return rows


GROUPS: dict[str, Callable[[Ephemeris, float, float], list[Event]]] = {
    "phases": _phases,
    "eclipses": lambda e, t0, t1: sorted([*lunar_eclipses(e, t0, t1), *solar_eclipses(e, t0, t1)]),
    "seasons": _seasons,
    "terms": terms,
    "apsides": _apsides,
    "nodes": _nodes,
    "declinations": _declinations,
    "moon conjunctions": _moon_conjunctions,
    "approaches": _approaches,
    "sun conjunctions": _sun_conjunctions,
    "elongations": _elongations,
    "venus": _venus,
    "meteors": _meteors,
}
