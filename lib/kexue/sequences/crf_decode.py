r"""Decoding of linear-chain CRFs: the best paths, the best tag of every position, and samples.

Viterbi's recursion is the forward recursion in the semiring (max, +); the n best paths need n ranks per tag. The best path minimizes the
risk of any mistake, :math:`P(\hat y\ne y)`; the tags of largest marginal probability minimize the expected number of wrong tags, and
may form an impossible path. A sample walks back through the forward messages:
:math:`P(y_k=i\mid y_{k+1})\propto e^{\alpha_k(i)+g_{iy_{k+1}}}`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kexue.numerics.semiring import log_eye, max_matmul, tree_levels
from kexue.sequences._crf_inputs import build_lattice, check_lengths, prepare
from kexue.sequences._lattice import Lattice, _level, log_alphas
from kexue.sequences._lattice_tree import prefers_scan
from kexue.sequences.crf_sums import marginals, path_score

__all__ = ["Decoded", "posterior_decode", "sample", "viterbi"]

_MAX_SCAN = (64, 16_000)  # as in the sums: least number of steps and most work per step for the tree
_LEVEL_EVERY = 16  # steps between two subtractions of the maximum, which keep float32 from rounding away differences


class Decoded(NamedTuple):
    """Paths of each sequence, best first, and their scores; tags are -1 on padding and where there is no path (score -inf)."""

    scores: Float[Tensor, "batch n"]
    tags: Int64[Tensor, "batch n time"]


@torch.no_grad()
def viterbi(
    emissions: Float[Tensor, "batch time tags"],
    transitions: Float[Tensor, "*steps tags tags"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
    start: Float[Tensor, " tags"] | None = None,
    end: Float[Tensor, " tags"] | None = None,
    n_best: int = 1,
) -> Decoded:
    r"""The ``n_best`` paths of largest score, in falling order.

    Time :math:`O(TK^2)`, times n log n for n paths; no loop over the batch. Of equal paths any may come first. If a sequence has fewer
    than n possible paths, the rest have score :math:`-\infty` and tags -1. No gradient: train through
    :func:`~kexue.sequences.crf_sums.path_score` of the result.

    :raises ValueError: as in :func:`~kexue.sequences.crf_sums.log_partition`, or if n_best is below 1.
    """
    if n_best < 1:
        raise ValueError(f"n_best must be at least 1, got {n_best}")
    inputs = prepare(emissions, transitions, start, end)
    lengths = check_lengths(inputs[0], inputs[1], mask)
    lattice, order = build_lattice(*inputs, lengths)
    if n_best > 1:
        paths = _best_paths(lattice, n_best)
    elif prefers_scan(lattice, *_MAX_SCAN):
        paths = _best_path_scan(lattice)[None]
    else:
        paths = _best_path(lattice)[None]
    tags = paths.permute(2, 0, 1)[order.argsort()]  # (batch, n, time)
    steps = torch.arange(tags.shape[2], device=tags.device) < lengths[:, None]
    tags = torch.where(steps[:, None, :], tags, -1)
    some = (tags[:, :, 0] >= 0).T
    given = {"mask": steps, "start": inputs[2], "end": inputs[3]}
    scores = torch.stack([path_score(*inputs[:2], path.clamp_min(0), **given) for path in tags.unbind(1)])
    scores = torch.where(some, scores, -torch.inf).T
    return Decoded(scores, torch.where((scores > -torch.inf)[:, :, None], tags, -1))


@torch.no_grad()
def posterior_decode(
    emissions: Float[Tensor, "batch time tags"],
    transitions: Float[Tensor, "*steps tags tags"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
    start: Float[Tensor, " tags"] | None = None,
    end: Float[Tensor, " tags"] | None = None,
) -> Int64[Tensor, "batch time"]:
    r"""The most probable tag of every position by itself, :math:`\arg\max_jP(y_k=j)`: minimizes the expected number of wrong tags.

    Unlike a Viterbi path the result may use a forbidden transition. Tags are -1 on padding and where every path is forbidden.

    :raises ValueError: as in :func:`~kexue.sequences.crf_sums.log_partition`.
    """
    probability, best = marginals(emissions, transitions, mask=mask, start=start, end=end).node.max(2)
    return torch.where(probability > 0, best, -1)


@torch.no_grad()
def sample(
    emissions: Float[Tensor, "batch time tags"],
    transitions: Float[Tensor, "*steps tags tags"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
    start: Float[Tensor, " tags"] | None = None,
    end: Float[Tensor, " tags"] | None = None,
    size: int = 1,
    generator: torch.Generator | None = None,
) -> Int64[Tensor, "batch size time"]:
    r"""Independent paths from :math:`P(y)`, ``size`` for each sequence, by one forward pass and one walk back; -1 on padding.

    :raises ValueError: as in :func:`~kexue.sequences.crf_sums.log_partition`, if size is below 1, or every path of a sequence is forbidden.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    inputs = prepare(emissions, transitions, start, end)
    lengths = check_lengths(inputs[0], inputs[1], mask)
    lattice, order = build_lattice(*inputs, lengths)
    alpha, g = log_alphas(lattice), lattice.transitions
    time, batch, _ = alpha.shape
    last = alpha[lattice.lengths - 1, torch.arange(batch, device=alpha.device)]
    if (last == -torch.inf).all(1).any():
        raise ValueError("every sequence must have a possible path, or there is nothing to sample from")
    paths = torch.full((time, batch, size), -1, device=alpha.device)
    for t in range(time - 1, -1, -1):
        n = lattice.active[t]
        going = lattice.active[t + 1] if t + 1 < time else 0  # those that continue after t; the others end here
        log_p = alpha[t, :n, None, :].expand(n, size, -1).clone()
        if going:
            after = paths[t + 1, :going]
            log_p[:going] += g.mT[after] if g.dim() == 2 else g[t, :going].mT.gather(1, after[..., None].expand(-1, -1, g.shape[-1]))
        weight = log_p.softmax(2).flatten(0, 1)
        paths[t, :n] = torch.multinomial(weight, 1, generator=generator).view(n, size)
    return paths.permute(1, 2, 0)[order.argsort()]


def _best_path(lattice: Lattice) -> Tensor:
    """Best path by the recursion; only the maxima are stored, and the walk back finds the one argmax per step that it needs."""
    f, g, _, active, _ = lattice
    time, batch, tags = f.shape
    delta = _level(f)
    room = f.new_empty(batch, tags, tags)
    best = f.new_empty(batch, tags)
    for t in range(1, time):
        n = active[t]
        torch.add(delta[t - 1, :n, :, None], lattice.edge_scores(t), out=room[:n])
        torch.amax(room[:n], 1, out=best[:n])
        delta[t, :n] += best[:n]
        if t % _LEVEL_EVERY == 0:
            delta[t, :n] = _level(delta[t, :n])
    paths = _last_tags(lattice, delta)
    into = g.mT.contiguous()
    for t in range(time - 1, 0, -1):
        n = active[t]
        after = paths[t, :n]
        arriving = into[after] if g.dim() == 2 else into[t - 1, torch.arange(n, device=f.device), after]
        torch.argmax(arriving.add_(delta[t - 1, :n]), 1, out=paths[t - 1, :n])
    return paths


def _best_path_scan(lattice: Lattice) -> Tensor:
    """The same by halving, on a tree of (max, +) products.

    A node of the tree has the best scores of its block between any two tags, so a best path through a block whose ends are known goes
    through the tag that is best in its middle. One level down the middles are ends.
    """
    f, g, _, _, alive = lattice
    _, batch, tags = f.shape
    step = f.permute(2, 0, 1).repeat(tags, 1, 1, 1).permute(2, 3, 0, 1)  # laid out as max_matmul has it
    step[1:] += g  # nothing is before the first step: its rows are all the same
    if alive is not None:
        step = torch.where(alive[:, :, None, None], step, log_eye(tags, like=f))
    levels = tree_levels(lambda a, b: _level(max_matmul(a, b), (-2, -1)), step)
    last = levels[-1][0, :, 0].argmax(1)
    path = torch.stack([torch.zeros_like(last), last])
    row = torch.arange(batch, device=f.device)
    for level in reversed(levels[:-1]):
        pairs = level.shape[0] // 2
        block = torch.arange(pairs, device=f.device)[:, None]
        before, after = path[:pairs], path[1 : pairs + 1]
        middle = (level[0 : 2 * pairs : 2][block, row, before] + level[1::2].mT[block, row, after]).max(2).indices
        path = torch.cat([torch.stack([before, middle], 1).flatten(0, 1), path[pairs:]])
    return path[1:]


def _last_tags(lattice: Lattice, delta: Tensor) -> Tensor:
    """Empty paths but for the best last tag of each sequence."""
    rows = torch.arange(delta.shape[1], device=delta.device)
    paths = torch.full(delta.shape[:2], -1, device=delta.device)
    paths[lattice.lengths - 1, rows] = delta[lattice.lengths - 1, rows].argmax(1)
    return paths


def _best_paths(lattice: Lattice, n_best: int) -> Tensor:
    """The n best by keeping n ranks for each tag: (n, time, batch)."""
    f, active = lattice.emissions, lattice.active
    time, batch, tags = f.shape
    ranks = f.new_full((batch, tags, n_best), -torch.inf)
    ranks[:, :, 0] = f[0]
    pointer = torch.zeros(time, batch, tags, n_best, dtype=torch.int32, device=f.device)  # tag * n_best + rank before
    for t in range(1, time):
        n = active[t]
        candidates = ranks[:n, :, :, None] + lattice.edge_scores(t)[:, :, None, :]  # (n, from, rank, to)
        top, where = candidates.flatten(1, 2).transpose(1, 2).topk(n_best, 2)
        ranks[:n] = _shifted(top + f[t, :n, :, None])
        pointer[t, :n] = where.int()
    value, place = ranks.flatten(1).topk(n_best, 1)  # ranks keep the state in which a sequence ended
    place = torch.where(value > -torch.inf, place, -1)
    paths = torch.full((n_best, time, batch), -1, device=f.device)
    rows = torch.arange(batch, device=f.device)[:, None]
    for t in range(time - 1, -1, -1):
        n = active[t]
        here = place[:n]
        paths[:, t, :n] = torch.where(here >= 0, here // n_best, -1).T
        if t:
            before = pointer[t].flatten(1)[rows[:n], here.clamp_min(0)].long()
            place[:n] = torch.where(here >= 0, before, -1)
    return paths


def _shifted(ranks: Tensor) -> Tensor:
    """The scores of all ranks relative to the best of the sequence."""
    return _level(ranks, (1, 2))
