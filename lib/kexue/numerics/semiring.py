r"""Sums over paths as products of matrices: the semirings (log-sum-exp, +) and (max, +), and their products in logarithmic depth.

A path weight is a sum of edge scores, and the sum over all paths of :math:`n` steps is a product of :math:`n` matrices in which
:math:`(+,\times)` is replaced by (LSE, +). The replacement keeps associativity, so a balanced tree multiplies in depth
:math:`O(\log n)`: :func:`tree_levels` goes up, :func:`tree_states` comes down with the product of everything before (or after) each factor.
The zero of both semirings is :math:`-\infty`, the one is 0, and the identity matrix has 0 on its diagonal and :math:`-\infty` elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["log_eye", "log_matmul", "max_matmul", "safe_logsumexp", "tree_levels", "tree_states"]

_AT_ONCE = 2**17  # sums of two scores held at once: what fits into a cache


def log_eye(size: int, *, like: Float[Tensor, " *shape"]) -> Float[Tensor, "size size"]:
    r"""Identity of both semirings: 0 on the diagonal, :math:`-\infty` elsewhere, in the dtype and on the device of ``like``."""
    return torch.full((size, size), -torch.inf, dtype=like.dtype, device=like.device).fill_diagonal_(0)


def safe_logsumexp(x: Float[Tensor, " *shape"], dim: int | tuple[int, ...], keepdim: bool = False) -> Float[Tensor, " *reduced"]:
    r"""Log of the sum of exponentials, :math:`-\infty` with gradient 0 where every term is :math:`-\infty`."""
    top = x.detach().amax(dim, keepdim=True)
    top = torch.where(top == -torch.inf, torch.zeros_like(top), top)
    total = (x - top).exp().sum(dim, keepdim=True)
    empty = total == 0
    result = torch.where(empty, torch.full_like(total, -torch.inf), torch.where(empty, torch.ones_like(total), total).log() + top)
    return result if keepdim else result.squeeze(dim)


def log_matmul(a: Float[Tensor, "*batch rows inner"], b: Float[Tensor, "*batch inner cols"]) -> Float[Tensor, "*batch rows cols"]:
    r"""Matrix product in the semiring (LSE, +): :math:`C_{ij}=\log\sum_ke^{A_{ik}+B_{kj}}`.

    Rows of A and columns of B are divided by their largest term, multiplied as ordinary matrices and put back: the exponentials of
    :math:`rk+kc` numbers, not of :math:`rkc`. An entry whose sum is so small that terms may have been lost is computed again term by
    term, with the rest of its matrix. So every entry is as exact as the sum term by term, whatever the range of A and B.
    :math:`-\infty` is allowed, its gradient is 0. Differentiable, also twice.

    >>> log_matmul(torch.zeros(2, 3), torch.zeros(3, 2)).exp()
    tensor([[3.0000, 3.0000],
            [3.0000, 3.0000]])
    """
    left, right = (x.detach().amax(dim, keepdim=True) for x, dim in ((a, -1), (b, -2)))
    left, right = (torch.where(x == -torch.inf, torch.zeros_like(x), x) for x in (left, right))
    total = (a - left).exp() @ (b - right).exp()
    enough = total >= a.shape[-1] * torch.finfo(total.dtype).tiny / torch.finfo(total.dtype).eps
    result = torch.where(enough, total, torch.ones_like(total)).log() + left + right
    if enough.all():
        return result
    lost = ~enough.flatten(-2).all(-1)  # matrices with an entry that is zero or too small to be sure
    exact = safe_logsumexp(a[lost][..., :, :, None] + b[lost][..., None, :, :], -2)
    return torch.index_put(result, (lost,), exact) if lost.dim() else exact[0]


def max_matmul(a: Float[Tensor, "*batch rows inner"], b: Float[Tensor, "*batch inner cols"]) -> Float[Tensor, "*batch rows cols"]:
    r"""Matrix product in the semiring (max, +): :math:`C_{ij}=\max_k(A_{ik}+B_{kj})`."""
    shape = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    # the stack goes last, where it is long: many times faster than a reduction between two short axes
    last = (m.expand(*shape, *m.shape[-2:]).movedim((-2, -1), (0, 1)) for m in (a, b))
    x, y = (m.reshape(*m.shape[:2], -1).contiguous() for m in last)
    rows = max(1, _AT_ONCE // max(1, y.numel()))
    best = torch.cat([(part[:, :, None] + y).amax(1) for part in x.split(rows)])
    return best.reshape(*best.shape[:2], *shape).movedim((0, 1), (-2, -1))


def tree_levels(op: Callable[[Tensor, Tensor], Tensor], factors: Tensor) -> list[Tensor]:
    """Products of neighbours, of neighbours of neighbours, and so on up to the product of all ``factors`` along the first axis.

    ``op(x, y)`` multiplies two stacks factor by factor and is associative, not necessarily commutative. Level 0 is ``factors``, the last
    level has one entry; an odd one out is carried up as it is. About n products in ceil(log2 n) calls. Raises ValueError without a factor.
    """
    if factors.shape[0] == 0:
        raise ValueError("factors must be at least one, got none")
    levels = [factors]
    while (n := levels[-1].shape[0]) > 1:
        below = levels[-1]
        pairs = op(below[0 : n - 1 : 2], below[1::2])
        levels.append(pairs if n % 2 == 0 else torch.cat([pairs, below[-1:]]))
    return levels


def tree_states(levels: list[Tensor], state: Tensor, apply: Callable[[Tensor, Tensor], Tensor], *, reverse: bool = False) -> Tensor:
    r"""The state before each factor and after the last one, (n + 1, \*state), for the n factors of :func:`tree_levels`.

    ``apply(states, factors)`` multiplies a stack of states by a stack of factors; ``state`` is the one before the first factor. With
    ``reverse`` the states come from the other end: entry t is the product of the factors t, t + 1, ... applied to ``state``, entry n
    is ``state``. Depth ceil(log2 n), about n applications.
    """
    states = state[None]
    for level in reversed(levels[:-1]):
        n, pairs = level.shape[0], level.shape[0] // 2
        sibling, kept = (1, 0) if reverse else (0, 1)  # the factor that a state passes, and the place where it is not passed
        below = states.new_empty(n, *state.shape)
        below[1 - kept :: 2] = states[: len(below[1 - kept :: 2])]
        moved = apply(states[:pairs], level[sibling : 2 * pairs : 2])
        below[kept : 2 * pairs : 2] = moved
        if reverse and n % 2:
            below[-1] = states[-1]
        states = below
    if reverse:
        return torch.cat([apply(states[:1], levels[0][:1]), states])
    return torch.cat([states, apply(states[-1:], levels[0][-1:])])
