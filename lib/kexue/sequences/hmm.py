r"""Hidden Markov models by counting: the generative baseline of sequence tagging.

An HMM has the joint probability :math:`P(x,y)=\pi_{y_1}\prod_kB_{y_kx_k}\prod_{k\ge2}A_{y_{k-1}y_k}\,\omega_{y_n}`. Given x it is a
linear-chain CRF with emissions :math:`\log B_{\cdot x_k}`, transitions :math:`\log A` and the logarithms of :math:`\pi,\omega` at the
ends, so that :mod:`kexue.sequences.crf` decodes it. Maximum likelihood is counting: one pass over the data, no gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

__all__ = ["HMM", "fit_hmm"]


class HMM(NamedTuple):
    """Log-probabilities: of symbols given tags, of the next tag, of the first tag, and the last tag's end score."""

    emission: Float[Tensor, "tags symbols"]
    transitions: Float[Tensor, "tags tags"]
    start: Float[Tensor, " tags"]
    end: Float[Tensor, " tags"]

    def emissions(self, symbols: Int64[Tensor, "batch time"]) -> Float[Tensor, "batch time tags"]:
        """Scores of the tags at each symbol, as a CRF takes them. Symbols are in 0 .. number of symbols - 1, whatever the padding."""
        return self.emission.T[symbols]


def fit_hmm(
    symbols: Int64[Tensor, "batch time"],
    tags: Int64[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    *,
    num_symbols: int,
    num_tags: int,
    smoothing: float = 0.1,
) -> HMM:
    r"""Return the HMM whose probabilities are the frequencies in tagged sequences, padded on the right.

    ``smoothing`` is added to each count of a symbol, so that every symbol is possible for every tag; transitions that were never seen
    stay impossible, :math:`-\infty`. The end score is the log-probability to stop after a tag, and the transitions are those of going on.

    Raises ValueError if smoothing is not positive, or a symbol or tag is out of range where mask is true.
    """
    if smoothing <= 0:
        raise ValueError(f"smoothing must be positive, got {smoothing}")
    for name, values, size in (("symbols", symbols, num_symbols), ("tags", tags, num_tags)):
        if not ((values >= 0) & (values < size))[mask].all():
            raise ValueError(f"{name} must be in 0..{size - 1} where mask is true, got {values[mask].min()} to {values[mask].max()}")
    x, y = symbols[mask], tags[mask]
    together = torch.bincount(num_symbols * y + x, minlength=num_tags * num_symbols).view(num_tags, num_symbols).double()
    going = mask[:, 1:]
    pairs = (num_tags * tags[:, :-1] + tags[:, 1:])[going]
    follow = torch.bincount(pairs, minlength=num_tags**2).view(num_tags, num_tags).double()
    first = torch.bincount(tags[:, 0], minlength=num_tags).double()
    last = torch.bincount(tags.gather(1, mask.sum(1, keepdim=True) - 1)[:, 0], minlength=num_tags).double()
    leaving = (follow.sum(1) + last).clamp_min(1)  # a tag that never occurs has no row to normalize
    return HMM(
        *(
            table.float()
            for table in (
                (together + smoothing).log() - (together + smoothing).sum(1, keepdim=True).log(),
                (follow / leaving[:, None]).log(),
                (first / first.sum()).log(),
                (last / leaving).log(),
            )
        )
    )
