r"""Run the weights of a released BERT in the book's own encoder.

A BERT is the Post-LN :class:`~kexue.transformers.encoder.Encoder` behind an embedding: token, position and segment vectors are added and
normalized. This module knows the names under which the weights are stored, and nothing else.
"""

from collections.abc import Mapping

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from kexue.transformers.encoder import Encoder

__all__ = ["bert_embedding", "bert_encoder"]

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
