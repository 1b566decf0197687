r"""The table of f-divergences, written in the log density ratio.

A convex :math:`f:(0,\infty)\to\mathbb R` with :math:`f(1)=0` defines :math:`D_f(P\|Q)=\int_{q>0} q\,f(p/q)+f'(\infty)\,P(q=0)`.
It is the upper envelope of its tangent lines, :math:`f(u)=\sup_t\{tu-f^*(t)\}`, and the line that touches at :math:`u=e^v` has

.. math:: \text{slope } T(v)=f'(e^v),\qquad \text{minus intercept } C(v)=f^*(T(v))=e^vf'(e^v)-f(e^v).

The pair :math:`(T, C)` is the *canonical link*: every real :math:`v` is legal, both maps increase, :math:`T'(v)=w(v)=e^vf''(e^v)`,
:math:`C'(v)=e^vw(v)`. All rows are written in :math:`v` because density ratios overflow long before their logarithms do. Half
precision is computed in float32. Source: Nowozin, Cseke and Tomioka (2016), table 1 and 2; the names are those of statistics
(Pearson's divergence is :math:`\int(p-q)^2/q`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from kexue.generative._divergence_formulas import (
    INF,
    LOG2,
    Map,
    Tangent,
    box_cox,
    hellinger_conjugate,
    jeffreys_conjugate,
    js_conj_link,
    js_conjugate,
    js_generator,
    js_link,
    neyman_conjugate,
    reverse_kl_conjugate,
    reverse_srkl_conjugate,
    reverse_srkl_generator,
    srkl_conj_link,
    srkl_conjugate,
    srkl_generator,
    srkl_link,
    tv_link,
    tv_smooth_link,
)

__all__ = ["DIVERGENCES", "FDivergence", "alpha"]


@dataclass(frozen=True, eq=False)
class FDivergence:
    r"""One row of the table: a convex generator, its conjugate and its canonical link.

    ``f0`` is :math:`f(0)`, ``fprime_inf`` is :math:`f'(\infty)=\lim f(u)/u`; both may be ``inf``, and their sum is the largest value
    of the divergence. ``power = (a, s)`` says that the divergence is ``s`` times the member ``a`` of the family :func:`alpha`.
    All methods keep shape and dtype and are elementwise.
    """

    name: str
    f0: float
    fprime_inf: float
    power: tuple[float, float] | None = None
    _f_log: Map = field(kw_only=True, repr=False)
    _link: Map = field(kw_only=True, repr=False)
    _conj_link: Map = field(kw_only=True, repr=False)
    _weight: Map = field(kw_only=True, repr=False)
    _conjugate: Map = field(kw_only=True, repr=False)
    _dual: Callable[[], FDivergence] = field(kw_only=True, repr=False)
    _smooth: tuple[Map, Map, Map] | None = field(kw_only=True, default=None, repr=False)

    @property
    def domain_t(self) -> tuple[float, float]:
        r"""Closure :math:`(-\infty, f'(\infty)]` of the set on which :math:`f^*` is finite."""
        return -INF, self.fprime_inf

    def f(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        r"""Generator :math:`f(u)`; :math:`f(0)` at 0, ``inf`` at negative u. Differentiable for u > 0."""

        def value(u: Tensor) -> Tensor:
            inner = self._f_log(torch.where(u > 0, u, torch.ones_like(u)).log())
            return torch.where(u < 0, INF, torch.where(u == 0, self.f0, torch.where(u.isnan(), u, inner)))

        return _at_least_float32(value, u)

    def f_log(self, v: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        r"""Generator at a log ratio, :math:`f(e^v)`, without forming a ratio that overflows before the value does."""
        return _at_least_float32(self._f_log, v)

    def fprime(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        r"""Derivative :math:`f'(u)` for u > 0 (for tv: the element of the subdifferential of smallest size)."""
        return self.link(u.log())

    def conjugate(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        r"""Convex conjugate :math:`f^*(t)=\sup_{u\ge0}\{tu-f(u)\}`, ``inf`` outside its domain."""
        return _at_least_float32(self._conjugate, t)

    def link(self, v: Float[Tensor, "*shape"], *, smooth: bool = False) -> Float[Tensor, "*shape"]:
        r"""Slope :math:`T(v)=f'(e^v)` of the tangent at :math:`u=e^v`, increasing in v.

        ``smooth=True`` replaces the jump of tv by :math:`\tfrac12\tanh(v/2)`, which has a gradient; other rows do not change.
        """
        value, _, slope = self._smooth if smooth and self._smooth else (self._link, None, self._weight)
        return _at_least_float32(lambda v: Tangent.apply(v, value, slope), v)

    def conj_link(self, v: Float[Tensor, "*shape"], *, smooth: bool = False) -> Float[Tensor, "*shape"]:
        r"""Conjugate at the slope, :math:`C(v)=f^*(T(v))`, in closed form and never through :meth:`conjugate`."""
        _, value, slope = self._smooth if smooth and self._smooth else (None, self._conj_link, self._conj_weight)
        return _at_least_float32(lambda v: Tangent.apply(v, value, slope), v)

    def _conj_weight(self, v: Tensor) -> Tensor:
        """Derivative of C: e^v w(v) is the weight of the reverse divergence at -v, where no factor overflows alone."""
        return self.reverse()._weight(-v)

    def weight(self, v: Float[Tensor, "*shape"], *, smooth: bool = False) -> Float[Tensor, "*shape"]:
        r"""Weight :math:`w(v)=T'(v)=e^vf''(e^v)\ge0` with which the divergence listens to the log ratio v."""
        return _at_least_float32(self._smooth[2] if smooth and self._smooth else self._weight, v)

    def reverse(self) -> FDivergence:
        r"""The divergence with exchanged arguments: generator :math:`u\,f(1/u)`, links :math:`-C(-v)` and :math:`-T(-v)`."""
        return self._dual()


def alpha(a: float | int) -> FDivergence:
    r"""Cressie-Read (Amari) family :math:`f(u)=\dfrac{u^a-au+a-1}{a(a-1)}`, with :math:`f''(u)=u^{a-2}`, for every finite real a.

    With the Box-Cox map :math:`\varphi_k(v)=(e^{kv}-1)/k`, :math:`\varphi_0(v)=v`, the link is :math:`T=\varphi_{a-1}`,
    :math:`C=\varphi_a`; the limits a = 1 (Kullback-Leibler) and a = 0 (reverse) are therefore no special cases. The rows relate to it
    by pearson = 2 alpha(2), hellinger = alpha(1/2) / 2, neyman = 2 alpha(-1). Relative errors stay near rounding as a nears 0 or 1.

    Raises ValueError if a is not finite. Source: Cressie and Read (1984).
    """
    if not math.isfinite(a):
        raise ValueError(f"a must be a finite real number, got {a}")
    a = float(a)

    def generator(v: Tensor) -> Tensor:
        if 0.5 <= a <= 1.5:  # the same value, arranged so that nothing of order 1 / |a - 1| cancels
            return ((a * v).exp() * box_cox(v, 1.0 - a) - v.expm1()) / a
        return (box_cox(v, a) - v.expm1()) / (a - 1.0)

    def conjugate(t: Tensor) -> Tensor:
        if a == 1.0:
            return t.expm1()
        inner = (a - 1.0) * t  # the tangent of slope t touches where 1 + (a - 1) t = u^(a-1)
        value = box_cox(torch.where(inner <= -1.0, 0.0, inner).log1p() / (a - 1.0), a)
        if a > 1.0:
            return torch.where(inner <= -1.0, -1.0 / a, value)  # below the slope at u = 0 the supremum sits at u = 0
        edge = -1.0 / a if a < 0 else INF
        return torch.where(inner < -1.0, INF, torch.where(inner == -1.0, edge, value))

    return FDivergence(
        f"alpha({a:g})",
        f0=1.0 / a if a > 0 else INF,
        fprime_inf=1.0 / (1.0 - a) if a < 1 else INF,
        power=(a, 1.0),
        _f_log=generator,
        _link=lambda v: box_cox(v, a - 1.0),
        _conj_link=lambda v: box_cox(v, a),
        _weight=lambda v: ((a - 1.0) * v).exp(),
        _conjugate=conjugate,
        _dual=lambda: alpha(1.0 - a),
    )


def _at_least_float32(function: Map, x: Tensor) -> Tensor:
    if not x.dtype.is_floating_point:
        raise TypeError(f"expected a floating point tensor, got {x.dtype}")
    if x.dtype in (torch.bfloat16, torch.float16):
        return function(x.float()).to(x.dtype)
    return function(x)


class _Table(dict[str, FDivergence]):
    def __missing__(self, name: str) -> FDivergence:
        raise KeyError(f"unknown divergence {name!r}, known are {', '.join(sorted(self))}")


_REVERSE_SRKL = FDivergence(
    "reverse_srkl",
    f0=-0.5 * LOG2,
    fprime_inf=INF,
    _f_log=reverse_srkl_generator,
    _link=lambda v: -srkl_conj_link(-v),
    _conj_link=lambda v: -srkl_link(-v),
    _weight=lambda v: 0.5 * v.sigmoid(),
    _conjugate=reverse_srkl_conjugate,
    _dual=lambda: DIVERGENCES["srkl"],
)

DIVERGENCES: dict[str, FDivergence] = _Table(
    kl=FDivergence(
        "kl",
        f0=0.0,
        fprime_inf=INF,
        power=(1.0, 1.0),
        _f_log=lambda v: v * v.exp(),
        _link=lambda v: v + 1.0,
        _conj_link=torch.exp,
        _weight=torch.ones_like,
        _conjugate=lambda t: (t - 1.0).exp(),
        _dual=lambda: DIVERGENCES["reverse_kl"],
    ),
    reverse_kl=FDivergence(
        "reverse_kl",
        f0=INF,
        fprime_inf=0.0,
        power=(0.0, 1.0),
        _f_log=torch.neg,
        _link=lambda v: -(-v).exp(),
        _conj_link=lambda v: v - 1.0,
        _weight=lambda v: (-v).exp(),
        _conjugate=reverse_kl_conjugate,
        _dual=lambda: DIVERGENCES["kl"],
    ),
    pearson=FDivergence(
        "pearson",
        f0=1.0,
        fprime_inf=INF,
        power=(2.0, 2.0),
        _f_log=lambda v: v.expm1().square(),
        _link=lambda v: 2.0 * v.expm1(),
        _conj_link=lambda v: (2.0 * v).expm1(),
        _weight=lambda v: 2.0 * v.exp(),
        _conjugate=lambda t: torch.where(t < -2, -1.0, t * (0.25 * t + 1.0)),
        _dual=lambda: DIVERGENCES["neyman"],
    ),
    neyman=FDivergence(
        "neyman",
        f0=INF,
        fprime_inf=1.0,
        power=(-1.0, 2.0),
        _f_log=lambda v: (2.0 * (0.5 * v).sinh()).square(),
        _link=lambda v: -(-2.0 * v).expm1(),
        _conj_link=lambda v: -2.0 * (-v).expm1(),
        _weight=lambda v: 2.0 * (-2.0 * v).exp(),
        _conjugate=neyman_conjugate,
        _dual=lambda: DIVERGENCES["pearson"],
    ),
    hellinger=FDivergence(
        "hellinger",
        f0=1.0,
        fprime_inf=1.0,
        power=(0.5, 0.5),
        _f_log=lambda v: (0.5 * v).expm1().square(),
        _link=lambda v: -(-0.5 * v).expm1(),
        _conj_link=lambda v: (0.5 * v).expm1(),
        _weight=lambda v: 0.5 * (-0.5 * v).exp(),
        _conjugate=hellinger_conjugate,
        _dual=lambda: DIVERGENCES["hellinger"],
    ),
    jeffreys=FDivergence(
        "jeffreys",
        f0=INF,
        fprime_inf=INF,
        _f_log=lambda v: v.expm1() * v,
        _link=lambda v: v - (-v).expm1(),
        _conj_link=lambda v: v.expm1() + v,
        _weight=lambda v: 1.0 + (-v).exp(),
        _conjugate=jeffreys_conjugate,
        _dual=lambda: DIVERGENCES["jeffreys"],
    ),
    js=FDivergence(
        "js",
        f0=0.5 * LOG2,
        fprime_inf=0.5 * LOG2,
        _f_log=js_generator,
        _link=js_link,
        _conj_link=js_conj_link,
        _weight=lambda v: 0.5 * (-v).sigmoid(),
        _conjugate=js_conjugate,
        _dual=lambda: DIVERGENCES["js"],
    ),
    tv=FDivergence(
        "tv",
        f0=0.5,
        fprime_inf=0.5,
        _f_log=lambda v: 0.5 * v.expm1().abs(),
        _link=tv_link,
        _conj_link=tv_link,
        _weight=torch.zeros_like,
        _conjugate=lambda t: torch.where(t > 0.5, INF, t.clamp(min=-0.5)),
        _dual=lambda: DIVERGENCES["tv"],
        _smooth=(tv_smooth_link, tv_smooth_link, lambda v: v.sigmoid() * (-v).sigmoid()),
    ),
    srkl=FDivergence(
        "srkl",
        f0=INF,
        fprime_inf=-0.5 * LOG2,
        _f_log=srkl_generator,
        _link=srkl_link,
        _conj_link=srkl_conj_link,
        _weight=lambda v: 0.5 * (-v).exp() * (-v).sigmoid(),
        _conjugate=srkl_conjugate,
        _dual=lambda: _REVERSE_SRKL,
    ),
)
