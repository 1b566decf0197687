r"""Averages over all dropout masks: exact by enumeration, closed where the loss allows it, and bounded where it does not.

Write :math:`p` for the probability to DROP, :math:`q=1-p` and :math:`\tilde x=x\odot\varepsilon/q` with independent
:math:`\varepsilon_i\sim\mathrm{Bernoulli}(q)`, so that

.. math:: \mathbb E\tilde x=x,\qquad \operatorname{Cov}\tilde x=\tfrac pq\operatorname{diag}(x^2).

For a quadratic loss these two moments are all that matters (:func:`dropout_ridge`); for a smooth one they give the leading term of a
Taylor expansion (:func:`glm_penalty`), which at small rates is NOT the leading term in :math:`p` (:func:`deletion_penalty` is). For few
inputs the sum over all :math:`2^d` masks (:func:`dropout_expectation`) is exact for any function.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.func import grad, vmap

__all__ = [
    "deletion_penalty",
    "dropout_expectation",
    "dropout_ridge",
    "dropout_variance",
    "enumerate_masks",
    "glm_penalty",
    "relu_bias_bound",
]

MAX_ENUMERATED = 20  # 2^20 masks: a second or two of matrix products
CHUNK_MASKS = 1 << 14  # masks that are evaluated at a time


def enumerate_masks(d: int) -> Bool[Tensor, "masks d"]:
    """All :math:`2^d` masks of ``d`` entries as rows; row k holds the binary digits of k. Raises ValueError unless 0 <= d <= 20."""
    if not 0 <= d <= MAX_ENUMERATED:
        raise ValueError(f"d must be from 0 to {MAX_ENUMERATED} (there are 2^d masks), got {d}")
    return (torch.arange(2**d)[:, None] >> torch.arange(d)) % 2 == 1


def dropout_expectation(fn: Callable[[Tensor], Tensor], x: Float[Tensor, " d"], p: float) -> Float[Tensor, "*out"]:
    r"""Exact mean :math:`\sum_\varepsilon q^{|\varepsilon|}p^{d-|\varepsilon|}\,f(x\odot\varepsilon/q)` over all masks of one vector.

    :param fn: maps rows of dropped inputs (m, d) to rows of results (m, \*out), row by row.
    :param x: at most 20 entries. Differentiable in ``x`` and in the parameters of ``fn``.
    :raises ValueError: for more entries or ``p`` outside [0, 1).
    """
    _check_rate(p)
    total: Tensor | None = None
    for masks in enumerate_masks(len(x)).to(x.device).split(CHUNK_MASKS):
        kept = masks.sum(1).to(x.dtype)
        weight = (1 - p) ** kept * p ** (len(x) - kept)
        part = torch.tensordot(weight, fn(torch.where(masks, x / (1 - p), torch.zeros_like(x))), dims=1)
        total = part if total is None else total + part
    return total


def dropout_ridge(x: Float[Tensor, "n d"], y: Float[Tensor, " n *targets"], p: float) -> Float[Tensor, " d *targets"]:
    r"""Minimizer :math:`w=(X^\top X+\frac pq\operatorname{diag}X^\top X)^{-1}X^\top y` of the expected squared error under dropout.

    Ridge regression on columns of unit length, by a singular value decomposition; a zero column gets weight 0, and ``p = 0`` gives the
    least-squares solution that is shortest in those units. Raises ValueError for ``p`` outside [0, 1).
    Source: Wager, Wang and Liang (2013), section 2.
    """
    _check_rate(p)
    length = x.norm(dim=0)
    length = torch.where(length > 0, length, torch.ones_like(length))
    left, s, right = torch.linalg.svd(x / length, full_matrices=False)
    s = torch.where(s > torch.finfo(x.dtype).eps * max(x.shape) * s.amax(), s, torch.zeros_like(s))
    shrunk = torch.where(s > 0, s / (s.square() + p / (1 - p)), torch.zeros_like(s))
    return torch.tensordot(right.mT * shrunk @ left.mT, y, dims=1) / length.reshape(-1, *[1] * (y.ndim - 1))


def glm_penalty(
    x: Float[Tensor, "n d"], w: Float[Tensor, " d"], p: float, log_partition: Callable[[Tensor], Tensor], *, bias: float = 0.0
) -> Float[Tensor, " n"]:
    r"""Quadratic approximation :math:`\frac p{2q}A''(z)\sum_jw_j^2x_j^2` of the price :math:`\mathbb EA(\tilde z)-A(z)` of dropout.

    With :math:`z=w^\top x+b` and loss :math:`A(z)-yz` the price does not depend on the label. Accurate where every :math:`w_jx_j` is small.

    :param log_partition: the convex function :math:`A` of one scalar, twice differentiable by autograd.
    :raises ValueError: for ``p`` outside [0, 1). Source: Wager, Wang and Liang (2013), equation 6.
    """
    _check_rate(p)
    second = vmap(grad(grad(log_partition)))(x @ w + bias)
    return p / (1 - p) / 2 * second * (x * w).square().sum(1)


def deletion_penalty(
    x: Float[Tensor, "n d"], w: Float[Tensor, " d"], p: float, log_partition: Callable[[Tensor], Tensor], *, bias: float = 0.0
) -> Float[Tensor, " n"]:
    r"""First-order price :math:`p\sum_j\bigl[A(z-a_j)-A(z)+a_jA'(z)\bigr]`, :math:`a_j=w_jx_j`, of dropout at a small rate.

    At first order in :math:`p` one feature at a time is deleted, and the price is the Bregman divergence from :math:`z` to what is
    left. Exact up to :math:`O(p^2)`, however large the :math:`a_j` are. Arguments and errors as :func:`glm_penalty`.
    """
    _check_rate(p)
    z, terms = x @ w + bias, x * w
    value, slope = vmap(log_partition)(z), vmap(grad(log_partition))(z)
    return p * (vmap(vmap(log_partition))(z[:, None] - terms) - value[:, None] + terms * slope[:, None]).sum(1)


def dropout_variance(mean: Float[Tensor, "*#shape"], variance: Float[Tensor, "*#shape"], p: float) -> Float[Tensor, "*#shape"]:
    r"""Variance :math:`(\sigma^2+\mu^2)/q-\mu^2=\sigma^2+\frac pq(\sigma^2+\mu^2)` after dropout of a variable with these two moments.

    What a batch norm behind dropout sees in training; at test time it sees :math:`\sigma^2`. Raises ValueError for ``p`` outside [0, 1).
    """
    _check_rate(p)
    return variance + p / (1 - p) * (variance + mean.square())


def relu_bias_bound(z: Float[Tensor, "*#shape"], s: Float[Tensor, "*#shape"]) -> Float[Tensor, "*#shape"]:
    r"""Largest bias :math:`\frac12(\sqrt{z^2+s^2}-|z|)` of :math:`\mathbb E\,\mathrm{ReLU}(z+\eta)` over noise of mean 0 and deviation s.

    Attained by two-point noise at :math:`\pm\sqrt{z^2+s^2}-z`. Computed as :math:`\tfrac12s^2/(\sqrt{z^2+s^2}+|z|)`, without cancellation.
    """
    size = torch.hypot(z, s) + z.abs()
    return torch.where(size > 0, s / torch.where(size > 0, size, torch.ones_like(size)) * s / 2, torch.zeros_like(size))


def _check_rate(p: float) -> None:
    if not 0 <= p < 1:
        raise ValueError(f"p, the probability to drop, must lie in [0, 1), got {p}")
