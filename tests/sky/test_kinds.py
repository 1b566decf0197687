"""Tests of the events: two independent programs, Skyfield's own searches, published almanacs, and the definitions themselves."""

from datetime import UTC, datetime, timedelta

import astronomy
import ephem
import numpy as np
import pytest
from kexue.sky.calendar import calendar
from kexue.sky.events import AU, DEFINITIONS, Event, extrema, roots, tt_of, utc_of
from kexue.sky.kinds import GROUPS, SHOWERS, longitude_difference, right_ascension_difference, solar_longitude_j2000, terms
from kexue.sky.search import wrap
from skyfield import almanac
from skyfield.framelib import ecliptic_J2000_frame

PHASES = ["new moon", "first quarter", "full moon", "last quarter"]


def of_kind(events, *kinds):
    return [e for e in events if e.kind in kinds]


def seconds(a: datetime, b: datetime) -> float:
    return abs((a - b) / timedelta(seconds=1))


def as_datetime(t: astronomy.Time) -> datetime:
    return t.Utc().replace(tzinfo=UTC)


@pytest.mark.parametrize("year", range(1950, 2051, 10))
def test_phases_match_astronomy_engine(year):
    for event in calendar(year, "UTC", kinds=["phases"]):
        angle = 90 * PHASES.index(event.kind)
        theirs = astronomy.SearchMoonPhase(angle, astronomy.Time.Make(*(event.utc - timedelta(days=3)).timetuple()[:6]), 6)
        # it extrapolates Delta T by a formula of its own outside the past; TT is what both solve in
        assert abs(theirs.tt + 2451545.0 - event.tt) * 86400 < 60


def test_phases_match_ephem(year_2020):
    searches = dict(
        zip(PHASES, (ephem.next_new_moon, ephem.next_first_quarter_moon, ephem.next_full_moon, ephem.next_last_quarter_moon), strict=True)
    )
    found = of_kind(year_2020, *PHASES)
    assert len(found) == 50
    for event in found:
        theirs = searches[event.kind](event.utc - timedelta(days=2)).datetime().replace(tzinfo=UTC)
        assert seconds(theirs, event.utc) < 60


def test_apsides_of_the_moon_match_astronomy_engine(year_2020):
    apsis = astronomy.SearchLunarApsis(astronomy.Time.Make(2019, 12, 31, 16, 0, 0))
    found = of_kind(year_2020, "perigee", "apogee")
    assert len(found) == 27
    for event in found:
        assert (apsis.kind == astronomy.ApsisKind.Apocenter) == (event.kind == "apogee")
        assert seconds(as_datetime(apsis.time), event.utc) < 600 and abs(apsis.dist_km - event.value) < 30
        apsis = astronomy.NextLunarApsis(apsis)


def test_apsides_match_published_almanacs(year_2020):
    first = of_kind(year_2020, "apogee")[0]
    assert first.utc.strftime("%m-%d %H:%M") == "01-02 01:30" and round(first.value) == 404580  # Espenak, 2020
    low = of_kind(calendar(1912, "UTC", kinds=["apsides"]), "perigee")[0]
    assert low.utc.strftime("%m-%d") == "01-04" and abs(low.value - 356375) < 5  # Meeus: the least of the century
    high = max(of_kind(calendar(1984, "UTC", kinds=["apsides"]), "apogee"), key=lambda e: e.value)
    assert high.utc.strftime("%m-%d") == "03-02" and abs(high.value - 406712) < 5


def test_nodes_match_skyfield(ephemeris, year_2020):
    scale = ephemeris.timescale
    t, up = almanac.find_discrete(scale.utc(2019, 12, 31, 16), scale.utc(2020, 12, 31, 16), almanac.moon_nodes(ephemeris.kernel))
    ours = of_kind(year_2020, "ascending node", "descending node")
    assert [e.kind == "ascending node" for e in ours] == (up == 1).tolist()
    assert np.abs(np.array([e.tt for e in ours]) - t.tt).max() * 86400 < 60  # skyfield's latitude there is of the same frame


def test_seasons_and_terms_match_skyfield_and_astronomy_engine(ephemeris, year_2020):
    theirs = astronomy.Seasons(2020)
    peers = [theirs.mar_equinox, theirs.jun_solstice, theirs.sep_equinox, theirs.dec_solstice]
    ours = of_kind(year_2020, "march equinox", "june solstice", "september equinox", "december solstice")
    assert [e.kind.split()[0] for e in ours] == ["march", "june", "september", "december"]
    assert all(seconds(e.utc, as_datetime(p)) < 30 for e, p in zip(ours, peers, strict=True))
    twenty_four = of_kind(year_2020, "solar term")
    assert [e.value for e in twenty_four] == [(285 + 15 * k) % 360 for k in range(24)]
    quarters = terms(ephemeris, ours[0].tt - 1, ours[3].tt + 1, spacing=90)
    assert [e.tt for e in ours] == pytest.approx([e.tt for e in quarters], abs=1e-8)
    for event in twenty_four:
        peer = astronomy.SearchSunLongitude(event.value, astronomy.Time.Make(*(event.utc - timedelta(days=3)).timetuple()[:6]), 6)
        assert seconds(event.utc, as_datetime(peer)) < 45


def test_conjunctions_with_the_sun_match_skyfield(ephemeris, year_2020):
    scale, kernel = ephemeris.timescale, ephemeris.kernel
    kinds = ("inferior conjunction", "superior conjunction", "conjunction with sun", "opposition")
    for body, name in (("Mercury", "mercury"), ("Venus", "venus"), ("Mars", "mars"), ("Saturn", "saturn barycenter")):
        t, side = almanac.find_discrete(
            scale.utc(2019, 12, 31, 16), scale.utc(2020, 12, 31, 16), almanac.oppositions_conjunctions(kernel, kernel[name])
        )
        ours = [e for e in of_kind(year_2020, *kinds) if e.bodies == (body,)]
        assert len(ours) == len(t)
        assert np.abs(np.array([e.tt for e in ours]) - t.tt).max() * 86400 < 120
        if body not in ("Mercury", "Venus"):
            assert [e.kind == "opposition" for e in ours] == (side == 1).tolist()


def test_inner_planets_pass_the_sun_alternately_near_and_far(ephemeris):
    events = [e for e in calendar(2020, "UTC", kinds=["sun conjunctions"]) if e.bodies == ("Mercury",)]
    assert [e.kind.split()[0] for e in events] == ["superior", "inferior"] * 3 + ["superior"]
    for e in events:
        near = ephemeris.place("Mercury", np.array([e.tt])).distance[0] < AU
        assert near == e.kind.startswith("inferior")


def test_elongations_match_astronomy_engine(year_2020):
    ours = of_kind(year_2020, "greatest elongation")
    assert len(ours) == 8
    for event in ours:
        body = astronomy.Body[event.bodies[0]]
        peer = astronomy.SearchMaxElongation(body, astronomy.Time.Make(*(event.utc - timedelta(days=10)).timetuple()[:6]))
        assert seconds(event.utc, as_datetime(peer.time)) < event.uncertainty + 600
        assert abs(abs(event.value) - peer.elongation) < 0.01
        assert (event.value > 0) == (peer.visibility == astronomy.Visibility.Evening)  # east of the Sun: it sets after it


def test_monthly_elongation_of_venus_is_that_of_noon(ephemeris, year_2020):
    rows = of_kind(year_2020, "elongation")
    assert [(r.utc + timedelta(seconds=1)).strftime("%m-%d %H:%M") for r in rows] == [f"{m:02d}-01 12:00" for m in range(1, 13)]
    for row in rows:
        astronomy_angle = astronomy.AngleFromSun(astronomy.Body.Venus, astronomy.Time.Make(2020, row.utc.month, 1, 12, 0, 0))
        assert abs(abs(row.value) - astronomy_angle) < 0.01
    assert [row.value > 0 for row in rows] == [True] * 6 + [False] * 6


def test_moon_meets_the_planets_in_right_ascension(ephemeris, year_2020):
    rows = of_kind(year_2020, "conjunction with moon")
    counts = {b: sum(r.bodies == (b, "Moon") for r in rows) for b in ("Mercury", "Venus", "Mars", "Jupiter", "Saturn", "M44")}
    assert counts == {"Mercury": 12, "Venus": 12, "Mars": 13, "Jupiter": 13, "Saturn": 13, "M44": 13}
    for row in rows:
        t = np.array([row.tt])
        assert abs(wrap(right_ascension_difference(ephemeris, "Moon", row.bodies[0])(t), 360)[0]) < 1e-6
        assert row.value == pytest.approx(ephemeris.place(row.bodies[0], t).dec[0] - ephemeris.place("Moon", t).dec[0])


def test_closest_approaches_are_minima(ephemeris, year_2020):
    rows = of_kind(year_2020, "closest approach")
    assert all(abs(r.value) < 7 for r in rows) and len(rows) > 14
    for row in rows:
        around = ephemeris.separation(*row.bodies, row.tt + np.array([-0.3, 0.0, 0.3]))
        assert around[1] < around[0] and around[1] < around[2]
        assert abs(row.value) == pytest.approx(around[1], rel=1e-9)
        north = ephemeris.place(row.bodies[0], np.array([row.tt])).dec - ephemeris.place(row.bodies[1], np.array([row.tt])).dec
        assert np.sign(row.value) == np.sign(north[0])
    great = [r for r in rows if r.bodies == ("Jupiter", "Saturn")][-1]
    assert seconds(great.utc, datetime(2020, 12, 21, 18, 21, 0, tzinfo=UTC)) < 30 and abs(great.value * 60 + 6.106) < 0.003


def test_declination_extremes_match_ephem(year_2020):
    rows = of_kind(year_2020, "moon northernmost", "moon southernmost")
    assert len(rows) == 27
    for row in rows:
        moon, dec = ephem.Moon(), []
        for minutes in (-30, 0, 30):
            moon.compute(row.utc + timedelta(minutes=minutes), epoch=row.utc)
            dec.append(float(np.degrees(moon.g_dec)))
        assert abs(dec[1] - row.value) < 0.001
        assert (row.kind == "moon northernmost") == (row.value > 0) and abs(dec[1]) == max(map(abs, dec))


def test_meteor_peaks_stand_at_their_solar_longitudes(ephemeris, year_2020):
    rows = of_kind(year_2020, "meteor shower")
    assert sorted(r.bodies[0] for r in rows) == sorted(SHOWERS)
    for row in rows:
        assert solar_longitude_j2000(ephemeris, np.array([row.tt]))[0] == pytest.approx(SHOWERS[row.bodies[0]][0], abs=1e-6)
        assert row.value == SHOWERS[row.bodies[0]][1]
    t = ephemeris.timescale.tt_jd(2458900.0)
    _, lon, _ = (ephemeris.kernel["sun"] - ephemeris.kernel["earth"]).at(t).frame_latlon(ecliptic_J2000_frame)
    assert abs(solar_longitude_j2000(ephemeris, np.array([2458900.0]))[0] - lon.degrees) < 0.1 / 3600


def test_uncertainty_of_a_root_is_accuracy_over_rate():
    t, direction, uncertainty = roots(lambda t: 12.0 * (t - 3.3), 0.0, 20.0, accuracy=0.01)
    assert abs(t[0] - 3.3) < 1e-7 and direction.tolist() == [1]
    assert uncertainty[0] == pytest.approx(86400 * 0.01 / 12)
    assert roots(lambda t: 0 * t + 1, 0.0, 20.0)[2].size == 0


def test_the_distance_of_the_earth_matches_the_published_one(year_2020):
    (near,), (far,) = (of_kind(year_2020, kind) for kind in ("perihelion", "aphelion"))
    assert near.value == pytest.approx(0.983244, abs=1e-6) and far.value == pytest.approx(1.016694, abs=1e-6)  # what almanacs print


def test_uncertainty_of_an_extremum_is_the_half_width_of_its_plateau():
    _, kind, uncertainty = extrema(lambda t: 7 - 3 * (t - 3.3) ** 2, 0.0, 20.0, accuracy=0.01)
    assert kind.tolist() == [1] and 3 * (uncertainty[0] / 86400) ** 2 == pytest.approx(0.01, rel=1e-6)
    assert extrema(lambda t: t, 0.0, 20.0)[2].size == 0


def test_half_a_year_and_the_other_half_make_the_year(ephemeris):
    t0, t1 = 2458849.5, 2459215.5
    for group, find in ((g, f) for g, f in GROUPS.items() if g != "approaches"):  # the slow one; elongations are extrema of angles too
        whole = find(ephemeris, t0, t1)
        halves = [e for a, b in ((t0, 2459030.123), (2459030.123, t1)) for e in find(ephemeris, a, b)]
        key = lambda e: (e.kind, e.bodies, round(e.tt, 5))  # noqa: E731
        assert sorted(map(key, whole)) == sorted(map(key, halves)), group


def test_events_are_complete_and_sorted(year_2020):
    assert year_2020 == sorted(year_2020) and len(set(year_2020)) == len(year_2020)
    for event in year_2020:
        assert event.kind in DEFINITIONS and event.definition == DEFINITIONS[event.kind]
        assert event.utc.tzinfo is UTC and 0 <= event.uncertainty < 7200
        assert (event.value is None) == (event.unit == "") and (event.value is None or np.isfinite(event.value))


def test_longitudes_differ_as_places_do(ephemeris):
    t = np.array([2458849.5, 2458900.25])
    expected = ephemeris.place("Venus", t).lon - ephemeris.place("Sun", t).lon
    assert np.array_equal(longitude_difference(ephemeris, "Venus", "Sun")(t), expected)


def test_civil_time_and_terrestrial_time_round_trip(ephemeris):
    for year in (1900, 1950, 1971, 1972, 1999, 2016, 2017, 2020, 2052):
        when = datetime(year, 7, 1, 12, 34, 56, tzinfo=UTC)
        tt = tt_of(ephemeris, when)
        assert seconds(utc_of(ephemeris, np.array([tt]))[0], when) < 1e-3
    assert tt_of(ephemeris, datetime(2000, 1, 1, 12, tzinfo=UTC)) == pytest.approx(2451545.0 + 64.184 / 86400, abs=1e-9)
    with pytest.raises(ValueError, match="time zone"):
        tt_of(ephemeris, datetime(2020, 1, 1))


def test_an_event_knows_its_local_time():
    from zoneinfo import ZoneInfo

    event = Event(2459205.25, "new moon", ("Moon",), datetime(2020, 12, 21, 18, 21, tzinfo=UTC))
    assert event.at(ZoneInfo("Asia/Shanghai")).isoformat() == "2020-12-22T02:21:00+08:00"
