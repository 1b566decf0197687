r"""Sentence templates: words that belong together across gaps, and the nesting of templates that covers a sentence best.

Count how often word v follows word w within a window, and connect two occurrences if the pair's mutual information is high. The maximal
chains of connected occurrences, with ``None`` for each gap, are templates: ``(None, "of", None)`` reads "[X] of [Y]". A sentence is then
parsed by choosing a template for the whole and, recursively, one for each gap, so that the sum of log-frequencies is largest. Templates
nest and never cross.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

__all__ = ["ParseTree", "Template", "find_templates", "parse"]

Template = tuple[str | None, ...]

_END = object()  # key of a template's score in its node of the trie
_LONGEST = 150  # words; the recursion below is several calls deep per word


class ParseTree(NamedTuple):
    """What covers ``words[start:stop]``: a template (None: words in a row), a subtree for each gap, and their log-score."""

    start: int
    stop: int
    template: Template | None
    gaps: tuple[ParseTree, ...]
    score: float


def find_templates(
    tokenized: Sequence[Sequence[str]], *, window: int = 5, min_pmi: float | int = 2, min_proba: float | int = 1e-5
) -> dict[Template, int]:
    r"""Count the templates of tokenized clauses.

    Words at most ``window`` apart form skip-grams. Two occurrences are connected if their skip-gram's share of all skip-grams exceeds
    ``min_proba`` and its mutual information exceeds ``min_pmi`` nats. Each maximal chain counts once for its template; templates with a
    share of at most ``min_proba`` are dropped. The number of chains is exponential in the length of a clause at worst: ``tokenized``
    should hold clauses, not pages.

    :raises ValueError: if ``window`` is below 1 or ``min_proba`` outside [0, 1).

    Source: kexue.fm/archives/5597, written from the description of the algorithm.
    """
    if window < 1 or not 0 <= min_proba < 1:
        raise ValueError(f"window must be at least 1 and min_proba in [0, 1), got {window} and {min_proba}")
    words = Counter(word for clause in tokenized for word in clause)
    skips = Counter((w, v) for clause in tokenized for i, w in enumerate(clause) for v in clause[i + 1 : i + 1 + window])
    n_words, n_skips = words.total(), skips.total()
    strong = {
        (w, v)
        for (w, v), count in skips.items()
        if count / n_skips > min_proba and math.log(count / n_skips) - math.log(words[w] / n_words) - math.log(words[v] / n_words) > min_pmi
    }
    found: Counter[Template] = Counter()
    for clause in tokenized:
        followers = [
            [j for j in range(i + 1, min(i + 1 + window, len(clause))) if (word, clause[j]) in strong] for i, word in enumerate(clause)
        ]
        continued = {j for targets in followers for j in targets}
        for start in range(len(clause)):
            if start not in continued:
                found.update(_with_gaps(clause, chain) for chain in _chains(followers, start))
    total = found.total()
    return {template: count for template, count in found.items() if count / total > min_proba}


def parse(templates: Mapping[Template, int], words: Sequence[str], *, skip: float | int = -20) -> ParseTree:
    r"""Best nesting of templates over a sentence.

    A template costs the logarithm of its share; n words in a row without a template cost ``skip`` for each but the first. Among equal
    scores fewer templates win. An interval recursion with memory: of order :math:`n^3` for n words and a fixed set of templates.

    :raises ValueError: if there is no word or more than 150, no template with a word, a count is not positive, or ``skip`` is positive.
    """
    if not 1 <= len(words) <= _LONGEST:
        raise ValueError(f"words must hold 1 to {_LONGEST} words, got {len(words)}")
    if skip > 0:
        raise ValueError(f"skip must not be positive, got {skip}")
    root = _trie(templates)
    nodes: list[dict] = [root]
    index = {id(root): 0}

    def number(node: dict) -> int:
        if id(node) not in index:
            index[id(node)] = len(nodes)
            nodes.append(node)
        return index[id(node)]

    @cache
    def best(i: int, j: int) -> ParseTree:
        bare = ParseTree(i, j, None, (), skip * (j - i - 1))
        matched = match(0, i, j)
        if matched is None or matched[0] <= bare.score:
            return bare
        score, template, gaps = matched
        return ParseTree(i, j, template, gaps, score)

    @cache
    def match(at: int, p: int, j: int) -> tuple[float, Template, tuple[ParseTree, ...]] | None:
        """Best way from a node of the trie, with the words up to p consumed, to the end of a template exactly at j."""
        node, options = nodes[at], []
        if p == j:
            return (node[_END], (), ()) if _END in node else None
        if words[p] in node and (rest := match(number(node[words[p]]), p + 1, j)):
            options.append((rest[0], (words[p], *rest[1]), rest[2]))
        if None in node:
            after = number(node[None])
            for q in range(p + 1, j + 1):
                if rest := match(after, q, j):
                    gap = best(p, q)
                    options.append((gap.score + rest[0], (None, *rest[1]), (gap, *rest[2])))
        return max(options, key=lambda option: (option[0], len(option[1])), default=None)

    return best(0, len(words))


def _chains(followers: Sequence[Sequence[int]], start: int) -> list[list[int]]:
    """All maximal chains from a word, by a stack of unfinished ones."""
    finished, open_ = [], [[start]]
    while open_:
        chain = open_.pop()
        if followers[chain[-1]]:
            open_.extend([*chain, j] for j in followers[chain[-1]])
        else:
            finished.append(chain)
    return finished


def _with_gaps(clause: Sequence[str], chain: Sequence[int]) -> Template:
    template: list[str | None] = []
    last = -1
    for position in chain:
        template.extend([None] * (position > last + 1) + [clause[position]])
        last = position
    return (*template, *[None] * (last + 1 < len(clause)))


def _trie(templates: Mapping[Template, int]) -> dict:
    """Nested dictionaries by word, or None for a gap; a template without a word would match everything and is refused."""
    if not templates:
        raise ValueError("templates must hold at least one template, got none")
    if min(templates.values()) <= 0:
        raise ValueError(f"counts of templates must be positive, got {min(templates.values())}")
    total, root = sum(templates.values()), {}
    for template, count in templates.items():
        if all(part is None for part in template) or any(a is None and b is None for a, b in itertools.pairwise(template)):
            raise ValueError(f"a template must hold a word and no two gaps in a row, got {template!r}")
        node = root
        for part in template:
            node = node.setdefault(part, {})
        node[_END] = math.log(count / total)
    return root
