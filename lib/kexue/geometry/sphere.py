r"""The angle between two random directions in n dimensions: density, tails, cumulants, and draws at a cost that does not depend
on n.

If :math:`x/|x|` is uniform on the unit sphere of :math:`\mathbb R^n` and independent of :math:`y`, the angle :math:`\theta`
between them has density :math:`c_n\sin^{n-2}\theta` on :math:`[0,\pi]` with :math:`1/c_n=B(\tfrac{n-1}2,\tfrac12)`, whatever
the law of :math:`y`. Its cosine :math:`t` has density :math:`c_n(1-t^2)^{(n-3)/2}`, mean 0 and variance :math:`1/n`; the angle
has variance :math:`\tfrac12\psi'(n/2)`. The dimension may be any real number :math:`n\ge2`. Probabilities are handled as
logarithms and computed in float64; results have the type of the input.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from kexue.numerics import log_beta, log_betainc, polygamma

__all__ = [
    "angle_cdf",
    "angle_cumulant",
    "angle_logpdf",
    "angle_std",
    "coherence_quantile",
    "cosine_logpdf",
    "cosine_logsf",
    "random_cosine",
    "random_unit",
]


def _dimension(n: float | int | Tensor) -> Tensor:
    """Return n in float64 after checking it."""
    n = torch.as_tensor(n, dtype=torch.float64)  # naming the type first: 7.3 would pass through float32 otherwise
    allowed = (n >= 2) & torch.isfinite(n)
    if not bool(allowed.all()):
        raise ValueError(f"n must be a finite dimension >= 2, got {n[~allowed].flatten()[0].item():g}")
    return n


def _log_constant(n: Tensor) -> Tensor:
    return -log_beta((n - 1) / 2, n.new_tensor(0.5))


def angle_logpdf(theta: Float[Tensor, "*#shape"], n: float | int | Float[Tensor, "*#shape"]) -> Float[Tensor, "*#shape"]:
    r"""Log density :math:`\log c_n+(n-2)\log\sin\theta` of the angle in radians; :math:`-\infty` outside :math:`[0,\pi]`.

    Differentiable in the angle and in ``n``. Good to a few ulps up to n = 1e9.

    :raises ValueError: if ``n`` is below 2 or not finite.

    Source: Cai, Fan and Jiang (2013), equation 1.
    """
    n = _dimension(n).to(theta.device)
    inside = ~((theta < 0) | (theta > theta.new_tensor(math.pi)))  # a NaN stays inside and comes out as NaN
    angle = torch.where(inside, theta, 1.0).to(torch.float64)
    sine, cosine = torch.sin(angle).abs(), torch.cos(angle)
    flat = cosine.abs() < 0.5  # near 90 degrees the sine has lost the digits that n - 2 multiplies
    power = torch.where(
        flat,
        (n - 2) / 2 * torch.log1p(-(torch.where(flat, cosine, 0.0) ** 2)),
        torch.xlogy(n - 2, torch.where(flat, 1.0, sine)),
    )
    return torch.where(inside, _log_constant(n) + power, -math.inf).to(theta.dtype)


def cosine_logpdf(t: Float[Tensor, "*#shape"], n: float | int | Float[Tensor, "*#shape"]) -> Float[Tensor, "*#shape"]:
    r"""Log density :math:`\log c_n+\tfrac{n-3}2\log(1-t^2)` of the cosine; :math:`-\infty` outside :math:`[-1,1]`.

    For :math:`n<3` the density has integrable poles: the value at :math:`t=\pm1` is :math:`+\infty`. Differentiable in ``t``
    and in ``n``.

    :raises ValueError: if ``n`` is below 2 or not finite.
    """
    n = _dimension(n).to(t.device)
    inside = ~(t.abs() > 1)  # a NaN stays inside and comes out as NaN
    cosine = torch.where(inside, t, 0.0).to(torch.float64)
    steep = cosine.abs() > 0.5
    power = torch.where(
        steep,
        torch.xlogy((n - 3) / 2, torch.where(steep, (1 - cosine) * (1 + cosine), 1.0)),
        (n - 3) / 2 * torch.log1p(-(torch.where(steep, 0.0, cosine) ** 2)),
    )
    return torch.where(inside, _log_constant(n) + power, -math.inf).to(t.dtype)


def _refuse_nan(x: Tensor, name: str) -> None:
    if bool(torch.isnan(x).any()):
        raise ValueError(f"{name} must not contain NaN: it has no place in the order that a distribution function measures")


def _log_upper_tail(cosine: Tensor, cosine2: Tensor, sine2: Tensor, n: Tensor) -> Tensor:
    """log P(T >= cosine), given also the squares of the cosine and of the sine of the same angle, each to full precision."""
    n, cosine, cosine2, sine2 = torch.broadcast_tensors(n, cosine, cosine2, sine2)
    half = log_betainc((n - 1) / 2, torch.full_like(n, 0.5), sine2, complement=cosine2) - math.log(2)
    return torch.where(cosine >= 0, half, torch.log1p(-torch.exp(half)))


def angle_cdf(theta: Float[Tensor, "*#shape"], n: float | int | Float[Tensor, "*#shape"]) -> Float[Tensor, "*#shape"]:
    r"""Probability :math:`P(\Theta\le\theta)=\tfrac12I_{\sin^2\theta}(\tfrac{n-1}2,\tfrac12)` for :math:`\theta\le\pi/2`, and
    one minus its mirror beyond.

    Good to a few ulps of the smaller tail for small angles too; 0 below 0 and 1 above :math:`\pi`.

    :raises ValueError: if ``n`` is below 2 or not finite, or if ``theta`` is NaN.
    """
    _refuse_nan(theta, "theta")
    angle = theta.to(torch.float64).clamp(0, math.pi)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    return torch.exp(_log_upper_tail(cosine, cosine**2, sine**2, _dimension(n).to(theta.device))).to(theta.dtype)


def cosine_logsf(t: Float[Tensor, "*#shape"], n: float | int | Float[Tensor, "*#shape"]) -> Float[Tensor, "*#shape"]:
    r"""Log of the tail :math:`P(T\ge t)`, finite where the probability underflows.

    The law is symmetric, so the two-sided tail is :math:`\log P(|T|\ge t)=\log2+\log P(T\ge t)` for :math:`t\ge0`. At t = 0.99
    and n = 4096 it is -8024.5, where the logarithm of any computed probability is :math:`-\infty`. Computed by the continued
    fraction of the incomplete beta function; differentiable for :math:`0<|t|<1`. 0 for :math:`t\le-1`, :math:`-\infty` for
    :math:`t\ge1`.

    :raises ValueError: if ``n`` is below 2 or not finite, or if ``t`` is NaN.
    """
    _refuse_nan(t, "t")
    cosine = t.to(torch.float64).clamp(-1, 1)
    return _log_upper_tail(cosine, cosine**2, (1 - cosine) * (1 + cosine), _dimension(n).to(t.device)).to(t.dtype)


def angle_cumulant(n: float | int | Float[Tensor, "*shape"], order: int) -> Float[Tensor, "*shape"]:
    r"""Cumulant of the angle, in radians to the power ``order``.

    The mean (order 1) is :math:`\pi/2`, other odd cumulants vanish, and
    :math:`\kappa_{2k}=(-1)^{k+1}2^{1-2k}\psi^{(2k-1)}(n/2)`; the variance is :math:`\tfrac12\psi'(n/2)`, half the trigamma
    function. Differentiable in ``n``.

    :raises ValueError: if ``n`` is below 2 or not finite, or if ``order`` is below 1.
    """
    if order < 1:
        raise ValueError(f"order must be an integer >= 1, got {order}")
    dtype = n.dtype if isinstance(n, Tensor) and n.is_floating_point() else torch.float64
    n = _dimension(n)
    if order == 1:
        value = torch.full_like(n, math.pi / 2)
    elif order % 2:
        value = torch.zeros_like(n)
    else:
        value = (-1) ** (order // 2 + 1) * 2.0 ** (1 - order) * polygamma(order - 1, n / 2)
    return value.to(dtype)


def angle_std(n: float | int | Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Standard deviation :math:`\sqrt{\psi'(n/2)/2}` of the angle, in radians.

    :raises ValueError: if ``n`` is below 2 or not finite.
    """
    return torch.sqrt(angle_cumulant(n, 2))


def random_unit(
    n: int,
    size: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, "size n"]:
    """Draw ``size`` points uniformly from the unit sphere of n-dimensional space: a normal vector, divided by its length.

    :raises ValueError: if ``n`` is below 2 or ``size`` is negative.
    """
    _dimension(n)
    if size < 0:
        raise ValueError(f"size must be >= 0, got {size}")
    return torch.nn.functional.normalize(torch.randn(size, n, generator=generator, dtype=dtype, device=device), dim=1, eps=0.0)


def random_cosine(n: float | int, size: int, *, generator: torch.Generator | None = None) -> Float[Tensor, " size"]:
    r"""Draw ``size`` cosines of angles between random directions, in float64, at a cost that does not depend on ``n``.

    Two coordinates of a uniform point of the sphere one dimension higher form a vector with polar angle :math:`\varphi` uniform
    and squared radius :math:`1-U^{2/(n-1)}`; the first of them, rescaled to the slice on which the second is fixed, is the
    first coordinate of a uniform point of our sphere: :math:`t=r\cos\varphi/\sqrt{1-r^2\sin^2\varphi}`. One exponential and one
    uniform number per draw; ``n`` need not be an integer.

    :raises ValueError: if ``n`` is below 2 or not finite, or ``size`` is negative.

    Source: Bailey (1994), Mathematics of Computation 62, 779-781, who states it for Student's t.
    """
    n = _dimension(n)
    if size < 0:
        raise ValueError(f"size must be >= 0, got {size}")
    uniform, turn = torch.rand(2, size, dtype=torch.float64, generator=generator)
    log_rest = 2 / (n - 1) * torch.log1p(-uniform)  # log of 1 - r^2
    across = torch.cos(2 * math.pi * turn) ** 2
    radius = torch.sqrt(-torch.expm1(log_rest))
    return radius * torch.cos(2 * math.pi * turn) / torch.sqrt(across + torch.exp(log_rest) * (1 - across))


def coherence_quantile(n: float | int, count: int, q: float) -> float:
    r"""Quantile of the coherence :math:`\max_{i<j}|\cos\theta_{ij}|` of ``count`` independent random directions in n
    dimensions.

    Solves :math:`M\,P(|T|\ge e)=-\log q` with :math:`M` the number of pairs. Pairs are pairwise independent, hence the number
    of pairs beyond :math:`e` is nearly a Poisson number; the probability of the returned level differs from ``q`` by at most
    :math:`8\log(1/q)(1-q)/(N-1)` with :math:`N` the count.

    :raises ValueError: if ``n`` is below 2, ``count`` below 2 or ``q`` not strictly between 0 and 1.

    Source: Arratia, Goldstein and Gordon (1989), theorem 1, for the bound.
    """
    n = _dimension(n)
    if count < 2:
        raise ValueError(f"count must be at least 2 for a pair to exist, got {count}")
    if not 0 < q < 1:
        raise ValueError(f"q must lie strictly between 0 and 1, got {q}")
    target = math.log(-math.log(q)) - math.log(count) - math.log(count - 1)  # of the one-sided tail: M * 2 * tail = -log q
    low, high = torch.zeros_like(n), torch.ones_like(n)
    for _ in range(60):  # one bit each; the tail falls monotonically
        middle = (low + high) / 2
        beyond = cosine_logsf(middle, n) > target
        low, high = torch.where(beyond, middle, low), torch.where(beyond, high, middle)
    return low.item()
