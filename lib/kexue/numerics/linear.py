r"""Spectral norms of matrices and of operators, and the square root whose slope at zero is zero.

:math:`\|A\|_2=\max_{\|v\|=1}\|Av\|` is the largest singular value. For a matrix that fits in memory it is the root of the largest
eigenvalue of the smaller Gram matrix, :math:`\|A\|_2^2=\lambda_{\max}(A^\top A)=\lambda_{\max}(AA^\top)`: squaring costs the *small*
singular values their digits, never the largest one. For an operator of which only products are known - the Jacobian of a network,
through one Jacobian-vector and one vector-Jacobian product - it is the limit of power iteration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Singular", "power_iteration", "safe_sqrt", "spectral_norm"]


class Singular(NamedTuple):
    r"""Leading singular triple of an operator: :math:`Av=\sigma u` with unit vectors :math:`u, v`."""

    value: Float[Tensor, "*batch"]
    left: Float[Tensor, "*batch rows"]
    right: Float[Tensor, "*batch cols"]
    steps: Int[Tensor, ""]


def safe_sqrt(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Square root whose derivative at 0 is 0.

    :math:`\sqrt x` has slope :math:`\infty` at 0, which turns the gradient of every norm into NaN where the norm vanishes; 0 is the
    subgradient of smallest norm of :math:`\|v\|` at :math:`v=0`. Negative values give NaN, as in :func:`torch.sqrt`.
    """
    zero = x == 0
    return torch.where(zero, torch.zeros_like(x), torch.where(zero, torch.ones_like(x), x).sqrt())


def spectral_norm(matrix: Float[Tensor, "*batch rows cols"]) -> Float[Tensor, "*batch"]:
    r"""Largest singular value of each matrix of a batch.

    Computes :math:`\sqrt{\lambda_{\max}(AA^\top)}` of the matrix divided by its largest entry, so nothing over- or underflows; relative
    error of a few ulps. Several times faster than all singular values, and batched. Differentiable where the largest singular value
    is simple; at a zero matrix the gradient is 0. Half precision is computed in float32.

    :param matrix: finite entries, at least one row and one column.
    :raises ValueError: if a side is empty or an entry is not finite.
    """
    if 0 in matrix.shape[-2:]:
        raise ValueError(f"matrix must have at least one row and one column, got shape {tuple(matrix.shape)}")
    if not torch.isfinite(matrix).all():
        raise ValueError("matrix must have finite entries, got inf or nan")
    a = matrix if matrix.dtype in (torch.float32, torch.float64) else matrix.float()
    scale = a.detach().abs().amax(dim=(-2, -1))
    a = a / torch.where(scale > 0, scale, torch.ones_like(scale))[..., None, None]
    gram = a @ a.mT if a.shape[-2] <= a.shape[-1] else a.mT @ a
    top = gram[..., 0, 0] if gram.shape[-1] == 1 else torch.linalg.eigvalsh(gram)[..., -1]
    return (safe_sqrt(torch.where(scale > 0, top, torch.zeros_like(top))) * scale).to(matrix.dtype)


def power_iteration(
    matvec: Callable[[Tensor], Tensor],
    rmatvec: Callable[[Tensor], Tensor],
    start: Float[Tensor, "*batch cols"],
    *,
    rtol: float = 1e-6,
    max_steps: int = 1000,
) -> Singular:
    r"""Leading singular triple of a batch of linear operators given by their products.

    Iterates :math:`v\leftarrow A^\top Av/\|A^\top Av\|`. The estimate :math:`\sigma=\|Av\|` never exceeds :math:`\|A\|_2` and grows at
    every step, its error falling by :math:`(\sigma_2/\sigma_1)^4` a step. Stops when
    :math:`\|A^\top Av-\sigma^2v\|\le\text{rtol}\,\sigma^2` for every operator of the batch: then some singular value lies within
    :math:`\text{rtol}\,\sigma` of :math:`\sigma`, and for a random start it is the leading one unless two are that close. For the
    Jacobian of a network pass ``jvp`` and ``vjp``: the matrix is never formed.

    :param matvec: :math:`v\mapsto Av`, from (\*batch, cols) to (\*batch, rows).
    :param rmatvec: :math:`u\mapsto A^\top u`, from (\*batch, rows) to (\*batch, cols).
    :param start: any vectors that are not orthogonal to the leading one; random normal ones will do.
    :param rtol: relative residual at which to stop, positive.
    :param max_steps: largest number of pairs of products, at least 1.
    :returns: value, left and right vector and the number of steps. A zero operator has value 0 and left vector 0.
    :raises ValueError: if rtol or max_steps is out of range, or a start vector is zero.
    """
    if not rtol > 0:
        raise ValueError(f"rtol must be positive, got {rtol}")
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    length = start.norm(dim=-1, keepdim=True)
    if not (length > 0).all():
        raise ValueError("start must have no zero vector: power iteration would stay there")
    right = start / length
    for step in range(1, max_steps + 1):
        image = matvec(right)
        value = image.norm(dim=-1)
        back = rmatvec(image)
        residual = (back - value[..., None] ** 2 * right).norm(dim=-1)
        if step == max_steps or (residual <= rtol * value**2).all():
            break
        size = back.norm(dim=-1, keepdim=True)
        right = torch.where(size > 0, back / size, right)
    left = torch.where(value[..., None] > 0, image / value[..., None], torch.zeros_like(image))
    return Singular(value, left, right, torch.tensor(step))
