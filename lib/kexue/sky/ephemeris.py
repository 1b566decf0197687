r"""Directions and distances of Sun, Moon, planets and stars: what the definitions of the events are functions of.

All positions come from Skyfield and the ephemeris DE421. A *direction* is apparent and geocentric: corrected for light time,
aberration and the deflection of light by the Sun, and referred to the true equator and equinox of date. A *geometric* distance joins two
bodies at one and the same instant. Times are Julian dates in Terrestrial Time (TT).

Nutation is the series IAU 2000B, within a milliarcsecond of the full one here. Apparent places are evaluated through Chebyshev series of
what Skyfield computes (:mod:`kexue.sky.series`), within 1e-10 radians or 0.00002 arc seconds of it; what a year's searches share is
computed once and remembered.
"""

from collections import OrderedDict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from kexue.data.sky import ephemeris_path
from kexue.sky.series import Series, VectorFunction

__all__ = ["PLANETS", "STARS", "Ephemeris", "Place", "StarPlace", "angle_between"]

PLANETS = ("Mercury", "Venus", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune")
_SEGMENTS = {"Sun": "sun", "Moon": "moon", "Earth": "earth", "Earth-Moon barycenter": "earth barycenter"} | {
    name: name.lower() if name in PLANETS[:3] else f"{name.lower()} barycenter" for name in PLANETS
}
_SUN_ONLY = (10,)  # deflection by Jupiter and Saturn stays below a milliarcsecond for everything but a grazing star
_REMEMBERED = 96


class StarPlace(NamedTuple):
    """A star or cluster at the epoch J2000: right ascension and declination in degrees, proper motions in mas per year."""

    ra: float
    dec: float
    pm_ra_cos_dec: float
    pm_dec: float


STARS = {  # Hipparcos catalogue (ESA 1997); the clusters by their customary centres
    "Pleiades": StarPlace(56.75, 24.1167, 0.0, 0.0),
    "Aldebaran": StarPlace(68.980163, 16.509302, 62.78, -189.36),
    "Pollux": StarPlace(116.328958, 28.026199, -625.69, -45.95),
    "M44": StarPlace(130.025, 19.9833, 0.0, 0.0),
    "Regulus": StarPlace(152.092962, 11.967209, -249.40, 4.91),
    "Spica": StarPlace(201.298247, -11.161319, -42.50, -31.73),
    "Antares": StarPlace(247.351915, -26.432003, -10.16, -23.21),
}


class Place(NamedTuple):
    """Where a body stands: directions as unit vectors of the true equator of date, angles in degrees, distance in km."""

    direction: Float[np.ndarray, "3 times"]
    distance: Float[np.ndarray, " times"]
    obliquity: Float[np.ndarray, " times"]

    @property
    def ra(self) -> Float[np.ndarray, " times"]:
        """Right ascension in degrees, from 0 to 360."""
        return np.degrees(np.arctan2(self.direction[1], self.direction[0])) % 360

    @property
    def dec(self) -> Float[np.ndarray, " times"]:
        """Declination in degrees."""
        return np.degrees(np.arctan2(self.direction[2], np.hypot(self.direction[0], self.direction[1])))

    @property
    def _ecliptic(self) -> tuple[Float[np.ndarray, " times"], ...]:
        x, y, z = self.direction
        sin, cos = np.sin(self.obliquity), np.cos(self.obliquity)
        return x, cos * y + sin * z, cos * z - sin * y

    @property
    def lon(self) -> Float[np.ndarray, " times"]:
        """Ecliptic longitude of date in degrees, from 0 to 360."""
        x, y, _ = self._ecliptic
        return np.degrees(np.arctan2(y, x)) % 360

    @property
    def lat(self) -> Float[np.ndarray, " times"]:
        """Ecliptic latitude of date in degrees."""
        x, y, z = self._ecliptic
        return np.degrees(np.arctan2(z, np.hypot(x, y)))


def angle_between(u: Float[np.ndarray, "3 #times"], v: Float[np.ndarray, "3 #times"]) -> Float[np.ndarray, " times"]:
    """Angle between directions in degrees, accurate also where it is small or near 180 (Kahan's form with half chords)."""
    return np.degrees(2 * np.arctan2(np.linalg.norm(u - v, axis=0), np.linalg.norm(u + v, axis=0)))


class Ephemeris:
    """Apparent places and geometric distances from an ephemeris file, by default the DE421 of the package skyfield-data.

    ``kernel`` and ``timescale`` are Skyfield's own objects, for what this class does not offer.

    Raises :class:`~kexue.data.MissingData` if that package is missing. Times outside the file raise ValueError, unknown bodies too.
    """

    def __init__(self, path: Path | None = None) -> None:
        from skyfield.api import load
        from skyfield.jpllib import SpiceKernel

        self.kernel = SpiceKernel(str(path or ephemeris_path()))
        self.timescale = load.timescale(builtin=True)
        self.forget()

    @cached_property
    def range_tt(self) -> tuple[float, float]:
        """First and last Julian date (TT) that every segment of the file covers."""
        segments = [segment.spk_segment for segment in self.kernel.segments]
        return max(float(s.start_jd) for s in segments), min(float(s.end_jd) for s in segments)

    def forget(self) -> None:
        """Forget what has been computed so far; results do not change, only the time until the next ones."""
        self._remembered: OrderedDict[tuple[str, bytes], Any] = OrderedDict()
        self._series: dict[str, Series] = {}

    def times(self, tt: Float[np.ndarray, " times"]) -> Any:
        """Return Skyfield's time object for Julian dates in TT, with nutation IAU 2000B; ValueError outside the ephemeris."""
        return self._once("times", tt, lambda: self._times(tt))

    def _times(self, tt: Float[np.ndarray, " times"]) -> Any:
        from skyfield.nutationlib import iau2000b_radians

        first, last = self.range_tt
        outside = ~((tt >= first) & (tt <= last))
        if outside.any():
            dates = " to ".join(self.timescale.tt_jd(t).tt_strftime("%Y-%m-%d") for t in (first, last))
            raise ValueError(f"times must lie within the ephemeris, {dates} (JD {first} to {last} TT), got JD {tt[outside][0]}")
        t = self.timescale.tt_jd(tt)
        t._nutation_angles_radians = iau2000b_radians(t)  # the attribute that Skyfield's own almanac sets
        return t

    def place(self, body: str, tt: Float[np.ndarray, " times"]) -> Place:
        """Apparent geocentric place of a body at Julian dates in TT: direction of date, distance at the light's departure in km."""
        return self._once(body, tt, lambda: self._place(body, tt))

    def _place(self, body: str, tt: Float[np.ndarray, " times"]) -> Place:
        xyz = self._smooth(body, partial(self.apparent, body), tt)
        distance = np.linalg.norm(xyz, axis=0)
        obliquity = self._once("obliquity", tt, lambda: self._smooth("obliquity", self._true_obliquity, tt)[0])
        return Place(xyz / distance, distance, obliquity)

    def apparent(self, body: str, tt: Float[np.ndarray, " times"]) -> Float[np.ndarray, "3 times"]:
        """What :meth:`place` is a series of: Skyfield's apparent position in km, in the axes of the true equator and equinox of date."""
        t = self.times(tt)
        astrometric = self._once("observer", tt, lambda: self.kernel["earth"].at(t)).observe(self.target(body))
        return np.einsum("ijk,jk->ik", t.M, astrometric.apparent(deflectors=_SUN_ONLY).xyz.km)

    def _true_obliquity(self, tt: Float[np.ndarray, " times"]) -> Float[np.ndarray, "1 times"]:
        t = self.times(tt)
        return (t._mean_obliquity_radians + t._nutation_angles_radians[1])[None]

    def _smooth(self, name: str, f: VectorFunction, tt: Float[np.ndarray, " times"]) -> Float[np.ndarray, "rows times"]:
        if name not in self._series:
            self._series[name] = Series(f, *self.range_tt)
        return self._series[name](tt)

    def separation(self, a: str, b: str, tt: Float[np.ndarray, " times"]) -> Float[np.ndarray, " times"]:
        """Angle between the apparent places of two bodies in degrees."""
        return angle_between(self.place(a, tt).direction, self.place(b, tt).direction)

    def geometric(self, a: str, b: str, tt: Float[np.ndarray, " times"]) -> Float[np.ndarray, "3 times"]:
        """Vector in km from body ``a`` to body ``b`` at one instant, in the axes of the ICRS: no light time, no aberration."""
        t = self.times(tt)
        start, end = (self._once(f"at {name}", tt, lambda name=name: self._solar_system(name).at(t).xyz.km) for name in (a, b))
        return end - start

    def geometric_distance(self, a: str, b: str, tt: Float[np.ndarray, " times"]) -> Float[np.ndarray, " times"]:
        """Distance in km between two bodies at one instant."""
        return np.linalg.norm(self.geometric(a, b, tt), axis=0)

    def frozen(self, star: str) -> Float[np.ndarray, "3 1"]:
        """Direction of a star by its coordinates of the year 2000, read as if they were of date: a list without precession."""
        ra, dec = np.radians(self._star(star)[:2])
        return np.array([[np.cos(dec) * np.cos(ra)], [np.cos(dec) * np.sin(ra)], [np.sin(dec)]])

    def tt_minus_civil(self, tt: Float[np.ndarray, " times"]) -> Float[np.ndarray, " times"]:
        """Seconds between TT and civil time: UTC since 1972, before that UT1, after the last known leap second UTC without a new one."""
        scale = self.timescale
        leap_seconds = np.concatenate(([10.0], scale.leap_offsets))
        utc = 32.184 + leap_seconds[np.searchsorted(scale.leap_dates, tt - 69 / 86400, side="right")]
        return np.where(tt < _UTC_BEGINS, scale.tt_jd(tt).delta_t, utc)

    def target(self, body: str) -> Any:
        """Skyfield's own object for a body, by the names of this module; ValueError for an unknown one."""
        from skyfield.starlib import Star

        if body in STARS:
            star = self._star(body)
            motion = star.pm_ra_cos_dec, star.pm_dec
            return Star(ra_hours=star.ra / 15, dec_degrees=star.dec, ra_mas_per_year=motion[0], dec_mas_per_year=motion[1])
        return self._solar_system(body)

    def _solar_system(self, body: str) -> Any:
        if body not in _SEGMENTS:
            raise ValueError(f"body must be one of {', '.join([*_SEGMENTS, *STARS])}, got {body!r}")
        return self.kernel[_SEGMENTS[body]]

    def _star(self, star: str) -> StarPlace:
        if star not in STARS:
            raise ValueError(f"star must be one of {', '.join(STARS)}, got {star!r}")
        return STARS[star]

    def _once(self, what: str, tt: Float[np.ndarray, " times"], compute: Any) -> Any:
        key = (what, tt.tobytes())
        if key not in self._remembered:
            self._remembered[key] = compute()
            if len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        self._remembered.move_to_end(key)
        return self._remembered[key]


_UTC_BEGINS = 2441317.5  # 1972-01-01
