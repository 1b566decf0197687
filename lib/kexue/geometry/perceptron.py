r"""A multilayer perceptron with batch normalization in one of two places, and covariate shift on purpose.

Normalization can stand behind a linear map, :math:`h\mapsto\varphi(\mathrm{BN}(Wh))`, or in front of it,
:math:`h\mapsto\varphi(W\,\mathrm{BN}(h)+b)`. In the first place the weight is scale-invariant; in the second its inputs are standardized.
:class:`ShiftNoise` gives every channel a new mean and a new spread in each training step: the drift that normalization was invented
against, injected behind the normalization, where nothing removes it.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kexue.geometry.initialization import init_

__all__ = ["ShiftNoise", "perceptron"]

Place = Literal["none", "output", "input"]


class ShiftNoise(nn.Module):
    r"""In training mode :math:`x_{ic}\mapsto S_{ic}x_{ic}+M_{ic}` with noise whose own mean changes from call to call; else the identity.

    Each call draws for every channel a shift :math:`\mu_c`, uniform within ``shift`` of 0, and a factor :math:`\sigma_c`, uniform on
    [1, ``scale``], and then for every example :math:`M_{ic}` uniform within ``spread`` of :math:`\mu_c` and :math:`S_{ic}` normal around
    :math:`\sigma_c` with standard deviation ``spread``. Source: Santurkar et al. (2018), their noisy batch normalization.

    Raises ValueError if ``shift`` or ``spread`` is negative or ``scale`` is below 1.
    """

    def __init__(self, *, shift: float = 0.5, scale: float = 1.25, spread: float = 0.1, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if not (shift >= 0 and spread >= 0 and scale >= 1):
            raise ValueError(f"shift and spread must be >= 0 and scale >= 1, got shift={shift}, spread={spread}, scale={scale}")
        self.shift, self.scale, self.spread, self.generator = shift, scale, spread, generator

    def forward(self, x: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Shift and stretch every channel; the draws come from the generator's device."""
        if not self.training:
            return x
        uniform = torch.rand(2, x.shape[1], generator=self.generator, dtype=x.dtype).to(x.device)
        jitter = torch.rand(*x.shape, generator=self.generator, dtype=x.dtype).to(x.device)
        stretch = torch.randn(*x.shape, generator=self.generator, dtype=x.dtype).to(x.device)
        mean = self.shift * (2 * uniform[0] - 1) + self.spread * (2 * jitter - 1)
        return x * (1 + (self.scale - 1) * uniform[1] + self.spread * stretch) + mean


def perceptron(
    widths: Sequence[int],
    *,
    place: Place = "none",
    noise: ShiftNoise | None = None,
    eps: float = 1e-5,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    r"""Linear layers between the given ``widths`` with ReLU between them and He's initialization: :math:`N(0,2/n)`, biases 0.

    The random numbers, and so the weights, are the same at every ``place``: ``"output"`` normalizes each hidden :math:`Wh` (which then has
    no bias), ``"input"`` what enters each linear map, the last one included. ``noise`` is applied to the pre-activations of all hidden
    layers, behind the normalization. Layer k is reachable as ``linear{k}``, ``norm{k}``, ``relu{k}``, from 1.

    Raises ValueError for fewer than two widths, a width below 1 or an unknown place.
    """
    if len(widths) < 2 or min(widths) < 1:
        raise ValueError(f"widths must be at least two positive numbers, got {tuple(widths)}")
    if place not in get_args(Place):
        raise ValueError(f"place must be one of {get_args(Place)}, got {place!r}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    last = len(widths) - 1
    for k in range(1, last + 1):
        hidden = k < last
        if place == "input":
            layers[f"norm{k}"] = nn.BatchNorm1d(widths[k - 1], eps=eps)
        linear = nn.Linear(widths[k - 1], widths[k], bias=not (hidden and place == "output"))
        init_(linear.weight, "fan_in", gain=math.sqrt(2), generator=generator)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
        layers[f"linear{k}"] = linear
        if hidden:
            if place == "output":
                layers[f"norm{k}"] = nn.BatchNorm1d(widths[k], eps=eps)
            if noise is not None:
                layers[f"noise{k}"] = noise
            layers[f"relu{k}"] = nn.ReLU()
    return nn.Sequential(layers)
