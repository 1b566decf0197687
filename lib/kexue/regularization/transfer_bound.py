r"""The inequality that carries a penalty on the parameter gradient over to the input gradient.

A network without branches is :math:`h_1=x,\ z_{t+1}=W_th_t+b_t,\ h_{t+1}=g_t(z_{t+1})`, read out by a scalar :math:`f`. With
:math:`\delta_t=\partial f/\partial z_{t+1}` and :math:`M_t=\partial z_{t+1}/\partial x=W_tJ_t` both gradients are known at every layer,

.. math:: \nabla_xf=M_t^\top\delta_t,\qquad \|\nabla_{W_t,b_t}f\|=\|\delta_t\|\sqrt{1+\|h_t\|^2},

and eliminating :math:`\delta_t` bounds one gradient by the other:

.. math:: \|\nabla_xf\|^2\sum_t\frac{1+\|h_t\|^2}{\|M_t\|_2^2}\le\|\nabla_\theta f\|^2 .

Source: Dherin, Munn and Barrett (2021) with :math:`\|W_t\|_2\|J_t\|_2` in place of :math:`\|M_t\|_2`, which is weaker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import jvp, vjp, vmap

from kexue.numerics import power_iteration, spectral_norm

__all__ = ["LayerJacobian", "TransferBound", "layer_jacobians", "transfer_bound"]

EXACT_WIDTH = 512  # up to this many rows or columns a Jacobian is formed; beyond, its norm comes from power iteration


class LayerJacobian(NamedTuple):
    r"""An affine node seen from the input: :math:`h_t`, :math:`J_t=\partial h_t/\partial x` and :math:`M_t=W_tJ_t`, per example."""

    h: Float[Tensor, "batch fan_in"]
    jacobian: Float[Tensor, "batch fan_in inputs"]
    product: Float[Tensor, "batch fan_out inputs"]


class TransferBound(NamedTuple):
    r"""Both sides of :math:`\|\nabla_xf\|^2\sum_tc_t\le\sum_t\|\nabla_{W_t,b_t}f\|^2`, per example and layer."""

    input_sq: Float[Tensor, " batch"]
    parameter_sq: Float[Tensor, "batch layers"]
    coefficients: Float[Tensor, "batch layers"]

    @property
    def lhs(self) -> Float[Tensor, " batch"]:
        r"""Left side :math:`\|\nabla_xf\|^2\sum_tc_t`."""
        return self.input_sq * self.coefficients.sum(1)

    @property
    def rhs(self) -> Float[Tensor, " batch"]:
        r"""Right side :math:`\|\nabla_\theta f\|^2`."""
        return self.parameter_sq.sum(1)

    @property
    def layers(self) -> Float[Tensor, "batch layers"]:
        """Left over right side of each layer's own inequality, 0/0 counted as 0."""
        return _ratio(self.input_sq[:, None] * self.coefficients, self.parameter_sq)

    @property
    def ratio(self) -> Float[Tensor, " batch"]:
        """Left over right side of the sum, 0/0 counted as 0; at most 1, and 1 where the bound is tight."""
        return _ratio(self.lhs, self.rhs)


def transfer_bound(
    model: nn.Module,
    f: Callable[[Tensor], Tensor],
    x: Float[Tensor, " batch *inputs"],
    *,
    norm: Literal["joint", "spectral", "frobenius"] = "joint",
) -> TransferBound:
    r"""Evaluate the inequality between input and parameter gradient for each example of a batch.

    The coefficient of a layer is :math:`c_t=(1+\|h_t\|^2)/\nu_t^2`, without the 1 if the layer has no bias, with
    :math:`\nu_t=\|M_t\|_2` (``"joint"``, sharpest), :math:`\|W_t\|_2\|J_t\|_2` (``"spectral"``) or :math:`\|W_t\|_F\|J_t\|_F`
    (``"frobenius"``, weakest). A layer with :math:`\nu_t=0` contributes 0: the input gradient vanishes with it. Jacobians of up to
    512 rows or columns are formed, :math:`O(Bd_1\sum_td_t)` memory; norms of larger ones come from power iteration, which
    approaches :math:`\nu_t` from below to about 1e-6 and so overstates :math:`c_t` by as little.

    :param model: nested ``Sequential`` of biased or bias-free ``Linear`` modules and of modules :math:`g_t` without ``Linear`` inside;
        trainable parameters of the :math:`g_t` (the gain of a layer norm) are not counted on the right side.
    :param f: maps the model's output for the batch to one number per example.
    :param x: the batch, one vector per example.
    :raises ValueError: if ``norm`` is unknown or ``f`` does not return one number per example.
    :raises NotImplementedError: if the model has branches, a weight that acts more than once, or a random or batch-mixing module.
    """
    if norm not in ("joint", "spectral", "frobenius"):
        raise ValueError(f"norm must be 'joint', 'spectral' or 'frobenius', got {norm!r}")
    stages = _stages(model)
    with torch.enable_grad():
        inputs = x.detach().requires_grad_()
        h, hidden, probes = inputs, [], []
        for before, linear in stages:
            h = _one_position(before(h))
            hidden.append(h)
            probes.append(torch.zeros(len(x), linear.out_features, dtype=x.dtype, device=x.device, requires_grad=True))
            h = linear(h) + probes[-1]
        values = f(_tail(model, stages)(h))
        if values.shape != (len(x),):
            raise ValueError(f"f must return one number per example, shape ({len(x)},), got shape {tuple(values.shape)}")
        gradient, *deltas = torch.autograd.grad(values.sum(), [inputs, *probes], materialize_grads=True)
    with torch.no_grad():
        one = [float(linear.bias is not None) for _, linear in stages]
        inner = torch.stack([o + h.square().sum(1) for o, h in zip(one, hidden, strict=True)], 1)
        outer = torch.stack([d.square().sum(1) for d in deltas], 1)
        sizes = torch.stack(list(_sizes(stages, x, norm)), 1)
        return TransferBound(gradient.square().sum(1), outer * inner, torch.where(sizes > 0, inner / sizes**2, torch.zeros_like(inner)))


def layer_jacobians(model: nn.Module, x: Float[Tensor, " batch *inputs"]) -> Iterator[LayerJacobian]:
    r"""Input, Jacobian and product of each affine node of a network without branches, from the input to the output.

    The Jacobian is carried forward by :math:`M_t=W_tJ_t` and :math:`J_{t+1}=\partial g_t\,M_t`, where :math:`g_t` is any differentiable
    map, elementwise or not. Raises NotImplementedError as :func:`transfer_bound`.
    """
    h = _one_position(x.detach())
    carried = torch.eye(x.shape[1], dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
    for before, linear in _stages(model):
        if len(before):
            columns = vmap(lambda v, at=h, g=before: jvp(g, (at,), (v,))[1], in_dims=2, out_dims=2)
            h, carried = _one_position(before(h)), columns(carried)
        shared = carried.stride(0) == 0 and len(x) > 1  # the identity: every example has the same M = W
        product = linear.weight.expand(len(x), -1, -1) if shared else linear.weight @ carried
        yield LayerJacobian(h, carried, product)
        h, carried = linear(h), product


Stage = tuple[nn.Sequential, nn.Linear]


def _stages(model: nn.Module) -> list[Stage]:
    """Cut a network without branches in front of its linear modules: pairs (what comes before, linear)."""
    if type(model) is not nn.Sequential:
        raise NotImplementedError(f"model must be a Sequential: the bound needs a chain without branches, got {type(model).__name__}")
    stages, before = [], []
    for module in _flat(model):
        if type(module) is nn.Linear:
            stages.append((nn.Sequential(*before), module))
            before = []
        else:
            _check_activation(module)
            before.append(module)
    if not stages:
        raise NotImplementedError("model must have at least one Linear module")
    weights = [id(p) for _, linear in stages for p in linear.parameters()]
    if len(set(weights)) < len(weights):
        raise NotImplementedError("model uses the same Linear parameters twice: shared weights can cancel and the bound is false for them")
    return stages


def _flat(model: nn.Sequential) -> Iterator[nn.Module]:
    for module in model:
        yield from _flat(module) if type(module) is nn.Sequential else (module,)


def _one_position(h: Tensor) -> Tensor:
    if h.ndim != 2:
        raise NotImplementedError(
            f"a Linear that acts on shape {tuple(h.shape)} shares its weights among positions, for which the bound is false"
        )
    return h


def _check_activation(module: nn.Module) -> None:
    name = type(module).__name__
    if any(True for _ in module.children()) or isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        raise NotImplementedError(f"{name} may branch or share weights, for which the bound is false")
    if isinstance(module, nn.modules.conv._ConvNd | nn.Embedding | nn.EmbeddingBag):
        raise NotImplementedError(f"{name} uses its weights at several positions, for which the bound is false; see unshared_gradient_sq")
    if module.training and isinstance(module, nn.modules.dropout._DropoutNd | nn.modules.batchnorm._BatchNorm):
        raise NotImplementedError(f"{name} in training mode is random or mixes examples; call model.eval() first")


def _tail(model: nn.Module, stages: list[Stage]) -> nn.Sequential:
    count = sum(len(before) + 1 for before, _ in stages)
    return nn.Sequential(*list(_flat(model))[count:])


def _sizes(stages: list[Stage], x: Tensor, norm: str) -> Iterator[Float[Tensor, " batch"]]:
    r"""The size :math:`\nu_t` of each layer as seen from the input."""
    widest = max(min(linear.out_features, x.shape[1]) for _, linear in stages)
    if widest <= EXACT_WIDTH or norm == "frobenius":
        layers = [module for before, linear in stages for module in (*before, linear)]
        for (_, linear), (_, jacobian, product) in zip(stages, layer_jacobians(nn.Sequential(*layers), x), strict=True):
            if norm == "joint":
                yield _batch_norm(product)
            elif norm == "spectral":
                yield spectral_norm(linear.weight) * _batch_norm(jacobian)
            else:
                yield linear.weight.norm() * jacobian.flatten(1).norm(dim=1)
        return
    prefix: list[nn.Module] = []
    for before, linear in stages:
        prefix += before
        if norm == "joint":
            yield _operator_norm(nn.Sequential(*prefix, linear), x)
        else:
            yield spectral_norm(linear.weight) * _operator_norm(nn.Sequential(*prefix), x)
        prefix.append(linear)


def _batch_norm(matrix: Float[Tensor, "batch rows cols"]) -> Float[Tensor, " batch"]:
    """Spectral norms, computed once where all examples share one matrix."""
    once = matrix[:1] if matrix.stride(0) == 0 else matrix
    return spectral_norm(once).expand(len(matrix))


def _operator_norm(head: nn.Sequential, x: Tensor) -> Float[Tensor, " batch"]:
    """Spectral norm of the Jacobian of a map at each example, from products alone."""
    start = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    _, pull = vjp(head, x)
    return power_iteration(lambda v: jvp(head, (x,), (v,))[1], lambda u: pull(u)[0], start, rtol=1e-6, max_steps=3000).value


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient in which 0/0 is 0."""
    return torch.where(numerator == 0, torch.zeros_like(numerator), numerator / denominator)
