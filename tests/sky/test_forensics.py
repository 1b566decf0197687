"""Tests of the hypotheses: their own laws, and the published rows that they explain."""

from datetime import UTC, datetime

import numpy as np
import pytest
from kexue.sky.ephemeris import STARS
from kexue.sky.events import tt_of
from kexue.sky.forensics import (
    frozen_approach,
    frozen_conjunction,
    light_time_distance,
    meeus_earth_apsis,
    relative_speed,
    shifted_approach,
)

TT_1992 = 2448991.5  # 1993-01-01


def test_the_series_gives_the_examples_that_are_published(ephemeris):
    expected = tt_of(ephemeris, datetime(2020, 1, 5, 9, 40, 45, tzinfo=UTC)), tt_of(ephemeris, datetime(2020, 7, 4, 14, 49, 40, tzinfo=UTC))
    for k, tt in zip((20, 20.5), expected, strict=True):
        assert abs(meeus_earth_apsis(k) - tt) * 86400 < 2
    # chapter 38 works 1990: the Earth's perihelion of 1990 January 4 at 16h TD
    assert abs(meeus_earth_apsis(-10) - 2447896.167) < 0.1


def test_the_series_is_within_half_a_day_of_the_ephemeris(ephemeris):
    for k in (-50, -17.5, 0, 0.5, 31):
        t = meeus_earth_apsis(k) + np.linspace(-4, 4, 1601)
        distance = ephemeris.geometric_distance("Sun", "Earth", t)
        best = t[distance.argmin() if k == round(k) else distance.argmax()]
        assert abs(best - meeus_earth_apsis(k)) < 0.5


def test_only_perihelia_and_aphelia_have_a_number():
    with pytest.raises(ValueError, match=r"k must be an integer.*got 20\.25"):
        meeus_earth_apsis(20.25)


def test_freezing_both_sides_changes_almost_nothing(ephemeris, year_2020):
    for e in year_2020:
        if e.kind == "closest approach" and e.bodies[1] in STARS and e.bodies[0] == "Venus":
            both = frozen_approach(ephemeris, *e.bodies, e.tt, planet_frozen=True)
            one = frozen_approach(ephemeris, *e.bodies, e.tt)
            speed = relative_speed(ephemeris, *e.bodies, e.tt)
            assert abs(both - e.tt) * speed < 0.01  # aberration of the star
            assert 0.25 < abs(e.tt - one) * speed < 0.30


def test_a_frozen_star_is_a_star_at_the_epoch(ephemeris):
    """Within two years of 2000 the frozen approach is the true one, up to precession since then."""
    tt = 2451800.0  # 2000-09-12
    instant = frozen_approach(ephemeris, "Venus", "Spica", tt, days=12.0)
    around = ephemeris.separation("Venus", "Spica", instant + np.arange(-1, 1, 0.01))
    assert abs(np.arange(-1, 1, 0.01)[around.argmin()]) < 0.03


def test_frozen_conjunctions_explain_the_published_rows(ephemeris, matches):
    rows = [m for m in matches if m.row.bodies == ("M44", "Moon")]
    assert len(rows) == 11
    for m in rows:
        frozen = frozen_conjunction(ephemeris, "M44", m.event.tt)
        assert abs(tt_of(ephemeris, m.row.when) - frozen) * 1440 < 1
        assert 25 < (m.event.tt - frozen) * 1440 < 33


def test_no_shift_is_the_truth_and_a_shift_delays(ephemeris, year_2020):
    great = [e for e in year_2020 if e.bodies == ("Jupiter", "Saturn")][-1]
    instant, separation = shifted_approach(ephemeris, "Jupiter", "Saturn", great.tt, {})
    assert abs(instant - great.tt) * 86400 < 1 and separation == pytest.approx(abs(great.value), abs=1e-7)
    speed = relative_speed(ephemeris, "Jupiter", "Saturn", great.tt)
    later, _ = shifted_approach(ephemeris, "Jupiter", "Saturn", great.tt, {"Saturn": 0.05})
    earlier, _ = shifted_approach(ephemeris, "Jupiter", "Saturn", great.tt, {"Jupiter": 0.05})
    same, _ = shifted_approach(ephemeris, "Jupiter", "Saturn", great.tt, {"Jupiter": 0.05, "Saturn": 0.05})
    assert (later - great.tt) * speed == pytest.approx(0.05, rel=0.1) and (great.tt - earlier) * speed == pytest.approx(0.05, rel=0.1)
    assert abs(same - great.tt) * 86400 < 2


def test_light_time_adds_the_way_of_the_earth(ephemeris):
    t = np.linspace(2458850.0, 2458880.0, 40)
    geometric = ephemeris.geometric_distance("Earth", "Moon", t)
    extra = light_time_distance(ephemeris, t) - geometric
    to_moon = ephemeris.geometric("Earth", "Moon", t) / geometric
    velocity = (ephemeris.kernel["earth"].at(ephemeris.times(t)).velocity.km_per_s * to_moon).sum(0)
    moon = (ephemeris.kernel["moon"].at(ephemeris.times(t)).velocity.km_per_s * to_moon).sum(0)
    light_time = geometric / 299792.458
    assert np.abs(extra + moon * light_time).max() < 0.01  # the Moon stood elsewhere when its light left, in axes that rest
    assert 25 < np.abs(velocity * light_time).max() < 45


def test_relative_speed_is_symmetric_and_that_of_venus(ephemeris):
    t = 2459200.5
    assert relative_speed(ephemeris, "Venus", "Antares", t) == pytest.approx(relative_speed(ephemeris, "Antares", "Venus", t))
    lon = ephemeris.place("Venus", np.array([t - 0.5, t + 0.5])).lon
    assert relative_speed(ephemeris, "Venus", "Antares", t) == pytest.approx(float(lon[1] - lon[0]), rel=0.01)


def test_what_never_happens_is_refused(ephemeris):
    with pytest.raises(ValueError, match=r"tt must be within 6\.0 days of such an event, got 2458849\.5"):
        frozen_approach(ephemeris, "Venus", "Antares", 2458849.5)
    with pytest.raises(ValueError, match="tt must be within"):
        frozen_conjunction(ephemeris, "M44", 2458849.5, days=1.0)
