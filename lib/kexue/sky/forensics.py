r"""Hypotheses about how a published list was computed: each function predicts what a list would print if it had made one mistake.

The suspects are: coordinates of the year 2000 used as if they were of date; a truncated series for the apsides of the Earth; a planet
placed a few arc minutes off; a distance along a light path where the geometric one is meant; and a resolution of one hour.
"""

import numpy as np
from jaxtyping import Float

from kexue.sky.ephemeris import Ephemeris, Place, angle_between
from kexue.sky.events import Quantity
from kexue.sky.search import find_extrema, find_roots

__all__ = ["frozen_approach", "frozen_conjunction", "light_time_distance", "meeus_earth_apsis", "relative_speed", "shifted_approach"]

# Meeus (1998), chapter 38: arguments in degrees as (constant, rate in k) and the coefficients in days for perihelion and aphelion.
_ARGUMENTS = np.array(
    [[328.41, 132.788585], [316.13, 584.903153], [346.20, 450.380738], [136.95, 659.306737], [249.52, 329.653368]],
)
_PERIHELION = np.array([1.278, -0.055, -0.091, -0.056, -0.045])
_APHELION = np.array([-1.352, 0.061, 0.062, 0.029, 0.031])


def meeus_earth_apsis(k: float | int) -> float:
    """Instant of the Earth's perihelion (integer ``k``, counted from January 2000) or aphelion (``k`` + 1/2) by the series of Meeus, a
    Julian date in TT: a mean orbit and five periodic terms.

    Raises ValueError if ``2 * k`` is not an integer. Source: Meeus (1998), chapter 38.
    """
    if 2 * k != round(2 * k):
        raise ValueError(f"k must be an integer for a perihelion or end in .5 for an aphelion, got {k}")
    mean = 2451547.507 + 365.2596358 * k + 1.56e-8 * k**2
    sines = np.sin(np.radians(_ARGUMENTS[:, 0] + _ARGUMENTS[:, 1] * k))
    return float(mean + (_PERIHELION if k == round(k) else _APHELION) @ sines)


def frozen_approach(ephemeris: Ephemeris, planet: str, star: str, tt: float, *, planet_frozen: bool = False, days: float = 6.0) -> float:
    """Instant (Julian date, TT) nearest to ``tt`` at which the planet, by its place of date, is closest to the star's coordinates of the
    year 2000: a list without precession.

    With ``planet_frozen`` the planet is referred to the equator and equinox of 2000 too, so that both sides are consistent again.
    Raises ValueError if there is no minimum within ``days``.
    """
    still = ephemeris.frozen(star)

    def separation(t: Float[np.ndarray, " times"]) -> Float[np.ndarray, " times"]:
        direction = ephemeris.place(planet, t).direction
        if planet_frozen:
            direction = np.einsum("jik,jk->ik", ephemeris.times(t).M, direction)
        return angle_between(direction, still)

    return _nearest_minimum(separation, tt, days)


def frozen_conjunction(ephemeris: Ephemeris, star: str, tt: float, *, days: float = 3.0) -> float:
    """Instant (Julian date, TT) nearest to ``tt`` at which the Moon's right ascension of date equals the star's of the year 2000.

    Raises ValueError if there is none within ``days``.
    """
    x, y, _ = ephemeris.frozen(star)[:, 0]
    ra = np.degrees(np.arctan2(y, x))
    found, _ = find_roots(lambda t: ephemeris.place("Moon", t).ra - ra, tt - days, tt + days, 1.0, period=360)
    return _nearest(found, tt, days)


def shifted_approach(ephemeris: Ephemeris, a: str, b: str, tt: float, shift: dict[str, float], *, days: float = 6.0) -> tuple[float, float]:
    """Instant (Julian date, TT) nearest to ``tt`` of the closest approach of two bodies, and their separation in degrees, if the ecliptic
    longitudes of some were wrong by ``shift`` degrees (positive: too far east)."""

    def separation(t: Float[np.ndarray, " times"]) -> Float[np.ndarray, " times"]:
        one, two = (_turned(ephemeris.place(body, t), shift.get(body, 0.0)) for body in (a, b))
        return angle_between(one, two)

    instant = _nearest_minimum(separation, tt, days)
    return instant, float(separation(np.array([instant]))[0])


def light_time_distance(ephemeris: Ephemeris, tt: Float[np.ndarray, " times"]) -> Float[np.ndarray, " times"]:
    """Length in km of the vector from the Earth now to the Moon when its light left, in axes that do not move with the Earth.

    It differs from the distance by the Earth's way during 1.3 seconds, up to 40 km: not what an apogee is defined by.
    """
    return ephemeris.place("Moon", tt).distance


def relative_speed(ephemeris: Ephemeris, a: str, b: str, tt: float, *, half_width: float = 0.05) -> float:
    """Angular speed in degrees per day at which body ``a`` moves past ``b``, with the directions of both taken of date."""
    t = np.array([tt - half_width, tt + half_width])
    way = ephemeris.place(a, t).direction - ephemeris.place(b, t).direction
    return float(np.degrees(np.linalg.norm(way[:, 1] - way[:, 0])) / (2 * half_width))


def _turned(place: Place, degrees: float) -> Float[np.ndarray, "3 times"]:
    """The direction turned about the pole of the ecliptic."""
    sin, cos = np.sin(place.obliquity), np.cos(place.obliquity)
    pole = np.stack((0 * sin, -sin, cos))
    angle = np.radians(degrees)
    u = place.direction
    return u * np.cos(angle) + np.cross(pole, u, axis=0) * np.sin(angle) + pole * (pole * u).sum(0) * (1 - np.cos(angle))


def _nearest_minimum(q: Quantity, tt: float, days: float) -> float:
    found, kind = find_extrema(q, tt - days, tt + days, 0.5)
    return _nearest(found[kind < 0], tt, days)


def _nearest(found: Float[np.ndarray, " times"], tt: float, days: float) -> float:
    if not len(found):
        raise ValueError(f"tt must be within {days} days of such an event, got {tt}")
    return float(found[np.abs(found - tt).argmin()])
