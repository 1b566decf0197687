r"""Three ways to hold the spectral norm of a layer down: divide by it, pay for it, or clip what it is made of.

*Normalization* replaces a weight by :math:`c\,W/\sigma(W)`. The layer is then c-Lipschitz if :math:`\sigma` is at least the norm of
the operator. For a convolution the reshaped kernel's norm is not: it may be too small by the root of the number of taps, per layer.

*The penalty* :math:`\frac12\sum_i\|W_i\|_2^2` has the gradient :math:`\sigma_1uv^\top`, of rank one: unlike weight decay it leaves the
other singular values alone. One step of power iteration per training step follows :math:`u,v` while the weights move slowly.

*Clipping* every entry to :math:`[-c,c]` bounds the norm by :math:`c\sqrt{mn}`, and leaves it anywhere below.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kexue.numerics import spectral_norm
from kexue.regularization.lipschitz import operator_norm

__all__ = ["SpectralNormalization", "SpectralPenalty", "clip_weights_", "spectral_normalize"]


class SpectralNormalization(nn.Module):
    r"""Parametrization :math:`W\mapsto c\,W/\sigma(W)`; a zero weight stays zero.

    :param layer: the layer whose weight it is, ``nn.Linear`` or ``nn.Conv2d``.
    :param coefficient: the norm c of the result, positive.
    :param method: what :math:`\sigma` is. ``"operator"``: the norm of the linear map, for a convolution its bound for every image size,
        so that the result is certified and at most 2 % too small. ``"reshape"``: the norm of the weight as an out x rest matrix, the usual
        choice, which for convolutions certifies nothing.
    :raises ValueError: if ``coefficient`` is not positive or ``method`` is neither.
    """

    def __init__(
        self, layer: nn.Linear | nn.Conv2d, coefficient: float = 1.0, *, method: Literal["operator", "reshape"] = "operator"
    ) -> None:
        super().__init__()
        if not coefficient > 0:
            raise ValueError(f"coefficient must be positive, got {coefficient}")
        if method not in ("operator", "reshape"):
            raise ValueError(f"method must be 'operator' or 'reshape', got {method!r}")
        self._layer = (layer,)  # in a tuple, so that the layer does not become a child of its own parametrization
        self.coefficient, self.method = coefficient, method

    def forward(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Scale the weight."""
        sigma = operator_norm(self._layer[0], weight) if self.method == "operator" else spectral_norm(weight.flatten(1))
        return weight * (self.coefficient / torch.where(sigma > 0, sigma, torch.ones_like(sigma)))


def spectral_normalize(model: nn.Module, coefficient: float = 1.0, *, method: Literal["operator", "reshape"] = "operator") -> nn.Module:
    """Put :class:`SpectralNormalization` on every ``nn.Linear`` and ``nn.Conv2d`` of the model, in place, and return the model.

    :raises ValueError: as :class:`SpectralNormalization`, and if the model has no such layer.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not layers:
        raise ValueError("model must have at least one Linear or Conv2d layer, got none")
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", SpectralNormalization(layer, coefficient, method=method))
    return model


class SpectralPenalty:
    r"""The penalty :math:`\frac12\sum_i\hat\sigma_i^2` over the ``nn.Linear`` layers of a model, by one step of power iteration per call.

    Call it once per training step. Its gradient is :math:`\hat\sigma_iu_iv_i^\top` with the current unit vectors, which are not
    differentiated. Each :math:`\hat\sigma_i` is a lower bound of :math:`\|W_i\|_2`. Source: Yoshida and Miyato (2017), algorithm 1.

    :param generator: source of the random starting vectors.
    :raises ValueError: if the model has no such layer.
    """

    def __init__(self, model: nn.Module, *, generator: torch.Generator | None = None) -> None:
        self.layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        if not self.layers:
            raise ValueError("model must have at least one Linear layer, got none")
        self.vectors = [
            nn.functional.normalize(torch.randn(layer.in_features, generator=generator).to(layer.weight), dim=0) for layer in self.layers
        ]

    def __call__(self) -> Float[Tensor, ""]:
        """Advance every pair of vectors by one step and return the penalty."""
        return torch.stack([sigma.square() for sigma in self.norms()]).sum() / 2

    def norms(self) -> list[Float[Tensor, ""]]:
        """Advance every pair of vectors by one step and return the estimates, differentiable in the weights."""
        estimates = []
        for i, layer in enumerate(self.layers):
            with torch.no_grad():
                u = nn.functional.normalize(layer.weight @ self.vectors[i], dim=0)
                back = layer.weight.T @ u
                length = back.norm()
                self.vectors[i] = torch.where(length > 0, back / length, self.vectors[i])
            estimates.append(u @ (layer.weight @ self.vectors[i]))
        return estimates


@torch.no_grad()
def clip_weights_(model: nn.Module, limit: float) -> nn.Module:
    r"""Clip every parameter of the model to [-limit, limit], in place, and return the model.

    An m x n matrix then has a norm of at most :math:`\text{limit}\sqrt{mn}`, attained by equal entries, while random signs have about
    :math:`\text{limit}\,(\sqrt m+\sqrt n)`: the Lipschitz constant is bounded, and not chosen. Gradients are not touched.

    :raises ValueError: if ``limit`` is not positive. Source: Arjovsky, Chintala and Bottou (2017), algorithm 1.
    """
    if not limit > 0:
        raise ValueError(f"limit must be positive, got {limit}")
    for parameter in model.parameters():
        parameter.clamp_(-limit, limit)
    return model
