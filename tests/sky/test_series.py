"""Tests of the Chebyshev series: they are the function, they are made once, and they know where they fail."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.sky import series
from kexue.sky.series import TOLERANCE, Series

FIRST, LAST = 2451545.0, 2455197.0


def wave(t):
    return np.stack((np.sin(0.23 * t), 5 + np.cos(0.6 * t), 0.01 * (t - 2453000)))


class Counted:
    """A function that remembers how many times each of its calls asked for."""

    def __init__(self, f):
        self.f, self.sizes = f, []

    def __call__(self, t):
        self.sizes.append(len(t))
        return self.f(t)


@given(st.lists(st.floats(FIRST + 10, LAST - 10), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_a_smooth_function_is_reproduced_at_any_times_in_any_order(times):
    t = np.array(times)
    assert np.abs(Series(wave, FIRST, LAST)(t) - wave(t)).max() < TOLERANCE * 30


def test_a_polynomial_of_the_series_degree_is_exact():
    t = np.linspace(-100, 100, 501)
    p = np.polynomial.Chebyshev(np.arange(1, 17) / 10, domain=[-104, 104])
    assert np.abs(Series(lambda t: p(t)[None], -200.0, 200.0)(t)[0] - p(t)).max() < 1e-13 * np.abs(p(t)).max()


def test_a_piece_is_computed_once():
    f = Counted(wave)
    smooth = Series(f, FIRST, LAST)
    t = 2452000.5 + np.arange(0, 80, 0.5)
    first = smooth(t)
    assert len(f.sizes) == 1 and f.sizes[0] % series.TERMS == 0
    assert np.array_equal(smooth(t[::-1])[:, ::-1], first)
    smooth(t + 0.123)
    assert len(f.sizes) == 1
    smooth(t + 1000)
    smooth(t)
    assert len(f.sizes) == 2


def test_few_pieces_are_made_at_once_and_many_only_where_they_are_asked_for_twice():
    f = Counted(wave)
    Series(f, FIRST, LAST)(np.array([2452000.5]))
    assert f.sizes == [series.TERMS]
    f = Counted(wave)
    t = 2452000.5 + 10.0 * np.arange(100)
    sparse = Series(f, FIRST, LAST)
    assert np.array_equal(sparse(t), wave(t)) and f.sizes == [100]
    both = np.concatenate((t, t[:1] + 0.25))
    assert np.abs(sparse(both) - wave(both)).max() < TOLERANCE * 30
    assert f.sizes == [100, series.TERMS, 99]


def test_where_a_series_does_not_converge_shorter_pieces_or_the_function_take_over():
    f = Counted(lambda t: np.abs(t - 2453000.3)[None])  # a kink in one piece
    smooth = Series(f, FIRST, LAST)
    t = 2453000.3 + np.arange(-20, 20, 0.1)
    near = np.floor(t) == 2453000
    assert np.array_equal(smooth(t)[0][near], np.abs(t - 2453000.3)[near])
    assert np.abs(smooth(t)[0] - np.abs(t - 2453000.3)).max() < TOLERANCE * 20
    assert f.sizes[-1] == near.sum() and f.sizes[1] == 8 * series.TERMS  # the piece of eight days in days, then the day itself


def test_a_peak_that_eight_days_miss_is_caught_by_one_day():
    def peak(t):
        return (1 / (1 + ((t - 2453004.0) / 1.2) ** 2))[None]

    f = Counted(peak)
    t = 2453000 + np.arange(0, 16, 0.1)
    assert np.abs(Series(f, FIRST, LAST)(t) - peak(t)).max() < TOLERANCE * 2
    assert all(size % series.TERMS == 0 for size in f.sizes)  # never called by itself
    assert np.abs(Series(peak, FIRST, LAST, (8.0,))(t) - peak(t)).max() == 0  # without the days: the function itself


def test_pieces_that_reach_beyond_the_interval_are_left_to_the_function():
    def refuses(t):
        if (t < FIRST).any() or (t > LAST).any():
            raise ValueError("outside")
        return wave(t)

    smooth = Series(refuses, FIRST, LAST)
    for t in (np.array([FIRST, FIRST + 0.1]), np.array([LAST, LAST - 0.1]), np.array([FIRST + 0.1, FIRST + 20, LAST - 0.1])):
        assert np.abs(smooth(t) - wave(t)).max() < TOLERANCE * 30
    for bad in (FIRST - 1, LAST + 1):
        with pytest.raises(ValueError, match="outside"):
            smooth(np.array([FIRST + 100, bad]))


def test_no_times_and_no_number_are_passed_on():
    smooth = Series(wave, FIRST, LAST)
    assert smooth(np.empty(0)).shape == (3, 0)
    smooth(np.array([FIRST + 100]))
    assert smooth(np.empty(0)).shape == (3, 0)
    assert np.isnan(smooth(np.array([np.nan, FIRST + 100]))).tolist() == [[True, False]] * 3


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(series, "_REMEMBERED", 10)
    smooth = Series(wave, FIRST, LAST)
    for k in range(40):
        t = FIRST + 50 + 8.0 * k + np.arange(2.0)
        assert np.abs(smooth(t) - wave(t)).max() < TOLERANCE * 30
        assert len(smooth._known) <= 12
