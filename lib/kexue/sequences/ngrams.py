r"""Exact counts of all n-grams of a text, by sorting instead of hashing.

Give every character of the alphabet a number of b bits and pack the characters at positions :math:`t,\dots,t+n-1` into one integer. Sorting
these N integers sorts the suffixes of the text, truncated to n characters, so equal n-grams become neighbours, and so do equal m-grams
for every m < n, because they are prefixes. One sort therefore counts all orders at once: a count is the length of a run. Separators
have the number 0 and no n-gram contains one. Counts of parts add up as long as a part ends where a line ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Shaped, UInt

__all__ = ["WORD_CHARACTER", "EncodedText", "NGrams", "encode_text", "find_ngrams", "ngram_counts", "ngram_counts_dask", "occurrences"]

WORD_CHARACTER = r"[^\W_]"  # letters, ideographs and digits of every script

_KEY_BITS = 63
_CODE_POINTS = 0x110000
_BIT = np.array([1 << j for j in range(8)], dtype=np.uint8)


class EncodedText(NamedTuple):
    """Lines as one array: ``ids[t]`` is 0 at a separator or line end, otherwise ``alphabet[ids[t] - 1]`` is the character at t."""

    ids: Int[np.ndarray, " positions"]
    alphabet: str
    line_starts: Int[np.ndarray, " lines"]

    def windows(self, order: int) -> Int[np.ndarray, "positions order"]:
        """The n-gram that begins at each position; from the first separator in it on the numbers are 0."""
        _at_least_one("order", order)
        columns = [self.ids]
        for j in range(1, order):
            further = np.append(self.ids[j:], np.zeros(min(j, len(self.ids)), dtype=self.ids.dtype))
            columns.append(np.where(columns[-1] > 0, further, 0))
        return np.stack(columns, axis=1)


class NGrams:
    """The distinct n-grams of one order, sorted by code point.

    ``alphabet`` holds the characters and ``counts`` how often each n-gram occurs. ``keys`` sort like the n-grams: the numbers of the
    characters packed into one integer, or their bytes where 63 bits are too few.
    """

    def __init__(self, alphabet: str, order: int, keys: Shaped[np.ndarray, " grams"], counts: Int[np.ndarray, " grams"]) -> None:
        self.alphabet, self.order, self.keys, self.counts = alphabet, order, keys, counts

    @property
    def ids(self) -> Int[np.ndarray, "grams order"]:
        """The numbers, from 1, of the characters of each n-gram."""
        if self.keys.dtype.kind == "S":
            return self.keys.view(">i4").reshape(-1, self.order).astype(np.int32)
        bits, out = _bits(self.alphabet), np.empty((self.order, len(self.keys)), dtype=np.int32)
        for j in range(self.order):
            np.bitwise_and(self.keys >> (bits * (self.order - 1 - j)), (1 << bits) - 1, out=out[j], casting="unsafe")
        return out.T

    def strings(self) -> list[str]:
        """The n-grams as text, in the order of the arrays."""
        letters = np.array([ord(c) for c in self.alphabet], dtype=np.uint32)
        flat = letters[self.ids - 1].astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
        return [flat[i : i + self.order] for i in range(0, len(flat), self.order)]

    def select(self, mask: Bool[np.ndarray, " grams"]) -> NGrams:
        """The table of those n-grams for which ``mask`` holds."""
        return NGrams(self.alphabet, self.order, self.keys[mask], self.counts[mask])

    def to_dict(self) -> dict[str, int]:
        """The same as a dictionary from text to count."""
        return dict(zip(self.strings(), self.counts.tolist(), strict=True))


def encode_text(lines: Iterable[str], *, keep: str = WORD_CHARACTER) -> EncodedText:
    """Number the characters of ``lines`` by code point, from 1; every other character and every line end becomes a separator, 0.

    The array holds one position per character and one per line end, in order: position ``line_starts[i] + j`` is character j of line i.

    :param keep: regular expression that matches, one at a time, the characters of which words may consist.
    :raises ValueError: if a single string is passed instead of lines, or ``keep`` is no regular expression.

    >>> text = encode_text(["ab, b"])
    >>> text.ids.tolist(), text.alphabet
    ([1, 2, 0, 0, 2, 0], 'ab')
    """
    if isinstance(lines, str):
        raise ValueError("lines must be a sequence of strings, got one string; pass [text] or text.splitlines()")
    try:
        pattern = re.compile(keep)
    except re.error as error:
        raise ValueError(f"keep must be a regular expression, got {keep!r}: {error}") from error
    lines = list(lines)
    points = np.frombuffer("".join(f"{line}\n" for line in lines).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    present = np.zeros(_CODE_POINTS, dtype=bool)
    present[points] = True
    kept = [c for c in map(chr, np.flatnonzero(present).tolist()) if c != "\n" and pattern.fullmatch(c)]
    number = np.zeros(_CODE_POINTS, dtype=np.int32)
    number[[ord(c) for c in kept]] = np.arange(1, len(kept) + 1)
    lengths = np.array([len(line) + 1 for line in lines], dtype=np.int64)
    ids = number[points]
    starts = np.cumsum(lengths) - lengths
    ids[starts + lengths - 1] = 0  # also where a line of the input itself contains a line break
    return EncodedText(ids, "".join(kept), starts)


def ngram_counts(text: EncodedText, order: int, *, min_count: int = 1) -> list[NGrams]:
    """Count every n-gram of kept characters, for n = 1, ..., ``order``, exactly.

    Overlapping occurrences all count. Time: one sort of as many integers as there are positions, while ``order`` times the bits of the
    alphabet fit into 63 (four characters of up to 32767, twelve of up to 31); beyond that a sort by several keys.

    :param min_count: drop n-grams that are rarer; 1 keeps all.
    :raises ValueError: if ``order`` or ``min_count`` is below 1.
    """
    _at_least_one("order", order)
    _at_least_one("min_count", min_count)
    keys = _keys_at(text, order)
    count = _count_packed if keys.dtype.kind == "u" else _count_bytes
    return count(keys, order, text.alphabet, min_count)


def find_ngrams(table: NGrams, ids: Int[np.ndarray, "rows order"]) -> Int[np.ndarray, " rows"]:
    """Row of ``table`` that holds each n-gram, or -1 where there is none. The numbers are those of the table's alphabet.

    :raises ValueError: if ``ids`` has another order than the table.
    """
    if ids.shape[1] != table.order:
        raise ValueError(f"ids must have the {table.order} columns of the table, got {ids.shape[1]}")
    return _rows(table, _keys(ids, table.alphabet))


def occurrences(table: NGrams, text: EncodedText) -> Int[np.ndarray, " found"]:
    """Positions of ``text`` at which an n-gram of ``table`` begins, in order.

    :raises ValueError: if the table is of a text with another alphabet.
    """
    if table.alphabet != text.alphabet:
        raise ValueError("table must number the characters as text does, got another alphabet")
    keys, possible = _keys_at(text, table.order), 1 << table.order * _bits(table.alphabet)
    if possible > 64 * len(keys):
        return np.flatnonzero(_rows(table, keys) >= 0)
    flags = np.zeros(possible // 8 or 1, dtype=np.uint8)  # one bit for each possible key, no more than a row number for each position
    np.bitwise_or.at(flags, table.keys >> 3, _BIT[table.keys & 7])
    return np.flatnonzero(flags[keys >> 3] & _BIT[keys & 7])


def ngram_counts_dask(bag: Any, order: int, *, min_count: int = 1, keep: str = WORD_CHARACTER) -> list[NGrams]:
    """The same for a ``dask.bag.Bag`` of lines that need not fit into memory: parts are counted where they are and added in a tree.

    Equal to :func:`ngram_counts` on all lines, since a bag is cut between lines. ``min_count`` is applied at the end: an n-gram that is
    rare in each part may be frequent in the whole. What must fit into memory is the table of distinct n-grams.

    :raises ValueError, TypeError: if ``order`` or ``min_count`` is below 1, or ``bag`` is not a bag.
    """
    _at_least_one("order", order)
    _at_least_one("min_count", min_count)
    if not hasattr(bag, "reduction"):
        raise TypeError(f"bag must be a dask.bag.Bag of lines, got {type(bag).__name__}")

    def count(lines: Iterable[str]) -> list[NGrams]:
        return ngram_counts(encode_text(lines, keep=keep), order)

    tables = bag.reduction(count, _add, split_every=8).compute() or count([])  # dask passes over empty partitions
    return [table.select(table.counts >= min_count) for table in tables]


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _bits(alphabet: str) -> int:
    """Bits for the numbers of the characters and 0."""
    return max(len(alphabet).bit_length(), 1)


def _key_type(order: int, alphabet: str) -> type:
    return np.uint32 if order * _bits(alphabet) <= 32 else np.uint64


def _keys(ids: Int[np.ndarray, "rows order"], alphabet: str) -> Shaped[np.ndarray, " rows"]:
    """One key per row that sorts like the row: packed into an integer, or its big-endian bytes where 63 bits are too few."""
    order, bits = ids.shape[1], _bits(alphabet)
    if order * bits > _KEY_BITS:
        return np.ascontiguousarray(ids, dtype=">i4").view(f"S{4 * order}").ravel()
    keys = np.zeros(len(ids), dtype=_key_type(order, alphabet))
    for column in ids.T:
        keys <<= bits
        keys |= column.astype(keys.dtype)
    return keys


def _keys_at(text: EncodedText, order: int) -> Shaped[np.ndarray, " positions"]:
    """The key of the n-gram that begins at each position; its numbers are 0 from the first separator on."""
    if order * _bits(text.alphabet) > _KEY_BITS:
        return _keys(text.windows(order), text.alphabet)
    keys, whole = text.ids.astype(_key_type(order, text.alphabet)), text.ids > 0
    for j in range(1, order):
        further = text.ids[j:]
        whole = whole[: len(further)] & (further > 0)
        keys <<= _bits(text.alphabet)
        keys[: len(further)] |= (further * whole).astype(keys.dtype)
    return keys


def _rows(table: NGrams, wanted: Shaped[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    if not len(table.keys):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(table.keys, wanted), len(table.keys) - 1)
    return np.where(table.keys[at] == wanted, at, -1)


def _count_packed(keys: UInt[np.ndarray, " positions"], order: int, alphabet: str, min_count: int) -> list[NGrams]:
    """Tables of all prefixes of the packed n-grams. Where sorted neighbours differ, the first bit that does says from which order on."""
    keys.sort()
    bits, begins = _bits(alphabet), np.flatnonzero(_starts(keys))
    codes, differs = keys[begins], keys[begins] ^ keys[begins - 1]
    differs[:1] = np.iinfo(keys.dtype).max  # the first run has nothing before it
    tables = []
    for n in range(order, 0, -1):
        longer = bits * (order - n)  # bits of the characters after the n-th
        new = np.flatnonzero(differs >> longer)
        begins, codes, differs = begins[new], codes[new], differs[new]
        counts, prefixes = np.diff(begins, append=len(keys)), codes >> longer
        chosen = np.flatnonzero((prefixes & ((1 << bits) - 1) > 0) & (counts >= min_count))
        tables.append(NGrams(alphabet, n, prefixes[chosen].astype(_key_type(n, alphabet)), counts[chosen]))
    return tables[::-1]


def _count_bytes(keys: Shaped[np.ndarray, " positions"], order: int, alphabet: str, min_count: int) -> list[NGrams]:
    """The same for n-grams that are too long to be packed."""
    keys.sort()
    rows = keys.view(">i4").reshape(-1, order)
    new, tables = np.zeros(len(rows), dtype=bool), []
    for n in range(1, order + 1):
        last = rows[:, n - 1]
        new |= _starts(last)
        begins = np.flatnonzero(new)
        counts = np.diff(begins, append=len(rows))
        chosen = (last[begins] > 0) & (counts >= min_count)
        tables.append(NGrams(alphabet, n, _keys(rows[begins[chosen], :n], alphabet), counts[chosen]))
    return tables


def _starts(values: Shaped[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
    begins = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=begins[1:])
    return begins


def _add(parts: Iterable[list[NGrams]]) -> list[NGrams]:
    """Sum of tables with different alphabets: number the characters anew, put the tables below each other, and sort."""
    parts = list(parts)
    alphabet = "".join(sorted(set().union(*(part[0].alphabet for part in parts))))
    number = {c: i for i, c in enumerate(alphabet, 1)}
    total = []
    for n, tables in enumerate(zip(*parts, strict=True), 1):
        ids = [np.array([number[c] for c in table.alphabet], dtype=np.int32)[table.ids - 1] for table in tables]
        keys = np.concatenate([_keys(rows, alphabet) for rows in ids])
        counts = np.concatenate([table.counts for table in tables])
        order = np.argsort(keys, kind="stable")
        at = np.flatnonzero(_starts(keys[order]))
        total.append(NGrams(alphabet, n, keys[order[at]], np.add.reduceat(counts[order], at)))
    return total
