r"""The length of a text's description in words, and what merging neighbours into one word saves.

A text of N tokens with counts :math:`n_w` has the ideal unigram code length :math:`L=\sum_wn_w\log(N/n_w)` nats. Replacing an adjacent pair
by one new token at m places changes N to N - m, both counts by m, and adds a token with count m. With :math:`\psi(n,m)=(n-m)\log(1-m/n)`
the saving is exactly

.. math:: L-L'=m\,\mathrm{PMI}-\psi(N,m)+\psi(n_a,m)+\psi(n_b,m),\qquad\mathrm{PMI}=\log\frac{mN}{n_an_b},

and :math:`\psi(n,m)=-m+m^2/2n+\dots`, so a merge pays if the mutual information is at least 1 nat, and to first order only then.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

__all__ = ["code_length", "merge_gain", "pmi", "two_part_lengths"]

Numbers = float | int | np.number | np.ndarray | Sequence


def code_length(counts: Int[np.ndarray, " words"] | Float[np.ndarray, " words"] | Sequence[int]) -> float:
    r"""Ideal code length of a text with these token counts, :math:`\sum_wn_w\log(N/n_w)`, in nats. Tokens that do not occur cost nothing.

    :raises ValueError: if a count is negative or not finite.

    >>> round(code_length([1, 1, 2]) / math.log(2), 6)  # two bits, two bits, and twice one bit
    6.0
    """
    n = np.asarray(counts, dtype=np.float64)
    if n.size and not (np.isfinite(n).all() and n.min() >= 0):
        raise ValueError(f"counts must be finite and not negative, got {n[~(np.isfinite(n) & (n >= 0))][0]}")
    n = n[n > 0]
    return float((n * np.log(n.sum() / n)).sum())


def two_part_lengths(merges: Sequence[tuple], characters: Mapping[str, int]) -> Float[np.ndarray, " steps"]:
    r"""Length of text *and* dictionary before the first and after each merge, in nats: what a receiver who knows only the characters needs.

    To the code length is added, for each token in use, the cost of spelling it, :math:`\sum_{c\in w}\log(1/p_c)` with the frequencies
    :math:`p_c` of the characters, and of its count, :math:`\tfrac12\log N`. A token that its merges have used up leaves the dictionary.

    :param merges: the ``history`` of an :class:`~kexue.sequences.merging.EntropyMerger`.
    :param characters: counts of the characters of the text before any merge.
    :raises ValueError: if there is no character or a merge uses more of a token than there is.
    """
    if not characters:
        raise ValueError("characters must hold at least one character, got none")
    counts, total = dict(characters), sum(characters.values())
    price = {c: math.log(total / n) for c, n in characters.items()}
    spelling, live = sum(price.values()), len(price)
    lengths = [code_length(list(characters.values())) + spelling + live * math.log(total) / 2]
    for left, right, count, _, tokens, length in merges:
        new = left + right
        counts[new], live, spelling = count, live + 1, spelling + sum(price[c] for c in new)
        for part in (left, right):
            if counts.get(part, 0) < count:
                raise ValueError(f"merges use {part!r} {count} times, there are {counts.get(part, 0)}")
            counts[part] -= count
            if counts[part] == 0:
                live, spelling = live - 1, spelling - sum(price[c] for c in part)
        lengths.append(length + spelling + live * math.log(tokens) / 2)
    return np.array(lengths)


def pmi(total: Numbers, counts: Numbers, joint: Numbers) -> Float[np.ndarray, "*shape"] | np.float64:
    r"""Pointwise mutual information :math:`\log\bigl(mN^{k-1}/\prod_in_i\bigr)` of k neighbours in nats.

    :param total: N, the number of tokens.
    :param counts: shape (..., k): :math:`n_1,\dots,n_k`, how often each piece occurs.
    :param joint: m, how often they occur in a row.
    :raises ValueError: if ``k < 2`` or a number is not positive.
    """
    total, counts, joint = _positive(total, counts, joint)
    return np.log(joint) - np.log(counts[..., 0]) + (np.log(total)[..., None] - np.log(counts[..., 1:])).sum(-1)


def merge_gain(total: Numbers, counts: Numbers, joint: Numbers, *, same: bool = False) -> Float[np.ndarray, "*shape"] | np.float64:
    r"""Nats by which :func:`code_length` falls, exactly, when k tokens in a row become one token at all m places. Negative if it grows.

    The pieces are k different tokens, and no place overlaps another. With ``same`` there are two equal pieces, whose count must be given
    twice; m then counts non-overlapping places. A difference of logarithms of nearly equal numbers never occurs, so the relative error
    stays small for N up to the limit of float64.

    :param total: N, the number of tokens before the merge.
    :param counts: shape (..., k): :math:`n_1,\dots,n_k` before the merge.
    :param joint: the number m of merged pairs.
    :raises ValueError: if a number is not positive, more tokens would be consumed than there are, or ``same`` is used with other than two
        equal counts.
    """
    total, counts, joint = _positive(total, counts, joint)
    k, used = counts.shape[-1], joint[..., None]
    if same:
        if k != 2 or (counts[..., 0] != counts[..., 1]).any():
            raise ValueError(f"same=True needs the count of the one piece twice, got counts of shape {counts.shape}")
        counts, used = counts[..., :1], 2 * used
    if (used > counts).any() or ((k - 1) * joint >= total).any():
        raise ValueError("joint must not exceed what the pieces offer: m (same: 2m) at most each count, and (k - 1) m below total")
    information = np.log(joint) - np.log(counts[..., 0]) + (np.log(total)[..., None] - np.log(counts[..., 1:])).sum(-1)
    if same:
        information = information + np.log(total) - np.log(counts[..., 0])
    return joint * information - _psi(total, (k - 1) * joint) + _psi(counts, np.broadcast_to(used, counts.shape)).sum(-1)


def _psi(n: Numbers, m: Numbers) -> Numbers:
    """(n - m) log(1 - m / n), continued by 0 to m = n."""
    rest = n - m
    return rest * np.log1p(-np.where(rest > 0, m, 0) / n)


def _positive(total: Numbers, counts: Numbers, joint: Numbers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    arrays = tuple(np.asarray(value, dtype=np.float64) for value in (total, counts, joint))
    for name, array in zip(("total", "counts", "joint"), arrays, strict=True):
        if not (np.isfinite(array) & (array > 0)).all():
            raise ValueError(f"{name} must be positive and finite, got {array[~(np.isfinite(array) & (array > 0))].flat[0]}")
    if arrays[1].ndim == 0 or arrays[1].shape[-1] < 2:
        raise ValueError(f"counts must hold at least two pieces along its last axis, got shape {arrays[1].shape}")
    return arrays
