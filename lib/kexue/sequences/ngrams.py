r"""Exact counts of all n-grams of a text, by sorting instead of hashing.

Give every character of the alphabet a number of b bits and pack the characters at positions :math:`t,\dots,t+n-1` into one integer. Sorting
these N integers sorts the suffixes of the text, truncated to n characters, so equal n-grams become neighbours, and so do equal m-grams
for every m < n, because they are prefixes. One sort therefore counts all orders at once: a count is the length of a run. Separators
have the number 0 and no n-gram contains one. Counts of parts add up as long as a part ends where a line ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

__all__ = ["WORD_CHARACTER", "EncodedText", "NGrams", "encode_text", "find_ngrams", "ngram_counts", "ngram_counts_dask"]

WORD_CHARACTER = r"[^\W_]"  # letters, ideographs and digits of every script

_KEY_BITS = 63
_CODE_POINTS = 0x110000


class EncodedText(NamedTuple):
    """Lines as one array: ``ids[t]`` is 0 at a separator or line end, otherwise ``alphabet[ids[t] - 1]`` is the character at t."""

    ids: Int[np.ndarray, " positions"]
    alphabet: str
    line_starts: Int[np.ndarray, " lines"]

    def windows(self, order: int) -> Int[np.ndarray, "positions order"]:
        """The n-gram that begins at each position; from the first separator in it on the numbers are 0."""
        _at_least_one("order", order)
        return np.stack(_windows(self.ids, order), axis=1)


class NGrams:
    """The distinct n-grams of one order in the order of their code points.

    ``alphabet`` holds the characters, ``ids`` (n-grams by order) the numbers of each n-gram's characters from 1, and ``counts`` how often
    it occurs. Numbers may be given packed, (codes, order, bits each), and are unpacked when asked for.
    """

    def __init__(
        self, alphabet: str, ids: Int[np.ndarray, "grams order"] | None, counts: Int[np.ndarray, " grams"], *, packed: tuple | None = None
    ) -> None:
        self.alphabet, self.counts, self._ids, self._packed = alphabet, counts, ids, packed

    @property
    def ids(self) -> Int[np.ndarray, "grams order"]:
        if self._ids is None:
            codes, order, bits = self._packed
            out = np.empty((order, len(codes)), dtype=np.int32)
            for j in range(order):
                np.bitwise_and(codes >> (bits * (order - 1 - j)), (1 << bits) - 1, out=out[j], casting="unsafe")
            self._ids = out.T
        return self._ids

    def strings(self) -> list[str]:
        """The n-grams as text, in the order of the arrays."""
        letters = np.array([ord(c) for c in self.alphabet], dtype=np.uint32)
        flat = letters[self.ids - 1].astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
        order = self.ids.shape[1]
        return [flat[i : i + order] for i in range(0, len(flat), order)]

    def select(self, mask: Bool[np.ndarray, " grams"]) -> NGrams:
        """The table of those n-grams for which ``mask`` holds."""
        return NGrams(self.alphabet, self.ids[mask], self.counts[mask])

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
    return _runs(_windows(text.ids, order), None, text.alphabet, min_count)


def find_ngrams(table: NGrams, ids: Int[np.ndarray, "rows order"]) -> Int[np.ndarray, " rows"]:
    """Row of ``table`` that holds each n-gram, or -1 where there is none. The numbers are those of the table's alphabet.

    :raises ValueError: if ``ids`` has another order than the table.
    """
    order, bits = table.ids.shape[1], max(len(table.alphabet).bit_length(), 1)
    if ids.shape[1] != order:
        raise ValueError(f"ids must have the {order} columns of the table, got {ids.shape[1]}")
    known, wanted = (_sortable(array, order, bits) for array in (table.ids, ids))
    if not len(known):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[at] == wanted, at, -1)


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


def _sortable(ids: np.ndarray, order: int, bits: int) -> np.ndarray:
    """One key per row that sorts like the row: packed into an integer, or its big-endian bytes where 63 bits are too few."""
    if order * bits > _KEY_BITS:
        return np.ascontiguousarray(ids, dtype=">i4").view(f"S{4 * order}").ravel()
    return _packed(ids.T, bits)


def _packed(columns: Iterable[np.ndarray], bits: int) -> np.ndarray:
    keys = 0
    for column in columns:
        keys = (keys << bits) | column.astype(np.int64)
    return keys


def _windows(ids: Int[np.ndarray, " positions"], order: int) -> list[Int[np.ndarray, " positions"]]:
    """Column j holds the number of the character j places on, and 0 from the first separator on."""
    columns = [ids]
    for j in range(1, order):
        shifted = np.zeros_like(ids)
        shifted[: max(len(ids) - j, 0)] = ids[j:]
        shifted[columns[-1] == 0] = 0
        columns.append(shifted)
    return columns


def _runs(
    columns: Sequence[Int[np.ndarray, " rows"]], weights: Int[np.ndarray, " rows"] | None, alphabet: str, min_count: int
) -> list[NGrams]:
    """Tables of all prefixes of the rows: sort the rows, then measure (with weights: add up) runs of equal prefixes."""
    rows = len(columns[0])
    order, bits = len(columns), max(len(alphabet).bit_length(), 1)
    if order * bits <= _KEY_BITS:
        keys = _packed(columns, bits)
        if weights is not None:
            permutation = np.argsort(keys, kind="stable")
            keys, weights = keys[permutation], weights[permutation]
        else:
            keys.sort()
        mask = (1 << bits) - 1

        def level(n: int) -> tuple[Bool[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
            prefix = keys >> (bits * (order - n))
            return _starts(prefix), (prefix & mask) > 0

        def gather(n: int, at: Int[np.ndarray, " grams"], counts: Int[np.ndarray, " grams"]) -> NGrams:
            return NGrams(alphabet, None, counts, packed=(keys[at] >> (bits * (order - n)), n, bits))

    else:
        permutation = np.lexsort(columns[::-1])
        matrix = np.stack([column[permutation] for column in columns])
        weights = weights if weights is None else weights[permutation]
        fresh = np.logical_or.accumulate(np.stack([_starts(column) for column in matrix]))

        def level(n: int) -> tuple[Bool[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
            return fresh[n - 1], matrix[n - 1] > 0

        def gather(n: int, at: Int[np.ndarray, " grams"], counts: Int[np.ndarray, " grams"]) -> NGrams:
            return NGrams(alphabet, matrix[:n, at].T.astype(np.int32), counts)

    sums = None if weights is None else np.concatenate([[0], np.cumsum(weights)])
    tables = []
    for n in range(1, order + 1):
        begins, valid = level(n)
        at = np.flatnonzero(begins)
        ends = np.append(at, rows)
        counts = np.diff(ends if sums is None else sums[ends])
        chosen = valid[at] & (counts >= min_count)
        tables.append(gather(n, at[chosen], counts[chosen]))
    return tables


def _starts(values: Int[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
    begins = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=begins[1:])
    return begins


def _add(parts: Iterable[list[NGrams]]) -> list[NGrams]:
    """Sum of tables with different alphabets: number the characters anew, put the tables below each other, and sort."""
    parts = list(parts)
    alphabet = "".join(sorted(set().union(*(part[0].alphabet for part in parts))))
    number = {c: i for i, c in enumerate(alphabet, 1)}
    total = []
    for tables in zip(*parts, strict=True):
        stacked = np.concatenate([np.array([number[c] for c in table.alphabet], dtype=np.int32)[table.ids - 1] for table in tables])
        weights = np.concatenate([table.counts for table in tables])
        total.append(_runs(list(stacked.T), weights, alphabet, 1)[-1])
    return total
