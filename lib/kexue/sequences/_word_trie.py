r"""All words of a list that begin at each position of a text, found by walking down a trie from all positions together.

A node of the trie is a prefix. On each level the nodes are numbered in the order of one sorted array of keys, (number of the parent,
character), so that a step down from many positions is one binary search for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from kexue.sequences.ngrams import EncodedText, encode_text

__all__ = ["WordTrie", "words_inside_words"]

_BREAK = ord("\n")
_POINT_BITS = 21  # of a code point


class WordTrie:
    """A trie of distinct words, none of which is empty. A word with a line break is never found."""

    def __init__(self, words: Sequence[str]) -> None:
        text = encode_text(words, keep=r"(?s:.)")
        lengths = np.array([len(word) for word in words], dtype=np.int64)
        self.alphabet, self.longest = text.alphabet, int(lengths.max(initial=0))
        self._levels: list[tuple[np.ndarray, np.ndarray]] = []
        node, longer = np.zeros(len(words), dtype=np.int64), np.arange(len(words))
        for depth in range(self.longest):
            longer = longer[lengths[longer] > depth]
            keys, node[longer] = np.unique(self._keys(node[longer], text.ids[text.line_starts[longer] + depth]), return_inverse=True)
            complete, word_of = longer[lengths[longer] == depth + 1], np.full(len(keys), -1)
            word_of[node[complete]] = complete
            self._levels.append((keys, word_of))

    def find(self, text: EncodedText) -> Iterator[tuple[Int[np.ndarray, " found"], Int[np.ndarray, " found"]]]:
        """For each length from 1 to that of the longest word: positions, in order, where such words begin, and their indices."""
        number = {c: i for i, c in enumerate(self.alphabet, 1)}
        ids = np.array([0, *(number.get(c, 0) for c in text.alphabet)])[text.ids]
        at = np.flatnonzero(ids)
        node = np.zeros(len(at), dtype=np.int64)
        for depth, (keys, word_of) in enumerate(self._levels):
            inside = np.searchsorted(at, len(ids) - depth)
            at, character = at[:inside], ids[at[:inside] + depth]
            wanted = self._keys(node[:inside], character)
            below = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            alive = np.flatnonzero((keys[below] == wanted) & (character > 0))
            at, node = at[alive], below[alive]
            complete = np.flatnonzero(word_of[node] >= 0)
            yield at[complete], word_of[node[complete]]

    def _keys(self, node: Int[np.ndarray, " prefixes"], character: Int[np.ndarray, " prefixes"]) -> Int[np.ndarray, " prefixes"]:
        return node * (len(self.alphabet) + 1) + character


def words_inside_words(words: Sequence[str]) -> Int[np.ndarray, "2 found"]:
    """Where words of a list begin inside longer words of it, and which: positions in the text of all words, each followed by a line break.

    The trie is never stored. From every position of the text, the characters after it lead to a node; where no word begins at any of the
    positions that share a node, they stop. There must be at least one word; all must be distinct, not empty and without line breaks.
    """
    points = np.frombuffer("\n".join([*words, ""]).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    breaks = np.flatnonzero(points == _BREAK)
    starts = np.append(0, breaks[:-1] + 1)
    sizes, index = np.zeros((2, len(points)), dtype=np.int32)
    sizes[starts], index[starts] = breaks - starts, np.arange(len(words))  # size 0 where no word begins
    at = np.flatnonzero(points != _BREAK).astype(np.int32)
    node, found = np.zeros(len(at), dtype=np.int64), []
    for size in range(1, sizes.max() + 1):
        nodes, node = np.unique(node << _POINT_BITS | points[at + size - 1], return_inverse=True)
        whole, word_of = sizes[at] == size, np.full(len(nodes), -1, dtype=np.int32)
        word_of[node[whole]] = index[at[whole]]
        inside = ~whole & (word_of[node] >= 0)
        found.append(np.stack([at[inside], word_of[node[inside]]]))
        leads_on = np.zeros(len(nodes), dtype=bool)
        leads_on[node[sizes[at] > size]] = True
        on = leads_on[node] & (points[at + size] != _BREAK)
        at, node = at[on], node[on]
    return np.concatenate(found, axis=1)
