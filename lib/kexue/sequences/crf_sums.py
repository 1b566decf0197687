r"""Linear-chain conditional random fields: one softmax over all :math:`K^n` tag sequences, normalized exactly.

For emissions :math:`f_k\in\mathbb{R}^K`, transitions :math:`g_{ij}` (from i to j), start scores s and end scores e, the score of a path is
:math:`S(y)=s_{y_1}+\sum_kf_k(y_k)+\sum_{k\ge2}g_{y_{k-1}y_k}+e_{y_n}` and :math:`P(y)=e^{S(y)}/Z`. The normalizer is a product of
matrices in the semiring (LSE, +); its derivatives are the marginals. A score of :math:`-\infty` forbids a tag or a transition.

Emissions have shape (batch, time, tags) and any ``transitions`` either (tags, tags) or, one matrix per step,
(batch, time - 1, tags, tags). ``mask`` is true on the tokens and false on padding, which is on the right and whose emissions and tags
do not matter. Half precision is computed and returned in float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kexue.numerics.semiring import safe_logsumexp
from kexue.sequences._crf_inputs import build_lattice, check_lengths, check_tags, prepare
from kexue.sequences._lattice import Lattice, Sums, scaled
from kexue.sequences._lattice_tree import prefers_scan, scan

__all__ = ["Marginals", "entropy", "log_partition", "marginals", "path_score", "sequence_nll"]

_SCAN = (128, 6000)  # from so many steps, and up to so much batch * tags^3 per step, the tree is faster: measured on two CPU cores


class Marginals(NamedTuple):
    """Probabilities of single tags and of neighbouring pairs; zeros on padding."""

    node: Float[Tensor, "batch time tags"]
    edge: Float[Tensor, "batch steps tags tags"]


def log_partition(
    emissions: Float[Tensor, "batch time tags"],
    transitions: Float[Tensor, "*steps tags tags"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
    start: Float[Tensor, " tags"] | None = None,
    end: Float[Tensor, " tags"] | None = None,
) -> Float[Tensor, " batch"]:
    r"""Log of the sum over all tag paths of the exponentiated path score.

    Computes :math:`\log Z=\log\sum_ye^{S(y)}` together with its gradient, which are the marginals: time :math:`O(TK^2)`, or depth
    :math:`O(\log T)` by a tree where that is faster. No graph over time is kept, so memory is a few copies of the emissions. The
    relative error is a few ulps for scores of any size; where every path is forbidden the result is :math:`-\infty` with gradient 0.
    Twice differentiable (the second time by a slower recursion).

    :raises ValueError: if shapes do not fit, a batch or sequence is empty, padding is not on the right, or a score is nan or +inf.

    Source: Lafferty, McCallum and Pereira (2001), section 3.

    >>> log_partition(torch.zeros(1, 3, 4), torch.zeros(4, 4)).exp()
    tensor([64.0000])
    """
    inputs = prepare(emissions, transitions, start, end)
    lengths = check_lengths(inputs[0], inputs[1], mask)
    return _LogPartition.apply(*inputs, lengths, sums)


def path_score(
    emissions: Float[Tensor, "batch time tags"],
    transitions: Float[Tensor, "*steps tags tags"],
    tags: Int[Tensor, "batch time"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
    start: Float[Tensor, " tags"] | None = None,
    end: Float[Tensor, " tags"] | None = None,
) -> Float[Tensor, " batch"]:
    r"""Score :math:`S(y)` of one tag path per sequence, :math:`-\infty` if the path is forbidden.

    :raises ValueError: if shapes do not fit, a batch or sequence is empty, padding is not on the right, or a tag outside the padding is
        not in 0..K-1. Scores are not searched for nan: it is passed on.
    """
    f, g, s, e = prepare(emissions, transitions, start, end)
    lengths = check_lengths(f, g, mask)
    size = f.shape[2]
    mask = torch.arange(f.shape[1], device=f.device) < lengths[:, None]
    y = check_tags(tags, mask, size)
    pair = size * y[:, :-1] + y[:, 1:]
    edge = g.reshape(-1).gather(0, pair.reshape(-1)).view_as(pair) if g.dim() == 2 else g.flatten(2).gather(2, pair[..., None])[..., 0]
    node = f.gather(2, y[..., None])[..., 0]
    zero = f.new_zeros(())
    inner = torch.where(mask, node, zero).sum(1) + torch.where(mask[:, 1:], edge, zero).sum(1)
    last = y.gather(1, lengths[:, None] - 1)[:, 0]
    return inner + s.gather(0, y[:, 0]) + e.gather(0, last)


def sequence_nll(
    emissions: Float[Tensor, "batch time tags"],
    transitions: Float[Tensor, "*steps tags tags"],
    tags: Int[Tensor, "batch time"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
    start: Float[Tensor, " tags"] | None = None,
    end: Float[Tensor, " tags"] | None = None,
) -> Float[Tensor, " batch"]:
    r"""Negative log-likelihood :math:`\log Z-S(y)` of the given tags: nonnegative, convex in all scores.

    :raises ValueError: as in :func:`log_partition` and :func:`path_score`, or if a given path is forbidden: its loss would be infinite.
    """
    options = {"mask": mask, "start": start, "end": end}
    score = path_score(emissions, transitions, tags, **options)
    if (impossible := score == -torch.inf).any():
        raise ValueError(f"tags must be a possible path, but that of sequence {int(impossible.nonzero()[0])} has a score of -inf")
    return log_partition(emissions, transitions, **options) - score


def marginals(
    emissions: Float[Tensor, "batch time tags"],
    transitions: Float[Tensor, "*steps tags tags"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
    start: Float[Tensor, " tags"] | None = None,
    end: Float[Tensor, " tags"] | None = None,
) -> Marginals:
    r"""Probabilities :math:`P(y_k=j)` and :math:`P(y_{k-1}=i,y_k=j)`: the gradient of :math:`\log Z` in the scores.

    Differentiable, at the price of a graph over time, if a score requires a gradient. Zeros where every path is forbidden.

    :raises ValueError: as in :func:`log_partition`.
    """
    inputs = prepare(emissions, transitions, start, end)
    lengths = check_lengths(inputs[0], inputs[1], mask)
    f, g, s, e = inputs
    batch, time, size = f.shape
    every = g.expand(batch, time - 1, size, size)
    with torch.no_grad():
        lattice, order = build_lattice(f, every, s, e, lengths)
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        f, every = (x if x.requires_grad else x.detach().requires_grad_() for x in (f, every))
        total = plain_log_partition(f, every, s, e, lengths).sum()
        return Marginals(*torch.autograd.grad(total, (f, every), create_graph=True, materialize_grads=True))
    result = sums(lattice, gradient=True)
    back = order.argsort()
    return Marginals(result.node.transpose(0, 1)[back], result.edge.transpose(0, 1)[back])


def entropy(
    emissions: Float[Tensor, "batch time tags"],
    transitions: Float[Tensor, "*steps tags tags"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
    start: Float[Tensor, " tags"] | None = None,
    end: Float[Tensor, " tags"] | None = None,
) -> Float[Tensor, " batch"]:
    r"""Entropy :math:`-\sum_yP(y)\log P(y)` of each sequence, in nats.

    Sums the conditional entropies of the Markov chain that a CRF is, :math:`H=H(y_1)+\sum_kH(y_k\mid y_{k-1})`, from the marginals; so
    no large numbers are subtracted, and it equals :math:`\log Z-\frac{d}{d\beta}\log Z(\beta S)|_{\beta=1}`. Differentiable.

    :raises ValueError: as in :func:`log_partition`, or if every path of a sequence is forbidden.
    """
    node, edge = marginals(emissions, transitions, mask=mask, start=start, end=end)
    if not (node.detach()[:, 0].sum(1) > 0).all():
        raise ValueError("every sequence must have a possible path, or there is no distribution to have an entropy")
    left = edge.sum(3, keepdim=True)
    return _xlogx(node[:, 0]).sum(1).neg() - (_xlogx(edge).sum((1, 2, 3)) - _xlogx(left).sum((1, 2, 3)))


def sums(lattice: Lattice, *, gradient: bool) -> Sums:
    """Sums over paths, with their gradients, by the form that suits the size."""
    return (scan if prefers_scan(lattice, *_SCAN) else scaled)(lattice, gradient=gradient)


def plain_log_partition(f: Tensor, g: Tensor, s: Tensor, e: Tensor, lengths: Tensor) -> Tensor:
    """The forward recursion as the paper has it, with a graph over time: for derivatives of the gradient."""
    alive = torch.arange(f.shape[1], device=f.device) < lengths[:, None]
    f = torch.where(alive[:, :, None], f, 0)  # padding may be nan, and its gradient would be too
    g = g if g.dim() == 2 else torch.where(alive[:, 1:, None, None], g, 0)
    alpha = s + f[:, 0]
    for t in range(1, f.shape[1]):
        step = g if g.dim() == 2 else g[:, t - 1]
        after = safe_logsumexp(alpha[:, :, None] + step, 1) + f[:, t]
        alpha = torch.where(alive[:, t, None], after, alpha)
    return safe_logsumexp(alpha + e, 1)


def _xlogx(x: Tensor) -> Tensor:
    some = x > 0
    return torch.where(some, x * torch.where(some, x, torch.ones_like(x)).log(), torch.zeros_like(x))


class _LogPartition(torch.autograd.Function):
    """Log-partition whose gradient is computed on the way: the backward pass only multiplies."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, g: Tensor, s: Tensor, e: Tensor, lengths: Tensor, form: Any) -> Tensor:
        lattice, order = build_lattice(f, g, s, e, lengths)
        with torch.autocast(f.device.type, enabled=False):
            result = form(lattice, gradient=any(ctx.needs_input_grad))
        back = order.argsort()
        if any(ctx.needs_input_grad):
            ctx.shared = g.dim() == 2
            edge = result.edge[back] if ctx.shared else result.edge.transpose(0, 1)[back]
            ctx.save_for_backward(f, g, s, e, lengths, result.node.transpose(0, 1)[back], edge)
        return result.log_z[back]

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor | None, ...]:
        f, g, s, e, lengths, node, edge = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the gradient itself must have a graph
            inputs = [x for x, needed in zip((f, g, s, e), ctx.needs_input_grad, strict=False) if needed]
            total = plain_log_partition(f, g, s, e, lengths)
            found = iter(torch.autograd.grad(total, inputs, weight, create_graph=True))
            return (*(next(found) if needed else None for needed in ctx.needs_input_grad[:4]), None, None)
        last = node[torch.arange(len(node), device=f.device), lengths - 1]
        by_edge = torch.tensordot(weight, edge, 1) if ctx.shared else weight[:, None, None, None] * edge
        return weight[:, None, None] * node, by_edge, weight @ node[:, 0], weight @ last, None, None
