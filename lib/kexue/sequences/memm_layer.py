r"""A trainable layer on top of any encoder: the maximum-entropy Markov model, in one direction or both, of full or low rank.

The transitions of :mod:`kexue.sequences.memm` are parameters here. With ``rank`` they are :math:`g=LR^\top` for
:math:`L,R\in\mathbb{R}^{K\times d}`, of which training needs only the rows of the gold tags: :math:`L_yR^\top`, never the K x K matrix.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from kexue.sequences.crf import viterbi
from kexue.sequences.memm import _prepare, directed_nll, memm_potentials

__all__ = ["MEMM"]

_SPREAD = 0.1  # standard deviation of the first transitions of a low-rank layer


class MEMM(nn.Module):
    r"""Locally normalized tagging of a sequence: the tag scores come from an encoder, the transition scores are parameters.

    :param num_tags: number of tags K.
    :param rank: inner dimension d of :math:`g=LR^\top`, or None for a full matrix. It saves memory and parameters, 2dK instead of K²; a
        gathered row costs O(K), a computed one O(dK).
    :param bidirectional: train :math:`-\tfrac12(\log P_\to+\log P_\leftarrow)`; otherwise :math:`-\log P_\to`.
    :param constraints: allowed transitions (row to column), or None; the others get :math:`-\infty` and gradient 0.
    :raises ValueError: if num_tags or rank is not positive or constraints do not fit.
    """

    def __init__(
        self, num_tags: int, rank: int | None = None, bidirectional: bool = True, constraints: Bool[Tensor, "tags tags"] | None = None
    ) -> None:
        super().__init__()
        if num_tags < 1:
            raise ValueError(f"num_tags must be at least 1, got {num_tags}")
        if rank is not None and rank < 1:
            raise ValueError(f"rank must be at least 1 or None, got {rank}")
        if constraints is not None and constraints.shape != (num_tags, num_tags):
            raise ValueError(f"constraints must be square over the {num_tags} tags, got shape {tuple(constraints.shape)}")
        self.num_tags, self.rank, self.bidirectional = num_tags, rank, bidirectional
        self.register_buffer("constraints", constraints)
        if rank is None:
            self.full = nn.Parameter(torch.zeros(num_tags, num_tags))
        else:  # at two zero factors the gradient vanishes, so they start at random
            self.left, self.right = (nn.Parameter(_SPREAD**0.5 / rank**0.25 * torch.randn(num_tags, rank)) for _ in range(2))

    @property
    def direction(self) -> str:
        """The direction of the loss, as :func:`~kexue.sequences.memm.memm_nll` names it."""
        return "both" if self.bidirectional else "forward"

    def transitions(self) -> Float[Tensor, "tags tags"]:
        r"""The transition scores as a K x K matrix, :math:`-\infty` where forbidden; the loss of a low-rank layer does without it."""
        scores = self.full if self.rank is None else self.left @ self.right.mT
        return scores if self.constraints is None else scores.masked_fill(~self.constraints, -torch.inf)

    def loss(
        self,
        emissions: Float[Tensor, "batch time tags"],
        tags: Int[Tensor, "batch time"],
        *,
        mask: Bool[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Negative log-likelihood of each sequence, the mean of both directions if bidirectional; arguments and errors as in
        :func:`~kexue.sequences.memm.memm_nll`."""
        emissions, tags, mask = self._checked(emissions, mask, tags)
        return directed_nll(emissions, tags, mask, self.direction, self._after, self._before)

    @torch.no_grad()
    def decode(
        self, emissions: Float[Tensor, "batch time tags"], *, mask: Bool[Tensor, "batch time"] | None = None, kind: str = "exact"
    ) -> Int[Tensor, "batch time"]:
        r"""A tag sequence for each sequence of scores, -1 under padding.

        ``"exact"`` is the most probable path of the model, :math:`P_\to` or the normalized
        :math:`\sqrt{P_\to P_\leftarrow}`; ``"raw"`` the best path for :math:`f+g`, which forgets the normalizers; ``"piecewise"`` that for
        :math:`2f+g`, the product of the edges that the bidirectional loss trains; ``"greedy"`` takes the best next tag under
        :math:`P_\to`. The first three cost O(TK²) and build the transition matrix, ``"greedy"`` costs O(TK), or O(TdK) at low rank.

        :raises ValueError: if kind is unknown, or ``"piecewise"`` for a layer that is not bidirectional.
        """
        emissions, _, mask = self._checked(emissions, mask)
        if kind not in ("exact", "raw", "piecewise", "greedy"):
            raise ValueError(f"kind must be 'exact', 'raw', 'piecewise' or 'greedy', got {kind!r}")
        if kind == "piecewise" and not self.bidirectional:
            raise ValueError("kind 'piecewise' is for a bidirectional layer: one direction alone is no product of edges")
        if kind == "greedy":
            return self._greedy(emissions, mask)
        transitions = self.transitions()
        if kind == "exact":
            emissions, transitions, _ = memm_potentials(emissions, transitions, mask=mask, direction=self.direction)
        elif kind == "piecewise":
            emissions = 2 * emissions
        return viterbi(emissions, transitions, mask=mask)[1][:, 0]

    def extra_repr(self) -> str:
        return f"num_tags={self.num_tags}, rank={self.rank}, bidirectional={self.bidirectional}"

    def _after(self, tags: Int[Tensor, "batch steps"]) -> Float[Tensor, "batch steps tags"]:
        """Rows of the transition scores: what each tag says about its successor."""
        scores = F.embedding(tags, self.full) if self.rank is None else F.embedding(tags, self.left) @ self.right.mT
        return scores if self.constraints is None else scores.masked_fill(~self.constraints[tags], -torch.inf)

    def _before(self, tags: Int[Tensor, "batch steps"]) -> Float[Tensor, "batch steps tags"]:
        """Columns of the transition scores: what each tag says about its predecessor."""
        scores = F.embedding(tags, self.full.mT) if self.rank is None else F.embedding(tags, self.right) @ self.left.mT
        return scores if self.constraints is None else scores.masked_fill(~self.constraints.mT[tags], -torch.inf)

    def _greedy(self, emissions: Tensor, mask: Tensor) -> Tensor:
        path = [emissions[:, 0].argmax(1)]
        for k in range(1, emissions.shape[1]):
            path.append((emissions[:, k] + self._after(path[-1][:, None])[:, 0]).argmax(1))
        return torch.stack(path, 1).masked_fill(~mask, -1)

    def _checked(self, emissions: Tensor, mask: Tensor | None, tags: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor]:
        if emissions.shape[2] != self.num_tags:
            raise ValueError(f"emissions must score the {self.num_tags} tags of the layer, got shape {tuple(emissions.shape)}")
        emissions, _, tags, mask = _prepare(emissions, None, mask, tags)
        return emissions, tags, mask
