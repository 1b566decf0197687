r"""What attacks are for: the margin they should ascend, the accuracy that survives them, and a training step that learns from them.

An *attack* is a function of a loss and a batch that returns the batch moved, such as ``partial(pgd, eps=0.1)``; the loss is a function
from a batch to one number per example. The same attack serves both purposes:

.. math:: \text{test}\quad\frac1n\sum_i\mathbf 1\Bigl[\arg\max_kz_k(x_i+\Delta_i)=y_i\Bigr],\qquad
   \text{train}\quad\min_\theta\frac1n\sum_i\ell(x_i+\Delta_i,y_i;\theta),

with :math:`\Delta_i` constant in the differentiation by :math:`\theta`: the maximizer is stationary, so its own motion adds nothing
to first order (Danskin's theorem).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kexue.regularization.adversarial import fast_gradient
from kexue.regularization.embedding_attack import embedding_attack

__all__ = ["adversarial_step", "margin_loss", "robust_accuracy"]

Loss = Callable[[Tensor], Tensor]
Attack = Callable[[Loss, Tensor], Tensor]


def adversarial_step(
    model: nn.Module,
    x: Tensor,
    y: Int[Tensor, " batch"],
    eps: int | float,
    *,
    p: int | float = 2,
    attack: Callable[..., Tensor] = fast_gradient,
    embedding: str | None = None,
    scope: Literal["example", "batch", "table"] = "example",
    clean: int | float = 0,
) -> Float[Tensor, ""]:
    r"""Mean cross-entropy of a batch after an attack: the ``step`` of :func:`kexue.regularization.training.fit`.

    .. math:: (1-c)\,\frac1n\sum_i\ell(x_i+\Delta_i)+c\,\frac1n\sum_i\ell(x_i),\qquad c=\text{clean}.

    For example ``fit(model, x, y, epochs=20, step=partial(adversarial_step, eps=0.1, p=math.inf))``. Differentiable with respect to
    the parameters, not through the attack. With dropout, the attack and the loss each draw their own masks.

    :param eps: length of the step in the norm ``p``, at least 0.
    :param attack: called as ``attack(loss_fn, x, eps, p=p)``: ``fast_gradient``, ``pgd``, or a ``partial`` of one of them.
    :param embedding: name of the submodule whose output is moved instead of the input, which may then be integer tokens; one steepest
        step in the norm 2.
    :param scope: what has length ``eps`` there, see :mod:`kexue.regularization.embedding_attack`.
    :param clean: share of the loss at the unmoved inputs, in [0, 1].
    :raises AttributeError: if the model has no such submodule.
    :raises ValueError: if ``clean`` is outside [0, 1], if ``attack``, ``p`` or ``scope`` is given where it has no effect, and as the
        attacks do. Source: Goodfellow et al. (2015) for ``clean``; Madry et al. (2018); Miyato et al. (2017).
    """
    if not 0 <= clean <= 1:
        raise ValueError(f"clean must lie in [0, 1], where it is a share, got {clean}")

    def losses(inputs: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(inputs), y, reduction="none")

    if embedding is None:
        if scope != "example":
            raise ValueError(f"scope is that of an embedding, got {scope!r} without the name of one")
        value = losses(attack(losses, x, eps, p=p)).mean()
    else:
        if attack is not fast_gradient or p != 2:
            raise ValueError(f"embeddings are moved by one steepest step in the norm 2, got p = {p} and attack = {attack}")
        with embedding_attack(model.get_submodule(embedding), lambda: losses(x), eps, scope=scope):
            value = losses(x).mean()
    return torch.lerp(value, losses(x).mean(), clean) if clean else value


def margin_loss(logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    r"""Negative margin :math:`\max_{k\ne y}z_k-z_y`, positive exactly for examples that are classified wrongly.

    Unlike cross-entropy it never saturates: multiplying the logits multiplies its gradient. Source: Carlini and Wagner (2017).
    """
    own = torch.nn.functional.one_hot(y.long(), logits.shape[1]).bool()
    return logits.masked_fill(own, -math.inf).amax(1) - logits[own]


@torch.no_grad()
def robust_accuracy(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, " batch *shape"],
    y: Int[Tensor, " batch"],
    attacks: Iterable[Attack],
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = margin_loss,
) -> float:
    r"""Share of the examples that are classified correctly at ``x`` and after every one of the attacks.

    Each attack meets only the examples that have survived so far, so a list of attacks costs little more than its first one.

    :param attacks: functions of a loss and a batch that return the perturbed batch, such as ``partial(pgd, eps=0.1)``.
    :param loss: maps logits and labels to one number per example; attacks ascend it.
    :raises ValueError: if there is no example. Source: Croce and Hein (2020) for the worst case over attacks.
    """
    if len(x) == 0:
        raise ValueError("x must have at least one example, got none")
    total, right = len(x), model(x).argmax(1) == y
    for attack in attacks:
        x, y = x[right], y[right]
        if len(x) == 0:
            return 0.0
        right = model(attack(lambda inputs, y=y: loss(model(inputs), y), x)).argmax(1) == y
    return right.sum().item() / total
