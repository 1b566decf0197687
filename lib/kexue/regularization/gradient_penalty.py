r"""Penalties on gradients of the loss or the output, all of them differentiable once more.

A penalty is a mean over examples, :math:`\frac1B\sum_i\|\nabla f_i\|^2`, never the norm of a mean: gradients of a batch cancel,
and what the mean still shows of them is the share :func:`sampling_factor`. Parameter gradients come from
:func:`~kexue.regularization.per_example.parameter_gradient_sq`, one backward pass for the whole batch. Which penalty bounds which
is the subject of :mod:`kexue.regularization.transfer_bound`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kexue.numerics import safe_sqrt
from kexue.regularization.per_example import input_gradient_sq, parameter_gradient_sq

__all__ = ["dirichlet_energy", "gradient_penalty", "sampling_factor"]


def dirichlet_energy(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, " batch *shape"],
    *,
    n_probes: int | None = None,
    generator: torch.Generator | None = None,
    create_graph: bool = False,
) -> Float[Tensor, ""]:
    r"""Mean squared Frobenius norm :math:`\frac1B\sum_i\|\partial\,\text{model}(x_i)/\partial x_i\|_F^2` of the input Jacobian.

    Exact with one backward pass per output; with ``n_probes`` the unbiased estimate of Hutchinson, the mean of
    :math:`\|J^\top v\|^2` over random signs :math:`v`, with one backward pass per probe. Also called geometric complexity.

    :param model: maps a batch to outputs of any shape per example; examples must not influence each other.
    :param n_probes: number of random probes, or None for the exact value.
    :param generator: source of the probes.
    :raises ValueError: if ``n_probes`` is less than 1. Source: Dherin, Munn, Rosca and Barrett (2022).
    """
    if n_probes is not None and n_probes < 1:
        raise ValueError(f"n_probes must be at least 1 or None for the exact energy, got {n_probes}")
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        y = model(x).reshape(len(x), -1)
        if n_probes is None:
            directions = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)[:, None].expand(-1, *y.shape)
        else:
            signs = torch.randint(0, 2, (n_probes, *y.shape), generator=generator) * 2 - 1
            directions = signs.to(y) / n_probes**0.5
        energy = torch.zeros((), dtype=y.dtype, device=y.device)
        for v in directions:
            (gradient,) = torch.autograd.grad(y, x, v, retain_graph=True, create_graph=create_graph, materialize_grads=True)
            energy = energy + gradient.square().sum() / len(x)
    return energy


def gradient_penalty(
    model: nn.Module,
    f: Callable[[Tensor], Tensor],
    x: Float[Tensor, " batch *shape"],
    *,
    wrt: Literal["input", "parameters"] = "input",
    p: int | float = 2,
    power: Literal[1, 2] = 2,
) -> Float[Tensor, ""]:
    r"""Differentiable penalty :math:`\frac1B\sum_i\|\nabla f_i\|_p^{\text{power}}` on the gradient of each example.

    Its own gradient is defined everywhere: where :math:`\nabla f_i=0` it is 0, also for ``power=1``.

    :param model: module whose first input axis is the batch and whose examples do not influence each other.
    :param f: maps the model's output for the batch to one number per example, for example the unreduced loss.
    :param wrt: differentiate with respect to the ``"input"`` or to the trainable ``"parameters"``.
    :param p: norm, 1, 2 or ``math.inf``; for parameters only 2, where the norm of a layer factors.
    :param power: 1 or 2.
    :raises ValueError: if ``wrt``, ``p`` or ``power`` is not one of these or ``f`` does not return one number per example.
    """
    if wrt not in ("input", "parameters"):
        raise ValueError(f"wrt must be 'input' or 'parameters', got {wrt!r}")
    if power not in (1, 2):
        raise ValueError(f"power must be 1 or 2, got {power}")
    if p not in ((1, 2, torch.inf) if wrt == "input" else (2,)):
        raise ValueError(f"p must be {'1, 2 or inf' if wrt == 'input' else '2 for parameters'}, got {p}")
    if wrt == "parameters":
        squares = parameter_gradient_sq(model, f, x, create_graph=True)
    elif p == 2:
        squares = input_gradient_sq(lambda inputs: f(model(inputs)), x, create_graph=True)
    else:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            values = f(model(x))
            if values.shape != (len(x),):
                raise ValueError(f"f must return one number per example, shape ({len(x)},), got shape {tuple(values.shape)}")
            (gradient,) = torch.autograd.grad(values.sum(), x, create_graph=True, materialize_grads=True)
        sizes = gradient.float() if gradient.dtype in (torch.float16, torch.bfloat16) else gradient
        sizes = sizes.flatten(1).abs()
        norms = sizes.sum(1) if p == 1 else sizes.amax(1)
        return (norms if power == 1 else norms.square()).mean()
    return (safe_sqrt(squares) if power == 1 else squares).mean()


def sampling_factor(n: int, b: int) -> float:
    r"""Share :math:`\kappa_b=\frac{n-b}{b(n-1)}` of the per-example gradient norm that a minibatch sees.

    For a batch of ``b`` out of ``n`` examples without replacement
    :math:`\mathbb E\|g_B\|^2=\|\bar g\|^2+\kappa_b\bigl(\tfrac1n\sum_i\|g_i\|^2-\|\bar g\|^2\bigr)`; 1 for single examples, 0 for
    the full batch. Raises ValueError unless ``1 <= b <= n``.
    """
    if not 1 <= b <= n:
        raise ValueError(f"b must be from 1 to n = {n}, got {b}")
    return (n - b) / (b * (n - 1)) if n > 1 else 1.0
