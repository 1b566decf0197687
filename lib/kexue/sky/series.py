r"""A smooth function of time as Chebyshev series, piece by piece, made where it is asked for.

Apparent places are costly, and a year's searches ask for thousands of them. On a piece of eight days the path of any body of the solar
system is analytic far beyond the piece's ends, so its Chebyshev coefficients fall geometrically: eighteen of them reproduce it to the
resolution of the times themselves. A piece is computed once, at the zeros of :math:`T_{18}`.

Whether a series has converged is seen from its own last coefficients. Where it has not - light that passes close by the Sun bends too fast
- pieces of one day take its place, and where these do not converge either, the function itself, as near the ends of its interval.

Source: L. N. Trefethen, Approximation Theory and Approximation Practice (SIAM 2013), chapters 3 and 8.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy.polynomial.chebyshev import chebvander

__all__ = ["Series", "VectorFunction"]

PIECES = 8.0, 1.0  # days; the second where the first does not converge
TERMS = 18
TOLERANCE = 1e-10  # of the last two coefficients, relative to the largest value of the piece
_FEW = 32  # pieces; in a call that spans more, those with a single time are left to f
_REMEMBERED = 4096  # pieces of one length: ten megabytes of a vector function

_ORDERS = np.arange(TERMS)
_ZEROS = np.cos(np.pi * (_ORDERS + 0.5) / TERMS)
_COEFFICIENTS = np.linalg.inv(chebvander(_ZEROS, TERMS - 1))  # of the values at the zeros

VectorFunction = Callable[[Float[np.ndarray, " times"]], Float[np.ndarray, "rows times"]]


class Series:
    """The function ``f`` of times in days, which returns as many columns; within ``TOLERANCE`` of it, and many times faster.

    ``f`` is smooth in the interval [first, last]; outside it is called as it is, and may refuse.
    """

    def __init__(self, f: VectorFunction, first: float, last: float, pieces: tuple[float, ...] = PIECES) -> None:
        self.first, self.last, self.piece = first, last, pieces[0]
        self._f = f
        self._otherwise = Series(f, first, last, pieces[1:]) if pieces[1:] else f
        self._known: dict[float, Float[np.ndarray, "terms rows"]] = {}

    def __call__(self, t: Float[np.ndarray, " times"]) -> Float[np.ndarray, "rows times"]:
        """Values of ``f``; raises what ``f`` raises."""
        start = np.floor(t / self.piece) * self.piece
        inside = (start >= self.first) & (start + self.piece <= self.last)
        starts, which, asked = np.unique(start[inside], return_inverse=True, return_counts=True)
        worth = asked > (0 if len(starts) <= _FEW else 1)
        self._make([s for s in starts[worth].tolist() if s not in self._known])
        if not self._known or not inside.any():
            return self._otherwise(t)
        unknown = np.full_like(next(iter(self._known.values())), np.nan)
        coefficients = np.stack([self._known.get(s, unknown) for s in starts.tolist()])
        angle = np.arccos(2 * (t - start)[inside] / self.piece - 1)
        values = np.full((coefficients.shape[2], len(t)), np.nan)
        values[:, inside] = np.einsum("td,tdr->rt", np.cos(angle[:, None] * _ORDERS), coefficients[which])
        rest = np.isnan(values[0])
        if rest.any():
            values[:, rest] = self._otherwise(t[rest])
        return values

    def _make(self, starts: list[float]) -> None:
        """Compute the coefficients of the pieces with these first instants: NaN where the series does not converge."""
        if not starts:
            return
        values = self._f((np.array(starts)[:, None] + self.piece * (1 + _ZEROS) / 2).ravel())
        values = values.reshape(len(values), len(starts), TERMS)
        made = np.einsum("dn,rpn->pdr", _COEFFICIENTS, values)
        made[np.abs(made[:, -2:]).max((1, 2)) > TOLERANCE * np.abs(values).max((0, 2))] = np.nan
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        self._known.update(zip(starts, made, strict=True))
