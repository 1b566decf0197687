r"""Dropout: multiply by random masks that broadcast.

With :math:`p` the probability to DROP and :math:`q=1-p`, inverted dropout replaces :math:`x` by :math:`\tilde x_i=x_i\varepsilon_i/q`,
:math:`\varepsilon_i\sim\mathrm{Bernoulli}(q)`. Entries may share their :math:`\varepsilon`: a *noise shape* is the shape of the mask, equal
to that of :math:`x` except that some axes are 1, and along those the mask is tied. With groups :math:`g` of tied entries

.. math:: \mathbb E\,w^\top\tilde x=w^\top x,\qquad
   \operatorname{Var}w^\top\tilde x=\tfrac pq\sum_g\Bigl(\sum_{i\in g}w_ix_i\Bigr)^2 .

What follows from these moments is the subject of :mod:`kexue.regularization.mask_averages`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Dropout", "Predictive", "dropout", "mc_dropout", "noise_shapes"]


def dropout(
    x: Float[Tensor, "*shape"],
    p: float,
    *,
    noise_shape: Sequence[int | None] | None = None,
    training: bool = True,
    generator: torch.Generator | None = None,
    kind: Literal["bernoulli", "gaussian"] = "bernoulli",
) -> Float[Tensor, "*shape"]:
    r"""Multiply ``x`` by random noise of mean 1 and variance :math:`p/q`, one number for each group of tied entries.

    An axis where ``noise_shape`` is 1 shares its noise; entries that are None mean the full size. Only the numbers that are needed are
    drawn: a mask of shape (B, 1, D) costs B D of them. Dropped entries are exactly 0, also where ``x`` is infinite, with gradient
    0. Half precision is divided by :math:`q` before it is rounded, never multiplied by a rounded :math:`1/q`.

    :param p: probability to drop, in [0, 1]; 1 gives zeros. For Gaussian noise, of variance :math:`p/q`, in [0, 1).
    :param noise_shape: shape of the noise, or None for independent entries.
    :param training: if false, return ``x`` itself.
    :param generator: source of the noise; the noise is drawn on its device.
    :raises TypeError: for integers.
    :raises ValueError: for ``p`` out of range, a ``noise_shape`` that does not fit, or an unknown ``kind``.
    """
    if kind not in ("bernoulli", "gaussian"):
        raise ValueError(f"kind must be 'bernoulli' or 'gaussian', got {kind!r}")
    if not x.is_floating_point():
        raise TypeError(f"x must be of a floating dtype, whose values can be divided by 1 - p, got {x.dtype}")
    if not (0 <= p <= 1 if kind == "bernoulli" else 0 <= p < 1):
        raise ValueError(f"p, the probability to drop, must lie in [0, 1{']' if kind == 'bernoulli' else ')'}, got {p}")
    shape = _resolve(noise_shape, x.shape)
    if not training or p == 0:
        return x
    device = x.device if generator is None else generator.device
    if kind == "gaussian":
        wide = x.dtype if x.dtype == torch.float64 else torch.float32
        noise = torch.randn(shape, generator=generator, device=device, dtype=wide).to(x.device)
        return (x * (1 + (p / (1 - p)) ** 0.5 * noise)).to(x.dtype)
    keep = (torch.rand(shape, generator=generator, device=device) < 1 - p).to(x.device)
    return torch.where(keep, x / (1 - p) if p < 1 else x, torch.zeros((), dtype=x.dtype, device=x.device))


class Dropout(nn.Module):
    r""":func:`dropout` as a module: active in training mode, the identity in evaluation mode.

    ``noise_shape`` may contain None for sizes that are not known yet, such as the batch. Raises ValueError as :func:`dropout`.
    """

    def __init__(
        self,
        p: float,
        noise_shape: Sequence[int | None] | None = None,
        *,
        generator: torch.Generator | None = None,
        kind: Literal["bernoulli", "gaussian"] = "bernoulli",
    ) -> None:
        super().__init__()
        dropout(torch.zeros(()), p, kind=kind)  # refuses a bad rate or kind now rather than in the first batch
        self.p, self.noise_shape, self.generator, self.kind = p, noise_shape, generator, kind

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Drop entries of ``x`` in training mode."""
        return dropout(x, self.p, noise_shape=self.noise_shape, training=self.training, generator=self.generator, kind=self.kind)

    def extra_repr(self) -> str:
        """What ``repr`` shows between the brackets."""
        return f"p={self.p}, noise_shape={self.noise_shape}, kind={self.kind!r}"

    @classmethod
    def token(cls, p: float, *, generator: torch.Generator | None = None) -> Dropout:
        """Drop whole tokens of a sequence (batch, time, features): noise shape (batch, time, 1)."""
        return cls(p, (None, None, 1), generator=generator)

    @classmethod
    def locked(cls, p: float, *, generator: torch.Generator | None = None) -> Dropout:
        """Drop the same features at all times of a sequence (batch, time, features): noise shape (batch, 1, features)."""
        return cls(p, (None, 1, None), generator=generator)

    @classmethod
    def spatial(cls, p: float, dims: int = 2, *, generator: torch.Generator | None = None) -> Dropout:
        """Drop whole channels of (batch, channels, \\*space) with ``dims`` axes of space. Source: Tompson et al. (2015)."""
        return cls(p, (None, None, *[1] * dims), generator=generator)


def noise_shapes(shape: Sequence[int]) -> list[tuple[int, ...]]:
    """All noise shapes for a tensor of this ``shape``, fewest ones first: :math:`2^r` for r axes of length other than 1."""
    return sorted(set(product(*[(size, 1) for size in shape])), key=lambda s: (sum(a != b for a, b in zip(s, shape, strict=True)), s))


class Predictive(NamedTuple):
    """Mean and unbiased variance of a model's output over random masks."""

    mean: Float[Tensor, "*out"]
    variance: Float[Tensor, "*out"]


@torch.no_grad()
def mc_dropout(model: nn.Module, x: Tensor, n: int) -> Predictive:
    r"""Mean and variance of ``model(x)`` over ``n`` random masks, with ONLY the dropout modules in training mode.

    Batch norm stays in evaluation mode; the mode of every module is restored. Dropout inside a fused function (such as
    :class:`torch.nn.MultiheadAttention`) is not seen. Running updates in Welford's form: no outputs are stored.

    :raises ValueError: if ``n`` < 2 or the model has no dropout module. Source: Gal and Ghahramani (2016).
    """
    noisy = [m for m in model.modules() if isinstance(m, Dropout | nn.modules.dropout._DropoutNd)]
    if n < 2:
        raise ValueError(f"n must be at least 2 for a variance, got {n}")
    if not noisy:
        raise ValueError("model must have a dropout module, got none: every sample would be the same")
    before = {m: m.training for m in model.modules()}
    try:
        model.eval()
        for m in noisy:
            m.train()
        mean = model(x)
        squares = torch.zeros_like(mean)
        for k in range(2, n + 1):
            delta = model(x) - mean
            mean = mean + delta / k
            squares = squares + delta.square() * (k - 1) / k
    finally:
        for m, mode in before.items():
            m.training = mode
    return Predictive(mean, squares / (n - 1))


def _resolve(noise_shape: Sequence[int | None] | None, shape: torch.Size) -> tuple[int, ...]:
    if noise_shape is None:
        return tuple(shape)
    if len(noise_shape) != len(shape):
        raise ValueError(f"noise_shape must have one entry for each of the {len(shape)} axes of x, got {tuple(noise_shape)}")
    if any(entry not in (None, 1, size) for entry, size in zip(noise_shape, shape, strict=True)):
        raise ValueError(f"entries of noise_shape must be 1, None or the size of x {tuple(shape)}, got {tuple(noise_shape)}")
    return tuple(size if entry is None else entry for entry, size in zip(noise_shape, shape, strict=True))
