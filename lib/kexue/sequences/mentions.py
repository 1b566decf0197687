r"""Names in a tagged corpus: persons, places and organizations as spans of characters, and the score of finding them.

A **mention** is a run of characters that names something of one of a few kinds. It is coded by tags: O outside, B-kind at its first
and I-kind at its later characters. The newspaper corpus marks persons (``nr``), places (``ns``) and organizations (``nt``) word by
word, with family and given name as two words; here such a pair is one mention. Unlike the tags of a segmentation, most pairs of
these tags may follow each other; only I must continue a mention of its own kind. Where a tagger breaks that rule, an I that continues
nothing begins a mention.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from kexue.sequences.segmentation import _clause_of, clauses

__all__ = ["KINDS", "MarkedClause", "held_out_mentions", "marked_clauses", "mention_counts", "mention_tags"]

KINDS = ("nr", "ns", "nt")  # persons, places, organizations, as the corpus names them
_PERSON = "nr"
_FAMILY, _GIVEN = 1, 2  # characters of a family name, and at most of a given name


class MarkedClause(NamedTuple):
    """The words of a clause, family and given name joined, and what each of them names: one of ``KINDS`` or the empty string."""

    words: tuple[str, ...]
    kinds: tuple[str, ...]


def marked_clauses(words: Sequence[str], tags: Sequence[str]) -> list[MarkedClause]:
    """Return one paragraph, given by its words and their part-of-speech tags, clause by clause with its mentions marked.

    A person's word of one character takes the person's word after it along if that has one or two: family name and given name.
    Raises ValueError if words and tags are not equally many.
    """
    if len(words) != len(tags):
        raise ValueError(f"tags must be one a word, got {len(tags)} tags for {len(words)} words")
    joined, kinds, family = [], [], False
    for word, tag in zip(words, tags, strict=True):
        if family and tag == _PERSON and len(word) <= _GIVEN:
            joined[-1] += word
            family = False
            continue
        joined.append(word)
        kinds.append(tag if tag in KINDS else "")
        family = tag == _PERSON and len(word) == _FAMILY
    found, start = [], 0
    for part in clauses([joined]):
        found.append(MarkedClause(part, tuple(kinds[start : start + len(part)])))
        start += len(part)
    return found


def held_out_mentions(
    lines: Sequence[tuple[Sequence[str], Sequence[str]]], *, train: float = 0.8, test: float = 0.1
) -> tuple[list[MarkedClause], list[MarkedClause]]:
    """Return marked clauses for training and testing; ``lines`` are pairs (words, tags), split as in
    :func:`~kexue.sequences.segmentation.held_out_clauses`, with the same clauses dropped and the same errors."""
    if min(train, test) <= 0 or train + test > 1:
        raise ValueError(f"train and test must be positive and at most 1 together, got {train} and {test}")
    first, last = round(train * len(lines)), round((1 - test) * len(lines))
    seen, fresh = ([clause for line in part for clause in marked_clauses(*line)] for part in (lines[:first], lines[last:]))
    known = {"".join(clause.words) for clause in seen}
    return seen, [clause for clause in fresh if "".join(clause.words) not in known]


def mention_tags(clause: MarkedClause) -> Int64[Tensor, " characters"]:
    """Return the tags of a clause's characters: O is 0, B and I of the first kind 1 and 2, of the second 3 and 4, and so on.

    This is the order of :func:`~kexue.sequences.crf_layer.tag_constraints` for ``"BIO"`` and ``KINDS``.
    """
    coded: list[int] = []
    for word, kind in zip(clause.words, clause.kinds, strict=True):
        begin = 1 + 2 * KINDS.index(kind) if kind else 0
        coded += [begin] + [begin + 1 if kind else 0] * (len(word) - 1)
    return torch.tensor(coded, dtype=torch.int64)


def mention_counts(
    predicted: Int64[Tensor, " characters"], gold: Int64[Tensor, " gold_characters"], lengths: Int64[Tensor, " clauses"]
) -> Int64[Tensor, "clauses 3"]:
    """Return, for each clause, how many mentions are correct, predicted and in the gold tags; correct means same characters and kind.

    ``predicted`` and ``gold`` are tags of all clauses one after another, as :func:`mention_tags` codes them, ``lengths`` the clauses'
    numbers of characters. The result goes to :func:`~kexue.sequences.segmentation.span_scores`. Raises ValueError if they do not fit.
    """
    if predicted.shape != gold.shape or int(lengths.sum()) != len(gold):
        raise ValueError(
            f"predicted and gold must have one tag for each of the {int(lengths.sum())} characters, got {len(predicted)} and {len(gold)}"
        )
    guess, truth = _mentions(predicted, lengths), _mentions(gold, lengths)
    kinds = 1 + int(torch.maximum(predicted.max(), gold.max()))
    found, wanted = ((begin * len(gold) + stop) * kinds + kind for begin, stop, kind in (guess.unbind(1), truth.unbind(1)))
    correct = truth[torch.isin(wanted, found)]
    clause = _clause_of(lengths)
    return torch.stack([torch.bincount(clause[spans[:, 0]], minlength=len(lengths)) for spans in (correct, guess, truth)], 1)


def _mentions(tags: Tensor, lengths: Tensor) -> Int64[Tensor, "mentions 3"]:
    """First character, last character and kind of every mention."""
    if int(tags.min()) < 0:
        raise ValueError(f"tags must be at least 0, got {int(tags.min())}")
    kind, later = (tags + 1) // 2, (tags > 0) & (tags % 2 == 0)
    first = torch.zeros_like(tags, dtype=torch.bool)
    first[lengths.cumsum(0) - lengths] = True
    continues = later & ~first & (torch.roll(kind, 1) == kind)
    begin = torch.nonzero((tags > 0) & ~continues).flatten()
    stop = torch.nonzero((tags > 0) & ~torch.roll(continues, -1)).flatten()
    return torch.stack([begin, stop, kind[begin]], 1)
