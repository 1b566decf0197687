r"""BERT around the book's own encoder: the model that is pre-trained on masked tokens, and the weights of released models.

A BERT is the Post-LN :class:`~kexue.transformers.encoder.Encoder` behind an embedding: token, position and segment vectors are added and
normalized. In pre-training a masked token is predicted by the inner products of its output with the token vectors themselves.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from kexue.transformers.encoder import Encoder

__all__ = ["MaskedModel", "bert_embedding", "bert_encoder"]

EPSILON = 1e-12  # BERT's; PyTorch's default of 1e-5 changes the outputs by as much
STORED = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.out": "attention.output.dense",
    "feedforward.up": "intermediate.dense",
    "feedforward.down": "output.dense",
    "norms.0": "attention.output.LayerNorm",
    "norms.1": "output.LayerNorm",
}


def bert_encoder(weights: Mapping[str, Tensor], heads: int) -> Encoder:
    """Build the encoder of a BERT from its weights under their usual names, ``encoder.layer.0.attention.self.query.weight`` and so on.

    Depth and widths are those of the weights; ``heads`` is not stored with them. Raises ValueError if there is no layer 0 or ``heads``
    does not divide the width, KeyError if a weight is missing.
    """
    layers = {int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer.")}
    if 0 not in layers:
        raise ValueError("weights must have names that start with 'encoder.layer.0.', got none")
    inner, width = weights["encoder.layer.0.intermediate.dense.weight"].shape
    encoder = Encoder(max(layers) + 1, width, heads, ratio=inner // width)
    state = {
        f"blocks.{layer}.{ours}.{kind}": weights[f"encoder.layer.{layer}.{theirs}.{kind}"]
        for layer in range(max(layers) + 1)
        for ours, theirs in STORED.items()
        for kind in ("weight", "bias")
    }
    encoder.load_state_dict(state)
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = EPSILON
    return encoder


def bert_embedding(weights: Mapping[str, Tensor], tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens width"]:
    """Embed token numbers as BERT does, all in the first segment: token plus position plus segment vector, normalized.

    Raises ValueError if there are more tokens than positions, IndexError for a token number outside the vocabulary.
    """
    word, position, segment = (weights[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type"))
    if tokens.shape[1] > len(position):
        raise ValueError(f"tokens must hold at most {len(position)} positions, got {tokens.shape[1]}")
    x = functional.embedding(tokens, word) + position[: tokens.shape[1]] + segment[0]  # refuses a negative number, indexing would not
    gain, bias = (weights[f"embeddings.LayerNorm.{kind}"] for kind in ("weight", "bias"))
    return functional.layer_norm(x, gain.shape, gain, bias, EPSILON)


class MaskedModel(nn.Module):
    r"""A BERT that predicts masked tokens: logits :math:`\langle h,e_v\rangle+b_v` with the token vectors :math:`e_v` of the embedding.

    ``symbols`` tokens have the numbers 0, 1, ...; the number ``symbols`` itself is the mask, which is read but never predicted. With
    ``head`` the output of the encoder passes through a dense layer, GELU and a normalization of its own first, as in BERT. There is no
    segment vector. Raises ValueError if ``symbols`` or ``places`` is below 1, and as :class:`~kexue.transformers.encoder.Encoder` does.
    Source: Devlin et al. (2019).
    """

    def __init__(self, symbols: int, places: int, depth: int, width: int, heads: int, *, head: bool = True) -> None:
        super().__init__()
        if symbols < 1 or places < 1:
            raise ValueError(f"symbols and places must be at least 1, got symbols={symbols}, places={places}")
        self.symbol, self.place, self.start = nn.Embedding(symbols + 1, width), nn.Embedding(places, width), nn.LayerNorm(width)
        self.encoder = Encoder(depth, width, heads)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)) if head else nn.Identity()
        self.bias = nn.Parameter(torch.zeros(symbols))

    def forward(self, tokens: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens symbols"]:
        """Logits of every token at every place. Raises ValueError if there are more tokens than places."""
        if tokens.shape[1] > len(self.place.weight):
            raise ValueError(f"tokens must hold at most {len(self.place.weight)} places, got {tokens.shape[1]}")
        h = self.head(self.encoder(self.start(self.symbol(tokens) + self.place.weight[: tokens.shape[1]])))
        return functional.linear(h, self.symbol.weight[:-1], self.bias)
