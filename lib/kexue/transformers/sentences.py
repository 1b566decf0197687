r"""Sentences for a released BERT: text into word pieces, and a classifier that starts from the weights of pre-training.

A BERT reads numbers of *word pieces*. A word that is not in the vocabulary is cut from the left, each piece the longest entry that fits;
pieces that continue a word are stored with ``##`` in front. The classifier averages the outputs over the words, padding left out,

.. math:: z=W\,\frac{\sum_tm_th_t}{\sum_tm_t}+b,\qquad h=\text{encoder}(\text{embedding}(\text{tokens})),\qquad m_t\in\{0,1\},

which is how sentence encoders of the MiniLM family are meant to be read.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from kexue.transformers.bert import EPSILON, bert_encoder

__all__ = ["SentenceClassifier", "encode_sentences", "word_pieces"]

LONGEST_WORD = 100  # characters; BERT gives up on longer ones


def word_pieces(text: str, vocabulary: Mapping[str, int]) -> list[str]:
    """Cut a text into entries of an uncased BERT vocabulary, for example ``["una", "##ffa", "##ble"]``; ``[UNK]`` for what cannot be cut.

    Lower case without accents; blanks end a word, every punctuation mark is a word of its own, and control characters are dropped.
    Chinese characters, which BERT separates too, are treated like letters. Source: Devlin et al. (2019) and their reference code.
    """
    kept = (c for c in unicodedata.normalize("NFD", text.lower()) if c.isspace() or unicodedata.category(c) not in ("Mn", "Cc", "Cf"))
    spaced = "".join(f" {c} " if _is_punctuation(c) else c for c in kept)
    return [piece for word in spaced.split() for piece in _cut(word, vocabulary)]


def encode_sentences(texts: Sequence[str], vocabulary: Iterable[str], *, longest: int) -> Int64[Tensor, "batch tokens"]:
    """Number the pieces of each text between ``[CLS]`` and ``[SEP]``, cut to ``longest`` numbers and padded with that of ``[PAD]``.

    The result is as wide as the longest row. Raises ValueError if ``longest`` is below 3, ``texts`` is empty, or one of the four special
    entries and ``[UNK]`` is not in the vocabulary.
    """
    if longest < 3 or not texts:
        raise ValueError(
            f"longest must be at least 3, for one piece between [CLS] and [SEP], and texts not empty, got {longest}, {len(texts)}"
        )
    number = {entry: index for index, entry in enumerate(vocabulary)}
    for entry in ("[PAD]", "[CLS]", "[SEP]", "[UNK]"):
        if entry not in number:
            raise ValueError(f"vocabulary must hold the entry {entry}")
    rows = [["[CLS]", *word_pieces(text, number)[: longest - 2], "[SEP]"] for text in texts]
    width = max(map(len, rows))
    return torch.tensor([[number[piece] for piece in row + ["[PAD]"] * (width - len(row))] for row in rows])


class SentenceClassifier(nn.Module):
    """A BERT with a new linear layer on the mean of its outputs; all parts are trained. Token number ``padding`` is not read.

    ``embedding`` is the table of the word pieces, the module that attacks on embeddings move. ``depth`` keeps the first blocks only, and
    ``generator`` draws the new layer.

    Raises ValueError if ``depth`` is not between 1 and the number of blocks, and as :func:`~kexue.transformers.bert.bert_encoder` does.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        heads: int,
        classes: int,
        *,
        depth: int | None = None,
        padding: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        blocks = 1 + max((int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer.")), default=-1)
        depth = blocks if depth is None else depth
        if not 1 <= depth <= blocks:
            raise ValueError(f"depth must be between 1 and the {blocks} blocks of weights, got {depth}")
        word, place, segment = (weights[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type"))
        width = word.shape[1]
        self.embedding = nn.Embedding.from_pretrained(word.clone(), freeze=False, padding_idx=padding)
        self.places = nn.Parameter(place + segment[0])
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.norm.load_state_dict({kind: weights[f"embeddings.LayerNorm.{kind}"] for kind in ("weight", "bias")})
        self.encoder = bert_encoder({n: w for n, w in weights.items() if not n.startswith("encoder.layer.") or _layer(n) < depth}, heads)
        self.head = nn.Linear(width, classes)
        for parameter in self.head.parameters():
            nn.init.uniform_(parameter, -(width**-0.5), width**-0.5, generator=generator)
        self.padding = padding

    def features(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch width"]:
        """Mean of the outputs over the words. Raises ValueError for more tokens than places, or a row of padding alone."""
        if tokens.shape[1] > len(self.places):
            raise ValueError(f"tokens must hold at most {len(self.places)} places, got {tokens.shape[1]}")
        words = tokens != self.padding
        outputs = self.encoder(self.norm(self.embedding(tokens) + self.places[: tokens.shape[1]]), words)
        return (outputs * words[..., None]).sum(1) / words.sum(1, keepdim=True)

    def forward(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch classes"]:
        """Logits of the classes."""
        return self.head(self.features(tokens))


def _layer(name: str) -> int:
    return int(name.split(".")[2])


def _is_punctuation(character: str) -> bool:
    """Unicode punctuation, and the ASCII symbols that BERT counts with it, such as $ and +."""
    return unicodedata.category(character).startswith("P") or (
        character.isascii() and character.isprintable() and not character.isalnum() and character != " "
    )


def _cut(word: str, vocabulary: Mapping[str, int]) -> list[str]:
    pieces: list[str] = []
    start = 0
    while start < len(word) <= LONGEST_WORD:
        prefix = "##" if start else ""
        ends = (end for end in range(len(word), start, -1) if prefix + word[start:end] in vocabulary)
        end = next(ends, None)
        if end is None:
            return ["[UNK]"]
        pieces.append(prefix + word[start:end])
        start = end
    return pieces or ["[UNK]"]
