"""Tests of the search for roots and extrema: functions with known answers, laws, rates and refusals."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kexue.sky.search import find_extrema, find_roots, refine_extrema, refine_roots, wrap

MILLISECOND = 2e-8


def test_roots_of_a_sine_match_the_multiples_of_pi():
    t, direction = find_roots(np.sin, 1.0, 20.0, 1.0)
    assert np.abs(t - np.pi * np.arange(1, 7)).max() < MILLISECOND
    assert direction.tolist() == [-1, 1, -1, 1, -1, 1]


def test_extrema_of_a_sine_match_the_odd_multiples_of_half_pi():
    t, kind = find_extrema(np.sin, 0.0, 20.0, 1.0)
    assert np.abs(t - np.pi * (np.arange(6) + 0.5)).max() < MILLISECOND
    assert kind.tolist() == [1, -1, 1, -1, 1, -1]


def test_roots_of_an_angle_ignore_the_wrap():
    t, direction = find_roots(lambda t: (13.2 * t + 50) % 360, 0.0, 100.0, 2.0, period=90)
    expected = np.array([(90 * k - 50) / 13.2 for k in range(1, 16)])
    assert t.shape == expected[expected < 100].shape and np.abs(t - expected[: len(t)]).max() < MILLISECOND
    assert (direction == 1).all()
    backward, falling = find_roots(lambda t: (-13.2 * t + 50) % 360, 0.0, 100.0, 2.0, period=90)
    assert (falling == -1).all() and abs(backward[0] - 50 / 13.2) < MILLISECOND


def test_extrema_of_an_angle_ignore_the_wrap():
    def angle(t):
        return (359.9 + 30 * np.sin(t)) % 360

    t, kind = find_extrema(angle, 0.0, 6.0, 0.5, period=360)
    assert np.abs(t - np.array([0.5, 1.5]) * np.pi).max() < MILLISECOND and kind.tolist() == [1, -1]


@given(st.lists(st.floats(0.05, 0.95), min_size=1, max_size=8), st.floats(-1e3, 1e3))
@settings(max_examples=60, deadline=None)
def test_every_isolated_root_is_found_wherever_time_begins(fractions, start):
    roots = start + 3.0 * np.arange(len(fractions)) + np.array(fractions)  # two apart at least
    f = lambda t: np.prod(np.tanh(t[:, None] - roots), axis=1)  # noqa: E731
    t, direction = find_roots(f, start - 1.0, start + 3.0 * len(fractions) + 1, 0.9)
    assert len(t) == len(roots) and np.abs(t - roots).max() < 1e-7
    assert np.array_equal(direction, (-1) ** (len(roots) - 1 - np.arange(len(roots))))


@given(st.floats(-1e4, 1e4), st.sampled_from([15, 90, 180, 360, 2 * math.pi]))
def test_wrap_is_congruent_and_within_half_a_period(value, period):
    wrapped = wrap(np.array([value]), period)[0]
    assert -period / 2 <= wrapped <= period / 2
    assert abs(math.remainder(value - wrapped, period)) < 1e-9


def test_wrap_keeps_the_upper_end():
    assert wrap(np.array([180.0, -180.0, 540.0, 190.0]), 360).tolist() == [180.0, 180.0, 180.0, -170.0]


def test_error_of_an_extremum_falls_with_the_square_of_the_half_width():
    f = lambda t: t**2 + t**3  # noqa: E731  f''' / f'' = 3 at the minimum 0
    widths = np.array([0.02, 0.04, 0.08, 0.16])
    errors = np.array([abs(refine_extrema(f, np.array([-0.3]), np.array([0.3]), half_width=h)[0]) for h in widths])
    assert np.abs(np.diff(np.log2(errors)) - 2).max() < 0.05
    assert np.abs(errors / (widths**2 / 6 * 6 / 2) - 1).max() < 0.05


def test_refinement_is_faster_than_bisection():
    calls = []

    def f(t):
        calls.append(len(t))
        return np.sin(t) + 0.1 * np.cos(2 * t)

    starts = np.linspace(2.0, 2.9, 50)
    root = refine_roots(f, starts, starts + 1.3)
    assert np.abs(f(root)).max() < MILLISECOND
    assert len(calls) < 13  # bisection would need 27 rounds to get from 1.3 to 1e-8
    assert calls[-2] <= 50 and sum(calls[2:-1]) < 50 * 8


@pytest.mark.parametrize("f", [lambda t: np.arctan(50 * t), lambda t: t**9, lambda t: np.expm1(30 * t), np.cbrt, np.sign])
def test_hard_brackets_are_refined_too(f):
    root = refine_roots(lambda t: f(t - 0.123), np.array([-1.0, 0.0, -3e5]), np.array([1.3, 0.2, 1.0]))
    assert np.abs(root - 0.123).max() < MILLISECOND


def test_roots_at_grid_points_and_at_the_ends():
    t, direction = find_roots(lambda t: t - 2.0, 0.0, 4.0, 1.0)
    assert t.tolist() == [2.0] and direction.tolist() == [1]
    assert find_roots(lambda t: t, 0.0, 4.0, 1.0)[0].tolist() == [0.0]  # the first instant belongs to the interval
    assert find_roots(lambda t: t - 4.0, 0.0, 4.0, 1.0)[0].size == 0  # the last does not
    assert refine_roots(lambda t: t - 1, np.array([1.0, 0.0]), np.array([2.0, 1.0])).tolist() == [1.0, 1.0]


def test_nothing_to_find():
    t, direction = find_roots(np.cosh, 0.0, 4.0, 1.0)
    assert t.size == direction.size == 0
    assert find_extrema(np.exp, 0.0, 4.0, 1.0)[0].size == 0
    assert refine_roots(np.sin, np.empty(0), np.empty(0)).size == 0


def test_an_extremum_at_the_ends_belongs_to_one_interval():
    f = lambda t: (t - 4.0) ** 2  # noqa: E731
    inside = [find_extrema(f, a, a + 2.0, 0.5)[0].size for a in (0.0, 2.0 + 1e-6, 3.0, 4.0 + 1e-6)]
    assert inside == [0, 1, 1, 0]


def test_extrema_are_looked_for_one_step_beyond_the_ends():
    t, kind = find_extrema(lambda t: (t - 0.01) ** 2, 0.0, 3.0, 1.0)
    assert abs(t[0] - 0.01) < MILLISECOND and kind.tolist() == [-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.sin, 0.0, 1.0, 0.0), "step must be positive, got 0"),
        ((np.sin, 0.0, 1.0, -1.0), "step must be positive, got -1"),
        ((np.sin, 1.0, 1.0, 0.1), "t0 must be before t1, got t0 = 1.0"),
        ((lambda t: np.where(t > 2, np.nan, t), 0.0, 4.0, 1.0), "f must be finite, got nan at time 3"),
    ],
)
def test_meaningless_searches_are_refused(arguments, message):
    for search in (find_roots, find_extrema):
        with pytest.raises(ValueError, match=message):
            search(*arguments)


def test_roots_that_are_not_isolated_are_refused():
    with pytest.raises(ValueError, match="isolated roots"):
        find_roots(np.zeros_like, 0.0, 4.0, 1.0)


def test_brackets_without_a_sign_change_are_refused():
    with pytest.raises(ValueError, match="change of sign"):
        refine_roots(np.cosh, np.array([0.0]), np.array([1.0]))
    with pytest.raises(ValueError, match="half_width must be positive, got 0"):
        refine_extrema(np.cosh, np.array([-1.0]), np.array([1.0]), half_width=0.0)
