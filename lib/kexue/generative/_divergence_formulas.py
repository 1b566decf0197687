"""Closed forms behind the table of f-divergences that take more than one line: stable near v = 0 and at both ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__: list[str] = []

Map = Callable[[Tensor], Tensor]

LOG2 = math.log(2.0)
INF = math.inf
NEWTON_STEPS = 12  # quadratic convergence from one side; 7 reach float64 everywhere that was tried
SMALLEST_POWER = 1e-30  # below it the Box-Cox map differs from its limit v by less than any rounding, and k v would lose digits
GRAPH_STEPS = 2  # Newton steps inside the graph: k of them make 2**k - 1 derivatives of an implicit function exact


class Tangent(torch.autograd.Function):
    """A map whose derivative is known in closed form: the forward may work in place, and only v is kept for the backward.

    ``value`` and ``slope`` are elementwise. The derivative is made of differentiable operations, hence has derivatives of all orders.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, value: Map, slope: Map) -> Tensor:
        return value(v)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Map, Map], output: Tensor) -> None:
        v, _, ctx.slope = inputs
        ctx.save_for_backward(v)
        ctx.save_for_forward(v)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.slope(ctx.saved_tensors[0]), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return tangent * ctx.slope(ctx.saved_tensors[0])


def box_cox(v: Tensor, k: float) -> Tensor:
    return (k * v).expm1() / k if abs(k) > SMALLEST_POWER else v.clone()


def softplus_parts(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """min(v, 0), max(v, 0) and log((1 + e^-|v|) / 2) with the derivatives of the right branch at v = 0, where abs() has none."""
    below = v < 0
    return torch.where(below, v, 0.0), torch.where(below, 0.0, v), (0.5 * torch.where(below, v, -v).expm1()).log1p()


def js_generator(v: Tensor) -> Tensor:
    negative, _, half = softplus_parts(v)
    return 0.5 * (torch.where(v < 0, negative * negative.exp(), -v) - (1.0 + v.exp()) * half)


def log_mean_exp_gap(v: Tensor) -> Tensor:
    """log((1 + e^-|v|) / 2) in one buffer; for use inside :class:`Tangent` only, because autograd cannot follow it."""
    return v.abs().neg_().expm1_().mul_(0.5).log1p_()


def js_link(v: Tensor) -> Tensor:
    return log_mean_exp_gap(v).neg_().add_(v.clamp(max=0.0)).mul_(0.5)


def js_conj_link(v: Tensor) -> Tensor:
    return log_mean_exp_gap(v).add_(v.clamp(min=0.0)).mul_(0.5)


def js_conjugate(t: Tensor) -> Tensor:
    outside = t >= 0.5 * LOG2
    return torch.where(outside, INF, -0.5 * (-(2.0 * torch.where(outside, 0.0, t)).expm1()).log1p())


def srkl_generator(v: Tensor) -> Tensor:
    negative, _, half = softplus_parts(v)
    return 0.5 * (1.0 + v.exp()) * (half - negative)


def srkl_link(v: Tensor) -> Tensor:
    return log_mean_exp_gap(v).sub_(v.clamp(max=0.0)).sub_(v.neg().exp_()).mul_(0.5)


def srkl_conj_link(v: Tensor) -> Tensor:
    return log_mean_exp_gap(v).sub_(v.clamp(max=0.0)).add_(1.0).mul_(-0.5)


def srkl_conjugate(t: Tensor) -> Tensor:
    gap = -LOG2 - 2.0 * t
    value = 0.5 * (LOG2 - 1.0 - solve_s_minus_log1p(torch.where(gap < 0, 1.0, gap)).log1p())
    return torch.where(gap < 0, INF, value)


def reverse_srkl_generator(v: Tensor) -> Tensor:
    _, positive, half = softplus_parts(v)
    return 0.5 * (1.0 + v.exp()) * (positive + half)


def reverse_srkl_conjugate(t: Tensor) -> Tensor:
    start = 0.5 * (1.0 - LOG2)
    t = torch.where(t < start, start, t)  # below the slope at u = 0 the supremum sits at u = 0 and equals -f(0)
    return (2.0 * t - 1.0).exp() - t


def log_wright_omega(x: Tensor) -> Tensor:
    """Solution y of e^y + y = x: the left side is convex and the start lies above the root, so Newton descends monotonically."""
    fixed = x.detach()
    y = torch.where(fixed > 1, fixed.clamp(min=1.0).log(), fixed)
    for target in [fixed] * NEWTON_STEPS + [x] * GRAPH_STEPS:
        y = y - (y.exp() + y - target) / (y.exp() + 1.0)
    return y


def solve_s_minus_log1p(gap: Tensor) -> Tensor:
    """Solution s >= 0 of s - log(1 + s) = gap, that is -1 - W_{-1}(-exp(-1 - gap)), from Chatzigeorgiou's (2013) upper bound."""
    fixed = gap.detach()
    s = (2.0 * fixed).sqrt() + fixed
    for target in [fixed] * NEWTON_STEPS + [gap] * GRAPH_STEPS:
        s = s - (s - s.log1p() - target) * (1.0 + s) / s.clamp(min=torch.finfo(s.dtype).tiny)
    return s


def neyman_conjugate(t: Tensor) -> Tensor:
    return torch.where(t > 1, INF, 2.0 - 2.0 * (1.0 - torch.where(t > 1, 0.0, t)).sqrt())


def reverse_kl_conjugate(t: Tensor) -> Tensor:
    return torch.where(t >= 0, INF, -1.0 - (-torch.where(t >= 0, -1.0, t)).log())


def hellinger_conjugate(t: Tensor) -> Tensor:
    return torch.where(t >= 1, INF, t / (1.0 - torch.where(t >= 1, 0.0, t)))


def jeffreys_conjugate(t: Tensor) -> Tensor:
    v = -log_wright_omega(1.0 - t)  # solves v + 1 - e^-v = t; W(e^(1-t)) would overflow long before this
    return v.expm1() + v


def tv_link(v: Tensor) -> Tensor:
    return torch.where(v.isnan(), v, 0.5 * v.sign())  # sign() alone would hide a NaN


def tv_smooth_link(v: Tensor) -> Tensor:
    return 0.5 * (0.5 * v).tanh()
