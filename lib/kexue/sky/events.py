r"""Celestial events by definition: which function of time vanishes, or is extremal, at the instant that an almanac prints.

An event is a root or an extremum of a geometric quantity :math:`q`. Its instant is known as well as :math:`q` is: if two models differ by
:math:`\epsilon` in :math:`q`, a root moves by :math:`\epsilon/|\dot q|`, and an extremum lies in a plateau of half width
:math:`\sqrt{2\epsilon/|\ddot q|}` in which the values cannot be told apart. Each event states that time as its uncertainty, for
:math:`\epsilon` = 0.01 arc seconds or one kilometre (DE421's Moon is good to a metre; light bending and nutation to a milliarcsecond).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from kexue.sky.ephemeris import Ephemeris
from kexue.sky.search import find_extrema, find_roots, wrap

__all__ = ["DEFINITIONS", "Event", "Here", "events", "extrema", "roots", "tt_of", "utc_of"]

ARC = 0.01 / 3600  # degrees
KILOMETRE = 1.0
AU = 149_597_870.7  # km
GRID = 2.0  # days; the closest roots of one function, the quarters of the Moon, are more than six days apart

DEFINITIONS = {
    "new moon": "apparent ecliptic longitudes of Moon and Sun of date differ by 0",
    "first quarter": "apparent ecliptic longitudes of Moon and Sun of date differ by 90 degrees",
    "full moon": "apparent ecliptic longitudes of Moon and Sun of date differ by 180 degrees",
    "last quarter": "apparent ecliptic longitudes of Moon and Sun of date differ by 270 degrees",
    "perigee": "minimum of the geometric distance of the centres of Earth and Moon",
    "apogee": "maximum of the geometric distance of the centres of Earth and Moon",
    "ascending node": "apparent ecliptic latitude of the Moon of date passes 0 northward",
    "descending node": "apparent ecliptic latitude of the Moon of date passes 0 southward",
    "moon northernmost": "maximum of the apparent declination of the Moon",
    "moon southernmost": "minimum of the apparent declination of the Moon",
    "perihelion": "minimum of the geometric distance of the centres of Earth and Sun",
    "aphelion": "maximum of the geometric distance of the centres of Earth and Sun",
    "march equinox": "apparent ecliptic longitude of the Sun of date is 0",
    "june solstice": "apparent ecliptic longitude of the Sun of date is 90 degrees",
    "september equinox": "apparent ecliptic longitude of the Sun of date is 180 degrees",
    "december solstice": "apparent ecliptic longitude of the Sun of date is 270 degrees",
    "solar term": "apparent ecliptic longitude of the Sun of date is a multiple of 15 degrees",
    "conjunction with moon": "apparent right ascensions of date are equal; the value is the difference of declination",
    "closest approach": "minimum of the apparent angular separation; the value is positive if the first body is north",
    "inferior conjunction": "apparent ecliptic longitudes of planet and Sun of date are equal, planet nearer than the Sun",
    "superior conjunction": "apparent ecliptic longitudes of planet and Sun of date are equal, planet farther than the Sun",
    "conjunction with sun": "apparent ecliptic longitudes of planet and Sun of date are equal",
    "opposition": "apparent ecliptic longitudes of planet and Sun of date differ by 180 degrees",
    "greatest elongation": "maximum of the apparent angle between planet and Sun; the value is positive if the planet is east",
    "elongation": "apparent angle between planet and Sun at 12:00 UTC; the value is positive if the planet is east",
    "lunar eclipse": "minimum of the apparent angle between the Moon and the axis of the Earth's shadow; the value is the magnitude",
    "solar eclipse": "minimum distance of the axis of the Moon's shadow from the centre of the Earth; the value is gamma",
    "greatest eclipse": "least angle between the centres of Sun and Moon while the place sees both; the value is the magnitude",
    "solar eclipse begins": "first outer contact of the discs of Moon and Sun, seen from the place",
    "solar eclipse ends": "last outer contact of the discs of Moon and Sun, seen from the place",
    "annularity begins": "first inner contact of the discs of Moon and Sun, seen from the place",
    "annularity ends": "last inner contact of the discs of Moon and Sun, seen from the place",
    "totality begins": "the Moon covers all of the Sun, seen from the place",
    "totality ends": "the Sun reappears behind the Moon, seen from the place",
    "penumbral phase begins": "the Moon's limb touches the Earth's penumbra from outside",
    "penumbral phase ends": "the Moon has left the Earth's penumbra",
    "partial phase begins": "the Moon's limb touches the Earth's umbra from outside",
    "partial phase ends": "the Moon has left the Earth's umbra",
    "total phase begins": "all of the Moon is within the Earth's umbra",
    "total phase ends": "the Moon's limb touches the edge of the Earth's umbra from inside",
    "meteor shower": "geometric ecliptic longitude of the Sun of J2000; the value is the zenithal hourly rate",
}


class Here(NamedTuple):
    """An event from one place: altitude and azimuth of its first body in degrees, without refraction, and the angle to the second, if any.

    ``visible`` says whether that body is up at the instant, or, of an eclipse, whether any part of it is seen; ``by_day`` whether the Sun
    is up. See :mod:`kexue.sky.observer`.
    """

    altitude: float
    azimuth: float
    visible: bool
    by_day: bool
    separation: float | None = None


@dataclass(frozen=True, order=True)
class Event:
    """One event: its instant as a Julian date in TT and as civil time, what it is, and how well the definition fixes the instant.

    ``utc`` is the civil time of Greenwich: UTC since 1972, UT1 before. ``value`` is in ``unit``; what it measures, and the function whose
    root or extremum the instant is, stand in ``definition``. ``uncertainty`` is in seconds, see the module. ``here`` is what a place sees
    of it, if one was asked for.
    """

    tt: float
    kind: str
    bodies: tuple[str, ...]
    utc: datetime = field(compare=False)
    value: float | None = field(default=None, compare=False)
    unit: str = field(default="", compare=False)
    uncertainty: float = field(default=0.0, compare=False)
    note: str = field(default="", compare=False)
    here: Here | None = field(default=None, compare=False)

    @property
    def definition(self) -> str:
        """The sentence that fixes the instant."""
        return DEFINITIONS[self.kind]

    def at(self, zone: tzinfo) -> datetime:
        """Return the instant in a time zone, to the microsecond."""
        return self.utc.astimezone(zone)


Quantity = Callable[[Float[np.ndarray, " times"]], Float[np.ndarray, " times"]]
Found = tuple[Float[np.ndarray, " events"], Int[np.ndarray, " events"], Float[np.ndarray, " events"]]


def utc_of(ephemeris: Ephemeris, tt: Float[np.ndarray, " times"]) -> list[datetime]:
    """Civil time of Greenwich for Julian dates in TT."""
    seconds = (tt - 2451544.5) * 86400 - ephemeris.tt_minus_civil(tt)
    return [datetime(2000, 1, 1, tzinfo=UTC) + timedelta(seconds=float(s)) for s in seconds]


def tt_of(ephemeris: Ephemeris, when: datetime) -> float:
    """Julian date in TT of an aware datetime; raises ValueError without a time zone."""
    if when.tzinfo is None:
        raise ValueError(f"when must have a time zone, got {when!r}")
    days = (when - datetime(2000, 1, 1, tzinfo=UTC)) / timedelta(days=1) + 2451544.5
    tt = np.array([days])
    for _ in range(2):  # the offset belongs to the instant that it shifts
        tt = days + ephemeris.tt_minus_civil(tt) / 86400
    return float(tt[0])


def roots(q: Quantity, t0: float, t1: float, *, period: float | int | None = 360, accuracy: float = ARC, step: float = GRID) -> Found:
    """Roots of a quantity in [t0, t1): times, directions, and the seconds by which ``accuracy`` in the quantity moves them."""
    t, direction = find_roots(q, t0, t1, step, period=period)
    before, after = _around(q, t, 0.01)
    rate = after - before if period is None else wrap(after - before, period)
    return t, direction, 86400 * accuracy / np.abs(rate / 0.02) if len(t) else t


def extrema(q: Quantity, t0: float, t1: float, *, accuracy: float = ARC, step: float = GRID) -> Found:
    """Extrema of a quantity in [t0, t1): times, +1 for maxima and -1 for minima, and the half width in seconds of the plateau in which the
    quantity is within ``accuracy`` of its extremum."""
    t, kind = find_extrema(q, t0, t1, step)
    before, after = _around(q, t, 0.25)
    curvature = np.abs(before + after - 2 * q(t)) / 0.25**2 if len(t) else t
    return t, kind, 86400 * np.sqrt(2 * accuracy / curvature)


def _around(q: Quantity, t: Float[np.ndarray, " times"], h: float) -> tuple[Float[np.ndarray, " times"], ...]:
    both = q(np.concatenate((t - h, t + h))) if len(t) else np.concatenate((t, t))
    return both[: len(t)], both[len(t) :]


def events(
    ephemeris: Ephemeris,
    kinds: str | Sequence[str],
    bodies: tuple[str, ...],
    found: Found,
    values: Iterable[Any] | None = None,
    unit: str = "",
) -> list[Event]:
    """Turn found times into events of one kind, or of a kind each."""
    t, _, uncertainty = found
    names = [kinds] * len(t) if isinstance(kinds, str) else kinds
    numbers = [None] * len(t) if values is None else [float(v) for v in values]
    rows = zip(t, names, utc_of(ephemeris, t), numbers, uncertainty, strict=True)
    return [Event(float(a), kind, bodies, utc, value, unit, float(s)) for a, kind, utc, value, s in rows]
