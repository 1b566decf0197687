r"""Special functions as logarithms, and the polygamma functions in full precision.

Beta functions are needed as logarithms: a probability below 1e-308 still has one, and a difference of two log-gammas of size 1e10 keeps
few digits of a result of size 10.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["log_beta", "log_betainc", "polygamma"]

_STIRLING_FROM = 20.0  # from here on five terms of Stirling's series leave less than 1e-15
_FRACTION_STEPS = 20_000  # the fraction needs O(sqrt(max(a, b))) steps at worst; far fewer when b is small


def log_beta(a: Float[Tensor, "*#shape"], b: Float[Tensor, "*#shape"]) -> Float[Tensor, "*#shape"]:
    r"""Logarithm of Euler's beta function, :math:`\log B(a,b)=\log\Gamma(a)+\log\Gamma(b)-\log\Gamma(a+b)`.

    Broadcasts over positive ``a`` and ``b``; differentiable in both. The difference of the two large terms is taken between their
    Stirling series, so that nothing cancels: relative error about 1e-15 up to 1e9, where the plain difference of log-gammas has
    lost half of its digits.

    Source: the arrangement of Didonato and Morris (1992), ACM TOMS 18, 360-373.
    """
    a, b = torch.broadcast_tensors(a, b)
    small, large = torch.minimum(a, b), torch.maximum(a, b)
    plain = torch.lgamma(small) + torch.lgamma(large) - torch.lgamma(small + large)
    safe = large.clamp_min(_STIRLING_FROM)  # keeps the branch that is not taken finite, and with it the gradient
    total = safe + small
    series = torch.lgamma(small) + small - small * torch.log(total) - (safe - 0.5) * torch.log1p(small / safe)
    return torch.where(large < _STIRLING_FROM, plain, series + _stirling_rest(safe) - _stirling_rest(total))


def _stirling_rest(x: Tensor) -> Tensor:
    """log Gamma(x) minus its leading part (x - 1/2) log x - x + log(2 pi) / 2."""
    r = x.reciprocal() ** 2
    return (1 / 12 - r * (1 / 360 - r * (1 / 1260 - r * (1 / 1680 - r / 1188)))) / x


def log_betainc(
    a: Float[Tensor, "*#shape"],
    b: Float[Tensor, "*#shape"],
    x: Float[Tensor, "*#shape"],
    *,
    complement: Float[Tensor, "*#shape"] | None = None,
) -> Float[Tensor, "*#shape"]:
    r"""Logarithm of the regularized incomplete beta function :math:`I_x(a,b)=\int_0^x s^{a-1}(1-s)^{b-1}\,ds/B(a,b)`.

    Stays finite where :math:`I_x` underflows. ``complement`` is :math:`1-x`; pass it when it is known more precisely than ``1 - x``
    can be, which is the case for :math:`x` near one. Computed by the continued fraction of :math:`I_x(a,b)` or, on the far side of
    the mean, of :math:`1-I_{1-x}(b,a)`. All arguments broadcast. Float64 error: a few ulps of
    :math:`a\log x+b\log(1-x)` or of the result, whichever is larger.

    :raises ValueError: if ``a`` or ``b`` is not positive or ``x`` not in [0, 1].
    :raises RuntimeError: if the fraction has not converged, which needs ``a`` and ``b`` both enormous and ``x`` near the mean.

    Source: DLMF 8.17.22, contracted as in Didonato and Morris (1992); Lentz's method in the form of Thompson and Barnett (1986).
    """
    y = 1 - x if complement is None else complement
    a, b, x, y = torch.broadcast_tensors(a, b, x, y)
    refused = ~((a > 0) & (b > 0) & (x >= 0) & (y >= 0))
    if bool(refused.any()):
        first = [v[refused][0].item() for v in (a, b, x)]
        raise ValueError("a and b must be positive and x in [0, 1], got a = {}, b = {}, x = {}".format(*first))
    far = x * (a + b + 2) > a + 1  # there the fraction of the other tail converges fast
    p, q = torch.where(far, b, a), torch.where(far, a, b)
    u, v = torch.where(far, y, x), torch.where(far, x, y)
    log_u = torch.where(u < 0.5, torch.log(u), torch.log1p(-torch.where(u < 0.5, 0, v)))
    log_v = torch.where(v < 0.5, torch.log(v), torch.log1p(-torch.where(v < 0.5, 0, u)))
    near = p * log_u + q * log_v - log_beta(p, q) - torch.log(_beta_fraction(p, q, u, v))
    return torch.where(far, torch.log1p(-torch.exp(torch.where(far, near, -1.0))), near)


def _beta_fraction(a: Tensor, b: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The fraction beta_0 + alpha_1 / (beta_1 + alpha_2 / (beta_2 + ...)) with I_x(a, b) = x^a y^b / B(a, b) divided by it."""
    excess = 1 + a * y - b * x  # where x is near 1, no other arrangement keeps the digits of y
    value = a * excess / (a + 1)
    c, d = value, torch.zeros_like(value)
    for m in range(1, _FRACTION_STEPS):
        s = a + 2 * m
        alpha = m * (b - m) * (a + m - 1) * (a + b + m - 1) * (x / (s - 1)) ** 2
        beta = m + m * (b - m) * x / (s - 1) + (a + m) * (excess + m * (1 + y)) / (s + 1)
        d = (beta + alpha * d).reciprocal()
        c = beta + alpha / c
        value = value * (c * d)
        if bool(((c * d - 1).abs() <= 2 * torch.finfo(x.dtype).eps).all()):
            return value
    raise RuntimeError(f"I_x(a, b) has not converged in {_FRACTION_STEPS} steps, a up to {a.max():g}, b up to {b.max():g}")


def polygamma(order: int, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Derivative :math:`\psi^{(k)}(x)=(-1)^{k+1}k!\,\zeta(k+1,x)` of the digamma function, of order k >= 1, for positive ``x``.

    As :func:`torch.special.polygamma`, whose trigamma function (k = 1) is off by 5e-10 for x below 20 even in float64; the Hurwitz
    zeta function gives every order to a few ulps. Differentiable.

    :raises ValueError: if ``order`` is below 1 or an ``x`` is not positive.
    """
    if order < 1:
        raise ValueError(f"order must be an integer >= 1, got {order}")
    if not bool((x > 0).all()):
        raise ValueError(f"x must be positive, got {x[~(x > 0)][0].item():g}")
    return (-1) ** (order + 1) * math.factorial(order) * torch.special.zeta(order + 1.0, x)
