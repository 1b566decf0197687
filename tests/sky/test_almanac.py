"""Tests of the published table and of the comparison of two calendars."""

import math
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from kexue.sky.almanac import BEIJING, Row, almanac_2020, match, omissions, residuals
from kexue.sky.events import DEFINITIONS, Event

START = datetime(2020, 1, 1, tzinfo=UTC)


def event(kind, hours, bodies=("Moon",)):
    return Event(hours / 24, kind, bodies, START + timedelta(hours=hours))


def row(kind, hours, bodies=("Moon",)):
    return Row(START + timedelta(hours=hours), kind, bodies)


def test_the_table_has_its_264_rows_in_order():
    rows = almanac_2020()
    assert len(rows) == 264 and all(r.kind in DEFINITIONS for r in rows)
    assert [r.when.date() for r in rows] == sorted(r.when.date() for r in rows)
    assert {r.when.tzinfo for r in rows} == {BEIJING} and sum(not r.timed for r in rows) == 12
    counts = Counter(r.kind for r in rows)
    assert sum(counts[k] for k in ("new moon", "first quarter", "full moon", "last quarter")) == 50
    assert (counts["perigee"], counts["apogee"], counts["conjunction with moon"], counts["closest approach"]) == (13, 14, 60, 14)


def test_rows_are_parsed_with_values_units_and_notes():
    rows = almanac_2020()
    assert rows[0] == Row(datetime(2020, 1, 1, tzinfo=BEIJING), "elongation", ("Venus",), 34.6, "deg", "", False)
    assert rows[1] == Row(datetime(2020, 1, 2, 9, 30, tzinfo=BEIJING), "apogee", ("Moon",), 404600.0, "km")
    (eclipse,) = [r for r in rows if r.kind == "solar eclipse" and r.when.month == 6]
    assert (eclipse.note, eclipse.value, eclipse.bodies, eclipse.unit) == ("annular", None, ("Sun", "Moon"), "")
    assert {r.kind for r in rows if r.value is not None and r.value < 0} >= {"moon southernmost", "greatest elongation"}


def test_match_takes_the_nearest_of_the_same_kind_and_bodies():
    computed = [event("new moon", 10), event("new moon", 12), event("full moon", 12), event("opposition", 12, ("Mars",))]
    matches = match(computed, [row("new moon", 11.75), row("opposition", 13, ("Saturn",)), row("opposition", 13, ("Mars",))])
    assert [m.event for m in matches] == [computed[1], None, computed[3]]
    assert matches[0].minutes == -15 and math.isnan(matches[1].minutes) and matches[2].minutes == 60
    assert omissions(computed, matches) == [computed[0], computed[2]]


def test_match_gives_each_event_to_its_nearest_row_once():
    matches = match([event("new moon", 10)], [row("new moon", 12), row("new moon", 11), row("new moon", 14)])
    assert [m.event is not None for m in matches] == [False, True, False]


def test_match_respects_the_window():
    for hours, found in ((1.0, True), (1.5, True), (1.51, False)):
        assert (match([event("new moon", 0)], [row("new moon", hours)], window=timedelta(hours=1.5))[0].event is not None) == found
    with pytest.raises(ValueError, match="window must be positive"):
        match([], [], window=timedelta(0))
    assert match([], []) == []


def test_residuals_are_summarized_by_kind():
    computed = [event("new moon", 0), event("new moon", 100), event("new moon", 200), event("full moon", 50)]
    published = [row("new moon", 0.1), row("new moon", 99.5), row("new moon", 200.2), row("full moon", 50), row("apogee", 3)]
    table = residuals(match(computed, published))
    assert [t["rows about"] for t in table] == ["new moon", "full moon", "apogee"] and [t["rows"] for t in table] == [3, 1, 1]
    assert table[0]["median [min]"] == pytest.approx(6) and table[0]["largest [min]"] == pytest.approx(-30)
    assert [t["without partner"] for t in table] == [0, 0, 1]
    assert math.isnan(table[2]["largest [min]"]) and math.isnan(table[2]["median [min]"])
    assert [t["rows about"] for t in residuals(match(computed, published), label=lambda r: r.kind[-4:])] == ["moon", "ogee"]


def test_every_published_row_of_2020_has_its_event_but_two(matches):
    alone = [m.row.bodies[0] for m in matches if m.event is None]
    assert alone == ["Southern delta Aquariids", "Southern Taurids"]  # showers whose peaks are dated otherwise today
    events = [m.event for m in matches if m.event is not None]
    assert len(set(events)) == len(events)


@pytest.mark.parametrize(
    ("kinds", "minutes"),
    [
        (("new moon", "first quarter", "full moon", "last quarter"), 1.0),
        (("ascending node", "descending node"), 1.5),
        (("march equinox", "june solstice", "september equinox", "december solstice"), 1.0),
        (("perigee",), 9.0),
        (("apogee",), 3.0),
        (("moon northernmost", "moon southernmost"), 7.0),
        (("lunar eclipse", "solar eclipse"), 2.0),
    ],
)
def test_residuals_of_2020_stay_within_their_measure(matches, kinds, minutes):
    assert max(abs(m.minutes) for m in matches if m.row.kind in kinds) < minutes
