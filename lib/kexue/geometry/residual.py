r"""What a stack of Transformer blocks does to a signal and to its gradient before the first step of training.

Width and feed-forward width are taken as infinite, weights are independent with variance :math:`s^2` and :math:`q=ds^2`, biases are 0,
normalization makes the variance of a token 1, and attention is uniform over T tokens (its scores have standard deviation q or less).
Then a state is two numbers: the variance v per coordinate and the cosine :math:`\rho` between two tokens. A branch B(x) adds

.. math:: \text{attention: } \sigma^2=\beta=q^2\bigl(\rho+\tfrac{1-\rho}T\bigr),\qquad
          \text{feed-forward: } \sigma^2=k\,q\,K_q(1),\ \beta=k\,q\,K_q(\rho),\quad K_q(\rho)=E\,\phi(u)\phi(w),

where :math:`\sigma^2` is its variance, :math:`\beta` the covariance between two tokens, k the widening of the feed-forward network, and
u, w normal with variance q and correlation :math:`\rho`. Back through a branch the same two formulas hold with gradients in place of
signals, except that the feed-forward network has the factor :math:`k\,q^2E\,\phi'(u)\phi'(w)`, by Price's theorem the derivative
:math:`k\,q\,dK_q/d\rho`.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Signal", "activation_kernel", "activation_slope", "residual_signal"]

NODES = 96  # of the Gauss-Hermite rule, per axis

Activation = Literal["identity", "relu", "gelu"] | Callable[[Tensor], Tensor]


def activation_kernel(q: Float[Tensor, "*#shape"], rho: Float[Tensor, "*#shape"], activation: Activation) -> Float[Tensor, "*#shape"]:
    r"""Covariance :math:`K_q(\rho)=E\,\phi(u)\phi(w)` of two activations; u, w are normal with variance ``q`` and correlation ``rho``.

    Closed forms for ``identity`` (:math:`q\rho`), ``relu`` and ``gelu``. With :math:`c=q\rho` and :math:`D^2=(1+q)^2-c^2`, the latter is

    .. math:: K=c\Bigl(\frac14+\frac1{2\pi}\arcsin\frac c{1+q}\Bigr)+\frac1{2\pi D}\Bigl(q^2+\frac{1-q}{1+q}c^2\Bigr).

    Any other function of a tensor is integrated by a Gauss-Hermite rule of 96 x 96 nodes in float64: exact to rounding for smooth
    functions, to 0.0014 q for relu. Broadcasts; float64 gives a few ulps of q. Raises ValueError if a q is not positive and finite, a
    rho lies outside [-1, 1] or the name is unknown. Source: Cho and Saul (2009) for relu.
    """
    q, rho = _checked(q, rho, activation)
    if activation == "identity":
        return q * rho
    if activation == "relu":
        return q * ((1 - rho**2).sqrt() + rho * (math.pi - rho.acos())) / (2 * math.pi)
    if activation == "gelu":
        c, one = q * rho, 1 + q
        return c * (0.25 + (c / one).asin() / (2 * math.pi)) + (q**2 + (1 - q) / one * c**2) / (2 * math.pi * _root(q, c))
    return _quadrature(q, rho, activation)


def activation_slope(q: Float[Tensor, "*#shape"], rho: Float[Tensor, "*#shape"], activation: Activation) -> Float[Tensor, "*#shape"]:
    r"""Covariance :math:`E\,\phi'(u)\phi'(w)` of two derivatives, which is :math:`\frac1q\,dK_q/d\rho` by Price's theorem.

    Conventions, accuracy and errors as in :func:`activation_kernel`; a callable must be differentiable by torch. Source: Price (1958).
    """
    q, rho = _checked(q, rho, activation)
    if activation == "identity":
        return torch.ones_like(q)
    if activation == "relu":
        return (math.pi - rho.acos()) / (2 * math.pi)
    if activation == "gelu":
        c, one, root = q * rho, 1 + q, _root(q, q * rho)
        bend = (3 - q) / one + (q**2 + (1 - q) / one * c**2) / root**2
        return 0.25 + (c / one).asin() / (2 * math.pi) + c * bend / (2 * math.pi * root)

    def derivative(u: Tensor) -> Tensor:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            return torch.autograd.grad(activation(u).sum(), u)[0]

    return _quadrature(q, rho, derivative)


def _checked(q: Tensor, rho: Tensor, activation: object) -> tuple[Tensor, Tensor]:
    if isinstance(activation, str) and activation not in ("identity", "relu", "gelu"):
        raise ValueError(f"activation must be 'identity', 'relu', 'gelu' or a function of a tensor, got {activation!r}")
    if not ((q > 0) & (q < math.inf)).all():
        raise ValueError(f"q must be positive and finite, got values from {q.min().item()} to {q.max().item()}")
    if not (rho.abs() <= 1).all():
        raise ValueError(f"rho must lie in [-1, 1], got values from {rho.min().item()} to {rho.max().item()}")
    q, rho = torch.broadcast_tensors(q, rho)
    return q, rho


def _root(q: Tensor, c: Tensor) -> Tensor:
    return ((1 + q - c) * (1 + q + c)).sqrt()


def _quadrature(q: Tensor, rho: Tensor, phi: Callable[[Tensor], Tensor]) -> Tensor:
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    g, w = torch.as_tensor(nodes, device=q.device), torch.as_tensor(weights / weights.sum(), device=q.device)
    scale, cosine = q.double().sqrt()[..., None, None], rho.double()[..., None, None]
    # Half angles treat u and w alike and keep the square root away from 1 - rho^2 at rho = 1.
    common, apart = ((1 + cosine) / 2).sqrt() * g[:, None], ((1 - cosine) / 2).sqrt() * g
    values = phi(scale * (common + apart)) * phi(scale * (common - apart))
    return (values * (w[:, None] * w)).sum((-2, -1)).to(q.dtype)


class Signal(NamedTuple):
    """Predicted state of a stack of L blocks; the last axis counts the 2L branches (attention, feed-forward, attention, ...) or the 2L + 1
    places between them. ``gradient`` is the mean square relative to that at the last place."""

    branch: Float[Tensor, "*batch branches"]
    stream: Float[Tensor, "*batch places"]
    cosine: Float[Tensor, "*batch places"]
    overlap: Float[Tensor, "*batch places"]
    gradient: Float[Tensor, "*batch places"]
    gradient_cosine: Float[Tensor, "*batch places"]


def residual_signal(
    q: Float[Tensor, "*batch"],
    depth: int,
    tokens: int,
    *,
    norm: Literal["post", "pre"] = "post",
    activation: Activation = "gelu",
    ratio: int = 4,
    cosine: float = 0.0,
    gradient_cosine: float = 0.0,
) -> Signal:
    r"""Follow signal and gradient through ``depth`` blocks with weights of variance q / width, for a batch of q at once (float64).

    ``stream`` is the variance v per coordinate (1 behind a post-normalization), ``cosine`` that between two tokens, ``overlap`` the cosine
    between a token and its own input, :math:`\prod(1+\sigma_l^2/v_l)^{-1/2}`. The input has variance 1 and token cosine ``cosine``; the
    gradient at the last place of the stream has token cosine ``gradient_cosine``. Both must be at least :math:`-1/(T-1)`, below which no
    T vectors can be. Quantitative for q up to about 1; beyond, attention is no longer uniform.

    Raises ValueError for a depth below 0, fewer than 2 tokens, a ratio below 1, a cosine out of range, an unknown norm, and
    as :func:`activation_kernel` does. Source: Noci et al. (2022) and Giorlandino and Goldt (2025), in the limit of uniform attention.
    """
    if norm not in ("post", "pre"):
        raise ValueError(f"norm must be 'post' or 'pre', got {norm!r}")
    if depth < 0 or tokens < 2:
        raise ValueError(f"depth must be at least 0 and tokens at least 2, got depth={depth}, tokens={tokens}")
    if ratio < 1:
        raise ValueError(f"ratio must be at least 1, got {ratio}")
    for name, value in (("cosine", cosine), ("gradient_cosine", gradient_cosine)):
        if not -1 / (tokens - 1) <= value <= 1:
            raise ValueError(f"{name} must lie in [-1/(tokens - 1), 1] = [{-1 / (tokens - 1):g}, 1], got {value}")
    q = q.double()
    v, rho, one = torch.ones_like(q), torch.full_like(q, cosine), torch.ones_like(q)
    overlap = one
    branches, states = [], [(v, rho, overlap)]
    for index in range(2 * depth):
        if index % 2 == 0:
            sigma2 = beta = q**2 * _averaged(rho, tokens)
        else:
            sigma2 = ratio * q * activation_kernel(q, one, activation)
            beta = ratio * q * activation_kernel(q, rho, activation)
        total = v + sigma2
        rho, overlap = ((v * rho + beta) / total).clamp(-1, 1), overlap * (v / total).sqrt()
        v = one if norm == "post" else total
        branches.append(sigma2)
        states.append((v, rho, overlap))
    gradients = _gradients(q, branches, states, norm, activation, ratio, tokens, gradient_cosine)
    stream, cosines, overlaps = (torch.stack(values, -1) for values in zip(*states, strict=True))
    branch = torch.stack(branches, -1) if branches else q.new_zeros((*q.shape, 0))
    return Signal(branch, stream, cosines, overlaps, *gradients)


def _averaged(cosine: Tensor, tokens: int) -> Tensor:
    """Mean square of the average of T vectors of mean square 1."""
    return cosine + (1 - cosine) / tokens


def _gradients(
    q: Tensor, branches: list[Tensor], states: list, norm: str, activation: Activation, ratio: int, tokens: int, start: float
) -> tuple[Tensor, Tensor]:
    one = torch.ones_like(q)
    size, rho = one, torch.full_like(q, start)
    result = [(size, rho)]
    for index in reversed(range(len(branches))):
        v, signal_rho, _ = states[index]
        if index % 2 == 0:
            gain = cross = q**2 * _averaged(rho, tokens)
        else:
            gain = ratio * q**2 * activation_slope(q, one, activation)
            cross = ratio * q**2 * activation_slope(q, signal_rho, activation) * rho
        if norm == "post":  # the normalization divides both paths by the same number
            skip = 1 / (1 + branches[index])
        else:  # only the branch is divided
            skip, gain, cross = one, gain / v, cross / v
        scale = 1 + gain
        size, rho = size * skip * scale, (rho + cross) / scale
        result.append((size, rho))
    sizes, cosines = zip(*reversed(result), strict=True)
    return torch.stack(sizes, -1), torch.stack(cosines, -1)
