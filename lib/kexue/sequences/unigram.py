r"""Segmentation by a unigram model: the most probable words, the sum over all segmentations, and maximum likelihood without labels.

Given probabilities :math:`p(w)`, a string has the likelihood :math:`Z=\sum\prod_ip(w_i)` over all its segmentations, and the best
segmentation maximizes :math:`\prod_ip(w_i)`. Both are one recursion over the end of the last word, with a sum and with a maximum:
:math:`\alpha_t=\log\sum_\ell\exp(\alpha_{t-\ell}+\log p(x_{t-\ell+1..t}))`. The gradient of :math:`\log Z` with respect to
:math:`\log p(w)` is the expected number of times w is used, which is the E step of EM.

All runs of characters of a corpus are processed at once: words are looked up from all positions together, and
step t of the recursion treats the t-th character of all runs that have one.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from kexue.sequences._word_trie import WordTrie
from kexue.sequences.ngrams import WORD_CHARACTER, EncodedText, encode_text
from kexue.sequences.word_spans import cut

__all__ = ["UnigramSegmenter"]


class UnigramSegmenter:
    r"""Unigram model of words, with :math:`p(w)=n_w/N`.

    A character outside the vocabulary is a word of probability :math:`1/(N+V)`, for N tokens and V words; separators stand alone and cost
    nothing.

    :param word_counts: positive counts, or weights, of the words.
    :param keep: regular expression of the characters of words. A word with another character is never found.
    :raises ValueError: if there is no word, a word is empty, or a count is not positive.
    """

    def __init__(self, word_counts: Mapping[str, int | float], *, keep: str = WORD_CHARACTER) -> None:
        if not word_counts:
            raise ValueError("word_counts must hold at least one word, got none")
        for word, count in word_counts.items():
            if not word or not 0 < count < math.inf:
                raise ValueError(f"word_counts must map words to positive counts, got {word!r}: {count}")
        self.keep = keep
        self.words = sorted(word_counts)
        counts = np.array([word_counts[w] for w in self.words], dtype=np.float64)
        self.log_probability = np.log(counts) - math.log(counts.sum())
        self.unknown = -math.log(counts.sum() + len(self.words))
        self._trie = WordTrie(self.words)
        self.longest = self._trie.longest

    def segment(self, lines: Sequence[str]) -> list[list[str]]:
        """Most probable segmentation of each line; of equally probable ones that with the shorter last word."""
        text = encode_text(lines, keep=self.keep)
        scores, best, order = self._lattice(text)[1], np.zeros(len(text.ids) + 1), self._order(text)
        back = np.ones(len(text.ids) + 1, dtype=np.int64)
        for at in order:
            candidates = self._before(best, at) + scores[at]
            chosen = candidates.argmax(1)
            best[at + 1], back[at + 1] = candidates[np.arange(len(at)), chosen], chosen + 1
        starts = np.ones(len(text.ids), dtype=bool)
        for at in reversed(order):
            ends = at[starts[np.minimum(at + 1, len(starts) - 1)]]  # positions after which a word begins
            for length in range(2, self.longest + 1):
                last = ends[back[ends + 1] >= length]
                starts[last - length + 2] = False
        return cut(lines, starts)

    def log_likelihood(self, lines: Sequence[str]) -> float:
        """Sum of the log-probabilities of the lines, each summed over all its segmentations."""
        text = encode_text(lines, keep=self.keep)
        order = self._order(text)
        return self._log_partition(self._forward(self._lattice(text)[1], order, len(text.ids)), text)

    def n_best(self, string: str, k: int) -> list[tuple[list[str], float]]:
        """The k most probable segmentations of one string with their log-probabilities, best first; fewer if there are fewer.

        Raises ValueError if ``k`` is below 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        text = encode_text([string], keep=self.keep)
        scores = self._lattice(text)[1]
        tables: list[list[tuple[float, int, int]]] = [[(0.0, 0, 0)]]  # score, length of the last word, rank of the rest
        for t in range(len(string)):
            options = (
                (before[0] + scores[t, length - 1], -length, -rank)
                for length in range(1, min(t + 1, self.longest) + 1)
                if scores[t, length - 1] > -math.inf
                for rank, before in enumerate(tables[t + 1 - length])
            )
            tables.append([(score, -length, -rank) for score, length, rank in heapq.nlargest(k, options)])
        found = []
        for score, length, rank in tables[-1]:
            pieces, end = [], len(string)
            while end:
                pieces.append(string[end - length : end])
                end -= length
                _, length, rank = tables[end][rank]
            found.append((pieces[::-1], float(score)))
        return found

    def fit_em(self, lines: Sequence[str], steps: int = 1) -> list[float]:
        r"""Improve the probabilities by ``steps`` steps of EM and return the log-likelihood before each step and after the last.

        It never decreases. A word whose expected count falls below 1e-12 keeps that, so no logarithm of zero occurs. The cost of unknown
        characters stays. Raises ValueError if ``steps`` is below 1 or no word of the vocabulary occurs.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        text = encode_text(lines, keep=self.keep)
        order, values = self._order(text), []
        words, _ = self._lattice(text)
        for _ in range(steps):
            scores = self._scores(words, text)
            forward = self._forward(scores, order, len(text.ids))
            values.append(self._log_partition(forward, text))
            expected = self._expected(text, words, scores, forward, order)
            if not expected.sum() > 0:
                raise ValueError("lines must hold at least one word of the vocabulary, got none")
            expected = np.maximum(expected, 1e-12)
            self.log_probability = np.log(expected) - math.log(expected.sum())
        values.append(self._log_partition(self._forward(self._scores(words, text), order, len(text.ids)), text))
        return values

    def _lattice(self, text: EncodedText) -> tuple[Int[np.ndarray, "positions longest"], Float[np.ndarray, "positions longest"]]:
        """Index of the word of each length that *ends* at each position, -1 for none, and its score."""
        words = np.full((len(text.ids), self.longest), -1)
        for length, (begins, found) in enumerate(self._trie.find(text), 1):
            words[begins + length - 1, length - 1] = found
        return words, self._scores(words, text)

    def _scores(self, words: Int[np.ndarray, "positions longest"], text: EncodedText) -> Float[np.ndarray, "positions longest"]:
        scores = np.append(self.log_probability, -math.inf)[words]
        scores[:, 0] = np.where(text.ids == 0, 0.0, np.where(words[:, 0] < 0, self.unknown, scores[:, 0]))
        return scores

    def _order(self, text: EncodedText) -> list[Int[np.ndarray, " runs"]]:
        """Positions of the first, second, ... characters of all runs between separators, as long as there are any."""
        inside = text.ids > 0
        begins, ends = np.flatnonzero(inside & ~np.append(False, inside[:-1])), _run_ends(text) + 1
        longest_first = np.argsort(begins - ends, kind="stable")
        begins, lengths = begins[longest_first], (ends - begins)[longest_first]
        return [begins[: np.searchsorted(-lengths, -t, side="left")] + t for t in range(int(lengths[0]) if len(lengths) else 0)]

    def _before(self, values: Float[np.ndarray, " boundaries"], at: Int[np.ndarray, " runs"]) -> Float[np.ndarray, "runs longest"]:
        return values[np.maximum(at[:, None] - np.arange(self.longest), 0)]

    def _forward(
        self, scores: Float[np.ndarray, "positions longest"], order: list[np.ndarray], size: int
    ) -> Float[np.ndarray, " boundaries"]:
        """Entry t: log of the sum over segmentations of its run up to before position t; 0 where a run begins."""
        alpha = np.zeros(size + 1)
        for at in order:
            alpha[at + 1] = np.logaddexp.reduce(self._before(alpha, at) + scores[at], axis=1)
        return alpha

    def _log_partition(self, forward: Float[np.ndarray, " boundaries"], text: EncodedText) -> float:
        return float(forward[_run_ends(text) + 1].sum())

    def _expected(
        self, text: EncodedText, words: np.ndarray, scores: np.ndarray, forward: Float[np.ndarray, " boundaries"], order: list[np.ndarray]
    ) -> Float[np.ndarray, " words"]:
        """Expected number of uses of each word: posterior probabilities of the arcs, passed back from the end of each run."""
        posterior = np.zeros(len(forward))  # probability that a word ends before this position
        posterior[_run_ends(text) + 1] = 1
        expected = np.zeros(len(self.words) + 1)
        for at in reversed(order):
            share = np.exp(self._before(forward, at) + scores[at] - forward[at + 1][:, None]) * posterior[at + 1][:, None]
            expected += np.bincount(words[at].ravel() + 1, share.ravel(), minlength=len(expected))
            for length in range(1, self.longest + 1):
                ending = share[:, length - 1] > 0
                posterior[at[ending] - length + 1] += share[ending, length - 1]
        return expected[1:]


def _run_ends(text: EncodedText) -> Int[np.ndarray, " runs"]:
    """Last positions of the runs between separators."""
    inside = text.ids > 0
    return np.flatnonzero(inside & ~np.append(inside[1:], False))
