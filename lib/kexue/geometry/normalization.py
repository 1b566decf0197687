r"""What batch normalization does to one gradient, to a stack of layers, and to the learning rate.

*Backward.* Over the m numbers of a channel :math:`\hat y=(y-\bar y)/s` with :math:`s^2=v+\epsilon`, and the Jacobian of
:math:`\gamma\hat y+\beta` is the symmetric matrix :math:`\frac\gamma s(I-\frac1m11^\top-\frac1m\hat y\hat y^\top)`: for
:math:`\epsilon=0` a projection times :math:`\gamma/s`.

*Depth.* In a wide network with random weights every layer multiplies the mean-square gradient, from the output towards the input, by
:math:`E\varphi'(z)^2/\operatorname{Var}\varphi(z)\ge1`, z standard normal: :math:`\pi/(\pi-1)` for ReLU.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "Normalized",
    "batch_norm",
    "batch_norm_backward",
    "effective_lr",
    "finite_batch_growth",
    "gradient_growth",
    "gradient_norm_sq",
    "growth_rate",
]

_CUT, _NODES = 12.0, 120  # the normal law beyond 12 weighs 1e-33; the rule has this many nodes on each side of a kink at 0


class Normalized(NamedTuple):
    r"""What the backward pass of batch normalization needs: :math:`\hat y`, and per channel the batch mean, the biased batch variance v,
    :math:`s=\sqrt{v+\epsilon}` and :math:`\gamma`."""

    normalized: Float[Tensor, "n c *space"]
    mean: Float[Tensor, " c"]
    variance: Float[Tensor, " c"]
    scale: Float[Tensor, " c"]
    gamma: Float[Tensor, " c"]


def _axes(y: Tensor) -> tuple[list[int], tuple[int, ...]]:
    """All axes but the channel's, and the shape that spreads one number per channel over y."""
    return [0, *range(2, y.ndim)], (1, -1, *(1,) * (y.ndim - 2))


def batch_norm(
    y: Float[Tensor, "n c *space"], gamma: Float[Tensor, " c"], beta: Float[Tensor, " c"], *, eps: float = 1e-5
) -> tuple[Float[Tensor, "n c *space"], Normalized]:
    r"""Batch normalization :math:`\gamma\hat y+\beta` in training mode, and what its backward pass needs.

    Statistics run over all axes but the second. The mean is subtracted twice, the second time to remove the rounding error of the first, so
    that values around 1e4 with a spread of 1e-2 are normalized as well as float32 can represent them. Half precision is computed with
    float32 statistics and returned in half precision.

    Raises ValueError if a channel has fewer than two values (its variance would be 0), ``eps`` is negative, or ``eps`` is 0 and a channel
    is constant. Source: Ioffe and Szegedy (2015), algorithm 1.
    """
    axes, wide = _axes(y)
    count = y.numel() // max(y.shape[1], 1)
    if count < 2:
        raise ValueError(f"y must have at least two values per channel for a variance, got shape {tuple(y.shape)}")
    if not eps >= 0:
        raise ValueError(f"eps must be >= 0, got {eps}")
    work = y if y.dtype in (torch.float32, torch.float64) else y.float()
    first = work.mean(axes, keepdim=True)
    centered = work - first
    second = centered.mean(axes, keepdim=True)
    centered -= second
    variance = centered.square().mean(axes)
    if eps == 0 and bool((variance == 0).any()):
        raise ValueError(f"eps must be positive when a channel is constant, and channel {int((variance == 0).nonzero()[0])} is")
    scale = torch.sqrt(variance + eps)
    normalized = centered / scale.view(wide)
    z = normalized * gamma.to(work.dtype).view(wide) + beta.to(work.dtype).view(wide)
    return z.to(y.dtype), Normalized(normalized, (first + second).flatten(), variance, scale, gamma.to(work.dtype))


def batch_norm_backward(
    g: Float[Tensor, "n c *space"], cache: Normalized
) -> tuple[Float[Tensor, "n c *space"], Float[Tensor, " c"], Float[Tensor, " c"]]:
    r"""Gradients with respect to y, gamma and beta, given the gradient ``g`` with respect to the output of :func:`batch_norm`.

    :math:`\nabla_yL=\frac\gamma s\bigl[g-\bar g-\frac1m\langle g,\hat y\rangle\hat y\bigr]`, :math:`\partial_\gamma L=\langle g,\hat
    y\rangle`, :math:`\partial_\beta L=\langle g,1\rangle`: two passes over the data, where a graph of the forward formula takes eight.
    """
    axes, wide = _axes(g)
    up = g.to(cache.normalized.dtype)
    count = g.numel() // g.shape[1]
    grad_beta, grad_gamma = up.sum(axes), (up * cache.normalized).sum(axes)
    slope = cache.gamma / cache.scale
    grad = up * slope.view(wide)
    grad -= cache.normalized * (slope * grad_gamma / count).view(wide)
    grad -= (slope * grad_beta / count).view(wide)
    return grad.to(g.dtype), grad_gamma, grad_beta


def gradient_norm_sq(g: Float[Tensor, "n c *space"], cache: Normalized) -> Float[Tensor, " c"]:
    r"""Squared norm, per channel, of the gradient that :func:`batch_norm_backward` returns, without forming it.

    :math:`\frac{\gamma^2}{s^2}\bigl[\|g\|^2-\frac1m\langle1,g\rangle^2-\frac{2-r}m\langle g,\hat y\rangle^2\bigr]` with
    :math:`r=v/s^2`, an identity for every :math:`\epsilon\ge0`. Source: with r = 1, Santurkar et al. (2018), theorem 4.1, as an inequality.
    """
    axes, _ = _axes(g)
    up = g.to(cache.normalized.dtype)
    count = g.numel() // g.shape[1]
    lost = 2 - cache.variance / cache.scale.square()
    rest = up.square().sum(axes) - up.sum(axes).square() / count - lost / count * (up * cache.normalized).sum(axes).square()
    return (cache.gamma / cache.scale).square() * rest


def growth_rate(activation: Callable[[Tensor], Tensor]) -> float:
    r"""Factor :math:`E\varphi'(z)^2/\operatorname{Var}\varphi(z)`, z standard normal, by which a layer multiplies the mean-square gradient.

    The limit of wide layers and large batches, for batch normalization in front of the activation. At least 1 for every Lipschitz
    activation, by the Gaussian Poincare inequality, and 1 for affine ones only; jumps, of which a derivative knows nothing, are not seen.
    By quadrature on both sides of 0: exact to about 1e-14 for functions that are smooth except at 0. Raises ValueError if the activation
    is constant.
    """
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(_NODES))
    half = (nodes + 1) * _CUT / 2
    z = torch.cat([-half, half])
    w = torch.cat([weights, weights]) * torch.exp(-(z**2) / 2)
    w = w / w.sum()
    value, slope = _with_slope(activation, z)
    variance = w @ (value - w @ value).square()
    if not variance > 1e-30:
        raise ValueError("activation must not be constant: its outputs have no variance to normalize")
    return (w @ slope.square() / variance).item()


def _with_slope(activation: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = activation(z)
        if not value.requires_grad:  # it does not depend on z
            return value, torch.zeros_like(value)
        (slope,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), slope


def finite_batch_growth(batch: int, slope: float = 0.0) -> float:
    r"""The factor of :func:`growth_rate` at a finite batch of m examples, for :math:`\varphi(z)=\max(z,0)+a\min(z,0)` with a = ``slope``.

    Layers are wide, and the batch has reached the fixed point at which all its examples look alike, so that a normalized channel is
    uniform on a sphere: two of its entries have correlation :math:`-1/(m-1)`. Tends to :math:`\pi/(\pi-1)` for ReLU (a = 0); is
    :math:`(m-2)/(m-3)` for the identity (a = 1). Raises ValueError for m < 4, where the mean of :math:`1/s^2` is infinite.
    """
    if batch < 4:
        raise ValueError(f"batch must be at least 4, because the mean of 1/s^2 is infinite below, got {batch}")
    m, a = batch, slope
    angle = math.acos(-1 / (m - 1))
    same = (math.pi - angle) / (2 * math.pi)  # probability that two entries are both positive
    along, against = (math.sin(t) + (math.pi - t) * math.cos(t) for t in (angle, math.pi - angle))
    second = (1 + a**2) / 2  # E phi^2, and E phi'^2
    product = ((1 + a**2) * along - 2 * a * against) / (2 * math.pi)  # E phi phi of two entries
    slopes = (1 + a**2) * same + a * (1 - 2 * same)  # E phi' phi' of two entries
    variance = (1 - 1 / m) * (second - product)
    # Trace of Q D P D: Q removes the constant and the normalized vector, D is the diagonal of the slopes, P removes the constant.
    removed = second - (second + (m - 1) * slopes) / m - (second + (m - 1) * product) / m
    return ((m - 2) * second - removed) / ((m - 3) * variance)


@torch.no_grad()
def gradient_growth(
    depth: int,
    width: int,
    batch: int,
    *,
    activation: Callable[[Tensor], Tensor] = torch.relu,
    normalize: bool = True,
    skip: bool = False,
    gain: float = 2.0,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Float[Tensor, " depth"]:
    r"""Squared norm of the gradient at the pre-activation of every layer of a random network, first layer first.

    Layers :math:`h\mapsto\varphi(\mathrm{BN}(Wh))` with entries of variance ``gain / width``, or the same without normalization; the batch
    at the input and the gradient at the output are standard normal. With ``skip`` the layers are
    :math:`h\mapsto h+\varphi(\mathrm{BN}(Wh))`, and the gradient is taken at the h in front of them. Float32.

    Raises ValueError if depth, width or gain is not positive or batch is below 2.
    """
    if depth < 1 or width < 1 or batch < 2 or not gain > 0:
        raise ValueError(f"depth, width and gain must be positive and batch at least 2, got {depth}, {width}, {gain} and {batch}")
    ones, zeros = torch.ones(width, device=device), torch.zeros(width, device=device)
    h, layers = torch.randn(batch, width, generator=generator).to(device), []
    for _ in range(depth):
        weight = (math.sqrt(gain / width) * torch.randn(width, width, generator=generator)).to(device)
        z, cache = batch_norm(h @ weight.T, ones, zeros, eps=1e-12) if normalize else (h @ weight.T, None)
        value, slope = _with_slope(activation, z)
        h = h + value if skip else value
        layers.append((weight, slope, cache))
    g, sizes = torch.randn(batch, width, generator=generator).to(device), []
    for weight, slope, cache in reversed(layers):
        branch = g * slope
        if cache is not None:
            branch = batch_norm_backward(branch, cache)[0]
        below = branch @ weight
        g = g + below if skip else below
        sizes.append((g if skip else branch).double().square().sum())
    return torch.stack(sizes[::-1]).cpu()


def effective_lr(optimizer: torch.optim.Optimizer, weight: Tensor) -> float:
    r"""Learning rate divided by :math:`\|W\|^2`: the rate at which gradient descent turns the direction of a scale-invariant weight.

    Exact to first order for plain SGD without momentum. Raises ValueError if the optimizer does not hold ``weight`` or the weight is zero.
    Source: van Laarhoven (2017).
    """
    for group in optimizer.param_groups:
        if any(p is weight for p in group["params"]):
            size = weight.detach().double().square().sum().item()
            if size == 0:
                raise ValueError("weight must not be zero: it has no direction")
            return float(group["lr"]) / size
    raise ValueError(f"weight of shape {tuple(weight.shape)} is not among the parameters of the optimizer")
