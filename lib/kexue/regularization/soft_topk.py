r"""Soft selection of the k largest numbers: weights in [0, 1] that sum to k, with gradients.

The sum of the k largest of :math:`x_1,\dots,x_n` is the support function of the hypersimplex
:math:`C=\{p\in[0,1]^n:\sum_ip_i=k\}`, and its gradient is the hard selection. Adding an entropy smooths both at once,

.. math:: M_T(x)=\max_{p\in C}\,\langle p,x\rangle+T\,H(p),\qquad p=\nabla M_T(x).

Three entropies are in use. ``"subset"``: Shannon's entropy of a random subset :math:`S` of size k with marginals p, so that
:math:`P(S)\propto\exp\sum_{i\in S}x_i/T` and :math:`M_T=T\log e_k(e^{x/T})` with the elementary symmetric polynomial :math:`e_k`; for
k = 1 this is softmax. ``"fermi"``: the sum of the binary entropies of the :math:`p_i`, so that
:math:`p_i=\sigma((x_i-\tau)/T)` with one threshold :math:`\tau`. ``"sparse"``: :math:`\tfrac12\sum_ip_i(1-p_i)`, so that
:math:`p_i=\operatorname{clip}((x_i-\tau)/T,0,1)`, the projection of :math:`x/T` onto C; for k = 1 this is sparsemax.

The first two are one family: independent draws with the probabilities of ``"fermi"``, given that exactly k of them succeed, are the
random subset of ``"subset"``. That is also how it is computed. The number of successes is a Poisson-binomial variable with mean k, the
most probable value, so products of positive polynomials in plain floating point do: nothing overflows, nothing cancels, and
nothing that matters underflows.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from kexue.regularization._counted_draws import given_count

__all__ = ["soft_topk", "soft_topk_sum"]

_METHODS = ("subset", "fermi", "sparse")
_SATURATED = 800.0  # exp(-800) is 0 in float64: a logistic function this far out is exactly 0 or 1
_NEWTON_STEPS = 100  # each step at least halves a bracket of width gap + log(n^2 / 4); fewer than ten are needed in practice


def soft_topk(
    x: Float[Tensor, "*shape"],
    k: int | float,
    dim: int = -1,
    *,
    temperature: float | int = 1.0,
    method: Literal["subset", "fermi", "sparse"] = "subset",
) -> Float[Tensor, "*shape"]:
    r"""Smooth indicator of the k largest entries along ``dim``: weights in [0, 1] that sum to k.

    As the temperature falls the weights tend to the hard selection; entries that tie for the last places share them equally. Adding a
    constant to ``x`` changes nothing. Masked entries, :math:`x_i=-\infty`, get weight 0 and gradient 0. Logits of any finite size are
    safe. Computed in float64 and returned in the type of ``x``; differentiable, any number of times. Cost for n entries: O(nk) in
    about :math:`2\log_2n` vectorized steps for ``"subset"``, O(n) per Newton step for ``"fermi"``, O(n log n) for ``"sparse"``.

    :param k: how many to select, from 0 to the number of entries that are not masked; an integer for ``"subset"``, real for the others.
    :param temperature: positive; differences of ``x`` far beyond it decide, differences far below it do not matter.
    :raises ValueError: if k, temperature or method is out of range or ``x`` has a NaN or :math:`+\infty`.

    >>> soft_topk(torch.tensor([2.0, 1.0, 4.0, 5.0, 3.0]), 2).round(decimals=3)
    tensor([0.1150, 0.0430, 0.6750, 0.8710, 0.2960])

    Source: the marginals of conditional Poisson sampling, Chen, Dempster and Liu (1994); in the blog, kexue.fm/archives/10373.
    """
    u, _ = _prepare(x, k, dim, temperature, method)
    return _selection(u, k, method).to(x.dtype).movedim(-1, dim)


def soft_topk_sum(
    x: Float[Tensor, "*shape"],
    k: int | float,
    dim: int = -1,
    *,
    temperature: float | int = 1.0,
    method: Literal["subset", "fermi", "sparse"] = "subset",
) -> Float[Tensor, "*reduced"]:
    r"""Smooth sum of the k largest entries along ``dim``, the convex function :math:`M_T` whose gradient is :func:`soft_topk`.

    It is at least the hard sum and exceeds it by at most :math:`T\log\binom nk` (``"subset"``), :math:`T n\,h(k/n)` with the binary
    entropy h (``"fermi"``) or :math:`\tfrac T2k(1-k/n)` (``"sparse"``), attained where all entries are equal. ``"subset"`` is
    :math:`T\log e_k(e^{x/T})`. Arguments, range, cost and errors are those of :func:`soft_topk`.
    """
    u, shift = _prepare(x, k, dim, temperature, method)
    return (_Support.apply(u, k, method) * temperature + shift * k).to(x.dtype)


def _prepare(x: Tensor, k: float | int, dim: int, temperature: float | int, method: str) -> tuple[Tensor, Tensor]:
    """Check the arguments; return (x - shift) / T in float64 with ``dim`` last, and the shift, the k-th largest entry."""
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}, got {method!r}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    if x.ndim == 0:
        raise ValueError("x must have at least one axis, got a number")
    rows = x.movedim(dim, -1).double()
    if not (rows < math.inf).all():
        raise ValueError("x must be finite or -inf (masked), got nan or inf")
    free = int((rows > -math.inf).sum(-1).min()) if rows.numel() else rows.shape[-1]
    if not 0 <= k <= free:
        raise ValueError(f"k must lie between 0 and {free}, the smallest number of entries that are not masked, got {k}")
    if method == "subset" and k != int(k):
        raise ValueError(f"k must be an integer for the method 'subset', which counts subsets, got {k}")
    if rows.shape[-1] == 0:
        return rows, rows.sum(-1)
    near = rows.detach().topk(max(math.ceil(k), 1), dim=-1).values[..., -1]
    near = torch.where(near > -math.inf, near, 0.0)  # only where everything is masked and k is 0
    return (rows - near[..., None]) / temperature, near


def _selection(u: Tensor, k: float | int, method: str) -> Tensor:
    if method == "sparse":
        return _capped_projection(u, k)
    if method == "fermi" or k in (0, u.shape[-1]):  # at the ends there is one subset only and both agree
        return _Fermi.apply(u, k)
    return given_count(u - _threshold(u, k)[..., None], int(k))[0]  # tau does not matter, so it is a constant to the gradient


class _Support(torch.autograd.Function):
    """max over p of <p, u> + H(p); its gradient is the selection, which is differentiable in its turn."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, k: float | int, method: str) -> Tensor:
        ctx.save_for_backward(u)
        ctx.k, ctx.method = k, method
        if method == "sparse":
            p = _capped_projection(u, k)
            return (torch.where(p > 0, u * p, 0.0) + p * (1 - p) / 2).sum(-1)
        tau = _threshold(u, k)
        v = u - tau[..., None]
        above = v > 0  # sum of softplus(v) + k tau, without the cancellation of large terms
        value = torch.where(above, u, 0.0).sum(-1) + (k - above.sum(-1)) * tau + torch.exp(-v.abs()).log1p().sum(-1)
        return value if method == "fermi" or k in (0, u.shape[-1]) else value + given_count(v, int(k))[1].log()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (u,) = ctx.saved_tensors
        return grad[..., None] * _selection(u, ctx.k, ctx.method), None, None


# --- independent draws with one threshold


class _Fermi(torch.autograd.Function):
    r"""p = sigma(u - tau(u)) with sum k. With :math:`s=p(1-p)` the Jacobian is :math:`\mathrm{diag}(s)-ss^\top/\sum s`."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, k: float | int) -> Tensor:
        p = torch.sigmoid(u - _threshold(u, k)[..., None])
        ctx.save_for_backward(p)
        return p

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (p,) = ctx.saved_tensors  # the output itself, so that this formula can be differentiated again
        s = p * (1 - p)
        total = s.sum(-1, keepdim=True)
        mean = (s * grad).sum(-1, keepdim=True) / torch.where(total > 0, total, 1.0)
        return s * (grad - mean), None


@torch.no_grad()
def _threshold(u: Tensor, k: float | int) -> Tensor:
    r"""The tau with :math:`\sum_i\sigma(u_i-\tau)=k`, to rounding error also where all terms are saturated.

    With m the integer part of k, what the m largest miss plus k - m must equal what the others have, :math:`A(\tau)=B(\tau)`. The
    root of :math:`\log A-\log B` is found by Newton's method, kept inside a bracket: in a wide gap that function is linear, while
    the plain sum is flat.
    """
    n, m = u.shape[-1], math.floor(k)
    order = u.sort(dim=-1, descending=True).values
    free = order > -math.inf
    if k == 0:
        return order[..., 0].clamp_min(0) + _SATURATED if n else u.sum(-1)
    lowest = torch.where(free, order, math.inf).amin(-1)
    full = free.sum(-1) == k  # every free entry is selected
    if m == n:
        return lowest - _SATURATED
    top, rest = order[..., :m], order[..., m:]
    first, last = rest[..., 0], top[..., -1] if m else rest[..., 0] + math.inf
    part = k - m
    low = torch.where(full, lowest, first) - (math.log(k / (m + 1 - k)) if part else math.log(k))
    high = last + math.log(n - m)
    if part:
        high = torch.minimum(high, first + math.log((n - m) / part))
    tau = (low + high) / 2
    log_part = torch.full_like(tau, math.log(part) if part else -math.inf)
    for _ in range(_NEWTON_STEPS):
        v_top, v_rest = top - tau[..., None], rest - tau[..., None]
        missing = torch.logaddexp(torch.nn.functional.logsigmoid(-v_top).logsumexp(-1), log_part) if m else log_part
        having = torch.nn.functional.logsigmoid(v_rest).logsumexp(-1)
        value = missing - having
        slope = (torch.sigmoid(v_top) * torch.exp(torch.nn.functional.logsigmoid(-v_top) - missing[..., None])).sum(-1)
        slope = slope + (torch.sigmoid(-v_rest) * torch.exp(torch.nn.functional.logsigmoid(v_rest) - having[..., None])).sum(-1)
        low, high = torch.where(value <= 0, tau, low), torch.where(value >= 0, tau, high)
        step = tau - value / slope
        new = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
        done = full | ((new - tau).abs() <= 4 * torch.finfo(u.dtype).eps * tau.abs().clamp_min(1))
        tau = new
        if bool(done.all()):
            break
    return torch.where(full, lowest - _SATURATED, tau)


# --- projection onto the hypersimplex


def _capped_projection(u: Tensor, k: float | int) -> Tensor:
    """clip(u - tau, 0, 1) with sum k. The sum falls piecewise linearly in tau; bisection over its kinks finds the piece."""
    with torch.no_grad():
        kinks = torch.cat([u, u - 1], -1).sort(-1).values
        low = torch.zeros_like(kinks[..., :1], dtype=torch.long)
        high = torch.full_like(low, kinks.shape[-1])
        for _ in range(kinks.shape[-1].bit_length()):  # the last kink at which the sum is still at least k lies in [low, high)
            middle = (low + high) // 2
            enough = (u - kinks.gather(-1, middle)).clamp(0, 1).sum(-1, keepdim=True) >= k
            low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
        kink = kinks.gather(-1, low)
        one, between = u - 1 > kink, (u > kink) & (u - 1 <= kink)
        size = between.sum(-1, keepdim=True)
    excess = torch.where(between, u, 0.0).sum(-1, keepdim=True) + one.sum(-1, keepdim=True) - k
    tau = excess / size.clamp_min(1)
    return torch.where(one, 1.0, torch.where(between, u - tau, 0.0)).to(u.dtype)
