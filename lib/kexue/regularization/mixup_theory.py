r"""What mixed examples ask of a model, in closed form where there is one.

With :math:`\lambda\sim\mathrm{Beta}(\alpha,\alpha)`, mixup keeps means and multiplies every covariance by
:math:`\mathbb E[\lambda^2+(1-\lambda)^2]` (:func:`mixup_moments`). It leaves a cross-entropy that no model can go below
(:func:`entropy_floor`), charges a model for leaving its chords (:func:`affinity_gap`), and on a line it asks for one function, which need
not be right at the examples (:func:`line_minimizer`). :class:`MixupInference` undoes the shrinkage of the mixed inputs at test time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kexue.numerics import log_beta
from kexue.regularization.mixup import _check_alpha, _check_weights, _columns

__all__ = ["MixupInference", "MixupMoments", "affinity_gap", "entropy_floor", "line_minimizer", "mixup_moments"]


class MixupMoments(NamedTuple):
    r"""Moments of the weights; ``own`` is also the factor by which mixup multiplies every covariance.

    :ivar own: :math:`\mathbb E\lambda'=\mathbb E[\lambda^2+(1-\lambda)^2]=\frac{\alpha+1}{2\alpha+1}`.
    :ivar other: :math:`\mathbb E[1-\lambda']=\frac\alpha{2\alpha+1}`.
    :ivar other_sq: :math:`\mathbb E(1-\lambda')^2=\frac\alpha{2(2\alpha+1)}`.
    :ivar folded: :math:`\mathbb E\max(\lambda,1-\lambda)=\frac12+\frac{4^{-\alpha}}{\alpha B(\alpha,\alpha)}`.
    """

    own: float
    other: float
    other_sq: float
    folded: float


def mixup_moments(alpha: float | int) -> MixupMoments:
    r"""Moments of the mixing weight :math:`\lambda\sim\mathrm{Beta}(\alpha,\alpha)` and of its size-biased version :math:`\lambda'`.

    Exact for every alpha from 0 to ``math.inf``, ``folded`` to 1e-8. Raises ValueError if ``alpha`` is negative or NaN.
    """
    _check_alpha(alpha)
    if alpha == 0:
        return MixupMoments(1.0, 0.0, 0.0, 1.0)
    if alpha == math.inf:
        return MixupMoments(0.5, 0.5, 0.25, 0.5)
    a = torch.tensor(alpha, dtype=torch.float64)
    folded = 0.5 + math.exp(-alpha * math.log(4) - math.log(alpha) - log_beta(a, a).item())
    other = 1 / (2 + 1 / alpha)
    return MixupMoments(1 - other, other, other / 2, folded)


def entropy_floor(alpha: float | int, class_probabilities: Float[Tensor, " classes"]) -> Float[Tensor, ""]:
    r"""Least cross-entropy that any model can reach on mixed class labels, in nats: the mean entropy of the mixed label.

    :math:`\bigl(1-\sum_kp_k^2\bigr)\bigl(\psi(2\alpha+1)-\psi(\alpha+1)\bigr)`: the chance that two examples differ in class, times
    the mean entropy of :math:`(\lambda,1-\lambda)`, which is :math:`\log2` at ``math.inf``. Partners drawn with replacement.

    :raises ValueError: if ``alpha`` is negative or NaN, or the probabilities are negative or do not sum to 1.
    """
    _check_alpha(alpha)
    p = class_probabilities
    if not (bool((p >= 0).all()) and abs(p.sum().item() - 1) < 1e-4):
        raise ValueError(f"class_probabilities must be non-negative and sum to 1, got {p.tolist()}")
    if alpha == math.inf:
        mean_entropy = math.log(2)
    else:
        high, low = torch.special.digamma(torch.tensor([2 * alpha + 1, alpha + 1], dtype=torch.float64)).tolist()
        mean_entropy = high - low
    return (p * (1 - p)).sum() * mean_entropy


def affinity_gap(
    f: Callable[[Tensor], Tensor],
    x: Float[Tensor, " pairs *features"],
    x2: Float[Tensor, " pairs *features"],
    lam: Float[Tensor, " pairs"],
) -> Float[Tensor, " pairs"]:
    r"""Squared distance :math:`\|f(\lambda x+(1-\lambda)x_2)-\lambda f(x)-(1-\lambda)f(x_2)\|^2` of a function from its chords.

    Zero for all pairs and weights if and only if ``f`` is affine on the segments. Three evaluations of ``f``, which maps a batch to
    outputs of any shape per example. Differentiable. Raises ValueError if a weight lies outside [0, 1].
    """
    _check_weights(lam)
    between, end, start = f(torch.lerp(x2, x, _columns(lam, x))), f(x), f(x2)
    return (between - torch.lerp(start, end, _columns(lam.to(end.dtype), end))).flatten(1).square().sum(1)


class MixupInference(nn.Module):
    r"""Predict with a mixup model on shrunk inputs, and undo the shrinkage in the predicted probabilities.

    With :math:`p` the softmax of ``model`` at :math:`\bar x+\theta(x-\bar x)`, returns :math:`\bar y+(p-\bar y)/\theta`, clipped to
    non-negative values and normalized. A model whose probabilities are affine is not changed where nothing is clipped.

    :param model: maps a batch to logits.
    :param x_mean: mean :math:`\bar x` of the training inputs, one example's shape.
    :param y_mean: class frequencies :math:`\bar y` of the training set.
    :param factor: :math:`\theta` in (0, 1]; ``own`` or ``folded`` of :func:`mixup_moments`.
    :raises ValueError: if ``factor`` is not in (0, 1].

    Source: Carratino, Cisse, Jenatton and Vert (2022), who use ``folded``.
    """

    x_mean: Tensor
    y_mean: Tensor

    def __init__(
        self, model: nn.Module, x_mean: Float[Tensor, "*features"], y_mean: Float[Tensor, " classes"], factor: float | int
    ) -> None:
        super().__init__()
        if not 0 < factor <= 1:
            raise ValueError(f"factor must lie in (0, 1], got {factor}")
        self.model, self.factor = model, factor
        self.register_buffer("x_mean", x_mean)
        self.register_buffer("y_mean", y_mean)

    def forward(self, x: Float[Tensor, " batch *features"]) -> Float[Tensor, "batch classes"]:
        """Return probabilities of the classes, rows that sum to 1."""
        p = self.model(torch.lerp(self.x_mean.expand_as(x), x, self.factor)).softmax(1)
        wide = (self.y_mean + (p - self.y_mean) / self.factor).clamp_min(0)
        return wide / wide.sum(1, keepdim=True)


def line_minimizer(
    z: Float[Tensor, " count"],
    points: Float[Tensor, " points"],
    targets: Float[Tensor, " points"],
    alpha: float | int,
    *,
    weights: Float[Tensor, " points"] | None = None,
) -> Float[Tensor, " count"]:
    r"""What mixup asks of a function on a line: :math:`f^*(z)=\mathbb E[\tilde y\mid\tilde x=z]` for finitely many examples on it.

    Two different points :math:`x_i,x_j` around :math:`z` contribute their mixed target at :math:`\lambda=(z-x_j)/(x_i-x_j)` with density
    :math:`w_iw_j\,b_\alpha(\lambda)/|x_i-x_j|`; densities are added as logarithms. Exactly at a point, pairs :math:`i=j` have positive
    probability and :math:`f^*` is the point's own target. The minimizer of the expected squared error and of cross-entropy.

    :param z: places between the smallest and the largest point.
    :param alpha: positive and finite.
    :param weights: probabilities of the points up to a factor, positive; equal if None.
    :raises ValueError: if ``alpha`` is not positive and finite, a weight is not positive, points coincide or a ``z`` lies outside.
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be positive and finite, got {alpha}")
    w = torch.ones_like(points) if weights is None else weights
    if not bool((w > 0).all()):
        raise ValueError(f"weights must be positive, got {w.tolist()}")
    if len(points.unique()) < len(points) or not len(points):
        raise ValueError(f"points must be at least one and different from each other, got {points.tolist()}")
    if len(z) and not bool((z.min() >= points.min()) & (z.max() <= points.max())):
        raise ValueError(f"z must lie between the smallest and the largest point, got {z.min():g} to {z.max():g}")
    i, j = torch.triu_indices(len(points), len(points), offset=1)
    span = points[i] - points[j]
    lam = (z[:, None] - points[j]) / span
    inside = (lam > 0) & (lam < 1)
    safe = torch.where(inside, lam, 0.5)
    log_density = (alpha - 1) * (torch.log(safe) + torch.log1p(-safe)) + torch.log(w[i] * w[j] / span.abs())
    share = torch.where(inside, log_density, -math.inf).softmax(1)
    mixed = (share * torch.lerp(targets[j], targets[i], safe)).sum(1)
    here = z[:, None] == points
    return torch.where(here.any(1), (here * targets).sum(1), mixed)
