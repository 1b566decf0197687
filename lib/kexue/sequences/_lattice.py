r"""Two of the recursions behind a linear-chain CRF, each with its gradient, without a graph of ``time`` nodes.

All work on one layout, :class:`Lattice`: time first, sequences sorted by falling length, so that at step t the first ``active[t]`` rows are
those still running and padding costs nothing. Start and end scores are part of the first and last emissions. Each recursion returns
:math:`\log Z`, the marginals of the tags, and those of the edges, summed over time when all steps share their transitions: these *are*
the gradients, so the backward pass is a multiplication.

*Scaled* multiplies ordinary matrices and divides by the sum at every step. What such a recursion rounds to zero can matter later: a
state :math:`e^{-100}` below the best is all that is left when the best one cannot go on. The backward recursion tells: it is kept an upper
bound, so :math:`\hat\beta_t/c_t` limits what a lost unit could have become. Sequences for which that is not negligible are done again
in log space. *Log* is exact and slower. The third form, a tree over time, is in :mod:`kexue.sequences._lattice_tree`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kexue.numerics.semiring import safe_logsumexp

__all__: list[str] = []

_CHUNK = 2**20  # edge scores handled at once


class Lattice(NamedTuple):
    """Scores of a batch: emissions (time, batch, tags), transitions (tags, tags) or (time - 1, batch, tags, tags)."""

    emissions: Tensor
    transitions: Tensor
    lengths: Tensor  # (batch,), falling
    active: list[int]  # active[t] sequences are longer than t
    alive: Tensor | None  # (time, batch), false after the end of a sequence; None if all have the same length

    def edge_scores(self, t: int) -> Tensor:
        """Scores of the edges into step t, (1 or active, tags, tags)."""
        g = self.transitions
        return g[None] if g.dim() == 2 else g[t - 1, : self.active[t]]

    def rows(self, chosen: Tensor) -> Lattice:
        """The same for some of the sequences, which keep their order."""
        g = self.transitions if self.transitions.dim() == 2 else self.transitions[:, chosen]
        lengths = self.lengths[chosen]
        alive = None if self.alive is None else self.alive[:, chosen]
        return Lattice(self.emissions[:, chosen], g, lengths, count_active(lengths, len(self.active)), alive)


class Sums(NamedTuple):
    """What a recursion returns: ``edge`` is (batch, tags, tags) for shared transitions, else (time - 1, batch, tags, tags)."""

    log_z: Tensor
    node: Tensor | None
    edge: Tensor | None


def count_active(lengths: Tensor, time: int) -> list[int]:
    """How many of the sequences are longer than t, for t below ``time``."""
    ended = torch.bincount(lengths, minlength=time + 1).cumsum(0)
    return (len(lengths) - ended)[:time].tolist()


def scaled(lattice: Lattice, *, gradient: bool) -> Sums:
    """Forward and backward recursion by ordinary matrix products; in log space where that may have lost something."""
    f, g, lengths, active, alive = lattice
    time, batch, tags = f.shape
    kind = torch.finfo(f.dtype)
    floor = math.ceil(math.log(kind.tiny)) + 7.0
    weight, top, low = _exp(f, 2, floor)
    edges, edge_top, edge_low = _exp(g, (-2, -1), floor)
    shared = g.dim() == 2
    if alive is not None:
        weight.masked_fill_(~alive[:, :, None], 0)
    alpha, scale = f.new_zeros(f.shape), f.new_ones(time, batch)
    alphas, weights, scales = alpha.unbind(0), weight.unbind(0), scale.unbind(0)
    torch.sum(weights[0], 1, out=scales[0])
    torch.div(weights[0], scales[0][:, None], out=alphas[0])
    for t in range(1, time):
        n = active[t]
        x, c = _first(alphas[t], n), _first(scales[t], n)
        if shared:
            torch.mm(_first(alphas[t - 1], n), edges, out=x)
        else:
            x.copy_((_first(alphas[t - 1], n)[:, None] @ edges[t - 1, :n])[:, 0])
        x.mul_(_first(weights[t], n))
        torch.sum(x, 1, out=c)
        x.div_(c[:, None])
    steps = edge_top.squeeze() * (lengths - 1) if shared else edge_top[:, :, 0, 0].sum(0)
    log_z = top[:, :, 0].sum(0) + scale.log().sum(0) + steps
    certain = low + edge_low > floor  # the spread of alpha is at most the spread of one emission and one transition
    if certain and not gradient:
        return Sums(log_z, None, None)

    beta, back = torch.ones_like(f), edges.mT
    betas = beta.unbind(0)
    weight.div_(scale[:, :, None])
    for t in range(time - 1, 0, -1):
        n = active[t]
        u, b = _first(weights[t], n), _first(betas[t - 1], n)
        u.mul_(_first(betas[t], n))
        if shared:
            torch.mm(u, back, out=b)
        else:
            b.copy_((edges[t - 1, :n] @ u[:, :, None])[:, :, 0])
        b.clamp_(min=kind.tiny)  # nothing rounds to zero on this side: an upper bound
    node = edge = None
    lost = torch.zeros(batch, dtype=torch.bool, device=f.device)
    if not certain:
        limit = kind.eps / (2 * tags**2 * time * (kind.tiny + math.exp(floor)))
        lost = ~(beta.amax(2) / scale <= limit).all(0)  # "not <=", because a scale of zero leaves nan
    if gradient:
        if shared:
            edge = torch.bmm(alpha[:-1].permute(1, 2, 0), weight[1:].transpose(0, 1)) * edges
        else:
            edge = alpha[:-1, :, :, None] * edges * weight[1:, :, None, :]
        node = alpha.mul_(beta)
    if lost.any():
        chosen = lost.nonzero()[:, 0]
        again = log_space(lattice.rows(chosen), gradient=gradient)
        log_z[chosen] = again.log_z
        if gradient:
            node[:, chosen] = again.node
            edge.index_copy_(0 if shared else 1, chosen, again.edge)
    return Sums(log_z, node, edge)


def log_space(lattice: Lattice, *, gradient: bool) -> Sums:
    """Forward and backward recursion with log-sum-exp at every step: exact for every range of scores, :math:`-\\infty` included."""
    f, active = lattice.emissions, lattice.active
    alpha = log_alphas(lattice)
    beta = torch.zeros_like(f)
    for t in range(len(active) - 1, 0, -1) if gradient else ():
        n = active[t]
        beta[t - 1, :n] = _level(torch.logsumexp(lattice.edge_scores(t) + (f[t, :n] + beta[t, :n])[:, None, :], 2))
    return _collect(lattice, alpha, beta if gradient else None)


def log_alphas(lattice: Lattice) -> Tensor:
    """Forward messages up to a constant for each step and sequence, (time, batch, tags)."""
    f, active = lattice.emissions, lattice.active
    alpha = torch.zeros_like(f)
    alpha[0] = _level(f[0])
    for t in range(1, len(active)):
        n = active[t]
        alpha[t, :n] = _level(torch.logsumexp(alpha[t - 1, :n, :, None] + lattice.edge_scores(t), 1) + f[t, :n])
    return alpha


def _collect(lattice: Lattice, alpha: Tensor, beta: Tensor | None) -> Sums:
    """Log-partition and marginals from messages that are known up to a constant for each step and sequence.

    The increments :math:`\\log\\sum_{ij}e^{\\alpha_{t-1}(i)+g_{ij}+f_t(j)}-\\log\\sum_ie^{\\alpha_{t-1}(i)}` telescope, so no large
    numbers are subtracted anywhere.
    """
    f, alive = lattice.emissions, lattice.alive
    shared = lattice.transitions.dim() == 2
    log_z = safe_logsumexp(f[0], 1)
    parts = []
    for t in range(1, len(f), chunk := max(1, _CHUNK // (f[0].numel() * f.shape[2]))):
        stop = min(t + chunk, len(f))
        joint = alpha[t - 1 : stop - 1, :, :, None] + (lattice.transitions if shared else lattice.transitions[t - 1 : stop - 1])
        joint = joint + f[t:stop, :, None, :]
        rise = safe_logsumexp(joint, (2, 3)) - _finite(safe_logsumexp(alpha[t - 1 : stop - 1], 2))
        log_z = log_z + (rise if alive is None else rise.masked_fill(~alive[t:stop], 0)).sum(0)
        if beta is not None:
            edge = _normalized(joint + beta[t:stop, :, None, :], (2, 3))
            if alive is not None:
                edge = edge.masked_fill(~alive[t:stop, :, None, None], 0)
            parts.append(edge.sum(0) if shared else edge)
    if beta is None:
        return Sums(log_z, None, None)
    node = _normalized(alpha + beta, 2)
    if alive is not None:
        node = node.masked_fill(~alive[:, :, None], 0)
    empty = f.new_zeros(*((f.shape[1],) if shared else (0, f.shape[1])), f.shape[2], f.shape[2])
    edge = sum(parts, empty) if shared else torch.cat([empty, *parts])
    return Sums(log_z, node, edge)


def _first(x: Tensor, n: int) -> Tensor:
    return x if x.shape[0] == n else x[:n]


def _exp(x: Tensor, dim: int | tuple[int, ...], floor: float) -> tuple[Tensor, Tensor, float]:
    """Exponentials relative to the largest, not below ``exp(floor)`` unless exactly zero; the largest; and the lowest difference."""
    top = _finite(x.amax(dim, keepdim=True))
    shifted = x - top
    low = shifted.min().item() if x.numel() else 0.0
    if low > floor:
        return shifted.exp_(), top, low
    forbidden = shifted == -torch.inf
    return shifted.clamp_(min=floor).exp_().masked_fill_(forbidden, 0), top, low


def _finite(x: Tensor) -> Tensor:
    return torch.where(x == -torch.inf, torch.zeros_like(x), x)


def _level(x: Tensor, dim: int | tuple[int, ...] = -1) -> Tensor:
    """Messages with their largest entry moved to 0."""
    return x - x.amax(dim, keepdim=True).clamp_(min=torch.finfo(x.dtype).min)  # -inf stays -inf


def _normalized(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Probabilities proportional to ``exp(x)``; zeros where every entry is :math:`-\\infty`."""
    return (x - _finite(safe_logsumexp(x, dim, keepdim=True))).exp()
