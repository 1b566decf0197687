r"""Greedy merging of neighbouring tokens, one exact best merge after the other.

One merge per step, with a priority queue and a linked list of tokens: a merge touches its own places and the pairs that contain a or b.
The queue may hold old values as long as they are upper bounds. They are: while the counts of a pair and of its parts stay, only N changes,
N falls, and the saving rises with N. So a value is recomputed when it reaches the top and goes back unless it still is the best.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from kexue.sequences.entropy_words import code_length
from kexue.sequences.ngrams import EncodedText

__all__ = ["NEVER", "Growth", "Merge"]

NEVER = np.iinfo(np.int32).max
_DIGITS = 9  # decimals of a saving in nats that decide: equal savings, computed in different ways, differ in the last bits


class Merge(NamedTuple):
    """One step: the parts, at how many places they were joined, nats saved, and tokens and code length afterwards."""

    left: str
    right: str
    count: int
    gain: float
    tokens: int
    code_length: float


class Growth:
    """The state while merging: a linked list of tokens, the places of each pair, and the queue."""

    def __init__(self, text: EncodedText, criterion: str, min_count: int, max_length: int) -> None:
        self.criterion, self.min_count, self.max_length = criterion, min_count, max_length
        self.history: list[Merge] = []
        self.joined_by = np.full(len(text.ids), NEVER, dtype=np.int32)  # the merge that closed the gap before each position
        self.names = ["", *text.alphabet]
        self.made: set[str] = set()
        self.token = [0, *text.ids.tolist(), 0]  # a separator on both sides, so that every token has neighbours
        self.next = list(range(1, len(self.token) + 1))
        self.previous = list(range(-1, len(self.token) - 1))
        self.counts = np.bincount(text.ids, minlength=len(self.names)).tolist()
        self.total = sum(self.counts[1:])
        self.length = code_length(self.counts[1:])
        self.places: dict[tuple[int, int], set[int]] = {}
        self.pairs_of: defaultdict[int, set[tuple[int, int]]] = defaultdict(set)
        self.queue: list[tuple[float, str, str, tuple[int, int]]] = []
        self.value: dict[tuple[int, int], float] = {}
        self._collect(text.ids)

    def _collect(self, ids: Int[np.ndarray, " positions"]) -> None:
        """Places of all pairs that are frequent enough: group positions by sorting."""
        at = np.flatnonzero((ids[1:] > 0) & (ids[:-1] > 0))
        keys = ids[at].astype(np.int64) * len(self.names) + ids[at + 1]
        order = np.argsort(keys, kind="stable")
        groups = np.split(at[order] + 1, np.flatnonzero(np.diff(keys[order])) + 1)
        for group in groups:
            if len(group) >= self.min_count:
                p = int(group[0])
                self._admit((self.token[p], self.token[p + 1]), set(group.tolist()))

    def _admit(self, pair: tuple[int, int], places: set[int]) -> None:
        a, b = pair
        if len(self.names[a]) + len(self.names[b]) > self.max_length:
            return
        self.places[pair] = places
        self.pairs_of[a].add(pair)
        self.pairs_of[b].add(pair)
        self._push(pair)

    def _drop(self, pair: tuple[int, int]) -> None:
        del self.places[pair]
        self.value.pop(pair, None)
        for token in pair:
            self.pairs_of[token].discard(pair)

    def _joint(self, pair: tuple[int, int]) -> int:
        """Places that do not overlap; only in a run of equal tokens can they."""
        if pair[0] != pair[1]:
            return len(self.places[pair])
        count, taken = 0, -1
        for p in sorted(self.places[pair]):
            if p != taken:
                count, taken = count + 1, self.next[p]
        return count

    def gain(self, pair: tuple[int, int], m: int) -> float:
        """Exact saving; the scalar twin of :func:`merge_gain`."""
        na, nb, total = self.counts[pair[0]], self.counts[pair[1]], self.total
        information = math.log(m) - math.log(na) + (math.log(total) - math.log(nb))
        if pair[0] == pair[1]:
            return m * information - _psi(total, m) + _psi(na, 2 * m)
        return m * information - _psi(total, m) + (_psi(na, m) + _psi(nb, m))

    def _evaluate(self, pair: tuple[int, int]) -> float | None:
        m = self._joint(pair)
        if m < self.min_count or self.names[pair[0]] + self.names[pair[1]] in self.made:
            return None
        if self.criterion == "frequency":
            return float(m)
        if self.criterion == "pmi":
            return m / (self.counts[pair[0]] * self.counts[pair[1]])
        gain = round(self.gain(pair, m), _DIGITS)
        return gain if gain > 0 else None

    def _push(self, pair: tuple[int, int]) -> None:
        value = self._evaluate(pair)
        if value is None:
            self.value.pop(pair, None)
            if len(self.places[pair]) < self.min_count:
                self._drop(pair)
        elif self.value.get(pair) != value:
            self.value[pair] = value
            heapq.heappush(self.queue, (-value, self.names[pair[0]], self.names[pair[1]], pair))

    def run(self, merges: int) -> None:
        while self.queue and len(self.history) < merges:
            value, *_, pair = heapq.heappop(self.queue)
            if self.value.get(pair) != -value:
                continue  # a newer entry for this pair exists, or the pair is gone
            if self._evaluate(pair) == -value:
                self._merge(pair)
            else:
                self._push(pair)

    def _merge(self, pair: tuple[int, int]) -> None:
        (a, b), token, after, before = pair, self.token, self.next, self.previous
        m, made, step = self._joint(pair), len(self.names), len(self.history)
        gain = self.gain(pair, m)
        self.names.append(self.names[a] + self.names[b])
        self.made.add(self.names[made])
        self.counts.append(m)
        created: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
        for p in sorted(self.places[pair]):
            q = after[p]
            if token[p] != a or token[q] != b:
                continue  # consumed by the place before it, in a run of equal tokens
            left, right = before[p], after[q]
            for old, place in (((token[left], a), left), ((b, token[right]), q)):
                if old in self.places and old != pair:
                    self.places[old].discard(place)
                created[old].discard(place)
            token[p], token[q] = made, -1
            after[p], before[right] = right, p
            self.joined_by[q - 1] = step
            if token[left]:
                created[token[left], made].add(left)
            if token[right]:
                created[made, token[right]].add(p)
        self.counts[a] -= m
        self.counts[b] -= m
        self.total -= m
        self.length -= gain
        self.history.append(Merge(self.names[a], self.names[b], m, gain, self.total, self.length))
        self._drop(pair)
        for touched in list(self.pairs_of[a] | self.pairs_of[b]):
            self._push(touched)
        for new, places in created.items():
            if len(places) >= self.min_count:
                self._admit(new, places)


def _psi(n: int, m: int) -> float:
    return (n - m) * math.log1p(-m / n) if m < n else 0.0
