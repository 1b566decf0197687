r"""True values of f-divergences: quadrature of two known densities, closed forms for Gaussians, sums for finite distributions.

They are the references against which a variational bound is judged. Where both densities are positive the integrand is evaluated from
the side of the larger one, :math:`q\,f(p/q)` for :math:`p\le q` and :math:`p\,f^\circ(q/p)` otherwise, so that an underflowing density
never meets an overflowing ratio; where one of them vanishes, :math:`f(0)` and :math:`f'(\infty)` take over.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kexue.generative.divergences import FDivergence

__all__ = ["discrete", "exact", "gauss_legendre", "gaussian", "log_power_integral"]

Gaussian = tuple[Float[Tensor, " dim"], Float[Tensor, "dim dim"]]


def gauss_legendre(
    low: float | int, high: float | int, *, panels: int = 10, nodes: int = 64
) -> tuple[Float[Tensor, " points"], Float[Tensor, " points"]]:
    """Nodes and log weights (float64) of the composite Gauss-Legendre rule with ``nodes`` points on each of ``panels`` equal intervals.

    Exact for polynomials of degree 2 nodes - 1 on each panel. Raises ValueError unless low < high are finite and both counts positive.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"low and high must be finite with low < high, got {low} and {high}")
    if panels < 1 or nodes < 1:
        raise ValueError(f"panels and nodes must be at least 1, got {panels} and {nodes}")
    x, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(nodes))
    half = 0.5 * (high - low) / panels
    centers = low + half * (2.0 * torch.arange(panels, dtype=torch.float64) + 1.0)
    return (centers[:, None] + half * x).reshape(-1), (half * w).log().repeat(panels)


def exact(
    div: FDivergence,
    log_p: Float[Tensor, "*batch points"],
    log_q: Float[Tensor, "*batch points"],
    log_weights: Float[Tensor, " points"],
) -> Float[Tensor, "*batch"]:
    r"""Divergence :math:`D_f(P\|Q)` of two densities given by their logarithms at quadrature nodes of any dimension.

    ``-inf`` is a legal log density. The rule sees only its own region: a divergence that is infinite because of the tails comes out
    finite (compare :func:`gaussian`). Differentiable in the log densities where they are finite.

    Raises ValueError if a log density is NaN or ``+inf``.
    """
    for name, value in (("log_p", log_p), ("log_q", log_q)):
        if (value.isnan() | (value == math.inf)).any():
            raise ValueError(f"{name} must be finite or -inf at every node, got NaN or inf")
    no_p, no_q = log_p == -math.inf, log_q == -math.inf
    both = ~(no_p | no_q)
    lp, lq = torch.where(both, log_p, 0.0), torch.where(both, log_q, 0.0)
    ratio = lp - lq
    below = ratio <= 0
    shared = torch.where(
        below,
        lq.exp() * div.f_log(torch.where(below, ratio, 0.0)),
        lp.exp() * div.reverse().f_log(torch.where(below, 0.0, -ratio)),
    )
    # f(0) q where p vanishes, f'(inf) p where q does; both may be inf, and 0 * inf must not arise
    only_q = torch.where(no_p & ~no_q, torch.full_like(log_q, div.f0), 0.0) * torch.where(no_q, 0.0, log_q).exp()
    only_p = torch.where(no_q & ~no_p, torch.full_like(log_p, div.fprime_inf), 0.0) * torch.where(no_p, 0.0, log_p).exp()
    return ((torch.where(both, shared, 0.0) + only_q + only_p) * log_weights.exp()).sum(-1)


def discrete(div: FDivergence, p: Float[Tensor, "*batch outcomes"], q: Float[Tensor, "*batch outcomes"]) -> Float[Tensor, "*batch"]:
    r"""Divergence of two probability vectors; zeros are allowed and cost :math:`f(0)q` or :math:`f'(\infty)p`.

    Raises ValueError if an entry is negative or NaN, or a vector does not sum to 1 within 1e-5.
    """
    for name, value in (("p", p), ("q", q)):
        if not (value >= 0).all():
            raise ValueError(f"{name} must have non-negative entries, got minimum {value.min().item()}")
        total = value.sum(-1)
        if not ((total - 1).abs() <= 1e-5).all():
            raise ValueError(f"{name} must sum to 1, got {total.flatten()[0].item()}")
    return exact(div, p.log(), q.log(), torch.zeros_like(p[(0,) * (p.ndim - 1)]))


def log_power_integral(p: Gaussian, q: Gaussian, a: float | int) -> Float[Tensor, ""]:
    r"""Logarithm of :math:`\int p^a q^{1-a}` for two Gaussians (mean, covariance), ``inf`` where the integral diverges.

    With :math:`M=(1-a)\Sigma_p+a\Sigma_q` it is
    :math:`\tfrac12[(1-a)\log|\Sigma_p|+a\log|\Sigma_q|-\log|M|]-\tfrac12a(1-a)\,\delta^\top M^{-1}\delta`, finite exactly if M is
    positive definite, i.e. if :math:`a\Sigma_p^{-1}+(1-a)\Sigma_q^{-1}` is.
    """
    (mean_p, cov_p), (mean_q, cov_q) = p, q
    mixed = (1.0 - a) * cov_p + a * cov_q
    factor, failed = torch.linalg.cholesky_ex(mixed)
    scale = cov_p.diagonal().max() + cov_q.diagonal().max()
    if failed or factor.diagonal().min() ** 2 <= torch.finfo(mixed.dtype).eps * scale:
        return torch.full((), math.inf, dtype=mixed.dtype)
    shift = torch.linalg.solve_triangular(factor, (mean_p - mean_q)[:, None], upper=False).square().sum()
    return 0.5 * ((1.0 - a) * _log_det(cov_p) + a * _log_det(cov_q) - _log_det(mixed)) - 0.5 * a * (1.0 - a) * shift


def gaussian(div: FDivergence, p: Gaussian, q: Gaussian) -> Float[Tensor, ""]:
    r"""Closed form of :math:`D_f(P\|Q)` for Gaussians ``(mean (dim,), covariance (dim, dim))`` of any dimension.

    Covers kl, reverse_kl, jeffreys, every power divergence (pearson, neyman, hellinger, :func:`alpha`), with ``inf`` where the tails of
    one density are too light for the other, and tv for equal covariances.

    Raises ValueError for a covariance that is not symmetric positive definite, NotImplementedError where no closed form is known.
    """
    for name, (_, cov) in (("p", p), ("q", q)):
        if not torch.allclose(cov, cov.mT) or torch.linalg.cholesky_ex(cov).info:
            raise ValueError(f"the covariance of {name} must be symmetric positive definite, got {cov.tolist()}")
    if div.name == "jeffreys":
        return _gaussian_kl(p, q) + _gaussian_kl(q, p)
    if div.name == "tv" and torch.equal(p[1], q[1]):
        distance = torch.linalg.solve_triangular(torch.linalg.cholesky(p[1]), (p[0] - q[0])[:, None], upper=False).norm()
        return torch.erf(distance / math.sqrt(8.0))
    if div.power is None:
        raise NotImplementedError(f"no closed form of {div.name} between these Gaussians; use exact() with quadrature nodes")
    a, scale = div.power
    if a in (0.0, 1.0):
        return scale * (_gaussian_kl(p, q) if a else _gaussian_kl(q, p))
    return scale * torch.expm1(log_power_integral(p, q, a)) / (a * (a - 1.0))


def _gaussian_kl(p: Gaussian, q: Gaussian) -> Tensor:
    (mean_p, cov_p), (mean_q, cov_q) = p, q
    factor = torch.linalg.cholesky(cov_q)
    whitened = torch.linalg.solve_triangular(factor, torch.linalg.cholesky(cov_p), upper=False)
    shift = torch.linalg.solve_triangular(factor, (mean_p - mean_q)[:, None], upper=False)
    return 0.5 * (whitened.square().sum() + shift.square().sum() - mean_p.numel() + _log_det(cov_q) - _log_det(cov_p))


def _log_det(cov: Tensor) -> Tensor:
    return 2.0 * torch.linalg.cholesky(cov).diagonal().log().sum()
