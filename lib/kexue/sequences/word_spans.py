"""Segmentations as marks on the positions of an encoded text, and how well one finds the words of another.

A segmentation of lines is kept as a Boolean array over the positions of :class:`~kexue.sequences.ngrams.EncodedText`: true where a word
begins. A word counts as found if both its ends are cuts of the other segmentation and no cut lies between. Pieces that contain a
separator - punctuation - are not counted: every method finds them, and they would lift all scores.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from kexue.sequences.ngrams import WORD_CHARACTER, EncodedText, encode_text
from kexue.sequences.segmentation import SpanScores, span_scores

__all__ = ["cut", "segmentation_f1", "word_starts", "words_found"]


def word_starts(segmented: Sequence[Sequence[str]]) -> Bool[np.ndarray, " positions"]:
    """Mark the positions at which the words of lines begin; the position after each line, its end, is marked too.

    Raises ValueError for an empty word.
    """
    lengths: list[int] = []
    for words in segmented:
        lengths.extend(len(word) for word in words)
        if words and min(map(len, words)) == 0:
            raise ValueError(f"a word of segmented is empty: {list(words)!r}")
        lengths.append(1)
    sizes = np.array(lengths, dtype=np.int64)
    starts = np.zeros(int(sizes.sum()), dtype=bool)
    starts[np.cumsum(sizes) - sizes] = True
    return starts


def cut(lines: Sequence[str], starts: Bool[np.ndarray, " positions"]) -> list[list[str]]:
    """Cut lines into words at the marked positions: the inverse of :func:`word_starts`. A line's first character needs no mark.

    Raises ValueError unless there is one mark for each character and line end.
    """
    if len(starts) != sum(map(len, lines)) + len(lines):
        raise ValueError(f"starts must mark {sum(map(len, lines)) + len(lines)} characters and line ends, got {len(starts)}")
    segmented, base = [], 0
    for line in lines:
        inner = np.flatnonzero(starts[base + 1 : base + len(line)]) + 1
        bounds = [0, *inner.tolist(), len(line)] if line else [0]
        segmented.append([line[a:b] for a, b in itertools.pairwise(bounds)])
        base += len(line) + 1
    return segmented


def words_found(text: EncodedText, predicted: Bool[np.ndarray, " positions"], gold: Bool[np.ndarray, " marks"]) -> Int64[Tensor, "lines 3"]:
    """For each line of ``text``: how many words are correct, how many predicted, and how many are in the gold segmentation.

    The table is what :func:`~kexue.sequences.segmentation.span_scores` and :func:`~kexue.sequences.segmentation.bootstrap_f1` take.
    Raises ValueError unless both have one mark for each position of ``text``.
    """
    if not len(predicted) == len(gold) == len(text.ids):
        raise ValueError(f"predicted and gold must mark the {len(text.ids)} positions of text, got {len(predicted)} and {len(gold)}")
    guess, truth = (_words(text, starts) for starts in (predicted, gold))
    size = len(text.ids) + 1
    correct = np.intersect1d(guess[0] * size + guess[1], truth[0] * size + truth[1], assume_unique=True) // size
    lines = len(text.line_starts)
    line_of = [np.searchsorted(text.line_starts, begins, side="right") - 1 for begins in (correct, guess[0], truth[0])]
    return torch.from_numpy(np.stack([np.bincount(line, minlength=lines) for line in line_of], axis=1).astype(np.int64))


def segmentation_f1(predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]], *, keep: str = WORD_CHARACTER) -> SpanScores:
    """Precision, recall and F1 of segmented lines against a gold segmentation of the same lines, over words without separators.

    :param keep: regular expression of the characters of words; a piece that contains another character is not counted.
    :raises ValueError: if the two are not segmentations of the same text.
    """
    lines = ["".join(words) for words in gold]
    if lines != ["".join(words) for words in predicted]:
        raise ValueError("predicted and gold must be segmentations of the same lines, got different text")
    return span_scores(words_found(encode_text(lines, keep=keep), word_starts(predicted), word_starts(gold)))


def _words(text: EncodedText, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First positions and ends of the pieces without a separator."""
    begins = starts.copy()
    begins[text.line_starts] = True
    line_ends = np.append(text.line_starts[1:], len(text.ids)) - 1
    begins[line_ends[line_ends >= 0]] = True
    first = np.flatnonzero(begins)
    ends = np.append(first[1:], len(starts))
    separators = np.concatenate([[0], np.cumsum(text.ids == 0)])
    pure = separators[ends] == separators[first]
    return first[pure], ends[pure]
