r"""Perturbations of an input that raise the loss most, in any norm: one step, and many steps.

For a loss :math:`\ell` with gradient :math:`g=\nabla_x\ell(x)` the best step of length :math:`\epsilon` in the norm :math:`\|\cdot\|_p`
is, to first order, the maximizer of :math:`\langle g,\Delta\rangle`, and what it gains is the dual norm:

.. math:: \max_{\|\Delta\|_p\le\epsilon}\langle g,\Delta\rangle=\epsilon\,\|g\|_q,\qquad \tfrac1p+\tfrac1q=1 .

Every function works per example: the first axis is the batch, all other axes together are one vector, and a loss is a function from
a batch to one number per example. Only gradients with respect to the input are taken: no parameter's ``.grad`` is touched, the
mode of a model stays as it is, and perturbations are constants in every later graph.

Training on such inputs, and the accuracy that survives them, are in :mod:`kexue.regularization.adversarial_training`; attacks on
embeddings in :mod:`kexue.regularization.embedding_attack`, attacks that need no label in
:mod:`kexue.regularization.virtual_adversarial`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["dual_norm", "fast_gradient", "pgd", "project", "steepest_direction"]

Loss = Callable[[Tensor], Tensor]


def dual_norm(g: Float[Tensor, " batch *shape"], p: int | float) -> Float[Tensor, " batch"]:
    r"""Dual norm :math:`\|g\|_q=\max_{\|\Delta\|_p\le1}\langle g,\Delta\rangle` of each example, :math:`\frac1p+\frac1q=1`.

    No intermediate overflows or underflows. Half precision is computed, and returned, in float32.

    :param p: norm of the *step*, from 1 to ``math.inf``.
    :raises ValueError: if ``p`` is below 1.
    """
    scaled, peak = _scaled(g, _exponent(p))
    return peak * torch.linalg.vector_norm(scaled, _dual_exponent(p), dim=1)


def steepest_direction(g: Float[Tensor, " batch *shape"], p: int | float) -> Float[Tensor, " batch *shape"]:
    r"""Step :math:`\Delta` with :math:`\|\Delta\|_p=1` and :math:`\langle g,\Delta\rangle=\|g\|_q`, for each example.

    .. math:: \Delta_i=\operatorname{sign}(g_i)\,\bigl(|g_i|/\|g\|_q\bigr)^{q-1},

    which is :math:`g/\|g\|_2` for p = 2 and :math:`\operatorname{sign}g` for infinity; for p = 1 it is a single entry, the first of
    those of largest :math:`|g_i|`. A zero gradient has no direction and gives a zero step. Entries of 1e-40 count as much as others.

    :param p: norm of the step, from 1 to ``math.inf``.
    :raises ValueError: if ``p`` is below 1.
    """
    if _exponent(p) == math.inf:
        return g.sign()
    scaled, peak = _scaled(g, p)
    if p == 1:
        step = torch.zeros_like(scaled)
        step.scatter_(1, scaled.abs().argmax(1, keepdim=True), 1.0)
        step = step * scaled.sign()
    else:
        q = _dual_exponent(p)
        ratio = scaled / torch.linalg.vector_norm(scaled, q, dim=1, keepdim=True).masked_fill(peak[:, None] == 0, 1)
        step = ratio if q == 2 else ratio.sign() * ratio.abs() ** (q - 1)
    return step.reshape(g.shape).to(g.dtype)


def project(delta: Float[Tensor, " batch *shape"], eps: int | float, p: int | float) -> Float[Tensor, " batch *shape"]:
    r"""Nearest point (in the Euclidean sense) of the ball :math:`\|\Delta\|_p\le\epsilon`, for each example.

    Clamping for infinity, scaling for 2, soft thresholding at the level that makes the norm equal to :math:`\epsilon` for 1.

    :param p: 1, 2 or ``math.inf``.
    :raises ValueError: if ``eps`` is negative or ``p`` is another norm. Source: Duchi et al. (2008) for p = 1.
    """
    _check(eps, p, (1, 2, math.inf))
    if p == math.inf:
        return delta.clamp(-eps, eps)
    flat = _rows(delta)
    size = torch.linalg.vector_norm(flat, p, dim=1, keepdim=True)
    if p == 2:
        inside = flat * torch.where(size > eps, eps / size, 1.0)
    else:
        entries, _ = flat.abs().sort(dim=1, descending=True)
        counts = torch.arange(1, flat.shape[1] + 1, dtype=flat.dtype, device=flat.device)
        levels = (entries.cumsum(1) - eps) / counts  # the level, if exactly the largest 1, 2, 3, ... entries stay non-zero
        level = levels.amax(1, keepdim=True).clamp(min=0)  # the right one is the largest
        inside = flat.sign() * (flat.abs() - level).clamp(min=0)
    return inside.reshape(delta.shape).to(delta.dtype)


def fast_gradient(
    loss_fn: Loss,
    x: Float[Tensor, " batch *shape"],
    eps: int | float,
    *,
    p: int | float = 2,
    clip: tuple[int | float, int | float] | None = None,
) -> Float[Tensor, " batch *shape"]:
    r"""Input after one steepest step, :math:`x+\epsilon\,\Delta(\nabla_x\ell)`: FGSM for p = infinity, FGM for p = 2.

    One forward and one backward pass that computes no gradient of a weight.

    :param loss_fn: maps a batch to one loss per example; examples must not influence each other.
    :param eps: length of the step in the norm ``p``, at least 0.
    :param clip: bounds of the input space, to which the result is clamped.
    :raises TypeError: if ``x`` is not floating point: integers have no gradient.
    :raises ValueError: if ``eps`` is negative, ``p`` below 1, ``x`` outside ``clip``, the loss not one number per example, or its
        gradient not finite. Source: Goodfellow et al. (2015); Miyato et al. (2017).
    """
    _check(eps, p, None)
    x = _inputs(x, clip)
    moved = torch.add(x, steepest_direction(_gradient(loss_fn, x), p), alpha=eps)
    return moved if clip is None else moved.clamp_(*clip)


def pgd(
    loss_fn: Loss,
    x: Float[Tensor, " batch *shape"],
    eps: int | float,
    *,
    p: int | float = math.inf,
    steps: int = 20,
    step_size: int | float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    clip: tuple[int | float, int | float] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " batch *shape"]:
    r"""Input after projected gradient ascent, :math:`x_{t+1}=\Pi\bigl(x_t+\alpha\,\Delta(\nabla_x\ell(x_t))\bigr)`.

    :math:`\Pi` projects on the ball of radius ``eps`` around ``x`` and then on ``clip``; both hold for the result. Costs
    ``restarts * steps`` forward and backward passes, and one forward pass more for each of several restarts, of which every example
    keeps the one with the largest loss.

    :param p: norm of the ball and of the steps: 1, 2 or ``math.inf``.
    :param step_size: length :math:`\alpha` of a step; ``2.5 * eps / steps`` if None, enough to reach the boundary from anywhere.
    :param random_start: start from a random point of the ball (uniform for infinity; else a random direction and a uniform radius).
    :raises TypeError: if ``x`` is not floating point.
    :raises ValueError: as :func:`fast_gradient`, and if ``steps`` or ``restarts`` is below 1 or ``step_size`` negative.
        Source: Madry et al. (2018).
    """
    _check(eps, p, (1, 2, math.inf))
    if steps < 1 or restarts < 1:
        raise ValueError(f"steps and restarts must be at least 1, got {steps} and {restarts}")
    if restarts > 1 and not random_start:
        raise ValueError("restarts without random_start would repeat one path")
    alpha = 2.5 * eps / steps if step_size is None else step_size
    if alpha < 0:
        raise ValueError(f"step_size must be at least 0, got {alpha}")
    x = _inputs(x, clip)
    back = _retraction(x, eps, p, clip)
    best, best_loss = x, None
    for _ in range(restarts):
        moved = back(x + _random_point(x, eps, p, generator)) if random_start else x
        for _ in range(steps):
            step = steepest_direction(_gradient(loss_fn, moved), p)
            moved = back(torch.add(moved, step, alpha=alpha))
        if restarts == 1:
            return moved
        with torch.no_grad():
            loss = loss_fn(moved)
        better = torch.ones_like(loss, dtype=torch.bool) if best_loss is None else loss > best_loss
        best = torch.where(better.reshape(-1, *[1] * (x.ndim - 1)), moved, best)
        best_loss = loss if best_loss is None else torch.maximum(loss, best_loss)
    return best


def _exponent(p: int | float) -> int | float:
    if not p >= 1:
        raise ValueError(f"p must be at least 1, where it is the exponent of a norm, got {p}")
    return p


def _dual_exponent(p: int | float) -> int | float:
    return math.inf if p == 1 else 1.0 if p == math.inf else p / (p - 1)


def _check(eps: int | float, p: int | float, allowed: tuple[int | float, ...] | None) -> None:
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be finite and at least 0, got {eps}")
    if allowed is not None and p not in allowed:
        raise ValueError(f"p must be 1, 2 or inf, the balls with a closed projection, got {p}")


def _rows(g: Tensor) -> Tensor:
    """Each example as one vector, half precision in float32: sums over a large image overflow, and counts above 2048 round."""
    flat = g.flatten(1) if g.ndim > 1 else g[:, None]
    return flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat


def _scaled(g: Tensor, p: int | float) -> tuple[Tensor, Tensor]:
    """Each example as a vector with largest entry 1 (or 0), and that entry: squares of tiny gradients would vanish."""
    flat = _rows(g)
    peak = flat.abs().amax(1)
    return flat / torch.where(peak > 0, peak, 1.0)[:, None], peak


def _inputs(x: Tensor, clip: tuple[int | float, int | float] | None) -> Tensor:
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point to have a gradient, got {x.dtype}; perturb the embeddings of integer inputs")
    if clip is not None and len(x):
        low, high = torch.aminmax(x)
        if not (clip[0] <= low and high <= clip[1]):
            raise ValueError(f"x must lie within clip = {clip}, got values from {low:g} to {high:g}")
    return x.detach()


def _gradient(loss_fn: Loss, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        losses = loss_fn(x)
        if losses.shape != (len(x),):
            raise ValueError(f"loss_fn must return one number per example, shape ({len(x)},), got shape {tuple(losses.shape)}")
        (gradient,) = torch.autograd.grad(losses.sum(), x, materialize_grads=True)
    if not torch.isfinite(gradient.sum()) and not torch.isfinite(gradient).all():  # the sum alone may overflow; it is cheap
        raise ValueError("loss_fn must have a finite gradient at the inputs, got inf or nan")
    return gradient


def _retraction(x: Tensor, eps: int | float, p: int | float, clip: tuple[int | float, int | float] | None) -> Loss:
    """Map a batch back to the balls around ``x`` and to ``clip``. Clamping to a box that holds x shortens every entry of the step."""
    if p == math.inf:  # ball and clip are one box
        low, high = (x - eps, x + eps) if clip is None else ((x - eps).clamp_(min=clip[0]), (x + eps).clamp_(max=clip[1]))
        return lambda moved: torch.clamp(moved, low, high)
    if clip is None:
        return lambda moved: x + project(moved - x, eps, p)
    return lambda moved: (x + project(moved - x, eps, p)).clamp_(*clip)


def _random_point(x: Tensor, eps: int | float, p: int | float, generator: torch.Generator | None) -> Tensor:
    uniform = torch.rand(x.shape if p == math.inf else (len(x), *[1] * (x.ndim - 1)), generator=generator).to(x)
    if p == math.inf:
        return eps * (2 * uniform - 1)
    direction = torch.randn(x.shape, generator=generator).to(x)
    size = torch.linalg.vector_norm(direction.flatten(1) if x.ndim > 1 else direction[:, None], p, dim=1)
    return eps * uniform * direction / size.reshape(uniform.shape)
