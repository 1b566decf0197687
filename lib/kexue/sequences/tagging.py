r"""A linear tagger with hashed character n-grams, and its training loop with an open objective.

The score of tag :math:`k` at a character is :math:`f_k=\sum_{g}w_{h(g),k}` over a few n-grams :math:`g` of the characters around it,
where :math:`h` hashes an n-gram and its place to one of :math:`2^{18}` rows. Every objective that is convex in the scores is then
convex in :math:`w`, so that two objectives can be compared without the luck of an initialization. What is compared enters in one
place, ``objective(emissions, tags, mask)``, the loss of a padded batch; features, batches, optimizer and number of steps stay the same.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from kexue.sequences.segmentation import sbme_tags

__all__ = ["FULL_WINDOW", "LEFT_WINDOW", "LinearTagger", "TaggedText", "emissions_of", "encode", "fit_tagger", "pad", "window"]

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
Progress = Callable[[Iterable[int]], Iterable[int]]
Template = tuple[int, ...]

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, odd, as a signed integer: multiplication by it spreads consecutive keys
_OUTSIDE = 0  # the "character" before and after a clause; no text contains the null character


class TaggedText(NamedTuple):
    """Clauses one after another: the rows of the n-grams at each character, its tag, and the clauses' numbers of characters."""

    features: Int64[Tensor, "characters ngrams"]
    tags: Int64[Tensor, " characters"]
    lengths: Int64[Tensor, " clauses"]


def window(left: int, right: int) -> tuple[Template, ...]:
    """Return the n-grams of a window from ``left`` characters before to ``right`` characters after: their offsets.

    All single characters, all pairs of neighbours, and one pair that skips a character: the one around the present character, or, when
    the window ends there, the present one and that two before. Raises ValueError for a negative width.
    """
    if min(left, right) < 0:
        raise ValueError(f"left and right must be at least 0, got {left} and {right}")
    places = range(-left, right + 1)
    skipping = [(-1, 1)] if left and right else [(-2, 0)] if left >= 2 else [(0, 2)] if right >= 2 else []
    return (*((a,) for a in places), *((a, a + 1) for a in places[:-1]), *skipping)


FULL_WINDOW = window(2, 2)
LEFT_WINDOW = window(2, 0)


def encode(clauses: Sequence[Sequence[str]], templates: Sequence[Template] = FULL_WINDOW, *, buckets: int = 2**18) -> TaggedText:
    """Return ``clauses``, each given by its words, as hashed n-grams and S B M E tags.

    Row ``[i, j]`` of the features is in 0 .. buckets - 1 and depends on the characters that the offsets of ``templates[j]`` select around
    character i and on j; characters beyond the clause read as one special character. ``buckets`` is a power of two. Raises ValueError
    for no clause, an empty clause or word, no template, or another ``buckets``.
    """
    if not len(clauses) or not all(len(clause) for clause in clauses):
        raise ValueError(f"clauses must be at least one and none empty, got {len(clauses)}")
    if not len(templates) or not all(templates):
        raise ValueError(f"templates must be at least one and none empty, got {templates!r}")
    if buckets < 2 or buckets & (buckets - 1):
        raise ValueError(f"buckets must be a power of two, at least 2, got {buckets}")
    texts = ["".join(words) for words in clauses]
    margin = max(abs(offset) for template in templates for offset in template)
    border = chr(_OUTSIDE) * margin
    joined = border + border.join(texts) + border
    codes = torch.frombuffer(bytearray(joined.encode("utf-32-le")), dtype=torch.int32).long()
    lengths = torch.tensor([len(text) for text in texts])
    shift = margin * torch.arange(1, len(texts) + 1)
    place = torch.arange(int(lengths.sum())) + torch.repeat_interleave(shift, lengths)
    bits = buckets.bit_length() - 1
    rows = []
    for number, template in enumerate(templates, 1):
        key = torch.full_like(place, number)
        for offset in template:
            key = (key ^ codes[place + offset]) * _GOLDEN
            key = key ^ (key >> 29)
        rows.append((key * _GOLDEN) >> (64 - bits) & (buckets - 1))
    return TaggedText(torch.stack(rows, 1), torch.cat([sbme_tags(words) for words in clauses]), lengths)


class LinearTagger(nn.Module):
    """Scores of tags that are linear in hashed n-grams: a table of ``buckets`` rows and ``tags`` columns, zero at first."""

    def __init__(self, tags: int = 4, *, buckets: int = 2**18) -> None:
        super().__init__()
        if tags < 1 or buckets < 1:
            raise ValueError(f"tags and buckets must be at least 1, got {tags} and {buckets}")
        self.weight = nn.Parameter(torch.zeros(buckets, tags))

    def forward(
        self, features: Int64[Tensor, "characters ngrams"], lengths: Int64[Tensor, " clauses"] | None = None
    ) -> Float[Tensor, "characters tags"]:
        """Return the sum of the rows of each character's n-grams; where clauses end (``lengths``) is for encoders to know."""
        return F.embedding_bag(features, self.weight, mode="sum")


def pad(
    flat: Shaped[Tensor, "characters *rest"], lengths: Int64[Tensor, " clauses"]
) -> tuple[Shaped[Tensor, "clauses time *rest"], Bool[Tensor, "clauses time"]]:
    """Return the rows of ``flat``, clauses one after another, as a batch padded on the right with zeros, and its mask.

    ``padded[mask]`` is ``flat`` again. Raises ValueError if the ``lengths`` do not sum to the number of rows.
    """
    if int(lengths.sum()) != len(flat):
        raise ValueError(f"lengths must sum to the {len(flat)} rows of flat, got a sum of {int(lengths.sum())}")
    mask = torch.arange(int(lengths.max()), device=flat.device) < lengths[:, None]
    padded = flat.new_zeros(*mask.shape, *flat.shape[1:])
    padded[mask] = flat
    return padded, mask


def fit_tagger(
    tagger: nn.Module,
    text: TaggedText,
    objective: Objective,
    *,
    parameters: Iterable[nn.Parameter] = (),
    epochs: int = 3,
    characters: int = 6000,
    lr: float = 0.1,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adagrad,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Minimize ``objective(emissions, tags, mask)``, a loss for each clause of a padded batch, by Adagrad; return ``tagger``.

    ``tagger(features, lengths)`` gives the scores of the characters of clauses one after another, as a :class:`LinearTagger` does or
    an encoder of :mod:`kexue.sequences.encoders`; for those choose ``optimizer=torch.optim.Adam`` and a smaller ``lr``.
    ``emissions`` has shape (clauses, time, tags), ``tags`` and ``mask`` (clauses, time); the sum of the losses is divided by the number
    of characters. ``parameters`` are those of the objective, a transition matrix say, and are trained along. Batches hold clauses of
    similar length, about ``characters`` characters together; their order is drawn from ``generator``. Raises ValueError for epochs,
    characters or lr that are not positive.

    Source of the optimizer: J. Duchi, E. Hazan and Y. Singer, JMLR 12 (2011).
    """
    if epochs < 1 or characters < 1 or lr <= 0:
        raise ValueError(f"epochs, characters and lr must be positive, got {epochs}, {characters} and {lr}")
    descent = optimizer([*tagger.parameters(), *parameters], lr=lr)
    for _ in (progress or iter)(range(epochs)):
        for batch in _batches(text, characters, generator):
            emissions, mask = pad(tagger(batch.features, batch.lengths), batch.lengths)
            tags, _ = pad(batch.tags, batch.lengths)
            descent.zero_grad()
            (objective(emissions, tags, mask).sum() / len(batch.tags)).backward()
            descent.step()
    return tagger


@torch.no_grad()
def emissions_of(tagger: nn.Module, text: TaggedText) -> tuple[Float[Tensor, "clauses time tags"], Bool[Tensor, "clauses time"]]:
    """Return the scores of all of ``text`` as one padded batch, with its mask, without a graph."""
    return pad(tagger(text.features, text.lengths), text.lengths)


def _batches(text: TaggedText, characters: int, generator: torch.Generator | None) -> Iterator[TaggedText]:
    """Clauses of similar length together; which ones, and the order of the batches, are drawn anew each time."""
    lengths = text.lengths.cpu()
    order = torch.argsort(lengths + 4 * torch.rand(len(lengths), generator=generator))
    number = (lengths[order].cumsum(0) - 1) // characters
    groups = order.split(torch.unique_consecutive(number, return_counts=True)[1].tolist())
    starts = lengths.cumsum(0) - lengths
    for k in torch.randperm(len(groups), generator=generator).tolist():
        chosen = groups[k]
        size = lengths[chosen]
        begin = torch.repeat_interleave(starts[chosen] - (size.cumsum(0) - size), size)
        rows = (begin + torch.arange(int(size.sum()))).to(text.tags.device)
        yield TaggedText(text.features[rows], text.tags[rows], size.to(text.tags.device))
