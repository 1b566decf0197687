r"""Word segmentation as tagging: clauses, the four tags S B M E, and the score of a segmentation.

Chinese text is written without blanks. A segmentation of a clause of :math:`n` characters is a set of cuts, and it is coded by one tag per
character: S for a word of one character, B M ... M E for the first, inner and last characters of a longer one. Only some sequences
of tags are codes: after B or M comes M or E, after S or E comes S or B, the first is S or B and the last S or E. For every other
sequence the cuts are still defined - there is a cut where the left tag ends a word *or* the right tag begins one - so that every tagger
can be scored.

A predicted word counts as correct if the same characters form a word of the gold segmentation; precision, recall and their harmonic mean
F1 are taken over all clauses together. Counts are kept by clause, because the clause is what a bootstrap draws.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

__all__ = [
    "SBME",
    "SpanScores",
    "bootstrap_f1",
    "clauses",
    "held_out_clauses",
    "illegal",
    "sbme_tags",
    "span_counts",
    "span_scores",
    "words_of",
]

SBME = "SBME"  # the order of the tags: S is 0, B is 1, M is 2, E is 3
_FOLLOWERS = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)


class SpanScores(NamedTuple):
    """Precision, recall and F1 of the words of a segmentation, between 0 and 1."""

    precision: float
    recall: float
    f1: float


def clauses(lines: Iterable[Sequence[str]], *, ends: str = "。！？；") -> list[tuple[str, ...]]:
    """Return the words of ``lines`` clause by clause: a clause ends with a word that is one of the characters of ``ends``.

    Raises ValueError for an empty ``ends`` or an empty word.
    """
    if not ends:
        raise ValueError("ends must name at least one character, got ''")
    found: list[tuple[str, ...]] = []
    for line in lines:
        start = 0
        for position, word in enumerate(line, 1):
            if not word:
                raise ValueError(f"a word of lines is empty: {list(line)!r}")
            if word in ends or position == len(line):
                found.append(tuple(line[start:position]))
                start = position
    return found


def held_out_clauses(
    lines: Sequence[Sequence[str]], *, train: float = 0.8, test: float = 0.1
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Return the clauses of the first share ``train`` of ``lines``, and those of the last share ``test`` that training does not contain.

    The split is by line and in the order given, which for a newspaper is the order of time; a test clause that training also
    contains, to the character, is dropped whatever its segmentation there. Raises ValueError unless both shares are positive and sum
    to at most 1.
    """
    if min(train, test) <= 0 or train + test > 1:
        raise ValueError(f"train and test must be positive and at most 1 together, got {train} and {test}")
    first, last = round(train * len(lines)), round((1 - test) * len(lines))
    seen = clauses(lines[:first])
    known = {"".join(clause) for clause in seen}
    return seen, [clause for clause in clauses(lines[last:]) if "".join(clause) not in known]


def sbme_tags(words: Sequence[str]) -> Int64[Tensor, " characters"]:
    """Return the tags of the characters of ``words``: S 0, B 1, M 2, E 3. Raises ValueError for an empty word."""
    if not all(words):
        raise ValueError(f"words must not be empty, got {list(words)!r}")
    coded = [tag for word in words for tag in ([0] if len(word) == 1 else [1, *[2] * (len(word) - 2), 3])]
    return torch.tensor(coded, dtype=torch.int64)


def words_of(text: str, tags: Int64[Tensor, " characters"]) -> list[str]:
    """Return ``text`` cut into words by its ``tags``, one a character, legal or not.

    Raises ValueError if the lengths differ or a tag is not one of 0..3.
    """
    if len(text) != len(tags):
        raise ValueError(f"tags must be one a character of text, got {len(tags)} tags for {len(text)} characters")
    if not text:
        return []
    starts = torch.nonzero(_starts(tags, torch.tensor([len(text)]))).flatten().tolist()
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


def illegal(tags: Int64[Tensor, " characters"], lengths: Int64[Tensor, " clauses"]) -> Bool[Tensor, " clauses"]:
    """Return, for each clause, whether its tags are the code of no segmentation.

    ``tags`` are those of all clauses one after another, ``lengths`` the clauses' numbers of characters, at least 1 each. Raises
    ValueError if they do not fit or a tag is not one of 0..3.
    """
    first = _first_characters(tags, lengths)
    wrong = torch.zeros_like(tags, dtype=torch.bool)
    wrong[1:] = ~_FOLLOWERS.to(tags.device)[tags[:-1], tags[1:]]
    last = torch.roll(first, -1)
    wrong = torch.where(first, (tags == 2) | (tags == 3), wrong) | (last & ((tags == 1) | (tags == 2)))
    return torch.bincount(_clause_of(lengths)[wrong], minlength=len(lengths)) > 0


def span_counts(
    predicted: Int64[Tensor, " characters"], gold: Int64[Tensor, " gold_characters"], lengths: Int64[Tensor, " clauses"]
) -> Int64[Tensor, "clauses 3"]:
    """Return, for each clause, how many words are correct, predicted and in the gold segmentation.

    ``predicted`` and ``gold`` are the tags of all clauses one after another, ``lengths`` the clauses' numbers of characters, at
    least 1 each. Raises ValueError if they do not fit or a tag is not one of 0..3.
    """
    if predicted.shape != gold.shape:
        raise ValueError(f"predicted and gold must have one tag a character each, got {len(predicted)} and {len(gold)}")
    guess, truth = _starts(predicted, lengths), _starts(gold, lengths)
    clause, minimum = _clause_of(lengths), len(lengths)
    begin = torch.nonzero(truth).flatten()
    end = torch.cat([begin[1:], begin.new_tensor([len(gold)])])
    before = torch.cat([begin.new_zeros(1), guess.cumsum(0)])  # predicted starts before a position
    closes = torch.cat([guess, guess.new_ones(1)])[end]
    correct = guess[begin] & closes & (before[end] - before[begin] == 1)
    return torch.stack(
        [torch.bincount(clause[where], minlength=minimum) for where in (begin[correct], torch.nonzero(guess).flatten(), begin)], 1
    )


def span_scores(counts: Int64[Tensor, "clauses 3"]) -> SpanScores:
    """Return precision, recall and F1 of all clauses together from their :func:`span_counts`; 0 where nothing is correct."""
    correct, predicted, gold = counts.sum(0).tolist()
    return SpanScores(correct / max(predicted, 1), correct / max(gold, 1), 2 * correct / max(predicted + gold, 1))


def bootstrap_f1(
    counts: Int64[Tensor, "clauses 3"],
    baseline: Int64[Tensor, "others 3"] | None = None,
    *,
    draws: int = 1000,
    generator: torch.Generator | None = None,
) -> Float64[Tensor, " draws"]:
    """Return F1, or its excess over that of a ``baseline`` on the same clauses, for ``draws`` samples of the clauses with replacement.

    The quantiles of the result are the bootstrap interval; drawing the same clauses for both makes the comparison a paired one.
    Raises ValueError for no clause, fewer than 1 draw, or a baseline on another number of clauses. Source: B. Efron, The Annals of
    Statistics 7 (1979).
    """
    if draws < 1 or len(counts) == 0:
        raise ValueError(f"draws and the number of clauses must be at least 1, got {draws} and {len(counts)}")
    if baseline is not None and len(baseline) != len(counts):
        raise ValueError(f"baseline must hold the same {len(counts)} clauses, got {len(baseline)}")
    drawn = torch.randint(len(counts), (draws, len(counts)), generator=generator)
    weight = torch.stack([torch.bincount(row, minlength=len(counts)) for row in drawn]).double()

    def f1(table: Tensor) -> Tensor:
        correct, predicted, gold = (weight @ table.double()).unbind(1)
        return 2 * correct / (predicted + gold)

    return f1(counts) if baseline is None else f1(counts) - f1(baseline)


def _starts(tags: Tensor, lengths: Tensor) -> Tensor:
    first = _first_characters(tags, lengths)
    ends_word, begins_word = (tags == 0) | (tags == 3), (tags == 0) | (tags == 1)
    return first | begins_word | torch.roll(ends_word, 1)


def _first_characters(tags: Tensor, lengths: Tensor) -> Tensor:
    if int(lengths.sum()) != len(tags) or len(lengths) == 0 or int(lengths.min()) < 1:
        raise ValueError(f"lengths must be at least 1 and sum to the {len(tags)} characters, got {lengths.tolist()[:9]}")
    if int(tags.min()) < 0 or int(tags.max()) > 3:
        raise ValueError(f"tags must be 0 (S), 1 (B), 2 (M) or 3 (E), got values from {int(tags.min())} to {int(tags.max())}")
    first = torch.zeros_like(tags, dtype=torch.bool)
    first[lengths.cumsum(0) - lengths] = True
    return first


def _clause_of(lengths: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
