r"""Roots and extrema of a function of time, all at once and without any astronomy.

A function :math:`f` is sampled on a grid. Every change of sign between neighbours brackets a root, and all brackets are refined
together: one call of :math:`f` per round with an array of as many times as brackets are left. An angle is wrapped to half a period on
either side of zero first; a jump of more than half a period between neighbours is the wrap, not a root.

An extremum is a root of the central difference :math:`f(t+h)-f(t-h)`. It lies within :math:`h^2\max|f'''|/(6\min|f''|)` of the true
one. The grid finds every root if the step is less than half the smallest distance between two of them.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

__all__ = ["find_extrema", "find_roots", "refine_extrema", "refine_roots", "wrap"]

Function = Callable[[Float[np.ndarray, " times"]], Float[np.ndarray, " times"]]

TOLERANCE = 1e-8  # days: a millisecond, below which a Julian date in float64 (4e-10 days) cannot resolve much more


def wrap(values: Float[np.ndarray, "*shape"], period: float | int) -> Float[np.ndarray, "*shape"]:
    """Shift every value by a multiple of ``period`` into the half-open interval (-period/2, period/2]."""
    return period / 2 - (period / 2 - values) % period


def find_roots(
    f: Function, t0: float, t1: float, step: float | int, *, period: float | int | None = None
) -> tuple[Float[np.ndarray, " roots"], Int[np.ndarray, " roots"]]:
    """Find the times in [t0, t1) at which ``f`` vanishes, and the direction in which it passes zero: +1 rising, -1 falling.

    ``f`` takes an array of times and returns as many values. With ``period``, ``f`` is an angle, and zero means any multiple of the
    period. Roots closer to each other than two steps may be missed in pairs; ``f`` must change by less than half a period in a step.

    Raises ValueError if the step is not positive, the interval is empty, or ``f`` is not finite or has no isolated roots.
    """
    grid = _grid(t0, t1, step)
    wrapped = f if period is None else lambda t: wrap(f(t), period)
    values = _finite(wrapped(grid), grid)
    left, right = values[:-1], values[1:]
    exact = left == 0
    if (exact & (right == 0)).any():
        raise ValueError("f must have isolated roots: it is 0 at two neighbouring times of the grid")
    change = (np.sign(left) * np.sign(right) < 0) | exact
    if period is not None:
        change &= np.abs(right - left) < period / 2
    (index,) = np.nonzero(change)
    t = refine_roots(wrapped, grid[index], grid[index + 1], ends=(left[index], right[index]))
    inside = (t >= t0) & (t < t1)
    return t[inside], np.sign(right - left)[index][inside].astype(int)


def refine_roots(
    f: Function,
    a: Float[np.ndarray, " roots"],
    b: Float[np.ndarray, " roots"],
    *,
    ends: tuple[Float[np.ndarray, " roots"], Float[np.ndarray, " roots"]] | None = None,
) -> Float[np.ndarray, " roots"]:
    """Return one root of ``f`` in each bracket [a, b], to 1e-8 in time; the values at the two ends must not have the same sign.

    Chandrupatla's method (1997): inverse quadratic interpolation through the last three points where that is safe, else bisection. The
    bracket always holds the root, and the search ends when it is shorter than 2e-8. Every round calls ``f`` once, with the brackets that
    are left. ``ends`` are the values of ``f`` at a and b, if they are known already.
    """
    if not len(a):
        return a.astype(float)
    near, far = b.astype(float), a.astype(float)  # the last estimate, and the end of the bracket on the other side
    f_far, f_near = (_finite(f(far), far), _finite(f(near), near)) if ends is None else (x.copy() for x in ends)
    if (f_near * f_far > 0).any():
        raise ValueError("each bracket must hold a change of sign: f has the same sign at both ends of one")
    old, f_old = far.copy(), f_far.copy()
    root = np.where(np.abs(f_near) < np.abs(f_far), near, far)
    i = np.flatnonzero((f_near != 0) & (f_far != 0))
    part = np.full(len(a), 0.5)
    part[i] = f_near[i] / (f_near[i] - f_far[i])
    while len(i):
        t = near[i] + np.clip(part[i], 0.0, 1.0) * (far[i] - near[i])
        ft = _finite(f(t), t)
        same = np.sign(ft) == np.sign(f_near[i])
        old[i], f_old[i] = np.where(same, near[i], far[i]), np.where(same, f_near[i], f_far[i])
        far[i], f_far[i] = np.where(same, far[i], near[i]), np.where(same, f_far[i], f_near[i])
        near[i], f_near[i] = t, ft
        root[i] = np.where(np.abs(f_near[i]) < np.abs(f_far[i]), near[i], far[i])
        i = i[(f_near[i] != 0) & (np.abs(far[i] - near[i]) > 2 * TOLERANCE)]
        least = TOLERANCE / np.abs(far[i] - near[i])
        part[i] = np.clip(_interpolated(near[i], far[i], old[i], f_near[i], f_far[i], f_old[i]), least, 1 - least)
    return root


def _interpolated(a, b, c, fa, fb, fc) -> Float[np.ndarray, " roots"]:
    """Where to look next, as a part of the way from a to b: inverse quadratic if it is monotone over the bracket, else the middle."""
    xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
    safe = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
    apart = np.where(safe, fc - fa, 1.0)  # not zero where the formula is used
    quadratic = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / apart * fb / (fc - fb)
    return np.where(safe, quadratic, 0.5)


def find_extrema(
    f: Function, t0: float, t1: float, step: float | int, *, half_width: float = 0.01, period: float | int | None = None
) -> tuple[Float[np.ndarray, " extrema"], Int[np.ndarray, " extrema"]]:
    """Find the times in [t0, t1) at which ``f`` has a local extremum, and its kind: +1 maximum, -1 minimum.

    ``f`` is called from one step before t0 to one step after t1. ``half_width`` is the :math:`h` of the central difference. With
    ``period``, differences of ``f`` are wrapped.

    Raises ValueError if the step or the half width is not positive, the interval is empty, or ``f`` is not finite.
    """
    inner = _grid(t0, t1, step)
    grid = np.concatenate(([inner[0] - step], inner, [inner[-1] + step]))
    change = np.diff(_finite(f(grid), grid))
    change = change if period is None else wrap(change, period)
    kind = np.where((change[:-1] > 0) & (change[1:] <= 0), 1, 0) - np.where((change[:-1] < 0) & (change[1:] >= 0), 1, 0)
    (index,) = np.nonzero(kind)
    t = refine_extrema(f, grid[index], grid[index + 2], half_width=half_width, period=period)
    inside = (t >= t0) & (t < t1)
    return t[inside], kind[index][inside]


def refine_extrema(
    f: Function,
    a: Float[np.ndarray, " extrema"],
    b: Float[np.ndarray, " extrema"],
    *,
    half_width: float = 0.01,
    period: float | int | None = None,
) -> Float[np.ndarray, " extrema"]:
    """Return the extremum of ``f`` in each interval [a, b], which must hold exactly one: the root of the central difference."""
    if not half_width > 0:
        raise ValueError(f"half_width must be positive, got {half_width}")

    def difference(t: Float[np.ndarray, " times"]) -> Float[np.ndarray, " times"]:
        both = f(np.concatenate((t + half_width, t - half_width)))
        change = both[: len(t)] - both[len(t) :]
        return change if period is None else wrap(change, period)

    return refine_roots(difference, a, b)


def _grid(t0: float, t1: float, step: float | int) -> Float[np.ndarray, " times"]:
    if not step > 0:
        raise ValueError(f"step must be positive, got {step}")
    if not t0 < t1:
        raise ValueError(f"t0 must be before t1, got t0 = {t0} and t1 = {t1}")
    return t0 + step * np.arange(int(np.ceil((t1 - t0) / step)) + 1)


def _finite(values: Float[np.ndarray, " times"], times: Float[np.ndarray, " times"]) -> Float[np.ndarray, " times"]:
    if not np.isfinite(values).all():
        raise ValueError(f"f must be finite, got {values[~np.isfinite(values)][0]} at time {times[~np.isfinite(values)][0]}")
    return values
