r"""Two ways to find words by mutual information: joining strongly bound characters, and the vocabulary of the package nlp-zero.

Both cut a text where neighbours are weakly bound and count what lies between the cuts. They differ in what binds: pairs with a mutual
information above a threshold, or n-grams all of whose splits are above one that grows with n; and in what they do with long pieces.
"""

from __future__ import annotations

import itertools
import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool

from kexue.sequences._word_trie import words_inside_words
from kexue.sequences.ngrams import WORD_CHARACTER, EncodedText, NGrams, encode_text, find_ngrams, ngram_counts, occurrences
from kexue.sequences.word_spans import cut

__all__ = ["discover_words", "pruned_vocabulary", "segment_by_cohesion"]

_ABSENT = -100.0  # the original's logarithm of zero
_LATIN = frozenset(string.ascii_letters + string.digits)
_SLACK = 1e-6  # nats, more than the rounding errors of some hundred sums of logarithms
_BLOCK = 1 << 16  # pieces that are strings at the same time


def discover_words(
    lines: Iterable[str],
    *,
    order: int = 4,
    min_count: int = 16,
    min_pmi: Sequence[float | int] = (0, 2, 4, 6),
    keep: str = WORD_CHARACTER,
) -> dict[str, int]:
    r"""Candidate words of a text with their counts: pieces between weak gaps that consist of strong n-grams only.

    An n-gram is strong if it occurs ``min_count`` times and its weakest split into two has a mutual information of at least
    ``min_pmi[n - 1]``. The text is cut wherever no strong n-gram covers the gap. A piece is a word if it occurs ``min_count`` times and all
    its substrings of 2 to ``order`` characters are strong. In descending order of count, ties by code point.

    :raises ValueError: if ``order`` or ``min_count`` is below 1 or ``min_pmi`` does not have ``order`` entries.

    Source: kexue.fm/archives/6920 and the algorithm of kexue.fm/archives/4256.
    """
    text = encode_text(lines, keep=keep)
    strong = _strong(text, order, min_count, min_pmi)
    known = set().union(*(table.strings() for table in strong))
    pieces = _count_pieces(text, _begins(text, strong))
    words = {}
    for piece, count in sorted(pieces.items(), key=lambda item: (-item[1], item[0])):
        windows = (piece[i : i + n] for n in range(2, min(order, len(piece)) + 1) for i in range(len(piece) - n + 1))
        if count >= min_count and all(window in known for window in windows):
            words[piece] = count
    return words


def segment_by_cohesion(
    lines: Sequence[str],
    *,
    order: int = 4,
    min_count: int = 16,
    min_pmi: Sequence[float | int] = (0, 2, 4, 6),
    keep: str = WORD_CHARACTER,
) -> list[list[str]]:
    """Cut every line where no strong n-gram covers the gap; parameters as in :func:`discover_words`.

    Every line is the concatenation of its pieces; a separator is a piece of its own. Raises as :func:`discover_words`.
    """
    lines = list(lines)
    text = encode_text(lines, keep=keep)
    return cut(lines, _begins(text, _strong(text, order, min_count, min_pmi)))


def pruned_vocabulary(
    lines: Iterable[str], *, min_proba: float | int = 1e-7, min_pmi: float | int = 1, keep: str = r"[\u4e00-\u9fa50-9a-zA-Z]"
) -> dict[str, int]:
    r"""Vocabulary by the rule of the package nlp-zero: coarse pieces, then every word that its parts explain is dissolved into them.

    Neighbours stay together if the pair has a frequency above ``min_proba`` and a mutual information above ``min_pmi``. Of the pieces
    between the cuts those with a frequency above ``min_proba`` remain. Then, from the longest to the shortest word w: split w at its most
    probable place into other words; if :math:`\log p(w)-\sum_i\log p(w_i)<|w|-1`, remove w and give its count to the parts. As in the
    original, runs of ASCII letters and digits are never split, and one that is longer than :math:`101+\log n_w` is dropped.

    :raises ValueError: if ``min_proba`` is outside [0, 1).

    Source: kexue.fm/archives/5597; written from the description of the algorithm and equal to nlp-zero 0.1.6 with its pruning of the pair
    table switched off, which empties that table.
    """
    if not 0 <= min_proba < 1:
        raise ValueError(f"min_proba must be in [0, 1), got {min_proba}")
    return _dissolve(_frequent_pieces(encode_text(lines, keep=keep), min_proba, min_pmi))


def _frequent_pieces(text: EncodedText, floor: float | int, min_pmi: float | int) -> dict[str, int]:
    if not text.alphabet:
        return {}
    chars, pairs = ngram_counts(text, 2)
    n = np.zeros(len(text.alphabet) + 1)
    n[chars.ids[:, 0]] = chars.counts
    share = pairs.counts / max(pairs.counts.sum(), 1)
    left, right = (n[pairs.ids[:, j]] / n.sum() for j in (0, 1))
    tied = (share > floor) & (np.log(share) - np.log(left) - np.log(right) > min_pmi)
    pieces = _count_pieces(text, _begins(text, [pairs.select(tied)]))
    total = pieces.total()
    return {w: c for w, c in pieces.items() if c / total > floor}


def _dissolve(words: dict[str, int]) -> dict[str, int]:
    logs = {word: math.log(count) for word, count in words.items()}
    total = sum(words.values())
    log_total = math.log(max(total, 1))
    for word in sorted(_perhaps_explained(words), key=len, reverse=True):
        log_count = logs.pop(word)
        parts = _ascii_runs_joined(_best_split(word, logs, log_total))
        gain = log_count - log_total - sum(logs.get(part, _ABSENT) - log_total for part in parts)
        logs[word] = log_count
        if gain < len(word) - 1:
            count = words[word]
            for part in parts:
                words[part] = words.get(part, 0) + count
                logs[part] = math.log(words[part])
            del words[word]
            total += count * (len(parts) - 1)
            log_total = math.log(total)
    return words


def _perhaps_explained(words: dict[str, int]) -> list[str]:
    r"""The words that :func:`_dissolve` may have to dissolve; it would keep all others, whatever happens before their turn.

    The difference is :math:`\log n_w-\sum_{i=1}^k\log n_{w_i}+(k-1)\log N`. While longer words are dissolved, :math:`n_w` and N can only
    grow, and the count of a part to at most what it is now plus its occurrences inside the words that may be dissolved. So the most
    probable split by these counts bounds the difference from below. A word that the bound keeps adds to no count: the bound is computed
    three times, each time of fewer words. If a part is no word, the difference is at least 100.
    """
    if not words:
        return []
    counts, sizes = np.array(list(words.values()), dtype=np.float64), np.array([len(word) for word in words])
    starts = np.cumsum(sizes + 1) - (sizes + 1)
    found = words_inside_words(list(words))
    offsets = found[0] - np.repeat(starts, sizes + 1)[found[0]]
    begins, parts = found = found[:, np.argsort(offsets, kind="stable")]
    steps = np.split(found, np.cumsum(np.bincount(offsets))[:-1], axis=1)
    log_total, longer = math.log(counts.sum()), sizes > 1
    perhaps = longer
    for _ in range(3):
        most = counts + np.bincount(parts, np.repeat(counts * perhaps, sizes + 1)[begins], minlength=len(words))
        weights, best = np.log(most) - log_total, np.full(starts[-1] + sizes[-1] + 1, -math.inf)
        best[starts] = 0
        for begin, part in steps:
            np.maximum.at(best, begin + sizes[part], best[begin] + weights[part])
        gains = np.log(counts) - log_total - best[starts + sizes]
        perhaps = longer & (np.minimum(gains, -_ABSENT) < sizes - 1 + _SLACK)
    return list(itertools.compress(words, perhaps))


def _best_split(word: str, logs: dict[str, float], log_total: float) -> list[str]:
    """Most probable segmentation; a single character outside the vocabulary costs 100 nats."""
    size = len(word)
    best, back = [1.0] + [-math.inf] * size, [0] * (size + 1)  # from 1 and in this order, as the original: ties hang on the last bit
    for end in range(1, size + 1):
        for start in range(end):
            log_count = logs.get(word[start:end])
            if log_count is not None:
                score = best[start] + (log_count - log_total)
            elif end - start == 1:
                score = best[start] + _ABSENT
            else:
                continue
            if score > best[end]:
                best[end], back[end] = score, start
    pieces = []
    while size:
        pieces.append(word[back[size] : size])
        size = back[size]
    return pieces[::-1]


def _ascii_runs_joined(pieces: list[str]) -> list[str]:
    joined: list[str] = []
    for piece in pieces:
        if joined and joined[-1][-1] in _LATIN and re.fullmatch(r"[a-zA-Z\d.]+", piece):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def _strong(text: EncodedText, order: int, min_count: int, min_pmi: Sequence[float | int]) -> list[NGrams]:
    """The strong n-grams of 2 to ``order`` characters."""
    if len(min_pmi) != order:
        raise ValueError(f"min_pmi must have one entry for each order up to {order}, got {len(min_pmi)}")
    tables = ngram_counts(text, order, min_count=min_count)
    total = (text.ids > 0).sum()
    strong = []
    for n in range(2, order + 1):
        table = tables[n - 1]
        weakest = np.full(len(table.counts), math.inf)
        for split in range(1, n):
            parts = (
                tables[k - 1].counts[find_ngrams(tables[k - 1], ids)]
                for k, ids in ((split, table.ids[:, :split]), (n - split, table.ids[:, split:]))
            )
            weakest = np.minimum(weakest, np.log(table.counts) + math.log(max(total, 1)) - sum(np.log(part) for part in parts))
        strong.append(table.select(weakest >= min_pmi[n - 1]))
    return strong


def _begins(text: EncodedText, strong: Sequence[NGrams]) -> Bool[np.ndarray, " positions"]:
    """Where a piece begins: every separator is one, and a gap between characters is a cut if no strong n-gram covers it."""
    begins = np.ones(len(text.ids), dtype=bool)
    for table in strong:
        found = occurrences(table, text)
        for j in range(1, table.order):
            begins[found + j] = False
    return begins


def _count_pieces(text: EncodedText, begins: Bool[np.ndarray, " positions"]) -> Counter[str]:
    """How often each piece between separators occurs, in the order of its first occurrence."""
    letters = np.array([ord("\n"), *map(ord, text.alphabet)], dtype="<u4")
    counts: Counter[str] = Counter()
    for first, last in itertools.pairwise([*np.flatnonzero(begins)[::_BLOCK].tolist(), len(begins)]):
        spaced = np.insert(letters[text.ids[first:last]], np.flatnonzero(begins[first:last]), ord("\n"))
        counts.update(spaced.tobytes().decode("utf-32-le", "surrogatepass").split("\n"))
    del counts[""]
    return counts
