r"""Bounds of a network's Lipschitz constant :math:`\mathrm{Lip}(f)=\sup_{x\ne y}\|f(x)-f(y)\|/\|x-y\|` in Euclidean norms.

*From above:* constants multiply along a chain and add over branches, :math:`\mathrm{Lip}(g\circ f)\le\mathrm{Lip}(g)\,\mathrm{Lip}(f)`,
so a bound for each layer gives one for the network, whatever the data. *From below:* on a convex domain
:math:`\mathrm{Lip}(f)=\sup_x\|Df(x)\|_2`, so the Jacobian at any point is a bound from below, and a search improves it. The two
together bracket a number that nobody can compute in general. A bound from above is a certificate: with L-Lipschitz logits no
perturbation shorter than :math:`\frac{f_{(1)}-f_{(2)}}{\sqrt2\,L}` changes the predicted class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import jvp, vjp

from kexue.numerics import power_iteration, spectral_norm
from kexue.regularization.conv_norm import conv2d_bound

__all__ = [
    "GroupSort",
    "Residual",
    "activation_lipschitz",
    "certified_radius",
    "lipschitz_lower",
    "lipschitz_upper",
    "operator_norm",
    "spectral_complexity",
]

EXACT_OUTPUTS = 32  # up to here a Jacobian is formed row by row: fewer products than power iteration needs

_ROOT2 = math.sqrt(2)
_GELU = 0.5 * (1 + math.erf(1)) + _ROOT2 * math.exp(-1) / math.sqrt(2 * math.pi)  # Phi(sqrt 2) + sqrt 2 phi(sqrt 2), at sqrt 2
_GELU_TANH = 1.1289930686587718  # slope at 1.41850
_SILU = 1.0998393201288669  # slope at 2.39936
_MISH = 1.0884981612517279  # slope at 1.49057
_SELU = 1.0507009873554805 * 1.6732632423543772  # slope just below 0

_SLOPES = {
    **dict.fromkeys((nn.Identity, nn.Flatten, nn.Unflatten, nn.ReLU, nn.ReLU6, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid), 1.0),
    **dict.fromkeys((nn.Hardtanh, nn.Tanhshrink, nn.Softshrink, nn.CELU), 1.0),
    nn.Sigmoid: 0.25,
    nn.Softmax: 0.5,
    nn.Softmin: 0.5,
    nn.SiLU: _SILU,
    nn.Mish: _MISH,
    nn.SELU: _SELU,
    nn.Hardswish: 1.5,
    nn.Hardsigmoid: 1 / 6,
}


class GroupSort(nn.Module):
    r"""Sorts the features of each group of ``size`` neighbours along axis 1: an activation that changes no length.

    A permutation at every point, so its Jacobian is orthogonal almost everywhere and :math:`\mathrm{Lip}=1`: gradients are not lost on
    the way, as they are where a ReLU is off. Size 2 is MaxMin. Source: Anil, Lucas and Grosse (2019), arXiv 1811.05381.

    :raises ValueError: if ``size`` is below 1 or does not divide the number of features.
    """

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.size = size

    def forward(self, x: Float[Tensor, "batch features *space"]) -> Float[Tensor, "batch features *space"]:
        """Sort each group upwards."""
        if x.shape[1] % self.size:
            raise ValueError(f"the {x.shape[1]} features must be a multiple of the group size {self.size}")
        return x.unflatten(1, (-1, self.size)).sort(dim=2).values.flatten(1, 2)


class Residual(nn.Module):
    """The map x + branch(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch *shape"]:
        """Add the input to the output of the branch."""
        return x + self.branch(x)


def activation_lipschitz(module: nn.Module) -> float:
    r"""Lipschitz constant of an activation: the supremum of its slope, for softmax of the norm of its Jacobian.

    Exact: 1 for ReLU, tanh, softplus ...; 1/4 for the sigmoid, 1/2 for softmax; above 1 for GELU, SiLU, Mish, SELU and hardswish.

    :raises NotImplementedError: for a module whose constant is not known here.
    """
    if isinstance(module, nn.GELU):
        return _GELU if module.approximate == "none" else _GELU_TANH
    if isinstance(module, nn.LeakyReLU):
        return max(1.0, abs(module.negative_slope))
    if isinstance(module, nn.PReLU):
        return max(1.0, module.weight.detach().abs().max().item())
    if isinstance(module, nn.ELU):
        return max(1.0, abs(module.alpha))
    if isinstance(module, GroupSort):
        return 1.0
    if type(module) not in _SLOPES:
        raise NotImplementedError(f"no Lipschitz constant is known here for {type(module).__name__}")
    return _SLOPES[type(module)]


@torch.no_grad()
def lipschitz_upper(model: nn.Module) -> float:
    r"""Upper bound of the Lipschitz constant by layers: products along ``nn.Sequential``, one plus the branch for ``Residual``.

    ``Linear`` counts by its spectral norm, ``Conv2d`` by :func:`~kexue.regularization.conv_norm.conv2d_bound`, so that the bound holds for
    every image size; batch norm in evaluation mode by :math:`\max_i|\gamma_i|/\sqrt{\mathrm{var}_i+\epsilon}`, layer norm by
    :math:`\max_i|\gamma_i|/\sqrt\epsilon`, max pooling by the root of the number of windows that a pixel can lie in.

    :raises NotImplementedError: for any other module, among them self-attention, which has no finite constant on unbounded inputs,
        and for dropout and batch norm in training mode.
    """
    if isinstance(model, nn.Sequential):
        return math.prod((lipschitz_upper(layer) for layer in model), start=1.0)
    if isinstance(model, Residual):
        return 1.0 + lipschitz_upper(model.branch)
    if isinstance(model, nn.Linear | nn.Conv2d):
        return operator_norm(model, model.weight).item()
    if isinstance(model, nn.MaxPool2d):
        return _pool_upper(model)
    if isinstance(model, nn.LayerNorm):
        return (model.weight.abs().max().item() if model.elementwise_affine else 1.0) / math.sqrt(model.eps)
    random = isinstance(model, nn.modules.dropout._DropoutNd)
    if random or isinstance(model, nn.modules.batchnorm._BatchNorm):
        if model.training:
            raise NotImplementedError(f"{type(model).__name__} in training mode is random or mixes examples; call model.eval() first")
        if random:
            return 1.0
        if model.running_var is None:
            raise NotImplementedError("batch norm without running statistics mixes examples in evaluation mode too")
        gain = torch.ones_like(model.running_var) if model.weight is None else model.weight.abs()
        return (gain / (model.running_var + model.eps).sqrt()).max().item()
    if isinstance(model, nn.MultiheadAttention):
        raise NotImplementedError("dot-product self-attention is not Lipschitz on unbounded inputs: its scores are quadratic in them")
    return activation_lipschitz(model)


def operator_norm(layer: nn.Linear | nn.Conv2d, weight: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    r"""Spectral norm of a linear layer if it had this weight; for ``Conv2d`` the upper bound for images of every size.

    Differentiable in ``weight`` where the largest singular value is simple: the gradient is :math:`uv^\top`, with its singular vectors.

    :raises NotImplementedError: for paddings that repeat pixels: reflected, replicated, or circular by more than the kernel needs.
    """
    if isinstance(layer, nn.Linear):
        return spectral_norm(weight)
    circular = layer.padding_mode == "circular"
    spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    wide = not isinstance(layer.padding, str) and any(2 * p > span for p, span in zip(layer.padding, spans, strict=True))
    if layer.padding_mode not in ("zeros", "circular") or (circular and wide):
        raise NotImplementedError(f"padding {layer.padding} in mode {layer.padding_mode!r} repeats pixels, for which the bound is false")
    kernels = weight.unflatten(0, (layer.groups, -1))  # one convolution per group, side by side
    foldable = layer.stride[0] == layer.stride[1] and layer.dilation == (1, 1) and not circular  # a torus may not be a multiple of it
    return conv2d_bound(kernels, stride=layer.stride[0] if foldable else 1).max()


def _pool_upper(layer: nn.MaxPool2d) -> float:
    """Taps a and b of two windows meet in a pixel if (a - b) dilation is a multiple of the stride."""
    sides = [v if isinstance(v, tuple) else (v, v) for v in (layer.kernel_size, layer.stride, layer.dilation)]
    return math.sqrt(math.prod(math.ceil(k * math.gcd(s, d) / s) for k, s, d in zip(*sides, strict=True)))


def lipschitz_lower(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, " batch *shape"],
    *,
    steps: int = 0,
    reach: float = 1.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " batch"]:
    r"""Spectral norm of the Jacobian at each point, or the largest found in ``steps`` moves from it: lower bounds of the constant.

    Each move goes a distance ``reach`` along the leading right singular vector, to either side, and stays where the Jacobian has
    grown; else ``reach`` is halved for that point. It needs no second derivative, which a ReLU network does not have. The Jacobian is never
    formed: power iteration on its products.

    :param model: maps a batch to a batch; examples must not influence each other.
    :param x: starting points; an ordinary lower bound for them is ``steps=0``.
    :raises ValueError: if ``steps`` is negative or ``reach`` not positive.
    """
    if steps < 0 or not reach > 0:
        raise ValueError(f"steps must be at least 0 and reach positive, got {steps} and {reach}")
    start = torch.randn(x.flatten(1).shape, generator=generator, dtype=x.dtype).to(x.device)
    best, direction = _jacobian_norm(model, x, start)
    reaches = torch.full_like(best, reach)
    for _ in range(steps):
        grown = torch.zeros_like(best, dtype=torch.bool)
        for sign in (1.0, -1.0):
            moved = x + (sign * reaches[:, None] * direction).unflatten(1, x.shape[1:])
            value, leading = _jacobian_norm(model, moved, direction + 0.1 * start / start.norm(dim=1, keepdim=True))
            better = (value > best) & ~grown
            x = torch.where(better.view(-1, *[1] * (x.ndim - 1)), moved, x)
            best, direction = torch.where(better, value, best), torch.where(better[:, None], leading, direction)
            grown |= better
        reaches = torch.where(grown, reaches, reaches / 2)
    return best


def _jacobian_norm(model: Callable[[Tensor], Tensor], x: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Norm and leading right singular vector of the Jacobian at each example."""
    with torch.no_grad():
        output, pull = vjp(model, x)
        width = output[0].numel()
        if width <= EXACT_OUTPUTS:
            units = torch.eye(width, dtype=output.dtype, device=output.device)
            rows = [pull(unit.expand(len(x), -1).reshape(output.shape))[0].flatten(1) for unit in units]
            _, values, leading = torch.linalg.svd(torch.stack(rows, 1), full_matrices=False)
            return values[:, 0], leading[:, 0]

        def matvec(v: Tensor) -> Tensor:
            return jvp(model, (x,), (v.view_as(x),))[1].flatten(1)

        triple = power_iteration(matvec, lambda u: pull(u.view_as(output))[0].flatten(1), start, rtol=1e-4, max_steps=200)
    return triple.value, triple.right


def certified_radius(logits: Float[Tensor, "batch classes"], lipschitz: float) -> Float[Tensor, " batch"]:
    r"""Distance :math:`\frac{f_{(1)}-f_{(2)}}{\sqrt2\,L}` within which no input changes its predicted class.

    :param lipschitz: an upper bound L of the Lipschitz constant of the logits, positive.
    :raises ValueError: if L is not positive or there are fewer than two classes. Source: Tsuzuku, Sato and Sugiyama (2018).
    """
    if not lipschitz > 0:
        raise ValueError(f"lipschitz must be positive, got {lipschitz}")
    if logits.shape[1] < 2:
        raise ValueError(f"logits must have at least two classes, got {logits.shape[1]}")
    first, second = logits.topk(2, dim=1).values.unbind(1)
    return (first - second) / (math.sqrt(2) * lipschitz)


def spectral_complexity(weights: Sequence[Float[Tensor, "_ _"]]) -> float:
    r"""The number :math:`\prod_i\|W_i\|_2\bigl(\sum_i(\|W_i^\top\|_{2,1}/\|W_i\|_2)^{2/3}\bigr)^{3/2}` of the margin bound.

    :math:`\|W^\top\|_{2,1}` is the sum of the Euclidean norms of the rows of W. Reference matrices are zero, activations 1-Lipschitz.

    :raises ValueError: if a matrix is zero. Source: Bartlett, Foster and Telgarsky (2017), equation 1.2.
    """
    norms = [spectral_norm(w) for w in weights]
    if any(norm == 0 for norm in norms):
        raise ValueError("weights must have no zero matrix: the ratio of its norms is not defined")
    ratios = [(w.norm(dim=1).sum() / norm) ** (2 / 3) for w, norm in zip(weights, norms, strict=True)]
    return math.prod((norm.item() for norm in norms), start=1.0) * sum(ratio.item() for ratio in ratios) ** 1.5
