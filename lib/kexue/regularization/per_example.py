r"""Squared norms of per-example gradients, from one forward and one backward pass.

An affine node :math:`z=Wh+b` sees, for one example, :math:`\nabla_Wf=\delta h^\top` with :math:`\delta=\partial f/\partial z`, a matrix
of rank one. Its norm is a product of two vector norms, so nothing of the size of :math:`W` is ever formed:

.. math:: \|\nabla_{W,b}f\|^2=\|\delta\|^2\,(1+\|h\|^2).

Where the same weights act at positions :math:`p` (tokens, patches of a convolution, repeated calls) the gradients add before the norm is
taken, and the square opens into two Gram matrices:

.. math:: \|\nabla_{W,b}f\|^2=\Bigl\|\sum_p\delta_ph_p^\top\Bigr\|_F^2+\Bigl\|\sum_p\delta_p\Bigr\|^2
   =\sum_{p,q}(\delta_p\cdot\delta_q)(h_p\cdot h_q+1).

Each :math:`\delta` is the gradient with respect to a zero tensor added to the node's output; no gradient of a weight is computed on the
way. Source: Goodfellow (2015) for the first identity.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

__all__ = ["input_gradient_sq", "parameter_gradient_sq", "unshared_gradient_sq"]

CHUNK_ENTRIES = 1 << 22  # entries of explicit outer products held at a time: 16 MB in float32


def input_gradient_sq(
    f: Callable[[Tensor], Tensor], x: Float[Tensor, " batch *shape"], *, create_graph: bool = False
) -> Float[Tensor, " batch"]:
    r"""Squared Euclidean norm :math:`\|\nabla_xf(x_i)\|^2` of the gradient at each example.

    :param f: maps a batch to one number per example; examples must not influence each other.
    :param x: the batch.
    :param create_graph: keep the graph, so that the result can be differentiated once more (training with a penalty).
    :raises ValueError: if ``f`` does not return one number per example.
    """
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        values = _scalars(f(x), len(x))
        (gradient,) = torch.autograd.grad(values.sum(), x, create_graph=create_graph, materialize_grads=True)
    return _sq(gradient)


def parameter_gradient_sq(
    model: nn.Module,
    f: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    per_example: bool = True,
    create_graph: bool = False,
) -> Float[Tensor, " batch"] | Float[Tensor, ""]:
    r"""Squared norm :math:`\|\nabla_\theta f_i\|^2` of each example's gradient with respect to all trainable parameters.

    Exact. For ``Linear`` (any number of axes between batch and features) and ungrouped, zero-padded ``Conv2d`` nodes it costs one
    backward pass without weight gradients plus :math:`O(B(d_{in}+d_{out}))` per layer; :math:`P` positions cost
    :math:`O(BP^2(d_{in}+d_{out}))` by Gram matrices or :math:`O(BPd_{in}d_{out})` by outer products, whichever is cheaper. All other
    parameters, and those that two modules share, go through one copy per example: :math:`O(B|\theta|)` memory for them alone. Gram
    matrices round at the size of :func:`unshared_gradient_sq`: where positions cancel, the result is 0 up to that. A weight that is
    used inside its module *and* by a function outside it is not detected.

    :param model: module whose first input axis is the batch and whose examples do not influence each other.
    :param f: maps the model's output for the batch to one number per example, for example the unreduced loss.
    :param x: input of the model, any dtype.
    :param per_example: if false, return the scalar :math:`\|\nabla_\theta\frac1B\sum_if_i\|^2` instead.
    :param create_graph: keep the graph, so that the result can be differentiated once more.
    :raises ValueError: if ``f`` does not return one number per example, a batch norm is in training mode, a node's first axis is not
        the batch, or an input of a node was changed in place. Source: Goodfellow (2015), arXiv 1510.01799.
    """
    if not per_example:
        parameters = [p for p in model.parameters() if p.requires_grad]
        with torch.enable_grad():
            mean = _scalars(f(model(x)), len(x)).mean()
            gradients = torch.autograd.grad(mean, parameters, create_graph=create_graph, materialize_grads=True) if parameters else ()
        return sum((_sq(g[None])[0] for g in gradients), start=torch.zeros_like(_wide(mean.detach())))
    nodes, total = _nodes(model, f, x, create_graph)
    for node in nodes:
        total = total + _node_sq(node)
    done = {id(p) for node in nodes for p in node.parameters}
    rest = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in done]
    return total + _copies_sq(model, f, x, rest, create_graph) if rest else total


def unshared_gradient_sq(
    model: nn.Module, f: Callable[[Tensor], Tensor], x: Tensor, *, create_graph: bool = False
) -> Float[Tensor, " batch"]:
    r"""Squared gradient norm per example if every position had its own copy of the weights: :math:`\sum_p\|\delta_p\|^2(1+\|h_p\|^2)`.

    Equals :func:`parameter_gradient_sq` where no weight is used twice. With sharing it is what an input gradient can be bounded by;
    the shared gradient cannot, because its positions may cancel.

    :raises ValueError: as :func:`parameter_gradient_sq`, and if a trainable parameter is neither in a ``Linear`` nor in an ungrouped,
        zero-padded ``Conv2d`` of its own.
    """
    nodes, total = _nodes(model, f, x, create_graph)
    done = {id(p) for node in nodes for p in node.parameters}
    others = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in done]
    if others:
        raise ValueError(f"model must have trainable parameters in unshared Linear and Conv2d modules only, got also {', '.join(others)}")
    for node in nodes:
        total = total + (node.delta.square().sum(2) * _ones_and_squares(node)).sum(1)
    return total


class _Node(NamedTuple):
    """What the gradient of an affine module is made of: its inputs and output gradients at every position, and its parameters."""

    h: Float[Tensor, "batch position fan_in"]
    delta: Float[Tensor, "batch position fan_out"]
    weight: bool  # whether the weight is trained
    bias: bool
    parameters: tuple[Tensor, ...]


def _nodes(model: nn.Module, f: Callable[[Tensor], Tensor], x: Tensor, create_graph: bool) -> tuple[list[_Node], Tensor]:
    """Run the model once with a zero probe behind every affine module; also returns a zero per example."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(f"model must not mix examples: batch norm {name!r} is in training mode, call model.eval() first")
    modules = {name: m for name, m in model.named_modules() if _is_affine(m) and any(p.requires_grad for p in m.parameters())}
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(id(module))
    calls: list[tuple[str, Tensor, int, Tensor]] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            probe = torch.zeros_like(output, requires_grad=True)
            calls.append((name, inputs[0], inputs[0]._version, probe))
            return output + probe

        return hook

    modules = {name: m for name, m in modules.items() if all(len(owners[id(p)]) == 1 for p in m.parameters())}
    handles = [module.register_forward_hook(watch(name)) for name, module in modules.items()]
    try:
        with torch.enable_grad():
            values = _scalars(f(model(x)), len(x))
            probes = [probe for *_, probe in calls]
            deltas = torch.autograd.grad(values.sum(), probes, create_graph=create_graph, materialize_grads=True) if probes else ()
    finally:
        for handle in handles:
            handle.remove()
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for (name, h, version, _), delta in zip(calls, deltas, strict=True):
        if h._version != version:
            raise ValueError(f"input of {name!r} was changed in place after it was used; its value is needed for the gradient norm")
        if len(h) != len(x) or h.ndim < 2:
            raise ValueError(f"first axis of the input of {name!r} must be the {len(x)} examples, got shape {tuple(h.shape)}")
        seen.setdefault(name, []).append(_positions(modules[name], h, delta))
    nodes = []
    for name, parts in seen.items():
        module = modules[name]
        h, delta = parts[0] if len(parts) == 1 else (torch.cat(tensors, 1) for tensors in zip(*parts, strict=True))
        h = h if create_graph else h.detach()
        trained = module.weight.requires_grad, module.bias is not None and module.bias.requires_grad
        nodes.append(_Node(h, delta, *trained, tuple(module.parameters())))
    return nodes, values.new_zeros(len(x), dtype=_wide(values).dtype)


def _is_affine(module: nn.Module) -> bool:
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) is nn.Linear  # a subclass, or a parametrized module, may do anything with its weight


def _positions(module: nn.Module, h: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Bring input and output gradient to (batch, position, features); the features of a convolution are its patches."""
    if isinstance(module, nn.Conv2d):
        patches = nn.functional.unfold(h, module.kernel_size, module.dilation, module.padding, module.stride)
        return patches.mT, delta.flatten(2).mT
    if h.ndim == 2:
        return h[:, None], delta[:, None]
    return h.flatten(1, -2), delta.flatten(1, -2)


def _node_sq(node: _Node) -> Float[Tensor, " batch"]:
    h, delta = _wide(node.h), _wide(node.delta)
    (_, positions, fan_in), fan_out = h.shape, delta.shape[2]
    if positions == 1:
        return delta.square().sum((1, 2)) * _ones_and_squares(node)[:, 0]
    if positions * (fan_in + fan_out) < fan_in * fan_out:
        kernel = torch.bmm(h, h.mT) * node.weight + float(node.bias)
        return (torch.bmm(delta, delta.mT) * kernel).sum((1, 2)).clamp(min=0)
    total = delta.sum(1).square().sum(1) * node.bias
    if node.weight:
        size = max(1, CHUNK_ENTRIES // (fan_in * fan_out))
        pairs = zip(delta.split(size), h.split(size), strict=True)
        total = total + torch.cat([torch.bmm(d.mT, i).square().sum((1, 2)) for d, i in pairs])
    return total


def _ones_and_squares(node: _Node) -> Float[Tensor, "batch position"]:
    return _wide(node.h).square().sum(2) * node.weight + float(node.bias)


def _copies_sq(model: nn.Module, f: Callable[[Tensor], Tensor], x: Tensor, names: list[str], create_graph: bool) -> Float[Tensor, " batch"]:
    """The plain way: give every example its own copy of the parameters and differentiate with respect to the copies."""
    parameters = dict(model.named_parameters())
    with torch.enable_grad():
        copies = {name: parameters[name].expand(len(x), *parameters[name].shape) for name in names}
        if not create_graph:
            copies = {name: copy.detach().requires_grad_() for name, copy in copies.items()}
        outputs = vmap(lambda own, example: functional_call(model, own, (example[None],))[0])(copies, x)
        values = _scalars(f(outputs), len(x))
        gradients = torch.autograd.grad(values.sum(), list(copies.values()), create_graph=create_graph, materialize_grads=True)
    return torch.stack([_sq(g) for g in gradients]).sum(0)


def _scalars(values: Tensor, count: int) -> Tensor:
    if values.shape != (count,):
        raise ValueError(f"f must return one number per example, shape ({count},), got shape {tuple(values.shape)}")
    return values


def _wide(tensor: Tensor) -> Tensor:
    """Half precision accumulates in float32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _sq(gradient: Float[Tensor, " batch *shape"]) -> Float[Tensor, " batch"]:
    return _wide(gradient).flatten(1).square().sum(1) if gradient.ndim > 1 else _wide(gradient).square()
