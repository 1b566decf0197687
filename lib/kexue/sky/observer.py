r"""What a place on the Earth sees of an event: how high its body stands, and the phases of an eclipse there.

Instants of phases, apsides, conjunctions and lunar eclipses belong to the Earth as a whole, and a place adds whether the body is up. The
Moon is so near that an observer sees it displaced by up to a degree, twice its own width. So a solar eclipse belongs to the place: its
phases are contacts of the topocentric discs of Sun and Moon, and its *magnitude* is the covered part of the Sun's diameter, or the ratio of
the diameters where one disc lies within the other.

Altitudes are without refraction. A body counts as up if its centre is less than 34 arc minutes below the level horizon, because at the
horizon the air lifts it by that much; hills do not count.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from kexue.sky.eclipses import MOON_RADIUS, SUN_RADIUS, VALLEYS, lunar_shadow
from kexue.sky.ephemeris import PLANETS, STARS, Ephemeris, angle_between
from kexue.sky.events import Event, Here, Quantity, events
from kexue.sky.search import find_extrema, find_roots, refine_roots

__all__ = ["HORIZON", "Discs", "Observer", "Sight", "lunar_phases", "observed", "place_of", "solar_discs", "solar_phases"]

HORIZON = -34 / 60  # degrees: the customary refraction at the horizon
_LIMITS = {"latitude": (-90, 90, "degrees"), "longitude": (-180, 180, "degrees"), "elevation": (-500, 9000, "metres")}
_SKY = ("Sun", "Moon", *PLANETS, *STARS)
_REACH = 0.25  # days: no phase anywhere is farther from the greatest
_LIMB = 5.0  # seconds: mountains and valleys of the Moon's limb
_EDGE = 60.0  # seconds: the edge of the Earth's shadow is soft, and rules for its size differ by half an arc minute


class Sight(NamedTuple):
    """A body seen from a place: unit vectors in the axes of the ICRS, distance in km, altitude and azimuth in degrees."""

    direction: Float[np.ndarray, "3 times"]
    distance: Float[np.ndarray, " times"]
    altitude: Float[np.ndarray, " times"]
    azimuth: Float[np.ndarray, " times"]


@dataclass(frozen=True)
class Observer:
    """A place on the ellipsoid WGS84: latitude (north positive) and longitude (east positive) in degrees, elevation in metres.

    Raises ValueError for a latitude beyond 90, a longitude beyond 180 degrees, and an elevation outside -500 to 9000 metres.
    """

    latitude: float | int
    longitude: float | int
    elevation: float | int = 0

    def __post_init__(self) -> None:
        for name, (low, high, unit) in _LIMITS.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie between {low} and {high} {unit}, got {getattr(self, name)}")

    @cached_property
    def _position(self) -> Any:
        from skyfield.api import wgs84

        return wgs84.latlon(self.latitude, self.longitude, elevation_m=self.elevation)

    def sight(self, ephemeris: Ephemeris, body: str, tt: Float[np.ndarray, " times"]) -> Sight:
        """Apparent topocentric place of a body at Julian dates in TT; ValueError for an unknown body."""
        seen_from = (ephemeris.kernel["earth"] + self._position).at(ephemeris.times(tt))
        apparent = seen_from.observe(ephemeris.target(body)).apparent(deflectors=(10,))
        altitude, azimuth, distance = apparent.altaz()
        return Sight(apparent.xyz.au / distance.au, distance.km, altitude.degrees, azimuth.degrees)


def place_of(text: str) -> Observer:
    """Read a place such as "48.14,11.58" or "48.14,11.58,520": latitude, longitude, and elevation; ValueError for anything else."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3):
        raise ValueError(f"place must be LAT,LON or LAT,LON,ELEV in degrees and metres, such as 48.14,11.58,520, got {text!r}")
    return Observer(*numbers)


class Discs(NamedTuple):
    """Sun and Moon seen from a place, in degrees: angle between the centres, the two radii, and the Sun's altitude."""

    distance: Float[np.ndarray, " times"]
    sun: Float[np.ndarray, " times"]
    moon: Float[np.ndarray, " times"]
    altitude: Float[np.ndarray, " times"]

    @property
    def magnitude(self) -> Float[np.ndarray, " times"]:
        """Covered part of the Sun's diameter, or the ratio of both where one disc lies within the other; negative without contact."""
        covered = (self.sun + self.moon - self.distance) / (2 * self.sun)
        return np.where(self.distance < np.abs(self.sun - self.moon), self.moon / self.sun, covered)


def solar_discs(ephemeris: Ephemeris, observer: Observer, tt: Float[np.ndarray, " times"]) -> Discs:
    """The discs of Sun and Moon over a place at Julian dates in TT, the Moon's with its mean limb."""
    sun, moon = (observer.sight(ephemeris, body, tt) for body in ("Sun", "Moon"))
    radii = (np.degrees(np.arcsin(radius / body.distance)) for radius, body in ((SUN_RADIUS, sun), (MOON_RADIUS, moon)))
    return Discs(angle_between(sun.direction, moon.direction), *radii, sun.altitude)


def solar_phases(ephemeris: Ephemeris, observer: Observer, tt: float) -> list[Event]:
    """Contacts and greatest visible phase, over a place, of the solar eclipse that is greatest on Earth at ``tt`` (Julian date, TT).

    The list is empty if the place sees nothing of it. The greatest phase is that of least angle between the centres, or the sunrise or
    sunset nearest to it; its value is the magnitude, its note says what the eclipse is there at that instant.
    """

    def discs(t: Float[np.ndarray, " times"]) -> Discs:
        return solar_discs(ephemeris, observer, t)

    def outer(t: Float[np.ndarray, " times"]) -> Float[np.ndarray, " times"]:
        d = discs(t)
        return d.distance - d.sun - d.moon

    def inner(t: Float[np.ndarray, " times"]) -> Float[np.ndarray, " times"]:  # the valleys of the limb decide, as for the types
        d = discs(t)
        return d.distance - np.abs(d.sun - d.moon * VALLEYS / MOON_RADIUS)

    extrema, kind = find_extrema(lambda t: discs(t).distance, tt - _REACH, tt + _REACH, 0.02)
    least = extrema[kind < 0][:1]
    if not len(least) or outer(least)[0] >= 0:
        return []
    found = dict(zip(("solar eclipse begins", "solar eclipse ends"), _contacts(outer, least), strict=True))
    central = "annular" if discs(least).sun[0] > discs(least).moon[0] else "total"
    if inner(least)[0] < 0:
        name = {"annular": "annularity", "total": "totality"}[central]
        found |= dict(zip((f"{name} begins", f"{name} ends"), _contacts(inner, least), strict=True))
    up = _above(lambda t: discs(t).altitude, [*found.values(), *least])
    if not len(up):
        return []
    best = up[[discs(up).distance.argmin()]]
    greatest = events(ephemeris, "greatest eclipse", ("Sun", "Moon"), _found(best, _LIMB), discs(best).magnitude, "magnitude")
    rows = events(ephemeris, list(found), ("Sun", "Moon"), _found(np.array(list(found.values())), _LIMB))
    return sorted([*rows, replace(greatest[0], note=central if inner(best)[0] < 0 else "partial")])


def lunar_phases(ephemeris: Ephemeris, observer: Observer, tt: float) -> list[Event]:
    """Contacts of the Moon with the Earth's shadow in the lunar eclipse that is greatest at ``tt`` (Julian date, TT).

    They happen at one instant for all places; the list is empty if the Moon is below the place's horizon during all of them.
    """
    at, found = np.array([tt]), {}
    for name, shadow, level in (
        ("penumbral", "penumbral_magnitude", 0.0),
        ("partial", "umbral_magnitude", 0.0),
        ("total", "umbral_magnitude", 1.0),
    ):

        def outside(t: Float[np.ndarray, " times"], shadow: str = shadow, level: float = level) -> Float[np.ndarray, " times"]:
            return level - getattr(lunar_shadow(ephemeris, t), shadow)

        if outside(at)[0] < 0:
            found |= dict(zip((f"{name} phase begins", f"{name} phase ends"), _contacts(outside, at), strict=True))
    t = np.array(list(found.values()))
    if not len(_above(lambda x: observer.sight(ephemeris, "Moon", x).altitude, [*t, tt])):
        return []
    return sorted(events(ephemeris, list(found), ("Moon",), _found(t, _EDGE)))


def observed(ephemeris: Ephemeris, rows: Sequence[Event], observer: Observer) -> list[Event]:
    """The same events with what a place sees of each (:class:`~kexue.sky.events.Here`), and with the phases of its eclipses.

    Events without a body in the sky, the apsides of the Earth and meteor showers, stay as they are.
    """
    phases = {"solar eclipse": solar_phases, "lunar eclipse": lunar_phases}
    local = {row: phases[row.kind](ephemeris, observer, row.tt) for row in rows if row.kind in phases}
    everything = sorted([*rows, *(phase for found in local.values() for phase in found)])
    up = [row for row in everything if row.bodies[0] in _SKY]
    tt = np.array([row.tt for row in up])
    bodies = {body for row in up for body in (*row.bodies, "Sun")}
    sights = {body: observer.sight(ephemeris, body, tt) for body in sorted(bodies)} if up else {}
    seen: dict[Event, Here] = {}
    for i, row in enumerate(up):
        first, sun = sights[row.bodies[0]], float(sights["Sun"].altitude[i])
        altitude = float(first.altitude[i])
        apart = angle_between(first.direction[:, [i]], sights[row.bodies[-1]].direction[:, [i]])[0] if len(row.bodies) > 1 else None
        visible = bool(local[row]) if row in local else altitude > HORIZON
        seen[row] = Here(altitude, float(first.azimuth[i]), visible, sun > HORIZON, None if apart is None else float(apart))
    return [replace(row, here=seen.get(row)) for row in everything]


def _contacts(f: Quantity, t: Float[np.ndarray, "1"]) -> list[float]:
    """The two roots of ``f``, negative at ``t``, before and after it."""
    return refine_roots(f, np.concatenate((t - _REACH, t)), np.concatenate((t, t + _REACH))).tolist()


def _above(altitude: Quantity, times: Iterable[float]) -> Float[np.ndarray, " seen"]:
    """Those of the times, and of risings and settings between them, at which a body is not below the horizon."""
    t = np.array(sorted(times))
    crossings, _ = find_roots(lambda x: altitude(x) - HORIZON - 1e-4, t[0], t[-1], 0.02)  # a hair above, to count as up
    t = np.concatenate((t, crossings))
    return t[altitude(t) > HORIZON]


def _found(t: Float[np.ndarray, " times"], seconds: float) -> tuple[Any, Any, Any]:
    return t, np.ones(len(t), dtype=int), np.full(len(t), seconds)
