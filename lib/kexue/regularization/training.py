r"""The small supervised experiment that several regularizers share: a perceptron, a training loop with one open step, and scores.

A regularizer enters a training loop in one place, the loss of a batch. :func:`fit` therefore takes that place as an argument:
``step(model, x, y)`` may perturb the inputs (adversarial training), mix them (mixup) or add a penalty, and everything else - the
order of the batches, the optimizer, the number of steps - stays the same from one regularizer to the next. With one generator
seeded alike, two runs see the same batches in the same order, so that their difference is due to the step alone.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

__all__ = ["Scores", "calibration_error", "fit", "fit_to_loss", "mlp", "scores"]

Step = Callable[[nn.Module, Tensor, Tensor], Tensor]
Progress = Callable[[Iterable[int]], Iterable[int]]


def mlp(
    sizes: Sequence[int],
    *,
    activation: Callable[[], nn.Module] = nn.ReLU,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    r"""Return a perceptron with layers of the given ``sizes``, the input's first, and ``activation`` between them.

    ``dropout`` > 0 puts ``nn.Dropout(dropout)`` after each activation. Weights follow torch's own law for ``nn.Linear`` (uniform on
    :math:`\pm1/\sqrt{\text{fan in}}`), drawn from ``generator`` if one is given. Raises ValueError for fewer than two sizes,
    a size below 1, or ``dropout`` outside [0, 1).
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes must name an input and an output size, all at least 1, got {list(sizes)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        linear = nn.Linear(fan_in, fan_out)
        if generator is not None:
            for parameter in linear.parameters():
                nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5, generator=generator)
        layers += [linear, activation()] + ([nn.Dropout(dropout)] if dropout else [])
    return nn.Sequential(*layers[: -2 if dropout else -1])


def fit(
    model: nn.Module,
    x: Shaped[Tensor, "count *features"],
    y: Tensor,
    *,
    epochs: int,
    step: Step | None = None,
    batch: int = 100,
    lr: float = 1e-3,
    generator: torch.Generator | None = None,
    progress: Progress = iter,
) -> nn.Module:
    """Train ``model`` in place with Adam and return it in evaluation mode.

    Every epoch goes once through the examples in a new random order, ``batch`` at a time (the last batch may be smaller).
    ``step(model, x, y)`` returns the scalar loss of one batch; without it, the loss is cross-entropy with the classes ``y``.
    The order comes from ``generator`` (on the CPU), and ``progress`` wraps the range of epochs.

    Raises ValueError for counts below 1, if ``x`` and ``y`` differ in length, or if a loss is not finite - with the epoch, so that
    a diverging run stops at once.
    """
    for name, value in [("epochs", epochs), ("batch", batch)]:
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if len(x) != len(y) or not len(x):
        raise ValueError(f"x and y must have the same number of examples, at least 1, got {len(x)} and {len(y)}")
    step = step or _cross_entropy
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    for epoch in progress(range(epochs)):
        for chosen in torch.randperm(len(x), generator=generator).to(x.device).split(batch):
            loss = step(model, x[chosen], y[chosen])
            if not loss.isfinite():
                raise ValueError(f"the loss is {loss.item()} in epoch {epoch + 1}: lower lr = {lr} or look at step")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return model.eval()


def fit_to_loss(
    model: nn.Module,
    x: Shaped[Tensor, "count *features"],
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    target: float,
    step: Step | None = None,
    batch: int = 100,
    check: int = 5,
    limit: int = 20_000,
    generator: torch.Generator | None = None,
    watch: Callable[[nn.Module, int | str], object] | None = None,
) -> int:
    """Train ``model`` in place until its mean cross-entropy on all of ``x`` is below ``target``; return the number of steps.

    Runs that stop at equal loss can be compared: none looks smooth only because it is less trained. The loss is looked at after every
    ``check`` steps, without whatever ``step`` adds to it. ``watch(model, number)`` is called before each step, and once with ``"end"``.

    Raises ValueError for counts below 1 or if ``x`` and ``y`` differ in length, RuntimeError if ``limit`` steps were not enough.
    """
    for name, value in [("batch", batch), ("check", check), ("limit", limit)]:
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if len(x) != len(y) or not len(x):
        raise ValueError(f"x and y must have the same number of examples, at least 1, got {len(x)} and {len(y)}")
    step, watch, count, reached = step or _cross_entropy, watch or (lambda model, number: None), 0, math.nan
    while count < limit:
        for chosen in torch.randperm(len(x), generator=generator).to(x.device).split(batch):
            watch(model, count)
            optimizer.zero_grad(set_to_none=True)
            step(model, x[chosen], y[chosen]).backward()
            optimizer.step()
            count += 1
            if count % check == 0:
                with torch.no_grad():
                    reached = _cross_entropy(model, x, y).item()
                if reached < target:
                    watch(model, "end")
                    return count
    raise RuntimeError(f"the loss is still {reached:.3g} after {count} steps, not below the target {target}")


def _cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x), y)


class Scores(NamedTuple):
    """Accuracy, mean negative log-likelihood in nats, and expected calibration error, the first and last in [0, 1]."""

    accuracy: float
    nll: float
    ece: float


def scores(logits: Float[Tensor, "count classes"], labels: Int64[Tensor, " count"]) -> Scores:
    """Return how good the predictions softmax(logits) are: accuracy, negative log-likelihood, calibration error (15 bins).

    Computed in float64. Raises ValueError for no examples or a label that names no class.
    """
    _check(logits, labels, "logits")
    log_p = logits.double().log_softmax(1)
    accuracy = (log_p.argmax(1) == labels).double().mean()
    return Scores(accuracy.item(), nn.functional.nll_loss(log_p, labels).item(), calibration_error(log_p.exp(), labels))


def calibration_error(probabilities: Float[Tensor, "count classes"], labels: Int64[Tensor, " count"], *, bins: int = 15) -> float:
    r"""Return the expected calibration error: how far confidence is from accuracy, on average.

    The confidence of an example is its largest probability. With ``bins`` equal bins :math:`B_m` of [0, 1],
    :math:`\mathrm{ECE}=\sum_m\frac{|B_m|}n\,\bigl|\mathrm{acc}(B_m)-\mathrm{conf}(B_m)\bigr|`, which lies in [0, 1]. A confidence on
    a boundary belongs to the lower bin.

    Raises ValueError for ``bins`` < 1, rows that are not distributions, no examples, or a label that names no class. Source: C. Guo,
    G. Pleiss, Y. Sun and K. Weinberger, ICML 2017, equation 3.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    _check(probabilities, labels, "probabilities")
    p = probabilities.double()
    if not ((p >= 0).all() and ((p.sum(1) - 1).abs() < 1e-3).all()):
        raise ValueError("probabilities must be non-negative with rows that sum to 1; apply softmax to logits first")
    confidence, predicted = p.max(1)
    index = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    surplus = (predicted == labels).double() - confidence
    return (torch.zeros(bins, dtype=p.dtype, device=p.device).index_add(0, index, surplus).abs().sum() / len(p)).item()


def _check(values: Tensor, labels: Tensor, name: str) -> None:
    if not len(labels):
        raise ValueError(f"{name} and labels must hold at least one example")
    if labels.min() < 0 or labels.max() >= values.shape[1]:
        raise ValueError(f"labels must lie in 0..{values.shape[1] - 1}, the classes of {name}, got {labels.min()}..{labels.max()}")
