r"""Encoders that read a whole clause, in both directions or from the left only: recurrent, and dilated gated convolutions.

A linear tagger sees a window; an encoder turns the characters :math:`x_1,\dots,x_n` of a clause into scores :math:`f_k\in\mathbb{R}^K` that
may depend on all of them. A **causal** encoder lets :math:`f_k` depend on :math:`x_1,\dots,x_k` only, so that what a tagger loses without
look-ahead can be measured on one architecture, by one switch.

A gated block replaces its input :math:`h` by :math:`h+\sigma(u)\odot(v-h)`, where :math:`u` and :math:`v` are the two halves of one
convolution of width 3 and dilation :math:`\delta`: each channel keeps what it has or takes what the positions at distance
:math:`\delta` say. With dilations 1, 2, 4, 8 the last block sees 15 characters to each side, or 30 to the left when causal.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from kexue.sequences.tagging import pad

__all__ = ["GatedConvolutions", "RecurrentEncoder"]

_REACH = 2  # a convolution of width 3 sees two dilations: one to each side, or both to the left


class RecurrentEncoder(nn.Module):
    r"""Scores of tags from LSTM layers over embedded n-grams: both directions (BiLSTM), or the left-to-right one alone if causal.

    Called, like a :class:`~kexue.sequences.tagging.LinearTagger`, with the ``features`` of clauses one after another and their
    ``lengths``. Each of ``layers`` has ``width`` units a direction; n-grams share a table of ``buckets`` rows of ``width`` numbers.

    :raises ValueError: if a size is not positive.
    """

    def __init__(self, tags: int = 4, *, buckets: int = 2**16, width: int = 256, layers: int = 2, causal: bool = False) -> None:
        super().__init__()
        _positive(tags=tags, buckets=buckets, width=width, layers=layers)
        self.table = nn.EmbeddingBag(buckets, width, mode="sum")
        self.recurrence = nn.LSTM(width, width, layers, batch_first=True, bidirectional=not causal)
        self.scores = nn.Linear(width if causal else 2 * width, tags)

    def forward(self, features: Int64[Tensor, "characters ngrams"], lengths: Int64[Tensor, " clauses"]) -> Float[Tensor, "characters tags"]:
        """Return the scores of every character. Padding is packed away, so a clause's scores do not depend on the other clauses."""
        hidden, mask = pad(self.table(features), lengths)
        packed = pack_padded_sequence(hidden, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.scores(pad_packed_sequence(self.recurrence(packed)[0], batch_first=True)[0][mask])


class GatedConvolutions(nn.Module):
    r"""Scores of tags from residual gated convolutions over embedded n-grams, one block for each of ``dilations``.

    Called with ``features`` and ``lengths`` as :class:`RecurrentEncoder`. If causal, a block looks at distances 0, :math:`\delta` and
    :math:`2\delta` to the left, otherwise at 0 and :math:`\delta` to both sides. Beyond the ends of a clause everything is zero.

    :raises ValueError: if a size or a dilation is not positive, or there is no dilation.

    Source of the gate: J. Su, kexue.fm/archives/5409; of gated convolutions: Dauphin and others, arXiv:1612.08083.
    """

    def __init__(
        self,
        tags: int = 4,
        *,
        buckets: int = 2**16,
        width: int = 256,
        dilations: Sequence[int] = (1, 2, 4, 8),
        causal: bool = False,
    ) -> None:
        super().__init__()
        _positive(tags=tags, buckets=buckets, width=width, blocks=len(dilations), dilation=min(dilations, default=1))
        self.causal = causal
        self.table = nn.EmbeddingBag(buckets, width, mode="sum")
        self.blocks = nn.ModuleList(nn.Conv1d(width, 2 * width, 3, dilation=d) for d in dilations)
        self.scores = nn.Linear(width, tags)

    def forward(self, features: Int64[Tensor, "characters ngrams"], lengths: Int64[Tensor, " clauses"]) -> Float[Tensor, "characters tags"]:
        """Return the scores of every character; a clause's scores do not depend on the other clauses."""
        hidden, mask = pad(self.table(features), lengths)
        inside = mask[:, None]
        hidden = hidden.mT
        for block in self.blocks:
            reach = _REACH * block.dilation[0]
            sides = (reach, 0) if self.causal else (reach // 2, reach // 2)
            gate, new = block(F.pad(hidden, sides)).chunk(2, 1)
            hidden = torch.lerp(hidden, new, gate.sigmoid()).masked_fill(~inside, 0.0)
        return self.scores(hidden.mT[mask])


def _positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
