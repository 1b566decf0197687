r"""Mixup and SamplePairing: training on averages of two examples, and what that asks of the model.

A mixed example is :math:`\tilde x=\lambda x_i+(1-\lambda)x_j,\ \tilde y=\lambda y_i+(1-\lambda)y_j` with
:math:`\lambda\sim\mathrm{Beta}(\alpha,\alpha)`. For a loss that is affine in the target, the expected loss does not change if the
mixed target is replaced by the own one, :math:`y_i`, and the weight by :math:`\lambda'\sim\mathrm{Beta}(\alpha+1,\alpha)`, the law of
:math:`\lambda` biased by its size (:func:`hard_label_mixup`). At :math:`\alpha=\infty` all weights are 1/2 and this is SamplePairing;
:math:`\alpha=0` is ordinary training. What the mixed examples ask of a model is the subject of
:mod:`kexue.regularization.mixup_theory`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

__all__ = [
    "Mixed",
    "hard_label_mixup",
    "mix_pairs",
    "mixing_weights",
    "sample_pairing",
]


class Mixed(NamedTuple):
    r"""A mixed batch: inputs, targets, and the weight :math:`\lambda` of each example's own input."""

    x: Shaped[Tensor, " batch *features"]
    y: Shaped[Tensor, " batch *classes"]
    lam: Float[Tensor, " batch"]


def mixing_weights(
    alpha: float | int, count: int, *, size_biased: bool = False, generator: torch.Generator | None = None
) -> Float[Tensor, " count"]:
    r"""Draw ``count`` weights from Beta(alpha, alpha), or from Beta(alpha + 1, alpha) if ``size_biased``, in float64.

    Two uniform numbers :math:`U,V` give a symmetric beta variable without rejection:

    .. math:: \lambda=\tfrac12+\frac{\cos(2\pi V)}2\sqrt{\frac{1-q}{q+(1-q)\cos^2(2\pi V)}},\qquad q=U^{1/\alpha}.

    Weights near 0 keep their digits down to 1e-308. For alpha = ``math.inf`` they are 1/2, and for 0 they are 1, every example alone.
    The biased law keeps :math:`\lambda` with probability :math:`\lambda` and else takes :math:`1-\lambda`.

    :param alpha: at least 0, in units of pseudo-counts; ``math.inf`` is allowed.
    :raises ValueError: if ``alpha`` is negative or NaN, or ``count`` is negative.

    Source: R. W. Bailey (1994), Math. Comp. 62, 779-781, for Student's :math:`t`; :math:`\lambda=\frac12(1+t/\sqrt{2\alpha+t^2})`.
    """
    _check_alpha(alpha)
    if count < 0:
        raise ValueError(f"count must be at least 0, got {count}")
    u, v, w = torch.rand(3, count, generator=generator, dtype=torch.float64)
    if alpha == 0:
        return torch.ones_like(u)
    log_q, cosine = torch.log1p(-u) / alpha, torch.cos(2 * math.pi * v)
    p_cos_sq = -torch.expm1(log_q) * cosine.square()
    total = torch.exp(log_q) + p_cos_sq
    lesser = torch.exp(log_q) / total / (2 + 2 * torch.sqrt(p_cos_sq / total))  # (1 - s) / 2 as (1 - s^2) / (2 + 2 s): keeps its digits
    lam = torch.where(cosine < 0, lesser, 1 - lesser)
    return torch.where(w < lam, lam, 1 - lam) if size_biased else lam


def mix_pairs(
    x: Shaped[Tensor, " batch *features"],
    y: Tensor,
    alpha: float | int = 1.0,
    *,
    num_classes: int | None = None,
    lam: float | int | Float[Tensor, " batch"] | None = None,
    permutation: Int64[Tensor, " batch"] | None = None,
    per_example: bool = False,
    generator: torch.Generator | None = None,
) -> Mixed:
    r"""Mix each example of a batch with a partner from the same batch: :math:`\lambda x_i+(1-\lambda)x_{\pi(i)}`, targets likewise.

    Inputs and targets keep their type; half precision is mixed in float32.

    :param x: floating-point inputs.
    :param y: class ids (then ``num_classes`` is needed) or target rows, one per example.
    :param alpha: parameter of the weight's law, see :func:`mixing_weights`; ignored where ``lam`` is given.
    :param lam: the weight or weights to use, in [0, 1].
    :param permutation: the partners; a uniformly random permutation if None. Fixed points stay unmixed.
    :param per_example: draw one weight for each example instead of one for the batch.
    :param generator: source of weights and partners, on the CPU.
    :raises ValueError: for a negative ``alpha``, a ``lam`` outside [0, 1], class ids without ``num_classes`` or outside it, or lengths
        that differ.
    :raises TypeError: if ``x`` is not of floating-point type: integer pixels cannot hold an average.

    Source: Zhang, Cisse, Dauphin and Lopez-Paz (2018).
    """
    if len(x) != len(y):
        raise ValueError(f"x and y must have the same number of examples, got {len(x)} and {len(y)}")
    if lam is None:
        lam = mixing_weights(alpha, len(x) if per_example else 1, generator=generator).expand(len(x))
    weights = _weights(lam, x)
    partner = _partners(permutation, len(x), generator).to(x.device)
    targets = _targets(y, num_classes, x)
    return Mixed(_mix(x, partner, weights), _mix(targets, partner, weights), weights)


def sample_pairing(
    x: Shaped[Tensor, " batch *features"],
    y: Tensor,
    *,
    permutation: Int64[Tensor, " batch"] | None = None,
    generator: torch.Generator | None = None,
) -> Mixed:
    """Average each input with a partner's and keep the own target: SamplePairing, with the partner's target ignored.

    Parameters and errors as in :func:`mix_pairs`; ``mix_pairs(..., lam=0.5)`` averages the targets as well and has the same expected
    gradient for losses that are affine in the target. Source: Inoue (2018).
    """
    return _keep_targets(x, y, torch.full((len(x),), 0.5, dtype=torch.float64), permutation, generator)


def hard_label_mixup(
    x: Shaped[Tensor, " batch *features"],
    y: Tensor,
    alpha: float | int = 1.0,
    *,
    permutation: Int64[Tensor, " batch"] | None = None,
    generator: torch.Generator | None = None,
) -> Mixed:
    """Mix inputs with weights from Beta(alpha + 1, alpha), one for each example, and keep the own target.

    Has the expected loss of mixup for losses that are affine in the target, without a matrix of targets. Parameters and errors as in
    :func:`mix_pairs`.
    """
    return _keep_targets(x, y, mixing_weights(alpha, len(x), size_biased=True, generator=generator), permutation, generator)


def _keep_targets(x: Tensor, y: Tensor, lam: Tensor, permutation: Tensor | None, generator: torch.Generator | None) -> Mixed:
    if len(x) != len(y):
        raise ValueError(f"x and y must have the same number of examples, got {len(x)} and {len(y)}")
    weights = _weights(lam, x)
    return Mixed(_mix(x, _partners(permutation, len(x), generator).to(x.device), weights), y, weights)


def _mix(values: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """One pass over memory: lerp reads both operands once and forms no product of its own."""
    wide = values if values.dtype in (torch.float32, torch.float64) else values.float()
    return torch.lerp(wide[partner], wide, _columns(lam.to(wide.dtype), wide)).to(values.dtype)


def _columns(lam: Tensor, like: Tensor) -> Tensor:
    return lam.reshape(-1, *[1] * (like.ndim - 1))


def _weights(lam: float | int | Tensor, x: Tensor) -> Tensor:
    if not x.is_floating_point():
        raise TypeError(f"x must be of floating-point type, got {x.dtype}: divide integer pixels first")
    lam = torch.as_tensor(lam, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32, device=x.device)
    _check_weights(lam)
    return lam.expand(len(x))


def _check_weights(lam: Tensor) -> None:
    outside = lam[~((lam >= 0) & (lam <= 1))]
    if len(outside):
        raise ValueError(f"lam must lie in [0, 1], got {outside[0].item():g}")


def _partners(permutation: Tensor | None, count: int, generator: torch.Generator | None) -> Tensor:
    if permutation is None:
        return torch.randperm(count, generator=generator)
    if not torch.equal(permutation.sort().values, torch.arange(count, device=permutation.device)):
        raise ValueError(f"permutation must contain each of 0..{count - 1} once, got {permutation.tolist()}")
    return permutation


def _targets(y: Tensor, num_classes: int | None, x: Tensor) -> Tensor:
    if y.is_floating_point():
        return y
    if y.ndim != 1 or num_classes is None or (len(y) and not bool((y.min() >= 0) & (y.max() < num_classes))):
        raise ValueError(f"y must be target rows or class ids in 0..num_classes - 1, got {y.dtype} ids with num_classes {num_classes}")
    kind = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    return nn.functional.one_hot(y.long(), num_classes).to(kind)


def _check_alpha(alpha: float | int) -> None:
    if not alpha >= 0:
        raise ValueError(f"alpha must be at least 0, got {alpha}")
