r"""Adversarial perturbations without labels: the step that changes a classifier's answer most, whatever the right answer is.

Let :math:`p(x)=\operatorname{softmax}z(x)` and measure the change of the answer by :math:`D(r)=\mathrm{KL}\bigl(p(x)\,\|\,p(x+r)\bigr)`.
It is zero at :math:`r=0`, its least value, and so is its gradient there: there is no steepest step. The first term is the quadratic one,

.. math:: D(r)=\tfrac12\,r^\top Hr+O(\|r\|^3),\qquad H=J^\top\bigl(\operatorname{diag}p-pp^\top\bigr)J,\quad J=\partial z/\partial x,

so the worst step of length :math:`\epsilon` is, to leading order, the top eigenvector of the Fisher matrix :math:`H`, and gains
:math:`\frac12\epsilon^2\lambda_{\max}(H)`. :math:`H` has rank below the number of classes, and power iteration finds the eigenvector.
The product :math:`Hd` is exact here, one derivative forward and one backward, where the original method takes a difference quotient
of gradients, with a step that float32 resolves badly.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from kexue.regularization.adversarial import steepest_direction

__all__ = ["vat_loss", "virtual_direction"]


@torch.no_grad()
def virtual_direction(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, " batch *shape"],
    *,
    iterations: int = 1,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " batch *shape"]:
    r"""Unit vector, for each example, in which the predicted distribution changes most; its sign is random.

    Power iteration :math:`d\leftarrow Hd/\|Hd\|` from a random direction: the angle to the top eigenvector shrinks by
    :math:`\lambda_2/\lambda_1` each time. One iteration costs about two forward passes and one backward pass without weight gradients.
    Where the answer does not depend on the input to first order (:math:`H=0`, also by underflow of p), the direction is zero.

    :param model: maps a batch to logits; examples must not influence each other; must allow forward-mode differentiation, and is
        evaluated twice in each iteration, so that dropout belongs switched off.
    :param generator: source of the random directions (on the CPU).
    :raises TypeError: if ``x`` is not floating point.
    :raises ValueError: if ``iterations`` is less than 1 or ``model`` does not return a matrix of logits.
        Source: Miyato, Maeda, Koyama and Ishii (2019), section 3.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1: a random direction is not adversarial, got {iterations}")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point to have a gradient, got {x.dtype}; perturb the embeddings of integer inputs")
    x = x.detach()
    direction = steepest_direction(torch.randn(x.shape, generator=generator).to(x), 2)
    for _ in range(iterations):
        direction = steepest_direction(_fisher_product(model, x, direction), 2)
    return direction


def vat_loss(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, " batch *shape"],
    eps: int | float,
    *,
    iterations: int = 1,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    r"""Virtual adversarial loss :math:`\frac1B\sum_i\mathrm{KL}\bigl(p(x_i)\,\|\,p(x_i+\epsilon d_i)\bigr)` in nats, at least 0.

    Add it to the loss of labelled examples; ``x`` itself needs no labels. The clean prediction :math:`p(x_i)` and the direction
    :math:`d_i` of :func:`virtual_direction` are constants in the differentiation.

    :param eps: length of the step in the Euclidean norm, at least 0.
    :raises ValueError: if ``eps`` is negative, ``x`` has no example, and as :func:`virtual_direction`.
        Source: Miyato, Maeda, Koyama and Ishii (2019).
    """
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be finite and at least 0, got {eps}")
    if len(x) == 0:
        raise ValueError("x must have at least one example, got none")
    direction = virtual_direction(model, x, iterations=iterations, generator=generator)
    with torch.no_grad():
        clean = model(x).log_softmax(1)
    moved = model(torch.add(x, direction, alpha=eps)).log_softmax(1)
    return torch.nn.functional.kl_div(moved, clean, reduction="batchmean", log_target=True)


def _fisher_product(model: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> Tensor:
    """The product of each example's Fisher matrix with its direction."""
    logits, change = torch.func.jvp(model, (x,), (direction,))
    if logits.ndim != 2 or len(logits) != len(x):
        raise ValueError(f"model must return logits of shape ({len(x)}, classes), got {tuple(logits.shape)}")
    p = logits.softmax(1)
    pull = p * (change - (p * change).sum(1, keepdim=True))
    with torch.enable_grad():
        v = x.detach().requires_grad_()
        (product,) = torch.autograd.grad(model(v), v, pull, materialize_grads=True)
    return product
