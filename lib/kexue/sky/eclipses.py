r"""Eclipses of Moon and Sun: where the axis of a shadow passes, and how wide the shadow is there.

A lunar eclipse is greatest when the angle between the Moon and the point opposite to the Sun is least. The shadow's angular radii are
:math:`\pi_M-s_S+\pi_S` (umbra) and :math:`\pi_M+s_S+\pi_S` (penumbra) with the parallaxes :math:`\pi` and the Sun's radius :math:`s_S`,
enlarged because the atmosphere casts a shadow too: after Danjon the Moon's parallax by 1/100, after Chauvenet the whole sum by 1/50, with a
mean Earth. The magnitude is the part of the Moon's diameter in shadow.

A solar eclipse is greatest when the axis of the Moon's shadow passes closest to the Earth's centre, at :math:`\gamma` Earth radii, north
positive. The radii of its cones in the plane through the Earth's centre are :math:`z\tan f\pm k/\cos f`, :math:`z` the Moon's distance from
that plane (Explanatory Supplement, chapter 11). The Earth is a sphere here: where :math:`|\gamma|` is within 0.003 of the limit between two
types, the oblate Earth may decide otherwise.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from kexue.sky.ephemeris import Ephemeris
from kexue.sky.events import Event, Quantity, events, roots
from kexue.sky.search import refine_extrema, wrap

__all__ = ["SHADOW_RULES", "Shadow", "central_line", "lunar_eclipses", "lunar_shadow", "shadow_axis", "solar_eclipses"]

EARTH_RADIUS = 6378.137  # km, equatorial
FLATTENING = 1 / 298.257223563  # of the ellipsoid WGS84
SUN_RADIUS = 696_000.0  # km: the customary 959.63 arc seconds at one astronomical unit
MOON_RADIUS = 0.2725076 * EARTH_RADIUS  # the mean limb (IAU)
VALLEYS = 0.272281 * EARTH_RADIUS  # the deepest valleys, which let the Sun through and so limit totality (Espenak and Meeus 2006)
SHADOW_RULES = {  # factors of the Moon's parallax, and of the Sun's parallax and radius
    "danjon": (1.01, 1.0),
    "chauvenet": (1.02 * 0.99834, 1.02),  # the Earth's radius at latitude 45 degrees, enlarged by a fiftieth
}
_NEAR = 0.3  # days around the phase in which the least distance lies: at most 0.5 degrees away, at half a degree per hour
_SECONDS = 1.0


class Shadow(NamedTuple):
    """The Earth's shadow and the Moon in it: angles in degrees, magnitudes as parts of the Moon's diameter."""

    distance: Float[np.ndarray, " times"]
    umbra: Float[np.ndarray, " times"]
    penumbra: Float[np.ndarray, " times"]
    umbral_magnitude: Float[np.ndarray, " times"]
    penumbral_magnitude: Float[np.ndarray, " times"]


def lunar_shadow(ephemeris: Ephemeris, tt: Float[np.ndarray, " times"], *, rule: str = "danjon") -> Shadow:
    """The Earth's shadow at the Moon at Julian dates in TT; ``rule`` is "danjon" or "chauvenet", any other raises ValueError."""
    if rule not in SHADOW_RULES:
        raise ValueError(f"rule must be one of {', '.join(SHADOW_RULES)}, got {rule!r}")
    of_moon, of_sun = SHADOW_RULES[rule]
    moon, sun = ephemeris.place("Moon", tt).distance, ephemeris.place("Sun", tt).distance
    distance = 180 - ephemeris.separation("Moon", "Sun", tt)
    parallax = of_moon * np.degrees(np.arcsin(EARTH_RADIUS / moon)) + of_sun * np.degrees(np.arcsin(EARTH_RADIUS / sun))
    radius = of_sun * np.degrees(np.arcsin(SUN_RADIUS / sun))
    own = np.degrees(np.arcsin(MOON_RADIUS / moon))
    umbra, penumbra = parallax - radius, parallax + radius
    return Shadow(distance, umbra, penumbra, (umbra + own - distance) / (2 * own), (penumbra + own - distance) / (2 * own))


def lunar_eclipses(ephemeris: Ephemeris, t0: float, t1: float, *, rule: str = "danjon") -> list[Event]:
    """Lunar eclipses with greatest phase in [t0, t1) (Julian dates in TT).

    The note is penumbral, partial or total; the value is the umbral magnitude, or the penumbral one of a penumbral eclipse.
    """
    t = _greatest(ephemeris, t0, t1, 180, lambda tt: ephemeris.separation("Moon", "Sun", tt))
    shadow = lunar_shadow(ephemeris, t, rule=rule) if len(t) else None
    rows = []
    for i, row in enumerate(events(ephemeris, "lunar eclipse", ("Moon",), (t, np.ones(len(t), dtype=int), np.full(len(t), _SECONDS)))):
        outer, inner = float(shadow.penumbral_magnitude[i]), float(shadow.umbral_magnitude[i])
        if outer > 0:
            note = "total" if inner >= 1 else "partial" if inner > 0 else "penumbral"
            rows.append(_with(row, outer if inner <= 0 else inner, f"{note} magnitude", note))
    return rows


def shadow_axis(ephemeris: Ephemeris, tt: Float[np.ndarray, " times"]) -> tuple[Float[np.ndarray, "3 times"], Float[np.ndarray, "3 times"]]:
    """Unit vector along the axis of the Moon's shadow, and the axis's foot seen from the Earth's centre in Earth radii, both in the
    true equator and equinox of date."""
    moon, sun = ephemeris.place("Moon", tt), ephemeris.place("Sun", tt)
    at = moon.direction * moon.distance
    axis = at - sun.direction * sun.distance
    axis = axis / np.linalg.norm(axis, axis=0)
    return axis, (at - axis * (at * axis).sum(0)) / EARTH_RADIUS


def central_line(ephemeris: Ephemeris, tt: Float[np.ndarray, " times"]) -> tuple[Float[np.ndarray, " times"], Float[np.ndarray, " times"]]:
    """Geodetic latitude and longitude in degrees (east positive) of the point where the axis of the Moon's shadow meets the ground, the
    ellipsoid WGS84, at Julian dates in TT; NaN while it misses the Earth."""
    axis, foot = shadow_axis(ephemeris, tt)
    round_again = np.array([[1.0], [1.0], [1 / (1 - FLATTENING)]])  # stretched along the pole, the ellipsoid is a sphere
    a, p = axis * round_again, foot * round_again
    half, square = (a * p).sum(0), (a * a).sum(0)
    inside = half**2 - square * ((p * p).sum(0) - 1)
    way = np.where(inside >= 0, (-half - np.sqrt(np.maximum(inside, 0))) / square, np.nan)  # the axis meets the day side first
    x, y, z = foot + axis * way
    latitude = np.degrees(np.arctan2(z, (1 - FLATTENING) ** 2 * np.hypot(x, y)))
    return latitude, wrap(np.degrees(np.arctan2(y, x)) - 15 * ephemeris.times(tt).gast, 360)


def solar_eclipses(ephemeris: Ephemeris, t0: float, t1: float) -> list[Event]:
    """Solar eclipses with greatest phase in [t0, t1) (Julian dates in TT).

    The note is partial, annular, total or hybrid, the last if the tip of the umbra reaches the ground only where the Earth bulges
    towards the Moon; an umbra that touches the Earth beside its axis counts as annular or total. The value is gamma in Earth radii.
    """
    t = _greatest(ephemeris, t0, t1, 0, lambda tt: np.linalg.norm(shadow_axis(ephemeris, tt)[1], axis=0))
    rows = []
    for row in events(ephemeris, "solar eclipse", ("Sun", "Moon"), (t, np.ones(len(t), dtype=int), np.full(len(t), _SECONDS))):
        gamma, note = _solar_type(ephemeris, row.tt)
        if note:
            rows.append(_with(row, gamma, "Earth radii", note))
    return rows


def _solar_type(ephemeris: Ephemeris, tt: float) -> tuple[float, str]:
    t = np.array([tt])
    _, foot = shadow_axis(ephemeris, t)
    moon, sun = ephemeris.place("Moon", t), ephemeris.place("Sun", t)
    radius = float(np.linalg.norm(foot))
    apart = float(np.linalg.norm(moon.direction * moon.distance - sun.direction * sun.distance)) / EARTH_RADIUS
    z = float(np.sqrt((moon.distance[0] / EARTH_RADIUS) ** 2 - radius**2))
    k, valleys, s = MOON_RADIUS / EARTH_RADIUS, VALLEYS / EARTH_RADIUS, SUN_RADIUS / EARTH_RADIUS
    outer, inner = np.arcsin((s + k) / apart), np.arcsin((s - valleys) / apart)
    penumbra, umbra = z * np.tan(outer) + k / np.cos(outer), z * np.tan(inner) - valleys / np.cos(inner)  # negative if total
    gamma = radius * float(np.sign(foot[2, 0]))
    if radius > 1 + penumbra:
        return gamma, ""
    if radius > 1 + abs(umbra):
        return gamma, "partial"
    height = np.sqrt(max(1 - radius**2, 0.0))
    at_ground = umbra - height * np.tan(inner)
    return gamma, "annular" if at_ground > 0 else "hybrid" if umbra > 0 else "total"


def _greatest(ephemeris: Ephemeris, t0: float, t1: float, phase: int, q: Quantity) -> Float[np.ndarray, " eclipses"]:
    def elongation(tt: Float[np.ndarray, " times"]) -> Float[np.ndarray, " times"]:
        return ephemeris.place("Moon", tt).lon - ephemeris.place("Sun", tt).lon - phase

    syzygy = roots(elongation, t0 - _NEAR, t1 + _NEAR)[0]
    near = syzygy[np.abs(ephemeris.place("Moon", syzygy).lat) < 2.0] if len(syzygy) else syzygy
    t = refine_extrema(q, near - _NEAR, near + _NEAR) if len(near) else near
    return t[(t >= t0) & (t < t1)]


def _with(row: Event, value: float, unit: str, note: str) -> Event:
    return Event(row.tt, row.kind, row.bodies, row.utc, value, unit, row.uncertainty, note)
