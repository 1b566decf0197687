"""Tests of the calendar as a product: the reader's year, text, CSV, iCalendar, the command line and its refusals."""

import csv
import dataclasses
import io
import itertools
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from kexue import data
from kexue.data import sky
from kexue.sky import __main__ as command
from kexue.sky import calendar as module
from kexue.sky.calendar import calendar, default_ephemeris, describe, to_csv, to_ics, to_text, year_range, zone_of
from kexue.sky.events import Event, Here, tt_of
from kexue.sky.kinds import GROUPS
from kexue.sky.observer import Observer


def test_a_year_is_a_local_one(ephemeris):
    beijing, utc = (calendar(2020, zone, kinds=["phases", "nodes"]) for zone in ("Asia/Shanghai", "UTC"))
    for events, zone in ((beijing, ZoneInfo("Asia/Shanghai")), (utc, UTC)):
        assert {e.at(zone).year for e in events} == {2020}
    t0, t1 = year_range(2020, zone_of("Asia/Shanghai"), ephemeris)
    assert t0 == tt_of(ephemeris, datetime(2019, 12, 31, 16, tzinfo=UTC)) and abs(t1 - t0 - 366) < 1e-8


def test_neighbouring_years_share_no_event_and_miss_none(ephemeris):
    groups = ["phases", "apsides", "nodes"]
    both = calendar(2019, "UTC", kinds=groups) + calendar(2020, "UTC", kinds=groups)
    for e, later in itertools.pairwise(both):
        assert e.utc < later.utc
    moons = [e.utc for e in both if e.kind == "new moon"]
    gaps = [(b - a) / timedelta(days=1) for a, b in itertools.pairwise(moons)]
    assert min(gaps) > 29.2 and max(gaps) < 29.9


@pytest.mark.parametrize("year", [1900, 2052])
def test_first_and_last_year_are_whole(year):
    events = calendar(year, "Pacific/Auckland")
    assert len([e for e in events if e.kind in ("new moon", "first quarter", "full moon", "last quarter")]) in (49, 50, 51)
    assert events[0].at(ZoneInfo("Pacific/Auckland")).month == 1 and events[-1].at(ZoneInfo("Pacific/Auckland")).month == 12


def test_default_leaves_out_what_only_some_ask_for():
    kinds = {e.kind for e in calendar(2027)}
    assert "solar term" not in kinds and "elongation" not in kinds and "new moon" in kinds and "meteor shower" in kinds
    assert {e.kind for e in calendar(2027, kinds=["terms"])} == {"solar term"}
    assert calendar(2027, kinds=[]) == []


def test_the_lunar_new_year_of_2027_is_known():
    moons = [e.at(ZoneInfo("Asia/Shanghai")) for e in calendar(2027, kinds=["phases"]) if e.kind == "new moon"]
    assert moons[1].strftime("%m-%d") == "02-06"  # the first day of the year of the goat


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calendar(1899), "year must lie between 1900 and 2052.*got 1899"),
        (lambda: calendar(2053), "year must lie between 1900 and 2052.*got 2053"),
        (lambda: calendar(2020, "Asia/Peking"), "zone must be an IANA name.*got 'Asia/Peking'"),
        (lambda: calendar(2020, "../etc"), "zone must be an IANA name"),
        (lambda: calendar(2020, ""), "zone must be an IANA name"),
        (lambda: calendar(2020, kinds=["phases", "comets"]), "kinds must be among phases, eclipses.*got comets"),
    ],
)
def test_impossible_calendars_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def event(kind, bodies=("Moon",), value=None, unit="", note=""):
    return Event(2459205.25, kind, bodies, datetime(2020, 12, 21, 18, 20, 59, tzinfo=UTC), value, unit, 12.0, note)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (event("new moon"), "new moon"),
        (event("apogee", value=404580.2, unit="km"), "apogee 404580 km"),
        (event("perihelion", ("Earth",), 0.98324, "au"), "perihelion 0.9832 au"),
        (event("moon southernmost", value=-23.24, unit="deg"), "moon southernmost -23.2°"),
        (event("march equinox", ("Sun",), 0.0, "deg"), "march equinox"),
        (event("solar term", ("Sun",), 285.0, "deg"), "solar term 285°"),
        (event("opposition", ("Mars",)), "Mars, opposition"),
        (event("inferior conjunction", ("Venus",)), "Venus, inferior conjunction"),
        (event("conjunction with sun", ("Saturn",)), "Saturn, conjunction with sun"),
        (event("conjunction with moon", ("Mars", "Moon"), -2.31, "deg"), "Mars 2.3° S of Moon"),
        (event("closest approach", ("Venus", "Spica"), 3.84, "deg"), "Venus 3.8° N of Spica"),
        (event("greatest elongation", ("Mercury",), -27.8, "deg"), "Mercury, greatest elongation 27.8° W"),
        (event("elongation", ("Venus",), 34.6, "deg"), "Venus, elongation 34.6° E"),
        (event("lunar eclipse", value=0.8954, unit="penumbral magnitude", note="penumbral"), "penumbral lunar eclipse, magnitude 0.895"),
        (event("solar eclipse", ("Sun", "Moon"), -0.29, "Earth radii", "total"), "total solar eclipse, gamma -0.290"),
        (event("meteor shower", ("Lyrids",), 18.0, "per hour"), "Lyrids, 18 per hour"),
    ],
)
def test_events_are_described_in_words(what, words):
    assert describe(what) == words


@pytest.mark.parametrize(
    ("what", "here", "words"),
    [
        (event("full moon"), Here(33.6, 120.0, True, False), "full moon; Moon 34° high"),
        (event("full moon"), Here(33.6, 120.0, True, True), "full moon; Moon 34° high by day"),
        (event("full moon"), Here(-0.5, 120.0, True, False), "full moon; Moon 0° high"),
        (event("full moon"), Here(-0.6, 120.0, False, False), "full moon; Moon below the horizon"),
        (event("march equinox", ("Sun",), 0.0, "deg"), Here(50.0, 120.0, True, True), "march equinox; Sun 50° high"),
        (
            event("conjunction with moon", ("Mars", "Moon"), -2.31, "deg"),
            Here(10.0, 0.0, True, False, 1.44),
            "Mars 2.3° S of Moon; Mars 10° high, 1.4° apart from here",
        ),
        (
            event("solar eclipse", ("Sun", "Moon"), -0.29, "Earth radii", "total"),
            Here(40.0, 0.0, False, True, 3.0),
            "total solar eclipse, gamma -0.290; not visible here",
        ),
        (
            event("lunar eclipse", value=1.2, unit="umbral magnitude", note="total"),
            Here(-4.0, 0.0, True, True),
            "total lunar eclipse, magnitude 1.200; Moon below the horizon",
        ),
        (
            event("greatest eclipse", ("Sun", "Moon"), 0.905, "magnitude", "partial"),
            Here(2.0, 0.0, True, True, 0.1),
            "greatest solar eclipse here, partial, magnitude 0.905; Sun 2° high",
        ),
        (event("totality begins", ("Sun", "Moon")), Here(2.0, 0.0, True, True, 0.0), "totality begins; Sun 2° high"),
    ],
)
def test_a_place_adds_what_it_sees(what, here, words):
    assert describe(dataclasses.replace(what, here=here)) == words


def test_text_is_local_and_rounded_to_the_minute():
    assert to_text([event("new moon")], "Asia/Shanghai") == "2020-12-22 02:21 +0800  new moon\n"
    assert to_text([], "UTC") == ""


def test_csv_round_trips(year_2020):
    rows = list(csv.DictReader(io.StringIO(to_csv(year_2020, "Asia/Shanghai"))))
    assert len(rows) == len(year_2020)
    for row, e in zip(rows, year_2020, strict=True):
        assert abs(datetime.fromisoformat(row["local"]) - e.utc) < timedelta(seconds=1) and row["local"].endswith("+08:00")
        assert row["kind"] == e.kind and tuple(row["bodies"].split("/")) == e.bodies and row["definition"] == e.definition
        assert float(row["tt_jd"]) == pytest.approx(e.tt, abs=1e-6) and float(row["uncertainty_s"]) == pytest.approx(
            e.uncertainty, abs=0.051
        )
        assert (row["value"] == "") == (e.value is None) and (e.value is None or float(row["value"]) == pytest.approx(e.value, rel=1e-6))


def test_icalendar_obeys_its_rules(year_2020):
    text = to_ics(year_2020)
    assert text.startswith("BEGIN:VCALENDAR\r\nVERSION:2.0\r\n") and text.endswith("END:VCALENDAR\r\n")
    assert "\n" not in text.replace("\r\n", "") and max(len(line.encode()) for line in text.split("\r\n")) <= 75
    unfolded = text.replace("\r\n ", "").split("\r\n")
    assert unfolded.count("BEGIN:VEVENT") == unfolded.count("END:VEVENT") == len(year_2020)
    uids = [line for line in unfolded if line.startswith("UID:")]
    assert len(set(uids)) == len(year_2020)
    starts = [line.removeprefix("DTSTART:") for line in unfolded if line.startswith("DTSTART:")]
    for start, e in zip(starts, year_2020, strict=True):
        assert abs(datetime.strptime(start, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) - e.utc) <= timedelta(seconds=30)
    summaries = [line.removeprefix("SUMMARY:").replace("\\,", ",") for line in unfolded if line.startswith("SUMMARY:")]
    assert summaries == [describe(e) for e in year_2020]


def test_icalendar_follows_the_grammar_of_rfc_5545():
    events = calendar(2026, "Europe/Berlin", place=Observer(48.14, 11.58, 520))
    text = to_ics(events)
    assert text == to_ics(calendar(2026, "Europe/Berlin", place=Observer(48.14, 11.58, 520)))  # no clock, no random number
    physical = text.encode().split(b"\r\n")
    assert physical.pop() == b"" and max(map(len, physical)) <= 75 and not any(b"\n" in line or b"\r" in line for line in physical)
    for line in physical:
        line.decode()  # no character is cut in two
    lines = text.replace("\r\n ", "").split("\r\n")[:-1]
    assert max(len(line.encode()) for line in lines) > 75  # so that folding was tested
    assert all(re.fullmatch(r"[A-Z-]+(;[A-Z-]+=[^:;,]+)*:[^\x00-\x08\x0a-\x1f\x7f]*", line) for line in lines)
    assert lines[0] == "BEGIN:VCALENDAR" and lines[-1] == "END:VCALENDAR" and lines[1:3] == ["VERSION:2.0", lines[2]]
    assert lines[2].startswith("PRODID:-//")
    components = "\n".join(lines[3:-1]).removeprefix("BEGIN:VEVENT\n").removesuffix("\nEND:VEVENT").split("\nEND:VEVENT\nBEGIN:VEVENT\n")
    parsed = [dict(line.split(":", 1) for line in component.split("\n")) for component in components]
    for component, properties in zip(components, parsed, strict=True):
        assert list(properties) == ["UID", "DTSTAMP", "DTSTART", "SUMMARY", "DESCRIPTION", "TRANSP"]  # those required, and each once
        assert component.count("\n") == 5 and properties["TRANSP"] == "TRANSPARENT"
        for stamp in (properties["DTSTAMP"], properties["DTSTART"]):
            assert datetime.strptime(stamp, "%Y%m%dT%H%M%SZ")
        for value in (properties["SUMMARY"], properties["DESCRIPTION"]):
            assert re.fullmatch(r"([^\\;,]|\\[\\;,nN])*", value)  # TEXT: the three characters are escaped
        assert re.fullmatch(r"[a-z0-9T@.-]+", properties["UID"])
    assert len({p["UID"] for p in parsed}) == len(parsed) == len(events) and len({p["DTSTAMP"] for p in parsed}) == 1
    summaries = [re.sub(r"\\([\\;,])", r"\1", p["SUMMARY"]) for p in parsed]
    assert summaries == [describe(e) for e in events]


def test_an_empty_icalendar_is_refused():
    with pytest.raises(ValueError, match="events must not be empty: an iCalendar file has at least one"):
        to_ics([])


def test_csv_of_a_place_has_its_columns():
    events = calendar(2027, "Europe/Madrid", kinds=["eclipses", "meteors"], place=Observer(36.14, -5.35, 10))  # Gibraltar, totality
    rows = list(csv.DictReader(io.StringIO(to_csv(events, "Europe/Madrid"))))
    for row, e in zip(rows, events, strict=True):
        if e.here is None:
            assert (row["altitude_deg"], row["azimuth_deg"], row["visible"]) == ("", "", "")
        else:
            assert float(row["altitude_deg"]) == pytest.approx(e.here.altitude, abs=0.051)
            assert float(row["azimuth_deg"]) == pytest.approx(e.here.azimuth, abs=0.051)
            assert row["visible"] == ("yes" if e.here.visible else "no")
    assert {"totality begins", "totality ends"} < {row["kind"] for row in rows} and {"yes", "no", ""} == {row["visible"] for row in rows}


def test_command_line_takes_a_southern_place(tmp_path, capsys):
    for arguments in (["--place", "-33.87,151.21,58"], ["--place=-33.87,151.21,58"]):
        assert (
            command.main(["2028", *arguments, "--zone", "Australia/Sydney", "--kinds", "eclipses", "--ics", str(tmp_path / "x.ics")]) == 0
        )
        printed = capsys.readouterr()
        assert printed.err == "" and "2028-07-22 14:00 +1000  totality begins; Sun 29° high\n" in printed.out
        assert "not visible here" in printed.out


def test_command_line_prints_and_writes(tmp_path, capsys):
    ics, table = tmp_path / "sky.ics", tmp_path / "sky.csv"
    arguments = ["2027", "--zone", "Europe/Berlin", "--kinds", "phases, eclipses", "--ics", str(ics), "--csv", str(table)]
    assert command.main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "2027-08-02 12:07 +0200  total solar eclipse, gamma 0.142\n" in printed.out
    lines = printed.out.splitlines()
    assert len(lines) == len(table.read_text().splitlines()) - 1 == ics.read_bytes().count(b"BEGIN:VEVENT")
    assert ics.read_bytes().count(b"\r\n") == ics.read_bytes().count(b"\n")


def test_command_line_refuses_in_one_line(tmp_path, capsys, monkeypatch):
    for arguments, message in (
        (["1899"], "year must lie between 1900 and 2052"),
        (["2027", "--zone", "Mars/Olympus"], "got 'Mars/Olympus'"),
        (["2027", "--kinds", "comets"], "got comets"),
        (["2027", "--place", "116.4,39.9"], "latitude must lie between -90 and 90 degrees, got 116.4"),
        (["2027", "--place", "Munich"], "place must be LAT,LON"),
        (["2027", "--kinds", "seasons", "--csv", str(tmp_path / "no" / "file.csv")], "No such file"),
    ):
        assert command.main(arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and message in printed.err and printed.err.count("\n") == 1
    default_ephemeris.cache_clear()
    monkeypatch.setattr(sky, "_DE421", sky.Source("the ephemeris DE421", "not-there", "x", "--no-deps skyfield-data==7.0.0"))
    assert command.main(["2027"]) == 2 and "pip install --no-deps skyfield-data==7.0.0" in capsys.readouterr().err
    with pytest.raises(data.MissingData, match="ephemeris DE421"):
        calendar(2027)
    default_ephemeris.cache_clear()


def test_module_runs_as_a_program():
    command_line = [sys.executable, "-m", "kexue.sky", "2020", "--kinds", "seasons", "--zone", "UTC"]
    done = subprocess.run(command_line, capture_output=True, text=True, check=True)
    assert done.stderr == "" and done.stdout.splitlines()[0] == "2020-03-20 03:50 +0000  march equinox"


def test_groups_are_those_that_are_named():
    assert set(module._ON_REQUEST) < set(GROUPS)
