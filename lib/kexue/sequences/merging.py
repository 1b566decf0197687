r"""Tokenizers that grow words by merging the best pair of neighbours, for three meanings of best.

With N tokens, counts :math:`n_a,n_b` and m places where a stands before b: ``"frequency"`` takes the largest m (byte-pair encoding on
characters), ``"pmi"`` the largest :math:`m/(n_an_b)` (WordPiece as commonly implemented), ``"entropy"`` the largest exact saving of code
length, :func:`~kexue.sequences.entropy_words.merge_gain`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool

from kexue.sequences._merge_queue import NEVER, Growth, Merge
from kexue.sequences.ngrams import WORD_CHARACTER, encode_text

__all__ = ["EntropyMerger", "Merge"]

_CRITERIA = ("entropy", "frequency", "pmi")


class EntropyMerger:
    """A tokenizer learned from raw lines by merging pairs of neighbouring tokens, starting from characters.

    A string becomes a token in one way only: the first merge that spells it closes the others, so that the merges, applied in order, say
    for every text what its tokens are.

    :param criterion: ``"entropy"``, ``"frequency"`` or ``"pmi"``; ties go to the pair that comes first by code points.
    :param min_count: pairs at fewer places are never merged.
    :param max_length: no token gets longer than this many characters.
    :param keep: regular expression of the characters of words; nothing is merged across another character.
    :raises ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        criterion: Literal["entropy", "frequency", "pmi"] = "entropy",
        *,
        min_count: int = 2,
        max_length: int = 16,
        keep: str = WORD_CHARACTER,
    ) -> None:
        if criterion not in _CRITERIA:
            raise ValueError(f"criterion must be one of {', '.join(_CRITERIA)}, got {criterion!r}")
        if min_count < 1 or max_length < 1:
            raise ValueError(f"min_count and max_length must be at least 1, got {min_count} and {max_length}")
        self.criterion, self.min_count, self.max_length, self.keep = criterion, min_count, max_length, keep
        self.vocabulary: list[str] = []
        self.history: list[Merge] = []

    def fit(self, lines: Iterable[str], merges: int) -> EntropyMerger:
        """Learn up to ``merges`` merges; stop earlier if no pair is left or, for ``"entropy"``, none saves anything.

        Afterwards ``vocabulary`` lists characters and then merged tokens in the order of their making, and ``history`` the merges.

        :raises ValueError: if ``merges`` is negative or no line holds a character of a word.
        """
        if merges < 0:
            raise ValueError(f"merges must not be negative, got {merges}")
        text = encode_text(lines, keep=self.keep)
        if not text.alphabet:
            raise ValueError("lines must hold at least one character that can be part of a word, got none")
        growth = Growth(text, self.criterion, self.min_count, self.max_length)
        growth.run(merges)
        self.text, self.history, self._joined_by = text, growth.history, growth.joined_by
        self.vocabulary = [*text.alphabet, *(merge.left + merge.right for merge in self.history)]
        self._ranks = {(merge.left, merge.right): step for step, merge in enumerate(self.history)}
        self._letters = set(text.alphabet)
        self._ids = {token: i for i, token in enumerate(self.vocabulary)}
        return self

    def word_starts(self, merges: int | None = None) -> Bool[np.ndarray, " positions"]:
        """Where tokens began in the training text after so many merges, for :func:`~kexue.sequences.word_spans.words_found`.

        The history of a segmentation is one integer per gap: the merge that closed it. Raises ValueError if ``merges`` is negative.
        """
        merges = len(self.history) if merges is None else merges
        if merges < 0:
            raise ValueError(f"merges must not be negative, got {merges}")
        return self._joined_by >= merges

    def tokenize(self, text: str) -> list[str]:
        """Apply the merges in their order to a text; characters never seen stay single. On a training line this is its segmentation."""
        runs = itertools.groupby(text, self._letters.__contains__)
        return [token for known, run in runs for token in (self._merged(list(run)) if known else run)]

    def encode(self, text: str) -> list[int]:
        """Indices of the tokens in ``vocabulary``; an unknown character gets ``len(vocabulary)`` plus its code point."""
        return [self._ids[piece] if piece in self._ids else len(self._ids) + ord(piece) for piece in self.tokenize(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text with these numbers: the inverse of :meth:`encode`, for every string. Raises ValueError for a number out of range."""
        size = len(self.vocabulary)
        for i in ids:
            if not 0 <= i < size + 0x110000:
                raise ValueError(f"ids must lie between 0 and {size + 0x110000 - 1}, got {i}")
        return "".join(self.vocabulary[i] if i < size else chr(i - size) for i in ids)

    def _merged(self, pieces: list[str]) -> list[str]:
        while len(pieces) > 1:
            ranked = [self._ranks.get(pair, NEVER) for pair in itertools.pairwise(pieces)]
            rank = min(ranked)
            if rank == NEVER:
                break
            joined, i = [], 0
            while i < len(pieces):
                step = 2 if i < len(ranked) and ranked[i] == rank else 1
                joined.append("".join(pieces[i : i + step]))
                i += step
            pieces = joined
        return pieces
