r"""The Transformer encoder that the chapters share, and a probe that reads it.

A block has two residual branches, self-attention A and a feed-forward network F, and the place of the normalization N decides its kind:

.. math:: \text{post: } x\leftarrow N(x+A(x)),\ x\leftarrow N(x+F(x));\qquad
          \text{pre: } x\leftarrow x+A(N(x)),\ x\leftarrow x+F(N(x));\qquad \text{none: } N=\mathrm{id}.

Every branch output is readable at the taps ``attention`` and ``feedforward``, the stream x behind every addition and normalization at
``stream`` (see :mod:`kexue.observe`). Arrays are (batch, tokens, width). There is no dropout: it belongs to training, not to the block.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from kexue.observe import capture, tap

__all__ = ["Block", "Encoder", "FeedForward", "Probe", "SelfAttention", "initialize_", "mean_cosine", "probe"]

Norm = Literal["post", "pre", "none"]
Activation = Callable[[Tensor], Tensor]


class SelfAttention(nn.Module):
    r"""Multi-head self-attention: :math:`\operatorname{softmax}(QK^\top/\sqrt{d_h})V`, heads side by side, then a linear map.

    ``causal`` lets token t see the tokens up to t only. Raises ValueError if ``heads`` does not divide ``width``.
    Source: Vaswani et al. (2017), section 3.2.
    """

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        if width < 1 or heads < 1 or width % heads:
            raise ValueError(f"heads must divide width, got width={width}, heads={heads}")
        self.heads, self.causal = heads, causal
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(
        self, x: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """Mix the tokens. ``mask`` is True where a token may be attended to; a token that sees none at all would be NaN: ValueError."""
        query, key, value = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(query, key, value, self._allowed(mask), is_causal=self.causal and mask is None)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _allowed(self, mask: Tensor | None) -> Tensor | None:
        if mask is None:
            return None
        allowed = mask[:, None, None, :]
        if self.causal:
            tokens = mask.shape[1]
            allowed = allowed & torch.ones(tokens, tokens, dtype=torch.bool, device=mask.device).tril()
        if not allowed.any(-1).all():
            raise ValueError("mask must leave every token at least one token to attend to")
        return allowed


class FeedForward(nn.Module):
    """Two linear layers around an activation, applied to each token: width to ``ratio`` times width and back."""

    def __init__(self, width: int, *, ratio: int = 4, activation: Activation = functional.gelu) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)
        self.activation = activation

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """Apply the network to every token by itself."""
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """Attention branch and feed-forward branch, each added to the stream, with normalization behind (``post``), before (``pre``) or none.

    Raises ValueError if ``heads`` does not divide ``width`` or ``norm`` is unknown. Source: Vaswani et al. (2017); Xiong et al. (2020).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        norm: Norm = "post",
        causal: bool = False,
        ratio: int = 4,
        activation: Activation = functional.gelu,
    ) -> None:
        super().__init__()
        if norm not in get_args(Norm):
            raise ValueError(f"norm must be one of {get_args(Norm)}, got {norm!r}")
        self.norm = norm
        self.attention = SelfAttention(width, heads, causal=causal)
        self.feedforward = FeedForward(width, ratio=ratio, activation=activation)
        self.norms = nn.ModuleList(nn.Identity() if norm == "none" else nn.LayerNorm(width) for _ in range(2))

    def forward(
        self, x: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """Pass the stream through both branches; ``mask`` is True where a token may be attended to."""
        before, after = (self.norms, (nn.Identity(),) * 2) if self.norm == "pre" else ((nn.Identity(),) * 2, self.norms)
        x = tap("stream", after[0](x + tap("attention", self.attention(before[0](x), mask))))
        return tap("stream", after[1](x + tap("feedforward", self.feedforward(before[1](x)))))


class Encoder(nn.Module):
    """``depth`` blocks in a row. With ``norm="pre"`` one more normalization follows, as usual; the taps read the stream before it.

    Keyword arguments go to :class:`Block`. Raises ValueError if ``depth`` is negative.
    """

    def __init__(self, depth: int, width: int, heads: int, *, norm: Norm = "post", **options: object) -> None:
        super().__init__()
        if depth < 0:
            raise ValueError(f"depth must be at least 0, got {depth}")
        self.blocks = nn.ModuleList(Block(width, heads, norm=norm, **options) for _ in range(depth))  # type: ignore[arg-type]
        self.final = nn.LayerNorm(width) if norm == "pre" else nn.Identity()

    def forward(
        self, x: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """Run all blocks on vectors that are already embedded."""
        x = tap("stream", x)
        for block in self.blocks:
            x = block(x, mask)
        return self.final(x)


@torch.no_grad()
def initialize_(model: nn.Module, fill: Callable[[Tensor], object]) -> nn.Module:
    """Call ``fill(weight)`` on the weight matrix of every linear and embedding layer, in the order of the modules; biases become 0 and
    the gains of layer normalizations 1. Returns the model."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            fill(module.weight)
        elif isinstance(module, nn.LayerNorm) and module.weight is not None:
            nn.init.ones_(module.weight)
        if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return model


def mean_cosine(x: Float[Tensor, "*batch tokens width"]) -> Float[Tensor, "*batch"]:
    r"""Mean cosine over all ordered pairs of different tokens.

    With unit vectors u this is :math:`(|\sum_iu_i|^2-T)/(T(T-1))`: O(T d) instead of the O(T^2 d) of all pairs. A zero vector counts as
    orthogonal to everything. Raises ValueError for fewer than two tokens.
    """
    tokens = x.shape[-2]
    if tokens < 2:
        raise ValueError(f"x must hold at least 2 tokens, got shape {tuple(x.shape)}")
    unit = functional.normalize(x, dim=-1)
    return (unit.sum(-2).square().sum(-1) - unit.square().sum((-2, -1))) / (tokens * (tokens - 1))


class Probe(NamedTuple):
    """State of an encoder of L blocks: mean squares of the 2L branches, and of stream and gradient at the 2L + 1 places between them.

    The fields are those of ``kexue.geometry.residual.Signal``, which predicts what this one measures, so that the two compare by name. They
    are two classes because the parts of the library do not import each other.
    """

    branch: Float[Tensor, " branches"]
    stream: Float[Tensor, " places"]
    cosine: Float[Tensor, " places"]
    overlap: Float[Tensor, " places"]
    gradient: Float[Tensor, " places"]
    gradient_cosine: Float[Tensor, " places"]


def probe(encoder: Encoder, x: Float[Tensor, "batch tokens width"], cotangent: Float[Tensor, "batch tokens width"]) -> Probe:
    r"""Signals and gradients inside an encoder, from one forward and one backward pass.

    ``branch``, ``stream`` and ``gradient`` are means of squares over all entries, ``cosine`` and ``gradient_cosine`` mean cosines between
    the tokens of a sequence, ``overlap`` the mean cosine between a token and its own input vector. The gradient is that of
    :math:`\langle\text{cotangent},\text{encoder}(x)\rangle`. Cost: one forward and one backward pass.
    """
    with capture(None, "stream", "attention", "feedforward", detach=False) as seen:
        output = encoder(x.detach().requires_grad_())
    stream = seen["stream"]
    gradient = torch.autograd.grad((output * cotangent).sum(), stream)
    branches = [b for pair in zip(seen["attention"], seen["feedforward"], strict=True) for b in pair]
    with torch.no_grad():
        return Probe(
            torch.stack([b.square().mean() for b in branches]),
            torch.stack([s.square().mean() for s in stream]),
            torch.stack([mean_cosine(s).mean() for s in stream]),
            torch.stack([functional.cosine_similarity(s, stream[0], dim=-1).mean() for s in stream]),
            torch.stack([g.square().mean() for g in gradient]),
            torch.stack([mean_cosine(g).mean() for g in gradient]),
        )
