"""One ephemeris and one computed year for all tests of the sky."""

import pytest
from kexue.sky.almanac import almanac_2020, match
from kexue.sky.calendar import calendar, default_ephemeris
from kexue.sky.kinds import GROUPS


@pytest.fixture(scope="session")
def ephemeris():
    return default_ephemeris()


@pytest.fixture(scope="session")
def year_2020():
    return calendar(2020, kinds=list(GROUPS))


@pytest.fixture(scope="session")
def matches(year_2020):
    return match(year_2020, almanac_2020())
