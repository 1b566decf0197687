r"""Maximum-entropy Markov models: one softmax per step, and exactly how they relate to conditional random fields.

With tag scores :math:`f_k` (``emissions``) and transition scores :math:`g` (``transitions``, from row to column) a CRF has
:math:`P(y)\propto e^{S(y)}`, :math:`S(y)=\sum_kf_k(y_k)+\sum_{k\ge2}g_{y_{k-1}y_k}`. An MEMM normalizes every step for itself,

.. math:: P_\to(y)=\operatorname{softmax}(f_1)_{y_1}\prod_{k\ge2}\operatorname{softmax}(g_{y_{k-1}\cdot}+f_k)_{y_k},

and :math:`P_\leftarrow` does so from the right with :math:`g^\top`. Training needs no recursion, only the gold neighbours.

Each model is the other one with different tag scores. With :math:`\ell_{k+1}(i)=\log\sum_je^{g_{ij}+f_{k+1}(j)}` the MEMM is the CRF of
the scores :math:`f_k-\ell_{k+1}`; with backward messages :math:`\beta_{k-1}(i)=\log\sum_je^{g_{ij}+f_k(j)+\beta_k(j)}` the CRF is
the MEMM of the scores :math:`f_k+\beta_k`. So an MEMM is decoded, sampled and summed over by the functions of
:mod:`kexue.sequences.crf`, and it loses to a CRF only where its scores cannot contain :math:`\beta_k`, which looks ahead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from kexue.numerics.semiring import log_matmul

__all__ = ["lookahead_logits", "memm_nll", "memm_potentials", "pseudo_nll"]

Rows = Callable[[Int[Tensor, "batch steps"]], Float[Tensor, "batch steps tags"]]


def memm_nll(
    emissions: Float[Tensor, "batch time tags"],
    transitions: Float[Tensor, "tags tags"],
    tags: Int[Tensor, "batch time"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
    direction: str = "both",
) -> Float[Tensor, " batch"]:
    r"""Negative log-likelihood of tag sequences under an MEMM: a sum of cross-entropies, without a loop over time.

    ``"forward"`` is :math:`-\log P_\to(y)`, ``"backward"`` :math:`-\log P_\leftarrow(y)` and ``"both"`` their mean, the loss of the
    bidirectional MEMM. Time and memory O(TK) per sequence. Scores of :math:`-\infty` forbid a tag or a transition and get
    gradient 0. Padding is on the right; neither its scores nor its tags matter. Half precision is computed in float32.

    :raises ValueError: if shapes, mask or tags do not fit, or a tag sequence has probability 0.

    Source: McCallum, Freitag and Pereira (2000); the loss in both directions: kexue.fm/archives/7213.

    >>> memm_nll(torch.zeros(1, 3, 4), torch.zeros(4, 4), torch.tensor([[0, 1, 2]])).exp()
    tensor([64.0000])
    """
    emissions, transitions, tags, mask = _prepare(emissions, transitions, mask, tags)
    return directed_nll(emissions, tags, mask, direction, lambda i: F.embedding(i, transitions), lambda j: F.embedding(j, transitions.mT))


def pseudo_nll(
    emissions: Float[Tensor, "batch time tags"],
    transitions: Float[Tensor, "tags tags"],
    tags: Int[Tensor, "batch time"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
) -> Float[Tensor, " batch"]:
    r"""Negative log pseudolikelihood of tag sequences under a CRF: every tag given its two neighbours.

    The sum over :math:`k` of :math:`-\log P(y_k\mid y_{k-1},y_{k+1})` with
    :math:`P(y_k\mid y_{k-1},y_{k+1})\propto e^{f_k+g_{y_{k-1}\cdot}+g_{\cdot y_{k+1}}}`; the ends have one neighbour. Cost, masks and
    errors are those of :func:`memm_nll`. Its minimizer is consistent for the CRF, which that of the bidirectional MEMM is not.

    Source: Besag (1975).
    """
    emissions, transitions, tags, mask = _prepare(emissions, transitions, mask, tags)
    return _conditionals(emissions, tags, mask, lambda i: F.embedding(i, transitions), lambda j: F.embedding(j, transitions.mT)).sum(1)


def memm_potentials(
    emissions: Float[Tensor, "batch time tags"],
    transitions: Float[Tensor, "tags tags"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
    direction: str = "both",
) -> tuple[Float[Tensor, "batch time tags"], Float[Tensor, "tags tags"], Float[Tensor, " batch"]]:
    r"""The chain with the path scores of an MEMM: emissions, transitions and a constant ``log_const``.

    With :math:`S'` the path score of the result, :math:`S'(y)-\texttt{log\_const}=-\texttt{memm\_nll}(y)` for every path. For one
    direction that is a normalized distribution, so the log partition of the result is ``log_const``. For ``"both"`` the path
    scores are those of :math:`\sqrt{P_\to P_\leftarrow}`, and the log partition minus ``log_const`` is the logarithm of the Bhattacharyya
    coefficient :math:`\sum_y\sqrt{P_\to(y)P_\leftarrow(y)}\le1`. The emissions are

    .. math:: f_k-\ell_{k+1},\qquad f_k-\bar\ell_{k-1},\qquad f_k-\tfrac12\ell_{k+1}-\tfrac12\bar\ell_{k-1},\qquad
       \bar\ell_{k-1}(j)=\log\sum_ie^{g_{ij}+f_{k-1}(i)},

    and zero under padding. A tag without any successor (or, from the right, predecessor) inside a sequence gets :math:`-\infty`: paths
    through it are impossible, and the mass that a step gives it is missing from the partition. Time O(TK²).

    :raises ValueError: if shapes or mask do not fit or direction is unknown.
    """
    emissions, transitions, _, mask = _prepare(emissions, transitions, mask)
    _one_direction(direction)
    emissions = emissions.masked_fill(~mask[..., None], 0.0)
    scores, constants = emissions, []
    share = 0.5 if direction == "both" else 1.0
    inner = mask[:, 1:, None]
    if direction != "backward":
        ahead = _log_sums(emissions[:, 1:], transitions.mT).masked_fill(~inner, 0.0)
        scores = _minus(scores, F.pad(ahead, (0, 0, 0, 1)), share)
        constants.append(torch.logsumexp(emissions[:, 0], 1))
    if direction != "forward":
        behind = _log_sums(emissions[:, :-1], transitions).masked_fill(~inner, 0.0)
        scores = _minus(scores, F.pad(behind, (0, 0, 1, 0)), share)
        last = emissions[torch.arange(len(mask), device=mask.device), mask.sum(1) - 1]
        constants.append(torch.logsumexp(last, 1))
    return scores, transitions, share * sum(constants)


def lookahead_logits(
    emissions: Float[Tensor, "batch time tags"],
    transitions: Float[Tensor, "tags tags"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
    start: Float[Tensor, " tags"] | None = None,
    end: Float[Tensor, " tags"] | None = None,
) -> Float[Tensor, "batch time tags"]:
    r"""Emissions with which an MEMM has the distribution of a CRF: :math:`f_k+\beta_k`, transitions unchanged.

    :math:`\beta_n` is ``end`` (default 0), :math:`\beta_{k-1}(i)=\log\sum_je^{g_{ij}+f_k(j)+\beta_k(j)}`; ``start`` is added at the first
    step. These are backward messages: the logits of a step contain all that follows. Zero under padding. Time O(TK²).

    :raises ValueError: if shapes or mask do not fit.

    Source: Smith and Johnson (2007).
    """
    emissions, transitions, _, mask = _prepare(emissions, transitions, mask)
    for name, scores in (("start", start), ("end", end)):
        if scores is not None and scores.shape != emissions.shape[2:]:
            raise ValueError(
                f"{name} must have a score for each of the {emissions.shape[2]} tags of emissions, got shape {tuple(scores.shape)}"
            )
    emissions = emissions.masked_fill(~mask[..., None], 0.0)
    last = torch.zeros_like(emissions[:, 0]) if end is None else end.to(emissions.dtype).expand_as(emissions[:, 0])
    logits = [emissions[:, -1] + last]
    for k in range(emissions.shape[1] - 1, 0, -1):
        beta = torch.where(mask[:, k, None], _log_sums(logits[-1][:, None], transitions.mT)[:, 0], last)
        logits.append(emissions[:, k - 1] + beta)
    if start is not None:
        logits[-1] = logits[-1] + start.to(emissions.dtype)
    return torch.stack(logits[::-1], 1).masked_fill(~mask[..., None], 0.0)


def directed_nll(
    emissions: Float[Tensor, "batch time tags"],
    tags: Int[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    direction: str,
    after: Rows,
    before: Rows,
) -> Float[Tensor, " batch"]:
    r"""Loss of :func:`memm_nll` for transitions that are given by their rows, ``after(i)``, and columns, ``before(j)``."""
    _one_direction(direction)
    if direction == "forward":
        return _conditionals(emissions, tags, mask, after, None).sum(1)
    if direction == "backward":
        return _conditionals(emissions, tags, mask, None, before).sum(1)
    forward, backward = (_conditionals(emissions, tags, mask, *side) for side in ((after, None), (None, before)))
    return (forward + backward).sum(1) / 2


def _conditionals(
    emissions: Float[Tensor, "batch time tags"],
    tags: Int[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    after: Rows | None,
    before: Rows | None,
) -> Float[Tensor, "batch time"]:
    """Cross-entropy of each tag given its predecessor (``after``), its successor (``before``) or both; 0 under padding."""
    logits = emissions
    if after is not None:
        logits = torch.cat([logits[:, :1], logits[:, 1:] + after(tags[:, :-1])], 1)
    if before is not None:
        column = before(tags[:, 1:]).masked_fill(~mask[:, 1:, None], 0.0)
        logits = torch.cat([logits[:, :-1] + column, logits[:, -1:]], 1)
    logits = logits.masked_fill(~mask[..., None], 0.0)
    loss = F.cross_entropy(logits.flatten(0, 1), tags.flatten(), reduction="none").view(tags.shape).masked_fill(~mask, 0.0)
    if not torch.isfinite(loss).all():
        row, step = (~torch.isfinite(loss)).nonzero()[0].tolist()
        raise ValueError(f"tags must have positive probability, got tag {tags[row, step]} with none at step {step} of sequence {row}")
    return loss


def _log_sums(scores: Float[Tensor, "batch steps inner"], kernel: Float[Tensor, "inner tags"]) -> Float[Tensor, "batch steps tags"]:
    r"""For each column j the :math:`\log\sum_ie^{s_i+g_{ij}}`; where all terms vanish :math:`-\infty`, with gradient 0."""
    return log_matmul(scores.flatten(0, 1)[None], kernel[None])[0].view(*scores.shape[:2], kernel.shape[1])


def _minus(scores: Tensor, normalizer: Tensor, share: float) -> Tensor:
    """Scores minus a share of the normalizer; where there is nothing to normalize the score is minus infinity."""
    dead = normalizer == -torch.inf
    return (scores - share * normalizer.masked_fill(dead, 0.0)).masked_fill(dead, -torch.inf)


def _one_direction(direction: str) -> None:
    if direction not in ("forward", "backward", "both"):
        raise ValueError(f"direction must be 'forward', 'backward' or 'both', got {direction!r}")


def _prepare(
    emissions: Tensor, transitions: Tensor | None, mask: Tensor | None, tags: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Checked arguments: scores in float32 or float64, tags that are 0 under padding, a mask that is there."""
    batch, time, count = emissions.shape
    if time == 0 or count == 0:
        raise ValueError(f"emissions must have at least one step and one tag, got shape {tuple(emissions.shape)}")
    dtype = torch.promote_types(emissions.dtype, torch.float32)
    if transitions is not None:
        dtype = torch.promote_types(dtype, transitions.dtype)
        if transitions.shape != (count, count):
            raise ValueError(f"transitions must be square over the {count} tags of emissions, got shape {tuple(transitions.shape)}")
        transitions = transitions.to(dtype)
    if mask is None:
        mask = torch.ones(batch, time, dtype=torch.bool, device=emissions.device)
    else:
        if mask.shape != (batch, time):
            raise ValueError(f"mask must have the shape {(batch, time)} of emissions, got {tuple(mask.shape)}")
        if not mask[:, 0].all() or (mask[:, 1:] & ~mask[:, :-1]).any():
            raise ValueError("mask must be True from the first step to the end of each sequence and False after it")
    if tags is not None:
        if tags.shape != (batch, time):
            raise ValueError(f"tags must have the shape {(batch, time)} of emissions, got {tuple(tags.shape)}")
        tags = tags.long().masked_fill(~mask, 0)
        if batch and (tags.min() < 0 or tags.max() >= count):
            raise ValueError(f"tags must lie in 0..{count - 1} where the mask is True, got {tags.min()} to {tags.max()}")
    return emissions.to(dtype), transitions, tags, mask
