r"""A CRF layer for any encoder, and the constraints of the usual tagging schemes.

The layer holds the transition, start and end scores; a forbidden transition has the score :math:`-\infty` and never changes. It is used as

.. code-block:: python

    crf = LinearChainCRF(9)
    loss = -crf(encoder(x), tags, mask).mean()
    best = crf.decode(encoder(x), mask)  # one list of tags per sequence
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from kexue.sequences.crf_decode import viterbi
from kexue.sequences.crf_sums import Marginals, marginals, sequence_nll

__all__ = ["LinearChainCRF", "TagConstraints", "tag_constraints"]

Scheme = Literal["SBME", "BIO", "BIOES"]
_SPREAD = 0.1  # first scores are uniform in (-0.1, 0.1)


class TagConstraints(NamedTuple):
    """Names of the tags, and which of them may follow each other (row to column), come first and come last."""

    names: tuple[str, ...]
    transitions: Bool[Tensor, "tags tags"]
    start: Bool[Tensor, " tags"]
    end: Bool[Tensor, " tags"]

    def scores(self) -> tuple[Float[Tensor, "tags tags"], Float[Tensor, " tags"], Float[Tensor, " tags"]]:
        r"""Transition, start and end scores: 0 where allowed, :math:`-\infty` where not."""
        return tuple(torch.where(allowed, 0.0, -torch.inf) for allowed in self[1:])


def tag_constraints(scheme: Scheme, types: Sequence[str] = ()) -> TagConstraints:
    """Return the tags of a scheme and what it allows.

    ``"SBME"`` codes the words of a text, single, begin, middle and end, and takes no types. ``"BIO"`` and ``"BIOES"`` code spans of the
    given types: O comes first, then B-, I- (and E-, S-) of each type. Raises ValueError for an unknown scheme, or types that are
    missing, repeated or not wanted.

    >>> tag_constraints("BIO", ["PER"]).names
    ('O', 'B-PER', 'I-PER')
    """
    if scheme not in ("SBME", "BIO", "BIOES"):
        raise ValueError(f"scheme must be 'SBME', 'BIO' or 'BIOES', got {scheme!r}")
    if (scheme == "SBME") != (len(types) == 0) or len(set(types)) != len(types):
        raise ValueError(f"types must be {'empty' if scheme == 'SBME' else 'distinct and at least one'} for {scheme}, got {list(types)}")
    if scheme == "SBME":
        pieces = [("S", ""), ("B", ""), ("M", ""), ("E", "")]
    else:
        pieces = [("O", ""), *((letter, kind) for kind in types for letter in ("BI" if scheme == "BIO" else "BIES"))]
    strict = scheme != "BIO"  # a span must be closed by its own end tag

    def begins(letter: str) -> bool:
        return letter in "OBS"

    def ends(letter: str) -> bool:
        return letter in "OES" or not strict

    def follows(a: tuple[str, str], b: tuple[str, str]) -> bool:
        if begins(b[0]):
            return ends(a[0])
        return a[0] in "BIM" and a[1] == b[1]

    return TagConstraints(
        tuple(f"{letter}-{kind}" if kind else letter for letter, kind in pieces),
        torch.tensor([[follows(a, b) for b in pieces] for a in pieces]),
        torch.tensor([begins(letter) for letter, _ in pieces]),
        torch.tensor([ends(letter) for letter, _ in pieces]),
    )


class LinearChainCRF(nn.Module):
    r"""Transition, start and end scores of a CRF as parameters; calling it gives the log-likelihood of tag sequences.

    ``crf(emissions, tags, mask)`` is :math:`\log P(y)` for each sequence - the loss is its negative mean - and ``crf.decode`` the best
    path. Emissions are (batch, time, tags) and come from an encoder.

    :param num_tags: number of tags K.
    :param constraints: what is allowed, a :class:`TagConstraints` or its (tags, tags) matrix; None allows all. What is forbidden has
        the score :math:`-\infty` and gradient 0.
    :raises ValueError: if num_tags is not positive or the constraints are for another number of tags.
    """

    def __init__(self, num_tags: int, constraints: TagConstraints | Bool[Tensor, "tags tags"] | None = None) -> None:
        super().__init__()
        if num_tags < 1:
            raise ValueError(f"num_tags must be at least 1, got {num_tags}")
        allowed = constraints[1:] if isinstance(constraints, TagConstraints) else (constraints, None, None)
        shapes = {"transition": (num_tags, num_tags), "start": (num_tags,), "end": (num_tags,)}
        for (name, shape), may in zip(shapes.items(), allowed, strict=True):
            if may is not None and may.shape != shape:
                raise ValueError(f"constraints must be for the {num_tags} tags, got shape {tuple(may.shape)}")
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
            self.register_buffer(f"{name}_allowed", may)
        self.num_tags = num_tags
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all scores anew, uniformly between -0.1 and 0.1."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -_SPREAD, _SPREAD)

    def scores(self) -> dict[str, Tensor]:
        r"""Transitions, start and end as the functions of :mod:`kexue.sequences.crf` take them: :math:`-\infty` where forbidden."""
        named = {"transitions": "transition", "start": "start", "end": "end"}
        return {key: self._masked(name) for key, name in named.items()}

    def forward(
        self,
        emissions: Float[Tensor, "batch time tags"],
        tags: Int[Tensor, "batch time"],
        mask: Bool[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, " batch"]:
        r"""Log-likelihood :math:`\log P(y)=S(y)-\log Z` of each tag sequence, not its negative."""
        return -sequence_nll(emissions, tags=tags, mask=mask, **self.scores())

    def decode(self, emissions: Float[Tensor, "batch time tags"], mask: Bool[Tensor, "batch time"] | None = None) -> list[list[int]]:
        """The best path of each sequence, without its padding. Raises ValueError if every path of a sequence is forbidden."""
        tags = viterbi(emissions, mask=mask, **self.scores()).tags[:, 0]
        if (impossible := tags[:, 0] < 0).any():
            raise ValueError(f"every path of sequence {int(impossible.nonzero()[0])} is forbidden: there is none to decode")
        lengths = [tags.shape[1]] * len(tags) if mask is None else mask.sum(1).tolist()
        return [path[:length] for path, length in zip(tags.tolist(), lengths, strict=True)]

    def viterbi(
        self, emissions: Float[Tensor, "batch time tags"], mask: Bool[Tensor, "batch time"] | None = None, *, n_best: int = 1
    ) -> tuple[Float[Tensor, "batch n"], Int64[Tensor, "batch n time"]]:
        """Scores and tags of the ``n_best`` paths: see :func:`~kexue.sequences.crf_decode.viterbi`."""
        return viterbi(emissions, mask=mask, n_best=n_best, **self.scores())

    def marginals(self, emissions: Float[Tensor, "batch time tags"], mask: Bool[Tensor, "batch time"] | None = None) -> Marginals:
        """Probabilities of tags and of pairs of neighbours: see :func:`~kexue.sequences.crf_sums.marginals`."""
        return marginals(emissions, mask=mask, **self.scores())

    def extra_repr(self) -> str:
        """Number of tags, for ``print``."""
        return f"num_tags={self.num_tags}"

    def _masked(self, name: str) -> Tensor:
        parameter, allowed = getattr(self, name), getattr(self, f"{name}_allowed")
        return parameter if allowed is None else parameter.masked_fill(~allowed, -torch.inf)
