r"""Independent yes-or-no draws, given how many of them say yes.

Draw i says yes with probability :math:`q_i`. The number of yeses has the generating polynomial :math:`\prod_i(1-q_i+q_iz)`, and what all
other draws must contribute for a total of k decides the probability that draw i is among them. A binary tree multiplies the polynomials,
cut at degree k, on the way up; on the way down every node learns the probabilities of what the rest of the tree must contribute.
Every operation adds or multiplies numbers in [0, 1]. The work is :math:`\sum_l\frac n{2^l}\min(2^l,k)^2=O(nk)` in :math:`2\log_2n` steps.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["given_count"]


def given_count(log_odds: Float[Tensor, "*batch draws"], count: int) -> tuple[Float[Tensor, "*batch draws"], Float[Tensor, "*batch"]]:
    r"""Probability of each draw given ``count`` yeses, and the probability of that count, from the log-odds of independent draws.

    A constant added to the log-odds changes the second value and not the first. The probability of the count must not underflow, which
    it cannot where ``count`` is the mean: then it is the most probable value. For 0 < count < draws.
    """
    yes, no = torch.sigmoid(log_odds), torch.sigmoid(-log_odds)
    n = yes.shape[-1]
    if swapped := 2 * count > n:  # count the rarer answer
        yes, no, count = no, yes, n - count
    levels = [torch.stack([no, yes], -1)]
    while levels[-1].shape[-2] > 1:
        if levels[-1].shape[-2] % 2:
            levels[-1] = pad(levels[-1], (0, 0, 0, 1))
            levels[-1][..., -1, 0] = 1  # an empty node: the polynomial 1
        left, right = levels[-1].unflatten(-2, (-1, 2)).unbind(-2)
        levels.append(_product(left, right, count))
    root = levels.pop()[..., 0, :]
    probability = root[..., count]
    outside = torch.zeros_like(root)
    outside[..., count] = 1
    outside = outside[..., None, :]
    for level in reversed(levels):
        sibling = level.unflatten(-2, (-1, 2)).flip(-2)
        outside = outside[..., : sibling.shape[-3], :]  # without the empty node
        outside = _correlation(outside[..., None, :], sibling).flatten(-3, -2)
    answer = 0 if swapped else 1
    return levels[0][..., :n, answer] * outside[..., :n, answer] / probability[..., None], probability


def _product(a: Tensor, b: Tensor, degree: int) -> Tensor:
    """Coefficients of the products of polynomials of equal degree d along the last axis, up to ``degree``."""
    d = a.shape[-1] - 1
    windows = pad(b, (d, min(2 * d, degree) - d)).unfold(-1, d + 1, 1)
    return (windows * a.flip(-1)[..., None, :]).sum(-1)


def _correlation(outside: Tensor, sibling: Tensor) -> Tensor:
    """What is left for a node when its sibling has taken j: the sum over j of sibling[j] outside[i + j]."""
    d = sibling.shape[-1] - 1
    windows = pad(outside, (0, 2 * d + 1 - outside.shape[-1])).unfold(-1, d + 1, 1)
    return (windows * sibling[..., None, :]).sum(-1)
