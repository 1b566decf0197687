r"""Adversarial perturbation of token embeddings: of the table, of a batch of looked-up vectors, or of each example.

Tokens are integers, so the perturbation goes to their embeddings :math:`e_{i,t}=E_{\text{token}(i,t)}`. With :math:`L` the mean loss
of a batch and :math:`g_{i,t}=\partial L/\partial e_{i,t}` there are three things that "a perturbation of length :math:`\epsilon`" can mean:

* *example*: :math:`\Delta_i=\epsilon\,g_i/\|g_i\|`, each sequence on its own; does not depend on the batch.
* *batch*: :math:`\Delta=\epsilon\,g/\|g\|`, one joint length for all sequences together.
* *table*: :math:`\Delta=\epsilon\,G/\|G\|` for the gradient :math:`G_v=\sum_{\text{token}(i,t)=v}g_{i,t}` of the table, one shift per
  token, shared by all of its occurrences, which can cancel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kexue.regularization.adversarial import steepest_direction

__all__ = ["embedding_attack", "perturbed"]


@contextmanager
def perturbed(parameter: Float[Tensor, "*shape"], delta: Float[Tensor, "*shape"]) -> Iterator[None]:
    r"""Add ``delta`` to a parameter while the block runs, then restore the parameter bit for bit, however the block ends.

    Adding and subtracting would not restore it: :math:`(a+b)-b\ne a` in floating point. Call ``backward`` inside the block; where
    the graph needs the changed parameter, autograd refuses to go back after it.

    :raises ValueError: if ``delta`` has another shape than the parameter: broadcasting would perturb all rows alike.
    """
    if delta.shape != parameter.shape:
        raise ValueError(f"delta must have the shape {tuple(parameter.shape)} of the parameter, got {tuple(delta.shape)}")
    original = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter.add_(delta)
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(original)


@contextmanager
def embedding_attack(
    embedding: nn.Embedding,
    loss_fn: Callable[[], Tensor],
    eps: int | float,
    *,
    scope: Literal["example", "batch", "table"] = "example",
) -> Iterator[Tensor]:
    r"""Run the block with embeddings that are shifted by the steepest step of Euclidean length ``eps``.

    Yields the shift: of the shape of the embeddings for the scopes ``"example"`` and ``"batch"``, of the table for ``"table"``. Take
    the loss again inside the block and call ``backward`` there. Padding (``padding_idx``) is never shifted. Costs one forward and one
    backward pass, the latter without weight gradients; no ``.grad`` is touched. Table and module are restored at the end.

    :param embedding: is called exactly once by ``loss_fn``, with indices whose first axis is the batch.
    :param loss_fn: runs the model and returns one loss per example.
    :raises ValueError: if ``eps`` is negative, ``scope`` unknown, the embedding called a number of times other than once, or the
        loss not one number per example. Source: Miyato et al. (2017) for "example".
    """
    if not 0 <= eps < math.inf:
        raise ValueError(f"eps must be finite and at least 0, got {eps}")
    if scope not in ("example", "batch", "table"):
        raise ValueError(f"scope must be 'example', 'batch' or 'table', got {scope!r}")
    tokens, gradient = _output_gradient(embedding, loss_fn)
    if scope == "example":
        delta = eps * steepest_direction(gradient, 2)
    elif scope == "batch":
        delta = eps * steepest_direction(gradient[None], 2)[0]
    else:
        table = torch.zeros_like(embedding.weight)
        table.index_add_(0, tokens.flatten(), gradient.flatten(0, -2))
        delta = eps * steepest_direction(table[None], 2)[0]
    if scope == "table":
        with perturbed(embedding.weight, delta):
            yield delta
        return
    hook = embedding.register_forward_hook(lambda module, inputs, output: output + delta)
    try:
        yield delta
    finally:
        hook.remove()


def _output_gradient(embedding: nn.Embedding, loss_fn: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens and the gradient of the mean loss with respect to the vectors that they are looked up as."""
    calls: list[tuple[Tensor, Tensor]] = []

    def leaf(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        calls.append((inputs[0], output.detach().requires_grad_()))
        return calls[-1][1]

    hook = embedding.register_forward_hook(leaf)
    try:
        with torch.enable_grad():
            losses = loss_fn()
            loss = losses.mean()
    finally:
        hook.remove()
    if len(calls) != 1:
        raise ValueError(f"loss_fn must call the embedding exactly once, it did so {len(calls)} times")
    tokens, vectors = calls[0]
    if losses.shape != (len(tokens),):
        raise ValueError(f"loss_fn must return one number per example, shape ({len(tokens)},), got shape {tuple(losses.shape)}")
    (gradient,) = torch.autograd.grad(loss, vectors, materialize_grads=True)
    if embedding.padding_idx is not None:
        gradient = gradient.masked_fill((tokens == embedding.padding_idx)[..., None], 0)
    return tokens, gradient
