r"""Products with a Hessian, and its largest eigenvalue.

A network's Hessian is too large to write down, but its product with a vector costs about two gradients, and Lanczos's method finds
the largest eigenvalue from a few such products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Eigen", "hessian_operator", "top_eigenvalue"]


class Eigen(NamedTuple):
    r"""An eigenvalue with its unit vector and the residual :math:`\|Ax-\theta x\|`: some eigenvalue lies within it of the value."""

    value: Float[Tensor, ""]
    vector: Float[Tensor, " size"]
    residual: Float[Tensor, ""]
    steps: Int[Tensor, ""]


def hessian_operator(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    r"""The map :math:`v\mapsto Hv` of the Hessian of a scalar ``loss()`` in its parameters, flattened one after the other.

    The graph of the gradient is built once; a product is one backward pass through it, about two gradients. The closure must read the very
    tensors in ``parameters``: ``hessian_operator(lambda: loss(model(x), y), list(model.parameters()))``. Where the loss is piecewise
    linear, as a ReLU network is between its kinks, the kinks count as flat.

    Raises ValueError if there is no parameter, one does not require a gradient, the loss is not one number, or v has another length.
    """
    parameters = tuple(parameters)
    if not parameters or not all(p.requires_grad for p in parameters):
        raise ValueError(f"parameters must be at least one tensor, all requiring gradients, got {len(parameters)}")
    with torch.enable_grad():
        value = loss()
        if value.numel() != 1:
            raise ValueError(f"loss must return one number, got shape {tuple(value.shape)}")
        gradients = torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True)
        flat = torch.cat([g.reshape(-1) for g in gradients])

    def product(v: Tensor) -> Tensor:
        if v.shape != flat.shape:
            raise ValueError(f"v must have shape {tuple(flat.shape)}, one entry per parameter, got {tuple(v.shape)}")
        if not flat.requires_grad:
            return torch.zeros_like(v)
        parts = torch.autograd.grad(flat, parameters, v, retain_graph=True, materialize_grads=True)
        return torch.cat([part.reshape(-1) for part in parts])

    return product


def top_eigenvalue(matvec: Callable[[Tensor], Tensor], start: Float[Tensor, " size"], *, rtol: float = 1e-3, max_steps: int = 100) -> Eigen:
    r"""Largest (not largest in absolute value) eigenvalue of a symmetric operator, by Lanczos's method.

    After k products the estimate is the maximum of :math:`x^\top Ax` over unit vectors of the Krylov space of ``start``: never above the
    true value, and at least as good as k steps of power iteration. Every new vector is orthogonalized against all earlier ones, twice,
    which keeps the method stable and costs k vectors of memory. Stops when the residual is at most ``rtol`` times the largest absolute
    eigenvalue seen; the error of the value is of the order of the residual's square.

    :param matvec: :math:`v\mapsto Av`; :func:`hessian_operator` makes one.
    :param start: any vector that is not orthogonal to the leading one; a random normal one will do.
    :raises ValueError: if rtol or max_steps is out of range, the start vector is zero, or a product is not finite.
    """
    if not rtol > 0:
        raise ValueError(f"rtol must be positive, got {rtol}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    if not start.norm() > 0:
        raise ValueError("start must not be the zero vector, which spans no Krylov space")
    basis, diagonal, beside = [start / start.norm()], [], []
    for step in range(1, min(max_steps, start.numel()) + 1):
        image = matvec(basis[-1])
        if not torch.isfinite(image).all():
            raise ValueError(f"matvec must return finite vectors, and product {step} is not")
        diagonal.append(torch.dot(basis[-1], image).item())
        frame = torch.stack(basis)
        for _ in range(2):
            image = image - frame.mT @ (frame @ image)
        small = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(torch.tensor(beside, dtype=torch.float64), 1)
        values, vectors = torch.linalg.eigh(small, UPLO="U")
        residual = image.norm().item() * vectors[-1, -1].abs()
        if residual <= rtol * values.abs().max():
            break
        beside.append(image.norm().item())
        basis.append(image / beside[-1])
    vector = frame.mT @ vectors[:, -1].to(frame)
    return Eigen(values[-1].to(start), vector, residual.to(start), torch.tensor(step))
