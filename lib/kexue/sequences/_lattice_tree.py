r"""Sums over paths by a balanced tree over time, for few tags and long sequences: depth :math:`\log_2T` instead of T.

All prefixes and suffixes of the product of the steps' matrices come from one tree, then every step is done at once. Where the scores are
narrow enough the matrices are ordinary ones, else they are multiplied in log space.

*Narrow.* Let R be the largest difference of two scores in a transition matrix and r that of two emissions of a step. A product of steps
:math:`M=GD_1\cdots GD_n`, :math:`D_k=\operatorname{diag}e^{f_k}`, has rows that differ by at most the factor :math:`e^R` (only the
first factor knows the row) and columns that differ by at most :math:`e^{R+r}` (only the last factor knows the column). So with its largest
entry divided out no entry lies below :math:`e^{-(2R+r)}`, no term of a product of two such matrices below :math:`e^{-2(2R+r)}`, and
nothing underflows while that is a normal number.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kexue.numerics.semiring import log_eye, log_matmul, safe_logsumexp, tree_levels, tree_states
from kexue.sequences._lattice import Lattice, Sums, _collect, _level

__all__: list[str] = []


def prefers_scan(lattice: Lattice, least_time: int, most_work: int) -> bool:
    """Whether the tree over time is the faster form."""
    time, batch, tags = lattice.emissions.shape
    return time >= least_time and batch * tags**3 <= most_work


def scan(lattice: Lattice, *, gradient: bool) -> Sums:
    """Sums over paths, with their gradients, by a tree over time."""
    return (scan_products if is_narrow(lattice) else scan_logs)(lattice, gradient=gradient)


def is_narrow(lattice: Lattice) -> bool:
    """Whether there are steps, and no product of their matrices can underflow, as derived above; false if anything is forbidden."""
    f, g = lattice.emissions, lattice.transitions
    if len(f) == 1:
        return False
    spread = 2 * (g.amax((-2, -1)) - g.amin((-2, -1))).max() + (f.amax(2) - f.amin(2)).max()
    return bool(2 * spread < -math.log(torch.finfo(f.dtype).tiny))


def scan_products(lattice: Lattice, *, gradient: bool) -> Sums:
    """By ordinary matrix products, each divided by its largest entry: for narrow scores."""
    f, g, lengths, _, alive = lattice
    shared = g.dim() == 2
    top, edge_top = f.amax(2, keepdim=True), g.amax((-2, -1), keepdim=True)
    weight, edges = (f - top).exp_(), (g - edge_top).exp_()
    step = edges * weight[1:, :, None, :]
    if alive is not None:
        step = torch.where(alive[1:, :, None, None], step, torch.eye(f.shape[2], dtype=f.dtype, device=f.device))
    levels = tree_levels(lambda a, b: _unit(a @ b, (-2, -1)), step)
    alpha = tree_states(levels, weight[0], lambda v, m: _unit((v[..., None, :] @ m)[..., 0, :]))

    # log Z telescopes over the increments, so no large numbers are subtracted; padding adds nothing
    ahead = alpha[:-1] @ edges if shared else (alpha[:-1, :, None, :] @ edges)[..., 0, :]
    rise = ((ahead * weight[1:]).sum(2) / alpha[:-1].sum(2)).log_()
    if alive is not None:
        rise.masked_fill_(~alive[1:], 0)
    steps = edge_top[0, 0] * (lengths - 1) if shared else edge_top[:, :, 0, 0].sum(0)
    log_z = top[:, :, 0].sum(0) + weight[0].sum(1).log() + rise.sum(0) + steps
    if not gradient:
        return Sums(log_z, None, None)

    beta = tree_states(levels, torch.ones_like(f[0]), lambda v, m: _unit((m @ v[..., None])[..., 0]), reverse=True)
    node = alpha * beta
    node /= node.sum(2, keepdim=True)
    arrival = weight[1:] * beta[1:]
    arrival /= (ahead * arrival).sum(2, keepdim=True)
    if alive is not None:
        node.masked_fill_(~alive[:, :, None], 0)
        arrival.masked_fill_(~alive[1:, :, None], 0)
    if shared:
        return Sums(log_z, node, torch.bmm(alpha[:-1].permute(1, 2, 0), arrival.transpose(0, 1)) * edges)
    return Sums(log_z, node, alpha[:-1, :, :, None] * edges * arrival[:, :, None, :])


def scan_logs(lattice: Lattice, *, gradient: bool) -> Sums:
    """The same in log space, for every range of scores."""
    f = lattice.emissions
    if len(f) == 1:
        return _collect(lattice, _level(f), torch.zeros_like(f) if gradient else None)
    step = lattice.transitions + f[1:, :, None, :]
    if lattice.alive is not None:
        step = torch.where(lattice.alive[1:, :, None, None], step, log_eye(f.shape[2], like=f))
    levels = tree_levels(lambda a, b: _level(log_matmul(a, b), (-2, -1)), step)
    alpha = tree_states(levels, _level(f[0]), lambda v, m: _level(safe_logsumexp(v[..., :, None] + m, -2)))
    if not gradient:
        return _collect(lattice, alpha, None)
    end = torch.zeros_like(f[0])
    beta = tree_states(levels, end, lambda v, m: _level(safe_logsumexp(m + v[..., None, :], -1)), reverse=True)
    return _collect(lattice, alpha, beta)


def _unit(x: Tensor, dim: int | tuple[int, ...] = -1) -> Tensor:
    """Positive numbers divided by the largest of them."""
    return x.div_(x.amax(dim, keepdim=True))
